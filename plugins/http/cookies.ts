import { parse, serialize } from 'cookie'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { SessionCookies } from '../contracts.js'
import { CrossSite } from './errors.js'

/**
 * Tokens in cookies. Over HTTPS their names begin with what makes a browser refuse them from anywhere else: `__Host-` for the access
 * token; the refresh token goes to one path alone, which only `__Secure-` allows (RFC 6265bis, 4.1.3).
 * @param always secure even where the request seems not to be: behind a proxy that ends TLS and is not trusted to say so
 */
export function createCookies(always: boolean): SessionCookies {
  const isSecure = (request: FastifyRequest) => always || request.protocol === 'https'
  const accessName = (secure: boolean) => (secure ? '__Host-inventory-access' : 'inventory-access')
  const refreshName = (secure: boolean) => (secure ? '__Secure-inventory-refresh' : 'inventory-refresh')
  const read = (request: FastifyRequest, nameOf: (secure: boolean) => string) => {
    const { cookie } = request.headers
    return cookie === undefined ? undefined : parse(cookie)[nameOf(isSecure(request))]
  }
  const write = (reply: FastifyReply, name: string, value: string, path: string, maxAge: number, secure: boolean) =>
    reply.header('set-cookie', serialize(name, value, { path, maxAge, secure, httpOnly: true, sameSite: 'strict' }))
  return {
    accessToken: (request) => read(request, accessName),
    refreshToken: (request) => read(request, refreshName),
    set: (request, reply, { accessToken, accessSeconds, refreshToken, refreshSeconds, refreshPath }) => {
      const secure = isSecure(request)
      write(reply, accessName(secure), accessToken, '/', accessSeconds, secure)
      write(reply, refreshName(secure), refreshToken, refreshPath, refreshSeconds, secure)
    },
    clear: (request, reply, refreshPath) => {
      const secure = isSecure(request)
      write(reply, accessName(secure), '', '/', 0, secure)
      write(reply, refreshName(secure), '', refreshPath, 0, secure)
    }
  }
}

/**
 * A browser says where a request comes from; a page cannot make it lie. What says nothing is no browser of today, and has no
 * business with a cookie.
 * @throws CrossSite
 */
export function requireSameSite(request: FastifyRequest): void {
  const { origin, 'sec-fetch-site': site } = request.headers
  if (site === 'same-origin') return
  if (site === undefined && typeof origin === 'string' && hostOf(origin) === request.host) return
  throw new CrossSite({})
}

const hostOf = (origin: string): string | undefined => (URL.canParse(origin) ? new URL(origin).host : undefined)
