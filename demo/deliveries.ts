/** The demo's one rule for what the source does not hold: purchases. */

export interface Sale {
  itemCode: string
  /** Negative: a return. */
  quantity: number
  /** Milliseconds since 1970, UTC. */
  at: number
  reference: string
}

export interface Delivery {
  itemCode: string
  quantity: number
  at: number
}

const DAY = 86_400_000
const WEEK = 7 * DAY
/** 1970-01-05 was a Monday. */
const FIRST_MONDAY = 4 * DAY
const DELIVERY_HOUR = 6 * 3_600_000
/** Deliveries come in whole dozens. */
const DOZEN = 12
const HISTORY_WEEKS = 4
const COVER_WEEKS = 2

/**
 * Every Monday at 06:00 each item is brought up to two weeks of the mean of its last four weeks, in whole dozens; where that
 * is less than what is known to have been sold before the next Monday, it is brought up to that, since the goods were there.
 */
export function weeklyDeliveries(sales: readonly Sale[]): Delivery[] {
  const byItem = new Map<string, Sale[]>()
  for (const sale of sales) byItem.set(sale.itemCode, [...(byItem.get(sale.itemCode) ?? []), sale])
  return [...byItem]
    .flatMap(([itemCode, own]) => deliveriesOf(itemCode, own))
    .sort((a, b) => a.at - b.at || (a.itemCode < b.itemCode ? -1 : 1))
}

function deliveriesOf(itemCode: string, sales: readonly Sale[]): Delivery[] {
  const weekOf = (at: number) => Math.floor((at - FIRST_MONDAY) / WEEK)
  const first = weekOf(sales[0]?.at ?? 0)
  const last = weekOf(sales.at(-1)?.at ?? 0)
  const sold = new Array<number>(last - first + 1).fill(0)
  const needed = new Array<number>(last - first + 1).fill(0)
  const running = new Array<number>(last - first + 1).fill(0)
  for (const { quantity, at } of sales) {
    const week = weekOf(at) - first
    sold[week] = (sold[week] ?? 0) + quantity
    running[week] = (running[week] ?? 0) + quantity
    // What the shelf must hold on Monday: the most that was out before returns came back.
    needed[week] = Math.max(needed[week] ?? 0, running[week] ?? 0)
  }
  const deliveries: Delivery[] = []
  let onHand = 0
  for (const [week, need] of needed.entries()) {
    const past = sold.slice(Math.max(0, week - HISTORY_WEEKS), week)
    const mean = past.length === 0 ? need : past.reduce((sum, each) => sum + Math.max(0, each), 0) / past.length
    const wanted = Math.max(need, Math.ceil(mean * COVER_WEEKS)) - onHand
    const quantity = Math.ceil(Math.max(0, wanted) / DOZEN) * DOZEN
    if (quantity > 0) deliveries.push({ itemCode, quantity, at: FIRST_MONDAY + (first + week) * WEEK + DELIVERY_HOUR })
    onHand += quantity - (sold[week] ?? 0)
  }
  return deliveries
}
