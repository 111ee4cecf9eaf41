import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { v7 as uuid } from 'uuid'
import {
  access,
  CursorInvalid,
  decodeCursor,
  encodeCursor,
  pageOf,
  type Tenant,
  type Transaction
} from '../../plugins/contracts.js'
import * as schemas from '../../schemas/calendar.js'
import { problems } from '../../schemas/common.js'
import { occurrences } from './calendar.js'
import { createCalendarStore, type EventRow, type RegressorRow, toEvent } from './calendar-store.js'
import { type Context, NAMESPACE, requireItem, subjectOf, tenantOf } from './context.js'
import { EventDates, EventNever, EventNotFound, RangeInvalid, RegressorExists, RegressorNotFound } from './errors.js'
import { createLearningStore } from './learning-store.js'
import { CALENDAR_RUN } from './nightly.js'
import { dayNumber, dayText, MILLISECONDS_PER_DAY } from './series.js'

const tags = ['forecasting']
const YEAR_DAYS = 366
/** Leap days come every four years, and skip one at most centuries. */
const EVERY_RULE_DAYS = 9 * YEAR_DAYS
const UPCOMING_MAX = 5

const storeOf = (tenant: Tenant) => createCalendarStore(tenant.db, tenant.dialect)
const within = (tenant: Tenant, tx: Transaction) => createCalendarStore(tx.db, tenant.dialect)
const instant = (at: number) => new Date(at).toISOString()

function shownEvent(row: EventRow, now: number): schemas.Event {
  const { category, itemCode, ...event } = toEvent(row)
  const today = Math.floor(now / MILLISECONDS_PER_DAY)
  return {
    ...event,
    category,
    itemCode,
    upcoming: occurrences(event, today, today + YEAR_DAYS)
      .slice(0, UPCOMING_MAX)
      .map(dayText),
    createdBy: row.created_by,
    createdAt: instant(row.created_at),
    updatedAt: instant(row.updated_at)
  }
}

/** What is known beforehand has changed: cached answers go, and a training is asked for. */
async function changed(tenant: Tenant, tx: Transaction): Promise<void> {
  await createLearningStore(tx.db, tenant.dialect).requestRun(CALENDAR_RUN)
  tx.invalidate(NAMESPACE)
}

const eventRoutes: FastifyPluginAsyncTypebox<Context> = async (app, context) => {
  const { answers, now } = context
  const find = async (tenant: Tenant, db: Transaction['db'], eventId: string, lock = false) => {
    const row = await createCalendarStore(db, tenant.dialect).event(eventId, lock)
    if (row === undefined) throw new EventNotFound({ eventId })
    return row
  }
  /** @throws FORECAST_EVENT_DATES, FORECAST_EVENT_NEVER, FORECAST_ITEM_NOT_FOUND */
  const check = async (tenant: Tenant, { dates, yearly, itemCode }: schemas.NewEvent) => {
    if ((dates === undefined) === (yearly === undefined)) {
      throw new EventDates({ given: dates === undefined ? [] : ['dates', 'yearly'] })
    }
    if (yearly !== undefined && occurrences({ dates: null, yearly }, 0, EVERY_RULE_DAYS).length === 0) {
      throw new EventNever({})
    }
    if (itemCode != null) await requireItem(context, tenant, itemCode)
  }
  const fieldsOf = ({
    name,
    kind = 'event',
    dates,
    yearly,
    category = null,
    itemCode = null,
    ...window
  }: schemas.NewEvent) => ({
    name,
    kind,
    dates: dates === undefined ? null : JSON.stringify([...dates].sort()),
    yearly: yearly === undefined ? null : JSON.stringify(yearly),
    days_before: window.daysBefore ?? 0,
    days_after: window.daysAfter ?? 0,
    category,
    item_code: itemCode,
    updated_at: now()
  })
  const one = { tags, params: schemas.EventParams, response: { 200: schemas.Event, ...problems } }

  app.post(
    '/events',
    {
      config: access('manager'),
      schema: {
        tags,
        summary: 'Days known beforehand (holidays, promotions, closures); forecasts are trained again with them',
        body: schemas.NewEvent,
        response: { 201: schemas.Event, ...problems }
      }
    },
    async (request, reply) => {
      const tenant = tenantOf(request)
      await check(tenant, request.body)
      return answers.write(request, reply, 201, async (tx) => {
        const row = { id: uuid(), created_by: subjectOf(request), created_at: now(), ...fieldsOf(request.body) }
        await within(tenant, tx).addEvent(row)
        tx.audit({ action: 'event.create', object: { type: 'event', id: row.id }, after: shownEvent(row, now()) })
        await changed(tenant, tx)
        return shownEvent(row, now())
      })
    }
  )

  app.get(
    '/events',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Days known beforehand, newest entry first',
        querystring: schemas.CalendarQuery,
        response: { 200: schemas.EventList, ...problems }
      }
    },
    async (request, reply) => {
      const { limit = 50, cursor } = request.query
      const [after] = decodeCursor('events', cursor, ['string']) ?? []
      const today = Math.floor(now() / MILLISECONDS_PER_DAY)
      return answers.read(request, reply, NAMESPACE, `events:${today}:${limit}:${after ?? ''}`, async () =>
        pageOf(
          await storeOf(tenantOf(request)).events(after === undefined ? undefined : String(after), limit + 1),
          limit,
          (last) => encodeCursor('events', [last.id]),
          (row) => shownEvent(row, now())
        )
      )
    }
  )

  app.get(
    '/events/:eventId',
    { config: access('viewer'), schema: { ...one, summary: 'One entry of the calendar' } },
    async (request, reply) => {
      const { eventId } = request.params
      const today = Math.floor(now() / MILLISECONDS_PER_DAY)
      return answers.read(request, reply, NAMESPACE, `event:${today}:${eventId}`, async () =>
        shownEvent(await find(tenantOf(request), tenantOf(request).db, eventId), now())
      )
    }
  )

  app.put(
    '/events/:eventId',
    {
      config: access('manager'),
      schema: { ...one, summary: 'Replace an entry of the calendar', body: schemas.NewEvent }
    },
    async (request, reply) => {
      const tenant = tenantOf(request)
      await check(tenant, request.body)
      return answers.write(request, reply, 200, async (tx) => {
        const before = await find(tenant, tx.db, request.params.eventId, true)
        answers.requireMatch(request, reply, shownEvent(before, now()))
        const row = { ...before, ...fieldsOf(request.body) }
        await within(tenant, tx).replaceEvent(row)
        tx.audit({
          action: 'event.update',
          object: { type: 'event', id: row.id },
          before: shownEvent(before, now()),
          after: shownEvent(row, now())
        })
        await changed(tenant, tx)
        return shownEvent(row, now())
      })
    }
  )

  app.delete(
    '/events/:eventId',
    { config: access('manager'), schema: { ...one, summary: 'Remove an entry of the calendar' } },
    async (request, reply) => {
      const tenant = tenantOf(request)
      return answers.write(request, reply, 200, async (tx) => {
        const row = await find(tenant, tx.db, request.params.eventId, true)
        answers.requireMatch(request, reply, shownEvent(row, now()))
        await within(tenant, tx).removeEvent(row.id)
        tx.audit({ action: 'event.delete', object: { type: 'event', id: row.id }, before: shownEvent(row, now()) })
        await changed(tenant, tx)
        return shownEvent(row, now())
      })
    }
  )
}

type Extent = { from: string; to: string; days: number } | undefined

const shownRegressor = (row: RegressorRow, extent: Extent): schemas.Regressor => ({
  id: row.id,
  name: row.name,
  description: row.description,
  category: row.category,
  itemCode: row.item_code,
  from: extent?.from ?? null,
  to: extent?.to ?? null,
  missing: extent === undefined ? 0 : dayNumber(extent.to) - dayNumber(extent.from) + 1 - extent.days,
  createdBy: row.created_by,
  createdAt: instant(row.created_at)
})

const regressorRoutes: FastifyPluginAsyncTypebox<Context> = async (app, context) => {
  const { answers, now } = context
  const find = async (tenant: Tenant, db: Transaction['db'], regressorId: string) => {
    const store = createCalendarStore(db, tenant.dialect)
    const row = await store.regressor(regressorId)
    if (row === undefined) throw new RegressorNotFound({ regressor: regressorId })
    return shownRegressor(row, (await store.extents([regressorId])).get(regressorId))
  }
  const one = { tags, params: schemas.RegressorParams, response: { 200: schemas.Regressor, ...problems } }

  app.post(
    '/regressors',
    {
      config: access('manager'),
      schema: {
        tags,
        summary: 'A figure known for each day beforehand (guests, prices, degrees)',
        body: schemas.NewRegressor,
        response: { 201: schemas.Regressor, ...problems }
      }
    },
    async (request, reply) => {
      const tenant = tenantOf(request)
      const { name, description = null, category = null, itemCode = null } = request.body
      if (itemCode !== null) await requireItem(context, tenant, itemCode)
      return answers.write(request, reply, 201, async (tx) => {
        const row = { id: uuid(), name, description, category, item_code: itemCode }
        const whole = { ...row, created_by: subjectOf(request), created_at: now() }
        if (!(await within(tenant, tx).addRegressor(whole))) throw new RegressorExists({ name })
        tx.audit({ action: 'regressor.create', object: { type: 'regressor', id: row.id }, after: row })
        tx.invalidate(NAMESPACE)
        return shownRegressor(whole, undefined)
      })
    }
  )

  app.get(
    '/regressors',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Figures known beforehand, newest first',
        querystring: schemas.CalendarQuery,
        response: { 200: schemas.RegressorList, ...problems }
      }
    },
    async (request, reply) => {
      const { limit = 50, cursor } = request.query
      const [after] = decodeCursor('regressors', cursor, ['string']) ?? []
      return answers.read(request, reply, NAMESPACE, `regressors:${limit}:${after ?? ''}`, async () => {
        const store = storeOf(tenantOf(request))
        const rows = await store.regressors(after === undefined ? undefined : String(after), limit + 1)
        const extents = await store.extents(rows.map(({ id }) => id))
        return pageOf(
          rows,
          limit,
          (last) => encodeCursor('regressors', [last.id]),
          (row) => shownRegressor(row, extents.get(row.id))
        )
      })
    }
  )

  app.get(
    '/regressors/:regressorId',
    { config: access('viewer'), schema: { ...one, summary: 'One figure, and for which days it is known' } },
    async (request, reply) => {
      const { regressorId } = request.params
      return answers.read(request, reply, NAMESPACE, `regressor:${regressorId}`, () =>
        find(tenantOf(request), tenantOf(request).db, regressorId)
      )
    }
  )

  app.delete(
    '/regressors/:regressorId',
    { config: access('manager'), schema: { ...one, summary: 'Remove a figure with all its values' } },
    async (request, reply) => {
      const tenant = tenantOf(request)
      return answers.write(request, reply, 200, async (tx) => {
        const shown = await find(tenant, tx.db, request.params.regressorId)
        answers.requireMatch(request, reply, shown)
        await within(tenant, tx).removeRegressor(shown.id)
        tx.audit({ action: 'regressor.delete', object: { type: 'regressor', id: shown.id }, before: shown })
        await changed(tenant, tx)
        return shown
      })
    }
  )

  app.put(
    '/regressors/:regressorId/values',
    {
      config: access('manager'),
      schema: {
        ...one,
        summary: 'Set the values of days, past and to come; forecasts are trained again with them',
        body: schemas.RegressorValues
      }
    },
    async (request, reply) => {
      const tenant = tenantOf(request)
      const { regressorId } = request.params
      return answers.write(request, reply, 200, async (tx) => {
        await find(tenant, tx.db, regressorId)
        await within(tenant, tx).setValues(regressorId, request.body.values)
        await changed(tenant, tx)
        return find(tenant, tx.db, regressorId)
      })
    }
  )

  app.get(
    '/regressors/:regressorId/values',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'The values of a figure, oldest first',
        params: schemas.RegressorParams,
        querystring: schemas.RegressorValuesQuery,
        response: { 200: schemas.RegressorValueList, ...problems }
      }
    },
    async (request, reply) => {
      const { regressorId } = request.params
      const { limit = 50, cursor, from = '', to = '9999-12-31' } = request.query
      if (from > to) throw new RangeInvalid({ from, to })
      const purpose = `values ${regressorId} ${to}`
      const [after] = decodeCursor(purpose, cursor, ['string']) ?? []
      const start = after === undefined ? from : dayAfter(String(after))
      return answers.read(request, reply, NAMESPACE, `${purpose} ${limit} ${start}`, async () => {
        const tenant = tenantOf(request)
        await find(tenant, tenant.db, regressorId)
        return pageOf(
          await storeOf(tenant).values(regressorId, start, to, limit + 1),
          limit,
          (last) => encodeCursor(purpose, [last.date]),
          (row) => row
        )
      })
    }
  )
}

/** @throws CURSOR_INVALID for the position of a cursor that is none of ours */
function dayAfter(day: string): string {
  if (!/^\d{4}-\d\d-\d\d$/.test(day) || Number.isNaN(dayNumber(day))) throw new CursorInvalid({})
  return dayText(dayNumber(day) + 1)
}

/** What is known beforehand. */
export const calendarRoutes: FastifyPluginAsyncTypebox<Context> = async (app, context) => {
  await app.register(eventRoutes, context)
  await app.register(regressorRoutes, context)
}
