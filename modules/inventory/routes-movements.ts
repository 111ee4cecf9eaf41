import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import { access } from '../../plugins/contracts.js'
import { problems } from '../../schemas/common.js'
import * as schemas from '../../schemas/inventory.js'
import { authorOf, type Context, cacheKey, seesCost, tenantOf } from './context.js'
import { MovementNotFound } from './errors.js'
import { createLedgerQueries } from './ledger-queries.js'
import { postMovement, reverseMovement, STOCK_CACHE } from './movements.js'

const tags = ['ledger']

const withoutCost = (movement: schemas.Movement): schemas.Movement => ({
  ...movement,
  lines: movement.lines.map((line) => ({ ...line, unitCost: null, value: null }))
})

/** No body gives no reason, as an empty one does. */
const bodyOptional = async (request: FastifyRequest) => {
  request.body ??= {}
}

/** The ledger: what moved, and taking it back. */
export const movementRoutes: FastifyPluginAsyncTypebox<Context> = async (app, { answers, metrics }) => {
  const posting = (error: unknown) => {
    metrics.rejected(error)
    throw error
  }

  app.post(
    '/',
    {
      config: access('staff'),
      schema: {
        tags,
        summary: 'Post one transaction: all of its lines or none',
        body: schemas.NewMovement,
        response: { 201: schemas.Movement, ...problems }
      }
    },
    async (request, reply) =>
      answers
        .write(request, reply, 201, async (tx) => {
          const movement = await postMovement(tx, request.body, authorOf(request))
          tx.afterCommit(() => metrics.posted([movement], 'api'))
          reply.header('location', `${request.routeOptions.url ?? ''}/${movement.id}`.replace('//', '/'))
          return seesCost(request) ? movement : withoutCost(movement)
        })
        .catch(posting)
  )

  app.get(
    '/',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Transactions, newest first',
        querystring: schemas.MovementQuery,
        response: { 200: schemas.MovementList, ...problems }
      }
    },
    async (request, reply) =>
      answers.read(request, reply, STOCK_CACHE, cacheKey(request), () =>
        createLedgerQueries(tenantOf(request).db).movements(request.query, seesCost(request))
      )
  )

  app.get(
    '/:id',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'One transaction',
        params: schemas.MovementParams,
        response: { 200: schemas.Movement, ...problems }
      }
    },
    async (request, reply) =>
      answers.read(request, reply, STOCK_CACHE, cacheKey(request), async () => {
        const movement = await createLedgerQueries(tenantOf(request).db).movement(request.params.id, seesCost(request))
        if (movement === undefined) throw new MovementNotFound({ id: request.params.id })
        return movement
      })
  )

  app.post(
    '/:id/reverse',
    {
      config: access('manager'),
      preValidation: bodyOptional,
      schema: {
        tags,
        summary: 'Take a transaction back by its opposite',
        params: schemas.MovementParams,
        body: schemas.Reversal,
        response: { 201: schemas.Movement, ...problems }
      }
    },
    async (request, reply) =>
      answers
        .write(request, reply, 201, async (tx) => {
          const movement = await reverseMovement(tx, request.params.id, request.body.reason ?? null, authorOf(request))
          tx.afterCommit(() => metrics.posted([movement], 'api'))
          return seesCost(request) ? movement : withoutCost(movement)
        })
        .catch(posting)
  )
}

/** Stock at a moment, and the proof that balances and moves agree. */
export const ledgerRoutes: FastifyPluginAsyncTypebox<Context> = async (app, { answers, metrics }) => {
  app.get(
    '/stock',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Stock on hand, now or as of a moment (of a date: its end, UTC)',
        querystring: schemas.StockQuery,
        response: { 200: schemas.StockAsOfList, ...problems }
      }
    },
    async (request, reply) => {
      const { asOf, limit = 50, ...rest } = request.query
      const moment =
        asOf === undefined
          ? Number.MAX_SAFE_INTEGER
          : asOf.length === 10
            ? Date.parse(asOf) + 86_400_000 - 1
            : Date.parse(asOf)
      return answers.read(request, reply, STOCK_CACHE, cacheKey(request), () =>
        createLedgerQueries(tenantOf(request).db).stockAsOf(moment, { limit, ...rest })
      )
    }
  )

  app.get(
    '/ledger/verify',
    {
      config: access('manager', { limit: 'report' }),
      schema: {
        tags,
        summary: 'Recompute every balance, total and value from the moves',
        response: { 200: schemas.Verification, ...problems }
      }
    },
    async (request, reply) => {
      const tenant = tenantOf(request)
      const startedAt = performance.now()
      const result = await createLedgerQueries(tenant.db).verify()
      metrics.verified(tenant.id, result.mismatches.length, (performance.now() - startedAt) / 1000)
      return reply.header('cache-control', 'no-store').send(result)
    }
  )
}
