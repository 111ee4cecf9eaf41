import type { PersonalData, Tenant } from '../../plugins/contracts.js'
import { Event, Regressor } from '../../schemas/calendar.js'
import { Feedback, NewFeedback, Override } from '../../schemas/forecasting.js'
import { JUDGEMENT } from '../../schemas/personal.js'
import type { CalendarTables } from './calendar-store.js'
import type { PeopleTables } from './people-store.js'

const tables = ({ db }: Pick<Tenant, 'db'>) => db.withTables<PeopleTables & CalendarTables>()
const at = (ms: number) => new Date(ms).toISOString()

export const personalData: PersonalData = {
  holder: 'forecasting',
  schemas: { Override, NewFeedback, Feedback, Event, Regressor },
  columns: {
    'forecast_overrides.created_by': JUDGEMENT,
    'forecast_feedback.created_by': JUDGEMENT,
    'forecast_feedback.comment': JUDGEMENT,
    'forecast_events.created_by': JUDGEMENT,
    'forecast_regressors.created_by': JUDGEMENT
  },
  sections: {
    forecastOverrides: async function* (tenant, subject) {
      const rows = await tables(tenant)
        .selectFrom('forecast_overrides')
        .selectAll()
        .where('created_by', '=', subject)
        .orderBy('id')
        .execute()
      for (const { id, item_code, from_day, to_day, quantity_per_day, factor, reason, created_at } of rows)
        yield {
          ...{ id, itemCode: item_code, from: from_day, expiresOn: to_day, factor, reason },
          quantityPerDay: quantity_per_day,
          createdAt: at(created_at)
        }
    },
    calendar: async function* (tenant, subject) {
      for (const table of ['forecast_events', 'forecast_regressors'] as const) {
        const rows = await tables(tenant)
          .selectFrom(table)
          .select(['id', 'name', 'created_at'])
          .where('created_by', '=', subject)
          .orderBy('id')
          .execute()
        for (const { id, name, created_at } of rows)
          yield { kind: table === 'forecast_events' ? 'event' : 'regressor', id, name, createdAt: at(created_at) }
      }
    },
    forecastFeedback: async function* (tenant, subject) {
      const rows = await tables(tenant)
        .selectFrom('forecast_feedback')
        .selectAll()
        .where('created_by', '=', subject)
        .orderBy('id')
        .execute()
      for (const { id, item_code, day, subject: about, verdict, comment, created_at } of rows)
        yield { id, itemCode: item_code, date: day, subject: about, verdict, comment, createdAt: at(created_at) }
    }
  },
  erase: async (tx, subject) => {
    const { numUpdatedRows } = await tables(tx)
      .updateTable('forecast_feedback')
      .set({ comment: null })
      .where('created_by', '=', subject)
      .where('comment', 'is not', null)
      .executeTakeFirst()
    tx.invalidate('forecasting')
    return Number(numUpdatedRows)
  }
}
