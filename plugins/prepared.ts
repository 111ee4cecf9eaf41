import { type CompiledQuery, type Kysely, PostgresAdapter, type RawBuilder, type RootOperationNode, sql } from 'kysely'

/** Stands for a value while a query is compiled. */
class Slot {
  constructor(readonly name: PropertyKey) {}
}
export type Slots<Values> = <Name extends keyof Values>(name: Name) => RawBuilder<Values[Name]>
export const slots =
  <Values>(): Slots<Values> =>
  (name) =>
    sql`${new Slot(name)}`

const names = new WeakMap<RootOperationNode, string>()
let named = 0
/** What a connection may keep a statement under: undefined for one that was not made by `prepared`. */
export const statementName = ({ query }: CompiledQuery): string | undefined => names.get(query)

/** A query builder, or a text of `sql`. */
interface Unbuilt<Row> {
  compile(db: Kysely<unknown>): CompiledQuery<Row>
}
export type Prepared<Values, Row> = (db: Kysely<unknown>, values: Values) => CompiledQuery<Row>

/**
 * A query whose text does not depend on its values: built and compiled once for each database, which costs several times what
 * SQLite needs to run it. On PostgreSQL a connection keeps its plan too, so it names its columns: the result of a statement that is kept may
 * not change. `db.executeQuery` runs what this answers.
 * @param options.planned `for its values`: where the best plan depends on them, PostgreSQL plans each time, which takes a millisecond.
 * A plan that is kept is, from the sixth time on, one for any values.
 */
export function prepared<Values extends object, Row>(
  build: (db: Kysely<unknown>, slot: Slots<Values>) => Unbuilt<Row>,
  { planned }: { planned: 'once' | 'for its values' } = { planned: 'once' }
): Prepared<Values, Row> {
  const compiled = new WeakMap<object, CompiledQuery<Row>>()
  const slot = slots<Values>()
  return (db, values) => {
    const key = textKey(db)
    const known = compiled.get(key)
    if (known !== undefined) return withValues(known, values)
    const query = build(db, slot).compile(db)
    compiled.set(key, query)
    if (planned === 'once') names.set(query.query, `prepared_${++named}`)
    return withValues(query, values)
  }
}

const withValues = <Values extends object, Row>(query: CompiledQuery<Row>, values: Values): CompiledQuery<Row> => ({
  ...query,
  parameters: query.parameters.map((parameter) =>
    parameter instanceof Slot ? Reflect.get(values, parameter.name) : parameter
  )
})

/** What decides a query's text: on PostgreSQL the plugin that puts tables into the tenant's schema, which a transaction shares. */
function textKey(db: Kysely<unknown>): object {
  const { plugins, adapter } = db.getExecutor()
  return (adapter instanceof PostgresAdapter ? plugins.at(-1) : undefined) ?? adapter
}
