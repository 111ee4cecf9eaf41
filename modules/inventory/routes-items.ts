import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { access, pageOf } from '../../plugins/contracts.js'
import { Closed, PageQuery, problems } from '../../schemas/common.js'
import * as schemas from '../../schemas/inventory.js'
import { createCatalogueStore } from './catalogue-store.js'
import { type Context, cacheKey, seesCost, tenantOf } from './context.js'
import { CostHidden, ItemNotFound, UnitIsBase, UnitNotFound } from './errors.js'
import { listItems } from './item-list.js'
import { writeRow } from './item-rows.js'
import { createItemStore } from './item-store.js'
import { createItem, loadItem, outlookFor, patchItem, removeItem } from './items.js'
import { writeJson } from './json-bytes.js'
import { createLedgerQueries } from './ledger-queries.js'
import { STOCK_CACHE } from './movements.js'

const tags = ['inventory']

/** Items: the list, one item, its changes and its history. */
export const itemRoutes: FastifyPluginAsyncTypebox<Context> = async (app, context) => {
  const { answers } = context

  app.get(
    '/',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Items with their stock',
        querystring: schemas.ItemQuery,
        response: { 200: schemas.ItemList, ...problems }
      }
    },
    async (request, reply) => {
      const tenant = tenantOf(request)
      const showCost = seesCost(request)
      // An order would tell what the field hides.
      if (!showCost && request.query.sort?.endsWith('value')) throw new CostHidden({ sort: request.query.sort })
      return answers.read(request, reply, STOCK_CACHE, cacheKey(request), async () => {
        const { rows, cursorOf } = await listItems(tenant.db, request.query)
        const { data, page } = pageOf(rows, request.query.limit ?? 50, cursorOf, (row) => row)
        const codes = data.map(({ code }) => code)
        const outlookOf = await outlookFor(context, tenant, codes)
        return writeJson((out) => {
          out.text('{"data":[')
          for (const [i, row] of data.entries()) {
            if (i > 0) out.text(',')
            writeRow(out, row, showCost, outlookOf(row.code, row.on_hand - row.reserved))
          }
          out.text(`],"page":${JSON.stringify(page)}}`)
        })
      })
    }
  )

  app.post(
    '/',
    {
      config: access('manager'),
      schema: { tags, summary: 'Create an item', body: schemas.NewItem, response: { 201: schemas.Item, ...problems } }
    },
    async (request, reply) => {
      const { itemCode } = request.body
      reply.header('location', `${request.routeOptions.url ?? ''}/${encodeURIComponent(itemCode)}`.replace('//', '/'))
      return answers.write(request, reply, 201, async (tx) => {
        await createItem(tx, request.body)
        return loadItem(
          { onOrder: undefined, dailyDemand: undefined },
          tenantOf(request),
          tx.db,
          itemCode,
          seesCost(request)
        )
      })
    }
  )

  const one = { tags, params: schemas.ItemParams, response: { 200: schemas.Item, ...problems } }
  app.get(
    '/:itemCode',
    { config: access('viewer'), schema: { ...one, summary: 'One item with its stock by location and lot' } },
    async (request, reply) =>
      answers.read(request, reply, STOCK_CACHE, cacheKey(request), () =>
        loadItem(context, tenantOf(request), tenantOf(request).db, request.params.itemCode, seesCost(request))
      )
  )

  // What `If-Match` is compared with is what GET shows, figures of other modules included; they are read before the transaction.
  app.patch(
    '/:itemCode',
    { config: access('manager'), schema: { ...one, summary: 'Change an item', body: schemas.ItemPatch } },
    async (request, reply) => {
      const tenant = tenantOf(request)
      const { itemCode } = request.params
      const figures = await fixedFigures(context, tenant, itemCode)
      return answers.write(request, reply, 200, async (tx) => {
        await createItemStore(tx.db).lock([itemCode])
        answers.requireMatch(request, reply, await loadItem(figures, tenant, tx.db, itemCode, seesCost(request)))
        await patchItem(tx, itemCode, request.body)
        return loadItem(figures, tenant, tx.db, itemCode, seesCost(request))
      })
    }
  )

  app.delete(
    '/:itemCode',
    {
      config: access('manager'),
      schema: { ...one, summary: 'Delete an item, or archive one that has history; answers it as it was' }
    },
    async (request, reply) => {
      const tenant = tenantOf(request)
      const { itemCode } = request.params
      const figures = await fixedFigures(context, tenant, itemCode)
      return answers.write(request, reply, 200, async (tx) => {
        await createItemStore(tx.db).lock([itemCode])
        const item = await loadItem(figures, tenant, tx.db, itemCode, seesCost(request))
        answers.requireMatch(request, reply, item)
        await removeItem(tx, itemCode)
        return item
      })
    }
  )

  app.get(
    '/:itemCode/movements',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'History of an item, latest first',
        params: schemas.ItemParams,
        querystring: Closed(PageQuery),
        response: { 200: schemas.ItemMovementList, ...problems }
      }
    },
    async (request, reply) => {
      const { itemCode } = request.params
      const { limit = 50, cursor } = request.query
      const { db } = tenantOf(request)
      return answers.read(request, reply, STOCK_CACHE, cacheKey(request), async () => {
        if (!(await createItemStore(db).records([itemCode])).has(itemCode)) throw new ItemNotFound({ itemCode })
        return createLedgerQueries(db).itemMovements(
          itemCode,
          { limit, ...(cursor === undefined ? {} : { cursor }) },
          seesCost(request)
        )
      })
    }
  )

  app.put(
    '/:itemCode/units/:unit',
    {
      config: access('manager'),
      schema: {
        tags,
        summary: 'Say how much one unit of an item is, from now on',
        params: schemas.ItemUnitParams,
        body: schemas.ItemUnitBody,
        response: { 200: schemas.Item, ...problems }
      }
    },
    async (request, reply) => {
      const { itemCode, unit } = request.params
      const { numerator, denominator = 1 } = request.body
      return answers.write(request, reply, 200, async (tx) => {
        const store = createItemStore(tx.db)
        // Or it could be deleted between being looked for and being referred to.
        await store.lock([itemCode])
        const item = (await store.records([itemCode])).get(itemCode)
        if (item === undefined || item.archivedAt !== null) throw new ItemNotFound({ itemCode })
        if (!(await createCatalogueStore(tx.db).unitExists(unit))) throw new UnitNotFound({ unit })
        if (unit === item.unit) throw new UnitIsBase({ itemCode, unit })
        await store.setUnit(item.id, unit, numerator, denominator)
        tx.audit({
          action: 'item.unit',
          object: { type: 'item', id: itemCode },
          details: { unit, numerator, denominator }
        })
        tx.invalidate(STOCK_CACHE)
        return loadItem(
          { onOrder: undefined, dailyDemand: undefined },
          tenantOf(request),
          tx.db,
          itemCode,
          seesCost(request)
        )
      })
    }
  )
}

/** The figures of other modules as they are now, so that a transaction need not ask them. */
async function fixedFigures(
  { onOrder, dailyDemand }: Context,
  tenant: Parameters<typeof loadItem>[1],
  itemCode: string
) {
  const [ordered, demand] = await Promise.all([onOrder?.(tenant, [itemCode]), dailyDemand?.(tenant, [itemCode])])
  return {
    onOrder: async () => ordered ?? new Map<string, number>(),
    dailyDemand: async () => demand ?? new Map<string, number>()
  }
}
