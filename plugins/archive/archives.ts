import { Worker } from 'node:worker_threads'
import { CompiledQuery } from 'kysely'
import type {
  ArchiveEntry,
  ArchivePosition,
  ArchiveProof,
  ArchiveRehearsal,
  ArchiveRun,
  Archives,
  MadeArchive,
  MigrationSet,
  Place,
  Tenant,
  TenantCopy
} from '../contracts.js'
import { type DatabaseOptions, placeOf } from '../database.js'
import { pruneSqlite } from '../mirror/sqlite-side.js'
import { portabilityOf } from '../portable/index.js'
import { ArchiveKeyRefused, ArchiveNotFound, ArchiveRefused } from './errors.js'
import { chainTo } from './format.js'
import type { ArchiveSettings } from './operations.js'
import { restoreInto, type Scratch } from './scratch.js'
import type { Failure, Message, Order, Request, Result, ThreadData } from './thread.js'

interface ArchiveServiceOptions {
  readonly settings: ArchiveSettings
  readonly increments: boolean
  /** Where a tenant's database is. */
  readonly database: Omit<DatabaseOptions, 'poolSize'>
  readonly migrations: () => readonly MigrationSet[]
}
interface RestoreRequest {
  readonly tenant: string
  readonly wanted: { readonly id: string } | { readonly at: number }
  readonly prove: (copy: TenantCopy) => Promise<readonly ArchiveProof[]>
  readonly purpose: 'restoring' | 'drill'
}

/** Rows are short-lived: a third of what Node would take for them is enough, and the rest is memory of the service. */
const YOUNG_MEGABYTES = 16

/** The other end of the thread that makes and reads archives; it is started when it is first needed. */
export class ArchiveService implements Archives {
  readonly increments: boolean
  readonly #options: ArchiveServiceOptions
  #worker: Worker | undefined
  #orders = 0
  readonly #waiting = new Map<number, Waiting>()

  constructor(options: ArchiveServiceOptions) {
    this.#options = options
    this.increments = options.increments
  }

  get where(): 'local' | 'anywhere' {
    return 'folder' in this.#options.settings.store ? 'local' : 'anywhere'
  }
  get readable(): boolean {
    const { passphrase, identity } = this.#options.settings.keys
    return passphrase !== undefined || identity !== undefined
  }

  async list(tenant: string): Promise<ArchiveEntry[]> {
    const result = await this.#ask({ op: 'list', tenant })
    return result.op === 'list' ? result.entries : unexpected(result)
  }

  async full(tenant: string, run: ArchiveRun = {}): Promise<MadeArchive> {
    const result = await this.#ask({ op: 'full', tenant, place: this.#place(tenant), capture: this.increments }, run)
    return result.op === 'full' ? result.made : unexpected(result)
  }

  async increment(tenant: string, previous: string, since: ArchivePosition) {
    const result = await this.#ask({ op: 'increment', tenant, place: this.#place(tenant), previous, since })
    return result.op === 'increment' ? result.made : unexpected(result)
  }

  async forget(tenant: Tenant, { position }: ArchivePosition): Promise<void> {
    const place = this.#place(tenant.id)
    if (place.dialect === 'postgres') {
      await this.#ask({ op: 'prune', place, position })
      return
    }
    const { statement, values } = pruneSqlite(position, 'backup')
    const query = CompiledQuery.raw(statement, [...values])
    const once = () => tenant.transact(({ db }) => db.executeQuery(query), { durability: 'relaxed' })
    while (((await once()).numAffectedRows ?? 0n) > 0n);
  }

  /** Changes are noted no more, and what was noted is gone. */
  async release(tenant: string): Promise<void> {
    await this.#ask({ op: 'release', place: this.#place(tenant) })
  }

  async check(tenant: string, id: string, run: ArchiveRun = {}) {
    const chain = await this.#chain(tenant, { id })
    const result = await this.#ask({ op: 'check', tenant, chain }, run)
    return result.op === 'check' ? result.found : unexpected(result)
  }

  async rehearse(
    tenant: string,
    prove: (copy: TenantCopy) => Promise<readonly ArchiveProof[]>,
    run: ArchiveRun = {}
  ): Promise<ArchiveRehearsal> {
    const { rehearsal, scratch } = await this.restore(
      { tenant, prove, wanted: { at: Date.now() }, purpose: 'drill' },
      run
    )
    await scratch.remove()
    return rehearsal
  }

  /** Loads and proves a state in a database beside the real one, which the caller may put in its place or remove. */
  async restore(
    { tenant, wanted, prove, purpose }: RestoreRequest,
    run: ArchiveRun = {}
  ): Promise<{ rehearsal: ArchiveRehearsal; scratch: Scratch }> {
    const startedAt = performance.now()
    const chain = await this.#chain(tenant, wanted)
    const [first, last] = [chain[0], chain.at(-1)]
    if (first === undefined || last === undefined) throw new Error('a chain has an archive')
    const described = await this.#ask({ op: 'describe', tenant, entry: first })
    const header = described.op === 'describe' ? described.header : unexpected(described)
    const load = async (place: Place) => {
      const result = await this.#ask({ op: 'load', tenant, chain, place }, run)
      return result.op === 'load' ? result.loaded : unexpected(result)
    }
    const { database, migrations } = this.#options
    const { scratch, rows, proofs } = await restoreInto({
      ...{ database, tenant, purpose, prove, load },
      sets: migrations(),
      migrations: header.migrations
    })
    return {
      scratch,
      rehearsal: {
        ...{ id: last.id, stateAt: last.stateAt, archives: chain.length, rows, proofs },
        bytes: chain.reduce((sum, { bytes }) => sum + bytes, 0),
        seconds: (performance.now() - startedAt) / 1000
      }
    }
  }

  async remove(tenant: string, entries: readonly ArchiveEntry[]): Promise<void> {
    await this.#ask({ op: 'remove', tenant, entries })
  }

  async close(): Promise<void> {
    const worker = this.#worker
    if (worker === undefined) return
    const ended = new Promise((resolve) => worker.once('exit', resolve))
    worker.ref()
    worker.postMessage('close' satisfies Request)
    await ended
  }

  async #chain(tenant: string, wanted: RestoreRequest['wanted']): Promise<ArchiveEntry[]> {
    const entries = await this.list(tenant)
    try {
      return chainTo(entries, wanted)
    } catch (error) {
      throw new ArchiveNotFound({ reason: error instanceof Error ? error.message : String(error) })
    }
  }

  #place(tenant: string): Place {
    const place = placeOf(this.#options.database, tenant)
    if (place.dialect === 'sqlite' && place.path === ':memory:')
      throw new Error('a database in memory cannot be archived: it is gone with its process')
    return place
  }

  #ask(order: Order, { signal, progress }: ArchiveRun = {}): Promise<Result> {
    signal?.throwIfAborted()
    const worker = this.#started()
    const id = ++this.#orders
    const cancel = () => worker.postMessage({ cancel: id } satisfies Request)
    signal?.addEventListener('abort', cancel, { once: true })
    return new Promise<Result>((resolve, reject) => {
      // While somebody waits for it the process must not end.
      worker.ref()
      this.#waiting.set(id, { resolve, reject, ...(progress === undefined ? {} : { progress }) })
      worker.postMessage({ id, order } satisfies Request)
    }).finally(() => {
      signal?.removeEventListener('abort', cancel)
      if (this.#waiting.size === 0) worker.unref()
    })
  }

  #started(): Worker {
    if (this.#worker !== undefined) return this.#worker
    const data: ThreadData = {
      settings: this.#options.settings,
      traits: portabilityOf(this.#options.migrations())
    }
    const worker = new Worker(new URL('./thread.js', import.meta.url), {
      workerData: data,
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MEGABYTES }
    })
    worker.unref()
    this.#worker = worker
    worker.on('message', (message: Message) => this.#hear(message))
    let failure: unknown = new Error('the thread of archives was stopped')
    worker.on('error', (error) => {
      failure = error
    })
    worker.once('exit', () => {
      this.#worker = undefined
      for (const { reject } of this.#waiting.values()) reject(failure)
      this.#waiting.clear()
    })
    return worker
  }

  #hear(message: Message): void {
    const waiting = this.#waiting.get(message.id)
    if ('progress' in message) {
      waiting?.progress?.(...message.progress)
      return
    }
    this.#waiting.delete(message.id)
    if ('result' in message) waiting?.resolve(message.result)
    else waiting?.reject(errorOf(message.failure))
  }
}

interface Waiting {
  resolve(result: Result): void
  reject(error: unknown): void
  progress?: NonNullable<ArchiveRun['progress']>
}

function unexpected({ op }: Result): never {
  throw new Error(`the thread of archives answered ${op}`)
}

function errorOf({ kind, message, part = '', stack }: Failure): Error {
  if (kind === 'damaged') return new ArchiveRefused({ reason: message, part })
  if (kind === 'missing') return new ArchiveNotFound({ reason: message })
  if (kind === 'key') return new ArchiveKeyRefused({ reason: message })
  const error = new Error(message)
  if (stack !== undefined) error.stack = stack
  return error
}
