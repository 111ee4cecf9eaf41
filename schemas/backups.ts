import { type Static, Type } from 'typebox'
import { Closed, Instant, List, Nullable, PageQuery, Uuid } from './common.js'

const Count = Type.Integer({ minimum: 0 })
const BackupId = Type.String({ pattern: '^[0-9a-f]{12}$' })
export const BackupParams = Closed({ id: BackupId })
const BackupKind = Type.Enum(['full', 'increment'])

export const Backup = Closed({
  id: BackupId,
  kind: BackupKind,
  previous: Type.Union([BackupId, Type.Null()], { description: 'The backup that an increment goes on from' }),
  stateAt: Type.String({ format: 'date-time', description: 'Everything acknowledged before is in it' }),
  bytes: Count,
  rows: Type.Union([Count, Type.Null()], { description: 'null: made by another database than this one' }),
  seconds: Nullable(Type.Number())
})
export type Backup = Static<typeof Backup>
export const BackupDetail = Closed({
  ...Backup.properties,
  parts: Nullable(Count),
  sha256: Type.Union([Type.String(), Type.Null()], { description: 'Of the whole encrypted file' }),
  tables: Type.Union([Type.Record(Type.String(), Count), Type.Null()], { description: 'Rows of each table' })
})
export type BackupDetail = Static<typeof BackupDetail>
export const BackupQuery = Closed({ ...PageQuery, kind: Type.Optional(BackupKind) })
export const BackupList = List(Backup)

const CheckKind = Type.Enum(['verify', 'drill'])
const CheckOutcome = Type.Enum(['success', 'failure'])
export const BackupCheck = Closed({
  id: Uuid,
  kind: CheckKind,
  at: Instant,
  outcome: CheckOutcome,
  backupId: Nullable(BackupId),
  archives: Count,
  bytes: Count,
  rows: Count,
  seconds: Type.Number({ description: 'Of a drill: the measured time to restore' }),
  error: Nullable(Type.String())
})
export type BackupCheck = Static<typeof BackupCheck>
export const CheckQuery = Closed({ ...PageQuery, kind: Type.Optional(CheckKind) })
export const CheckList = List(BackupCheck)
