import { setTimeout as sleep } from 'node:timers/promises'
import { Counter, Gauge, Histogram, Registry, Summary } from 'prom-client'
import t from 'tap'
import { exposition, openRegistry } from '../plugins/metrics/exposition.js'
import { kept } from '../plugins/metrics/kept-figures.js'

/** How metrics are told: what they are is in the tests of those who count. */

t.test('what a scrape says is what prom-client would', async (t) => {
  const open = openRegistry()
  const registers = [open]
  const help = 'A \\ in it,\nand two lines.'
  const counter = new Counter({ name: 'things_total', help, labelNames: ['kind', 'code'], registers })
  counter.inc({ kind: 'a "b"\\c\nd', code: 200 }, 3)
  counter.inc({ kind: 'plain' })
  const gauge = new Gauge({ name: 'level', help, registers })
  new Gauge({ name: 'depth', help, labelNames: ['side'], registers }).set({ side: 'left' }, Number.NEGATIVE_INFINITY)
  gauge.set(Number.POSITIVE_INFINITY)
  new Summary({ name: 'sizes', help, registers }).observe(4)
  const names = { name: 'seconds', help, labelNames: ['route'], buckets: [0.1, 1] }
  const histogram = new Histogram<string>({ ...names, enableExemplars: true, registers })
  histogram.observe({ labels: { route: '/a' }, value: 0.5, exemplarLabels: { trace_id: 'f00d' } })
  histogram.observe({ labels: { route: '/b' }, value: 2, exemplarLabels: {} })

  const told = await exposition(open, true)
  const plain = await exposition(open, false)
  t.match(told, /^seconds_bucket\{le="1",route="\/a"\} 1 # \{trace_id="f00d"\} 0\.5 \d+/m)
  t.notMatch(plain, /f00d/)
  const closed = new Registry()
  for (const { name } of open.getMetricsAsArray()) {
    const metric = open.getSingleMetric(name)
    if (metric !== undefined) closed.registerMetric(metric)
  }
  t.equal(plain, (await closed.metrics()).replaceAll('\n\n', '\n'))
  // Last: it takes the end off the counter's name.
  t.equal(told, await open.metrics())
})

t.test('what is watched is found again though nobody asks, and not told when it hangs', async (t) => {
  // Neither what is watched nor who waits for it keeps a process alive.
  const alive = setInterval(() => {}, 1_000)
  t.teardown(() => clearInterval(alive))
  const found: ((value: number) => void)[] = []
  const watched = kept(() => new Promise<number>((tell) => void found.push(tell)), {
    freshMilliseconds: 1_000,
    everyMilliseconds: 500
  })
  const first = watched()
  found[0]?.(1)
  t.equal(await first, 1)
  while (found.length < 2) await sleep(2)
  found[1]?.(0)
  await sleep(2)
  t.equal(await watched(), 0)
  while (found.length < 3) await sleep(2)
  await sleep(1_700)
  t.equal(await watched(), undefined)
})
