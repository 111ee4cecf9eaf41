import { randomBytes } from 'node:crypto'
import { isIP } from 'node:net'
import { join, resolve } from 'node:path'
import { type Static, Type } from 'typebox'
import { LIMIT_CLASSES, type RateLimits } from '../http/rate-limits.js'
import { shape } from '../http/validation.js'
import type { TelemetrySettings } from '../telemetry/index.js'
import { VERSION } from '../version.js'
import { BACKUP_SECRETS, BACKUP_VARIABLES, type BackupConfig, backupsOf } from './backups.js'
import { keptIn, openDataDir } from './data-dir.js'
import { DATABASE_SECRETS, DATABASE_VARIABLES, databaseServersOf } from './database.js'
import { ConfigError } from './error.js'
import { isGuessable, refuseDefaultSecrets, type TlsIdentity, tlsIdentity, withSecretFiles } from './secrets.js'
import { requireServerUrl } from './server-url.js'

const SECRET_RULE = 'a random secret of at least 32 characters'
const KEYS_PATTERN = '^[A-Za-z0-9_-]{1,64}:[^,]{32,}(,[A-Za-z0-9_-]{1,64}:[^,]{32,})*$'
const PROXY_RULE = 'addresses or ranges of the proxies whose X-Forwarded-* headers are believed, joined by commas'
const LIMIT = `(${LIMIT_CLASSES.join('|')}):[1-9]\\d{0,7}`
const PemFile = (holds: string) => Type.Optional(Type.String({ minLength: 1, description: `a PEM file with ${holds}` }))
const WEBHOOK_RULE =
  'names, addresses or ranges, joined by commas, that webhooks may reach though they are private, and over http'
const GROUP = '[^,:]+(:[^,:]+)*:(viewer|staff|manager|admin)'
const OIDC_ROLES_RULE = 'group:role pairs joined by commas, such as stock-keepers:staff,stock-owners:admin'
const RATIOS = ['traceidratio', 'parentbased_traceidratio']
const SAMPLERS = ['always_on', 'always_off', 'parentbased_always_on', 'parentbased_always_off', ...RATIOS]
const Url = (protocols: string, description: string) => Type.String({ pattern: `^(${protocols}):`, description })

/** Every variable the program reads. `.env.example` lists the same; a test holds the two together. */
export const Environment = Type.Object({
  NODE_ENV: Type.Optional(
    Type.String({ pattern: '^(development|test|production)$', description: 'development, test or production' })
  ),
  PORT: Type.Integer({ minimum: 0, maximum: 65535, default: 8083, description: 'a port, 0–65535 (0: any free one)' }),
  HOST: Type.String({ minLength: 1, default: '127.0.0.1', description: 'an address to listen on' }),
  DATA_DIR: Type.String({ minLength: 1, default: './data', description: 'a folder' }),
  ...DATABASE_VARIABLES,
  REDIS_URL: Type.Optional(Url('redis|rediss', 'redis://host:port or rediss://host:port')),
  POSTGRES_CA_FILE: PemFile('the certificates that the server’s must come from'),
  POSTGRES_CERT_FILE: PemFile('the certificate that is shown to the server'),
  POSTGRES_KEY_FILE: PemFile('its private key'),
  REDIS_CA_FILE: PemFile('the certificates that the server’s must come from'),
  REDIS_CERT_FILE: PemFile('the certificate that is shown to the server'),
  REDIS_KEY_FILE: PemFile('its private key'),
  JWT_SECRET: Type.Optional(Type.String({ minLength: 32, description: SECRET_RULE })),
  JWT_KEYS: Type.Optional(
    Type.String({
      pattern: KEYS_PATTERN,
      description: 'id:secret pairs joined by commas, secrets of at least 32 characters; the first signs'
    })
  ),
  SECRETS_KEY: Type.Optional(Type.String({ minLength: 32, description: SECRET_RULE })),
  SECRETS_KEYS: Type.Optional(
    Type.String({
      pattern: KEYS_PATTERN,
      description: 'id:secret pairs joined by commas, secrets of at least 32 characters; the first seals, all open'
    })
  ),
  PUBLIC_URL: Type.Optional(
    Type.String({
      pattern: '^https?://[^\\s/?#]+(/[^\\s?#]*)?$',
      description: 'the address that users open, such as https://stock.example.org'
    })
  ),
  OIDC_ISSUER: Type.Optional(Url('https|http', 'https://<identity provider>, or http on this machine for development')),
  OIDC_CLIENT_ID: Type.Optional(Type.String({ minLength: 1, description: 'what the provider calls this service' })),
  OIDC_CLIENT_SECRET: Type.Optional(Type.String({ minLength: 16, description: 'the secret shared with the provider' })),
  OIDC_SCOPE: Type.String({
    pattern: '^openid( [\\x21\\x23-\\x5b\\x5d-\\x7e]+)*$',
    default: 'openid profile',
    description: 'openid, and scopes that make the provider tell names and groups, separated by spaces'
  }),
  OIDC_ROLE_CLAIM: Type.String({
    minLength: 1,
    maxLength: 200,
    default: 'groups',
    description: 'the claim that holds a user’s groups, such as groups or realm_access.roles'
  }),
  OIDC_ROLES: Type.Optional(Type.String({ pattern: `^${GROUP}(,${GROUP})*$`, description: OIDC_ROLES_RULE })),
  OIDC_MFA_ACR: Type.Optional(
    Type.String({ minLength: 1, description: 'values of acr that stand for more than one factor, joined by commas' })
  ),
  OIDC_TENANT: Type.String({
    pattern: '^[a-z][a-z0-9-]{0,39}$',
    default: 'main',
    description: 'the tenant whose users sign in at the provider'
  }),
  SECOND_FACTOR: Type.String({
    pattern: '^(required|optional)$',
    default: 'required',
    description: 'required or, outside production, optional'
  }),
  ACCESS_TOKEN_TTL_SECONDS: Type.Integer({
    minimum: 10,
    maximum: 86_400,
    default: 900,
    description: '10–86400 seconds that an access token counts'
  }),
  SESSION_IDLE_SECONDS: Type.Integer({
    minimum: 60,
    maximum: 2_678_400,
    default: 3_600,
    description: '60–2678400 seconds after which a session that is not used ends'
  }),
  SESSION_TTL_SECONDS: Type.Integer({
    minimum: 60,
    maximum: 2_678_400,
    default: 86_400,
    description: '60–2678400 seconds after which every session ends'
  }),
  METRICS_TOKEN: Type.Optional(Type.String({ minLength: 16, description: 'a bearer token of at least 16 characters' })),
  DOCS: Type.String({ pattern: '^(on|off)$', default: 'on', description: 'on or off' }),
  TENANCY: Type.String({ pattern: '^(single|multi)$', default: 'single', description: 'single or multi' }),
  CLUSTER_WORKERS: Type.Integer({
    minimum: 1,
    maximum: 256,
    default: 1,
    description: '1–256 processes on one port; more than 1 with PostgreSQL alone'
  }),
  RATE_LIMIT_PER_MINUTE: Type.Integer({
    minimum: 0,
    maximum: 10_000_000,
    default: 0,
    description: 'requests a minute for each address, 0: no limit'
  }),
  RATE_LIMITS: Type.String({
    pattern: `^(none|${LIMIT}(,${LIMIT})*)$`,
    default: 'sign-in:600,export:600,import:600,report:600,training:600',
    description: `class:requests pairs joined by commas, a minute and for each user (${LIMIT_CLASSES.join(', ')}), or none`
  }),
  CORS_ORIGINS: Type.Optional(
    Type.String({
      pattern: '^https?://[^,\\s]+(,https?://[^,\\s]+)*$',
      description: 'origins joined by commas, such as https://app.example.org'
    })
  ),
  TRUST_PROXY: Type.Optional(
    Type.String({
      minLength: 1,
      description: PROXY_RULE
    })
  ),
  WEBHOOK_ALLOWED_HOSTS: Type.Optional(Type.String({ minLength: 1, description: WEBHOOK_RULE })),
  CACHE: Type.String({ pattern: '^(on|off)$', default: 'on', description: 'on or off' }),
  WORKER_THREADS: Type.Integer({ minimum: 1, maximum: 256, default: 1, description: '1–256 threads for forecasts' }),
  AUDIT_RETENTION_DAYS: Type.Integer({
    minimum: 1,
    maximum: 3650,
    default: 365,
    description: '1–3650 days that audit entries are kept'
  }),
  ...BACKUP_VARIABLES,
  DRAIN_SECONDS: Type.Integer({
    minimum: 0,
    maximum: 300,
    default: 0,
    description: '0–300 seconds between the signal to end and the last request that is taken'
  }),
  SLOW_QUERY_MS: Type.Integer({
    minimum: 1,
    maximum: 3_600_000,
    default: 250,
    description: '1–3600000 milliseconds after which a query counts as slow'
  }),
  OTEL_EXPORTER_OTLP_ENDPOINT: Type.Optional(
    Type.String({
      pattern: '^https?://[^\\s/?#]+(/[^\\s?#]*)?$',
      description: 'where a collector takes OTLP over HTTP'
    })
  ),
  OTEL_SERVICE_NAME: Type.String({
    minLength: 1,
    default: 'inventory-enterprise',
    description: 'what this service is called in a trace'
  }),
  OTEL_TRACES_SAMPLER: Type.String({
    pattern: `^(${SAMPLERS.join('|')})$`,
    default: 'parentbased_always_on',
    description: SAMPLERS.join(', ')
  }),
  OTEL_TRACES_SAMPLER_ARG: Type.String({
    pattern: '^(0(\\.\\d{1,9})?|1(\\.0{1,9})?)$',
    default: '1',
    description: 'the share of traces that is kept, 0–1'
  }),
  LOG_LEVEL: Type.String({
    pattern: '^(fatal|error|warn|info|debug|trace|silent)$',
    default: 'info',
    description: 'fatal, error, warn, info, debug, trace or silent'
  })
})
export type Environment = Static<typeof Environment>

export interface SecretKey {
  readonly id: string
  readonly secret: string
}
type SecretKeys = readonly [SecretKey, ...SecretKey[]]

interface Oidc {
  readonly issuer: string
  readonly clientId: string
  readonly clientSecret: string
  readonly scope: string
  readonly roleClaim: string
  readonly roles: Record<string, 'viewer' | 'staff' | 'manager' | 'admin'>
  readonly strongAcr: string[]
  readonly tenant: string
}

export interface Config extends Environment {
  readonly DATABASE_URL: string
  /** `PUBLIC_URL`, or this machine's; without a slash at its end. */
  readonly publicUrl: string
  readonly secondFactor: 'required' | 'optional'
  /** The identity provider, when there is one. */
  readonly oidc: Oidc | undefined
  /** The first signs, all verify. */
  readonly jwtKeys: SecretKeys
  /** The first seals secrets in the database, all open them. */
  readonly secretsKeys: SecretKeys
  readonly rateLimits: RateLimits
  /** URLs by name. */
  readonly databaseServers: ReadonlyMap<string, string>
  /** Where and how backups are made, when they are. */
  readonly backups: BackupConfig | undefined
  readonly postgresTls?: TlsIdentity
  readonly redisTls?: TlsIdentity
  readonly telemetry?: TelemetrySettings
}

export { ConfigError }

/** Never shown; each may also come from the file that its name with `_FILE` names. */
const SECRETS = new Set([
  'JWT_SECRET',
  'JWT_KEYS',
  'SECRETS_KEY',
  'SECRETS_KEYS',
  'METRICS_TOKEN',
  'OIDC_CLIENT_SECRET',
  'REDIS_URL',
  ...DATABASE_SECRETS,
  ...BACKUP_SECRETS,
  // Public keys; what is refused may be the private one, put in the wrong place.
  'BACKUP_RECIPIENTS'
])

/**
 * Reads the configuration. Creates `DATA_DIR` and, outside production, secrets in it (mode 0600).
 * @throws ConfigError in one line, on the first bad value
 */
export function loadConfig(variables: Record<string, string | undefined>): Config {
  const environment = parse(withSecretFiles(variables, SECRETS))
  const dataDir = resolve(environment.DATA_DIR)
  checkRanges('TRUST_PROXY', environment.TRUST_PROXY, /^(loopback|linklocal|uniquelocal)$/, PROXY_RULE)
  checkRanges(
    'WEBHOOK_ALLOWED_HOSTS',
    environment.WEBHOOK_ALLOWED_HOSTS,
    /^[a-z0-9._-]*[a-z][a-z0-9._-]*$/i,
    WEBHOOK_RULE
  )
  for (const name of ['DATABASE_URL', 'DATABASE_REPLICA_URL', 'MIRROR_URL', 'REDIS_URL'] as const) {
    const url = environment[name]
    if (url !== undefined) requireServerUrl(name, url, descriptionOf(name))
  }
  if (environment.NODE_ENV === 'production') refuseDefaultSecrets(names(environment))
  const postgresTls = tlsIdentity(names(environment), 'POSTGRES')
  const redisTls = tlsIdentity(names(environment), 'REDIS')
  const databaseUrl = environment.DATABASE_URL ?? `sqlite:${join(dataDir, 'inventory.sqlite')}`
  openDataDir(dataDir)
  return {
    ...environment,
    DATA_DIR: dataDir,
    DATABASE_URL: databaseUrl,
    publicUrl: (environment.PUBLIC_URL ?? `http://localhost:${environment.PORT}`).replace(/\/+$/, ''),
    secondFactor: secondFactor(environment),
    oidc: oidc(environment),
    jwtKeys: secretKeys(environment, 'JWT_SECRET', 'JWT_KEYS', dataDir, 'jwt-secret'),
    secretsKeys: secretKeys(environment, 'SECRETS_KEY', 'SECRETS_KEYS', dataDir, 'secrets-key'),
    databaseServers: databaseServersOf(environment, databaseUrl),
    rateLimits: rateLimitsOf(environment.RATE_LIMITS),
    backups: backupsOf(environment, databaseUrl),
    ...(postgresTls === undefined ? {} : { postgresTls }),
    ...(redisTls === undefined ? {} : { redisTls }),
    ...telemetry(environment)
  }
}

function telemetry(env: Environment): { telemetry?: TelemetrySettings } {
  const { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, OTEL_TRACES_SAMPLER: sampler } = env
  if (endpoint === undefined) return {}
  const ratio = Number(env.OTEL_TRACES_SAMPLER_ARG)
  return { telemetry: { endpoint, serviceName: env.OTEL_SERVICE_NAME, version: VERSION, sampler, ratio } }
}

const rateLimitsOf = (text: string): RateLimits =>
  Object.fromEntries(
    text.split(',').flatMap((pair) => (pair === 'none' ? [] : [[pair.split(':')[0], Number(pair.split(':')[1])]]))
  )

const names = (environment: Environment): Record<string, string> =>
  Object.fromEntries(Object.entries(environment).map(([name, value]) => [name, String(value)]))

function parse(env: Record<string, string | undefined>): Environment {
  const given: Record<string, unknown> = {}
  for (const [name, schema] of Object.entries(Environment.properties)) {
    const value = env[name] || ('default' in schema ? schema.default : undefined)
    if (value === undefined) continue
    const isInteger = 'type' in schema && schema.type === 'integer'
    // Only whole numbers are read as such: 80.5 must be refused, not cut.
    given[name] = isInteger && /^-?\d{1,15}$/.test(String(value)) ? Number(value) : value
  }
  const isRight = shape(Environment)
  if (isRight(given)) return given
  const name = isRight.errors?.[0]?.instancePath.split('/')[1] ?? ''
  const allowed = descriptionOf(name)
  const shown = SECRETS.has(name) ? 'a value that is refused (not shown)' : JSON.stringify(env[name])
  throw new ConfigError(`${name} is ${shown}; it may be ${allowed}`)
}

function descriptionOf(variable: string): string {
  const schema = Object.entries(Environment.properties).find(([name]) => name === variable)?.[1]
  return schema !== undefined && 'description' in schema ? String(schema.description) : 'another value'
}

function secondFactor({ SECOND_FACTOR: policy, NODE_ENV: mode }: Environment): 'required' | 'optional' {
  if (policy !== 'optional') return 'required'
  if (mode !== 'production') return policy
  throw new ConfigError(`SECOND_FACTOR is "optional"; with NODE_ENV=production it may be required`)
}

/** @throws ConfigError when the provider is named and something that it needs is not, or it would be spoken to in the clear */
function oidc(env: Environment): Oidc | undefined {
  const { OIDC_ISSUER: issuer } = env
  if (issuer === undefined) return undefined
  const required = (name: 'OIDC_CLIENT_ID' | 'OIDC_CLIENT_SECRET' | 'OIDC_ROLES' | 'PUBLIC_URL'): string => {
    const value = env[name]
    if (value !== undefined) return value
    throw new ConfigError(`${name} is not set; with OIDC_ISSUER it may be ${descriptionOf(name)}`)
  }
  const url = URL.canParse(issuer) ? new URL(issuer) : undefined
  const here = env.NODE_ENV !== 'production' && /^(localhost|127\.0\.0\.1|\[::1\])$/.test(url?.hostname ?? '')
  if (url === undefined || (url.protocol !== 'https:' && !here)) {
    throw new ConfigError(`OIDC_ISSUER is ${JSON.stringify(issuer)}; it may be ${descriptionOf('OIDC_ISSUER')}`)
  }
  required('PUBLIC_URL')
  return {
    issuer,
    clientId: required('OIDC_CLIENT_ID'),
    clientSecret: required('OIDC_CLIENT_SECRET'),
    scope: env.OIDC_SCOPE,
    roleClaim: env.OIDC_ROLE_CLAIM,
    roles: groupRoles(required('OIDC_ROLES')),
    strongAcr: env.OIDC_MFA_ACR?.split(',') ?? [],
    tenant: env.OIDC_TENANT
  }
}

/** A group may have colons in its name: the role is what follows the last. */
function groupRoles(pairs: string): Oidc['roles'] {
  const roles: Oidc['roles'] = {}
  for (const pair of pairs.split(',')) {
    const at = pair.lastIndexOf(':')
    const role = (['viewer', 'staff', 'manager', 'admin'] as const).find((each) => each === pair.slice(at + 1))
    if (role !== undefined) roles[pair.slice(0, at)] = role
  }
  return roles
}

/** Each of the list is an address, a range, or a name that fits. */
function checkRanges(variable: string, list: string | undefined, name: RegExp, rule: string): void {
  const refused = list?.split(',').find((each) => {
    const [address = '', bits, ...rest] = each.trim().split('/')
    const version = isIP(address)
    const fits = bits === undefined || (/^\d{1,3}$/.test(bits) && Number(bits) <= (version === 4 ? 32 : 128))
    return !name.test(each.trim()) && (version === 0 || !fits || rest.length > 0)
  })
  if (refused === undefined) return
  throw new ConfigError(`${variable} is ${JSON.stringify(list)}; it may be ${rule}`)
}

/** `many` are before `one`, which has the id `default`; without either, one is generated into `file` of `dataDir`, except in production. */
function secretKeys(
  env: Environment,
  one: 'JWT_SECRET' | 'SECRETS_KEY',
  many: 'JWT_KEYS' | 'SECRETS_KEYS',
  dataDir: string,
  file: string
): SecretKeys {
  const pairs = (env[many] ?? '').split(',').filter((pair) => pair !== '')
  const keys = pairs.map((pair) => ({
    id: pair.slice(0, pair.indexOf(':')),
    secret: pair.slice(pair.indexOf(':') + 1)
  }))
  const single = env[one]
  if (single !== undefined) keys.push({ id: 'default', secret: single })
  for (const { secret } of keys) {
    if (isGuessable(secret)) {
      throw new ConfigError(
        `${env[many] === undefined ? one : many} is a value that is refused (not shown): too easy to guess; it may be ${SECRET_RULE}, such as \`openssl rand -base64 48\` prints`
      )
    }
  }
  const [first, ...others] = keys
  if (first !== undefined) return [first, ...others]
  if (env.NODE_ENV === 'production') {
    throw new ConfigError(`${one} is not set; with NODE_ENV=production it may be ${SECRET_RULE}`)
  }
  return [{ id: 'default', secret: keptIn(dataDir, file, () => randomBytes(48).toString('base64url')) }]
}
