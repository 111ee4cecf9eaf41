import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance, InjectOptions } from 'fastify'
import type { Test } from 'tap'
import type { Auth } from '../plugins/contracts.js'

/** What a tenant holds, and a request for each route that names it. */

export interface Route {
  method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'
  url: string
}

/** Calls as an administrator of one tenant; the subject is the same in all, so that nothing is told apart by it. */
export const caller = (app: FastifyInstance) => (tenant: string) => {
  const token = app.getDecorator<Auth>('auth').sign({ subject: 'admin', role: 'admin', tenant }, 600)
  return async (method: Route['method'], url: string, body?: object | string, headers = {}) => {
    const type = typeof body === 'string' ? { 'content-type': 'text/csv' } : {}
    const options: InjectOptions = { method, url, headers: { authorization: `Bearer ${token}`, ...type, ...headers } }
    if (body !== undefined) options.payload = body
    const answer = await app.inject(options)
    const isJson = /[/+]json;/.test(String(answer.headers['content-type']))
    return {
      status: answer.statusCode,
      text: answer.body,
      headers: answer.headers,
      body: isJson ? answer.json() : undefined
    }
  }
}
export type Call = ReturnType<ReturnType<typeof caller>>

const DAY_MS = 86_400_000
const EVENT = { name: 'Alpha fair', yearly: { month: 5, day: 1 } }
const OVERRIDE = { expiresOn: '2999-12-31', factor: 2, reason: 'Alpha event' }

/** Nobody listens there. */
const WEBHOOK = { url: 'http://127.0.0.1:1024/alpha', topics: ['webhooks.disabled'] }

/** One of everything, under names and ids that only this tenant may see. */
export async function furnish(t: Test, call: Call) {
  const must = async (method: Route['method'], url: string, body?: object | string, headers = {}) => {
    const answer = await call(method, url, body, headers)
    if (answer.status >= 300) t.fail(`${method} ${url}: ${answer.status} ${answer.text}`)
    return answer.body
  }
  const today = Date.now()
  await must('POST', '/api/inventory/categories', { name: 'Alpha-category' })
  await must('POST', '/api/inventory/units', { unit: 'alphabox', name: 'Alpha box' })
  await must('POST', '/api/locations', { location: 'alpha-store', name: 'Alpha store' })
  await must('POST', '/api/inventory', {
    itemCode: 'ALPHA-1',
    name: 'Alpha item',
    unit: 'each',
    category: 'Alpha-category'
  })
  await must('POST', '/api/inventory', { itemCode: 'ALPHA-L', name: 'Alpha lot item', unit: 'each', tracking: 'lot' })
  await must('PUT', '/api/inventory/lots', { itemCode: 'ALPHA-L', lot: 'alpha-lot' })
  await must('PUT', '/api/inventory/ALPHA-1/units/alphabox', { numerator: 12 })
  const at = (days: number) => new Date(today - days * DAY_MS).toISOString()
  const line = (quantity: number) => ({ itemCode: 'ALPHA-1', quantity, location: 'alpha-store' })
  await must('POST', '/api/movements', {
    type: 'receipt',
    occurredAt: at(62),
    lines: [{ ...line(5_000), unitCost: 2 }]
  })
  let movement: { id: string } = { id: '' }
  for (let days = 60; days >= 1; days--) {
    const quantity = days === 10 ? 400 : 10 + ((days * 7) % 5)
    movement = await must('POST', '/api/movements', { type: 'issue', occurredAt: at(days), lines: [line(quantity)] })
  }
  const reservation = await must('POST', '/api/reservations', {
    itemCode: 'ALPHA-1',
    quantity: 2,
    location: 'alpha-store'
  })
  const user = await must('POST', '/api/users', {
    username: 'alpha',
    role: 'viewer',
    password: 'correct horse battery staple'
  })
  const signedIn = await must('POST', '/api/auth/login', {
    username: 'alpha',
    password: 'correct horse battery staple',
    tenant: 'alpha'
  })
  const [session] = (await must('GET', `/api/users/${user.id}/sessions`)).data
  const own = { authorization: `Bearer ${signedIn.accessToken}` }
  const apiToken = await must('POST', '/api/tokens', { name: 'alpha script', scopes: ['*:read'] }, own)
  const imported = await must('POST', '/api/import/items', 'itemCode,name,unit\nALPHA-2,Alpha two,each\n', {
    prefer: 'wait=20'
  })
  const [run] = (await must('GET', '/api/imports')).data
  await must('POST', '/api/ai/consumption/derive', { itemCodes: ['ALPHA-1'] }, { prefer: 'wait=20' })
  const trained = await must('POST', '/api/ai/forecast/train', { itemCodes: ['ALPHA-1'] }, { prefer: 'wait=30' })
  t.equal(trained.status, 'succeeded', JSON.stringify(trained))
  const summed = await must('POST', '/api/ai/forecast/aggregate/train', undefined, { prefer: 'wait=30' })
  t.equal(summed.status, 'succeeded', JSON.stringify(summed))
  const [model] = (await must('GET', '/api/ai/models/list')).data
  const day = at(1).slice(0, 10)
  await must('POST', '/api/ai/feedback', { itemCode: 'ALPHA-1', date: day, subject: 'actual', verdict: 'right' })
  const override = await must('POST', '/api/ai/forecast/ALPHA-1/overrides', OVERRIDE)
  const event = await must('POST', '/api/ai/events', EVENT)
  const regressor = await must('POST', '/api/ai/regressors', { name: 'Alpha guests' })
  await must('PUT', `/api/ai/regressors/${regressor.id}/values`, { values: [{ date: day, value: 7 }] })
  const found = await must('POST', '/api/ai/consumption/detect-anomalies', { itemCodes: ['ALPHA-1'] })
  t.ok(found.data.length > 0, 'an anomaly was found')
  const backup = await must('POST', '/api/backups', undefined, { prefer: 'wait=30' })
  t.equal(backup.status, 'succeeded', JSON.stringify(backup))
  const [archive] = (await must('GET', '/api/backups')).data
  const webhook = await must('POST', '/api/webhooks', WEBHOOK)
  const delivery = await must('POST', `/api/webhooks/${webhook.id}/test`)
  const sent = `/api/webhooks/${webhook.id}/deliveries/${delivery.id}`
  while ((await must('GET', sent)).log.length === 0) await sleep(20)
  // Else it would be tried again while the owner's database is watched.
  await must('PATCH', `/api/webhooks/${webhook.id}`, { active: false })
  return {
    backups: String(archive?.id),
    webhooks: String(webhook.id),
    deliveries: String(delivery.id),
    movements: movement.id,
    reservations: String(reservation.id),
    users: String(user.id),
    auth: String(session?.id),
    tokens: String(apiToken.id),
    privacy: String(user.id),
    jobs: String(imported.id),
    imports: String(run?.id),
    models: String(model?.id),
    overrides: String(override.id),
    events: String(event.id),
    regressors: String(regressor.id),
    anomalies: String(found.data[0]?.id)
  }
}
export type Ids = Awaited<ReturnType<typeof furnish>>

const CREDENTIAL = { id: 'AAAA', rawId: 'AAAA', type: 'public-key' }
const REGISTRATION = { ...CREDENTIAL, response: { clientDataJSON: 'AAAA', attestationObject: 'AAAA' } }
const ASSERTION = {
  ...CREDENTIAL,
  response: { clientDataJSON: 'AAAA', authenticatorData: 'AAAA', signature: 'AAAA' }
}

/** A valid body for each write, so that it fails for want of the thing and not for its form. */
export const bodies: Record<string, object | string> = {
  'POST /api/auth/login': { username: 'alpha', password: 'correct horse battery staple' },
  'POST /api/auth/refresh': { refreshToken: `ir_alpha_${'A'.repeat(43)}` },
  'POST /api/auth/reauthenticate': { password: 'correct horse battery staple' },
  'POST /api/tokens': { name: 'mine', scopes: ['*:read'] },
  'POST /api/auth/2fa/totp/confirm': { code: '123456' },
  'POST /api/auth/2fa/verify': { recoveryCode: 'none' },
  'POST /api/auth/passkeys': { name: 'Mine', credential: REGISTRATION },
  'PATCH /api/auth/passkeys/:id': { name: 'Mine' },
  'POST /api/auth/passkeys/sign-in/options': {},
  'POST /api/auth/passkeys/sign-in': { credential: ASSERTION },
  'POST /api/auth/accept': { token: `il_alpha_${'A'.repeat(43)}`, password: 'correct horse battery staple' },
  'POST /api/auth/setup': {
    token: `il_alpha_${'A'.repeat(43)}`,
    username: 'mallory',
    password: 'correct horse battery staple'
  },
  'POST /api/auth/password': {
    currentPassword: 'correct horse battery staple',
    newPassword: 'another horse battery staple'
  },
  'POST /api/users': { username: 'alpha', role: 'viewer', password: 'correct horse battery staple' },
  'PATCH /api/users/:id': { role: 'admin' },
  'PATCH /api/privacy/me': { displayName: 'Taken' },
  'POST /api/inventory': { itemCode: 'ALPHA-1', name: 'Mine', unit: 'each' },
  'PATCH /api/inventory/:itemCode': { name: 'Taken' },
  'POST /api/inventory/categories': { name: 'Mine' },
  'POST /api/inventory/units': { unit: 'mine', name: 'Mine' },
  'PUT /api/inventory/lots': { itemCode: 'ALPHA-L', lot: 'alpha-lot', status: 'recalled' },
  'PUT /api/inventory/:itemCode/units/:unit': { numerator: 6 },
  'POST /api/locations': { location: 'mine', name: 'Mine' },
  'POST /api/movements': { type: 'waste', lines: [{ itemCode: 'ALPHA-1', quantity: 1, location: 'alpha-store' }] },
  'POST /api/movements/:id/reverse': {},
  'POST /api/reservations': { itemCode: 'ALPHA-1', quantity: 1, location: 'alpha-store' },
  'POST /api/import/:kind': 'itemCode,name,unit\nALPHA-1,Mine,each\n',
  'POST /api/ai/consumption/derive': { itemCodes: ['ALPHA-1'] },
  'POST /api/ai/forecast/train': { itemCodes: ['ALPHA-1'] },
  'POST /api/ai/consumption/detect-anomalies': { itemCodes: ['ALPHA-1'] },
  'POST /api/ai/feedback': { itemCode: 'ALPHA-1', date: '2026-01-05', subject: 'actual', verdict: 'exceptional' },
  'POST /api/ai/forecast/:itemCode/overrides': OVERRIDE,
  'POST /api/ai/events': EVENT,
  'PUT /api/ai/events/:eventId': EVENT,
  'POST /api/ai/regressors': { name: 'Mine' },
  'PUT /api/ai/regressors/:regressorId/values': { values: [{ date: '2026-01-05', value: 1 }] },
  'POST /api/anomalies/:id/acknowledge': {},
  'POST /api/anomalies/:id/resolve': { verdict: 'dismissed' },
  'POST /api/webhooks': { ...WEBHOOK, url: 'https://beta.invalid/in' },
  'PATCH /api/webhooks/:id': { active: false },
  'PUT /api/log-level': { level: 'info' }
}
/** Writes that take none. */
const BODILESS =
  /^POST \/api\/(auth\/(logout|2fa\/totp|2fa\/recovery-codes|2fa\/passkey\/options|passkeys\/options)|users\/:id\/link|reservations\/:id\/(post|void)|imports\/:id\/undo|ai\/forecast\/aggregate\/train|webhooks\/.+|backups(\/.+)?|privacy\/subjects\/:id\/erase)$|^DELETE /

/** What a read must be asked to show the owner's own. */
export const queries: Record<string, string> = {
  'GET /api/ai/forecast/aggregate': '?level=category&key=Alpha-category'
}

/** What shows nothing to whoever asks here, owner or not. */
export const SHOWN_TO_NOBODY: Record<string, number> = {
  // The tokens of this file belong to no user.
  'GET /api/privacy/me': 404,
  // Where there are many tenants, their administrators do not run the service.
  'GET /api/log-level': 403,
  // A stream; test/realtime.test.ts listens to it.
  'GET /api/realtime': 406
}

export function fill({ method, url }: Route, ids: Ids): { url: string; body?: object | string } | string {
  const kind = url.split('/')[url.startsWith('/api/ai/') ? 3 : 2] ?? ''
  const id = Object.entries(ids).find(([name]) => name === kind)?.[1]
  const values: Record<string, string | undefined> = {
    id,
    modelId: ids.models,
    overrideId: ids.overrides,
    deliveryId: ids.deliveries,
    eventId: ids.events,
    regressorId: ids.regressors,
    itemCode: 'ALPHA-1',
    unit: 'alphabox',
    location: 'alpha-store',
    kind: 'items'
  }
  const path = url.replace(/:(\w+)/g, (whole, name: string) => values[name] ?? whole)
  const filled = path + (queries[`${method} ${url}`] ?? '')
  if (filled.includes(':')) return 'no value for its parameters'
  const body = bodies[`${method} ${url}`]
  if (body === undefined && method !== 'GET' && !BODILESS.test(`${method} ${url}`)) return 'no body'
  return body === undefined ? { url: filled } : { url: filled, body }
}
