import type { Tenant } from '../../plugins/contracts.js'
import type { Anomaly } from '../../schemas/anomaly.js'
import type { Locale } from './explain.js'
import type { OpenCounts } from './metrics.js'
import { type AnomalyTables, createAnomalyStore, toAnomaly } from './store.js'

const LATEST = 5
const storeOf = (tenant: Tenant) => createAnomalyStore(tenant.db.withTables<AnomalyTables>())

/** Anomalies not resolved, by severity. */
export async function openCounts(tenant: Tenant): Promise<OpenCounts> {
  const counts: OpenCounts = { low: 0, medium: 0, high: 0 }
  for (const { severity, count } of await storeOf(tenant).counts()) counts[severity] += count
  return counts
}

export interface AnomalyHeadline {
  /** not resolved */
  open: number
  bySeverity: OpenCounts
  latest: Anomaly[]
}

/** For a dashboard: how many wait, and the newest of them. */
export async function anomalyHeadline(tenant: Tenant, locale: Locale = 'en'): Promise<AnomalyHeadline> {
  const bySeverity = await openCounts(tenant)
  const rows = await storeOf(tenant).list({ status: 'open' }, undefined, LATEST)
  return {
    open: bySeverity.low + bySeverity.medium + bySeverity.high,
    bySeverity,
    latest: rows.map((row) => toAnomaly(row, locale))
  }
}
