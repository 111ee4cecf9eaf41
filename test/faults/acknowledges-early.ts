/**
 * The service with one defect: on SQLite it acknowledges before it commits, and commits a little later. It looks faster, and
 * everything that is not killed finds all in order. The checks must see through it.
 */
import { pathToFileURL } from 'node:url'
import Sqlite from 'better-sqlite3'
import { main, serve } from '../../server.js'

const LATER_MILLISECONDS = 5_000

/** Lets `commit` do nothing, and the next group go on in the transaction that is open, until its time has come. */
function acknowledgeEarly(): void {
  const { exec } = Sqlite.prototype
  let commitAt = 0
  Sqlite.prototype.exec = function (this: Sqlite.Database, sql: string) {
    if (sql === 'begin immediate' && this.inTransaction) return this
    if (sql !== 'commit') return exec.call(this, sql)
    commitAt = commitAt === 0 ? Date.now() + LATER_MILLISECONDS : commitAt
    if (Date.now() < commitAt) return this
    commitAt = 0
    return exec.call(this, sql)
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  acknowledgeEarly()
  await main(serve)
}
