import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Request } from 'autocannon'
import type { NewItem, NewMovement } from '../schemas/inventory.js'
import { random, type Service } from './support.js'

type Good = readonly [name: string, nameFr: string, category: string, unit: string]
const GOODS: readonly [Good, ...Good[]] = [
  ['Olive oil extra virgin', 'Huile d’olive vierge extra', 'Groceries', 'l'],
  ['Basmati rice', 'Riz basmati', 'Groceries', 'kg'],
  ['Chopped tomatoes', 'Tomates concassées', 'Canned goods', 'can'],
  ['Chicken breast', 'Blanc de poulet', 'Meat', 'kg'],
  ['Whole milk', 'Lait entier', 'Dairy', 'l'],
  ['Nitrile gloves', 'Gants en nitrile', 'Hygiene', 'box'],
  ['Paper towels', 'Essuie-tout', 'Hygiene', 'roll'],
  ['Dinner napkins', 'Serviettes de table', 'Tableware', 'pack'],
  ['Espresso beans', 'Café en grains', 'Beverages', 'kg'],
  ['Mineral water', 'Eau minérale', 'Beverages', 'bottle'],
  ['Hex bolt M8', 'Boulon hexagonal M8', 'Hardware', 'each'],
  ['Copper cable', 'Câble de cuivre', 'Electrical', 'm']
]
const KINDS = ['standard', 'organic', 'premium', 'economy', 'large pack', 'small pack', 'imported', 'local'] as const
const MAKERS = [
  'Alba',
  'Borealis',
  'Castel',
  'Delphine',
  'Estuary',
  'Fjord',
  'Granville',
  'Hector',
  'Ivy & Sons'
] as const

/** The nth item of a repeatable catalogue: names in two languages, a category, a barcode, levels. */
export function catalogueItem(n: number): NewItem & { unitCost: number } {
  const next = random(n + 1)
  const pick = <T>(from: readonly [T, ...T[]]): T => from[Math.floor(next() * from.length)] ?? from[0]
  const [name, nameFr, category, unit] = pick(GOODS)
  const kind = pick(KINDS)
  const maker = pick(MAKERS)
  const reorderPoint = Math.round(next() * 80) + 5
  return {
    itemCode: `${category.slice(0, 3).toUpperCase()}-${String(n).padStart(6, '0')}`,
    name: `${name}, ${kind}, ${maker} ${n}`,
    nameFr: `${nameFr}, ${maker} ${n}`,
    category,
    unit,
    barcodes: [String(2_000_000_000_000 + n)],
    reorderPoint,
    parLevel: reorderPoint * 4,
    unitCost: Math.round(next() * 4000 + 50) / 100
  }
}

const TRIES_MAX = 10

/** A service that is too busy is asked again. @throws when it refuses */
export async function post(service: Service, path: string, body: unknown): Promise<void> {
  for (let tries = 1; ; tries++) {
    const answer = await fetch(service.url + path, {
      method: 'POST',
      headers: { authorization: `Bearer ${service.token}`, 'content-type': 'application/json' },
      body: JSON.stringify(body)
    })
    const text = await answer.text()
    if (answer.ok) return
    if (answer.status !== 503 || tries === TRIES_MAX) throw new Error(`POST ${path}: ${answer.status} ${text}`)
    await sleep(1_000)
  }
}

/** Creates items over HTTP and gives each stock at `main`, a few of them none. */
export async function seedCatalogue(service: Service, count: number, quantity?: number): Promise<string[]> {
  const items = Array.from({ length: count }, (_, n) => catalogueItem(n))
  for (let at = 0; at < count; at += 50) {
    await Promise.all(items.slice(at, at + 50).map((item) => post(service, '/api/inventory', item)))
  }
  const next = random(7)
  const lines = items
    .map(({ itemCode, unitCost }) => ({ itemCode, quantity: quantity ?? Math.floor(next() * 300), unitCost }))
    .filter((line) => line.quantity > 0)
  for (let at = 0; at < lines.length; at += 500) {
    await post(service, '/api/movements', { type: 'receipt', reference: 'bench', lines: lines.slice(at, at + 500) })
  }
  return items.map(({ itemCode }) => itemCode)
}

/** One line out or in, of any of the items; out as often as in, so that stock neither ends nor grows. */
export const movementOf = (codes: readonly string[], next: () => number, quantity = 1): NewMovement => ({
  type: next() < 0.5 ? 'issue' : 'receipt',
  lines: [{ itemCode: codes[Math.floor(next() * codes.length)] ?? '', quantity }]
})

/** Makes of each request a movement of its own, with a key, as a careful client sends it. */
export function movementSender({ token }: Pick<Service, 'token'>, codes: readonly string[], next: () => number) {
  const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' }
  return (request: Request): Request => ({
    ...request,
    headers: { ...headers, 'idempotency-key': randomUUID() },
    body: JSON.stringify(movementOf(codes, next))
  })
}
