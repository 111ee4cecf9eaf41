import type { Kysely } from 'kysely'
import { fromMicros } from '../../schemas/decimal.js'
import type { Location, LocationKind, LotBody, NewLocation, NewUnit, Unit } from '../../schemas/inventory.js'
import { DEFAULT_LOT, INTERNAL_KINDS, type InventoryTables } from './tables.js'

const DIMENSIONS = ['count', 'mass', 'volume', 'length', 'area'] as const

interface PageOf {
  limit: number
  /** Only rows after this key. */
  after: string
}

/** Categories, units, locations and lots: what items and movements refer to. Lists read one row more than asked. */
export function createCatalogueStore(root: Kysely<unknown>) {
  const db = root.withTables<InventoryTables>()
  const findLocation = (code: string) =>
    db.selectFrom('locations').selectAll().where('code', '=', code).executeTakeFirst()

  return {
    findLocation,

    categories: ({ limit, after }: PageOf) =>
      db
        .selectFrom('categories as c')
        .select((eb) => [
          'c.name',
          'c.name_fr as nameFr',
          eb
            .selectFrom('items as i')
            .whereRef('i.category_id', '=', 'c.id')
            .where('i.archived_at', 'is', null)
            .select(({ fn }) => fn.countAll<number>().as('n'))
            .as('items')
        ])
        .where('c.name', '>', after)
        .orderBy('c.name')
        .limit(limit + 1)
        .execute(),

    /** The category's id, made when it is new. */
    async categoryId(name: string): Promise<number> {
      await db
        .insertInto('categories')
        .values({ name, name_fr: null })
        .onConflict((c) => c.column('name').doNothing())
        .execute()
      const { id } = await db.selectFrom('categories').select('id').where('name', '=', name).executeTakeFirstOrThrow()
      return id
    },

    async insertCategory(name: string, nameFr: string | null): Promise<boolean> {
      const { numInsertedOrUpdatedRows } = await db
        .insertInto('categories')
        .values({ name, name_fr: nameFr })
        .onConflict((c) => c.column('name').doNothing())
        .executeTakeFirst()
      return Number(numInsertedOrUpdatedRows) > 0
    },

    async units({ limit, after }: PageOf): Promise<Unit[]> {
      const rows = await db
        .selectFrom('units')
        .selectAll()
        .where('code', '>', after)
        .orderBy('code')
        .limit(limit + 1)
        .execute()
      return rows.map(({ code, name, name_fr, dimension, numerator, denominator }) => ({
        unit: code,
        name,
        nameFr: name_fr,
        dimension: DIMENSIONS.find((known) => known === dimension) ?? null,
        numerator,
        denominator
      }))
    },

    async unitExists(code: string): Promise<boolean> {
      return (await db.selectFrom('units').select('code').where('code', '=', code).executeTakeFirst()) !== undefined
    },

    async insertUnit({ unit, name, nameFr, dimension, numerator = 1, denominator = 1 }: NewUnit): Promise<boolean> {
      const { numInsertedOrUpdatedRows } = await db
        .insertInto('units')
        .values({ code: unit, name, name_fr: nameFr ?? null, dimension: dimension ?? null, numerator, denominator })
        .onConflict((c) => c.column('code').doNothing())
        .executeTakeFirst()
      return Number(numInsertedOrUpdatedRows) > 0
    },

    /** The whole tree in walk order; a facility has hundreds of locations, not millions. */
    async locations(): Promise<Location[]> {
      const rows = await db.selectFrom('locations').selectAll().orderBy('walk_sequence').orderBy('code').execute()
      const byId = new Map(rows.map((row) => [row.id, row]))
      return rows.map((row) => {
        const path: string[] = []
        for (
          let each: typeof row | undefined = row;
          each !== undefined;
          each = each.parent_id === null ? undefined : byId.get(each.parent_id)
        ) {
          path.unshift(each.code)
        }
        return {
          location: row.code,
          name: row.name,
          nameFr: row.name_fr,
          kind: row.kind,
          parent: row.parent_id === null ? null : (byId.get(row.parent_id)?.code ?? null),
          path,
          walkSequence: row.walk_sequence
        }
      })
    },

    async insertLocation(
      { location, name, nameFr, kind, walkSequence }: NewLocation,
      parentId: number | null
    ): Promise<boolean> {
      const { numInsertedOrUpdatedRows } = await db
        .insertInto('locations')
        .values({
          code: location,
          name,
          name_fr: nameFr ?? null,
          kind: kind ?? 'internal',
          parent_id: parentId,
          walk_sequence: walkSequence ?? 0
        })
        .onConflict((c) => c.column('code').doNothing())
        .executeTakeFirst()
      return Number(numInsertedOrUpdatedRows) > 0
    },

    async stockAt(
      locationId: number,
      { limit, afterItem, afterLot }: { limit: number; afterItem: string; afterLot: string }
    ) {
      const rows = await db
        .selectFrom('stock_accounts as a')
        .innerJoin('stock_balances as b', 'b.account_id', 'a.id')
        .innerJoin('items as i', 'i.id', 'a.item_id')
        .innerJoin('lots as l', 'l.id', 'a.lot_id')
        .where('a.location_id', '=', locationId)
        .where('b.on_hand', '>', 0)
        .where((eb) =>
          eb.or([eb('i.code', '>', afterItem), eb.and([eb('i.code', '=', afterItem), eb('l.code', '>', afterLot)])])
        )
        .select(['i.code as itemCode', 'i.name', 'i.unit', 'l.code as lot', 'b.on_hand', 'b.reserved'])
        .orderBy('i.code')
        .orderBy('l.code')
        .limit(limit + 1)
        .execute()
      return rows.map(({ on_hand, reserved, ...row }) => ({
        ...row,
        onHand: fromMicros(on_hand),
        reserved: fromMicros(reserved)
      }))
    },

    async lots({
      limit,
      afterId,
      itemCode,
      lot,
      expiresBefore
    }: {
      limit: number
      afterId: number
      itemCode?: string
      lot?: string
      expiresBefore?: string
    }) {
      let query = db
        .selectFrom('lots as l')
        .innerJoin('items as i', 'i.id', 'l.item_id')
        .where('l.code', '<>', DEFAULT_LOT)
        .where('l.id', '>', afterId)
        .select(['l.id', 'i.code as itemCode', 'l.code as lot', 'l.expires_on as expiresOn', 'l.status'])
        .select((eb) =>
          eb
            .selectFrom('stock_accounts as a')
            .innerJoin('stock_balances as b', 'b.account_id', 'a.id')
            .whereRef('a.lot_id', '=', 'l.id')
            .whereRef('a.item_id', '=', 'l.item_id')
            .select(({ fn }) => fn.coalesce(fn.sum<number>('b.on_hand'), eb.lit(0)).as('onHand'))
            .as('onHand')
        )
        .orderBy('l.id')
        .limit(limit + 1)
      if (itemCode !== undefined) query = query.where('i.code', '=', itemCode)
      if (lot !== undefined) query = query.where('l.code', '=', lot)
      if (expiresBefore !== undefined) query = query.where('l.expires_on', '<', expiresBefore)
      const rows = await query.execute()
      return rows.map((row) => ({ ...row, onHand: fromMicros(Number(row.onHand ?? 0)) }))
    },

    /** What the body does not name stays as it is. */
    async upsertLot(itemId: number, { lot, expiresOn, status }: LotBody): Promise<void> {
      await db
        .insertInto('lots')
        .values({ item_id: itemId, code: lot, expires_on: expiresOn ?? null, status: status ?? 'ok' })
        .onConflict((c) =>
          c.columns(['item_id', 'code']).doUpdateSet({
            item_id: itemId,
            ...(expiresOn === undefined ? {} : { expires_on: expiresOn }),
            ...(status === undefined ? {} : { status })
          })
        )
        .execute()
    }
  }
}

export const isStocked = (kind: LocationKind): boolean => INTERNAL_KINDS.includes(kind)
