import { type Static, type TSchema, Type } from 'typebox'
import { Value } from 'typebox/value'

/** What is asked of a Prometheus. */

export interface Series {
  readonly labels: Readonly<Record<string, string>>
  /** Seconds since 1970. */
  readonly times: readonly number[]
  readonly values: readonly number[]
}

export interface Prometheus {
  query(expr: string): Promise<Series[]>
  range(expr: string, from: number, to: number, step: number): Promise<Series[]>
  /** How many exemplars of these series there are, by the names of their labels. */
  exemplars(expr: string, from: number, to: number): Promise<Readonly<Record<string, string>>[]>
}

const Labels = Type.Record(Type.String(), Type.String())
const Point = Type.Tuple([Type.Number(), Type.String()])
const Instant = Type.Object({
  data: Type.Object({ result: Type.Array(Type.Object({ metric: Labels, value: Point })) })
})
const Range = Type.Object({
  data: Type.Object({ result: Type.Array(Type.Object({ metric: Labels, values: Type.Array(Point) })) })
})
const Exemplars = Type.Object({
  data: Type.Array(Type.Object({ exemplars: Type.Array(Type.Object({ labels: Labels })) }))
})

const seriesOf = (labels: Record<string, string>, points: readonly (readonly [number, string])[]): Series => ({
  labels,
  times: points.map(([time]) => time),
  values: points.map(([, value]) => Number(value))
})

export function createPrometheus(url: string): Prometheus {
  const ask = async <S extends TSchema>(path: string, query: Record<string, string>, schema: S): Promise<Static<S>> => {
    const answer = await fetch(`${url}/api/v1/${path}?${new URLSearchParams(query)}`)
    const text = await answer.text()
    if (!answer.ok) throw new Error(`Prometheus answers ${answer.status} to ${query.query}: ${text.slice(0, 300)}`)
    return Value.Parse(schema, JSON.parse(text))
  }
  return {
    query: async (expr) => {
      const { data } = await ask('query', { query: expr }, Instant)
      return data.result.map(({ metric, value }) => seriesOf(metric, [value]))
    },
    range: async (expr, from, to, step) => {
      const times = { start: String(from), end: String(to), step: String(step) }
      const { data } = await ask('query_range', { query: expr, ...times }, Range)
      return data.result.map(({ metric, values }) => seriesOf(metric, values))
    },
    exemplars: async (expr, from, to) => {
      const { data } = await ask('query_exemplars', { query: expr, start: String(from), end: String(to) }, Exemplars)
      return data.flatMap(({ exemplars }) => exemplars.map(({ labels }) => labels))
    }
  }
}
