import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { access, decodeCursor, encodeCursor, pageOf } from '../../plugins/contracts.js'
import { Closed, PageQuery, problems } from '../../schemas/common.js'
import * as schemas from '../../schemas/inventory.js'
import { createCatalogueStore, isStocked } from './catalogue-store.js'
import { type Context, cacheKey, tenantOf } from './context.js'
import {
  CategoryExists,
  ItemNotFound,
  LocationExists,
  LocationNotFound,
  LocationNotStocked,
  LotRule,
  UnitExists
} from './errors.js'
import { createItemStore } from './item-store.js'
import { STOCK_CACHE } from './movements.js'
import { NOT_TRACKED } from './rules.js'

const tags = ['catalogue']
const querystring = Closed(PageQuery)

/** Categories, units and lots, beside the items they describe. */
export const catalogueRoutes: FastifyPluginAsyncTypebox<Context> = async (app, { answers }) => {
  app.get(
    '/categories',
    {
      config: access('viewer'),
      schema: { tags, summary: 'Categories', querystring, response: { 200: schemas.CategoryList, ...problems } }
    },
    async (request, reply) => {
      const { limit = 50, cursor } = request.query
      const after = String(decodeCursor('categories', cursor, ['string'])?.[0] ?? '')
      return answers.read(request, reply, STOCK_CACHE, cacheKey(request), async () => {
        const rows = await createCatalogueStore(tenantOf(request).db).categories({ limit, after })
        return pageOf(
          rows,
          limit,
          ({ name }) => encodeCursor('categories', [name]),
          (row) => ({ ...row, items: Number(row.items) })
        )
      })
    }
  )

  app.post(
    '/categories',
    {
      config: access('manager'),
      schema: {
        tags,
        summary: 'Add a category',
        body: schemas.NewCategory,
        response: { 201: schemas.Category, ...problems }
      }
    },
    async (request, reply) => {
      const { name, nameFr } = request.body
      return answers.write(request, reply, 201, async (tx) => {
        if (!(await createCatalogueStore(tx.db).insertCategory(name, nameFr ?? null)))
          throw new CategoryExists({ category: name })
        tx.audit({ action: 'category.create', object: { type: 'category', id: name }, after: request.body })
        tx.invalidate(STOCK_CACHE)
        return { name, nameFr: nameFr ?? null, items: 0 }
      })
    }
  )

  app.get(
    '/units',
    {
      config: access('viewer'),
      schema: { tags, summary: 'Units of measure', querystring, response: { 200: schemas.UnitList, ...problems } }
    },
    async (request, reply) => {
      const { limit = 50, cursor } = request.query
      const after = String(decodeCursor('units', cursor, ['string'])?.[0] ?? '')
      return answers.read(request, reply, STOCK_CACHE, cacheKey(request), async () => {
        const rows = await createCatalogueStore(tenantOf(request).db).units({ limit, after })
        return pageOf(
          rows,
          limit,
          ({ unit }) => encodeCursor('units', [unit]),
          (row) => row
        )
      })
    }
  )

  app.post(
    '/units',
    {
      config: access('manager'),
      schema: {
        tags,
        summary: 'Add a unit of measure',
        body: schemas.NewUnit,
        response: { 201: schemas.Unit, ...problems }
      }
    },
    async (request, reply) => {
      const { unit, name, nameFr = null, dimension = null, numerator = 1, denominator = 1 } = request.body
      return answers.write(request, reply, 201, async (tx) => {
        if (!(await createCatalogueStore(tx.db).insertUnit(request.body))) throw new UnitExists({ unit })
        tx.audit({ action: 'unit.create', object: { type: 'unit', id: unit }, after: request.body })
        tx.invalidate(STOCK_CACHE)
        return { unit, name, nameFr, dimension, numerator, denominator }
      })
    }
  )

  app.get(
    '/lots',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Lots with their stock',
        querystring: schemas.LotQuery,
        response: { 200: schemas.LotList, ...problems }
      }
    },
    async (request, reply) => {
      const { limit = 50, cursor, ...filter } = request.query
      const afterId = Number(decodeCursor('lots', cursor, ['number'])?.[0] ?? 0)
      return answers.read(request, reply, STOCK_CACHE, cacheKey(request), async () => {
        const rows = await createCatalogueStore(tenantOf(request).db).lots({ limit, afterId, ...filter })
        return pageOf(
          rows,
          limit,
          ({ id }) => encodeCursor('lots', [id]),
          ({ id, ...row }) => row
        )
      })
    }
  )

  app.put(
    '/lots',
    {
      config: access('staff'),
      schema: {
        tags,
        summary: 'Add a lot, or change its expiry or status',
        body: schemas.LotBody,
        response: { 200: schemas.Lot, ...problems }
      }
    },
    async (request, reply) => {
      const { itemCode, lot } = request.body
      return answers.write(request, reply, 200, async (tx) => {
        const items = createItemStore(tx.db)
        // Or it could be deleted between being looked for and being referred to.
        await items.lock([itemCode])
        const item = (await items.records([itemCode])).get(itemCode)
        if (item === undefined || item.archivedAt !== null) throw new ItemNotFound({ itemCode })
        if (item.tracking === 'none') throw new LotRule({ itemCode, rule: NOT_TRACKED, line: 1 })
        const store = createCatalogueStore(tx.db)
        const find = async () => {
          const [found] = await store.lots({ limit: 1, afterId: 0, itemCode, lot })
          if (found === undefined) return undefined
          const { id, ...row } = found
          return row
        }
        const before = await find()
        await store.upsertLot(item.id, request.body)
        tx.invalidate(STOCK_CACHE)
        const after = await find()
        const told = (row: typeof after) =>
          row === undefined ? null : { expiresOn: row.expiresOn, status: row.status }
        tx.audit({
          action: before === undefined ? 'lot.create' : 'lot.update',
          object: { type: 'lot', id: `${itemCode}/${lot}` },
          before: told(before),
          after: told(after)
        })
        return after
      })
    }
  )
}

/** Where stock lies: a tree in walk order. */
export const locationRoutes: FastifyPluginAsyncTypebox<Context> = async (app, { answers }) => {
  app.get(
    '/',
    {
      config: access('viewer'),
      schema: {
        tags: ['locations'],
        summary: 'The tree of locations, in walk order',
        response: { 200: schemas.LocationList, ...problems }
      }
    },
    async (request, reply) =>
      answers.read(request, reply, STOCK_CACHE, cacheKey(request), async () => {
        const data = await createCatalogueStore(tenantOf(request).db).locations()
        return { data, page: { limit: data.length, nextCursor: null } }
      })
  )

  app.post(
    '/',
    {
      config: access('manager'),
      schema: {
        tags: ['locations'],
        summary: 'Add a location',
        body: schemas.NewLocation,
        response: { 201: schemas.Location, ...problems }
      }
    },
    async (request, reply) => {
      const { location, parent } = request.body
      return answers.write(request, reply, 201, async (tx) => {
        const store = createCatalogueStore(tx.db)
        const above = parent == null ? undefined : await store.findLocation(parent)
        if (parent != null && above === undefined) throw new LocationNotFound({ location: parent })
        if (above !== undefined && !isStocked(above.kind))
          throw new LocationNotStocked({ location: above.code, kind: above.kind })
        if (!(await store.insertLocation(request.body, above?.id ?? null))) throw new LocationExists({ location })
        tx.audit({ action: 'location.create', object: { type: 'location', id: location }, after: request.body })
        tx.invalidate(STOCK_CACHE)
        return (await store.locations()).find((each) => each.location === location)
      })
    }
  )

  app.get(
    '/:location/stock',
    {
      config: access('viewer'),
      schema: {
        tags: ['locations'],
        summary: 'Stock at a location',
        params: schemas.LocationParams,
        querystring,
        response: { 200: schemas.StockAtLocationList, ...problems }
      }
    },
    async (request, reply) => {
      const { limit = 50, cursor } = request.query
      const { location } = request.params
      const [afterItem = '', afterLot = ''] = decodeCursor(`stock-at:${location}`, cursor, ['string', 'string']) ?? []
      return answers.read(request, reply, STOCK_CACHE, cacheKey(request), async () => {
        const store = createCatalogueStore(tenantOf(request).db)
        const found = await store.findLocation(location)
        if (found === undefined) throw new LocationNotFound({ location })
        const rows = await store.stockAt(found.id, { limit, afterItem: String(afterItem), afterLot: String(afterLot) })
        const cursorOf = (row: (typeof rows)[number]) => encodeCursor(`stock-at:${location}`, [row.itemCode, row.lot])
        return pageOf(rows, limit, cursorOf, (row) => ({ ...row, lot: row.lot === '' ? null : row.lot }))
      })
    }
  )
}
