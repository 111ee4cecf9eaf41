import { Counter, Histogram, type Registry } from 'prom-client'

export function identityMetrics(registry: Registry) {
  const registers = [registry]
  const attempts = new Counter({
    name: 'auth_login_attempts_total',
    help: 'Sign-ins by password, by outcome.',
    labelNames: ['outcome'] as const,
    registers
  })
  for (const outcome of ['success', 'failure', 'throttled']) attempts.inc({ outcome }, 0)
  const factors = new Counter({
    name: 'auth_second_factor_attempts_total',
    help: 'Codes, recovery codes and passkeys given at a sign-in, by outcome.',
    labelNames: ['outcome'] as const,
    registers
  })
  for (const outcome of ['success', 'failure', 'throttled']) factors.inc({ outcome }, 0)
  const oidc = new Counter({
    name: 'auth_oidc_sign_ins_total',
    help: 'Sign-ins by the identity provider, by outcome.',
    labelNames: ['outcome'] as const,
    registers
  })
  for (const outcome of ['success', 'failure', 'refused']) oidc.inc({ outcome }, 0)
  const issued = new Counter({ name: 'auth_tokens_issued_total', help: 'Access tokens signed for users.', registers })
  const hashing = new Histogram({
    name: 'auth_password_hash_duration_seconds',
    help: 'Time to hash or check one password, waiting included.',
    buckets: [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5],
    registers
  })
  return { attempts, factors, oidc, issued, hashing }
}
export type IdentityMetrics = ReturnType<typeof identityMetrics>
