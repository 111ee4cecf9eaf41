import { resolve } from 'node:path'
import { type Static, Type } from 'typebox'
import { isLockedKeyFile, secretKeysOf } from '../archive/keys.js'
import type { ArchiveSettings } from '../archive/operations.js'
import { isRecipient } from '../archive/recipients.js'
import { ConfigError } from './error.js'
import { isGuessable } from './secrets.js'

/** `BACKUP_*`: where copies go, who may open them, when they are made and how long they stay. */

const URL_RULE = 'a folder, or s3://bucket or s3://bucket/prefix'
const PASSPHRASE_RULE = 'a random secret of at least 20 characters'
const RECIPIENTS_RULE = 'public keys of age (age1…) joined by commas, in the place of BACKUP_PASSPHRASE'
const RETENTION_RULE =
  'rule:number pairs joined by commas: increments (days), daily, weekly and monthly (how many full backups), such as increments:7,daily:14,weekly:8,monthly:12'
/** Keys of some kinds have 2000. */
const KEY_SHOWN_CHARS = 80
const RULES = ['increments', 'daily', 'weekly', 'monthly'] as const
const RULE = `(${RULES.join('|')}):\\d{1,4}`

export const BACKUP_VARIABLES = {
  BACKUP_URL: Type.Optional(
    Type.String({
      pattern: '^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\\s?#]*)?|(?!\\w+://)\\S.*)$',
      description: URL_RULE
    })
  ),
  BACKUP_PASSPHRASE: Type.Optional(Type.String({ minLength: 20, description: PASSPHRASE_RULE })),
  BACKUP_RECIPIENTS: Type.Optional(
    Type.String({
      pattern: '^age1[0-9a-z]+(,age1[0-9a-z]+)*$',
      description: RECIPIENTS_RULE
    })
  ),
  BACKUP_IDENTITY: Type.Optional(
    Type.String({ minLength: 1, description: 'a private key of age (AGE-SECRET-KEY-1…) for one of BACKUP_RECIPIENTS' })
  ),
  BACKUP_S3_ENDPOINT: Type.Optional(
    Type.String({
      pattern: '^https?://[^\\s?#]+$',
      description: 'the address of the S3 service, such as https://s3.example.org'
    })
  ),
  BACKUP_S3_REGION: Type.String({
    pattern: '^[a-z0-9-]{1,40}$',
    default: 'us-east-1',
    description: 'a region, such as eu-central-1'
  }),
  BACKUP_S3_ACCESS_KEY_ID: Type.Optional(
    Type.String({ minLength: 1, description: 'the id of a key of the S3 service' })
  ),
  BACKUP_S3_SECRET_ACCESS_KEY: Type.Optional(Type.String({ minLength: 1, description: 'its secret' })),
  BACKUP_FULL_AT: Type.String({
    pattern: '^([01]\\d|2[0-3]):[0-5]\\d$',
    default: '01:30',
    description: 'the time of day (UTC) from which the daily full backup is due, HH:MM'
  }),
  BACKUP_INCREMENT_SECONDS: Type.Integer({
    minimum: 0,
    maximum: 86_400,
    default: 45,
    description: 'seconds between backups of what has changed, up to 86400; 0: full backups only'
  }),
  BACKUP_RETENTION: Type.String({
    pattern: `^${RULE}(,${RULE})*$`,
    default: 'increments:7,daily:14,weekly:8,monthly:12',
    description: RETENTION_RULE
  }),
  BACKUP_DRILL_DAYS: Type.Integer({
    minimum: 0,
    maximum: 366,
    default: 7,
    description: 'days between restore drills, up to 366; 0: none'
  })
}
const Variables = Type.Object(BACKUP_VARIABLES)
type Variables = Static<typeof Variables>
/** Never shown. */
export const BACKUP_SECRETS = ['BACKUP_PASSPHRASE', 'BACKUP_IDENTITY', 'BACKUP_S3_SECRET_ACCESS_KEY'] as const

export interface BackupConfig {
  readonly settings: ArchiveSettings
  /** Minutes after midnight, UTC. */
  readonly fullAtMinute: number
  /** 0: none. */
  readonly incrementSeconds: number
  readonly drillDays: number
  readonly retention: Readonly<Record<(typeof RULES)[number], number>>
}

/** @throws ConfigError when a variable that another one needs is not set */
export function backupsOf(env: Variables, databaseUrl: string): BackupConfig | undefined {
  const { BACKUP_URL: url } = env
  if (url === undefined) return undefined
  if (databaseUrl === 'sqlite::memory:')
    throw new ConfigError('BACKUP_URL is set beside a database in memory, which has no backups; it may be left out')
  const retention = { increments: 0, daily: 0, weekly: 0, monthly: 0 }
  for (const pair of env.BACKUP_RETENTION.split(',')) {
    const rule = RULES.find((name) => pair.startsWith(`${name}:`))
    if (rule !== undefined) retention[rule] = Number(pair.slice(rule.length + 1))
  }
  const [hour = 0, minute = 0] = env.BACKUP_FULL_AT.split(':').map(Number)
  return {
    settings: { store: storeOf(url, env), keys: keysOf(env) },
    fullAtMinute: hour * 60 + minute,
    incrementSeconds: env.BACKUP_INCREMENT_SECONDS,
    drillDays: env.BACKUP_DRILL_DAYS,
    retention
  }
}

function storeOf(url: string, env: Variables): ArchiveSettings['store'] {
  const [, bucket, path = ''] = /^s3:\/\/([^/]+)\/?(.*)$/.exec(url) ?? []
  if (bucket === undefined) return { folder: resolve(url) }
  const needed = (name: 'BACKUP_S3_ACCESS_KEY_ID' | 'BACKUP_S3_SECRET_ACCESS_KEY') => {
    const value = env[name]
    if (value !== undefined) return value
    throw new ConfigError(
      `${name} is not set; with BACKUP_URL=s3://… it may be the id or the secret of a key of the S3 service`
    )
  }
  return {
    s3: {
      bucket,
      prefix: path === '' ? '' : `${path.replace(/\/+$/, '')}/`,
      region: env.BACKUP_S3_REGION,
      endpoint: env.BACKUP_S3_ENDPOINT ?? `https://s3.${env.BACKUP_S3_REGION}.amazonaws.com`,
      accessKeyId: needed('BACKUP_S3_ACCESS_KEY_ID'),
      secretAccessKey: needed('BACKUP_S3_SECRET_ACCESS_KEY')
    }
  }
}

function keysOf(env: Variables): ArchiveSettings['keys'] {
  const { BACKUP_PASSPHRASE: passphrase, BACKUP_RECIPIENTS: recipients, BACKUP_IDENTITY: identity } = env
  if (passphrase !== undefined && recipients !== undefined)
    throw new ConfigError('BACKUP_RECIPIENTS is set beside BACKUP_PASSPHRASE; it may be only one of the two')
  if (passphrase === undefined && recipients === undefined && identity === undefined)
    throw new ConfigError(
      `BACKUP_PASSPHRASE is not set; with BACKUP_URL it may be ${PASSPHRASE_RULE}, or BACKUP_RECIPIENTS may be public keys of age`
    )
  if (passphrase !== undefined && isGuessable(passphrase))
    throw new ConfigError(
      `BACKUP_PASSPHRASE is a value that is refused (not shown): too easy to guess; it may be ${PASSPHRASE_RULE}, such as \`openssl rand -base64 24\` prints`
    )
  const listed = recipients?.split(',') ?? []
  const wrong = listed.findIndex((recipient) => !isRecipient(recipient))
  if (wrong !== -1)
    throw new ConfigError(
      `BACKUP_RECIPIENTS is a list whose key ${wrong + 1} of ${listed.length}, ${JSON.stringify(listed[wrong]?.slice(0, KEY_SHOWN_CHARS))}, is mistyped or cut off; it may be ${RECIPIENTS_RULE}`
    )
  // Nobody is there to be asked for its passphrase when a drill is due.
  if (identity !== undefined && isLockedKeyFile(identity))
    throw new ConfigError(
      'BACKUP_IDENTITY is a key file that a passphrase protects (not shown); it may be the private key in it (AGE-SECRET-KEY-1…), as `age -d <file>` prints it'
    )
  if (identity !== undefined && secretKeysOf(identity).length === 0)
    throw new ConfigError(
      'BACKUP_IDENTITY is a value that is refused (not shown); it may be a private key of age (AGE-SECRET-KEY-1…)'
    )
  return {
    ...(passphrase === undefined ? {} : { passphrase }),
    ...(recipients === undefined ? {} : { recipients: listed }),
    ...(identity === undefined ? {} : { identity })
  }
}
