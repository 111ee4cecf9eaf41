import type { Redis, RedisOptions } from 'ioredis'
import { ConfigError } from './config/error.js'
import type { TlsIdentity } from './config/secrets.js'
import { tlsFailure } from './tls-failure.js'

/** Longest a caller waits for Redis. One such wait opens the breaker, and the callers after it do not wait at all. */
const CALL_TIMEOUT_MS = 100
/** Backstop for those who use the client without `call`; later than ours, which forgives a stalled event loop. */
const COMMAND_TIMEOUT_MS = 200
const CONNECT_TIMEOUT_MS = 2_000
/** At the start there is one chance to hear a refusal, and nobody waits behind it. */
const CHECK_TIMEOUT_MS = 5_000
const RECONNECT_MAX_MS = 500
const PROBE_INTERVAL_MS = 250
/** So a frozen Redis is noticed though nobody calls, for the sake of those who use the client directly. */
const HEARTBEAT_INTERVAL_MS = 1_000
const LOG_INTERVAL_MS = 60_000

type RedisState = 'absent' | 'up' | 'down'
/** Why a call was not answered by Redis; `error`: it answered with an error. */
export type Fallback = 'timeout' | 'connection' | 'breaker_open' | 'error'

interface RedisLog {
  info(fields: object, message: string): void
  warn(fields: object, message: string): void
}

export interface RedisLink {
  /** null when no Redis is configured. Direct use is for libraries that bring their own handling of failures. */
  readonly client: Redis | null
  /** Starts every key and channel, so that deployments can share a Redis. */
  readonly prefix: string
  state(): RedisState
  /** Why a call made now would not be sent; undefined when it would be. */
  unavailable(): Fallback | undefined
  /**
   * Runs commands, bounded in time. Never rejects.
   * @returns undefined when Redis is absent, down, too slow or answers an error; `onFallback` is then told why
   */
  call<T>(run: (client: Redis) => Promise<T>, onFallback?: (reason: Fallback) => void): Promise<T | undefined>
  /** `onGap` runs each time the subscription begins (again): messages before that moment may have been missed. */
  subscribe(channel: string, onMessage: (message: string) => void, onGap?: () => void): void
  /** Runs whenever Redis becomes usable: at the first connection, after a reconnection, after it was frozen. */
  onReady(run: () => void): void
  /** Rejects when Redis does not answer now. */
  probe(): Promise<void>
  /** Calls that Redis did not answer, since the start. */
  fallbacks(): Readonly<Record<Fallback, number>>
  /** Closes what was opened here; a client that was handed in stays open. */
  close(): Promise<void>
}

interface RedisLinkOptions {
  /** `redis://` or `rediss://`. */
  url?: string | undefined
  /** A host's own client, used instead of `url`. */
  client?: Redis | null | undefined
  /** With `rediss://`: the server's certificate and name are verified. */
  tls?: TlsIdentity | undefined
  log: RedisLog
  prefix?: string
}

/** Redis, if there is one: never needed, never waited for long, never the cause of a crash. */
export async function openRedis({
  url,
  client = null,
  tls,
  log,
  prefix = 'inventory:'
}: RedisLinkOptions): Promise<RedisLink> {
  if (client !== null || url === undefined) return new Link(client, { owned: false, log, prefix })
  const { Redis } = await ioredis()
  const own = new Redis(url, { ...CLIENT_OPTIONS, ...tlsOptions(url, tls) })
  return new Link(own, { owned: true, log, prefix })
}

/** Loaded where there is a Redis: each start without one would pay a tenth of a second for it. */
export const ioredis = () => import('ioredis')

/** A `redis://` stays plain whatever files there are: the URL says what is spoken. */
export const tlsOptions = (url: string, tls: TlsIdentity | undefined): RedisOptions =>
  url.startsWith('rediss:') ? { tls: { ...tls, rejectUnauthorized: true } } : {}

/** ioredis hears the first error of a socket, and TLS may have two: a write that fails, and then why. The second would end us. */
export function hearAllErrors(client: Redis): Redis {
  return client.on('connect', () => void client.stream.on('error', () => {}))
}

/**
 * Connects once and leaves. A Redis that is away is none of our business here; one that is not trusted, or does not let us in,
 * would never come up, so the start ends.
 * @throws ConfigError in one line
 */
export async function checkRedis(url: string, tls: TlsIdentity | undefined): Promise<void> {
  const options = {
    ...CLIENT_OPTIONS,
    ...tlsOptions(url, tls),
    commandTimeout: CHECK_TIMEOUT_MS,
    lazyConnect: true,
    retryStrategy: () => null
  }
  const { Redis } = await ioredis()
  const client = hearAllErrors(new Redis(url, options))
  let failure: unknown
  let greeted = false
  client.on('error', (error) => {
    failure ??= error
  })
  client.on('connect', () => {
    greeted = true
  })
  try {
    await client.connect()
    await client.ping()
  } catch (error) {
    failure ??= error
  }
  client.disconnect()
  if (failure === undefined) return
  const message = failure instanceof Error ? failure.message : ''
  const refused = /^(NOAUTH|WRONGPASS|NOPERM)/.exec(message)?.[1]
  // With TLS 1.3 a server judges our certificate after the handshake, and may just leave.
  const left = greeted && url.startsWith('rediss:') && !message.includes('timed out')
  const reason =
    refused === undefined
      ? (tlsFailure(failure) ??
        (left ? 'it ends the connection, as one that wants another certificate of ours' : undefined))
      : `it does not let us in (${refused})`
  if (reason !== undefined)
    throw new ConfigError(
      `REDIS_URL is a value (not shown) whose server cannot be used: ${reason}; it may be redis://user:password@host:port, or rediss:// with a certificate that REDIS_CA_FILE vouches for`
    )
}

const CLIENT_OPTIONS: RedisOptions = {
  connectionName: 'inventory-enterprise',
  enableOfflineQueue: false,
  commandTimeout: COMMAND_TIMEOUT_MS,
  connectTimeout: CONNECT_TIMEOUT_MS,
  // What was under way when the connection broke fails at once; a command sent twice could count twice.
  maxRetriesPerRequest: 0,
  autoResendUnfulfilledCommands: false,
  retryStrategy: (attempt) => Math.min(25 * 2 ** Math.min(attempt, 10), RECONNECT_MAX_MS) + Math.random() * 25
}

interface Subscription {
  onMessage(message: string): void
  onGap?: (() => void) | undefined
}

class Link implements RedisLink {
  readonly client: Redis | null
  readonly prefix: string
  readonly #log: RedisLog
  readonly #owned: boolean
  readonly #fallbacks: Record<Fallback, number> = { timeout: 0, connection: 0, breaker_open: 0, error: 0 }
  readonly #readyHandlers: (() => void)[] = []
  readonly #subscriptions = new Map<string, Subscription>()
  #subscriber: Redis | undefined
  #tripped = false
  #probe: NodeJS.Timeout | undefined
  #heartbeat: NodeJS.Timeout | undefined
  #announced: RedisState | undefined
  #errorLoggedAt = Number.NEGATIVE_INFINITY
  #closed = false

  constructor(client: Redis | null, { owned, log, prefix }: { owned: boolean; log: RedisLog; prefix: string }) {
    this.#log = log
    this.prefix = prefix
    this.#owned = owned
    this.client = client
    if (this.client !== null) hearAllErrors(this.client)
    // Without a listener ioredis prints every failed attempt to connect.
    this.client?.on('error', this.#onError)
    this.client?.on('close', this.#onClose)
    this.client?.on('ready', this.#onReady)
    if (this.client?.status === 'ready') queueMicrotask(this.#onReady)
    if (this.client === null) return
    this.#heartbeat = setInterval(() => {
      if (this.unavailable() === undefined) void this.call((each) => each.ping())
    }, HEARTBEAT_INTERVAL_MS).unref()
  }

  state(): RedisState {
    if (this.client === null) return 'absent'
    return this.unavailable() === undefined ? 'up' : 'down'
  }

  unavailable(): Fallback | undefined {
    if (this.client?.status !== 'ready' || this.#closed) return 'connection'
    return this.#tripped ? 'breaker_open' : undefined
  }

  async call<T>(run: (client: Redis) => Promise<T>, onFallback?: (reason: Fallback) => void): Promise<T | undefined> {
    if (this.client === null) return undefined
    let reason = this.unavailable()
    if (reason === undefined) {
      try {
        return await within(run(this.client), CALL_TIMEOUT_MS)
      } catch (error) {
        reason = reasonOf(error)
        if (reason === 'timeout') this.#trip()
        if (reason === 'error') this.#logError(error)
      }
    }
    this.#fallbacks[reason]++
    onFallback?.(reason)
    return undefined
  }

  onReady(run: () => void): void {
    this.#readyHandlers.push(run)
    if (this.state() === 'up') run()
  }

  async probe(): Promise<void> {
    if ((await this.call((client) => client.ping())) === undefined) throw new Error('redis does not answer')
  }

  fallbacks(): Readonly<Record<Fallback, number>> {
    return this.#fallbacks
  }

  subscribe(channel: string, onMessage: (message: string) => void, onGap?: () => void): void {
    if (this.client === null) return
    this.#subscriptions.set(channel, { onMessage, onGap })
    const subscriber = this.#subscriber ?? this.#openSubscriber(this.client)
    if (subscriber.status === 'ready') void this.#listen(subscriber, channel)
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    clearTimeout(this.#probe)
    clearInterval(this.#heartbeat)
    this.#subscriber?.disconnect()
    this.client?.off('close', this.#onClose)
    this.client?.off('ready', this.#onReady)
    if (!this.#owned || this.client === null) {
      this.client?.off('error', this.#onError)
      return
    }
    if (this.client.status === 'ready') await within(this.client.quit(), CALL_TIMEOUT_MS).catch(() => {})
    this.client.disconnect()
  }

  readonly #onReady = () => {
    this.#tripped = false
    clearTimeout(this.#probe)
    this.#announce('up')
    for (const run of this.#readyHandlers) run()
  }

  readonly #onClose = () => this.#announce('down')

  readonly #onError = (error: Error) => this.#announce('down', error.message)

  #announce(state: RedisState, reason?: string): void {
    if (this.#announced === state || this.#closed) return
    this.#announced = state
    if (state === 'up') this.#log.info({}, 'redis is up')
    else this.#log.warn({ reason }, 'redis is down; every answer is made in this process meanwhile')
  }

  #logError(error: unknown): void {
    const now = performance.now()
    if (now - this.#errorLoggedAt < LOG_INTERVAL_MS) return
    this.#errorLoggedAt = now
    this.#log.warn({ err: error }, 'redis refused a command')
  }

  /** From now on nobody waits: until a new connection is ready or, on a host's client, a probe is answered. */
  #trip(): void {
    if (this.#tripped || this.#closed) return
    this.#tripped = true
    this.#announce('down', `no answer within ${CALL_TIMEOUT_MS} ms`)
    if (this.#owned) {
      // An orderly end would wait for the other side, and what is under way with it.
      this.#subscriber?.stream?.destroy()
      this.client?.stream?.destroy()
    } else this.#probeLater()
  }

  #probeLater(): void {
    this.#probe = setTimeout(() => void this.#probeNow(), PROBE_INTERVAL_MS)
    this.#probe.unref()
  }

  async #probeNow(): Promise<void> {
    const { client } = this
    // Not connected: the reconnection itself closes the breaker.
    if (client?.status !== 'ready') return
    const answered = await within(client.ping(), CALL_TIMEOUT_MS).then(
      () => true,
      () => false
    )
    if (this.#closed || !this.#tripped) return
    if (answered) this.#onReady()
    else this.#probeLater()
  }

  #openSubscriber(client: Redis): Redis {
    // Resubscribing is ours: only so is it known from which moment on no message is missed.
    const subscriber = hearAllErrors(client.duplicate({ ...CLIENT_OPTIONS, autoResubscribe: false }))
    this.#subscriber = subscriber
    subscriber.on('error', () => {})
    subscriber.on('message', (channel, message) => this.#subscriptions.get(channel)?.onMessage(message))
    subscriber.on('ready', () => {
      for (const channel of this.#subscriptions.keys()) void this.#listen(subscriber, channel)
    })
    return subscriber
  }

  async #listen(subscriber: Redis, channel: string): Promise<void> {
    try {
      await subscriber.subscribe(channel)
      this.#subscriptions.get(channel)?.onGap?.()
    } catch {
      // Not heard: start again from a new connection.
      if (!this.#closed && subscriber.status === 'ready') subscriber.disconnect(true)
    }
  }
}

class CallTimeout extends Error {}

function reasonOf(error: unknown): Fallback {
  if (error instanceof CallTimeout) return 'timeout'
  if (error instanceof Error && error.name === 'ReplyError') return 'error'
  return error instanceof Error && error.message === 'Command timed out' ? 'timeout' : 'connection'
}

function within<T>(work: Promise<T>, milliseconds: number): Promise<T> {
  return new Promise((resolve, reject) => {
    // After a stall of the event loop timers come before sockets: let replies that have arrived be read first.
    const late = () => setImmediate(() => reject(new CallTimeout()))
    const timer = setTimeout(late, milliseconds)
    const settle = <V>(pass: (value: V) => void) => {
      return (value: V) => {
        clearTimeout(timer)
        pass(value)
      }
    }
    work.then(settle(resolve), settle(reject))
  })
}
