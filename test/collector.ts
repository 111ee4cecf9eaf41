import type { IncomingMessage } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'
import { listening } from './ports.js'

/** What a collector does: takes OTLP over HTTP in protobuf (opentelemetry/proto/collector/trace/v1), and says what came. */

export interface ReceivedSpan {
  readonly traceId: string
  readonly spanId: string
  /** Empty: the first of its trace. */
  readonly parentSpanId: string
  readonly name: string
  /** 1 internal, 2 server, 3 client, 4 producer, 5 consumer. */
  readonly kind: number
  readonly startedAt: bigint
  readonly endedAt: bigint
  readonly attributes: Readonly<Record<string, string | number | boolean>>
  /** 2: it failed. */
  readonly status: number
  readonly resource: Readonly<Record<string, string | number | boolean>>
}

interface Field {
  readonly number: number
  readonly bytes: Buffer
  readonly value: bigint
}

/** The fields of one message; each is a number, or bytes that may be a message in turn. */
function* fieldsOf(message: Buffer): Iterable<Field> {
  let at = 0
  const varint = () => {
    let value = 0n
    for (let shift = 0n; ; shift += 7n) {
      const byte = message.readUInt8(at++)
      value |= BigInt(byte & 0x7f) << shift
      if (byte < 0x80) return value
    }
  }
  const take = (length: number) => {
    at += length
    return message.subarray(at - length, at)
  }
  while (at < message.length) {
    const tag = Number(varint())
    const [number, type] = [tag >> 3, tag & 7]
    if (type === 0) yield { number, value: varint(), bytes: Buffer.alloc(0) }
    else if (type === 1) yield { number, value: message.readBigUInt64LE(at), bytes: take(8) }
    else if (type === 2) yield { number, value: 0n, bytes: take(Number(varint())) }
    else if (type === 5) yield { number, value: BigInt(message.readUInt32LE(at)), bytes: take(4) }
    else throw new Error(`wire type ${type}`)
  }
}
const all = (message: Buffer, number: number) => [...fieldsOf(message)].filter((field) => field.number === number)
const bytesOf = (message: Buffer, number: number) => all(message, number)[0]?.bytes ?? Buffer.alloc(0)
const numberOf = (message: Buffer, number: number) => all(message, number)[0]?.value ?? 0n

function attributesOf(message: Buffer, number: number) {
  return Object.fromEntries(
    all(message, number).map(({ bytes }) => {
      const [value] = [...fieldsOf(bytesOf(bytes, 2))]
      const read = {
        1: value?.bytes.toString(),
        2: value?.value === 1n,
        3: Number(value?.value),
        4: value?.number === 4 ? value.bytes.readDoubleLE() : 0
      }[value?.number ?? 0]
      return [bytesOf(bytes, 1).toString(), read ?? '']
    })
  )
}

function* spansOf(request: Buffer): Iterable<ReceivedSpan> {
  for (const { bytes: ofResource } of all(request, 1)) {
    const resource = attributesOf(bytesOf(ofResource, 1), 1)
    for (const { bytes: ofScope } of all(ofResource, 2)) {
      for (const { bytes: span } of all(ofScope, 2)) {
        yield {
          traceId: bytesOf(span, 1).toString('hex'),
          spanId: bytesOf(span, 2).toString('hex'),
          parentSpanId: bytesOf(span, 4).toString('hex'),
          name: bytesOf(span, 5).toString(),
          kind: Number(numberOf(span, 6)),
          startedAt: numberOf(span, 7),
          endedAt: numberOf(span, 8),
          attributes: attributesOf(span, 9),
          status: Number(numberOf(bytesOf(span, 15), 3)),
          resource
        }
      }
    }
  }
}

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of request) chunks.push(chunk)
  return Buffer.concat(chunks)
}

export interface Collector {
  readonly endpoint: string
  readonly spans: ReceivedSpan[]
  /** What it answers from now on; 0: nothing at all. */
  answer(status: number): void
  /** All spans that came, once this says that it is enough. */
  until(enough: (spans: readonly ReceivedSpan[]) => boolean): Promise<readonly ReceivedSpan[]>
}

export async function startCollector(t: Test): Promise<Collector> {
  const spans: ReceivedSpan[] = []
  let status = 200
  const { url, close } = await listening(async (request, response) => {
    const body = await bodyOf(request)
    if (status === 0) return
    if (status === 200 && request.url === '/v1/traces') spans.push(...spansOf(body))
    response.writeHead(status, { 'content-type': 'application/x-protobuf' }).end()
  })
  t.teardown(close)
  return {
    endpoint: url,
    spans,
    answer: (next) => {
      status = next
    },
    until: async (enough) => {
      for (const deadline = Date.now() + 15_000; Date.now() < deadline; await sleep(50)) {
        if (enough(spans)) return spans
      }
      throw new Error(`not among the ${spans.length} spans that came:\n${spans.map(({ name }) => name).join('\n')}`)
    }
  }
}

export const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736'
export const CALLER = '00f067aa0ba902b7'
export const traceparent = `00-${TRACE}-${CALLER}-01`
export const SERVER = 2
export const CLIENT = 3
export const CONSUMER = 5
