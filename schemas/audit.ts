import { type Static, Type } from 'typebox'
import { Closed, Instant, List, Nullable, PageQuery, Role } from './common.js'
import { personal, SECURITY } from './personal.js'

const Term = (maxLength: number, description: string) =>
  Type.String({ minLength: 1, maxLength, pattern: '^[^\\u0000-\\u001f\\u007f]+$', description })

export const AuditOutcome = Type.Enum(['success', 'failure', 'denied'])
export type AuditOutcome = Static<typeof AuditOutcome>

export const AuditEntry = Closed({
  id: Type.Integer({ description: 'Position in the trail of this tenant' }),
  at: Instant,
  tenant: Type.String(),
  action: Type.String({
    description: 'Such as item.update, ledger.post, auth.login; a method and route where nothing else was said'
  }),
  outcome: AuditOutcome,
  actor: Nullable(personal(Type.String({ description: 'Opaque id; `cli` is the console, `system` upkeep' }), SECURITY)),
  role: Nullable(Role),
  method: Nullable(Type.String({ description: 'How the actor was recognised' })),
  session: Nullable(personal(Type.String({ description: 'Opaque id of the session or token' }), SECURITY)),
  object: Nullable(Closed({ type: Type.String(), id: Type.String() })),
  changes: Nullable(
    Type.Record(Type.String(), Closed({ from: Type.Unknown(), to: Type.Unknown() }), {
      description: 'Fields that differ; secrets and names of people are concealed'
    })
  ),
  details: Nullable(Type.Record(Type.String(), Type.Unknown())),
  requestId: Nullable(Type.String()),
  traceId: Nullable(Type.String()),
  address: Nullable(personal(Type.String({ description: 'Null too where it was erased' }), SECURITY)),
  occurrences: Type.Integer({ description: 'More than 1: alike events of a flood in one entry' }),
  firstAt: Nullable(Instant),
  lastAt: Nullable(Instant)
})
export type AuditEntry = Static<typeof AuditEntry>
export const AuditList = List(AuditEntry)

const filters = {
  actor: Type.Optional(personal(Term(100, 'Opaque id'), SECURITY)),
  action: Type.Optional(Term(200, 'Exact, or with a trailing * what begins so, such as auth.*')),
  outcome: Type.Optional(AuditOutcome),
  objectType: Type.Optional(Term(100, 'Such as item')),
  objectId: Type.Optional(Term(300, 'Such as the code of the item')),
  requestId: Type.Optional(Term(128, 'Of the request')),
  from: Type.Optional(Instant),
  to: Type.Optional(Instant)
}
export const AuditQuery = Closed({ ...PageQuery, ...filters })
export const AuditExportQuery = Closed({
  ...filters,
  format: Type.Optional(Type.Enum(['ndjson', 'csv']))
})
export type AuditFilter = Static<ReturnType<typeof Closed<typeof filters>>>

export const AuditVerification = Closed({
  ok: Type.Boolean(),
  entries: Type.Integer({ description: 'In the trail now' }),
  batches: Type.Integer({ description: 'Sealed, those whose entries were removed included' }),
  unsealed: Type.Integer({ description: 'Entries that wait for the next batch' }),
  removed: Type.Integer({ description: 'Entries that retention removed' }),
  head: Nullable(
    Closed({ batch: Type.Integer(), hash: Type.String() }, 'The newest batch: kept elsewhere, it proves all before it')
  ),
  mismatches: Type.Array(
    Closed({
      batch: Nullable(Type.Integer()),
      entry: Nullable(Type.Integer()),
      what: Type.Enum(['changed', 'removed', 'inserted', 'chain', 'checkpoint']),
      detail: Type.String()
    })
  )
})
export type AuditVerification = Static<typeof AuditVerification>
