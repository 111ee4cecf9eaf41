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
    name: 'auth_mfa_challenges_total',
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
  const refreshRejections = new Counter({
    name: 'auth_refresh_rejections_total',
    help: 'Refresh tokens refused; reused: somebody has a copy, and the session has been ended.',
    labelNames: ['reason'] as const,
    registers
  })
  for (const reason of ['unknown', 'ended', 'reused', 'second-factor']) refreshRejections.inc({ reason }, 0)
  return { attempts, factors, oidc, issued, refreshRejections, hashing }
}
export type IdentityMetrics = ReturnType<typeof identityMetrics>
