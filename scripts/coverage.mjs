export async function reportCoverage() {
  return 0
}
