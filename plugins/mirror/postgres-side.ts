import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import type { Place, Portability, PortableRow, PortableSchema, PortableTable, PortableWriter } from '../contracts.js'
import { FENCED_MESSAGE, FENCED_STATE } from '../http/errors.js'
import {
  advanceIdentities,
  connect,
  postgresRows,
  postgresSchema,
  postgresWriter,
  type Types
} from '../portable/postgres.js'
import {
  type Change,
  changesOf,
  type Mark,
  type Purpose,
  type Side,
  type State,
  Superseded,
  sameMark,
  shapeOf
} from './side.js'

type PostgresPlace = Extract<Place, { dialect: 'postgres' }>

const CHUNK_ROWS = 500
const LOCK_TIMEOUT_MS = 500
const LOCK_PAUSE_MS = 100
const LOCK_ATTEMPTS = 60
/** `insufficient_privilege` */
const NOT_ALLOWED = '42501'

const id = pg.escapeIdentifier
const text = pg.escapeLiteral

/** The user of the database may not write past its guards, so it cannot hold a mirror. */
class MirrorNotAllowed extends Error {
  constructor() {
    super(
      'the user of the PostgreSQL database may not set session_replication_role: make it a superuser, or (PostgreSQL 15 and later) GRANT SET ON PARAMETER session_replication_role TO it'
    )
  }
}

/** As a replica the session writes past triggers and references, which held where the rows come from. */
async function asReplica(client: pg.Client): Promise<void> {
  await client.query('set session_replication_role = replica').catch((error: unknown) => {
    throw error instanceof pg.DatabaseError && error.code === NOT_ALLOWED ? new MirrorNotAllowed() : error
  })
}

/** @throws MirrorNotAllowed when the user may not write as a replica does */
export async function postgresSide(
  place: PostgresPlace,
  traits: readonly Portability[],
  purpose: Purpose = 'mirror'
): Promise<Side> {
  const client = await connect(place)
  const reader = await connect(place).catch(async (error) => {
    await client.end()
    throw error
  })
  const close = async () => void (await Promise.allSettled([client.end(), reader.end()]))
  try {
    const writer = { ...(await postgresWriter(place, traits, client)), close: async () => {} }
    const { schema, types } = await postgresSchema(reader, place.schema, traits)
    return { ...sideOf({ place, client, reader, schema, types, writer, purpose }), writer, close }
  } catch (error) {
    await close()
    throw error
  }
}

interface Context {
  place: PostgresPlace
  /** Writes, and notes what others write. */
  client: pg.Client
  reader: pg.Client
  schema: PortableSchema
  types: Types
  writer: PortableWriter
  purpose: Purpose
}

function sideOf({ place, client, reader, schema, types, writer, purpose }: Context): Omit<Side, 'writer' | 'close'> {
  const [CAPTURE, CHANGES, NOTE] = [`${purpose}_capture`, `${purpose}_changes`, `${purpose}_note`]
  let replica: Promise<void> | undefined
  const own = (name: string) => `${id(place.schema)}.${id(name)}`
  const inTransaction = async <R>(work: () => Promise<R>): Promise<R> => {
    await client.query('begin')
    try {
      const result = await work()
      await client.query('commit')
      return result
    } catch (error) {
      await client.query('rollback').catch(() => {})
      throw error
    }
  }
  const ask = async (from: pg.Client, query: string, values: readonly string[] = []) => {
    const { rows } = await from.query<string[]>({ text: query, values: [...values], rowMode: 'array' })
    return rows
  }
  const exists = async (name: string) => (await ask(client, 'select to_regclass($1)', [own(name)]))[0]?.[0] !== null
  /**
   * Changes one table at a time, each in a transaction of its own: who holds one lock alone is in no deadlock with writers.
   * It gives way to who reads or writes for long, since everybody else would wait behind it.
   */
  const define = async (statement: string) => {
    for (let attempt = 1; ; attempt++) {
      try {
        return await inTransaction(async () => {
          await client.query(`set local lock_timeout = ${LOCK_TIMEOUT_MS}`)
          await client.query(statement)
        })
      } catch (error) {
        const again = error instanceof pg.DatabaseError && /^(55P03|40P01)$/.test(error.code ?? '')
        if (!again || attempt === LOCK_ATTEMPTS) throw error
        await sleep(LOCK_PAUSE_MS)
      }
    }
  }
  const dropTriggers = async (name: string) => {
    const triggers = await ask(
      client,
      `select c.relname, t.tgname from pg_catalog.pg_trigger t join pg_catalog.pg_class c on c.oid = t.tgrelid
       join pg_catalog.pg_namespace n on n.oid = c.relnamespace
       join pg_catalog.pg_proc p on p.oid = t.tgfoid where n.nspname = $1 and p.proname = $2`,
      [place.schema, name]
    )
    for (const [table = '', trigger = ''] of triggers)
      await define(`drop trigger if exists ${id(trigger)} on ${own(table)}`)
    await define(`drop function if exists ${own(name)}()`)
  }
  const forgetCapture = async () => {
    // Without its id a capture counts as none, however much of it is left.
    await define(`drop table if exists ${own(CAPTURE)}`)
    await dropTriggers(NOTE)
    await define(`drop table if exists ${own(CHANGES)}`)
  }
  const mark = async (): Promise<Mark | undefined> => {
    if (!(await exists('mirror_position'))) return undefined
    const [row] = await ask(client, `select capture, position from ${own('mirror_position')}`)
    const [capture, position] = row ?? []
    return capture === undefined || position === undefined ? undefined : { capture, position }
  }

  return {
    schema,
    capture: async () => {
      const shape = shapeOf(schema)
      if (await exists(CAPTURE)) {
        const [known] = await ask(client, `select id, shape from ${own(CAPTURE)}`)
        if (known?.[0] !== undefined && known[1] === shape) return known[0]
      }
      await forgetCapture()
      for (const statement of captureStatements(purpose, place.schema, schema)) await define(statement)
      const capture = randomUUID()
      await inTransaction(async () => {
        await client.query(`create table ${own(CAPTURE)} (id text not null, shape text not null)`)
        await client.query(`insert into ${own(CAPTURE)} values ($1, $2)`, [capture, shape])
      })
      return capture
    },
    release: forgetCapture,
    fence: async (on) => {
      await dropTriggers('mirror_fence')
      if (!on) return
      await define(`create function ${own('mirror_fence')}() returns trigger language plpgsql as
        $$ begin raise exception '${FENCED_MESSAGE}' using errcode = '${FENCED_STATE}'; end $$`)
      // Each waits for the writers that are at its table.
      for (const { physical } of schema.tables)
        await define(`create trigger mirror_fence before insert or update or delete or truncate
          on ${own(physical)} for each statement execute function ${own('mirror_fence')}()`)
    },
    state: async () => {
      await reader.query('begin isolation level repeatable read read only')
      const [row] = await ask(reader, 'select pg_current_snapshot()')
      return postgresState(reader, own(CHANGES), postgresRows(reader, place.schema, schema, types), row?.[0] ?? '')
    },
    pending: async (since) => {
      const unseen = `select count(*) from ${own(CHANGES)} where not pg_visible_in_snapshot(xid, $1::pg_snapshot)`
      const [row] = await ask(client, unseen, [since])
      return Number(row?.[0])
    },
    prune: async (through) => {
      await client.query(`delete from ${own(CHANGES)} where pg_visible_in_snapshot(xid, $1::pg_snapshot)`, [through])
    },
    mark,
    apply: async (from, to, work, { durable = true } = {}) => {
      replica ??= asReplica(client)
      await replica
      await client.query(
        `create table if not exists ${own('mirror_position')} (one boolean primary key default true, capture text not null, position text not null)`
      )
      await inTransaction(async () => {
        if (!durable) await client.query('set local synchronous_commit = off')
        await client.query(`lock table ${own('mirror_position')} in exclusive mode`)
        if (!sameMark(await mark(), from)) throw new Superseded()
        await work(writer)
        await client.query(`delete from ${own('mirror_position')}`)
        if (to !== undefined)
          await client.query(`insert into ${own('mirror_position')} (capture, position) values ($1, $2)`, [
            to.capture,
            to.position
          ])
      })
    },
    advance: () => inTransaction(() => advanceIdentities(client, place.schema))
  }
}

/** Notes the keys of changed rows with the transaction that changed them: numbers would not tell in what order those commit. */
function captureStatements(purpose: Purpose, schemaName: string, { tables }: PortableSchema): string[] {
  const own = (name: string) => `${id(schemaName)}.${id(name)}`
  const note = own(`${purpose}_note`)
  const statements = [
    `create table ${own(`${purpose}_changes`)} (seq bigint generated always as identity primary key,
      xid xid8 not null default pg_current_xact_id(), name text not null, k jsonb not null)`,
    `create function ${note}() returns trigger language plpgsql as $$ begin
      if tg_op <> 'DELETE' then
        execute format('insert into %I.${purpose}_changes (name, k) select %L, jsonb_build_array(%s) from made', tg_table_schema, tg_table_name, tg_argv[0]);
      end if;
      if tg_op <> 'INSERT' then
        execute format('insert into %I.${purpose}_changes (name, k) select %L, jsonb_build_array(%s) from gone', tg_table_schema, tg_table_name, tg_argv[0]);
      end if;
      return null; end $$`
  ]
  for (const { physical, key } of tables) {
    const columns = text(key.map(id).join(', '))
    for (const [event, made, gone] of [
      ['insert', true, false],
      ['update', true, true],
      ['delete', false, true]
    ] as const)
      statements.push(`create trigger ${purpose}_note_${event} after ${event} on ${own(physical)}
        referencing ${made ? 'new table as made' : ''} ${gone ? 'old table as gone' : ''}
        for each statement execute function ${note}(${columns})`)
  }
  return statements
}

function postgresState(
  client: pg.Client,
  changesTable: string,
  reader: ReturnType<typeof postgresRows>,
  position: string
): State {
  const byName = new Map<string, PortableTable>(reader.schema.tables.map((table) => [table.physical, table]))
  return {
    ...reader,
    position,
    changes: async function* (since): AsyncGenerator<Change> {
      const { rows } = await client.query<[string, string]>({
        text: `select name, jsonb_agg(distinct k)::text from ${changesTable}
          where not pg_visible_in_snapshot(xid, $1::pg_snapshot) group by name`,
        values: [since],
        rowMode: 'array'
      })
      const noted = new Map(rows)
      for (const [name, table] of byName) {
        const keys: PortableRow[] = JSON.parse(noted.get(name) ?? '[]')
        yield* changesOf(reader, table, keys, CHUNK_ROWS)
      }
    },
    close: async () => void (await client.query('rollback'))
  }
}
