import type { PersonalData } from '../../plugins/contracts.js'
import { type Activity, PERSONAL } from '../../schemas/personal.js'
import type { Register } from '../../schemas/privacy.js'

/** Pure: the register of processing (Art. 30 GDPR), made of what the schemas say of their fields. */
export function registerOf(holders: readonly PersonalData[]): Register {
  const activities = new Map<string, Activity & { fields: string[]; columns: string[] }>()
  const entryOf = (activity: Activity) => {
    const entry = activities.get(activity.activity) ?? { ...activity, fields: [], columns: [] }
    activities.set(activity.activity, entry)
    return entry
  }
  for (const { schemas, columns } of holders) {
    for (const [name, schema] of Object.entries(schemas))
      for (const [path, activity] of marksOf(schema, name)) entryOf(activity).fields.push(path)
    for (const [column, activity] of Object.entries(columns)) entryOf(activity).columns.push(column)
  }
  const retention = holders.flatMap((holder) => holder.retention ?? []).map(({ what, keptFor }) => ({ what, keptFor }))
  return { activities: [...activities.values()], retention }
}

/** Every mark below, with the path of its field. */
export function* marksOf(schema: unknown, path: string): Generator<[string, Activity]> {
  if (typeof schema !== 'object' || schema === null) return
  const entries = new Map(Object.entries(schema))
  const mark: unknown = entries.get(PERSONAL)
  if (isActivity(mark)) yield [path, mark]
  const properties: unknown = entries.get('properties')
  if (typeof properties === 'object' && properties !== null)
    for (const [name, child] of Object.entries(properties)) yield* marksOf(child, `${path}.${name}`)
  for (const keyword of ['anyOf', 'allOf', 'oneOf']) {
    const children: unknown = entries.get(keyword)
    if (Array.isArray(children)) for (const child of children) yield* marksOf(child, path)
  }
  yield* marksOf(entries.get('items'), path)
}

const isActivity = (value: unknown): value is Activity =>
  typeof value === 'object' &&
  value !== null &&
  ['activity', 'purpose', 'basis', 'retention'].every((name) => typeof Reflect.get(value, name) === 'string')
