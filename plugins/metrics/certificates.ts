import { X509Certificate } from 'node:crypto'
import { Gauge, type Registry } from 'prom-client'
import type { TlsIdentity } from '../config/secrets.js'

const PEM = /-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g

/** When the first of these certificates ends, as Unix time in seconds; infinite for none. */
const firstEnd = (pem: string): number =>
  Math.min(...(pem.match(PEM) ?? []).map((each) => Date.parse(new X509Certificate(each).validTo) / 1000))

/** Until when the certificates serve that this process has loaded. One that is not there never ends. */
export function certificateMetrics(
  registry: Registry,
  identities: Readonly<Record<'postgres' | 'redis', TlsIdentity | undefined>>
): void {
  const ends = new Gauge({
    name: 'tls_certificate_not_after_timestamp_seconds',
    help: 'Unix time at which the first certificate of a file ends that is shown to a server (own) or that its own must come from (ca); +Inf: no file.',
    labelNames: ['server', 'part'] as const,
    registers: [registry]
  })
  for (const [server, identity] of Object.entries(identities)) {
    ends.set({ server, part: 'ca' }, firstEnd(identity?.ca ?? ''))
    ends.set({ server, part: 'own' }, firstEnd(identity?.cert ?? ''))
  }
}
