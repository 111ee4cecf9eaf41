import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { v7 as uuid } from 'uuid'
import {
  access,
  answerIn,
  decodeCursor,
  encodeCursor,
  pageOf,
  type Tenant,
  type Transaction
} from '../../plugins/contracts.js'
import { problems } from '../../schemas/common.js'
import * as schemas from '../../schemas/forecasting.js'
import { createConsumptionStore } from './consumption-store.js'
import {
  type Context,
  forecastsOf,
  localeOf,
  NAMESPACE,
  requireForecast,
  requireItem,
  subjectOf,
  tenantOf
} from './context.js'
import { FeedbackRule, NotTrained, OverrideFigure, OverrideNotFound, OverrideOver, RangeInvalid } from './errors.js'
import { explain } from './explanation.js'
import { createLearningStore } from './learning-store.js'
import { SUMS_RUN } from './nightly.js'
import type { Reconciled } from './overrides.js'
import { type FeedbackRow, type OverrideRow, toOverride } from './people-store.js'
import { accuracySummary } from './ports.js'
import { accuracyHistory, itemAccuracy, realisedAccuracy, toDrift } from './realised.js'
import { dayNumber, dayText, MILLISECONDS_PER_DAY } from './series.js'
import { createForecastStore, type ForecastingTables } from './store.js'

const tags = ['forecasting']
const WINDOW_DAYS_DEFAULT = 28

const toAnswer = (row: OverrideRow): schemas.Override => ({
  id: row.id,
  itemCode: row.item_code,
  frequency: row.frequency,
  from: row.from_day,
  expiresOn: row.to_day,
  quantityPerDay: row.quantity_per_day,
  factor: row.factor,
  reason: row.reason,
  createdBy: row.created_by,
  createdAt: new Date(row.created_at).toISOString(),
  cancelledAt: row.cancelled_at === null ? null : new Date(row.cancelled_at).toISOString()
})
const toFeedback = (row: FeedbackRow): schemas.Feedback => ({
  id: row.id,
  itemCode: row.item_code,
  date: row.day,
  frequency: row.frequency,
  subject: row.subject,
  verdict: row.verdict,
  comment: row.comment,
  createdBy: row.created_by,
  createdAt: new Date(row.created_at).toISOString()
})

const learningOf = (tenant: Tenant) => createLearningStore(tenant.db, tenant.dialect)

/** Serves the model's forecast under the overrides as they are now, in the transaction that changes them. */
async function serveAgain(
  tenant: Tenant,
  tx: Transaction,
  itemCode: string,
  frequency: schemas.Frequency
): Promise<void> {
  const store = createForecastStore(tx.db.withTables<ForecastingTables>())
  const row = await store.forecast(itemCode, frequency)
  const learning = createLearningStore(tx.db, tenant.dialect)
  const overrides = (await learning.overrides(frequency, { itemCodes: [itemCode] })).get(itemCode) ?? []
  if (row !== undefined) {
    const reconciled: Reconciled | null = row.reconciled === null ? null : JSON.parse(row.reconciled)
    // Trained anew meanwhile: what that has stored knew nothing of this change.
    if (!(await store.serve(row, reconciled, overrides.map(toOverride)))) {
      return serveAgain(tenant, tx, itemCode, frequency)
    }
    // The sums are made again of what their parts serve now.
    await learning.requestRun(SUMS_RUN)
  }
  tx.invalidate(NAMESPACE)
}

/** The last day of data that is known: what a person says of later days is a forecast, of earlier ones hindsight. */
async function knownTo(db: Tenant['db'], answer: string, now: number): Promise<string> {
  const { dataTo }: schemas.Forecast = JSON.parse(answer)
  const consumption = createConsumptionStore(db)
  const last = await consumption.lastDay(Math.floor(now / MILLISECONDS_PER_DAY))
  return last === undefined || dayText(last) < dataTo ? dataTo : dayText(last)
}

const accuracyRoutes: FastifyPluginAsyncTypebox<Context> = async (app, context) => {
  const { answers } = context

  app.get(
    '/accuracy',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Accuracy of what serves now on its back-test, and of what was served once days were over',
        querystring: schemas.AccuracyQuery,
        response: { 200: schemas.AccuracyAnswer, ...problems }
      }
    },
    async (request, reply) => {
      const { window = WINDOW_DAYS_DEFAULT, frequency } = request.query
      return answers.read(request, reply, NAMESPACE, `accuracy:${window}:${frequency ?? ''}`, async () => ({
        ...(await accuracySummary(tenantOf(request), frequency)),
        realised: await realisedAccuracy(tenantOf(request), window, frequency)
      }))
    }
  )

  app.get(
    '/accuracy/history',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Realised accuracy per month, from the first forecast on',
        querystring: schemas.ForecastQuery,
        response: { 200: schemas.AccuracyHistory, ...problems }
      }
    },
    async (request, reply) => {
      const { frequency = 'day' } = request.query
      return answers.read(request, reply, NAMESPACE, `history:${frequency}`, () =>
        accuracyHistory(tenantOf(request), frequency)
      )
    }
  )

  app.get(
    '/forecast/:itemCode/accuracy',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'What was forecast of an item beside what happened, with alarms',
        params: schemas.ForecastParams,
        querystring: schemas.ForecastQuery,
        response: { 200: schemas.ItemAccuracy, ...problems }
      }
    },
    async (request, reply) => {
      const { itemCode } = request.params
      const { frequency } = request.query
      const locale = localeOf(request)
      const key = `item-accuracy:${locale}:${frequency ?? ''}:${itemCode}`
      return answers.read(request, reply, NAMESPACE, key, async () => {
        const tenant = tenantOf(request)
        const row = await requireForecast(context, tenant, itemCode, frequency)
        return itemAccuracy(tenant, itemCode, row.frequency, locale)
      })
    }
  )

  app.get(
    '/forecast/:itemCode/explanation',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Why the forecast is what it is, in figures and a sentence (en, fr)',
        params: schemas.ForecastParams,
        querystring: schemas.ForecastQuery,
        response: { 200: schemas.Explanation, ...problems }
      }
    },
    async (request, reply) => {
      const { itemCode } = request.params
      const { frequency } = request.query
      const locale = localeOf(request)
      answerIn(locale, reply)
      const key = `explanation:${locale}:${frequency ?? ''}:${itemCode}`
      return answers.read(request, reply, NAMESPACE, key, async () => {
        const tenant = tenantOf(request)
        const row = await requireForecast(context, tenant, itemCode, frequency)
        const store = forecastsOf(tenant)
        const current = await store.model(row.model_id)
        if (current === undefined) throw new NotTrained({ itemCode, frequency: row.frequency })
        const before = await store.versionBefore(itemCode, row.frequency, current.version)
        const parsed = ({ id, version, artifact }: typeof current | NonNullable<typeof before>) => ({
          id,
          version,
          artifact: JSON.parse(artifact)
        })
        const { points }: schemas.Forecast = JSON.parse(row.answer)
        const overridden = points.some(({ modelMean }) => modelMean !== undefined)
        return explain(parsed(current), before && parsed(before), overridden, locale)
      })
    }
  )

  app.get(
    '/drift',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Series that drifted from their forecast, newest first, with the reason',
        querystring: schemas.DriftQuery,
        response: { 200: schemas.DriftList, ...problems }
      }
    },
    async (request, reply) => {
      const { limit = 50, cursor, ...filter } = request.query
      const locale = localeOf(request)
      const purpose = `drift ${JSON.stringify(filter)}`
      const [after] = decodeCursor(purpose, cursor, ['string']) ?? []
      return answers.read(request, reply, NAMESPACE, `${locale} ${purpose} ${limit} ${after ?? ''}`, async () => {
        const store = learningOf(tenantOf(request))
        return pageOf(
          await store.drifts(filter, after === undefined ? undefined : String(after), limit + 1),
          limit,
          (last) => encodeCursor(purpose, [last.id]),
          (row) => toDrift(row, locale)
        )
      })
    }
  )
}

const feedbackRoutes: FastifyPluginAsyncTypebox<Context> = async (app, context) => {
  const { answers, now } = context

  app.post(
    '/feedback',
    {
      config: access('staff'),
      schema: {
        tags,
        summary: 'Say what you think of a forecast, or of what was used',
        body: schemas.NewFeedback,
        response: { 201: schemas.Feedback, ...problems }
      }
    },
    async (request, reply) => {
      const tenant = tenantOf(request)
      const { itemCode, date, subject, verdict, comment = null, frequency = 'day' } = request.body
      if (subject === 'forecast' && verdict === 'exceptional') throw new FeedbackRule({})
      await requireItem(context, tenant, itemCode)
      return answers.write(request, reply, 201, async (tx) => {
        const row: FeedbackRow = {
          id: uuid(),
          item_code: itemCode,
          frequency,
          day: date,
          subject,
          verdict,
          comment,
          created_by: subjectOf(request),
          created_at: now()
        }
        await createLearningStore(tx.db, tenant.dialect).addFeedback(row)
        tx.invalidate(NAMESPACE)
        return toFeedback(row)
      })
    }
  )

  app.get(
    '/feedback',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'What people said of forecasts and of what was used, newest first',
        querystring: schemas.FeedbackQuery,
        response: { 200: schemas.FeedbackList, ...problems }
      }
    },
    async (request, reply) => {
      const { limit = 50, cursor, ...filter } = request.query
      const purpose = `feedback ${JSON.stringify(filter)}`
      const [after] = decodeCursor(purpose, cursor, ['string']) ?? []
      return answers.read(request, reply, NAMESPACE, `${purpose} ${limit} ${after ?? ''}`, async () => {
        const store = learningOf(tenantOf(request))
        return pageOf(
          await store.feedback(filter, after === undefined ? undefined : String(after), limit + 1),
          limit,
          (last) => encodeCursor(purpose, [last.id]),
          toFeedback
        )
      })
    }
  )
}

const overrideRoutes: FastifyPluginAsyncTypebox<Context> = async (app, context) => {
  const { answers, now } = context
  const one = { tags, params: schemas.OverrideParams, response: { 200: schemas.Override, ...problems } }
  const find = async (tenant: Tenant, db: Transaction['db'], params: { itemCode: string; overrideId: string }) => {
    const row = await createLearningStore(db, tenant.dialect).override(params.overrideId)
    if (row === undefined || row.item_code !== params.itemCode) {
      throw new OverrideNotFound({ overrideId: params.overrideId })
    }
    return row
  }

  app.post(
    '/forecast/:itemCode/overrides',
    {
      config: access('manager'),
      schema: {
        tags,
        summary: 'Serve another figure than the model’s until a day, with the reason',
        params: schemas.ForecastParams,
        body: schemas.NewOverride,
        response: { 201: schemas.Override, ...problems }
      }
    },
    async (request, reply) => {
      const tenant = tenantOf(request)
      const { itemCode } = request.params
      const { quantityPerDay, factor, reason, expiresOn, frequency } = request.body
      const given = (['quantityPerDay', 'factor'] as const).filter((name) => request.body[name] !== undefined)
      if (given.length !== 1) throw new OverrideFigure({ given })
      const stored = await requireForecast(context, tenant, itemCode, frequency)
      const dataTo = await knownTo(tenant.db, stored.answer, now())
      const firstAhead = dayText(dayNumber(dataTo) + 1)
      const { from = firstAhead } = request.body
      // On days that are in the data it would have no effect, and could not be cancelled.
      for (const day of [from, firstAhead]) if (day > expiresOn) throw new RangeInvalid({ from: day, to: expiresOn })
      return answers.write(request, reply, 201, async (tx) => {
        const row: OverrideRow = {
          id: uuid(),
          item_code: itemCode,
          frequency: stored.frequency,
          from_day: from,
          to_day: expiresOn,
          quantity_per_day: quantityPerDay ?? null,
          factor: factor ?? null,
          reason,
          data_to: dataTo,
          created_by: subjectOf(request),
          created_at: now(),
          cancelled_at: null
        }
        await createLearningStore(tx.db, tenant.dialect).addOverride(row)
        tx.audit({ action: 'forecast.override', object: { type: 'override', id: row.id }, after: toAnswer(row) })
        await serveAgain(tenant, tx, itemCode, stored.frequency)
        return toAnswer(row)
      })
    }
  )

  app.get(
    '/forecast/:itemCode/overrides',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Overrides of an item’s forecast, newest first',
        params: schemas.ForecastParams,
        querystring: schemas.OverrideQuery,
        response: { 200: schemas.OverrideList, ...problems }
      }
    },
    async (request, reply) => {
      const { itemCode } = request.params
      const { limit = 50, cursor } = request.query
      const purpose = `overrides ${itemCode}`
      const [after] = decodeCursor(purpose, cursor, ['string']) ?? []
      return answers.read(request, reply, NAMESPACE, `${purpose} ${limit} ${after ?? ''}`, async () => {
        const tenant = tenantOf(request)
        await requireItem(context, tenant, itemCode)
        const rows = await learningOf(tenant).overridesOf(
          itemCode,
          after === undefined ? undefined : String(after),
          limit + 1
        )
        return pageOf(rows, limit, (last) => encodeCursor(purpose, [last.id]), toAnswer)
      })
    }
  )

  app.get(
    '/forecast/:itemCode/overrides/:overrideId',
    { config: access('viewer'), schema: { ...one, summary: 'One override' } },
    async (request, reply) =>
      answers.read(request, reply, NAMESPACE, `override:${JSON.stringify(request.params)}`, async () =>
        toAnswer(await find(tenantOf(request), tenantOf(request).db, request.params))
      )
  )

  app.delete(
    '/forecast/:itemCode/overrides/:overrideId',
    { config: access('manager'), schema: { ...one, summary: 'Cancel an override: the model’s figure serves again' } },
    async (request, reply) => {
      const tenant = tenantOf(request)
      const { itemCode, overrideId } = request.params
      return answers.write(request, reply, 200, async (tx) => {
        const row = await find(tenant, tx.db, request.params)
        answers.requireMatch(request, reply, toAnswer(row))
        const stored = await createForecastStore(tx.db.withTables<ForecastingTables>()).forecast(
          itemCode,
          row.frequency
        )
        const dataTo = stored === undefined ? row.data_to : await knownTo(tx.db, stored.answer, now())
        if (row.cancelled_at !== null || row.to_day <= dataTo) {
          throw new OverrideOver({ overrideId, expiresOn: row.to_day })
        }
        const cancelled: OverrideRow = { ...row, to_day: dataTo, cancelled_at: now() }
        await createLearningStore(tx.db, tenant.dialect).cancelOverride(row.id, cancelled.to_day, now())
        tx.audit({
          action: 'forecast.override.cancel',
          object: { type: 'override', id: row.id },
          before: toAnswer(row),
          after: toAnswer(cancelled)
        })
        await serveAgain(tenant, tx, itemCode, row.frequency)
        return toAnswer(cancelled)
      })
    }
  )
}

/** Learning from what happened: realised accuracy, drift, what people say. */
export const learningRoutes: FastifyPluginAsyncTypebox<Context> = async (app, context) => {
  await app.register(accuracyRoutes, context)
  await app.register(feedbackRoutes, context)
  await app.register(overrideRoutes, context)
}
