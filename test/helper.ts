import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { brotliDecompressSync, gunzipSync } from 'node:zlib'
import type { ValidateFunction } from 'ajv'
import { Ajv2020 } from 'ajv/dist/2020.js'
import formats from 'ajv-formats'
import type { FastifyInstance, InjectOptions, LightMyRequestResponse } from 'fastify'
import type { Test } from 'tap'
import { loadConfig } from '../plugins/config/index.js'
import type { Auth } from '../plugins/contracts.js'
import type { Role } from '../schemas/common.js'
import { build } from '../server.js'
import { type Dialect, provideDatabase } from './templates.js'

/** The whole service on an empty database, spoken to as a client does; every answer is held against its OpenAPI document. */

export type { Dialect } from './templates.js'
export const DIALECTS: readonly Dialect[] = ['sqlite', 'postgres']

/** Runs `work` as one subtest for each database. */
export async function eachDialect(t: Test, work: (t: Test, dialect: Dialect) => Promise<unknown>): Promise<void> {
  for (const dialect of DIALECTS) await t.test(dialect, (t) => work(t, dialect))
}

interface AppOptions {
  dialect: Dialect
  tenancy?: 'single' | 'multi'
  redisUrl?: string
  /** Environment variables over those of the tests; `DATABASE_URL` or `DATA_DIR` named here is the caller's to remove. */
  config?: Record<string, string>
}

/** The app of server.ts, ready and not listening. Closed, and its data removed, when the test ends. */
export async function buildApp(t: Test, options: AppOptions): Promise<FastifyInstance> {
  const { dialect, tenancy = 'single', redisUrl, config = {} } = options
  const dataDir = mkdtempSync(join(tmpdir(), 'inventory-test-'))
  t.teardown(() => rmSync(dataDir, { recursive: true, force: true }))
  const url = config.DATABASE_URL ?? (await provideDatabase(t, { dialect, tenancy, dataDir }))
  const app = await build(
    loadConfig({
      NODE_ENV: 'test',
      LOG_LEVEL: process.env.LOG_LEVEL ?? 'silent',
      DATA_DIR: dataDir,
      DATABASE_URL: url,
      TENANCY: tenancy,
      REDIS_URL: redisUrl,
      ...config
    })
  )
  t.teardown(() => app.close())
  await app.ready()
  const kind = JSON.stringify([tenancy, { ...config, DATABASE_URL: '' }])
  representatives.set(app, kinds.get(kind) ?? app)
  if (!kinds.has(kind)) kinds.set(kind, app)
  return app
}

export interface Answer {
  status: number
  /** Undefined when the answer is empty or another type. Its shape is the OpenAPI document's, which is checked. */
  body: ReturnType<typeof JSON.parse>
  text: string
  headers: Record<string, string>
}
type Body = object | string | Buffer | Readable
type Headers = Record<string, string>

export function answerOf(response: LightMyRequestResponse): Answer {
  const { statusCode: status, rawPayload } = response
  const json = /^application\/(problem\+)?json;/.test(String(response.headers['content-type']))
  const encoding = rawPayload.length === 0 ? undefined : response.headers['content-encoding']
  const bytes =
    encoding === 'br' ? brotliDecompressSync(rawPayload) : encoding === 'gzip' ? gunzipSync(rawPayload) : rawPayload
  const text = bytes.toString()
  return {
    status,
    body: json && text !== '' ? JSON.parse(text) : undefined,
    text,
    headers: Object.fromEntries(Object.entries(response.headers).map(([name, value]) => [name, String(value)]))
  }
}

export interface Client {
  get(url: string, headers?: Headers): Promise<Answer>
  post(url: string, body?: Body, headers?: Headers): Promise<Answer>
  put(url: string, body?: Body, headers?: Headers): Promise<Answer>
  patch(url: string, body?: Body, headers?: Headers): Promise<Answer>
  delete(url: string, headers?: Headers): Promise<Answer>
}

/**
 * A client with a bearer token. Its calls reject when an answer is not as the OpenAPI document says. A body that is text,
 * bytes or a stream goes out as it is, under the content type of `headers`; any other as JSON.
 */
export function client(app: FastifyInstance, role: Role, { tenant = 'main', subject = `test-${role}` } = {}): Client {
  const token = app.getDecorator<Auth>('auth').sign({ subject, role, tenant }, 3600)
  const call = async (
    method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE',
    url: string,
    headers: Headers,
    body?: Body
  ) => {
    const options: InjectOptions = { method, url, headers: { authorization: `Bearer ${token}`, ...headers } }
    if (body !== undefined) options.payload = body
    const answer = answerOf(await app.inject(options))
    checkAnswer(app, method, url, answer)
    return answer
  }
  return {
    get: (url, headers = {}) => call('GET', url, headers),
    post: (url, body, headers = {}) => call('POST', url, headers, body),
    put: (url, body, headers = {}) => call('PUT', url, headers, body),
    patch: (url, body, headers = {}) => call('PATCH', url, headers, body),
    delete: (url, headers = {}) => call('DELETE', url, headers)
  }
}

interface Operation {
  responses: Record<string, { content?: Record<string, { schema?: object }> }>
}
interface Document {
  /** The most literal template first, as a router chooses. */
  paths: { pattern: RegExp; template: string; operations: Record<string, Operation> }[]
  validators: Map<object, ValidateFunction>
}
const documents = new WeakMap<FastifyInstance, Document>()
/** What apps of one configuration describe is the same, so the first stands for all: to read it costs as much as to build one. */
const kinds = new Map<string, FastifyInstance>()
const representatives = new WeakMap<FastifyInstance, FastifyInstance>()
const ajv = formats.default(new Ajv2020({ strict: false, allErrors: true, code: { optimize: false } }))

const compiledTexts = new Map<string, ValidateFunction>()
/** A schema is repeated by every operation that uses it, and in every app. */
function compiled(schema: object): ValidateFunction {
  const text = JSON.stringify(schema)
  const validate = compiledTexts.get(text) ?? ajv.compile(schema)
  compiledTexts.set(text, validate)
  return validate
}

function documentOf(app: FastifyInstance): Document {
  const known = documents.get(representatives.get(app) ?? app)
  if (known !== undefined) return known
  const { paths }: { paths: Record<string, Record<string, Operation>> } = JSON.parse(JSON.stringify(app.swagger()))
  const parameters = (template: string) => template.split('{').length
  const document = {
    paths: Object.entries(paths)
      .sort(([a], [b]) => parameters(a) - parameters(b))
      .map(([template, operations]) => ({
        template,
        operations,
        pattern: new RegExp(`^${template.replace(/[.*+?^$()|[\]\\]/g, '\\$&').replace(/\{[^}]+\}/g, '[^/]*')}/?$`)
      })),
    validators: new Map<object, ValidateFunction>()
  }
  documents.set(representatives.get(app) ?? app, document)
  return document
}

/** @throws Error when the OpenAPI document does not allow the answer */
export function checkAnswer(app: FastifyInstance, method: string, url: string, answer: Answer): void {
  const document = documentOf(app)
  const path = new URL(url, 'http://localhost').pathname
  const found = document.paths.find(({ pattern }) => pattern.test(path))
  const operation = found?.operations[method.toLowerCase()]
  const defect = operation === undefined ? undocumented(answer) : defectOf(operation, document, answer)
  if (defect === undefined) return
  const { status, text } = answer
  throw new Error(`${method} ${found?.template ?? path} answered ${status}, ${defect}: ${text.slice(0, 500)}`)
}

const undocumented = ({ status }: Answer) =>
  status === 404 || status === 405 ? undefined : 'but the OpenAPI document has no such operation'

/** What the document does not allow in this answer. */
function defectOf({ responses }: Operation, document: Document, answer: Answer): string | undefined {
  const { status, headers, text, body } = answer
  if (status === 500) return 'which no request may cause (LOG_LEVEL=error shows why)'
  if (status === 304) return text === '' ? undefined : 'which has no body'
  const response = responses[status] ?? responses[`${Math.floor(status / 100)}XX`]
  if (response === undefined) return `which is not declared (${Object.keys(responses).join(', ')} are)`
  if (response.content === undefined) return text === '' ? undefined : 'declared without a body'
  const type = (headers['content-type'] ?? '').split(';')[0] ?? ''
  const schema = response.content[type]?.schema
  if (schema === undefined) return `of the undeclared type ${type}`
  const validate = document.validators.get(schema) ?? compiled(schema)
  document.validators.set(schema, validate)
  return validate(body === undefined ? text : body) ? undefined : ajv.errorsText(validate.errors)
}
