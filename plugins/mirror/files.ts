import { closeSync, fsyncSync, mkdirSync, openSync, readFileSync, renameSync, writeSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { type Static, type TSchema, Type } from 'typebox'
import { shape } from '../http/validation.js'

/** A folder beside the SQLite database: which database counts, what the console asks for, and how it goes. */

const State = Type.Object({
  on: Type.Boolean(),
  /** The one that counts. Writing this file is the moment at which a switch has happened. */
  primary: Type.Union([Type.Literal('sqlite'), Type.Literal('postgres')]),
  since: Type.String()
})
type MirrorState = Static<typeof State>
const OFF: MirrorState = { on: false, primary: 'sqlite', since: '' }

export const ORDERS = ['start', 'verify', 'switch', 'stop'] as const
export type MirrorOrder = (typeof ORDERS)[number]
const Command = Type.Object({
  id: Type.String(),
  order: Type.Enum(ORDERS)
})
export type MirrorCommand = Static<typeof Command>

const Difference = Type.Object({
  table: Type.String(),
  key: Type.Array(Type.Union([Type.String(), Type.Number(), Type.Boolean(), Type.Null()])),
  what: Type.Union([Type.Literal('missing'), Type.Literal('extra'), Type.Literal('differs')])
})
/** Of all rows of both; `differences` names the first, `hash` stands for the original's. */
const Comparison = Type.Object({
  tables: Type.Number(),
  rows: Type.Number(),
  differing: Type.Number(),
  differences: Type.Array(Difference),
  hash: Type.String()
})
export type Difference = Static<typeof Difference>
export type Comparison = Static<typeof Comparison>
/** How a tenant's copy does: `position` is up to where it has come for certain, in the engine's own terms, `error` why it waits. */
const Following = Type.Object({
  tenant: Type.String(),
  state: Type.Union([Type.Literal('copying'), Type.Literal('following'), Type.Literal('waiting')]),
  pendingChanges: Type.Number(),
  lagSeconds: Type.Number(),
  appliedChanges: Type.Number(),
  errors: Type.Number(),
  error: Type.Optional(Type.String()),
  position: Type.Optional(Type.String()),
  copied: Type.Optional(Type.Object({ done: Type.Number(), total: Type.Number() }))
})
export type Following = Static<typeof Following>
const Outcome = Type.Object({
  id: Type.String(),
  status: Type.Union([Type.Literal('running'), Type.Literal('done'), Type.Literal('failed')]),
  step: Type.Optional(Type.String()),
  done: Type.Optional(Type.Number()),
  total: Type.Optional(Type.Number()),
  error: Type.Optional(Type.String()),
  /** For how long requests were held up by a switch. */
  pausedMilliseconds: Type.Optional(Type.Number()),
  verified: Type.Optional(Type.Record(Type.String(), Comparison))
})
export type MirrorOutcome = Static<typeof Outcome>
const Report = Type.Object({
  /** Milliseconds since 1970: a service that is alive writes one each second. */
  at: Type.Number(),
  pid: Type.Number(),
  outcome: Type.Optional(Outcome),
  /** Why nothing can be followed yet, such as a copy that has not answered since the service started. */
  error: Type.Optional(Type.String()),
  tenants: Type.Array(Following),
  verified: Type.Optional(Type.Object({ at: Type.Number(), differing: Type.Number(), rows: Type.Number() }))
})
export type MirrorReport = Static<typeof Report>

/** What a service and the command tell each other about the copy: files in `mirror/` beside the database, each replaced as a whole. */
export class MirrorFiles {
  readonly #folder: string

  constructor(databasePath: string) {
    this.#folder = join(dirname(databasePath), 'mirror')
  }

  state(): MirrorState {
    return read(this.#path('state'), State) ?? OFF
  }
  setState(state: Omit<MirrorState, 'since'>): void {
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 })
    write(this.#path('state'), { ...state, since: new Date().toISOString() })
  }

  command(): MirrorCommand | undefined {
    return read(this.#path('command'), Command)
  }
  setCommand(command: MirrorCommand): void {
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 })
    write(this.#path('command'), command)
  }

  report(): MirrorReport | undefined {
    return read(this.#path('report'), Report)
  }
  setReport(report: MirrorReport): void {
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 })
    write(this.#path('report'), report, false)
  }

  #path(name: string): string {
    return join(this.#folder, `${name}.json`)
  }
}

function read<T extends TSchema>(path: string, schema: T): Static<T> | undefined {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined
    throw error
  }
  const value: unknown = JSON.parse(text)
  if (!shape(schema)(value)) throw new Error(`${path} is not a file of this program`)
  return value
}

/** All of it or nothing of it is there after a crash. */
function write(path: string, value: object, durably = true): void {
  const fresh = `${path}.${process.pid}`
  const file = openSync(fresh, 'w', 0o600)
  try {
    writeSync(file, JSON.stringify(value))
    if (durably) fsyncSync(file)
  } finally {
    closeSync(file)
  }
  renameSync(fresh, path)
  if (!durably) return
  const folder = openSync(dirname(path), 'r')
  try {
    fsyncSync(folder)
  } finally {
    closeSync(folder)
  }
}
