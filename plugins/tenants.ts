import { setImmediate as nextTurn } from 'node:timers/promises'
import type { CompiledQuery, Kysely } from 'kysely'
import { TenantId } from '../schemas/common.js'
import { atMost, TENANTS_AT_ONCE } from './at-most.js'
import { type AuditService, SYSTEM } from './audit.js'
import type { Caches, TenantCache } from './cache/index.js'
import {
  type AuditEntry,
  type MigrationSet,
  send,
  type Tenant,
  type Transaction,
  type TransactOptions,
  type Writer
} from './contracts.js'
import type { DatabaseServer, TenantDatabase } from './dialects/dialect.js'
import { type EventService, toOutbox } from './events.js'
import { TenantNameInvalid, TenantNotFound } from './http/errors.js'
import { shape } from './http/validation.js'
import { migrate } from './migrate/index.js'
import { NO_TRACING, type Tracing } from './telemetry/tracing.js'

interface TenantsOptions {
  server: DatabaseServer
  tenancy: 'single' | 'multi'
  caches: Pick<Caches, 'forTenant' | 'remove'>
  events: EventService
  audit: Pick<AuditService, 'append'>
  tracing?: Tracing
  /** Is told what a migration waits for. */
  notice: (text: string) => void
}

/** In `single` tenancy there is this one; its database is made at the first start. */
export const SINGLE_TENANT = 'main'

/** How long a tenant that another process has dropped may still be served here. */
const COMPARE_MILLISECONDS = 500
/** Looking at a file takes some 10 µs, in which nothing is served. */
const FILES_AT_ONCE = 100
/** A move between servers waits longer than this before it lets writers in at the new place. */
const KNOWN_MILLISECONDS = 1_500

interface Open {
  readonly tenant: Tenant
  readonly database: TenantDatabase
}

/** Which database a request speaks to. A tenant is opened, and migrated, once per process. */
export class Tenants {
  readonly #options: TenantsOptions
  readonly #open = new Map<string, Promise<Open>>()
  readonly #ready = new Map<string, Tenant>()
  readonly #sets: MigrationSet[] = []
  readonly #turn = atMost(TENANTS_AT_ONCE)
  #comparedAt = 0
  #lookedAt = Number.NEGATIVE_INFINITY

  constructor(options: TenantsOptions) {
    this.#options = options
  }

  addMigrations(set: MigrationSet): void {
    this.#sets.push(set)
  }

  /** What every tenant's database is made of. */
  migrations(): readonly MigrationSet[] {
    return this.#sets
  }

  /** In `single` tenancy other databases on the same server are not ours, whatever a token says. */
  async list(): Promise<string[]> {
    return this.#options.tenancy === 'single' ? [SINGLE_TENANT] : this.#options.server.tenants()
  }

  /** Every tenant, opened. */
  async all(): Promise<Tenant[]> {
    if (this.#outdated()) await this.#forgetDropped()
    return Promise.all((await this.list()).map(async (id) => (await this.#get(id)).tenant))
  }

  /** How many this process has open. */
  get opens(): number {
    return this.#ready.size
  }

  /** Opens and migrates every tenant, so that a failing migration stops the boot and not a request. */
  async ready(): Promise<void> {
    if (this.#options.tenancy === 'single') await this.#options.server.create(SINGLE_TENANT)
    await this.all()
  }

  /** @throws TENANT_NAME_INVALID: the name becomes a file's, or a schema's */
  async create(name: string): Promise<Tenant> {
    if (!shape(TenantId)(name)) throw new TenantNameInvalid({ tenant: String(name).slice(0, 100) })
    await this.#options.server.create(name)
    return this.get(name)
  }

  async drop(id: string): Promise<void> {
    if (!(await this.#exists(id))) throw new TenantNotFound({ tenant: id })
    this.#forget(id)
    await this.#options.server.drop(id)
  }

  async #exists(id: string): Promise<boolean> {
    if (this.#options.tenancy === 'single') return id === SINGLE_TENANT
    // The name becomes a file's: one that is none must not be looked for.
    return shape(TenantId)(id) && this.#options.server.exists(id)
  }

  #forget(id: string): void {
    this.#open.delete(id)
    this.#ready.delete(id)
    this.#options.caches.remove(id)
  }

  /** @throws TenantNotFound */
  async get(id: string): Promise<Tenant> {
    if (this.#outdated()) await this.#forgetDropped()
    return (await this.#get(id)).tenant
  }

  /** The tenant when it is open already: what a request needs on its fast path. */
  opened(id: string): Tenant | undefined {
    const now = performance.now()
    if (this.#options.tenancy === 'multi' && now - this.#comparedAt > COMPARE_MILLISECONDS) {
      this.#comparedAt = now
      // When the database does not answer nothing is known to be gone, and requests find out for themselves.
      this.#forgetDropped().catch(() => {})
    }
    return this.#outdated() ? undefined : this.#ready.get(id)
  }

  /** Where tenants move between servers, one must be known to be where it was a moment ago. */
  #outdated(): boolean {
    return this.#options.server.homeOf !== undefined && performance.now() - this.#lookedAt > KNOWN_MILLISECONDS
  }

  /** Another process may have dropped a tenant: what is written to its open file would be lost, though acknowledged. */
  async #forgetDropped(): Promise<void> {
    const askedAt = performance.now()
    const existing = new Set(await this.list())
    for (const [id, open] of this.#open) {
      const moved = (database: TenantDatabase) => database.home !== this.#options.server.homeOf?.(id)
      const { database } = await open.catch(() => ({ database: undefined }))
      if (database === undefined) continue
      // One that is being created may be younger than the list.
      if (!moved(database) && (existing.has(id) || (await this.#exists(id)))) continue
      this.#forget(id)
      await database.close()
    }
    this.#lookedAt = askedAt
  }

  async sizes(): Promise<{ database: number; writeAheadLog: number }> {
    const all = await Promise.all([...this.#open.values()].map(async (open) => (await open).database))
    // On PostgreSQL all tenants share one database, so one answers for all.
    const asked = all[0]?.dialect === 'postgres' ? all.slice(0, 1) : all
    const total = { database: 0, writeAheadLog: 0 }
    for (const [n, tenant] of asked.entries()) {
      if (n % FILES_AT_ONCE === FILES_AT_ONCE - 1) await nextTurn()
      const { database, writeAheadLog } = await tenant.sizeBytes()
      total.database += database
      total.writeAheadLog += writeAheadLog
    }
    return total
  }

  #get(id: string): Promise<Open> {
    const known = this.#open.get(id)
    if (known !== undefined) return known
    const opening = this.#turn(() => this.#openTenant(id))
    this.#open.set(id, opening)
    // A failure is not remembered: the next request tries again.
    opening.catch(() => this.#open.delete(id))
    return opening
  }

  async #openTenant(id: string): Promise<Open> {
    const { server, caches, events, audit, notice, tracing = NO_TRACING } = this.#options
    if (!(await this.#exists(id))) throw new TenantNotFound({ tenant: id })
    const database = await server.open(id)
    const { db, schema } = database.migrator
    await migrate(db, this.#sets, {
      ...(schema === undefined ? {} : { schema }),
      notice: (text) => notice(`tenant ${id}: ${text}`)
    })
    const cache = caches.forTenant(id, database.foreignVersion)
    const span = { attributes: { 'db.system.name': database.dialect === 'postgres' ? 'postgresql' : 'sqlite' } }
    const tenant: Tenant = {
      id,
      dialect: database.dialect,
      db: database.db,
      cache,
      foreignVersion: database.foreignVersion,
      ...(database.gate === undefined ? {} : { gate: database.gate }),
      ...(database.reports === undefined ? {} : { reports: database.reports }),
      transact: (work, options) => tracing.span('transaction', span, () => transact(surroundings, work, options))
    }
    const surroundings = { database, cache, audit, tracing, wake: () => events.wake(tenant) }
    this.#ready.set(id, tenant)
    return { tenant, database }
  }
}

interface Surroundings {
  database: TenantDatabase
  cache: TenantCache
  audit: Pick<AuditService, 'append'>
  tracing: Tracing
  wake(): void
}

async function transact<R>(
  { database, cache, audit, tracing, wake }: Surroundings,
  work: (tx: Transaction) => Promise<R>,
  options: TransactOptions = {}
): Promise<R> {
  // Made anew for each attempt: a transaction that is run again must not invalidate or count twice.
  let effects = noEffects()
  // A group commit runs it where another request waits.
  const bound = tracing.bind(async (db: Kysely<unknown>, write?: (query: CompiledQuery) => void) => {
    const current = noEffects()
    effects = current
    const writer: Writer = { db, ...(write === undefined ? {} : { write }) }
    const done = await work({
      ...writer,
      publish: async (topic, payload) => {
        current.published = true
        await send(writer, toOutbox(db, topic, payload, tracing.carrier()))
      },
      invalidate: (namespace) => void current.namespaces.add(namespace),
      afterCommit: (run) => void current.callbacks.push(run),
      audit: (entry) => void current.entries.push(entry)
    })
    await audit.append(writer, options.agent ?? SYSTEM, current.entries)
    current.complete = true
    return done
  })
  const invalidate = () => effects.namespaces.forEach((namespace) => void cache.invalidate(namespace))
  const result = await database.transact(bound, options).catch((error: unknown) => {
    // Whether it was committed is not known where only the answer to that was lost, and it may happen yet.
    if (effects.complete && effects.namespaces.size > 0) {
      invalidate()
      setTimeout(invalidate, COMMIT_UNKNOWN_MILLISECONDS).unref()
    }
    throw error
  })
  invalidate()
  for (const run of effects.callbacks) run()
  if (effects.published) wake()
  return result
}

/** By then a server that was sent a commit has made it or lost it. */
const COMMIT_UNKNOWN_MILLISECONDS = 5_000

interface Effects {
  namespaces: Set<string>
  callbacks: (() => void)[]
  entries: AuditEntry[]
  published: boolean
  /** All was done but the commit. */
  complete: boolean
}
const noEffects = (): Effects => ({
  namespaces: new Set(),
  callbacks: [],
  entries: [],
  published: false,
  complete: false
})
