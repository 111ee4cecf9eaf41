/**
 * Work space that a function keeps from one call to the next, at least so long; what was in it before is there still. For values
 * that do not outlive the call: a buffer of its own costs more than the arithmetic in it, and the engine frees it in other
 * threads, which requests wait for.
 */
export function scratch(): (length: number) => Float64Array<ArrayBuffer> {
  let space = new Float64Array(0)
  return (length) => {
    if (space.length < length) space = new Float64Array(2 * length)
    return space.subarray(0, length)
  }
}
