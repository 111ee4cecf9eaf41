import type { PersonalData, Tenant } from '../../plugins/contracts.js'
import { AcknowledgeRequest, Anomaly, ResolveRequest } from '../../schemas/anomaly.js'
import { JUDGEMENT } from '../../schemas/personal.js'
import type { AnomalyTables } from './store.js'

const tables = ({ db }: Pick<Tenant, 'db'>) => db.withTables<AnomalyTables>()

export const personalData: PersonalData = {
  holder: 'anomaly',
  schemas: { Anomaly, AcknowledgeRequest, ResolveRequest },
  columns: { 'anomalies.handled_by': JUDGEMENT, 'anomalies.note': JUDGEMENT },
  sections: {
    anomaliesHandled: async function* (tenant, subject) {
      const rows = await tables(tenant)
        .selectFrom('anomalies')
        .selectAll()
        .where('handled_by', '=', subject)
        .orderBy('id')
        .execute()
      for (const { id, item_code, day, status, verdict, note, handled_at } of rows)
        yield {
          ...{ id, itemCode: item_code, date: day, status, verdict, note },
          handledAt: handled_at === null ? null : new Date(handled_at).toISOString()
        }
    }
  },
  erase: async (tx, subject) => {
    const { numUpdatedRows } = await tables(tx)
      .updateTable('anomalies')
      .set({ note: null })
      .where('handled_by', '=', subject)
      .where('note', 'is not', null)
      .executeTakeFirst()
    tx.invalidate('anomaly')
    return Number(numUpdatedRows)
  }
}
