import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import type { Auth } from '../../plugins/contracts.js'
import { client, eachDialect } from '../helper.js'
import { patience } from '../patience.js'
import { temporaryFolder } from '../service-process.js'
import { isObject, type Schema } from './schema-arbitrary.js'
import { changed, openService, type Service } from './service.js'

/** What a request may hold, beyond what the fuzzer tries by chance. */

const INJECTIONS = [
  "'",
  '"',
  '\\',
  '%',
  '_',
  "' or '1'='1",
  "' or 1=1 --",
  '" or ""="',
  "A' and '1'='1",
  "'; drop table items; --",
  "') union select * from users --",
  '1; select pg_sleep(9)',
  '$1',
  '?',
  '*',
  'A*',
  '"A" OR "B"',
  'name:A'
]
const until = patience({ seconds: 20 })
const JSON_TYPE = { 'content-type': 'application/json' }
const admin = (app: FastifyInstance) => ({
  authorization: `Bearer ${app.getDecorator<Auth>('auth').sign({ subject: 'admin', role: 'admin', tenant: 'main' }, 600)}`
})

const propertiesOf = (schema: unknown) =>
  Object.entries(isObject(schema) && isObject(schema.properties) ? schema.properties : {})

/** Free text: what SQL, a pattern or a search language could be hidden in. */
const isFree = (schema: unknown): boolean =>
  isObject(schema) &&
  ((schema.type === 'string' && schema.format === undefined) ||
    (Array.isArray(schema.anyOf) && schema.anyOf.some(isFree)))

await eachDialect(t, async (t, dialect) => {
  const service = await openService(t, { dialect, config: { CACHE: 'off' } })
  const { app } = service
  const all = client(app, 'admin')
  for (const itemCode of ['A', 'B']) {
    await all.post('/api/inventory', { itemCode, name: `Item ${itemCode}`, unit: 'each', category: 'Dry' })
    await all.post('/api/movements', { type: 'receipt', lines: [{ itemCode, quantity: 10 }] })
  }
  await t.test('V1.2.4 SQL in any text of a query finds nothing and breaks nothing', (t) => injections(t, service))
  await t.test('V1.2.9 no text makes a search slow', (t) => slowSearches(t, app))
  await t.test('V1.4.2 numbers at the edges are refused or exact', (t) => numbers(t, app))
  await t.test('V2.2.3 fields that contradict each other are refused', (t) => contradictions(t, app))
  await t.test('V15.3.6 no body reaches a prototype', (t) => prototypes(t, service))
  await t.test('V15.3.7 a parameter given twice is refused', (t) => repeated(t, service))
  await t.test('V2.4.1 a batch, a page and a body have an end', (t) => sizes(t, app))
})

async function injections(t: Test, { app, routes, content }: Service): Promise<void> {
  await content.quiet()
  const before = await content.tables()
  let tried = 0
  for (const { method, url, schema } of routes) {
    if (method !== 'GET' || !url.startsWith('/api/')) continue
    for (const [name] of propertiesOf(schema.querystring).filter(([, each]) => isFree(each))) {
      for (const text of INJECTIONS) {
        // There the star stands for the rest of an action's name.
        if (name === 'action' && text.endsWith('*')) continue
        const path = url.replace(':itemCode', 'A').replace(':location', 'main').replace(/:\w+/g, 'items')
        const answer = await app.inject({ url: `${path}?${name}=${encodeURIComponent(text)}`, headers: admin(app) })
        tried++
        const { statusCode } = answer
        const isList = statusCode === 200 && String(answer.headers['content-type']).startsWith('application/json')
        const rows: unknown[] = isList ? (answer.json().data ?? []) : []
        if (statusCode >= 500 || rows.length > 0)
          t.fail(`${url}?${name}=${text} → ${statusCode}, ${JSON.stringify(rows).slice(0, 200)}`)
      }
    }
  }
  t.ok(tried > 100, `${tried} requests`)
  t.same(changed(before, await content.tables()), [])
}

/** The quickest of a few, since other programs run beside this one. */
async function quickest(attempt: () => Promise<unknown>): Promise<number> {
  let best = Number.POSITIVE_INFINITY
  for (let n = 0; n < 5; n++) {
    const startedAt = performance.now()
    await attempt()
    best = Math.min(best, performance.now() - startedAt)
  }
  return best
}

async function slowSearches(t: Test, app: FastifyInstance): Promise<void> {
  const texts = [
    'x'.repeat(50_000),
    '(a+)+$'.repeat(33),
    '%_'.repeat(100),
    `${'a'.repeat(199)}!`,
    '"'.repeat(200),
    ' *'.repeat(100)
  ]
  for (const text of texts) {
    const url = `/api/inventory?q=${encodeURIComponent(text)}`
    const milliseconds = await quickest(async () => {
      const { statusCode } = await app.inject({ url, headers: admin(app) })
      t.equal(statusCode, text.length > 200 ? 400 : 200)
    })
    t.ok(milliseconds < 100, `${text.slice(0, 20)}… (${text.length} characters) took ${milliseconds.toFixed(0)} ms`)
  }
  for (const name of ['a'.repeat(50_000), ' '.repeat(50_000), `${' '.repeat(50_000)}a`]) {
    const milliseconds = await quickest(() =>
      app.inject({
        method: 'POST',
        url: '/api/inventory',
        headers: admin(app),
        payload: { itemCode: name, name, unit: 'each' }
      })
    )
    t.ok(milliseconds < 100, `50,000 characters in a name took ${milliseconds.toFixed(0)} ms`)
  }
}

async function numbers(t: Test, app: FastifyInstance): Promise<void> {
  const all = client(app, 'admin')
  const refused = [
    '0',
    '-1',
    '-0',
    '9007199254740992',
    '9007199254740993',
    '1e309',
    '-1e309',
    '0.30000000000000004',
    '1e-7',
    '5e-324',
    '"1"',
    'null',
    'true'
  ]
  for (const number of refused) {
    for (const line of [`"quantity":${number}`, `"quantity":1,"unitCost":${number}`]) {
      // A cost may be 0.
      if (line.includes('unitCost') && ['0', '-0'].includes(number)) continue
      const body = `{"type":"receipt","lines":[{"itemCode":"A",${line}}]}`
      const { status } = await all.post('/api/movements', body, JSON_TYPE)
      t.ok(status === 400 || status === 422, `${line} → ${status}`)
    }
  }
  for (const quantity of [0.1, 0.2, 0.000001, 1e-6, 999_999.999999])
    t.equal((await all.post('/api/movements', { type: 'receipt', lines: [{ itemCode: 'A', quantity }] })).status, 201)
  t.equal((await all.get('/api/inventory/A')).body.onHand, 1_000_010.300001, 'and what is taken adds up')
}

async function contradictions(t: Test, app: FastifyInstance): Promise<void> {
  const all = client(app, 'admin')
  await all.post('/api/inventory', { itemCode: 'L', name: 'L', unit: 'each', tracking: 'lot' })
  await all.post('/api/inventory', { itemCode: 'S', name: 'S', unit: 'each', tracking: 'serial' })
  const move = (type: string, line: object) =>
    ['/api/movements', { type, lines: [{ itemCode: 'A', quantity: 1, ...line }] }] as const
  const bodies = [
    move('transfer', { location: 'main', toLocation: 'main' }),
    move('transfer', {}),
    move('issue', { toLocation: 'main' }),
    move('receipt', { lot: 'of what has none' }),
    move('receipt', { itemCode: 'L' }),
    move('receipt', { itemCode: 'S', lot: 'one', quantity: 2 }),
    ['/api/movements', { type: 'receipt', occurredAt: '2999-01-01T00:00:00Z', lines: [{ itemCode: 'A', quantity: 1 }] }]
  ] as const
  for (const [url, body] of bodies) {
    const { status } = await all.post(url, body)
    t.ok([400, 409, 422].includes(status), `${url} ${JSON.stringify(body)} → ${status}`)
  }
}

async function prototypes(t: Test, { app, routes }: Service): Promise<void> {
  const bodies = [
    '{"__proto__":{"role":"admin","polluted":1}}',
    '{"constructor":{"prototype":{"polluted":1}}}',
    '{"__proto__":null}',
    '{"a":{"__proto__":{"polluted":1}}}'
  ]
  for (const { method, url, schema } of routes) {
    if (['GET', 'HEAD'].includes(method) || 'consumes' in schema) continue
    for (const payload of bodies) {
      const path = url.replace(/:\w+/g, 'none')
      const { statusCode } = await app.inject({ method, url: path, headers: { ...admin(app), ...JSON_TYPE }, payload })
      if (statusCode !== 400) t.fail(`${method} ${url} ${payload} → ${statusCode}`)
    }
  }
  t.notOk('polluted' in {}, 'and no prototype was reached')
}

async function repeated(t: Test, { app, routes }: Service): Promise<void> {
  const isList = (schema: Schema) =>
    schema.type === 'array' ||
    (Array.isArray(schema.anyOf) && schema.anyOf.some((each) => isObject(each) && each.type === 'array'))
  let tried = 0
  for (const { method, url, schema } of routes) {
    for (const [name, value] of propertiesOf(schema.querystring)) {
      if (!isObject(value) || isList(value)) continue
      for (const query of [`${name}=1&${name}=2`, `${name}[]=1`, `${name}[$gt]=1`, `${name}=1&${name}=1`]) {
        tried++
        const { statusCode } = await app.inject({
          method,
          url: `${url.replace(/:\w+/g, 'items')}?${query}`,
          headers: admin(app)
        })
        if (statusCode !== 400 && statusCode !== 415) t.fail(`${method} ${url}?${query} → ${statusCode}`)
      }
    }
  }
  t.ok(tried > 200, `${tried} requests`)
}

async function sizes(t: Test, app: FastifyInstance): Promise<void> {
  const all = client(app, 'admin')
  const line = { itemCode: 'A', quantity: 1 }
  t.equal((await all.post('/api/movements', { type: 'receipt', lines: Array(1_001).fill(line) })).status, 400)
  t.equal((await all.get('/api/inventory?limit=501')).status, 400)
  t.equal((await all.post('/api/inventory', { name: 'x'.repeat(2 ** 20) })).status, 413)
}

const DATA_DIR = temporaryFolder(t)
const files = await openService(t, { dialect: 'sqlite', config: { DATA_DIR } })

t.test('V5.2.1 an upload is bounded in size and type, unpacked as well as packed', async (t) => {
  const { app, content } = files
  const send = (payload: Buffer | string, type: string) =>
    app.inject({
      method: 'POST',
      url: '/api/import/items',
      headers: { ...admin(app), 'content-type': type },
      payload
    })
  const before = await content.tables()
  const bomb = gzipSync(Buffer.alloc(64 * 1024 ** 2, 'itemCode,name,unit\n'))
  t.ok(bomb.length < 500_000)
  for (const type of ['application/gzip', 'text/csv', 'application/octet-stream']) {
    const answer = await send(bomb, type)
    t.equal(answer.statusCode, 413, `64 MiB in ${bomb.length} bytes of ${type}: ${answer.body}`)
  }
  t.equal((await send(gzipSync(bomb), 'application/gzip')).statusCode, 400, 'gzip in gzip is no table')
  for (const type of ['application/zip', 'application/json', 'text/html', 'multipart/form-data'])
    t.equal((await send('itemCode,name,unit\nA,A,each\n', type)).statusCode, 415, type)
  const table = 'itemCode,name,unit\nA,A,each\n'
  const json = '{"itemCode":"A","name":"A","unit":"each"}'
  for (const [url, payload, encoding, status, allowed] of [
    ['/api/import/items?dryRun=true', gzipSync(table), 'gzip', 200],
    ['/api/import/items?dryRun=true', gzipSync(table), 'X-Gzip', 200],
    ['/api/import/items?dryRun=true', table, 'identity', 200],
    ['/api/import/items?dryRun=true', table, 'zstd', 415, ['identity', 'gzip']],
    ['/api/import/items?dryRun=true', table, 'gzip, br', 415, ['identity', 'gzip']],
    ['/api/inventory', gzipSync(json), 'gzip', 415, ['identity']],
    ['/api/inventory', json, 'br', 415, ['identity']],
    ['/api/nowhere', json, 'br', 404]
  ] as const) {
    const type = url.includes('import') ? { 'content-type': 'text/csv' } : JSON_TYPE
    const headers = { ...admin(app), ...type, 'content-encoding': encoding }
    const answer = await app.inject({ method: 'POST', url, headers, payload })
    t.equal(answer.statusCode, status, `${url} in ${encoding}: ${answer.body}`)
    if (status === 415) t.match(answer.json(), { code: 'REQUEST_CONTENT_ENCODING', allowed })
  }
  // A rehearsal removes its file a moment after it has answered.
  const kept = () => readdirSync(join(DATA_DIR, 'imports'))
  await until('none is kept', () => kept().length === 0)
  t.same(kept(), [], 'and none is kept')
  t.same(changed(before, await content.tables()), [])
})

t.test('V5.3.2 no name of a file comes from a request', async (t) => {
  const { app } = files
  const listed = () => readdirSync(DATA_DIR, { recursive: true }).map(String).sort()
  const before = listed()
  for (const name of [
    '../../etc/passwd',
    '..\\..\\x',
    '/etc/passwd',
    'items/../../x',
    'items\u0000.csv',
    'file:///etc/passwd',
    '%2e%2e%2fx'
  ]) {
    for (const [method, path] of [
      ['POST', 'import'],
      ['GET', 'export'],
      ['GET', 'imports'],
      ['POST', 'imports'],
      ['GET', 'jobs']
    ] as const) {
      const url = `/api/${path}/${encodeURIComponent(name)}`
      const headers = {
        ...admin(app),
        'content-type': 'text/csv',
        'content-disposition': `attachment; filename="${encodeURI(name)}"`,
        'x-request-id': encodeURI(name)
      }
      const { statusCode } = await app.inject({
        method,
        url,
        headers,
        ...(method === 'POST' ? { payload: 'a\n' } : {})
      })
      t.ok([400, 404].includes(statusCode), `${method} ${url} → ${statusCode}`)
    }
  }
  const exported = await app.inject({ url: '/api/export/items', headers: admin(app) })
  t.match(exported.headers['content-disposition'] ?? 'inline', /^(inline|attachment; filename="[\w.-]+")$/)
  t.same(
    listed().filter((file) => !/sqlite-(wal|shm)$/.test(file)),
    before.filter((file) => !/sqlite-(wal|shm)$/.test(file)),
    'no file was made'
  )
})
