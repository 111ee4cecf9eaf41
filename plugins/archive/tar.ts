/** Just as much of POSIX ustar as an archive needs: plain files with short names, so that any `tar` opens it. */

const BLOCK = 512
/** No part is nearly as big; a header that claims more is no header of ours. */
const CONTENT_MAX_BYTES = 1_100_000_000

interface TarEntry {
  readonly name: string
  readonly content: Buffer
}

const octal = (value: number, digits: number): string => `${value.toString(8).padStart(digits, '0')}\0`

function checksumOf(header: Buffer): number {
  let sum = 0
  // The checksum's own eight bytes count as spaces.
  for (let n = 0; n < BLOCK; n++) sum += n >= 148 && n < 156 ? 32 : (header[n] ?? 0)
  return sum
}

/** The bytes of one file: its header, its content, and what fills the last block. */
export function tarFile({ name, content }: TarEntry, at: Date): Buffer[] {
  if (Buffer.byteLength(name) > 100) throw new RangeError(`${name} is too long a name for tar`)
  const header = Buffer.alloc(BLOCK)
  header.write(name, 0)
  header.write(octal(0o600, 7), 100)
  header.write(octal(0, 7), 108)
  header.write(octal(0, 7), 116)
  header.write(octal(content.length, 11), 124)
  header.write(octal(Math.floor(at.getTime() / 1000), 11), 136)
  header.write('0', 156)
  header.write('ustar\u000000', 257, 'latin1')
  header.write(`${octal(checksumOf(header), 6)} `, 148)
  return [header, content, Buffer.alloc((BLOCK - (content.length % BLOCK)) % BLOCK)]
}

export const tarEnd = (): Buffer => Buffer.alloc(2 * BLOCK)

class NotTar extends Error {}

/**
 * The files of a tar stream, one in memory at a time. `entering` is told of each before its content is read.
 * @throws NotTar
 */
export async function* untar(
  bytes: AsyncIterable<Uint8Array>,
  entering: (name: string) => void
): AsyncGenerator<TarEntry> {
  const source = new Bytes(bytes)
  for (;;) {
    const header = await source.take(BLOCK)
    if (header.every((byte) => byte === 0)) break
    if (Number.parseInt(header.toString('latin1', 148, 156), 8) !== checksumOf(header))
      throw new NotTar('a header is not one')
    const name = header.toString('utf8', 0, 100).replace(/\0.*$/s, '')
    const size = Number.parseInt(header.toString('latin1', 124, 136), 8)
    if (!(size >= 0 && size <= CONTENT_MAX_BYTES)) throw new NotTar('a size is not one')
    entering(name)
    const content = await source.take(size)
    await source.take((BLOCK - (size % BLOCK)) % BLOCK)
    yield { name, content }
  }
  // To its very end: what follows may be damaged, or not belong there.
  if ((await source.take(BLOCK)).some((byte) => byte !== 0)) throw new NotTar('it does not end where it says')
  if (!(await source.isAtEnd())) throw new NotTar('something follows its end')
}

/** Exactly so many bytes of a stream that comes in pieces of its own. */
class Bytes {
  readonly #source: AsyncIterator<Uint8Array>
  #rest: Uint8Array = new Uint8Array()

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#source = source[Symbol.asyncIterator]()
  }

  async take(size: number): Promise<Buffer> {
    const result = Buffer.alloc(size)
    for (let filled = 0; filled < size; ) {
      if (this.#rest.length === 0 && (await this.isAtEnd())) throw new NotTar('it ends too early')
      const part = this.#rest.subarray(0, size - filled)
      result.set(part, filled)
      filled += part.length
      this.#rest = this.#rest.subarray(part.length)
    }
    return result
  }

  async isAtEnd(): Promise<boolean> {
    while (this.#rest.length === 0) {
      const { done, value } = await this.#source.next()
      if (done === true) return true
      this.#rest = value
    }
    return false
  }
}
