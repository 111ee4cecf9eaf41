import { totalmem } from 'node:os'
import { getHeapStatistics } from 'node:v8'
import type { FastifyInstance } from 'fastify'
import fastifyMetrics from 'fastify-metrics'
import { Counter, Gauge, type Registry } from 'prom-client'

/** prom-client's own three that break Prometheus' naming rules (`promtool check metrics` refuses them). */
const MISNAMED = ['nodejs_active_handles_total', 'nodejs_active_requests_total', 'nodejs_active_resources_total']

/** What every Node.js process tells, and what it leaves out. @returns what to call when the process is ready */
export async function processMetrics(app: FastifyInstance, registry: Registry): Promise<() => void> {
  await app.register(fastifyMetrics.default, {
    endpoint: null,
    defaultMetrics: { enabled: true, register: registry },
    routeMetrics: { enabled: false }
  })
  for (const name of MISNAMED) registry.removeSingleMetric(name)
  const registers = [registry]
  // Counted since the start and not since the last scrape, so that two who scrape do not take it from each other.
  new Counter({
    name: 'nodejs_eventloop_seconds_total',
    help: 'Time that the event loop was active or idle; active over both is how busy the one thread of this process is.',
    labelNames: ['state'] as const,
    registers,
    collect() {
      const { active, idle } = performance.eventLoopUtilization()
      this.reset()
      this.inc({ state: 'active' }, active / 1000)
      this.inc({ state: 'idle' }, idle / 1000)
    }
  })
  new Gauge({
    name: 'nodejs_heap_size_limit_bytes',
    help: 'What the heap may grow to before the process ends.',
    registers,
    collect() {
      this.set(getHeapStatistics().heap_size_limit)
    }
  })
  new Gauge({
    name: 'process_memory_limit_bytes',
    help: 'Memory that this process may use: the limit of its container, or all that the machine has.',
    registers,
    collect() {
      this.set(memoryLimit())
    }
  })
  const started = new Gauge({
    name: 'app_start_duration_seconds',
    help: 'Time from the start of the process until it was ready, migrations included.',
    registers
  })
  return () => started.set(process.uptime())
}

function memoryLimit(): number {
  const limit = process.constrainedMemory()
  return limit > 0 ? Math.min(limit, totalmem()) : totalmem()
}
