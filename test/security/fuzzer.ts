import * as fc from 'fast-check'
import type { InjectOptions } from 'fastify'
import type { Auth } from '../../plugins/contracts.js'
import { createValidatorCompiler } from '../../plugins/http/validation.js'
import type { Role } from '../../schemas/common.js'
import { type Answer, answerOf, checkAnswer } from '../helper.js'
import { arbitraryOf, csvText, HOSTILE, isObject, Known, odd, type Schema, Verbatim } from './schema-arbitrary.js'
import { changed, type Route, type Service } from './service.js'

/**
 * Requests made from the routes' own schemas, right and wrong ones, one after the other on one database. Whatever is sent:
 * never a 5xx, only what the OpenAPI document declares, nothing written by a read or by what was refused.
 */

/** What is wrong with a request on purpose. `at` counts through the places where it could be. */
type Twist =
  | { kind: 'drop' | 'repeat'; at: number }
  | { kind: 'replace'; at: number; value: unknown }
  | { kind: 'add'; at: number; name: string; value: unknown }
  | { kind: 'text'; text: string; type: string }
  | { kind: 'query'; text: string }
  | { kind: 'path'; at: number; text: string }

interface Plan {
  readonly route: Route
  readonly role: Role
  readonly params: unknown
  readonly query: unknown
  readonly body: unknown
  readonly headers: Record<string, string>
  readonly twist: Twist | null
}

const place = fc.nat(30)
const FOREIGN_NAMES = ['id', 'role', 'tenant', 'created_at', 'unit_cost', 'extra', '__proto__', 'constructor', 'toJSON']
const BROKEN = [
  '',
  '{',
  'null',
  '[]',
  '"text"',
  '{"a":1}}',
  '{"__proto__":{"role":"admin"}}',
  '['.repeat(2_000),
  '\u0000'
]
const TYPES = [
  'application/json',
  'text/csv',
  'application/xml',
  'application/json; charset=utf-16',
  'multipart/form-data'
]
const QUERIES = [
  'limit=1&limit=2',
  'limit[]=1',
  'limit=1e309',
  'cursor=%00',
  'cursor=W10',
  'q=%ff',
  '__proto__=1',
  'sort=',
  'a',
  '&&',
  'limit=-1'
]

const twists: fc.Arbitrary<Twist> = fc.oneof(
  fc.record({ kind: fc.constantFrom('drop' as const, 'repeat' as const), at: place }),
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('replace' as const), at: place, value: odd }) },
  fc.record({ kind: fc.constant('add' as const), at: place, name: fc.constantFrom(...FOREIGN_NAMES), value: odd }),
  fc.record({ kind: fc.constant('text' as const), text: fc.constantFrom(...BROKEN), type: fc.constantFrom(...TYPES) }),
  fc.record({ kind: fc.constant('query' as const), text: fc.constantFrom(...QUERIES) }),
  fc.record({ kind: fc.constant('path' as const), at: place, text: fc.constantFrom(...HOSTILE) })
)

const odder = fc.constantFrom('', 'x', '"', '*', 'W/"a"', 'é', '"a", "b"', '0'.repeat(300), '-1', 'gzip;q=9', 'fr;q=a')
const headers = fc.record(
  {
    'if-match': fc.oneof(fc.constant('*'), odder),
    'if-none-match': fc.oneof(fc.constant('*'), odder),
    'idempotency-key': fc.oneof(fc.constantFrom('one', 'two', 'three'), odder),
    'accept-language': fc.oneof(fc.constantFrom('fr', 'en', 'de'), odder),
    'accept-encoding': fc.oneof(fc.constantFrom('gzip', 'br'), odder),
    prefer: fc.oneof(fc.constantFrom('wait=0', 'respond-async'), odder),
    'x-request-id': odder
  },
  { requiredKeys: [], noNullPrototype: true }
)

const schemaOf = (value: unknown): Schema => (isObject(value) ? value : {})

/** What the route takes: JSON of its schema, or a file. */
function bodies({ schema }: Route): fc.Arbitrary<unknown> {
  if (isObject(schema.body)) return arbitraryOf(schema.body, '')
  return 'consumes' in schema ? csvText : fc.constant(undefined)
}

function plans(route: Route): fc.Arbitrary<Plan> {
  const { params, querystring } = route.schema
  return fc.record({
    route: fc.constant(route),
    role: fc.oneof(
      { weight: 6, arbitrary: fc.constant<Role>('admin') },
      fc.constantFrom<Role[]>('viewer', 'staff', 'manager')
    ),
    params: isObject(params) ? arbitraryOf(params, '') : fc.constant({}),
    query: isObject(querystring) ? arbitraryOf(querystring, '') : fc.constant({}),
    body: bodies(route),
    headers: fc.oneof({ weight: 2, arbitrary: fc.constant({}) }, headers),
    twist: fc.option(twists, { freq: 2 })
  })
}

/** `toLocation`, `parent` and `itemCodes` take what `location` and `itemCode` were shown to be. */
const ALIASES: Record<string, string> = {
  parent: 'location',
  toLocation: 'location',
  itemCodes: 'itemCode',
  overrideId: 'overrides.id',
  modelId: 'models.id'
}
const KNOWN_MAX = 40

/** What the service has shown so far, by the name of the field; an `id` also by the resource that it came from. */
class Knowledge {
  readonly #values = new Map<string, unknown[]>()

  value({ name, index, otherwise }: Known, resource: string): unknown {
    const key = name === 'id' ? `${resource}.id` : (ALIASES[name] ?? name)
    const values = this.#values.get(key) ?? []
    return values.length === 0 ? otherwise : values[index % values.length]
  }

  learn(value: unknown, resources: readonly string[], name = ''): void {
    if (Array.isArray(value)) for (const each of value.slice(0, 20)) this.learn(each, resources, name)
    else if (isObject(value)) for (const [key, each] of Object.entries(value)) this.learn(each, resources, key)
    else if (typeof value === 'string') {
      for (const key of name === 'id' ? resources.map((resource) => `${resource}.id`) : [name]) {
        const values = this.#values.get(key) ?? []
        if (!values.includes(value)) values.push(value)
        this.#values.set(key, values.slice(-KNOWN_MAX))
      }
    }
  }
}

const resourcesOf = (url: string) => url.split('/').filter((part) => part !== '' && !part.startsWith(':'))

function resolved(value: unknown, knowledge: Knowledge, resource: string): unknown {
  if (value instanceof Known) return knowledge.value(value, resource)
  if (Array.isArray(value)) return value.map((each) => resolved(each, knowledge, resource))
  if (!isObject(value) || value instanceof Verbatim) return value
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, resolved(each, knowledge, resource)]))
}

/** Every object and array within, outermost first. */
function containers(value: unknown): (Record<string, unknown> | unknown[])[] {
  if (Array.isArray(value)) return [value, ...value.flatMap(containers)]
  return isObject(value) && !(value instanceof Verbatim) ? [value, ...Object.values(value).flatMap(containers)] : []
}

function twisted(body: unknown, twist: Twist): unknown {
  const all = containers(body)
  const places = all.flatMap((container) => Object.keys(container).map((name) => ({ container, name })))
  const [at] = 'at' in twist && places.length > 0 ? [places[twist.at % places.length]] : []
  if (twist.kind === 'add') {
    const target = all.filter(isObject)[twist.at % Math.max(all.filter(isObject).length, 1)]
    // Defined and not assigned, or `__proto__` would vanish.
    if (target !== undefined) Object.defineProperty(target, twist.name, { value: twist.value, enumerable: true })
  } else if (at === undefined) return twist.kind === 'replace' ? twist.value : body
  else if (twist.kind === 'drop') Reflect.deleteProperty(at.container, at.name)
  else if (twist.kind === 'replace') Reflect.set(at.container, at.name, twist.value)
  else if (twist.kind === 'repeat') {
    const [list] = all.filter((each) => Array.isArray(each))
    if (list !== undefined && list.length > 0) for (let n = 0; n < 1_200; n++) list.push(list[0])
  }
  return body
}

const MARK = '\u0001'
/** @returns JSON, in which what cannot be said by values is put in as text */
function jsonOf(body: unknown): string {
  const text = JSON.stringify(body, (_name, value: unknown) =>
    value instanceof Verbatim ? MARK + value.text + MARK : value
  )
  return text.replaceAll(/"\\u0001([^"\\]*)\\u0001"/g, '$1')
}

/** Half a surrogate pair cannot be put in a URL, and dots alone would be taken for a way up. */
const encoded = (text: string) =>
  encodeURIComponent(
    Buffer.from(text)
      .toString()
      .replace(/^\.\.?$/, '...')
  )

interface Request extends InjectOptions {
  method: Route['method']
  url: string
}

function requestOf(plan: Plan, knowledge: Knowledge): Request {
  const { route, twist } = plan
  const resource = resourcesOf(route.url).at(-1) ?? ''
  const before = (name: string) => resourcesOf(route.url.split(`/:${name}`, 1)[0] ?? '').at(-1) ?? ''
  const params = Object.entries(schemaOf(plan.params)).map(
    ([name, value]) => [name, String(resolved(value, knowledge, before(name)))] as const
  )
  const hostile = twist?.kind === 'path' ? params[twist.at % Math.max(params.length, 1)]?.[0] : undefined
  const path = params.reduce((path, [name, value]) => {
    const text = name === hostile && twist?.kind === 'path' ? twist.text : value
    return path.replace(`:${name}`, encoded(text))
  }, route.url)
  const query = Object.entries(schemaOf(resolved(plan.query, knowledge, resource)))
    .flatMap(([name, value]) => [value].flat().map((each) => `${name}=${encoded(String(each))}`))
    .concat(twist?.kind === 'query' ? [twist.text] : [])
  const url = query.length === 0 ? path : `${path}?${query.join('&')}`
  const { headers } = plan
  if (twist?.kind === 'text')
    return { method: route.method, url, headers: { ...headers, 'content-type': twist.type }, payload: twist.text }
  if (plan.body === undefined) return { method: route.method, url, headers }
  if (typeof plan.body === 'string' && 'consumes' in route.schema)
    return { method: route.method, url, headers: { ...headers, 'content-type': 'text/csv' }, payload: plan.body }
  const body = resolved(plan.body, knowledge, resource)
  const payload = jsonOf(twist === null ? body : twisted(body, twist))
  return { method: route.method, url, headers: { ...headers, 'content-type': 'application/json' }, payload }
}

/** What is wrong with how the service answered, or undefined. */
interface Judgement {
  status: number
  defect?: string
}
type Judge = (request: Request, route: Route, role: Role) => Promise<Judgement>

function judge({ app, content }: Service, knowledge: Knowledge): Judge {
  const compile = createValidatorCompiler()
  const validators = new Map<Route, (body: unknown) => unknown>()
  const fitsBody = (route: Route, payload: unknown): boolean => {
    if (!isObject(route.schema.body)) return true
    const validate =
      validators.get(route) ??
      compile({ schema: route.schema.body, method: route.method, url: route.url, httpPart: 'body' })
    validators.set(route, validate)
    try {
      const body: unknown = JSON.parse(String(payload))
      // Routes whose body may be left out take null for none.
      return body === null || validate(body) === true
    } catch {
      return false
    }
  }
  /** What is wrong with an answer in itself. */
  const defectOf = (request: Request, route: Route, answer: Answer): string | undefined => {
    const { status, headers, text } = answer
    if (status >= 500) return `answered ${status}: ${text.slice(0, 300)} (LOG_LEVEL=error shows why)`
    try {
      checkAnswer(app, request.method, request.url, answer)
    } catch (error) {
      return error instanceof Error ? error.message : String(error)
    }
    if (text !== '' && !/charset=/.test(headers['content-type'] ?? ''))
      return `named no charset: ${headers['content-type']}`
    if (headers['x-content-type-options'] !== 'nosniff') return 'went without the security headers'
    if (status < 300 && request.payload !== undefined && !fitsBody(route, request.payload))
      return `answered ${status} to a body that its schema refuses`
    return undefined
  }
  let known: ReadonlyMap<string, string> | undefined
  return async (request, route, role) => {
    const before = known ?? (await content.tables())
    const token = app.getDecorator<Auth>('auth').sign({ subject: `fuzz-${role}`, role, tenant: 'main' }, 600)
    const headers = { authorization: `Bearer ${token}`, ...request.headers }
    const answer = answerOf(await app.inject({ ...request, headers }))
    const { status } = answer
    const defect = defectOf(request, route, answer)
    if (defect !== undefined) return { status, defect }
    if (status < 300) knowledge.learn(answer.body, resourcesOf(route.url))
    if (status < 300 && request.method !== 'GET') {
      await content.quiet()
      known = undefined
      return { status }
    }
    known = await content.tables()
    const tables = changed(before, known)
    if (tables.length === 0) return { status }
    // What runs by the clock, such as the nightly training or a delivery's next attempt, may write at any moment.
    if ((await content.pending()) === 0 && !tables.every((name) => name.startsWith('webhook')))
      return { status, defect: `answered ${status} and has changed ${tables.join(', ')}` }
    await content.quiet()
    known = undefined
    return { status }
  }
}

interface Budget {
  seed: number
  milliseconds: number
  runs?: number
}
export interface Verdict {
  /** Undefined when all went well. */
  defect: string | undefined
  requests: number
  /** How many answers there were of each status. */
  statuses: ReadonlyMap<number, number>
  /** Routes that answered 2xx at least once. */
  succeeded: ReadonlySet<string>
}

const REQUESTS_MIN = 150

/** Tries `routes` until something is wrong or the budget is spent. The same seed sends the same requests to an empty database. */
export async function fuzz(service: Service, routes: readonly Route[], budget: Budget): Promise<Verdict> {
  const { seed, milliseconds, runs = 10_000_000 } = budget
  const knowledge = new Knowledge()
  const ask = judge(service, knowledge)
  const statuses = new Map<number, number>()
  const succeeded = new Set<string>()
  const attempt = async (plan: Plan) => {
    const request = requestOf(plan, knowledge)
    const { status, defect } = await ask(request, plan.route, plan.role)
    statuses.set(status, (statuses.get(status) ?? 0) + 1)
    if (status < 300) succeeded.add(`${plan.route.method} ${plan.route.url}`)
    if (defect !== undefined) throw new Error(`${said(plan, request)}\n${defect}`)
  }
  let under: Promise<unknown> = Promise.resolve()
  const nothing = { role: 'admin' as const, params: {}, query: {}, body: undefined, headers: {}, twist: null }
  const lists = routes.filter(({ method, url }) => method === 'GET' && !url.includes(':'))
  const property = fc.asyncProperty(fc.oneof(...routes.map(plans)), (plan) => {
    // What is there already is looked up first: it can then be named.
    const list = lists.pop()
    const run = attempt(list === undefined ? plan : { route: list, ...nothing })
    under = run.catch(() => {})
    return run
  })
  const deadline = performance.now() + milliseconds
  // On a busy machine too a few are sent.
  let details = await fc.check(property, { seed, numRuns: Math.min(runs, REQUESTS_MIN) })
  const left = deadline - performance.now()
  if (!details.failed && runs > REQUESTS_MIN && left > 0) {
    const limited = { interruptAfterTimeLimit: left, markInterruptAsFailure: false }
    details = await fc.check(property, { seed: seed + 1, numRuns: runs - REQUESTS_MIN, ...limited })
  }
  // What was under way at the end of the time must not outlive the service.
  await under
  // A check that the end of the time comes upon before its first request counts as failed too, with nothing to show.
  const defect =
    details.counterexample !== null
      ? `request ${requestsOf(statuses)} of seed ${seed}: ${messageOf(details.errorInstance)}`
      : undefined
  const requests = requestsOf(statuses)
  return { defect, requests, statuses, succeeded }
}

const requestsOf = (statuses: ReadonlyMap<number, number>) =>
  [...statuses.values()].reduce((sum, each) => sum + each, 0)
const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error))
const said = ({ role }: Plan, { method, url, headers, payload = '' }: Request) =>
  `as ${role}: ${method} ${url} ${JSON.stringify(headers)} ${String(payload).slice(0, 2_000)}`
