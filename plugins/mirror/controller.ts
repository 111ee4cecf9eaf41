import { existsSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import type { FastifyBaseLogger } from 'fastify'
import type { Dialect, MigrationSet, Place, Portability } from '../contracts.js'
import { type DatabaseOptions, openDatabaseServer, placeOf } from '../database.js'
import { UNWATCHED } from '../dialects/dialect.js'
import { createPlace, portabilityOf } from '../portable/index.js'
import type { Following, MirrorCommand, MirrorFiles, MirrorOutcome } from './files.js'
import type { FollowerData, Message, Order, Pair, Verified } from './follower.js'
import { openSide } from './link.js'
import { MIRROR_TABLES, type Side } from './side.js'
import { pruneSqlite } from './sqlite-side.js'

const TICK_MILLISECONDS = 250
const REPORT_EVERY_TICKS = 4
const COMPARE_TENANTS_EVERY_TICKS = 8
const CAUGHT_UP_TIMEOUT_MS = 60_000

interface MirrorOptions {
  readonly databases: Readonly<Record<Dialect, Omit<DatabaseOptions, 'poolSize'>>>
  readonly files: MirrorFiles
}

/** What changes hands at a switch. */
interface Door {
  /** Lets no request in and resolves when those inside have ended and the service is closed. */
  hold(): Promise<void>
  /** Opens the service on the database that counts now, and lets the requests in that waited. */
  release(): Promise<void>
}
const NO_DOOR: Door = { hold: async () => {}, release: async () => {} }

/** Keeps a copy of every tenant on the other engine, and lets either take over. One for each process that may do so. */
export class Mirror {
  readonly files: MirrorFiles
  readonly #options: MirrorOptions
  #door: Door = NO_DOOR
  #sets: readonly MigrationSet[] = []
  #log: FastifyBaseLogger | undefined
  #worker: Worker | undefined
  #pairs = new Map<string, Pair>()
  #following: readonly Following[] = []
  #waiting = new Map<number, { resolve(verified: Verified): void; reject(error: Error): void }>()
  #orders = 0
  #outcome: MirrorOutcome | undefined
  #verified: { at: number; differing: number; rows: number } | undefined
  #ticking: Promise<void> | undefined
  #closed = false
  #busy: Promise<void> = Promise.resolve()
  #lastCommand: string | undefined
  #startError: string | undefined
  #startErrors = 0
  /** A report could not be written, which was said once. */
  #isSilent = false

  constructor(options: MirrorOptions) {
    this.#options = options
    this.files = options.files
    // What was asked of a process that is gone is not done by the next one.
    this.#lastCommand = this.files.command()?.id
  }

  /** The service says what its tables are, each time it is built. */
  attach(sets: readonly MigrationSet[], log: FastifyBaseLogger): void {
    this.#sets = sets
    this.#log = log
  }

  status() {
    const errors = this.#following.reduce((sum, each) => sum + each.errors, this.#startErrors)
    return {
      on: this.files.state().on,
      tenants: this.#following,
      errors,
      error: this.#startError ?? this.#following.find(({ error }) => error !== undefined)?.error,
      verified: this.#verified
    }
  }

  /** What a tenant's own writer may forget of what was noted: nothing, or a statement to run until it changes no row. */
  pruning(tenant: string): { statement: string; values: readonly number[] } | undefined {
    if (this.files.state().primary !== 'sqlite') return undefined
    const position = this.#following.find((each) => each.tenant === tenant)?.position
    return position === undefined ? undefined : pruneSqlite(position)
  }

  /** Before the service opens its database: a switch that was interrupted is undone, or completed, by what the state says. */
  async settle(): Promise<void> {
    const { primary, on } = this.files.state()
    if (primary === 'sqlite' && !on) return
    for (const place of await this.#places(primary)) await this.#with(place, (side) => side.fence(false))
  }

  /** Follows, reports, and obeys the console until it is closed. */
  run(door: Door = NO_DOOR): void {
    this.#door = door
    this.#ticking = this.#tick()
  }

  async #tick(): Promise<void> {
    for (let tick = 0; !this.#closed; tick++) {
      const command = this.files.command()
      if (command !== undefined && command.id !== this.#lastCommand) {
        this.#lastCommand = command.id
        this.#busy = this.obey(command)
      }
      if (this.#outcome?.status !== 'running' && tick % COMPARE_TENANTS_EVERY_TICKS === 0)
        await this.#keepFollowing().catch((error: unknown) => {
          this.#startErrors++
          this.#startError = messageOf(error)
          this.#log?.warn({ err: error }, 'the mirror cannot follow')
        })
      if (tick % REPORT_EVERY_TICKS === 0 || this.#outcome?.status === 'running') this.#report()
      await sleep(TICK_MILLISECONDS)
    }
  }

  /** Where there is no room for it, the service goes on without. */
  #report(at = Date.now()): void {
    try {
      this.files.setReport({
        at,
        pid: process.pid,
        tenants: [...this.#following],
        ...(this.#startError === undefined ? {} : { error: this.#startError }),
        ...(this.#outcome === undefined ? {} : { outcome: this.#outcome }),
        ...(this.#verified === undefined ? {} : { verified: this.#verified })
      })
      this.#isSilent = false
    } catch (error) {
      if (!this.#isSilent) this.#log?.warn({ err: error }, 'the mirror cannot report')
      this.#isSilent = true
    }
  }

  /** Does what is asked; how it went is in the report, and is returned. */
  async obey({ id, order }: MirrorCommand): Promise<void> {
    const outcome = (rest: Omit<MirrorOutcome, 'id'>) => {
      this.#outcome = { id, ...rest }
      this.#report()
    }
    outcome({ status: 'running' })
    try {
      if (order === 'start') await this.#start()
      else if (order === 'stop') await this.#stop()
      else {
        if (!this.files.state().on) throw new Error('no mirror is on: inventory mirror start')
        await this.#caughtUp()
        const verified = await this.#verify()
        if (order === 'switch') return outcome({ status: 'done', ...(await this.#switch(verified)), verified })
        await this.#order({ order: 'settled' })
        return outcome({ status: 'done', verified })
      }
      outcome({ status: 'done' })
    } catch (error) {
      this.#log?.error({ err: error }, `mirror ${order} failed`)
      outcome({ status: 'failed', error: messageOf(error) })
    }
  }

  outcome(): MirrorOutcome | undefined {
    return this.#outcome
  }

  async #start(): Promise<void> {
    this.files.setState({ ...this.files.state(), on: true })
    await this.#keepFollowing()
    await this.#caughtUp()
  }

  async #stop(): Promise<void> {
    await this.#stopFollowing()
    const { primary } = this.files.state()
    this.files.setState({ primary, on: false })
    for (const place of await this.#places(primary)) await this.#with(place, (side) => side.release())
  }

  async #verify(): Promise<Verified> {
    const verified = await this.#order({ order: 'verify' })
    const all = Object.values(verified)
    const sum = (of: 'differing' | 'rows') => all.reduce((total, each) => total + each[of], 0)
    this.#verified = { at: Date.now(), differing: sum('differing'), rows: sum('rows') }
    return verified
  }

  async #switch(verified: Verified): Promise<Pick<MirrorOutcome, 'pausedMilliseconds'>> {
    refuseDifferences(verified)
    const { primary } = this.files.state()
    const startedAt = performance.now()
    try {
      await this.#door.hold()
      refuseDifferences(await this.#order({ order: 'finish' }))
      this.files.setState({ on: true, primary: primary === 'sqlite' ? 'postgres' : 'sqlite' })
    } finally {
      await this.#stopFollowing()
      await this.settle()
      await this.#door.release()
    }
    const pausedMilliseconds = performance.now() - startedAt
    // What the former primary noted is of no use any more.
    for (const place of await this.#places(primary)) await this.#with(place, (side) => side.release())
    await this.#keepFollowing()
    return { pausedMilliseconds }
  }

  async #caughtUp(): Promise<void> {
    let heard = Date.now()
    let before = ''
    for (;;) {
      // A copy that cannot be reached falls further behind, which is no progress.
      const now = JSON.stringify(
        this.#following.map(({ state, appliedChanges, copied }) => [state, appliedChanges, copied])
      )
      if (now !== before) heard = Date.now()
      before = now
      const done = this.#following.length === this.#pairs.size && this.#worker !== undefined
      if (done && this.#following.every(({ state, lagSeconds }) => state === 'following' && lagSeconds < 1)) return
      const error = this.#following.find((each) => each.error !== undefined)?.error
      if (this.#closed || Date.now() - heard > CAUGHT_UP_TIMEOUT_MS)
        throw new Error(`the copy does not catch up: ${error ?? 'nothing is heard of it'}`)
      await sleep(TICK_MILLISECONDS)
    }
  }

  /** Starts following each tenant that there is, and ends with those that are gone. */
  async #keepFollowing(): Promise<void> {
    const { on, primary } = this.files.state()
    if (!on || this.#closed) return
    const other = primary === 'sqlite' ? 'postgres' : 'sqlite'
    const names = await this.#tenants(primary)
    const fresh: Pair[] = []
    for (const tenant of names) {
      if (this.#pairs.has(tenant)) continue
      const target = await this.#prepare(other, tenant)
      fresh.push({ tenant, source: placeOf(this.#options.databases[primary], tenant), target })
    }
    const gone = [...this.#pairs.keys()].filter((tenant) => !names.includes(tenant))
    for (const pair of fresh) this.#pairs.set(pair.tenant, pair)
    for (const tenant of gone) this.#pairs.delete(tenant)
    this.#startError = undefined
    if (this.#worker === undefined) this.#startWorker()
    else {
      for (const pair of fresh) await this.#order({ order: 'add', pair })
      for (const tenant of gone) await this.#order({ order: 'remove', tenant })
    }
  }

  /** Its database on the other engine, migrated as the primary is. */
  async #prepare(dialect: Dialect, tenant: string): Promise<Place> {
    const database = this.#options.databases[dialect]
    const place = placeOf(database, tenant)
    // A migration may change rows.
    if (place.dialect === 'postgres' || existsSync(place.path)) await this.#with(place, (side) => side.fence(false))
    return createPlace(database, tenant, this.#sets)
  }

  async #with<R>(place: Place, work: (side: Side) => Promise<R>): Promise<R> {
    const side = await openSide(place, this.#traits())
    try {
      return await work(side)
    } finally {
      await side.close()
    }
  }

  #traits(): Portability[] {
    return [{ notCopied: MIRROR_TABLES }, ...portabilityOf(this.#sets)]
  }

  #startWorker(): void {
    const data: FollowerData = { pairs: [...this.#pairs.values()], traits: this.#traits() }
    const worker = new Worker(new URL('./follower.js', import.meta.url), { workerData: data })
    this.#worker = worker
    worker.on('message', (message: Message) => this.#hear(message))
    worker.on('error', (error) => {
      this.#startErrors++
      this.#startError = messageOf(error)
      this.#log?.error({ err: error }, 'the mirror failed')
    })
    worker.once('exit', () => {
      for (const { reject } of this.#waiting.values()) reject(new Error('the mirror was stopped'))
      this.#waiting.clear()
      if (this.#worker !== worker) return
      // The next round starts another.
      this.#worker = undefined
      this.#pairs.clear()
    })
  }

  #hear(message: Message): void {
    if (message.kind === 'report') {
      this.#following = message.tenants
    } else if (message.kind === 'progress') {
      const { step, done, total } = message
      if (this.#outcome?.status === 'running') this.#outcome = { ...this.#outcome, step, done, total }
    } else {
      const waiting = this.#waiting.get(message.id)
      this.#waiting.delete(message.id)
      if (message.kind === 'done') waiting?.resolve(message.verified)
      else waiting?.reject(new Error(message.error))
    }
  }

  #order(order: WithoutId<Order>): Promise<Verified> {
    const worker = this.#worker
    if (worker === undefined) return Promise.reject(new Error('the mirror is not running'))
    const id = ++this.#orders
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject })
      worker.postMessage({ ...order, id })
    })
  }

  async #stopFollowing(): Promise<void> {
    const worker = this.#worker
    this.#worker = undefined
    this.#pairs.clear()
    this.#following = []
    if (worker === undefined) return
    const ended = new Promise((resolve) => worker.once('exit', resolve))
    worker.postMessage('close')
    await ended
  }

  async #tenants(dialect: Dialect): Promise<string[]> {
    const database = this.#options.databases[dialect]
    if (database.tenancy === 'single') return ['main']
    const server = openDatabaseServer({ ...database, poolSize: 1 }, UNWATCHED)
    try {
      return await server.tenants()
    } finally {
      await server.close()
    }
  }

  async #places(dialect: Dialect): Promise<Place[]> {
    return (await this.#tenants(dialect)).map((tenant) => placeOf(this.#options.databases[dialect], tenant))
  }

  async close(): Promise<void> {
    this.#closed = true
    await this.#ticking
    await this.#stopFollowing()
    await this.#busy
    // Nobody need wait for us any more.
    if (this.#ticking !== undefined) this.#report(0)
  }
}

type WithoutId<T> = T extends unknown ? Omit<T, 'id'> : never

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error))

function refuseDifferences(verified: Verified): void {
  const found = Object.entries(verified).find(([, { differing }]) => differing > 0)
  if (found === undefined) return
  const [tenant, { differing, differences }] = found
  const named = differences.map(({ table, key, what }) => `${table} ${JSON.stringify(key)} ${what}`).join('; ')
  throw new Error(`${differing} rows of ${tenant} differ: ${named}`)
}
