import t from 'tap'
import { contest, forecast } from '../modules/forecasting/models/index.js'
import { DEFAULT_MEMBERS, LEVEL_MEMBERS } from '../modules/forecasting/models/pool.js'
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
