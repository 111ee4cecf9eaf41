import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { Registry } from 'prom-client'
import t, { type Test } from 'tap'
import { createCompute } from '../plugins/compute/index.js'
import { patience } from './patience.js'

const until = patience({ seconds: 30 })
const COMPUTE = new URL('../plugins/compute/index.js', import.meta.url)

/** Worker files by their text. */
function files(t: Test) {
  const folder = t.testdir()
  return (name: string, text: string) => {
    writeFileSync(join(folder, name), text)
    return pathToFileURL(join(folder, name))
  }
}

/** Ended processes that nobody has asked about yet count as ended. */
function lives(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return process.platform !== 'linux' || !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false
  }
}

t.test('threads that end, die, are killed, and the pool that goes on', async (t) => {
  const file = files(t)
  const double = file('double.mjs', 'export default ({ n }) => ({ doubled: n * 2 })')
  const exits = file('exits.mjs', 'export default () => process.exit(3)')
  const throws = file('throws.mjs', "export default () => { throw new RangeError('too far') }")
  const eats = file(
    'eats.mjs',
    'export default () => { const all = []; for (;;) all.push(new Array(100_000).fill({})) }'
  )
  const spins = file('spins.mjs', 'export default () => { for (;;); }')

  const compute = createCompute({ threads: 1, memoryMegabytes: 64, registry: new Registry() })
  t.same(await compute.run(double, { n: 21 }), { doubled: 42 })
  await t.rejects(compute.run(throws, {}), { name: 'RangeError', message: 'too far' })
  // What waits behind a thread that dies must still run.
  const results = await Promise.allSettled([
    compute.run(exits, {}),
    compute.run(double, { n: 1 }),
    compute.run(eats, {}),
    compute.run(double, { n: 2 })
  ])
  t.match(results, [
    { status: 'rejected', reason: { code: 'COMPUTE_THREAD_LOST' } },
    { status: 'fulfilled', value: { doubled: 2 } },
    { status: 'rejected', reason: { code: 'COMPUTE_MEMORY_EXCEEDED', params: { memoryMegabytes: 64 } } },
    { status: 'fulfilled', value: { doubled: 4 } }
  ])

  const [spin, queued, before] = [new AbortController(), new AbortController(), AbortSignal.abort()]
  const spinning = compute.run(spins, {}, { signal: spin.signal })
  const waiting = compute.run(double, { n: 1 }, { signal: queued.signal })
  const next = compute.run(double, { n: 3 })
  queued.abort()
  await t.rejects(waiting, { name: 'AbortError' }, 'one that waits ends at once')
  await t.rejects(compute.run(double, { n: 1 }, { signal: before }), { name: 'AbortError' })
  await sleep(100)
  spin.abort()
  await t.rejects(spinning, { name: 'AbortError' })
  t.same(await next, { doubled: 6 })

  const last = compute.run(spins, {})
  await sleep(100)
  await Promise.all([t.rejects(last, { code: 'COMPUTE_THREAD_LOST' }), compute.close()])
  await t.rejects(compute.run(double, { n: 1 }), { code: 'COMPUTE_THREAD_LOST' })
  await createCompute({ threads: 1, registry: new Registry() }).close()
})

t.test('the process of the threads', async (t) => {
  const file = files(t)
  const about = file('about.mjs', 'export default () => ({ pid: process.pid, names: Object.keys(process.env) })')
  const registry = new Registry()
  const compute = createCompute({ threads: 1, registry, idleMilliseconds: 100 })
  t.teardown(() => compute.close())
  process.env.JWT_SECRET = 'a secret of the service'
  t.teardown(() => delete process.env.JWT_SECRET)
  const run = () => compute.run<object, { pid: number; names: string[] }>(about, {})
  const bytes = () => registry.getSingleMetric('compute_process_resident_memory_bytes')?.get()
  const seconds = () => registry.getSingleMetric('compute_process_cpu_seconds_total')?.get()

  const { pid, names } = await run()
  t.not(pid, process.pid)
  t.notOk(names.includes('JWT_SECRET'), 'it is told no secrets')
  t.ok(Number((await bytes())?.values[0]?.value) > 2 ** 20)
  const used = Number((await seconds())?.values[0]?.value)
  t.ok(used > 0)
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.kill(pid, signal)
  t.equal((await run()).pid, pid, 'a signal to all of a service is its parent’s affair')

  await t.test('leaves everything to others', { skip: process.platform !== 'linux' && 'not Linux' }, async (t) => {
    const niceness = readdirSync(`/proc/${pid}/task`).map((thread) => {
      const stat = readFileSync(`/proc/${pid}/task/${thread}/stat`, 'utf8')
      return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[16])
    })
    t.same(new Set(niceness), new Set([19]))
    t.equal(readFileSync(`/proc/${pid}/oom_score_adj`, 'utf8').trim(), '500')
  })

  await until('its end after a pause', () => !lives(pid))
  t.equal((await bytes())?.values[0]?.value, 0)
  t.not((await run()).pid, pid, 'the next task starts another')
  t.ok(Number((await seconds())?.values[0]?.value) > used, 'and its time is added')
})

t.test('a task that takes the process with it', async (t) => {
  const file = files(t)
  const kills = file('kills.mjs', "export default () => process.kill(process.pid, 'SIGKILL')")
  const works = file(
    'works.mjs',
    `export default ({ n }) => {
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 300)
      return n
    }`
  )
  const registry = new Registry()
  const compute = createCompute({ threads: 3, registry })
  t.teardown(() => compute.close())
  const losses = async () =>
    (await registry.getSingleMetric('compute_process_losses_total')?.get())?.values[0]?.value ?? Number.NaN
  const work = [1, 2, 3, 4].map((n) => compute.run(works, { n }))
  await Promise.all(work.slice(0, 1))
  const results = await Promise.allSettled([...work, compute.run(kills, {}), compute.run(works, { n: 5 })])
  t.match(results, [
    ...[1, 2, 3, 4].map((value) => ({ status: 'fulfilled', value })),
    { status: 'rejected', reason: { code: 'COMPUTE_THREAD_LOST' } },
    { status: 'fulfilled', value: 5 }
  ])
  t.equal(await losses(), 2, 'once beside others, which are innocent, and once alone')
  t.equal(await compute.run(works, { n: 6 }), 6)

  const cancelled = new AbortController()
  const both = [compute.run(kills, {}), compute.run(works, { n: 7 }, { signal: cancelled.signal })]
  await until('its end', async () => (await losses()) === 3)
  cancelled.abort()
  t.match(await Promise.allSettled(both), [
    { status: 'rejected', reason: { code: 'COMPUTE_THREAD_LOST' } },
    { status: 'rejected', reason: { name: 'AbortError' } }
  ])
  await t.rejects(compute.run(works, { n: () => {} }), { message: /could not be cloned/ })
  t.equal(await compute.run(works, { n: 8 }), 8)
})

t.test('it ends with the service, however that ends, and keeps none alive', async (t) => {
  const file = files(t)
  const pidOf = file('pid.mjs', 'export default () => process.pid')
  const spins = file('spins.mjs', 'export default () => { for (;;); }')
  const service = (then: string) => {
    const script = `
      import { Registry } from ${JSON.stringify(import.meta.resolve('prom-client'))}
      import { createCompute } from ${JSON.stringify(COMPUTE.href)}
      const compute = createCompute({ threads: 2, registry: new Registry() })
      console.log(await compute.run(new URL(${JSON.stringify(pidOf.href)}), {}))
      ${then}`
    const args = ['--input-type=module', '-e', script]
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
    t.teardown(() => child.kill('SIGKILL'))
    return child
  }
  const idle = service('')
  const [pid] = await once(idle.stdout, 'data')
  t.same(await once(idle, 'exit'), [0, null], 'a program that forgets it ends')
  await until('the end of what it started', () => !lives(Number(pid)))

  const busy = service(`compute.run(new URL(${JSON.stringify(spins.href)}), {})`)
  const [computing] = await once(busy.stdout, 'data')
  t.ok(lives(Number(computing)))
  busy.kill('SIGKILL')
  await until('the end of what computes for nobody', () => !lives(Number(computing)))
})
