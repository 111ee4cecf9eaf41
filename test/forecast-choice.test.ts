import t from 'tap'
import { explain } from '../modules/forecasting/explanation.js'
import { contest, forecast, LEVELS } from '../modules/forecasting/models/index.js'
import { DEFAULT_MEMBERS, LEVEL_MEMBERS } from '../modules/forecasting/models/pool.js'
import type { Artifact } from '../schemas/forecasting.js'
import { uniform } from './noise.js'

t.test('selection is honest', async (t) => {
  const noise = uniform(42)
  const seasonal = Float64Array.from(
    { length: 210 },
    (_, i) => 100 + 30 * Math.sin((2 * Math.PI * i) / 7) + 20 * noise()
  )
  const good = forecast({ values: seasonal, frequency: 'day', horizon: 7 })
  t.equal(good.reason, 'combination-beats-baseline')
  t.equal(good.baseline.model, 'seasonal-naive')
  t.ok(good.accuracy.mae < good.baseline.mae && good.seasonalPeriods.includes(7))
  t.ok(good.members.length > 5, 'the weights are shown')
  const steady = forecast({ values: seasonal.map(() => 100 + 40 * noise()), frequency: 'week', horizon: 4 })
  const weight = steady.members.find(({ model }) => model === 'empirical')?.weight ?? 0
  t.ok(weight > 1 / steady.members.length, `noise about a level is drawn to its mean: ${weight}`)
  const repeating = Float64Array.from({ length: 140 }, (_, i) => [5, 9, 2, 40, 7, 7, 30][i % 7]!)
  const exact = forecast({ values: repeating, frequency: 'day', horizon: 7 })
  t.equal(exact.reason, 'baseline-wins', 'nothing beats the repetition of an exact season')
  t.same(Array.from(exact.mean), Array.from(repeating.slice(0, 7)))
  const { baseline, challenger, challengerServes } = contest({ values: repeating, frequency: 'day', horizon: 7 })
  t.same([challengerServes, baseline.accuracy.mae], [false, 0], 'both sides of the choice can be looked at')
  t.ok(challenger !== undefined && challenger.accuracy.mae > 0)
  const named = forecast({ values: seasonal, frequency: 'day', horizon: 7, models: ['ses'] })
  t.same([named.model, named.reason, named.servesBaseline], ['ses', 'named', false])
  const two = forecast({ values: seasonal, frequency: 'day', horizon: 7, models: ['theta', 'ses'] })
  t.same([two.model, two.members.length], ['combination', 2])
})

t.test('a combination that loses serves with a share of the baseline, or not at all', async (t) => {
  const counts = { alone: 0, shared: 0, baseline: 0 }
  for (let seed = 1; seed <= 40; seed++) {
    const noise = uniform(seed)
    let level = 1000
    const values = Float64Array.from({ length: 60 }, () => {
      level += 20 * noise()
      return level
    })
    const asked = { values, frequency: 'week', horizon: 4 } as const
    const served = forecast(asked)
    const whole = served.members.reduce((sum, { weight }) => sum + weight, 0)
    t.ok(Math.abs(whole - 1) < 1e-9, `weights make a whole: ${whole}`)
    // who names the models gets them, whether they are ahead or not
    const alone = forecast({ ...asked, models: DEFAULT_MEMBERS })
    if (served.servesBaseline) {
      counts.baseline++
      t.ok(alone.accuracy.mae >= served.baseline.mae, 'nothing was ahead')
      continue
    }
    t.ok(served.accuracy.mae < served.baseline.mae, 'what serves is ahead out of sample')
    if (alone.accuracy.mae < alone.baseline.mae) {
      counts.alone++
      t.same(served.mean, alone.mean, 'one that is ahead is left as it is')
      continue
    }
    counts.shared++
    const { baseline } = contest(asked)
    const weightOf = (output: typeof served): number =>
      output.members.find(({ model }) => model === baseline.model)?.weight ?? 0
    const share = (weightOf(served) - weightOf(alone)) / (1 - weightOf(alone))
    t.ok(
      [0.25, 0.5].some((one) => Math.abs(share - one) < 1e-9),
      `a quarter or a half: ${share}`
    )
    for (let k = 0; k < served.mean.length; k++) {
      const mixed = (1 - share) * alone.mean[k]! + share * baseline.mean[k]!
      t.ok(Math.abs(served.mean[k]! - mixed) < 1e-9 * mixed, `step ${k}: ${served.mean[k]} is ${mixed}`)
    }
  }
  t.ok(counts.alone > 0 && counts.shared > 0 && counts.baseline > 0, `each was seen: ${JSON.stringify(counts)}`)
})

t.test('of uneven demand with few values only the level is forecast', async (t) => {
  const noise = uniform(9)
  // lumps of very different size, and more and more of them
  const lumps = Float64Array.from({ length: 60 }, (_, i) =>
    noise() > 0.1 ? 0.5 + i * (1 + 40 * (noise() + 0.5) ** 4) : 0.5
  )
  const named = (values: Float64Array) => {
    const { challenger, baseline } = contest({ values, frequency: 'week', horizon: 4 })
    t.not(baseline.demandClass, 'smooth')
    return challenger?.members.map(({ model }) => model) ?? []
  }
  const few = named(lumps.slice(0, 24))
  t.ok(few.length > 1)
  t.same(
    few.filter((model) => !LEVEL_MEMBERS.includes(model)),
    [],
    'no trend, no last value'
  )
  t.ok(
    named(lumps).some((model) => !LEVEL_MEMBERS.includes(model)),
    'with more of them all that apply'
  )
  const smooth = Float64Array.from({ length: 20 }, (_, i) => 100 + 4 * i + 5 * noise())
  const { members, demandClass } = forecast({ values: smooth, frequency: 'week', horizon: 4 })
  t.equal(demandClass, 'smooth')
  t.ok(
    members.some(({ model }) => !LEVEL_MEMBERS.includes(model)),
    'a trend that is plain is followed however short'
  )
})

t.test('one day that is unlike the others does not move the intervals off what always happens', async (t) => {
  for (const odd of [0, 70]) {
    for (const at of [300, 400, 414]) {
      const values = Float64Array.from({ length: 420 }, (_, i) => (i === at ? odd : 7))
      const { mean, intervals, accuracy } = forecast({ values, frequency: 'day', horizon: 28, models: ['naive'] })
      t.ok(mean.every((value) => value === 7))
      for (const coverage of [80, 95] as const) {
        const { lower, upper } = intervals[coverage]
        t.ok(
          lower.every((value, k) => value <= 7 && upper[k]! >= 7),
          `${odd} at ${at}, ${coverage} %: ${lower[0]} to ${upper[0]}`
        )
      }
      t.ok((accuracy.coverage80 ?? 0) > 0.95, `${odd} at ${at}: covered ${accuracy.coverage80}`)
    }
  }
})

t.test('an odd day that was the last is not forecast', async (t) => {
  const cases = [
    { kind: 'never odd before', days: 150, odd: (i: number) => i === 149 },
    { kind: 'odd now and then', days: 150, odd: (i: number) => i % 17 === 13 || i === 149 },
    { kind: 'a short history', days: 30, odd: (i: number) => i === 29 },
    { kind: 'a shorter one', days: 16, odd: (i: number) => i === 15 },
    { kind: 'by days of the week', days: 154, odd: (i: number) => i % 23 === 11 || i === 147, sunday: 4 },
    { kind: 'shut on Sundays', days: 154, odd: (i: number) => i === 152, sunday: 0 }
  ]
  for (const { kind, days, odd, sunday = 5 } of cases) {
    const usual = (i: number) => (i % 7 === 6 ? sunday : 5)
    const values = Float64Array.from({ length: days }, (_, i) => (odd(i) ? 9 : usual(i)))
    for (const horizon of [14, 28, 60]) {
      const { model, mean, servesBaseline, accuracy, baseline } = forecast({ values, frequency: 'day', horizon })
      t.ok(
        mean.every((value, k) => Math.abs(value - usual(days + k)) < 0.15 * (9 - usual(days + k))),
        `${kind}: ${model} ${mean}`
      )
      t.notOk(servesBaseline, kind)
      t.ok(accuracy.mae <= baseline.mae, kind)
    }
  }
  const namedMedian = (values: number[]) => {
    const { reason, mean } = forecast({
      values: Float64Array.from(values),
      frequency: 'day',
      horizon: 2,
      models: ['median']
    })
    return [reason, mean[0]]
  }
  const others = Array.from({ length: 14 }, (_, i) => 6 + i)
  t.same(namedMedian(others.flatMap((other) => [5, other])), ['named', 5], 'half of the values, be they the smallest')
  t.same(namedMedian(others.flatMap(() => [5, 9]))[0], 'not-applicable', 'two are usual, so none is')
  const rising = Float64Array.from({ length: 40 }, (_, i) => i)
  const named = forecast({ values: rising, frequency: 'day', horizon: 2, models: ['median'] })
  t.same([named.reason, named.servesBaseline], ['not-applicable', true], 'no value is usual')
})

t.test('a pause is no usual value', async (t) => {
  const chance = uniform(7)
  let others = 0
  for (let k = 0; k < 120; k++) {
    const values = Float64Array.from({ length: 200 }, () => (chance() < -0.1 ? 50 : 0))
    const { mean, model } = forecast({ values, frequency: 'day', horizon: 28 })
    if (model !== 'combination') others++
    t.ok(Math.max(...mean) > 0, `${k}: ${model} says that nothing is used`)
  }
  t.ok(others > 0, 'some were close')
})

t.test('few values say little of how far demand strays', async (t) => {
  const ends = (values: number[], coverage: 80 | 95 = 80) => {
    const { lower, upper } = forecast({ values: Float64Array.from(values), frequency: 'day', horizon: 28 }).intervals[
      coverage
    ]
    return [lower[0]!, upper[0]!] as const
  }
  // By hand: variance (5 + (0.6 x 5)²) / 1, doubled as the mean is known from one value; 10 % lie beyond 1.2816 deviations.
  const [low, high] = ends([5])
  t.ok(Math.abs(high - (5 + 1.281551566 * Math.sqrt(28))) < 1e-9, String(high))
  t.equal(low, 0)
  for (const values of [[5], [5, 5], [5, 5, 5], [7, 6, 5], [1, 9, 5, 2], [5, 5, 5, 6], [0, 0, 50]]) {
    const [low80, high80] = ends(values)
    const [low95, high95] = ends(values, 95)
    t.ok(
      high80 - low80 > 1 && low95 <= low80 && high95 > high80,
      `${values}: ${low80} to ${high80}, ${low95} to ${high95}`
    )
  }
  const widths = [1, 2, 3, 5, 7].map((n) => {
    const [from, to] = ends(Array(n).fill(5))
    return to - from
  })
  t.same(
    widths,
    [...widths].sort((a, b) => b - a),
    `the more of the same, the narrower: ${widths}`
  )
  t.same(ends(Array(8).fill(5)), [5, 5])

  const { cumulativeQuantiles } = forecast({ values: Float64Array.of(7, 6, 5), frequency: 'day', horizon: 28 })
  const sum = (level: number) => cumulativeQuantiles[LEVELS.indexOf(level)]![27]!
  t.ok(sum(0.9) > 1.3 * sum(0.5) && sum(0.1) < 0.7 * sum(0.5), 'where the mean is wrong it is wrong every day')
})

t.test('what is said of a choice that was none', async (t) => {
  const sentence = (reason: string, locale: 'en' | 'fr', observations: number, leftOut?: string[]) => {
    const unknown = { mape: null, wape: null, mase: null, rmse: null, mae: null, bias: null, coverage: null }
    const accuracy = { ...unknown, coverage95: null, origins: 0 }
    const artifact: Artifact = {
      ...{
        itemCode: 'A',
        model: 'naive',
        members: [{ model: 'naive', weight: 1 }],
        frequency: 'day',
        accuracy,
        reason
      },
      ...{
        baseline: { model: 'naive', ...accuracy },
        servesBaseline: true,
        demandClass: 'smooth',
        seasonalPeriods: []
      },
      ...{ trainedAt: '2026-01-04T00:00:00.000Z', dataFrom: '2026-01-01', dataTo: '2026-01-03', observations },
      ...{ censored: 0, horizon: 28, meanPerDay: 5, ...(leftOut && { leftOut }) },
      structure: {
        ...{ level: 6, trend: -1, period: null, seasonalStrength: 0, seasonalFactors: null, averageInterval: null },
        sizeVariation: null
      }
    }
    return explain({ id: 'v', version: 1, artifact }, undefined, false, locale)
  }
  const short = sentence('too-short', 'en', 3)
  t.equal(short.sentence, 'About 6 a day, steady; the history is too short to compare models, so naive serves.')
  t.same(short.trend, { perPeriod: 0, percentPerWeek: 0 }, 'three days have no trend')
  t.match(sentence('baseline-wins', 'en', 14).sentence, /falling by 117 % a week; nothing beat naive/)
  t.match(sentence('usual-value', 'en', 20).sentence, /; what is usual serves, as nothing did better\./)
  t.match(sentence('usual-value', 'fr', 20).sentence, /\u202f; l’habituel sert, car rien n’a fait mieux\./)
  t.match(
    sentence('not-applicable', 'en', 20).sentence,
    /; the model asked for does not apply to this history, so naive/
  )
  t.match(sentence('not-applicable', 'fr', 20).sentence, /; le modèle demandé ne s’applique pas à cet historique/)
  t.match(sentence('constant', 'en', 20).sentence, /use was the same every time, so naive serves/)
  t.match(sentence('all-zero', 'fr', 20).sentence, /\u202f; rien n’a été consommé, naive sert donc/)
  t.match(
    sentence('baseline-wins', 'en', 20, ['2026-01-02']).sentence,
    /; 2026-01-02 is so far beyond all others that it is left out as a slip\.$/
  )
})

t.test('no forecast follows a slip', async (t) => {
  const noise = uniform(5)
  const year = Float64Array.from({ length: 365 }, () => Math.round(4 + 3 * noise()))
  const slipped = year.slice()
  slipped[300] = 1_000_000
  const ask = (values: Float64Array, missing?: Uint8Array) =>
    forecast({ values, frequency: 'day', horizon: 28, ...(missing && { missing }) })
  const unknown = new Uint8Array(365)
  unknown[300] = 1
  const { slips, ...rest } = ask(slipped)
  t.same(slips, [300])
  t.same(rest, ask(slipped, unknown), 'as if the day were not known')
  t.ok(rest.mean.every((value) => value < 10))
  t.equal(ask(year).slips, undefined)
  const large = year.slice()
  large[300] = 800
  t.equal(ask(large).slips, undefined, 'a large order is an order')
  const grown = year.map((value, i) => (i < 360 ? value : 1_000_000))
  t.equal(ask(grown).slips, undefined, 'what goes on is what demand has become')
  t.equal(ask(slipped.slice(295, 304)).slips, undefined, 'a few uses do not tell what is usual')
})
