import { Counter, Gauge, Histogram, type Registry } from 'prom-client'
import type { AttemptOutcome, DisabledReason } from '../../schemas/webhooks.js'

const OUTCOMES: AttemptOutcome[] = ['success', 'status', 'timeout', 'network', 'refused']

/** Of one tenant. */
interface WebhookCounts {
  readonly active: number
  readonly disabled: number
  readonly waiting: number
}

export function createWebhookMetrics(registry: Registry) {
  const registers = [registry]
  const counts = new Map<string, WebhookCounts>()
  const sum = (of: keyof WebhookCounts) => [...counts.values()].reduce((total, each) => total + each[of], 0)
  const attempts = new Counter({
    name: 'webhook_attempts_total',
    help: 'Webhook messages sent, by outcome.',
    labelNames: ['outcome'] as const,
    registers
  })
  const duration = new Histogram({
    name: 'webhook_attempt_duration_seconds',
    help: 'Time of one attempt to deliver a webhook message.',
    buckets: [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
    registers
  })
  const dead = new Counter({
    name: 'webhook_deliveries_dead_total',
    help: 'Webhook messages given up after the last attempt.',
    registers
  })
  const disabled = new Counter({
    name: 'webhooks_disabled_total',
    help: 'Webhooks taken out of service because their receiver fails or is gone.',
    labelNames: ['reason'] as const,
    registers
  })
  for (const outcome of OUTCOMES) attempts.inc({ outcome }, 0)
  for (const reason of ['failing', 'gone']) disabled.inc({ reason }, 0)
  new Gauge({
    name: 'webhook_deliveries_waiting',
    help: 'Webhook messages that wait for their next attempt, as last counted.',
    registers,
    collect() {
      this.set(sum('waiting'))
    }
  })
  new Gauge({
    name: 'webhooks',
    help: 'Webhooks by whether they are served, as last counted.',
    labelNames: ['state'] as const,
    registers,
    collect() {
      for (const state of ['active', 'disabled'] as const) this.set({ state }, sum(state))
    }
  })
  return {
    attempted: (outcome: AttemptOutcome, seconds: number) => {
      attempts.inc({ outcome })
      duration.observe(seconds)
    },
    died: (count: number) => dead.inc(count),
    disabled: (reason: DisabledReason) => disabled.inc({ reason }),
    observe: (tenant: string, found: WebhookCounts) => void counts.set(tenant, found)
  }
}
export type WebhookMetrics = ReturnType<typeof createWebhookMetrics>
