import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import Fastify from 'fastify'
import t from 'tap'
import { useProblems } from '../plugins/http/errors.js'
import { serverOptions } from '../plugins/http/server-options.js'

/** docs/errors.md and the coded errors of the program, held together in both directions. */

interface Definition {
  status: number
  texts: Record<string, string>
}
const compiled = join(import.meta.dirname, '..')
const root = join(compiled, '..')

function isDefinition(value: unknown): value is Definition & { code: string } {
  return typeof value === 'function' && 'code' in value && typeof value.code === 'string' && 'texts' in value
}

/** Every file that defines one, imported: what counts is what the program has, not how it is written. */
async function definitions(): Promise<Map<string, Definition>> {
  const found = new Map<string, Definition>()
  let written = 0
  for (const folder of ['plugins', 'modules']) {
    for (const name of readdirSync(join(compiled, folder), { recursive: true }).map(String)) {
      const path = join(compiled, folder, name)
      const count = path.endsWith('.js')
        ? readFileSync(path, 'utf8').match(/^(export )?const \w+ = problem\(/gm)?.length
        : 0
      if (!count) continue
      written += count
      const exported: Record<string, unknown> = await import(pathToFileURL(path).href)
      for (const value of Object.values(exported)) if (isDefinition(value)) found.set(value.code, value)
    }
  }
  if (written !== found.size)
    throw new Error(`${written} errors are defined, ${found.size} exported under a code of their own`)
  return found
}

const document = readFileSync(join(root, 'docs', 'errors.md'), 'utf8')
const documented = [...document.matchAll(/^\| `([A-Z_]+)` +\| +(\d{3}) +\| (.+) \| (.+) \|$/gm)]

t.test('every error is documented, and no other', async (t) => {
  const defined = await definitions()
  t.ok(defined.size > 50, `${defined.size} errors`)
  t.same(documented.map(([, code]) => code).sort(), [...defined.keys()].sort())
  for (const [, code = '', status] of documented) t.equal(Number(status), defined.get(code)?.status, code)
})

t.test('every error speaks both languages', async (t) => {
  for (const [code, { texts }] of await definitions()) {
    t.same(Object.keys(texts).sort(), ['en', 'fr'], code)
    const { en = '', fr = '' } = texts
    const names = (text: string) => [...text.matchAll(/\{(\w+)\}/g)].map(([, name]) => name).sort()
    t.same(names(fr), names(en), `${code}: the same values in both`)
    t.not(fr, en, `${code}: translated`)
  }
})

t.test('every code that rows of an import carry is documented', async (t) => {
  const rowCodes = new Set<string>()
  for (const name of ['import-cells', 'import-reader', 'import-items']) {
    const source = readFileSync(join(compiled, 'modules', 'inventory', `${name}.js`), 'utf8')
    for (const [, code] of source.matchAll(/new RowError\([^'`]*?(?:'\w+', )?'([A-Z][A-Z_]+)'/g))
      rowCodes.add(String(code))
  }
  t.ok(rowCodes.size >= 8, [...rowCodes].join())
  for (const code of rowCodes) t.match(document, new RegExp(`^\\| \`${code}\` +\\|`, 'm'), code)
})

t.test(
  'a failure is logged with the ids that connect it with the audit trail and the trace, and with no secret',
  async (t) => {
    const lines: string[] = []
    const stream = { write: (line: string) => void lines.push(line) }
    const app = Fastify({ logger: { ...serverOptions({ logLevel: 'error' }).logger, stream } })
    app.decorateRequest('tenant', null)
    app.decorateRequest('principal', null)
    useProblems(app)
    app.get('/things/:id', async (request) => {
      request.setDecorator('tenant', { id: 'acme' })
      request.setDecorator('principal', { subject: 'u-7', role: 'staff', tenant: 'acme' })
      throw new Error('on purpose')
    })
    const traceId = '4bf92f3577b34da6a3ce929d0e0e4736'
    const headers = { traceparent: `00-${traceId}-00f067aa0ba902b7-01`, authorization: 'Bearer canary' }
    const { statusCode } = await app.inject({ url: '/things/1?secret=canary', headers })
    t.equal(statusCode, 500)
    t.equal(lines.length, 1)
    const said = {
      level: 50,
      route: '/things/:id',
      tenant: 'acme',
      actor: 'u-7',
      role: 'staff',
      traceId,
      code: 'INTERNAL_ERROR'
    }
    t.match(JSON.parse(lines[0] ?? ''), { ...said, reqId: String, err: { message: 'on purpose', stack: /at / } })
    t.notMatch(lines[0], /canary/)
  }
)
