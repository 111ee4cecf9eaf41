import fc from 'fast-check'
import { fromMicros } from '../schemas/decimal.js'
import type { Answer, Client } from './helper.js'
import { LedgerModel, type ModelLine, Refusal } from './ledger-model.js'

/** Random postings, reversals and reservations, each done in the model and through the API, and compared. */

const post = (as: Pick<Client, 'post'>, type: string, lines: object[]) => as.post('/api/movements', { type, lines })

const LOCATIONS = ['main', 'MB-2']
const LOTS = [
  { lot: 'EARLY', expiresOn: '2030-01-01' },
  { lot: 'LATE', expiresOn: '2031-01-01' },
  { lot: 'NEVER', expiresOn: null }
]
const micros = (max: number) => fc.integer({ min: 1, max })
/** Mostly small, so that stock often just suffices or just does not; sometimes with all six decimals. */
const quantity = fc.oneof(
  micros(9).map((n) => n * 1_000_000),
  micros(20_000_000)
)
const modelLine = fc.record({
  item: fc.constantFrom('plain', 'lotted'),
  location: fc.constantFrom(...LOCATIONS),
  quantity,
  negative: fc.boolean(),
  lot: fc.constantFrom(undefined, ...LOTS),
  unitCost: fc.option(fc.integer({ min: 0, max: 9_000_000 }), { nil: undefined })
})
const TYPES = ['receipt', 'issue', 'transfer', 'adjustment', 'waste', 'return', 'opening'] as const

type Codes = Record<'plain' | 'lotted', string>
/** Where the commands go. */
interface Real {
  staff: Pick<Client, 'post'>
  manager: Pick<Client, 'post'>
  codes: Codes
  /** Ids of transactions and reservations, by the model's own. */
  ids: Map<number, string>
}
type Command = fc.AsyncCommand<LedgerModel, Real>

/** Does the same in the model and through the API; both accept, or both refuse for the same reason and amount. */
function command(
  name: string,
  inModel: (m: LedgerModel) => number | undefined,
  inReal: (r: Real, m: LedgerModel) => Promise<Answer>
): Command {
  return {
    check: () => true,
    toString: () => name,
    async run(model, real) {
      let id: number | undefined
      let refusal: Refusal | undefined
      // The request names what the model knew before.
      const answer = await inReal(real, model)
      try {
        id = model.attempt(inModel)
      } catch (error) {
        if (!(error instanceof Refusal)) throw error
        refusal = error
      }
      if (refusal === undefined) {
        if (answer.status >= 300) throw new Error(`${name}: the model accepts, the ledger says ${answer.text}`)
        if (id !== undefined) real.ids.set(id, answer.body.id)
        compareLines(name, answer, model, id)
      } else {
        const { code, available } = refusal
        if (
          answer.body?.code !== code ||
          (available !== undefined && answer.body.available !== fromMicros(Number(available)))
        )
          throw new Error(
            `${name}: the model refuses with ${code} (${available} available), the ledger says ${answer.text}`
          )
      }
    }
  }
}

/** Quantities and values of each move, which a manager is shown. */
function compareLines(name: string, answer: Answer, model: LedgerModel, id: number | undefined): void {
  const moves = id === undefined ? undefined : model.transactions.get(id)?.moves
  if (moves === undefined || answer.body.lines === undefined) return
  const expected = moves.map((move) => [
    fromMicros(Number(move.quantity)),
    fromMicros(Number(move.value)),
    move.lot || null
  ])
  const actual = answer.body.lines.map((each: { quantity: number; value: number; lot: string }) => [
    each.quantity,
    each.value,
    each.lot
  ])
  if (JSON.stringify(actual) !== JSON.stringify(expected))
    throw new Error(`${name}: moves ${JSON.stringify(actual)} instead of ${JSON.stringify(expected)}`)
}

const posting = fc
  .tuple(fc.constantFrom(...TYPES), fc.array(modelLine, { minLength: 1, maxLength: 3 }))
  .map(([type, lines]) => {
    const incoming = type === 'receipt' || type === 'return' || type === 'opening'
    const drafts = lines.map((each): ModelLine => {
      const negative = type === 'adjustment' && each.negative
      const enters = incoming || (type === 'adjustment' && !negative)
      // What comes in of a lot-tracked item names its lot; what goes out may leave it to first expired, first out.
      const lot = each.item === 'plain' ? undefined : (each.lot ?? (enters ? LOTS[0] : undefined))
      const toLocation = type === 'transfer' ? LOCATIONS.find((code) => code !== each.location) : undefined
      return { ...each, quantity: BigInt(each.quantity) * (negative ? -1n : 1n), lot, toLocation }
    })
    const name = `${type} ${drafts.map((d) => `${d.item}@${d.location} ${d.quantity} ${d.lot?.lot ?? ''} cost ${d.unitCost}`).join('; ')}`
    return command(
      name,
      (model) => model.post(type, drafts),
      ({ manager, codes }) =>
        post(
          manager,
          type,
          drafts.map(({ item, location, toLocation, quantity, lot, unitCost }) => ({
            itemCode: codes[item],
            location,
            quantity: fromMicros(Number(quantity)),
            ...(toLocation === undefined ? {} : { toLocation }),
            ...(lot === undefined ? {} : { lot: lot.lot }),
            ...(lot?.expiresOn == null ? {} : { expiresOn: lot.expiresOn }),
            ...(unitCost === undefined ? {} : { unitCost: fromMicros(unitCost) })
          }))
        )
    )
  })
const NO_ID = '01890000-0000-7000-8000-000000000000'
const nth = (ids: Iterable<number>, index: number) => {
  const all = [...ids]
  return all.length === 0 ? -1 : (all[index % all.length] ?? -1)
}
const reversal = fc.nat(200).map((index) =>
  command(
    `reverse ${index}`,
    (model) => model.reverse(nth(model.transactions.keys(), index)),
    ({ manager, ids }, model) =>
      manager.post(`/api/movements/${ids.get(nth(model.transactions.keys(), index)) ?? NO_ID}/reverse`, {})
  )
)
const reservation = modelLine.map((each) => {
  const lot = each.item === 'plain' ? undefined : (each.lot ?? LOTS[0])
  return command(
    `reserve ${each.item}@${each.location} ${each.quantity} ${lot?.lot ?? ''}`,
    (model) => model.reserve({ ...each, quantity: BigInt(each.quantity), lot }),
    ({ staff, codes }) =>
      staff.post('/api/reservations', {
        itemCode: codes[each.item],
        location: each.location,
        quantity: fromMicros(each.quantity),
        ...(lot === undefined ? {} : { lot: lot.lot })
      })
  )
})
const closing = fc.tuple(fc.nat(50), fc.constantFrom('post', 'void')).map(([index, how]) =>
  command(
    `${how} reservation ${index}`,
    (model) => model.close(nth(model.reservations.keys(), index), how === 'post'),
    ({ staff, ids }, model) =>
      staff.post(`/api/reservations/${ids.get(nth(model.reservations.keys(), index)) ?? NO_ID}/${how}`)
  )
)

/** Sequences of at most `maxCommands`, which may grow to that. */
export const ledgerCommands = (maxCommands: number) =>
  fc.commands([posting, posting, posting, reversal, reservation, closing], { maxCommands, size: 'max' })

/** Makes the two items of a model. `MB-2` must be a location already. */
export async function startModel(manager: Pick<Client, 'post'>, codes: Codes): Promise<LedgerModel> {
  await manager.post('/api/inventory', { itemCode: codes.plain, name: 'Plain', unit: 'each' })
  const lotted = { itemCode: codes.lotted, name: 'Lotted', unit: 'each', tracking: 'lot', unitCost: 1.5 }
  await manager.post('/api/inventory', lotted)
  return new LedgerModel({ plain: 0n, lotted: 1_500_000n })
}

/** @throws Error when an item is not as the model has it */
export async function compareItems(model: LedgerModel, viewer: Pick<Client, 'get'>, codes: Codes): Promise<void> {
  for (const item of ['plain', 'lotted'] as const) {
    const { body } = await viewer.get(`/api/inventory/${codes[item]}`)
    const { onHand, reserved, available, value, locations } = body
    const expected = model.itemAsShown(item)
    if (JSON.stringify({ onHand, reserved, available, value, locations }) !== JSON.stringify(expected))
      throw new Error(`${item} is ${JSON.stringify(body)} instead of ${JSON.stringify(expected)}`)
  }
}
