import { ConfigError } from './error.js'

/** URLs of PostgreSQL and Redis, read as their drivers read them. */

const HOW_TO_WRITE = 'in a password write / # ? % @ as %2F %23 %3F %25 %40'

/** @returns undefined when the driver could make nothing of the URL */
export function credentialsOf(url: string): { username: string; password: string } | undefined {
  try {
    const { username, password, hostname, pathname, hash } = /^postgres/.test(url) ? postgresUrl(url) : redisUrl(url)
    // A password that begins with digits and has a / or # in it looks like a port, and the user like the server.
    if (username === '' && password === '' && `${pathname}${hash}`.includes('@')) return undefined
    decodeURIComponent(hostname)
    decodeURI(pathname)
    return { username: decodeURIComponent(username), password: decodeURIComponent(password) }
  } catch {
    return undefined
  }
}

function postgresUrl(url: string): URL {
  // The driver takes a % that encodes nothing for itself, and leaves out the server where a socket is named.
  const encoded = / |%[^a-f0-9]|%[a-f0-9][^a-f0-9]/i.test(url) ? encodeURI(url).replace(/%25(\d\d)/g, '%$1') : url
  return new URL(URL.canParse(encoded) ? encoded : encoded.replace('@/', '@socket/'))
}

const redisUrl = (url: string) => new URL(/^rediss?:\/\//.test(url) ? url : `redis://${url}`)

/**
 * @param whose names the one of several
 * @throws ConfigError
 */
export function requireServerUrl(variable: string, url: string, rule: string, whose = 'it'): void {
  if (url.startsWith('sqlite:') || credentialsOf(url) !== undefined) return
  throw new ConfigError(
    `${variable} is a value that is refused (not shown): ${whose} is no URL that can be read; it may be ${rule}; ${HOW_TO_WRITE}`
  )
}
