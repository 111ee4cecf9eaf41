import { Resolver } from 'node:dns/promises'
import http from 'node:http'
import https from 'node:https'
import { isIP, type LookupFunction } from 'node:net'
import type { AttemptOutcome } from '../../schemas/webhooks.js'
import { hostOf, type TargetPolicy } from './targets.js'

/** Everything together: name, connection, TLS, sending, and the answer's headers. */
const TIMEOUT_MILLISECONDS = 10_000
/** An answer's text is of no use here; so much of it is read that a well-behaved receiver can end its answer. */
const ANSWER_MAX_BYTES = 65_536
const HEADERS_MAX_BYTES = 16_384
const DNS = { timeout: 2_000, tries: 2 }
const DETAIL_MAX_CHARS = 100

/** The addresses of a name; none when it has none. */
export type Resolve = (hostname: string) => Promise<readonly string[]>

export interface Attempt {
  readonly outcome: AttemptOutcome
  readonly httpStatus: number | null
  /** A code, such as `ECONNREFUSED` or `CERT_HAS_EXPIRED`. */
  readonly detail: string | null
  readonly durationMilliseconds: number
  readonly retryAfter?: string
}

export interface Sender {
  /** One attempt; rejects only when `stop` is aborted, with its reason. */
  send(url: string, headers: Record<string, string>, body: string, stop: AbortSignal): Promise<Attempt>
}

/** DNS itself, with short limits: the system's lookup would hold one of the few threads that hash passwords, too. */
const resolveByDns: Resolve = async (hostname) => {
  const resolver = new Resolver(DNS)
  const none = (): string[] => []
  const answers = await Promise.all([resolver.resolve4(hostname).catch(none), resolver.resolve6(hostname).catch(none)])
  return answers.flat()
}

class Refused extends Error {}
class Failed extends Error {
  readonly code: string
  constructor(code: string) {
    super(code)
    this.code = code
  }
}

interface SenderOptions {
  policy: TargetPolicy
  resolve?: Resolve
  timeoutMilliseconds?: number
}

/** Posts to addresses that the policy allows, each resolved once; a redirect is a failure. */
export function createSender(options: SenderOptions): Sender {
  const { policy, resolve = resolveByDns, timeoutMilliseconds = TIMEOUT_MILLISECONDS } = options

  /** Asked once: what is checked here is what is connected to, so a name that changes its answer gains nothing. */
  async function addressesOf(url: string): Promise<readonly string[]> {
    const refusal = policy.refusalOf(url)
    if (refusal !== undefined) throw new Refused(refusal)
    const host = hostOf(new URL(url))
    const addresses = isIP(host) === 0 ? await resolve(host) : [host]
    if (addresses.length === 0) throw new Failed('ENOTFOUND')
    // One private address among public ones is a trap, or a mistake.
    if (!addresses.every((address) => policy.mayReach(address, host))) throw new Refused('address')
    return addresses
  }

  return {
    send: async (url, headers, body, stop) => {
      const startedAt = performance.now()
      const timeout = AbortSignal.timeout(timeoutMilliseconds)
      const signal = AbortSignal.any([timeout, stop])
      const ended = (attempt: Omit<Attempt, 'durationMilliseconds'>): Attempt => ({
        ...attempt,
        durationMilliseconds: Math.round(performance.now() - startedAt)
      })
      try {
        const addresses = await withinTime(addressesOf(url), signal)
        const { httpStatus, retryAfter } = await post(url, headers, body, addresses, signal)
        const outcome = httpStatus >= 200 && httpStatus < 300 ? 'success' : 'status'
        return ended({ outcome, httpStatus, detail: null, ...(retryAfter === undefined ? {} : { retryAfter }) })
      } catch (error) {
        if (stop.aborted) throw stop.reason
        if (timeout.aborted) return ended({ outcome: 'timeout', httpStatus: null, detail: null })
        const outcome = error instanceof Refused ? 'refused' : 'network'
        return ended({ outcome, httpStatus: null, detail: codeOf(error).slice(0, DETAIL_MAX_CHARS) })
      }
    }
  }
}

function codeOf(error: unknown): string {
  if (error instanceof Refused) return error.message
  return error instanceof Error && 'code' in error ? String(error.code) : 'UNKNOWN'
}

function withinTime<R>(work: Promise<R>, signal: AbortSignal): Promise<R> {
  return new Promise((resolve, reject) => {
    const late = () => reject(signal.reason)
    if (signal.aborted) late()
    signal.addEventListener('abort', late, { once: true })
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', late))
  })
}

interface Answer {
  readonly httpStatus: number
  readonly retryAfter: string | undefined
}

/** A connection of its own for each message; a redirect is an answer like any other and is not followed. */
function post(
  url: string,
  headers: Record<string, string>,
  body: string,
  addresses: readonly string[],
  signal: AbortSignal
): Promise<Answer> {
  const { request: open } = url.startsWith('https:') ? https : http
  const settings = { method: 'POST', agent: false, lookup: pinned(addresses), maxHeaderSize: HEADERS_MAX_BYTES, signal }
  const length = Buffer.byteLength(body)
  return new Promise((resolve, reject) => {
    const request = open(url, { ...settings, headers: { ...headers, 'content-length': length } })
    let answer: Answer | undefined
    // However it ends, a status that was said counts.
    request.on('error', (error) => (answer === undefined ? reject(error) : resolve(answer)))
    request.on('response', (response) => {
      const said = { httpStatus: response.statusCode ?? 0, retryAfter: response.headers['retry-after'] }
      answer = said
      let received = 0
      response.on('data', (chunk: Buffer) => {
        received += chunk.length
        if (received > ANSWER_MAX_BYTES) response.destroy()
      })
      response.on('error', () => resolve(said))
      response.on('close', () => resolve(said))
    })
    request.end(body)
  })
}

const pinned =
  (addresses: readonly string[]): LookupFunction =>
  (_hostname, { all }, done) => {
    const found = addresses.map((address) => ({ address, family: isIP(address) }))
    const [first] = found
    if (all === true) done(null, found)
    else if (first !== undefined) done(null, first.address, first.family)
  }
