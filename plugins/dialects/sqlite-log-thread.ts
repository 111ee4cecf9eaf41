import { parentPort } from 'node:worker_threads'
import Sqlite from 'better-sqlite3'
import type { Order } from './sqlite-log.js'

/** Writes logs back, each through a connection of its own; readers and writers go on meanwhile. */
parentPort?.on('message', ({ id, path }: Order) => {
  try {
    const db = new Sqlite(path, { fileMustExist: true })
    try {
      db.pragma('wal_checkpoint(PASSIVE)')
    } finally {
      db.close()
    }
  } catch {
    // The disk is full, or the file gone: whoever asked sees that the log is as long as before.
  }
  parentPort?.postMessage(id)
})
