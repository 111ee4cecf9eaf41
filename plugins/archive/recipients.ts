/** Public keys of age are Bech32 (BIP 173): what is mistyped or cut off is known by its checksum, without loading age. */

const CHARACTERS = 'qpzry9x8gf2tvdw0s3jn54khce6mua7l'
const GENERATOR = [0x3b6a57b2, 0x26508e6d, 0x1ea119fa, 0x3d4233dd, 0x2a1462b3]
const CHECKSUM_CHARACTERS = 6
/** What archives can be encrypted to, and how many bytes such a key has. */
const KINDS = new Map([
  ['age', 32],
  ['age1pq', 1216],
  ['age1tag', 33],
  ['age1tagpq', 1249]
])

export function isRecipient(text: string): boolean {
  const at = text.lastIndexOf('1')
  const kind = text.slice(0, at)
  const bytes = KINDS.get(kind)
  const values = [...text.slice(at + 1)].map((character) => CHARACTERS.indexOf(character))
  if (bytes === undefined || values.includes(-1)) return false
  if (values.length !== Math.ceil((bytes * 8) / 5) + CHECKSUM_CHARACTERS) return false
  const codes = [...Buffer.from(kind)]
  return remainder([...codes.map((code) => code >> 5), 0, ...codes.map((code) => code & 31), ...values]) === 1
}

function remainder(values: readonly number[]): number {
  let sum = 1
  for (const value of values) {
    const top = sum >> 25
    sum = ((sum & 0x1ffffff) << 5) ^ value
    for (const [bit, term] of GENERATOR.entries()) if ((top >> bit) & 1) sum ^= term
  }
  return sum
}
