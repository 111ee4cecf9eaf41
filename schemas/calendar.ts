import { type Static, Type } from 'typebox'
import { Closed, Code, Day, Instant, List, Name, Nullable, PageQuery, Text, Uuid } from './common.js'
import { JUDGEMENT, personal } from './personal.js'

/** What is known beforehand: days on which something happens, and figures (guests, prices, degrees) for each day. */

const Weekday = Type.Integer({ minimum: 1, maximum: 7, description: '1 = Monday' })
const Month = Type.Integer({ minimum: 1, maximum: 12 })
export const YearlyRule = Type.Union(
  [
    Closed({ month: Month, day: Type.Integer({ minimum: 1, maximum: 31 }) }),
    Closed({
      month: Month,
      weekday: Weekday,
      nth: Type.Union([Type.Integer({ minimum: 1, maximum: 5 }), Type.Literal(-1)], { description: '−1: the last' })
    }),
    Closed({
      easterOffsetDays: Type.Integer({ minimum: -120, maximum: 120, description: 'Days from Easter Sunday' })
    })
  ],
  { description: 'A date, the nth weekday of a month, or days from Easter (Gregorian)' }
)
export type YearlyRule = Static<typeof YearlyRule>

const scope = {
  category: Type.Optional(Nullable(Name)),
  itemCode: Type.Optional(Nullable(Code))
}
const WindowDays = Type.Integer({ minimum: 0, maximum: 30 })
export const NewEvent = Closed(
  {
    name: Name,
    kind: Type.Optional(
      Type.Union([Type.Literal('event'), Type.Literal('closure')], {
        description: 'event: its effect is learnt; closure: nothing is used, and past days are no guide'
      })
    ),
    dates: Type.Optional(Type.Array(Day, { minItems: 1, maxItems: 1000, uniqueItems: true })),
    yearly: Type.Optional(YearlyRule),
    daysBefore: Type.Optional(WindowDays),
    daysAfter: Type.Optional(WindowDays),
    ...scope
  },
  'One of dates and yearly; for everything, or for one category or item'
)
export type NewEvent = Static<typeof NewEvent>
export const Event = Closed({
  id: Uuid,
  name: Type.String(),
  kind: Type.Union([Type.Literal('event'), Type.Literal('closure')]),
  dates: Nullable(Type.Array(Day)),
  yearly: Nullable(YearlyRule),
  daysBefore: Type.Integer(),
  daysAfter: Type.Integer(),
  category: Nullable(Type.String()),
  itemCode: Nullable(Type.String()),
  upcoming: Type.Array(Day, { description: 'Within a year, at most five, without the days around' }),
  createdBy: Nullable(personal(Type.String(), JUDGEMENT)),
  createdAt: Instant,
  updatedAt: Instant
})
export type Event = Static<typeof Event>
export const EventParams = Closed({ eventId: Uuid })
export const CalendarQuery = Closed(PageQuery)
export const EventList = List(Event)

export const NewRegressor = Closed({ name: Name, description: Type.Optional(Text), ...scope })
export type NewRegressor = Static<typeof NewRegressor>
export const Regressor = Closed({
  id: Uuid,
  name: Type.String(),
  description: Nullable(Type.String()),
  category: Nullable(Type.String()),
  itemCode: Nullable(Type.String()),
  from: Nullable(Day),
  to: Nullable(Day),
  missing: Type.Integer({ description: 'Days between from and to without a value' }),
  createdBy: Nullable(personal(Type.String(), JUDGEMENT)),
  createdAt: Instant
})
export type Regressor = Static<typeof Regressor>
export const RegressorParams = Closed({ regressorId: Uuid })
export const RegressorList = List(Regressor)
const RegressorValue = Closed({ date: Day, value: Type.Number({ minimum: -1e9, maximum: 1e9 }) })
export const RegressorValues = Closed(
  { values: Type.Array(RegressorValue, { minItems: 1, maxItems: 5000 }) },
  'Days named here are set; others stay as they are'
)
export type RegressorValues = Static<typeof RegressorValues>
export const RegressorValuesQuery = Closed({ ...PageQuery, from: Type.Optional(Day), to: Type.Optional(Day) })
export const RegressorValueList = List(RegressorValue)

/** What a factor does to a forecast. */
export const FactorEffect = Closed({
  name: Type.String(),
  part: Type.Union(
    [
      Type.Literal('day'),
      Type.Literal('before'),
      Type.Literal('after'),
      Type.Literal('closure'),
      Type.Literal('figure')
    ],
    { description: 'The days themselves, those before or after them, days that are closed, or a figure per day' }
  ),
  used: Type.Boolean(),
  reason: Nullable(Type.String({ description: 'Why it is not used: not-seen, no-gain, incomplete (with the day)' })),
  effectPercent: Nullable(
    Type.Number({ description: 'Change of demand; for a figure, by one standard deviation of it more than around' })
  ),
  occurrences: Type.Integer({ description: 'Periods it was learnt from' }),
  dates: Type.Array(Day, { description: 'Periods of the forecast that it touches; none for a figure' })
})
export type FactorEffect = Static<typeof FactorEffect>
