import { createHash } from 'node:crypto'
import swagger from '@fastify/swagger'
import Fastify, { type FastifyInstance, type FastifySchema, type RouteOptions } from 'fastify'
import { access } from '../contracts.js'
import { NO_BODY } from './validation.js'

/** `/openapi.json` and its reference page at `/docs`, where they are shown. Registered before the routes that it describes. */
export async function registerOpenApi(app: FastifyInstance, version: string, shown: boolean): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'Inventory Enterprise',
        version,
        description: 'Stock, forecasts, anomalies. Errors are RFC 9457 problem details; see docs/errors.md.',
        license: { name: 'Apache-2.0', url: 'https://www.apache.org/licenses/LICENSE-2.0' }
      },
      servers: [{ url: '/' }],
      components: {
        securitySchemes: {
          bearer: { type: 'http', scheme: 'bearer', description: 'an access token (JWT), or an API token (ie_…)' },
          cookie: { type: 'apiKey', in: 'cookie', name: '__Host-inventory-access' }
        }
      },
      security: [{ bearer: [] }, { cookie: [] }]
    },
    transform: ({ schema, url, route }) => ({ schema: described(schema, url, route), url })
  })
  if (!shown) return
  app.get('/openapi.json', { schema: { hide: true }, config: access('public') }, async (_request, reply) =>
    reply.send(app.swagger())
  )
  let reference: ReturnType<typeof openReference> | undefined
  app.addHook('onClose', async () => (await reference)?.close())
  for (const url of ['/docs/', '/docs/js/scalar.js'])
    app.get(url, { schema: { hide: true }, config: access('public') }, async (request, reply) => {
      reference ??= openReference()
      const { statusCode, headers, payload } = await (await reference).inject(request.url)
      for (const name of ['content-type', 'location'])
        if (headers[name] !== undefined) reply.header(name, headers[name])
      return reply.code(statusCode).header('content-security-policy', pagePolicy(payload)).send(payload)
    })
}

/** The page and its script, at the first request: every start would pay a tenth of a second and 4 MB for what few ask for. */
async function openReference(): Promise<FastifyInstance> {
  const { default: scalar } = await import('@scalar/fastify-api-reference')
  const reference = Fastify()
  await reference.register(scalar, {
    routePrefix: '/docs',
    configuration: { url: '/openapi.json', withDefaultFonts: false, telemetry: false }
  })
  return reference
}

/** The reference page runs its own scripts, of which one is in the page; it styles itself, and talks to this server only. */
function pagePolicy(page: string): string {
  const inline = [...page.matchAll(/<script(?![^>]*\ssrc=)[^>]*>([\s\S]*?)<\/script>/g)].map(
    ([, script = '']) => `'sha256-${createHash('sha256').update(script).digest('base64')}'`
  )
  return [
    "default-src 'none'",
    ["script-src 'self'", ...inline].join(' '),
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data:",
    "font-src 'self' data:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'"
  ].join('; ')
}

const header = (description: string) => ({ type: 'string', description })
const IDEMPOTENCY_KEY = header('1–255 printable ASCII characters; the same key and request answer the same bytes again')
const IF_MATCH = header('The ETag that was read; a stale one answers 412')
const IF_NONE_MATCH = header('An ETag; the answer is 304 while it holds')
const NOT_MODIFIED = { 304: { type: 'null', description: 'The ETag of If-None-Match holds' } }

/** Whether a route answers a file: what is streamed has no ETag, which is of all its bytes. */
const isFile = (response: unknown) =>
  typeof response === 'object' &&
  response !== null &&
  '200' in response &&
  typeof response[200] === 'object' &&
  response[200] !== null &&
  'content' in response[200]

/** Adds what every route has by the conventions of this API, so that no route has to repeat it. */
function described(schema: FastifySchema | undefined, url: string, { method, config }: RouteOptions): FastifySchema {
  const verb = String(method).toLowerCase()
  const open = config !== undefined && 'role' in config && config.role === 'public'
  const { body, response, ...others } = schema ?? {}
  const properties = {
    ...(verb === 'get' || open ? {} : { 'Idempotency-Key': IDEMPOTENCY_KEY }),
    ...(verb === 'patch' || verb === 'delete' ? { 'If-Match': IF_MATCH } : {}),
    ...(verb === 'get' && !open && !isFile(response) ? { 'If-None-Match': IF_NONE_MATCH } : {})
  }
  const told = 'If-None-Match' in properties ? Object.assign({}, response, NOT_MODIFIED) : response
  return {
    operationId: operationIdOf(verb, url),
    ...(open ? { security: [] } : {}),
    ...(Object.keys(properties).length === 0 ? {} : { headers: { type: 'object', properties } }),
    ...(body === undefined || body === NO_BODY ? {} : { body }),
    ...(told === undefined ? {} : { response: told }),
    ...others
  }
}

/** `GET /api/inventory/:itemCode/movements` is `getInventoryByItemCodeMovements`: it changes only when the path does. */
function operationIdOf(verb: string, url: string): string {
  const words = url
    .replace(/^\/api\//, '/')
    .replace(/\/:/g, '/by-')
    .split(/[^A-Za-z0-9]+/)
  return verb + words.map((word) => word.charAt(0).toUpperCase() + word.slice(1)).join('')
}
