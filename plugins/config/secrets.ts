import { createPrivateKey, X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { ConfigError } from './error.js'
import { credentialsOf } from './server-url.js'

/** Secrets that come from files, and how strong they must be. */

export type Variables = Record<string, string | undefined>

/** What a TLS connection needs beside its address, as PEM texts. The server's certificate and name are always verified. */
export interface TlsIdentity {
  readonly ca?: string
  readonly cert?: string
  readonly key?: string
}

function contentOf(variable: string, path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : 'unreadable'
    throw new ConfigError(`${variable} is ${JSON.stringify(path)}, which cannot be read (${code}); it may be a file`)
  }
}

/**
 * Puts the content of the file that `NAME_FILE` names in the place of `NAME`, as container platforms hand secrets over.
 * @throws ConfigError when both are set, or the file cannot be read
 */
export function withSecretFiles(env: Variables, secrets: Iterable<string>): Variables {
  const found: Variables = { ...env }
  for (const name of secrets) {
    const variable = `${name}_FILE`
    const path = env[variable]
    if (path === undefined || path === '') continue
    if (env[name] !== undefined && env[name] !== '')
      throw new ConfigError(`${variable} is set beside ${name}; it may be only one of the two`)
    // Editors and `echo` end a file with a line feed that nobody means.
    found[name] = contentOf(variable, path).replace(/\r?\n$/, '')
  }
  return found
}

function isPem(text: string, holds: 'CA' | 'CERT' | 'KEY'): boolean {
  try {
    return holds === 'KEY' ? createPrivateKey(text).type === 'private' : new X509Certificate(text).subject !== ''
  } catch {
    return false
  }
}

/** @throws ConfigError when a file cannot be read or is not PEM, or a certificate comes without its key */
export function tlsIdentity(env: Variables, server: 'POSTGRES' | 'REDIS'): TlsIdentity | undefined {
  const read = (name: 'CA' | 'CERT' | 'KEY') => {
    const variable = `${server}_${name}_FILE`
    const path = env[variable]
    if (path === undefined) return undefined
    const text = contentOf(variable, path)
    if (isPem(text, name)) return text
    throw new ConfigError(
      `${variable} is ${JSON.stringify(path)}, which holds no ${name === 'KEY' ? 'key' : 'certificate'}; it may be a PEM file`
    )
  }
  const [ca, cert, key] = [read('CA'), read('CERT'), read('KEY')]
  if ((cert === undefined) !== (key === undefined)) {
    const [set, missing] = cert === undefined ? ['KEY', 'CERT'] : ['CERT', 'KEY']
    throw new ConfigError(`${server}_${missing}_FILE is not set; beside ${server}_${set}_FILE it may be a PEM file`)
  }
  if (ca === undefined && cert === undefined) return undefined
  return {
    ...(ca === undefined ? {} : { ca }),
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key })
  }
}

const WEAK =
  /^(.)\1+$|secret|password|passwd|changeme|change-me|example|0123456789|123456789|abcdefgh|qwerty|letmein|inventory-enterprise/i
const DEFAULT_PASSWORDS = /^(postgres|redis|root|admin|user|test|guest|default|inventory|foobared|\d{1,8})?$/i

export const isGuessable = (secret: string): boolean => WEAK.test(secret) || new Set(secret).size < 8

/** What is only risky at home is refused where it counts. @throws ConfigError */
export function refuseDefaultSecrets(env: Variables): void {
  const { METRICS_TOKEN } = env
  if (METRICS_TOKEN !== undefined && isGuessable(METRICS_TOKEN))
    throw new ConfigError(
      'METRICS_TOKEN is a value that is refused (not shown): too easy to guess; with NODE_ENV=production it may be a random token, such as `openssl rand -base64 24` prints'
    )
  for (const name of ['DATABASE_URL', 'REDIS_URL']) {
    const url = env[name]
    if (url === undefined) continue
    const { username = '', password = '' } = credentialsOf(url) ?? {}
    // None at all may be right: a socket, a certificate, a network of its own.
    if (password === '') continue
    if (password.length < 8 || DEFAULT_PASSWORDS.test(password) || WEAK.test(password) || password === username)
      throw new ConfigError(
        `${name} is a value (not shown) whose password is refused: too easy to guess; with NODE_ENV=production it may be one with a random password of 8 characters or more`
      )
  }
}
