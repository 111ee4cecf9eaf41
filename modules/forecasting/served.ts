import { type Kysely, sql } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import { prepared } from '../../plugins/contracts.js'
import type { Frequency } from '../../schemas/forecasting.js'
import type { ForecastingTables } from './store.js'

/** What forecasts are read for most: the answer of one item, and the mean demand of many. */

const answers = (root: Kysely<unknown>) =>
  root.withTables<ForecastingTables>().selectFrom('ai_forecasts').select('answer')

const readAnswer = prepared<{ itemCode: string }, { answer: string }>((root, slot) =>
  answers(root).where('item_code', '=', slot('itemCode')).orderBy('frequency').limit(1)
)
const readAnswerOf = prepared<{ itemCode: string; frequency: Frequency }, { answer: string }>((root, slot) =>
  answers(root).where('item_code', '=', slot('itemCode')).where('frequency', '=', slot('frequency'))
)

/** The stored answer, ready to send; without a frequency the daily one, else the weekly. */
export async function answerOf(
  root: Kysely<unknown>,
  itemCode: string,
  frequency: Frequency | undefined
): Promise<string | undefined> {
  const query = frequency === undefined ? readAnswer(root, { itemCode }) : readAnswerOf(root, { itemCode, frequency })
  return (await root.executeQuery(query)).rows[0]?.answer
}

/** Pairs in one text: as rows, what the driver makes of them costs several times the query. */
const readDailyMeans = prepared<{ codes: string }, { means: string | null }>((root, slot) => {
  // One parameter: binding each code apart costs more than the answer.
  const asked = isPostgres(root)
    ? sql`jsonb_array_elements_text(${slot('codes')}::jsonb) as j(value)`
    : sql`json_each(${slot('codes')}) as j`
  const pairs = isPostgres(root)
    ? sql`json_agg(json_build_array(item_code, mean))::text`
    : sql`json_group_array(json_array(item_code, mean))`
  // Materialized, or the mean is looked for once to see whether there is one and once to show it.
  return sql`
    with found as materialized (select j.value as item_code, (select daily_mean from ${sql.table('ai_forecasts')} as f
      where f.item_code = j.value order by f.frequency limit 1) as mean from ${asked})
    select ${pairs} as means from found where mean is not null`
})

/** Mean forecast per day: the weekly one where no daily one was trained. */
export async function dailyMeans(root: Kysely<unknown>, itemCodes: readonly string[]): Promise<Map<string, number>> {
  const { rows } = await root.executeQuery(readDailyMeans(root, { codes: JSON.stringify(itemCodes) }))
  const means: [string, number][] = JSON.parse(rows[0]?.means ?? '[]')
  return new Map(means)
}
