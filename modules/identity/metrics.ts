import { Counter, Gauge, Histogram, type Registry } from 'prom-client'
import type { Role } from '../../schemas/common.js'
import type { Census } from './census.js'

const ROLES: readonly Role[] = ['viewer', 'staff', 'manager', 'admin']
const LIMITS = ['pair', 'address', 'user'] as const
/** What ran empty: the attempts of one user from one address, those of an address, or those of a user. */
export type Exhausted = (typeof LIMITS)[number]

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
  const lockouts = new Counter({
    name: 'auth_lockouts_total',
    help: 'Times that attempts to sign in were used up, so that further ones wait: of one user from one address, of an address, of a user.',
    labelNames: ['limit'] as const,
    registers
  })
  for (const limit of LIMITS) lockouts.inc({ limit }, 0)
  return {
    attempts,
    factors,
    oidc,
    issued,
    refreshRejections,
    hashing,
    lockedOut: (limit: Exhausted) => lockouts.inc({ limit }),
    checks: revocationMetrics(registry),
    counted: censusMetrics(registry)
  }
}
export type IdentityMetrics = ReturnType<typeof identityMetrics>

/** Each request with a token is checked, so these are plain numbers until Prometheus asks. */
function revocationMetrics(registry: Registry) {
  const counts = { memory: 0, database: 0, unavailable: 0 }
  new Counter({
    name: 'auth_revocation_checks_total',
    help: 'Checks whether a token was revoked, by what answered; unavailable: the database did not, and nobody was let in.',
    labelNames: ['source'] as const,
    registers: [registry],
    collect() {
      this.reset()
      for (const [source, count] of Object.entries(counts)) this.inc({ source }, count)
    }
  })
  return (revoked: boolean | Promise<boolean>): boolean | Promise<boolean> => {
    if (typeof revoked === 'boolean') counts.memory++
    else {
      counts.database++
      revoked.catch(() => counts.unavailable++)
    }
    return revoked
  }
}

/** As last counted, all tenants. Every node counts the same: a query over nodes takes the maximum. */
function censusMetrics(registry: Registry) {
  const registers = [registry]
  const found = new Map<string, Census>()
  const sum = (of: (census: Census) => number) => [...found.values()].reduce((total, each) => total + of(each), 0)
  new Gauge({
    name: 'auth_users',
    help: 'Users who may sign in, as last counted.',
    labelNames: ['role'] as const,
    registers,
    collect() {
      for (const role of ROLES)
        this.set(
          { role },
          sum(({ users }) => users[role] ?? 0)
        )
    }
  })
  const gauge = (name: string, help: string, of: (census: Census) => number) =>
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(sum(of))
      }
    })
  gauge('auth_sessions', 'Sessions that are open, as last counted.', ({ sessions }) => sessions)
  gauge('auth_api_tokens', 'API tokens that count, as last counted.', ({ apiTokens }) => apiTokens)
  gauge(
    'auth_privileged_users_without_second_factor',
    'Managers and administrators who have enrolled no second factor, as last counted.',
    ({ privilegedWithoutFactor }) => privilegedWithoutFactor
  )
  return (tenant: string, census: Census) => void found.set(tenant, census)
}
