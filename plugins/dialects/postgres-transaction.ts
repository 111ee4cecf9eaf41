import {
  CompiledQuery,
  type ConnectionProvider,
  type DatabaseConnection,
  type Dialect,
  type Kysely,
  type KyselyProps,
  type QueryResult,
  SelectQueryNode,
  Transaction
} from 'kysely'
import pg from 'pg'
import type { TransactOptions } from '../contracts.js'
import type { Work } from './dialect.js'

const BEGIN = CompiledQuery.raw('begin')
/** One message: where `begin` fails, the rest of it is not run. */
const BEGIN_RELAXED = CompiledQuery.raw('begin; set local synchronous_commit = off')
const COMMIT = CompiledQuery.raw('commit')
const ROLLBACK = CompiledQuery.raw('rollback')

/** in_failed_sql_transaction */
const TRANSACTION_FAILED = '25P02'
const ignore = () => {}

/** What Kysely wants of a transaction beside its connection, and does not use in one. */
export const unused = (dialect: Dialect): Omit<KyselyProps, 'executor'> => ({
  config: { dialect },
  dialect,
  driver: dialect.createDriver()
})

/**
 * One transaction on one connection, which sends each statement without waiting for the one before: the server runs them in the order
 * in which they are asked for. So reads that need nothing of each other are one way to the server and back, and so are the last
 * writes with the commit behind them. When a statement fails, the server refuses all that follow it, and makes a rollback of the commit.
 */
export function pipelined<R>(
  db: Kysely<unknown>,
  rest: Omit<KyselyProps, 'executor'>,
  work: Work<R>,
  { durability = 'full' }: TransactOptions
): Promise<R> {
  const executor = db.getExecutor()
  return executor.provideConnection(async (connection) => {
    const begun = connection.executeQuery(durability === 'relaxed' ? BEGIN_RELAXED : BEGIN)
    const line = new Line(connection, begun)
    const tx = new Transaction<unknown>({ ...rest, executor: executor.withConnectionProvider(line) })
    const sent: Promise<unknown>[] = [begun]
    const write = (query: CompiledQuery) => {
      const writing = tx.executeQuery(query)
      // Looked at below; until then nobody may take it for a failure that was overlooked.
      writing.catch(ignore)
      sent.push(writing)
    }
    let committing = false
    try {
      const value = await work(tx, write)
      // What waited for it is sent by then.
      await begun
      line.end()
      committing = true
      sent.push(connection.executeQuery(COMMIT))
      const failed = await failureOf(sent)
      if (failed !== undefined) throw failed.reason
      return value
    } catch (error) {
      line.end()
      // Answered after all that was sent before it. Where the connection is gone, so is the transaction.
      if (!committing) await connection.executeQuery(ROLLBACK).catch(ignore)
      // Refused for a write before it, which nobody had waited for.
      const refused = error instanceof pg.DatabaseError && error.code === TRANSACTION_FAILED
      throw refused ? ((await failureOf(sent))?.reason ?? error) : error
    }
  })
}

/** Waits for each; of several that failed the first says why, those behind it only that something had. */
const failureOf = async (sent: readonly Promise<unknown>[]): Promise<PromiseRejectedResult | undefined> =>
  (await Promise.allSettled(sent)).find((each) => each.status === 'rejected')

/** Reads go behind `begin` at once; a write only when it is known to have begun, for else it would stand alone. */
class Line implements ConnectionProvider {
  readonly #connection: DatabaseConnection
  readonly #own: DatabaseConnection
  readonly #begun: Promise<unknown>
  #open = false
  #waiting = 0
  #over = false

  constructor(connection: DatabaseConnection, begun: Promise<unknown>) {
    this.#connection = connection
    this.#begun = begun
    this.#own = {
      executeQuery: <R>(query: CompiledQuery) => this.#execute<R>(query),
      streamQuery: (query, size) => connection.streamQuery(query, size)
    }
    begun.then(() => {
      this.#open = true
    }, ignore)
  }

  async provideConnection<T>(consumer: (connection: DatabaseConnection) => Promise<T>): Promise<T> {
    if (this.#over) throw new Error('the transaction is over: this call has left it')
    return consumer(this.#own)
  }

  /** From here on the connection is another's. */
  end(): void {
    this.#over = true
  }

  async #execute<R>(query: CompiledQuery): Promise<QueryResult<R>> {
    if (!this.#open && (this.#waiting > 0 || !isRead(query))) {
      this.#waiting++
      await this.#begun
      if (this.#over) throw new Error('the transaction is over: this call has left it')
    }
    return this.#connection.executeQuery<R>(query)
  }
}

const isRead = ({ query }: CompiledQuery) => SelectQueryNode.is(query) && query.with === undefined
