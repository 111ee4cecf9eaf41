import type { Kysely } from 'kysely'
import { v7 as uuid } from 'uuid'
import type { Anomaly, AnomalyStatus } from '../../schemas/anomaly.js'
import type { Finding, Severity } from './detectors.js'
import { explain, type Locale } from './explain.js'

type AnomalyRow = {
  id: string
  item_code: string
  day: string
  kind: Anomaly['kind']
  detector: Anomaly['detector']
  severity: Severity
  observed: number
  expected: number
  lower: number
  upper: number
  score: number
  status: AnomalyStatus
  note: string | null
  verdict: 'confirmed' | 'dismissed' | null
  handled_by: string | null
  handled_at: number | null
  detected_at: number
}
export type AnomalyTables = { anomalies: AnomalyRow }

export interface ItemFinding extends Omit<Finding, 'index'> {
  itemCode: string
  day: string
}

interface AnomalyFilter {
  itemCode?: string
  status?: AnomalyStatus
  severity?: Severity
  kind?: Anomaly['kind']
  from?: string
  to?: string
}

export interface Handling {
  status: 'acknowledged' | 'resolved'
  from: AnomalyStatus[]
  note?: string | undefined
  verdict?: 'confirmed' | 'dismissed'
  by: string | null
  at: number
}

const ROWS_PER_STATEMENT = 200
const round = (value: number) => Math.round(value * 1_000_000) / 1_000_000

export const toAnomaly = (row: AnomalyRow, locale: Locale): Anomaly => ({
  id: row.id,
  itemCode: row.item_code,
  date: row.day,
  kind: row.kind,
  severity: row.severity,
  detector: row.detector,
  observed: row.observed,
  expected: row.expected,
  lower: row.lower,
  upper: row.upper,
  score: row.score,
  explanation: explain(row, locale),
  status: row.status,
  verdict: row.verdict,
  note: row.note,
  handledBy: row.handled_by,
  handledAt: row.handled_at === null ? null : new Date(row.handled_at).toISOString(),
  detectedAt: new Date(row.detected_at).toISOString()
})

export function createAnomalyStore(db: Kysely<AnomalyTables>) {
  const toRow = (finding: ItemFinding, now: number): AnomalyRow => ({
    id: uuid(),
    item_code: finding.itemCode,
    day: finding.day,
    kind: finding.kind,
    detector: finding.detector,
    severity: finding.severity,
    observed: round(finding.observed),
    expected: round(finding.expected),
    lower: round(finding.lower),
    upper: round(finding.upper),
    score: round(finding.score),
    status: 'open',
    note: null,
    verdict: null,
    handled_by: null,
    handled_at: null,
    detected_at: now
  })

  return {
    /** Stores what is not known yet; what is known stays as it is, handled or not. Answers what was new. */
    async add(findings: readonly ItemFinding[], now: number): Promise<AnomalyRow[]> {
      const added: AnomalyRow[] = []
      for (let at = 0; at < findings.length; at += ROWS_PER_STATEMENT) {
        const rows = findings.slice(at, at + ROWS_PER_STATEMENT).map((finding) => toRow(finding, now))
        const inserted = await db
          .insertInto('anomalies')
          .values(rows)
          .onConflict((conflict) => conflict.columns(['item_code', 'day', 'kind']).doNothing())
          .returningAll()
          .execute()
        added.push(...inserted)
      }
      return added
    },

    /** The stored rows of these findings, in their order. */
    async of(findings: readonly ItemFinding[]): Promise<AnomalyRow[]> {
      const byKey = new Map<string, AnomalyRow>()
      const key = (itemCode: string, day: string, kind: string) => `${day} ${kind} ${itemCode}`
      for (let at = 0; at < findings.length; at += ROWS_PER_STATEMENT) {
        const part = findings.slice(at, at + ROWS_PER_STATEMENT)
        const rows = await db
          .selectFrom('anomalies')
          .selectAll()
          .where('item_code', 'in', [...new Set(part.map(({ itemCode }) => itemCode))])
          .where('day', 'in', [...new Set(part.map(({ day }) => day))])
          .execute()
        for (const row of rows) byKey.set(key(row.item_code, row.day, row.kind), row)
      }
      return findings.flatMap(({ itemCode, day, kind }) => byKey.get(key(itemCode, day, kind)) ?? [])
    },

    /** Newest day first. */
    list(filter: AnomalyFilter, after: { day: string; id: string } | undefined, limit: number): Promise<AnomalyRow[]> {
      let query = db.selectFrom('anomalies').selectAll().orderBy('day', 'desc').orderBy('id', 'desc').limit(limit)
      const { itemCode, status, severity, kind, from, to } = filter
      if (itemCode !== undefined) query = query.where('item_code', '=', itemCode)
      if (status !== undefined) query = query.where('status', '=', status)
      if (severity !== undefined) query = query.where('severity', '=', severity)
      if (kind !== undefined) query = query.where('kind', '=', kind)
      if (from !== undefined) query = query.where('day', '>=', from)
      if (to !== undefined) query = query.where('day', '<=', to)
      if (after !== undefined) {
        query = query.where(({ eb, refTuple, tuple }) => eb(refTuple('day', 'id'), '<', tuple(after.day, after.id)))
      }
      return query.execute()
    },

    find: (id: string) => db.selectFrom('anomalies').selectAll().where('id', '=', id).executeTakeFirst(),

    /** Moves a finding on, only from one of the states named: of two at once, one succeeds. */
    handle: (id: string, { status, from, note, verdict, by, at }: Handling) =>
      db
        .updateTable('anomalies')
        .set({
          status,
          handled_by: by,
          handled_at: at,
          ...(note === undefined ? {} : { note }),
          ...(verdict === undefined ? {} : { verdict })
        })
        .where('id', '=', id)
        .where('status', 'in', from)
        .returningAll()
        .executeTakeFirst(),

    counts: () =>
      db
        .selectFrom('anomalies')
        .select(({ fn }) => ['status', 'severity', fn.countAll<number>().as('count')])
        .where('status', '!=', 'resolved')
        .groupBy(['status', 'severity'])
        .execute()
  }
}
