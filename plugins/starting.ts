import { once } from 'node:events'
import { createServer } from 'node:http'
import { bodyOf, ServiceStarting } from './http/errors.js'
import { localeOf } from './http/problem.js'
import { requestIdOf } from './http/server-options.js'
import { VERSION } from './version.js'

const RETRY_SECONDS = 1

/**
 * Answers on the port until the service itself does. Migrations of many tenants take a while: meanwhile an orchestrator must hear
 * that the process lives, and a balancer that it is not ready. It also finds out that the port is taken before anything is changed.
 * @returns what closes it
 * @throws as `listen` does
 */
export async function answerWhileStarting(port: number, host: string): Promise<() => Promise<void>> {
  const startedAt = performance.now()
  const server = createServer({ requestTimeout: 5_000 }, (request, response) => {
    const { url = '' } = request
    const path = url.split('?', 1)[0] ?? ''
    const id = requestIdOf(request)
    const locale = localeOf(request)
    const live = path === '/health/live'
    const health = live || path === '/health' || path === '/health/ready'
    const starting = new ServiceStarting({ retryAfterSeconds: RETRY_SECONDS })
    const uptimeSeconds = (performance.now() - startedAt) / 1000
    const body = live
      ? { status: 'ok' }
      : health
        ? { status: 'down', state: 'starting', version: VERSION, uptimeSeconds, checks: {} }
        : bodyOf(starting, locale, { id, url })
    response.writeHead(live ? 200 : starting.status, {
      'content-type': health ? 'application/json; charset=utf-8' : 'application/problem+json; charset=utf-8',
      'x-request-id': id,
      ...(health ? {} : { 'content-language': locale }),
      'cache-control': 'no-store',
      'retry-after': String(RETRY_SECONDS),
      // The next request is to find the service itself.
      connection: 'close'
    })
    response.end(JSON.stringify(body))
  })
  server.listen(port, host)
  await once(server, 'listening')
  return async () => {
    const closed = once(server, 'close')
    server.close()
    server.closeAllConnections()
    await closed
  }
}
