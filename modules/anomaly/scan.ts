import { setImmediate as turn } from 'node:timers/promises'
import type { Tenant } from '../../plugins/contracts.js'
import type { DetectRequest } from '../../schemas/anomaly.js'
import { detect } from './detectors.js'
import type { ItemFinding } from './store.js'

/** The read port that a host fills with daily series. */
export type SeriesSource = (
  tenant: Tenant,
  query: { itemCodes?: readonly string[]; afterItemCode?: string; limit: number }
) => Promise<DailySeries[]>
export interface DailySeries {
  itemCode: string
  /** `YYYY-MM-DD` of the first value */
  start: string
  values: Float64Array
  /** 1 = there was no stock */
  missing: Uint8Array
}

/** The read port for days that are not as usual (closed, an event, exceptional), per item: they are neither judged nor learnt from. */
export type UnusualDays = (
  tenant: Tenant
) => Promise<(itemCodes: readonly string[]) => Promise<ReadonlyMap<string, ReadonlySet<string>>>>

const MILLISECONDS_PER_DAY = 86_400_000
/** Few at a time: reading and judging them must not hold up the event loop. */
const ITEMS_PER_STEP = 4
const HOLD_MILLISECONDS = 4

const dayText = (day: number) => new Date(day * MILLISECONDS_PER_DAY).toISOString().slice(0, 10)

function scanOne(
  { itemCode, start, values, missing }: DailySeries,
  { from, to, method }: DetectRequest,
  unusual: ReadonlySet<string>
): ItemFinding[] {
  const first = Date.parse(start) / MILLISECONDS_PER_DAY
  const skip = from === undefined ? 0 : Math.max(0, Date.parse(from) / MILLISECONDS_PER_DAY - first)
  const unknown = missing.slice()
  for (const day of unusual) {
    const at = Date.parse(day) / MILLISECONDS_PER_DAY - first
    if (at >= 0 && at < unknown.length) unknown[at] = 1
  }
  return detect(values, unknown, method, skip)
    .map(({ index, ...finding }) => ({ itemCode, day: dayText(first + index), ...finding }))
    .filter(({ day }) => to === undefined || day <= to)
}

/** Looks through the series asked for, a few at a time. */
export async function scan(tenant: Tenant, source: SeriesSource, request: DetectRequest, unusualDays?: UnusualDays) {
  const unusualOf = await unusualDays?.(tenant)
  const findings: ItemFinding[] = []
  let items = 0
  const look = async (series: readonly DailySeries[]) => {
    items += series.length
    const unusual = await unusualOf?.(series.map(({ itemCode }) => itemCode))
    let since = performance.now()
    for (const each of series) {
      findings.push(...scanOne(each, request, unusual?.get(each.itemCode) ?? new Set()))
      if (performance.now() - since < HOLD_MILLISECONDS) continue
      await turn()
      since = performance.now()
    }
  }
  if (request.itemCodes !== undefined) {
    for (let at = 0; at < request.itemCodes.length; at += ITEMS_PER_STEP) {
      const itemCodes = request.itemCodes.slice(at, at + ITEMS_PER_STEP)
      await look(await source(tenant, { itemCodes, limit: itemCodes.length }))
      await turn()
    }
    return { findings, items }
  }
  for (let after: string | undefined; ; ) {
    const page = await source(tenant, {
      limit: ITEMS_PER_STEP,
      ...(after === undefined ? {} : { afterItemCode: after })
    })
    await look(page)
    if (page.length < ITEMS_PER_STEP) return { findings, items }
    after = page.at(-1)?.itemCode
    await turn()
  }
}
