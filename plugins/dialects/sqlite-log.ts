import { closeSync, existsSync, openSync, readSync, statSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import type Sqlite from 'better-sqlite3'

/**
 * SQLite's write-ahead log is written back into the file from time to time: some 32 MB and two waits for the disk. In a commit that
 * holds up every request, for 30 ms where the disk is idle and for more than a second where it is not, so a thread does it.
 */

/** 32 MB: pages that many transactions touch are written back once. */
const FULL_PAGES = 8_000
/** So few take no time, and only where none is left does the log begin anew. */
const REST_PAGES = 500
/** A reader that began before keeps what came after in the log; how far it is, is looked at again after so many. */
const AGAIN_PAGES = 1_000
/** 128 MB: where the thread cannot keep up, the commit that reaches this writes back itself. */
const SELF_PAGES = 32_000

/** What the thread is told; it answers the id. */
export interface Order {
  readonly id: number
  readonly path: string
}

export type WriteBack = ReturnType<typeof createWriteBack>

/** One thread for all files, begun when it is first needed. */
export function createWriteBack() {
  const waiting = new Map<number, () => void>()
  let thread: Worker | undefined
  let last = 0
  const begin = () => {
    const worker = new Worker(new URL('./sqlite-log-thread.js', import.meta.url))
    worker.on('message', (id: number) => {
      waiting.get(id)?.()
      waiting.delete(id)
      if (waiting.size === 0) worker.unref()
    })
    // What it did not do, it is asked for again, and in the end a commit does it.
    worker.on('error', () => {})
    worker.once('exit', () => {
      thread = undefined
      for (const done of waiting.values()) done()
      waiting.clear()
    })
    return worker
  }
  return {
    /** Resolves when as much as readers allow is written back, or cannot be. */
    file: (path: string) =>
      new Promise<void>((resolve) => {
        thread ??= begin()
        // Nobody ends the process while it has a file open that is to be closed.
        thread.ref()
        waiting.set(++last, resolve)
        const order: Order = { id: last, path }
        thread.postMessage(order)
      }),
    close: async () => void (await thread?.terminate())
  }
}

interface Counts {
  /** Pages of the log, and how many of them are written back. */
  log: number
  checkpointed: number
}

export interface Log {
  /** After every commit, while no transaction is open. Never throws. */
  committed(): void
  /** Begins nothing any more; resolves when nobody but the caller has the file open. */
  close(): Promise<void>
}

/**
 * Keeps the log of one file short.
 * @param writeBack in another thread
 * @param exclusive runs it while no transaction is open on `writer`
 */
export function keepLog(
  writer: Sqlite.Database,
  writeBack: () => Promise<void>,
  exclusive: (work: () => Promise<void>) => Promise<void>
): Log {
  writer.pragma(`wal_autocheckpoint = ${SELF_PAGES}`)
  const look = writer.prepare<[], Counts>('pragma wal_checkpoint(NOOP)')
  const finish = writer.prepare<[], Counts>('pragma wal_checkpoint(PASSIVE)')
  let underWay: Promise<void> | undefined
  let closed = false
  /** How long the log was when it could not be written back whole. */
  let tried = 0
  const counts = () => look.get() ?? { log: 0, checkpointed: 0 }

  async function work(): Promise<void> {
    for (let { checkpointed } = counts(); ; ) {
      await writeBack()
      const now = counts()
      if (now.log - now.checkpointed <= REST_PAGES) return exclusive(async () => void finish.get())
      if (now.checkpointed <= checkpointed) {
        tried = now.log
        return
      }
      checkpointed = now.checkpointed
    }
  }

  function due(): boolean {
    const { log, checkpointed } = counts()
    if (log < tried) tried = 0
    return log - checkpointed >= FULL_PAGES && (tried === 0 || log >= tried + AGAIN_PAGES)
  }

  return {
    committed() {
      if (underWay !== undefined || closed) return
      // Whoever committed has what was asked for. A disk that is full or gone is what the next commit meets, and tells.
      try {
        if (!due()) return
      } catch {
        return
      }
      underWay = work()
        .catch(() => {})
        .finally(() => {
          underWay = undefined
        })
    },
    close: async () => {
      closed = true
      await underWay
    }
  }
}

export const sizeOf = (path: string) => (existsSync(path) ? statSync(path).size : 0)

/** https://www.sqlite.org/fileformat.html#the_wal_file_format: the log counts in its header how often it began anew, all written back. */
const WAL_RESTARTS = { offset: 12, bytes: 4 }
export function restartsOf(path: string): number {
  if (sizeOf(path) < WAL_RESTARTS.offset + WAL_RESTARTS.bytes) return 0
  const file = openSync(path, 'r')
  try {
    const count = Buffer.alloc(WAL_RESTARTS.bytes)
    readSync(file, count, 0, WAL_RESTARTS.bytes, WAL_RESTARTS.offset)
    return count.readUInt32BE()
  } finally {
    closeSync(file)
  }
}
