import { createHash } from 'node:crypto'
import { negotiate } from '@fastify/accept-negotiator'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { Registry } from 'prom-client'
import type { Job } from '../../schemas/common.js'
import { agentOf, defaultEntry } from '../audit.js'
import { etagOf } from '../cache/index.js'
import type { Answers, CachedText, Principal, Tenant, Transaction } from '../contracts.js'
import { idempotencyMetrics } from '../metrics/idempotency.js'
import { IdempotencyKeyInvalid, PreconditionFailed } from './errors.js'
import { keepAnswer, leaseKey, type Stored, takeKey } from './idempotency-keys.js'

const JSON_TYPE = 'application/json; charset=utf-8'
/** Below this a compressed answer saves nothing. */
const COMPRESS_MIN_BYTES = 1024
const KEY_PATTERN = /^[\x21-\x7e]{1,255}$/
const WAIT_MAX_SECONDS = 60

const encodings = new Map<string, 'br' | 'gzip' | undefined>()
/** Clients send a handful of different headers, so each is parsed once. */
function encodingFor(request: FastifyRequest): 'br' | 'gzip' | undefined {
  const header = request.headers['accept-encoding']
  if (typeof header !== 'string') return undefined
  if (encodings.has(header)) return encodings.get(header)
  const best = negotiate(header, ['br', 'gzip'])
  const encoding = best === 'br' || best === 'gzip' ? best : undefined
  if (encodings.size < 1000) encodings.set(header, encoding)
  return encoding
}

/** Whether an `If-None-Match` or `If-Match` list names this validator (weak prefixes are ignored, as for 304). */
const names = (header: string | undefined, etag: string) =>
  header !== undefined && (header === '*' || header.split(',').some((each) => each.trim().replace(/^W\//, '') === etag))

const varied = new Map<string, string>()
/** Adds to what other plugins have set, such as CORS its `Origin`; that is one of a handful of texts. */
function vary(reply: FastifyReply): void {
  const set = String(reply.getHeader('vary') ?? '')
  const known = varied.get(set)
  if (known !== undefined) return void reply.header('vary', known)
  const missing = ['accept-encoding', 'authorization'].filter((field) => !set.toLowerCase().includes(field))
  const full = [set, ...missing].filter((field) => field !== '').join(', ')
  if (varied.size < 100) varied.set(set, full)
  reply.header('vary', full)
}

function sendText(request: FastifyRequest, reply: FastifyReply, text: CachedText): FastifyReply {
  reply.header('etag', text.etag)
  reply.header('cache-control', 'private, no-cache')
  vary(reply)
  if (names(request.headers['if-none-match'], text.etag)) return reply.code(304).send()
  reply.header('content-type', JSON_TYPE)
  const encoding = text.body.length < COMPRESS_MIN_BYTES ? undefined : encodingFor(request)
  if (encoding === undefined) return reply.send(text.body)
  return reply.header('content-encoding', encoding).send(text.encoded(encoding))
}

/** Gives what a route answers to GET by itself, and does not stream, the ETag of its bytes, so that it too may be answered 304. */
export function nameAnswers(app: FastifyInstance): void {
  app.addHook('onSend', (request, reply, payload, done) => {
    if (
      typeof payload !== 'string' ||
      reply.statusCode !== 200 ||
      !READS.has(request.method) ||
      reply.hasHeader('etag')
    )
      return done(null, payload)
    const etag = etagOf(Buffer.from(payload))
    reply.header('etag', etag)
    if (!names(request.headers['if-none-match'], etag)) return done(null, payload)
    reply.code(304).removeHeader('content-type')
    done(null, null)
  })
}
const READS = new Set(['GET', 'HEAD'])

interface AnswersOptions {
  registry: Registry
  waitForJob(tenant: Tenant, id: string, seconds: number): Promise<Job>
  /** Where a job is shown; undefined where nobody serves that. */
  locationOf(id: string): string | undefined
}

/** How routes answer: reads from the cache with their ETag, writes once for each Idempotency-Key, jobs waited for. */
export function createAnswers({ registry, waitForJob, locationOf }: AnswersOptions): Answers {
  const counted = idempotencyMetrics(registry)
  const tenantOf = (request: FastifyRequest) => request.getDecorator<Tenant>('tenant')
  const begun = new WeakMap<FastifyRequest, { readonly key: string; readonly text: Promise<CachedText> }>()

  return {
    ahead(request, namespace, key, load) {
      const text = tenantOf(request).cache.read(namespace, key, load)
      // Whoever is refused does not come for it.
      text.catch(() => {})
      begun.set(request, { key: `${namespace} ${key}`, text })
    },

    async read(request, reply, namespace, key, load) {
      const early = begun.get(request)
      if (early !== undefined && early.key === `${namespace} ${key}`) return sendText(request, reply, await early.text)
      const text = await tenantOf(request).cache.read(namespace, key, async () => {
        const answer = await load()
        if (typeof answer === 'string' || Buffer.isBuffer(answer)) return answer
        const serialized = reply.code(200).serialize(answer)
        return typeof serialized === 'string' ? serialized : serialized.toString()
      })
      return sendText(request, reply, text)
    },

    async write(request, reply, status, work) {
      const key = keyOf(request)
      const hash = key === undefined ? '' : hashOf(request)
      let again = false
      const answerOnce = async (tx: Transaction): Promise<Stored> => {
        const taken = key === undefined ? undefined : await takeKey(tx.db, key, hash)
        again = taken !== undefined && 'status' in taken
        if (taken !== undefined && 'status' in taken) return taken
        const result = await audited(tx, request, status, work)
        reply.code(status)
        const fresh: Stored = {
          status,
          headers: headersOf(reply),
          body: result === undefined ? '' : String(reply.serialize(result))
        }
        if (key !== undefined) await keepAnswer(tx, key, fresh)
        return fresh
      }
      const answer = await tenantOf(request)
        .transact(answerOnce, { agent: agentOf(request) })
        .catch(counted.refused)
      if (key !== undefined) counted.answered(again)
      return sendStored(reply, answer)
    },

    async job(request, reply, start, upload) {
      const tenant = tenantOf(request)
      const key = keyOf(request)
      const hash = key === undefined ? '' : hashOf(request, upload?.fingerprint)
      let started: Job | undefined
      const startOnce = (keep: (tx: Transaction, answer: Stored) => Promise<void>) => async (tx: Transaction) => {
        started = await start(tx)
        tx.audit({ action: `${started.kind}.start`, object: { type: 'job', id: started.id } })
        const body = String(reply.code(202).serialize(started))
        const location = locationOf(started.id)
        const fresh: Stored = { status: 202, headers: location === undefined ? {} : { location }, body }
        await keep(tx, fresh)
        return fresh
      }
      const agent = { agent: agentOf(request) }
      const answer = await begin().catch(counted.refused)
      if (key !== undefined) counted.answered(started === undefined)
      const seconds = waitSeconds(request)
      if (seconds > 0) {
        const { id }: Pick<Job, 'id'> = JSON.parse(answer.body)
        const ended = await waitForJob(tenant, id, seconds)
        if (ended.finishedAt !== null)
          return reply.code(200).header('preference-applied', `wait=${seconds}`).send(ended)
      }
      return sendStored(reply, answer)

      async function begin(): Promise<Stored> {
        if (key === undefined) {
          await upload?.check()
          return tenant.transact(
            startOnce(async () => {}),
            agent
          )
        }
        if (upload === undefined) {
          return tenant.transact(async (tx) => {
            started = undefined
            const taken = await takeKey(tx.db, key, hash)
            return 'status' in taken ? taken : startOnce((tx, fresh) => keepAnswer(tx, key, fresh))(tx)
          }, agent)
        }
        const lease = await leaseKey(tenant, key, hash)
        if ('status' in lease) return lease
        try {
          await upload.check()
          await lease.stop()
          return await tenant.transact(startOnce(lease.keep), agent)
        } catch (error) {
          await lease.stop()
          // A database that is away does not hide what was wrong; the key is free after a minute.
          await lease.release().catch(() => {})
          throw error
        }
      }
    },

    requireMatch(request, reply, current) {
      const header = request.headers['if-match']
      if (header === undefined) return
      const etag = etagOf(Buffer.from(String(reply.code(200).serialize(current))))
      if (!names(header, etag)) throw new PreconditionFailed({ current: etag })
    }
  }
}

/** Every write leaves an entry in the audit trail: the work's own, or else its route and path. */
async function audited<R>(
  tx: Transaction,
  request: FastifyRequest,
  status: number,
  work: (tx: Transaction) => Promise<R>
): Promise<R> {
  let told = false
  const audit: Transaction['audit'] = (entry) => {
    told = true
    tx.audit(entry)
  }
  const result = await work({ ...tx, audit })
  if (!told) tx.audit(defaultEntry(request, status))
  return result
}

/** Keys are a caller's own: the same key of another user is another key. */
function keyOf(request: FastifyRequest): string | undefined {
  const header = request.headers['idempotency-key']
  if (header === undefined) return undefined
  if (typeof header !== 'string' || !KEY_PATTERN.test(header)) throw new IdempotencyKeyInvalid({})
  return `${request.getDecorator<Principal | null>('principal')?.subject ?? ''} ${header}`
}

function hashOf(request: FastifyRequest, fingerprint?: string): string {
  const hash = createHash('sha256').update(`${request.method} ${request.url}\n`)
  return hash.update(fingerprint ?? JSON.stringify(request.body ?? null)).digest('base64url')
}

function headersOf(reply: FastifyReply): Record<string, string> {
  const location = reply.getHeader('location')
  return typeof location === 'string' ? { location } : {}
}

function sendStored(reply: FastifyReply, { status, headers, body }: Stored): FastifyReply {
  reply.code(status).headers(headers).header('cache-control', 'no-store')
  return body === '' ? reply.send() : reply.header('content-type', JSON_TYPE).send(body)
}

/** RFC 7240 `Prefer: wait=N`, the first one that is a number of seconds. */
function waitSeconds({ headers: { prefer } }: FastifyRequest): number {
  const wait = String(prefer ?? '')
    .split(/[,;]/)
    .map((each) => /^\s*wait\s*=\s*("?)(\d+)\1\s*$/i.exec(each)?.[2])
    .find((seconds) => seconds !== undefined)
  return Math.min(Number(wait ?? 0), WAIT_MAX_SECONDS)
}
