import type { FastifyInstance, FastifySchema } from 'fastify'
import t, { type Test } from 'tap'
import type { Auth, Tenants } from '../../plugins/core.js'
import { createValidatorCompiler } from '../../plugins/http/validation.js'
import type { Role } from '../../schemas/common.js'
import { buildApp, client, eachDialect } from '../helper.js'
import { OPEN, RULES } from './access-rules.js'
import { isObject } from './schema-arbitrary.js'
import { changed, METHODS, openService, type Route, type Service } from './service.js'

/** Who may do what: made from the table of routes, so that a route nobody has thought about fails. */

const ORDER: readonly Role[] = ['viewer', 'staff', 'manager', 'admin']

const nameOf = ({ method, url }: Route) => `${method} ${url.replace(/(.)\/$/, '$1')}`
const isApi = ({ method, url }: Route) => method !== 'HEAD' && !url.startsWith('/docs')
const UNKNOWN_ID = '00000000-0000-7000-8000-000000000000'
const filled = (url: string) =>
  url
    .replace(/:(\w*[iI]d)\b/g, UNKNOWN_ID)
    .replace(':kind', 'items')
    .replace(/:\w+/g, 'none')

const as = (app: FastifyInstance, role: Role, tenant = 'main') => ({
  authorization: `Bearer ${app.getDecorator<Auth>('auth').sign({ subject: `test-${role}`, role, tenant }, 600)}`
})

/** What the rule says of this caller, against what the service answered. */
async function checkRole(t: Test, app: FastifyInstance, route: Route, least: Role | 'public'): Promise<void> {
  for (const role of [undefined, ...ORDER]) {
    const headers = role === undefined ? {} : as(app, role)
    const { statusCode, headers: answered } = await app.inject({
      method: route.method,
      url: filled(route.url),
      headers
    })
    const said = `${role ?? 'nobody'}: ${nameOf(route)} → ${statusCode}`
    const allowed = least === 'public' || (role !== undefined && ORDER.indexOf(role) >= ORDER.indexOf(least))
    if (!allowed && statusCode !== (role === undefined ? 401 : 403)) t.fail(said)
    if (role === undefined && least !== 'public' && answered['www-authenticate'] !== 'Bearer')
      t.fail(`${said} says how`)
    if (allowed && role !== undefined && [401, 403].includes(statusCode) && least !== 'public') t.fail(said)
    if (statusCode >= 500) t.fail(said)
  }
}

const patternOf = ({ url }: Route) => new RegExp(`^${url.replace(/:\w+/g, '[^/]+')}/?$`)

const { app, routes } = await openService(t, { dialect: 'sqlite' })

t.test('V8.2.1 each role at each route, and at each method that is none', async (t) => {
  const rules = new Map(Object.entries(RULES).flatMap(([role, names]) => names.map((name) => [name, role] as const)))
  const api = routes.filter(isApi)
  t.same(
    api.map(nameOf).filter((name) => !rules.has(name)),
    [],
    'each route has a rule in this file'
  )
  t.same(
    [...rules.keys()].filter((name) => !api.some((route) => nameOf(route) === name)),
    [],
    'and each rule a route'
  )
  for (const route of api) {
    const least = [...ORDER, 'public' as const].find((role) => RULES[role].includes(nameOf(route)))
    if (least === undefined) continue
    t.equal(route.role, least, `${nameOf(route)} declares the role of its rule`)
    await checkRole(t, app, route, least)
  }
  for (const url of new Set(api.map(({ url }) => url))) {
    for (const method of METHODS) {
      if (routes.some((route) => route.url === url && route.method === method)) continue
      const { statusCode } = await app.inject({ method, url: filled(url), headers: as(app, 'admin') })
      // A literal in the place of a parameter belongs to another route.
      const other = routes.some((route) => route.method === method && patternOf(route).test(url))
      if (!other && statusCode !== 404 && statusCode !== 405) t.fail(`${method} ${url} → ${statusCode}`)
    }
  }
})

t.test('V2.2.1 each route refuses what its schemas do not name', async (t) => {
  const taken: string[] = []
  let tried = 0
  for (const route of routes.filter(isApi)) {
    for (const [part, schema] of Object.entries({ ...route.schema, response: undefined })) {
      if (!['body', 'querystring', 'params'].includes(part)) continue
      for (const open of openObjects(schema, part).filter((path) => !OPEN.test(path)))
        taken.push(`${nameOf(route)}: ${open} takes unknown fields`)
    }
    if (!route.url.startsWith('/api/')) continue
    const url = filled(route.url)
    const inQuery = await app.inject({ method: route.method, url: `${url}?unknown=1`, headers: as(app, 'admin') })
    tried++
    if (inQuery.statusCode !== 400) taken.push(`${nameOf(route)}?unknown=1 → ${inQuery.statusCode}`)
    if (route.method === 'GET' || 'consumes' in route.schema) continue
    const inBody = await app.inject({ method: route.method, url, headers: as(app, 'admin'), payload: { unknown: 1 } })
    if (inBody.statusCode !== 400) taken.push(`${nameOf(route)} {"unknown":1} → ${inBody.statusCode}`)
  }
  t.same(taken, [])
  t.equal(tried, routes.filter((route) => isApi(route) && route.url.startsWith('/api/')).length)
})

/** Where a schema has an object that is not closed. */
function openObjects(schema: unknown, path: string): string[] {
  if (Array.isArray(schema)) return schema.flatMap((each) => openObjects(each, path))
  if (!isObject(schema)) return []
  const isOpen = schema.type === 'object' && schema.additionalProperties !== false && !('patternProperties' in schema)
  const properties = isObject(schema.properties) ? schema.properties : {}
  return [
    ...(isOpen ? [path] : []),
    ...Object.entries(properties).flatMap(([name, each]) => openObjects(each, `${path}/${name}`)),
    ...openObjects(schema.items, `${path}/items`),
    ...openObjects(schema.anyOf, path)
  ]
}

/** Its price has digits that nothing else has. */
const PRICE = 7.777713
/** Itself, and what 20,000 of it, the three that are issued, and the rest are worth. */
const CANARY = /7777\.?713|7\.?77771|155554\.?26|23\.?333139|155530\.?926861/

/** Whose digits may be any. */
const withoutIds = (text: string) => text.replaceAll(/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/g, '')

/** What the service decides itself, and the routes that are there to set it. */
const GUARDED = [
  'id',
  'role',
  'tenant',
  'disabled',
  'actor',
  'createdAt',
  'recordedAt',
  'onHand',
  'reserved',
  'value',
  'status',
  'epoch',
  'passwordHash'
]
const MAY_NAME: Record<string, readonly string[]> = {
  // A token's role is at most that of its owner.
  role: ['POST /api/users', 'PATCH /api/users/:id', 'POST /api/tokens'],
  disabled: ['PATCH /api/users/:id'],
  tenant: ['POST /api/auth/login', 'POST /api/auth/passkeys/sign-in/options', 'POST /api/auth/passkeys/sign-in'],
  status: ['PUT /api/inventory/lots']
}

interface Ids {
  movement: string
  reservation: string
}

async function furnish({ app, content }: Service): Promise<Ids> {
  const admin = client(app, 'admin')
  const must = async (url: string, body: object) => {
    const { status, body: made, text } = await admin.post(url, body)
    if (status >= 300) throw new Error(`${url}: ${status} ${text}`)
    return made
  }
  await must('/api/locations', { location: 'shelf', name: 'Shelf' })
  for (const itemCode of ['A', 'B'])
    await must('/api/inventory', { itemCode, name: `Item ${itemCode}`, unit: 'each', tracking: 'lot', unitCost: PRICE })
  await must('/api/inventory/units', { unit: 'crate', name: 'Crate' })
  const line = (itemCode: string) => ({ itemCode, quantity: 20_000, lot: `lot-${itemCode}`, unitCost: PRICE })
  const movement = await must('/api/movements', { type: 'receipt', lines: [line('A'), line('B')] })
  const reservation = await must('/api/reservations', { itemCode: 'A', quantity: 1, lot: 'lot-A' })
  await must('/api/movements', { type: 'issue', lines: [{ itemCode: 'A', quantity: 3 }] })
  await content.quiet()
  return { movement: movement.id, reservation: reservation.id }
}

const named = (url: string, ids: Ids) =>
  filled(
    url
      .replace('/movements/:id', `/movements/${ids.movement}`)
      .replace('/reservations/:id', `/reservations/${ids.reservation}`)
      .replace(':itemCode', 'A')
      .replace(':location', 'main')
  )

/** Bodies that name what is there, but not for this: another item's lot, a place that is none, a unit that the item has not. */
function foreignIds(ids: Ids): [url: string, body: object][] {
  const good = (itemCode: string) => ({ itemCode, quantity: 1, lot: `lot-${itemCode}` })
  const bulk = (last: object) => ({
    type: 'issue',
    lines: [...Array(50).fill(good('A')), ...Array(49).fill(good('B')), last]
  })
  return [
    ['/api/movements', bulk({ ...good('A'), lot: 'lot-B' })],
    ['/api/movements', bulk({ ...good('B'), location: 'supplier' })],
    ['/api/movements', bulk({ ...good('B'), location: 'nowhere' })],
    ['/api/movements', bulk({ ...good('B'), unit: 'crate' })],
    ['/api/movements', bulk({ ...good('B'), itemCode: 'C' })],
    ['/api/movements', { type: 'transfer', lines: [{ ...good('A'), toLocation: 'consumption' }] }],
    ['/api/movements', { type: 'transfer', lines: [{ ...good('A'), toLocation: 'main' }] }],
    ['/api/reservations', { itemCode: 'A', quantity: 1, lot: 'lot-B' }],
    ['/api/reservations', { itemCode: 'A', quantity: 1, location: 'supplier' }],
    ['/api/locations', { location: 'box', name: 'Box', parent: 'supplier' }],
    ['/api/locations', { location: 'box', name: 'Box', parent: 'nowhere' }],
    [`/api/movements/${ids.reservation}/reverse`, {}],
    [`/api/reservations/${ids.movement}/post`, {}],
    ['/api/inventory', { itemCode: 'D', name: 'D', unit: 'none' }],
    ['/api/ai/feedback', { itemCode: 'C', date: '2026-01-05', subject: 'actual', verdict: 'exceptional' }]
  ]
}

const QUERIES = ['?limit=1', '?format=ndjson', '?q=A', '?asOf=2999-01-01']
const nameIn = (query: string) => query.slice(1).split('=', 1)[0] ?? ''

async function costs(t: Test, { app, routes }: Service, ids: Ids): Promise<void> {
  const reads = routes.filter(({ method, url }) => method === 'GET' && url.startsWith('/api/'))
  let seen = 0
  for (const { url, schema } of reads) {
    const path = named(url, ids)
    const kinds = url.includes(':kind')
      ? ['items', 'movements', 'stock'].map((kind) => path.replace(/items$/, kind))
      : [path]
    for (const each of kinds) {
      for (const query of ['', ...QUERIES.filter((each) => declares(schema.querystring, nameIn(each)))]) {
        // The managers' answers are cached first: what is kept for them must not be handed on, nor confirmed by its ETag.
        const full = await app.inject({ url: each + query, headers: as(app, 'manager') })
        if (CANARY.test(full.body)) seen++
        for (const role of ['viewer', 'staff'] as const) {
          const headers = { ...as(app, role), 'if-none-match': String(full.headers.etag) }
          const answer = await app.inject({ url: each + query, headers })
          if (CANARY.test(withoutIds(answer.body))) t.fail(`${role}: ${each}${query} shows a cost`)
          if (CANARY.test(full.body) && answer.statusCode === 304)
            t.fail(`${role}: ${each}${query} confirms a cost by its ETag`)
        }
      }
    }
  }
  t.ok(seen >= 6, `managers see it in ${seen} answers`)
  for (const role of ['viewer', 'staff'] as const) {
    const one = client(app, role)
    for (const sort of ['value', '-value'])
      t.equal((await one.get(`/api/inventory?sort=${sort}`)).status, 403, `${role}: no order by it`)
    for (const filter of ['unitCost=7.777713', 'minValue=1', 'q=7.777713']) {
      const { status, body } = await one.get(`/api/inventory?${filter}`)
      t.ok(status === 400 || body.data.length === 0, `${role}: no search by it`)
    }
  }
  const staff = client(app, 'staff')
  const posted = await staff.post('/api/movements', { type: 'issue', lines: [{ itemCode: 'A', quantity: 1 }] })
  t.equal(posted.status, 201)
  t.notMatch(withoutIds(posted.text), CANARY, 'not in the answer to their own posting')
}

/** As the column is called, and as the API would call it. */
const spellings = (column: string) => [column, column.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase())]

async function massAssignment(t: Test, { app, routes, content }: Service): Promise<void> {
  const columns = [...new Set((await content.columns()).flatMap(spellings))]
  t.ok(columns.length > 150, `${columns.length} names`)
  const compile = createValidatorCompiler()
  await content.quiet()
  const before = await content.tables()
  let tried = 0
  for (const route of routes.filter((route) => isApi(route) && isObject(route.schema.body))) {
    const schema: FastifySchema = isObject(route.schema.body) ? route.schema.body : {}
    const validate = compile({ schema, method: route.method, url: route.url, httpPart: 'body' })
    const foreign = columns.filter((name) => !declares(schema, name))
    for (const name of foreign) {
      tried++
      const result = validate({ [name]: 1 })
      if (result === true || (isObject(result) && result.error === undefined)) t.fail(`${nameOf(route)} takes ${name}`)
    }
    // The same through the whole service: all of them at once, and one alone.
    const [first = 'id'] = foreign
    for (const payload of [Object.fromEntries(foreign.map((name) => [name, 1])), { [first]: 1 }]) {
      const { statusCode } = await app.inject({
        method: route.method,
        url: filled(route.url),
        headers: as(app, 'admin'),
        payload
      })
      if (statusCode !== 400) t.fail(`${nameOf(route)} → ${statusCode}`)
    }
    for (const name of GUARDED)
      if (declares(schema, name) && !MAY_NAME[name]?.includes(nameOf(route)))
        t.fail(`${nameOf(route)} lets a caller set ${name}`)
  }
  t.ok(tried > 2_000, `${tried} fields refused`)
  t.same(changed(before, await content.tables()), [])
}

function declares(schema: unknown, name: string): boolean {
  if (Array.isArray(schema)) return schema.some((each) => declares(each, name))
  if (!isObject(schema)) return false
  return (isObject(schema.properties) && name in schema.properties) || declares(schema.anyOf, name)
}

t.test('V8.2.2 what one tenant names of another is nothing there', async (t) => {
  const app = await buildApp(t, { dialect: 'sqlite', tenancy: 'multi' })
  const tenants = app.getDecorator<Tenants>('tenants')
  for (const name of ['alpha', 'beta']) await tenants.create(name)
  const alpha = client(app, 'admin', { tenant: 'alpha' })
  const beta = client(app, 'admin', { tenant: 'beta' })
  for (const one of [alpha, beta]) await one.post('/api/inventory', { itemCode: 'A', name: 'A', unit: 'each' })
  await alpha.post('/api/locations', { location: 'shelf', name: 'Shelf' })
  await alpha.post('/api/inventory/units', { unit: 'crate', name: 'Crate' })
  await alpha.put('/api/inventory/A/units/crate', { numerator: 6 })
  await alpha.post('/api/inventory', { itemCode: 'X', name: 'X', unit: 'each' })
  const bodies = [
    [
      '/api/movements',
      {
        type: 'receipt',
        lines: [
          { itemCode: 'A', quantity: 1 },
          { itemCode: 'X', quantity: 1 }
        ]
      }
    ],
    ['/api/movements', { type: 'receipt', lines: [{ itemCode: 'A', quantity: 1, location: 'shelf' }] }],
    ['/api/movements', { type: 'receipt', lines: [{ itemCode: 'A', quantity: 1, unit: 'crate' }] }],
    ['/api/locations', { location: 'box', name: 'Box', parent: 'shelf' }]
  ] as const
  for (const [url, body] of bodies) {
    t.ok((await alpha.post(url, body)).status < 300, 'its own may')
    const { status } = await beta.post(url, body)
    t.ok(status === 404 || status === 422, `${url} ${JSON.stringify(body)} → ${status}`)
  }
  t.match((await beta.get('/api/ledger/verify')).body, { ok: true, transactions: 0 })
})

await eachDialect(t, async (t, dialect) => {
  const service = await openService(t, { dialect })
  const { app, content } = service
  const admin = client(app, 'admin')
  const ids = await furnish(service)

  await t.test('V8.2.2 ids in bodies and in bulk arrays are looked at one by one', async (t) => {
    const before = await content.tables()
    const bodies = foreignIds(ids)
    for (const [url, body] of bodies) {
      const { status, text } = await admin.post(url, body)
      t.ok(
        status === 404 || status === 409 || status === 422,
        `${url} ${JSON.stringify(body).slice(0, 120)} → ${status} ${status < 300 ? text : ''}`
      )
    }
    t.same(changed(before, await content.tables()), [], 'and of no array was a part taken')
  })

  await t.test('V3.5.3 reading changes nothing', async (t) => {
    await content.quiet()
    const before = await content.tables()
    const reads = service.routes.filter(({ method }) => method === 'GET' || method === 'HEAD')
    for (const { method, url } of reads) {
      for (const role of ['viewer', 'admin'] as const)
        await app.inject({ method, url: named(url, ids), headers: as(app, role) })
    }
    t.ok(reads.length > 60, `${reads.length} routes`)
    t.same(changed(before, await content.tables()), [])
  })

  await t.test('V8.2.3 no answer shows a cost to a viewer or to staff', async (t) => costs(t, service, ids))

  await t.test('V15.3.3 no column of the database can be written by naming it', async (t) => massAssignment(t, service))
})
