import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import { access, decodeCursor, encodeCursor, pageOf } from '../../plugins/contracts.js'
import { Job, problems } from '../../schemas/common.js'
import {
  type Artifact,
  DeriveRequest,
  Forecast,
  ForecastParams,
  ForecastQuery,
  type Frequency,
  ModelDetail,
  ModelList,
  ModelParams,
  ModelQuery,
  Series,
  SeriesQuery,
  TrainRequest
} from '../../schemas/forecasting.js'
import { Aggregate, AggregateQuery, ItemLocations } from '../../schemas/hierarchy.js'
import { requireRegressors } from './calendar-store.js'
import { createConsumptionStore } from './consumption-store.js'
import { type Context, forecastsOf, NAMESPACE, requireForecast, requireItem, tenantOf } from './context.js'
import { AggregateUnknown, ModelNotFound, NotTrained, RangeInvalid, ScopeAmbiguous } from './errors.js'
import { locationsOf } from './locations.js'
import { seriesOf } from './ports.js'
import { calendarRoutes } from './routes-calendar.js'
import { learningRoutes } from './routes-learning.js'
import { MILLISECONDS_PER_DAY, periodDays } from './series.js'
import { answerOf } from './served.js'
import { horizonOf } from './train.js'

export const DERIVE_JOB = 'forecasting.derive'
export const AGGREGATE_JOB = 'forecasting.aggregate'
export const TRAIN_JOB = 'forecasting.train'

/** No body asks for the defaults, as an empty one does. */
const bodyOptional = async (request: FastifyRequest) => {
  request.body ??= {}
}

const checkRange = ({ from, to }: { from?: string; to?: string }) => {
  if (from !== undefined && to !== undefined && from > to) throw new RangeInvalid({ from, to })
}

/** Before the request is validated: undefined where it will be refused. */
function itemCodeOf(request: FastifyRequest): string | undefined {
  const { params } = request
  const itemCode = typeof params === 'object' && params !== null && 'itemCode' in params ? params.itemCode : undefined
  // True or the errors.
  const valid: unknown = request.getValidationFunction('params')?.(params)
  return typeof itemCode === 'string' && valid === true ? itemCode : undefined
}

export const routes: FastifyPluginAsyncTypebox<Context> = async (app, context) => {
  const { answers, jobs, now } = context
  const tags = ['forecasting']
  const jobAnswers = { 200: Job, 202: Job, ...problems }

  app.post(
    '/consumption/derive',
    {
      config: access('manager', { limit: 'training' }),
      preValidation: bodyOptional,
      schema: {
        tags,
        summary: 'Reads consumption from the ledger again, as a job',
        body: DeriveRequest,
        response: jobAnswers
      }
    },
    async (request, reply) => {
      checkRange(request.body)
      return answers.job(request, reply, (tx) => jobs.start(tenantOf(request), DERIVE_JOB, request.body, tx))
    }
  )

  app.post(
    '/forecast/train',
    {
      config: access('manager', { limit: 'training' }),
      preValidation: bodyOptional,
      schema: {
        tags,
        summary: 'Trains forecasts in worker threads, as a job',
        body: TrainRequest,
        response: jobAnswers
      }
    },
    async (request, reply) => {
      const given = (['itemCodes', 'top', 'all'] as const).filter((name) => request.body[name] !== undefined)
      if (given.length > 1) throw new ScopeAmbiguous({ given })
      const { regressors = [], frequency = 'day' } = request.body
      if (regressors.length > 0) {
        const today = Math.floor(now() / MILLISECONDS_PER_DAY)
        const tenant = tenantOf(request)
        const end = await createConsumptionStore(tenant.db).lastDay(today)
        await requireRegressors(tenant, regressors, end ?? today - 1, horizonOf(request.body) * periodDays(frequency))
      }
      return answers.job(request, reply, (tx) => jobs.start(tenantOf(request), TRAIN_JOB, request.body, tx))
    }
  )

  app.post(
    '/forecast/aggregate/train',
    {
      config: access('manager', { limit: 'training' }),
      schema: {
        tags,
        summary: 'Forecasts categories, locations and the total, as a job; the nightly training does so too',
        response: jobAnswers
      }
    },
    async (request, reply) => answers.job(request, reply, (tx) => jobs.start(tenantOf(request), AGGREGATE_JOB, {}, tx))
  )

  app.get(
    '/forecast/aggregate',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'The forecast of everything, of a category or of a location; they add up',
        querystring: AggregateQuery,
        response: { 200: Aggregate, ...problems }
      }
    },
    async (request, reply) => {
      const { level, key = '', frequency = 'day' } = request.query
      return answers.read(request, reply, NAMESPACE, `aggregate:${frequency}:${level}:${key}`, async () => {
        const row = await forecastsOf(tenantOf(request)).aggregate(frequency, level, level === 'total' ? '' : key)
        if (row === undefined) throw new AggregateUnknown({ level, key })
        return JSON.parse(row.answer)
      })
    }
  )

  const forecastKey = (itemCode: string, frequency?: Frequency) => `forecast:${frequency ?? ''}:${itemCode}`
  const loadForecast = async (request: FastifyRequest, itemCode: string, frequency?: Frequency) => {
    const tenant = tenantOf(request)
    const answer = await answerOf(tenant.db, itemCode, frequency)
    if (answer !== undefined) return answer
    await requireItem(context, tenant, itemCode)
    throw new NotTrained({ itemCode, frequency: frequency ?? 'day, week' })
  }
  /** As most ask for it. While models train, each way to the database is felt: this goes beside that of the token's check. */
  const forecastAhead = (request: FastifyRequest) => {
    const itemCode = itemCodeOf(request)
    if (itemCode === undefined || request.url.includes('?')) return
    answers.ahead(request, NAMESPACE, forecastKey(itemCode), () => loadForecast(request, itemCode))
  }
  app.get(
    '/forecast/:itemCode',
    {
      config: access('viewer', { ahead: forecastAhead }),
      schema: {
        tags,
        summary: 'The forecast of an item; daily if it was trained so, else weekly',
        params: ForecastParams,
        querystring: ForecastQuery,
        response: { 200: Forecast, ...problems }
      }
    },
    async (request, reply) => {
      const { itemCode } = request.params
      const { frequency } = request.query
      return answers.read(request, reply, NAMESPACE, forecastKey(itemCode, frequency), () =>
        loadForecast(request, itemCode, frequency)
      )
    }
  )

  app.get(
    '/forecast/:itemCode/locations',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'The forecast of an item at each location where it is used; they add up to the item’s',
        params: ForecastParams,
        querystring: ForecastQuery,
        response: { 200: ItemLocations, ...problems }
      }
    },
    async (request, reply) => {
      const { itemCode } = request.params
      const { frequency } = request.query
      return answers.read(request, reply, NAMESPACE, `locations:${frequency ?? ''}:${itemCode}`, async () => {
        const tenant = tenantOf(request)
        const row = await requireForecast(context, tenant, itemCode, frequency)
        const rows = await forecastsOf(tenant).locations(itemCode, row.frequency)
        return locationsOf(itemCode, row.frequency, JSON.parse(row.answer), rows)
      })
    }
  )

  app.get(
    '/consumption/:itemCode',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'What was used of an item per day or week; days without stock are marked',
        params: ForecastParams,
        querystring: SeriesQuery,
        response: { 200: Series, ...problems }
      }
    },
    async (request, reply) => {
      const { itemCode } = request.params
      const { frequency = 'day', from = '', to = '' } = request.query
      checkRange(request.query)
      // The series ends yesterday at the latest, so a day's answer is not the next day's.
      const today = Math.floor(now() / 86_400_000)
      return answers.read(
        request,
        reply,
        NAMESPACE,
        `series:${today}:${frequency}:${from}:${to}:${itemCode}`,
        async () => {
          const series = await seriesOf(tenantOf(request), context.consumption, itemCode, request.query, now())
          if (series.points.length === 0) await requireItem(context, tenantOf(request), itemCode)
          return series
        }
      )
    }
  )

  app.get(
    '/models/list',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Trained models, newest first',
        querystring: ModelQuery,
        response: { 200: ModelList, ...problems }
      }
    },
    async (request, reply) => {
      const { limit = 50, cursor, ...filter } = request.query
      const purpose = `models ${JSON.stringify(filter)}`
      const [after] = decodeCursor(purpose, cursor, ['string']) ?? []
      return answers.read(request, reply, NAMESPACE, `${purpose} ${limit} ${after ?? ''}`, async () => {
        const rows = await forecastsOf(tenantOf(request)).models(
          filter,
          after === undefined ? undefined : String(after),
          limit + 1
        )
        return pageOf(
          rows,
          limit,
          (last) => encodeCursor(purpose, [last.id]),
          (row) => row
        )
      })
    }
  )

  app.get(
    '/models/:modelId',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'One model: members, weights, accuracy',
        params: ModelParams,
        response: { 200: ModelDetail, ...problems }
      }
    },
    async (request, reply) => {
      const { modelId } = request.params
      return answers.read(request, reply, NAMESPACE, `model:${modelId}`, async () => {
        const row = await forecastsOf(tenantOf(request)).model(modelId)
        if (row === undefined) throw new ModelNotFound({ modelId })
        const artifact: Artifact = JSON.parse(row.artifact)
        return { id: row.id, version: row.version, status: row.status, ...artifact }
      })
    }
  )
  await app.register(learningRoutes, { ...context, prefix: '' })
  await app.register(calendarRoutes, { ...context, prefix: '' })
}
