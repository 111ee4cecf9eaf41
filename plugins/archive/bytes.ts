import { ReadableStream } from 'node:stream/web'

/** Streams of bytes, between the kinds that libraries want. */

export const streamOf = (bytes: AsyncIterable<Uint8Array>): ReadableStream<Uint8Array> => ReadableStream.from(bytes)

interface Readable {
  getReader(): { read(): Promise<{ done: boolean; value?: Uint8Array | undefined }>; cancel(): Promise<void> }
}
/** Who stops reading early lets the source know. */
export async function* bytesOf(stream: Readable): AsyncGenerator<Uint8Array> {
  const reader = stream.getReader()
  let ended = false
  try {
    for (;;) {
      const { value } = await reader.read()
      ended = value === undefined
      if (value === undefined) return
      yield value
    }
  } finally {
    if (!ended) await reader.cancel().catch(() => {})
  }
}

export async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes
}

export async function all(bytes: AsyncIterable<Uint8Array>): Promise<Uint8Array[]> {
  const chunks: Uint8Array[] = []
  for await (const chunk of bytes) chunks.push(chunk)
  return chunks
}

/** Small pieces put together; each is at least so big, but for the last. */
export async function* gathered(content: AsyncIterable<Uint8Array>, bytes: number): AsyncGenerator<Buffer> {
  let pieces: Uint8Array[] = []
  let size = 0
  for await (const piece of content) {
    pieces.push(piece)
    size += piece.length
    if (size < bytes) continue
    yield Buffer.concat(pieces)
    pieces = []
    size = 0
  }
  if (size > 0) yield Buffer.concat(pieces)
}

/** The same bytes in pieces of at most so many. */
export async function* cut(content: AsyncIterable<Uint8Array>, bytes: number): AsyncGenerator<Uint8Array> {
  for await (const piece of content)
    for (let at = 0; at < piece.length; at += bytes) yield piece.subarray(at, at + bytes)
}

/** The same bytes, each piece shown to somebody else first, who may throw. */
export async function* seen(
  content: AsyncIterable<Uint8Array>,
  see: (piece: Uint8Array) => void
): AsyncGenerator<Uint8Array> {
  for await (const piece of content) {
    see(piece)
    yield piece
  }
}
