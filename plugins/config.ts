import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { join, resolve } from 'node:path'
import { type Static, Type } from 'typebox'
import { Value } from 'typebox/value'

const SECRET_RULE = 'a random secret of at least 32 characters'
const KEYS_PATTERN = '^[A-Za-z0-9_-]{1,64}:[^,]{32,}(,[A-Za-z0-9_-]{1,64}:[^,]{32,})*$'
const PROXY_RULE = 'addresses or ranges of the proxies whose X-Forwarded-* headers are believed, joined by commas'
const WEBHOOK_RULE =
  'names, addresses or ranges, joined by commas, that webhooks may reach though they are private, and over http'
const Url = (protocols: string, description: string) => Type.String({ pattern: `^(${protocols}):`, description })

/** Every variable the program reads. `.env.example` lists the same; a test holds the two together. */
export const Environment = Type.Object({
  NODE_ENV: Type.Optional(
    Type.String({ pattern: '^(development|test|production)$', description: 'development, test or production' })
  ),
  PORT: Type.Integer({ minimum: 0, maximum: 65535, default: 8083, description: 'a port, 0–65535 (0: any free one)' }),
  HOST: Type.String({ minLength: 1, default: '127.0.0.1', description: 'an address to listen on' }),
  DATA_DIR: Type.String({ minLength: 1, default: './data', description: 'a folder' }),
  DATABASE_URL: Type.Optional(Url('sqlite|postgres|postgresql', 'sqlite:<path> or postgres://user@host:port/database')),
  REDIS_URL: Type.Optional(Url('redis|rediss', 'redis://host:port or rediss://host:port')),
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
  POSTGRES_POOL_SIZE: Type.Integer({ minimum: 1, maximum: 1000, default: 10, description: '1–1000 connections' }),
  RATE_LIMIT_PER_MINUTE: Type.Integer({
    minimum: 0,
    maximum: 10_000_000,
    default: 0,
    description: 'requests a minute for each client, 0: no limit'
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

export interface Config extends Environment {
  readonly DATABASE_URL: string
  /** `PUBLIC_URL`, or this machine's; without a slash at its end. */
  readonly publicUrl: string
  readonly secondFactor: 'required' | 'optional'
  /** The first signs, all verify. */
  readonly jwtKeys: SecretKeys
  /** The first seals secrets in the database, all open them. */
  readonly secretsKeys: SecretKeys
}

/** Names the variable, what it holds and what it may hold. Secrets are never shown. */
export class ConfigError extends Error {}

const SECRETS = new Set([
  'JWT_SECRET',
  'JWT_KEYS',
  'SECRETS_KEY',
  'SECRETS_KEYS',
  'METRICS_TOKEN',
  'DATABASE_URL',
  'REDIS_URL'
])

/**
 * Reads the configuration. Creates `DATA_DIR` and, outside production, secrets in it (mode 0600).
 * @throws ConfigError in one line, on the first bad value
 */
export function loadConfig(env: Record<string, string | undefined>): Config {
  const environment = parse(env)
  const dataDir = resolve(environment.DATA_DIR)
  checkRanges('TRUST_PROXY', environment.TRUST_PROXY, /^(loopback|linklocal|uniquelocal)$/, PROXY_RULE)
  checkRanges(
    'WEBHOOK_ALLOWED_HOSTS',
    environment.WEBHOOK_ALLOWED_HOSTS,
    /^[a-z0-9._-]*[a-z][a-z0-9._-]*$/i,
    WEBHOOK_RULE
  )
  const databaseUrl = environment.DATABASE_URL ?? `sqlite:${join(dataDir, 'inventory.sqlite')}`
  try {
    mkdirSync(dataDir, { recursive: true, mode: 0o700 })
  } catch {
    throw new ConfigError(
      `DATA_DIR is ${JSON.stringify(dataDir)}, which cannot be created; it may be a folder this user can write`
    )
  }
  return {
    ...environment,
    DATA_DIR: dataDir,
    DATABASE_URL: databaseUrl,
    publicUrl: (environment.PUBLIC_URL ?? `http://localhost:${environment.PORT}`).replace(/\/+$/, ''),
    secondFactor: secondFactor(environment),
    jwtKeys: secretKeys(environment, 'JWT_SECRET', 'JWT_KEYS', join(dataDir, 'jwt-secret')),
    secretsKeys: secretKeys(environment, 'SECRETS_KEY', 'SECRETS_KEYS', join(dataDir, 'secrets-key'))
  }
}

function parse(env: Record<string, string | undefined>): Environment {
  const given: Record<string, string | number> = {}
  for (const [name, schema] of Object.entries(Environment.properties)) {
    const value = env[name]
    if (value === undefined || value === '') continue
    const isInteger = 'type' in schema && schema.type === 'integer'
    // Only whole numbers are read as such: 80.5 must be refused, not cut.
    given[name] = isInteger && /^-?\d{1,15}$/.test(value) ? Number(value) : value
  }
  const values = Value.Default(Environment, given)
  if (Value.Check(Environment, values)) return values
  const [first] = Value.Errors(Environment, values)
  const name = first?.instancePath.split('/')[1] ?? ''
  const schema = Object.entries(Environment.properties).find(([key]) => key === name)?.[1]
  const allowed = schema !== undefined && 'description' in schema ? schema.description : 'another value'
  const shown = SECRETS.has(name) ? 'a value that is refused (not shown)' : JSON.stringify(env[name])
  throw new ConfigError(`${name} is ${shown}; it may be ${allowed}`)
}

function secondFactor({ SECOND_FACTOR: policy, NODE_ENV: mode }: Environment): 'required' | 'optional' {
  if (policy !== 'optional') return 'required'
  if (mode !== 'production') return policy
  throw new ConfigError(`SECOND_FACTOR is "optional"; with NODE_ENV=production it may be required`)
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

const WEAK = /^(.)\1+$|secret|password|changeme|example|0123456789|123456789|abcdefgh/i

/** `many` are before `one`, which has the id `default`; without either, one is generated into `file`, except in production. */
function secretKeys(
  env: Environment,
  one: 'JWT_SECRET' | 'SECRETS_KEY',
  many: 'JWT_KEYS' | 'SECRETS_KEYS',
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
    if (WEAK.test(secret) || new Set(secret).size < 8) {
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
  return [{ id: 'default', secret: generatedSecret(file) }]
}

function generatedSecret(path: string): string {
  if (!existsSync(path)) {
    try {
      writeFileSync(path, randomBytes(48).toString('base64url'), { mode: 0o600, flag: 'wx' })
    } catch (error) {
      // Two processes may start at once: the one that came first has written it.
      if (!existsSync(path)) throw error
    }
  }
  return readFileSync(path, 'utf8')
}
