import { Counter, Gauge, Histogram, type Registry } from 'prom-client'

import type { Fallback, RedisLink } from '../redis.js'
import type { SharedOperation, SharedResult } from './shared.js'

const SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5]
/** Namespaces beyond this many share the label `other`. */
const LABELS_MAX = 32
const OPERATIONS = ['get', 'set', 'delete'] as const
const REASONS = ['timeout', 'connection', 'breaker_open', 'error'] as const
const INVALIDATIONS = ['write', 'manual', 'ttl', 'remote'] as const

/** `remote`: another node or process changed something, or might have. */
export type InvalidationReason = (typeof INVALIDATIONS)[number]

/** Plain numbers, so that a hit costs two additions; Prometheus' own are made of them when it asks. */
export class Tally {
  hits = 0
  misses = 0
  sets = 0
  evictions = 0
  entries = 0
  readonly invalidations: Record<InvalidationReason, number> = { write: 0, manual: 0, ttl: 0, remote: 0 }
  readonly #shared = { get_hit: 0, get_miss: 0, get_error: 0, set_ok: 0, set_error: 0, delete_ok: 0, delete_error: 0 }
  constructor(readonly label: string) {}

  shared(operation: SharedOperation, result: SharedResult): void {
    const name = `${operation}_${result}`
    if (isOneOf(this.#shared, name)) this.#shared[name]++
  }

  /** Each combination of labels that can occur, with its count. */
  *operations(redis: boolean): Iterable<[backend: string, operation: string, result: string, count: number]> {
    yield ['memory', 'get', 'hit', this.hits]
    yield ['memory', 'get', 'miss', this.misses]
    yield ['memory', 'set', 'ok', this.sets]
    yield ['memory', 'delete', 'ok', this.invalidations.write + this.invalidations.manual + this.invalidations.remote]
    if (!redis) return
    for (const [name, count] of Object.entries(this.#shared)) {
      const [operation = '', result = ''] = name.split('_')
      yield ['redis', operation, result, count]
    }
  }
}

const isOneOf = <T extends object>(record: T, name: PropertyKey): name is keyof T => Object.hasOwn(record, name)

export class CacheMetrics {
  readonly #tallies = new Map<string, Tally>()
  readonly #durations: Histogram<'backend' | 'operation'>
  readonly #fallbacks: Counter<'reason'>
  #size: () => number = () => 0

  constructor(registry: Registry, namespaces: readonly string[], redis: RedisLink | null) {
    const registers = [registry]
    const hasRedis = redis !== null && redis.client !== null
    for (const name of namespaces) this.tally(name)
    this.#durations = new Histogram({
      name: 'cache_operation_duration_seconds',
      help: 'Latency of the operations that leave the process; reads from memory take microseconds and are not timed.',
      labelNames: ['backend', 'operation'],
      buckets: SECONDS,
      registers
    })
    this.#fallbacks = new Counter({
      name: 'cache_fallbacks_total',
      help: 'Reads served without the remote backend.',
      labelNames: ['reason'],
      registers
    })
    if (hasRedis) for (const operation of OPERATIONS) this.#durations.zero({ backend: 'redis', operation })
    for (const reason of REASONS) this.#fallbacks.inc({ reason }, 0)
    this.#register(registers, hasRedis)
    new Gauge({
      name: 'cache_backend_up',
      help: '1 when the backend answers.',
      labelNames: ['backend'],
      registers,
      collect() {
        this.set({ backend: 'memory' }, 1)
        if (hasRedis) this.set({ backend: 'redis' }, redis.state() === 'up' ? 1 : 0)
      }
    })
  }

  /** The counts of a namespace, of all tenants together. */
  tally(namespace: string): Tally {
    const label = this.#tallies.has(namespace) || this.#tallies.size < LABELS_MAX ? namespace : 'other'
    const tally = this.#tallies.get(label) ?? new Tally(label)
    this.#tallies.set(label, tally)
    return tally
  }

  fellBack(reason: Fallback): void {
    this.#fallbacks.inc({ reason })
  }

  observe(operation: SharedOperation, seconds: number): void {
    this.#durations.observe({ backend: 'redis', operation }, seconds)
  }

  sizeOf(size: () => number): void {
    this.#size = size
  }

  #register(registers: Registry[], redis: boolean): void {
    const tallies = this.#tallies
    const size = () => this.#size()
    new Counter({
      name: 'cache_operations_total',
      help: 'Cache operations.',
      labelNames: ['backend', 'cache', 'operation', 'result'],
      registers,
      collect() {
        this.reset()
        for (const tally of tallies.values()) {
          for (const [backend, operation, result, count] of tally.operations(redis)) {
            this.inc({ backend, cache: tally.label, operation, result }, count)
          }
        }
      }
    })
    new Counter({
      name: 'cache_invalidations_total',
      help: 'Invalidations by cause.',
      labelNames: ['cache', 'reason'],
      registers,
      collect() {
        this.reset()
        for (const { label, invalidations } of tallies.values()) {
          for (const reason of INVALIDATIONS) this.inc({ cache: label, reason }, invalidations[reason])
        }
      }
    })
    new Counter({
      name: 'cache_evictions_total',
      help: 'Entries evicted for space.',
      labelNames: ['cache'],
      registers,
      collect() {
        this.reset()
        for (const { label, evictions } of tallies.values()) this.inc({ cache: label }, evictions)
      }
    })
    new Gauge({
      name: 'cache_entries',
      help: 'Entries held in process memory.',
      labelNames: ['cache'],
      registers,
      collect() {
        for (const { label, entries } of tallies.values()) this.set({ cache: label }, entries)
      }
    })
    new Gauge({
      name: 'cache_size_bytes',
      help: 'Bytes held in process memory.',
      registers,
      collect() {
        this.set(size())
      }
    })
  }
}
