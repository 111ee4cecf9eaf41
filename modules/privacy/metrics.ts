import { Counter, type Registry } from 'prom-client'

const RIGHTS = ['access', 'rectification', 'erasure'] as const
type Right = (typeof RIGHTS)[number]

export function createPrivacyMetrics(registry: Registry) {
  const requests = new Counter({
    name: 'privacy_rights_total',
    help: 'Rights that people made use of.',
    labelNames: ['right'] as const,
    registers: [registry]
  })
  for (const right of RIGHTS) requests.inc({ right }, 0)
  return { exercised: (right: Right) => requests.inc({ right }) }
}
export type PrivacyMetrics = ReturnType<typeof createPrivacyMetrics>
