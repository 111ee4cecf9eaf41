import { existsSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { isPostgres } from '../../migrations/columns.js'
import {
  type Agent,
  type AuditEntry,
  type JobContext,
  type Locale,
  Problem,
  type Tenant,
  type Transaction
} from '../../plugins/contracts.js'
import type { ImportError, ImportKind, ImportReport, ImportRun } from '../../schemas/inventory.js'
import { type Author, Book, type Draft } from './book.js'
import type { Context } from './context.js'
import { ImportLost, ImportNotFound, ImportNotUndoable, ItemNotFound } from './errors.js'
import { RowError } from './import-cells.js'
import { chunksOf, groupChunks, type Heard, readAhead, readItems, readMovements, touchedBy } from './import-chunks.js'
import { applyItemRows, rehearseItemRows, type Seen, undoItemChanges } from './import-items.js'
import type { MovementRow, ReadOptions } from './import-reader.js'
import { createImportStore } from './import-store.js'
import { createLedgerStore } from './ledger-store.js'
import { announce, STOCK_CACHE } from './movements.js'

export const IMPORT_JOB = 'inventory.import'
/** Cached answers that show imports. */
export const IMPORT_CACHE = 'imports'
export const UNDO_JOB = 'inventory.import-undo'
/** Lines posted by one transaction: few enough that others are not kept waiting, enough to pay for its commit. */
const CHUNK_LINES = 1_000
/** A server has others wait only for the items of a chunk, and writes what is left of each item once. */
const SERVER_CHUNK_LINES = 2_500
const UNDO_CHUNK_TRANSACTIONS = 100
const ERRORS_SHOWN = 100
/** Beyond this many refused rows the file is plainly not what was meant, and reading on helps nobody. */
const ERRORS_MAX = 10_000
const PROGRESS_EVERY_ROWS = 5_000

/**
 * Reads the whole file against the ledger as it stands, stores nothing, and says of each row what is wrong with it.
 * @param locale language of the messages
 */
export async function rehearse(
  tenant: Tenant,
  path: string,
  options: ReadOptions,
  locale: Locale
): Promise<ImportReport> {
  const errors: ImportError[] = []
  let rejected = 0
  const refuse = (error: RowError) => {
    if (++rejected <= ERRORS_SHOWN)
      errors.push({ row: error.row, column: error.column, code: error.code, message: error.message[locale] })
  }
  const report = { kind: options.kind, dryRun: true, rows: 0, accepted: 0, created: 0, updated: 0, errors }
  const author = { actor: 'rehearsal', requestId: 'rehearsal' }
  const book = new Book(createLedgerStore(tenant.db), { lock: false })
  const seen: Seen = { items: new Map(), owners: new Map() }
  const heard: Heard = {
    refuse,
    count: (rows) => {
      report.rows += rows
    }
  }
  if (options.kind === 'items') {
    for await (const rows of chunksOf(readItems(path, options, heard), CHUNK_LINES)) {
      const outcome = await rehearseItemRows(tenant, rows, seen, refuse)
      report.created += outcome.created
      report.updated += outcome.updated
      if (rejected > ERRORS_MAX) break
    }
  } else {
    for await (const groups of groupChunks(readMovements(path, options, heard), CHUNK_LINES)) {
      await book.load(...touchedBy(groups))
      for (const group of groups) {
        const refused = group.rows
          .map((row) => tryPost(book, group.draft, row, author))
          .filter((each) => each !== undefined)
        if (refused.length === 0) report.created++
        for (const error of refused) refuse(error)
      }
      book.forgetPosted()
      if (rejected > ERRORS_MAX) break
      await new Promise((resolve) => setImmediate(resolve))
    }
  }
  report.accepted = report.rows - rejected
  return report
}

/** One row by itself, so that each that is wrong is named: the lines of a transaction are applied one after another anyway. */
function tryPost(book: Book, draft: Draft, { row, line }: MovementRow, author: Author): RowError | undefined {
  try {
    book.post({ ...draft, lines: [line] }, author)
    return undefined
  } catch (error) {
    if (!(error instanceof Problem)) throw error
    const column = error instanceof ItemNotFound ? 'itemCode' : null
    // The file counts its rows itself.
    return new RowError(row, column, error.code, {
      en: error.detail('en').replace(/^Line 1: /, ''),
      fr: error.detail('fr').replace(/^Ligne 1 : /, '')
    })
  }
}

interface ImportJob {
  readonly importId: string
}

/** Posts the file chunk by chunk; how far it got is committed with each chunk, so it goes on from there after a crash. */
export async function runImport(
  context: Pick<Context, 'metrics'>,
  job: JobContext<ImportJob>
): Promise<ImportReport & { importId: string }> {
  const { tenant, params } = job
  const row = await createImportStore(tenant.db).find(params.importId)
  if (row === undefined) throw new ImportNotFound({ id: params.importId })
  const path = row.spool
  const options: ReadOptions = JSON.parse(row.options)
  const report = {
    kind: row.kind,
    dryRun: false,
    rows: row.total_rows,
    accepted: 0,
    created: 0,
    updated: 0,
    errors: [],
    importId: row.id
  }
  // The process may have died between the last commit and the end of the job.
  if (row.status === 'succeeded') return { ...report, accepted: report.rows }
  try {
    if (path === null || !existsSync(path)) throw new ImportLost({ id: row.id })
    const post = row.kind === 'items' ? postItems : postMovements
    await post(
      context,
      job,
      { id: row.id, path, options, from: row.done_rows, author: { actor: row.actor, requestId: row.request_id } },
      report
    )
  } catch (error) {
    if (goesOn(job)) throw error
    // Cancelled, or refused by what the rehearsal could not foresee: nothing of the file stays.
    await tenant.transact(
      async (tx) => {
        await moveTo(tx, row.id, ['running'], 'undoing')
        tx.audit({ ...ended('import.fail', row.id, row.kind, row.total_rows), outcome: 'failure' })
      },
      { agent: asked(row.actor, row.request_id) }
    )
    await undo(context, job, row.id, row.kind).catch((refused) => leaveToUndo(job, row.id, refused))
    await removeUpload(path)
    throw error
  }
  await tenant.transact(
    async (tx) => {
      if (await moveTo(tx, row.id, ['running'], 'succeeded'))
        tx.audit(ended('import.succeed', row.id, row.kind, row.total_rows))
    },
    { agent: asked(row.actor, row.request_id) }
  )
  await removeUpload(path)
  report.accepted = report.rows
  return report
}

const removeUpload = async (path: string | null) => {
  if (path !== null) await rm(path, { force: true })
}

/** This process ends, or another has taken the job over: a run to come goes on where it is. */
const goesOn = (job: JobContext<ImportJob>) => job.signal.aborted && !job.cancelled()

/**
 * What came in may be used up by now, or a barcode taken: once that is put right, the undo may be asked for again and goes on.
 * @throws the failure, where a run to come goes on by itself
 */
async function leaveToUndo(job: JobContext<ImportJob>, importId: string, failure: unknown): Promise<void> {
  if (goesOn(job)) throw failure
  await job.tenant.transact((tx) => moveTo(tx, importId, ['undoing'], 'failed'))
}

/** For the audit trail: what the file did is in the ledger, under the import's id. */
const ended = (action: string, id: string, kind: ImportKind, rows?: number): AuditEntry => ({
  action,
  object: { type: 'import', id },
  details: { kind, ...(rows === undefined ? {} : { rows }) }
})

const asked = (actor: string, requestId: string): Agent => ({
  actor,
  role: null,
  method: null,
  session: null,
  requestId,
  traceId: null,
  address: null
})

interface Posting {
  readonly id: string
  readonly path: string
  readonly options: ReadOptions
  /** Rows before this one are posted. */
  readonly from: number
  readonly author: Author
}

/** Every row was read before, in the rehearsal. */
const REHEARSED: Heard = {
  refuse: (error) => {
    throw error
  },
  count: () => {}
}

async function postMovements(
  { metrics }: Pick<Context, 'metrics'>,
  job: JobContext<ImportJob>,
  posting: Posting,
  report: ImportReport
): Promise<void> {
  const { tenant, signal } = job
  const server = isPostgres(tenant.db)
  const rows = readMovements(posting.path, posting.options, REHEARSED)
  const chunks = readAhead(groupChunks(rows, server ? SERVER_CHUNK_LINES : CHUNK_LINES))
  // Reading keeps the processor until it is done, so it begins when the server has something to do.
  const readOn = async () => {
    await new Promise((sent) => setImmediate(sent))
    void chunks.fetch()
  }
  let last = 0
  for await (const groups of chunks.each) {
    signal.throwIfAborted()
    last = groups.at(-1)?.rows.at(-1)?.row ?? last
    report.created += groups.length
    if (last <= posting.from) continue
    const movements = await tenant.transact(async (tx) => {
      const book = new Book(createLedgerStore(tx.db), { lock: true })
      await book.load(...touchedBy(groups))
      for (const { draft } of groups) book.post({ ...draft, importId: posting.id }, posting.author)
      const saved = await book.save({ meanwhile: server ? readOn : undefined })
      await advance(tx, posting.id, last)
      await announce(tx, saved)
      return saved
    })
    metrics.posted(movements, 'import')
    metrics.imported(
      'movements',
      groups.reduce((sum, { rows }) => sum + rows.length, 0)
    )
    job.progress(Math.min(last, report.rows), report.rows)
  }
}

async function postItems(
  { metrics }: Pick<Context, 'metrics'>,
  job: JobContext<ImportJob>,
  posting: Posting,
  report: ImportReport
): Promise<void> {
  const { tenant, signal } = job
  for await (const rows of chunksOf(readItems(posting.path, posting.options, REHEARSED), CHUNK_LINES)) {
    signal.throwIfAborted()
    const last = rows.at(-1)?.row ?? 0
    if (last <= posting.from) continue
    const outcome = await tenant.transact(async (tx) => {
      const changes = await applyItemRows(tx, rows)
      await createImportStore(tx.db).keepChanges(posting.id, changes)
      await advance(tx, posting.id, last)
      tx.invalidate(STOCK_CACHE)
      return changes
    })
    metrics.imported('items', rows.length)
    report.created += outcome.filter(({ before }) => before === null).length
    report.updated += outcome.filter(({ before }) => before !== null).length
    job.progress(Math.min(last, report.rows), report.rows)
  }
}

type Status = ImportRun['status']
/** @returns whether it was in one of the states it may come from */
export function moveTo(tx: Transaction, id: string, from: readonly Status[], to: Status): Promise<boolean> {
  tx.invalidate(IMPORT_CACHE)
  return createImportStore(tx.db).setStatus(id, from, to)
}

async function advance(tx: Transaction, id: string, rows: number): Promise<void> {
  tx.invalidate(IMPORT_CACHE)
  if (!(await createImportStore(tx.db).advance(id, rows))) throw new ImportNotUndoable({ id, status: 'stopped' })
}

/** Takes the whole group back: movements by their reversals, items to what they were. */
export async function runUndo(
  context: Pick<Context, 'metrics'>,
  job: JobContext<ImportJob>
): Promise<{ importId: string }> {
  const row = await createImportStore(job.tenant.db).find(job.params.importId)
  if (row === undefined) throw new ImportNotFound({ id: job.params.importId })
  try {
    await undo(context, job, row.id, row.kind, job.signal)
  } catch (error) {
    await leaveToUndo(job, row.id, error)
    throw error
  }
  await removeUpload(row.spool)
  return { importId: row.id }
}

async function undo(
  { metrics }: Pick<Context, 'metrics'>,
  job: JobContext<ImportJob>,
  importId: string,
  kind: ImportKind,
  /** Of an import that was cancelled, the undo is not. */
  signal?: AbortSignal
): Promise<void> {
  const { tenant } = job
  const author = { actor: 'import-undo', requestId: job.id }
  let before = Number.MAX_SAFE_INTEGER
  for (let done = 0; ; ) {
    signal?.throwIfAborted()
    if (goesOn(job)) job.signal.throwIfAborted()
    const { count, last } = await tenant.transact(async (tx) => {
      if (kind === 'items') return { count: await undoItems(tx, importId), last: before }
      const store = createLedgerStore(tx.db)
      const originals = await store.transactionsOfImport(importId, before, UNDO_CHUNK_TRANSACTIONS)
      const moves = await store.movesOf(originals.map(({ seq }) => seq))
      const book = new Book(store, { lock: true })
      await book.loadMoves(moves)
      for (const original of originals) {
        const own = moves.filter(({ seq }) => seq === original.seq)
        book.reverse(original, own, `import ${importId} undone`, author)
      }
      const saved = await book.save()
      await announce(tx, saved)
      tx.afterCommit(() => metrics.posted(saved, 'import'))
      return { count: saved.length, last: originals.at(-1)?.seq ?? before }
    })
    if (count === 0) break
    before = last
    done += count
    if (done % PROGRESS_EVERY_ROWS < count) job.progress(done, done)
  }
  await tenant.transact(async (tx) => {
    if (await moveTo(tx, importId, ['undoing'], 'undone')) tx.audit(ended('import.undo', importId, kind))
  })
}

async function undoItems(tx: Transaction, importId: string): Promise<number> {
  const store = createImportStore(tx.db)
  const changes = await store.changes(importId, CHUNK_LINES)
  if (changes.length === 0) return 0
  await undoItemChanges(tx, changes)
  await store.dropChanges(
    importId,
    changes.map(({ itemCode }) => itemCode)
  )
  tx.invalidate(STOCK_CACHE)
  return changes.length
}
