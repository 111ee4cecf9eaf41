import { type Static, Type } from 'typebox'
import { Closed } from './common.js'

const figures = {
  hits: Type.Integer({ minimum: 0, description: 'reads answered without the database, since the start' }),
  misses: Type.Integer({ minimum: 0, description: 'reads that went to the database, since the start' }),
  hitRate: Type.Number({ minimum: 0, maximum: 1, description: 'hits / (hits + misses); 0 before the first read' }),
  keys: Type.Integer({ minimum: 0, description: 'answers held in the memory of the process that answers now' }),
  memoryBytes: Type.Integer({ minimum: 0, description: 'their size, compressed forms included' })
}

export const CacheFigures = Closed(figures)

export const CacheStatistics = Closed({
  backend: Type.Union([Type.Literal('redis'), Type.Literal('memory')], {
    description: '`memory` without Redis, and while Redis does not answer'
  }),
  ...figures,
  byNamespace: Type.Record(Type.String(), CacheFigures)
})
export type CacheStatistics = Static<typeof CacheStatistics>
