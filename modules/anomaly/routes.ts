import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply, FastifyRequest } from 'fastify'
import {
  type Answers,
  access,
  answerIn,
  decodeCursor,
  encodeCursor,
  type Principal,
  pageOf,
  type Tenant
} from '../../plugins/contracts.js'
import {
  AcknowledgeRequest,
  Anomaly,
  AnomalyList,
  AnomalyParams,
  AnomalyQuery,
  Detected,
  DetectRequest,
  ResolveRequest
} from '../../schemas/anomaly.js'
import { problems } from '../../schemas/common.js'
import { AnomalyNotFound, AnomalyRangeInvalid, AnomalyStateConflict } from './errors.js'
import { localeOf } from './explain.js'
import { openCounts } from './headline.js'
import type { AnomalyMetrics } from './metrics.js'
import { type SeriesSource, scan, type UnusualDays } from './scan.js'
import { type AnomalyTables, createAnomalyStore, type Handling, type ItemFinding, toAnomaly } from './store.js'

const NAMESPACE = 'anomaly'
const ANSWERED_DEFAULT = 1000
const FINDINGS_PER_TRANSACTION = 1000
const GRAVITY = { high: 2, medium: 1, low: 0 } as const

interface Context {
  answers: Answers
  series: SeriesSource
  unusualDays: UnusualDays | undefined
  metrics: AnomalyMetrics
  now: () => number
}

const tenantOf = (request: FastifyRequest) => request.getDecorator<Tenant>('tenant')
const subjectOf = (request: FastifyRequest) => request.getDecorator<Principal | null>('principal')?.subject ?? null
const languageOf = (request: FastifyRequest) => localeOf(request.headers['accept-language'])

/** No body asks for the defaults, as an empty one does. */
const bodyOptional = async (request: FastifyRequest) => {
  request.body ??= {}
}

const checkRange = ({ from, to }: { from?: string; to?: string }) => {
  if (from !== undefined && to !== undefined && from > to) throw new AnomalyRangeInvalid({ from, to })
}

export const routes: FastifyPluginAsyncTypebox<Context> = async (
  app,
  { answers, series, unusualDays, metrics, now }
) => {
  const tags = ['anomaly']

  /** In short transactions, so that others get theirs: a finding is stored once, however often it is found. */
  async function keep(tenant: Tenant, findings: readonly ItemFinding[]): Promise<number> {
    let stored = 0
    for (let start = 0; start < findings.length; start += FINDINGS_PER_TRANSACTION) {
      const part = findings.slice(start, start + FINDINGS_PER_TRANSACTION)
      stored += await tenant.transact(async (tx) => {
        const added = await createAnomalyStore(tx.db.withTables<AnomalyTables>()).add(part, now())
        tx.invalidate(NAMESPACE)
        tx.afterCommit(() => {
          for (const { detector, severity } of added) metrics.detected(detector, severity)
        })
        return added.length
      })
    }
    return stored
  }

  const observe = async (tenant: Tenant) => metrics.observe(tenant.id, await openCounts(tenant))

  app.post(
    '/ai/consumption/detect-anomalies',
    {
      config: access('manager', { limit: 'training' }),
      preValidation: bodyOptional,
      schema: {
        tags,
        summary: 'Looks for unusual use and stores what it finds, once',
        body: DetectRequest,
        response: { 200: Detected, ...problems }
      }
    },
    async (request, reply) => {
      checkRange(request.body)
      const tenant = tenantOf(request)
      const startedAt = performance.now()
      const { findings, items } = await scan(tenant, series, request.body, unusualDays)
      metrics.scanned(items, (performance.now() - startedAt) / 1000)
      const limit = request.body.limit ?? ANSWERED_DEFAULT
      const answered = findings
        .sort(
          (a, b) =>
            GRAVITY[b.severity] - GRAVITY[a.severity] || (a.day < b.day ? 1 : a.day > b.day ? -1 : b.score - a.score)
        )
        .slice(0, limit)
      const stored = await keep(tenant, findings)
      await answers.write(request, reply, 200, async (tx) => {
        const store = createAnomalyStore(tx.db.withTables<AnomalyTables>())
        const data = (await store.of(answered)).map((row) => toAnomaly(row, languageOf(request)))
        return { data, found: findings.length, stored, items }
      })
      await observe(tenant)
    }
  )

  app.get(
    '/anomalies',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Anomalies found, newest day first',
        querystring: AnomalyQuery,
        response: { 200: AnomalyList, ...problems }
      }
    },
    async (request, reply) => {
      checkRange(request.query)
      const { limit = 50, cursor, ...filter } = request.query
      const locale = languageOf(request)
      answerIn(locale, reply)
      const purpose = `anomalies ${JSON.stringify(filter)}`
      const [day, id] = decodeCursor(purpose, cursor, ['string', 'string']) ?? []
      const after = day === undefined || id === undefined ? undefined : { day: String(day), id: String(id) }
      return answers.read(request, reply, NAMESPACE, JSON.stringify([locale, filter, limit, after]), async () => {
        const store = createAnomalyStore(tenantOf(request).db.withTables<AnomalyTables>())
        return pageOf(
          await store.list(filter, after, limit + 1),
          limit,
          (last) => encodeCursor(purpose, [last.day, last.id]),
          (row) => toAnomaly(row, locale)
        )
      })
    }
  )

  async function handle(
    request: FastifyRequest,
    reply: FastifyReply,
    id: string,
    handling: Omit<Handling, 'by' | 'at'>
  ) {
    await answers.write(request, reply, 200, async (tx) => {
      const store = createAnomalyStore(tx.db.withTables<AnomalyTables>())
      const changed = await store.handle(id, { ...handling, by: subjectOf(request), at: now() })
      if (changed === undefined) {
        const current = await store.find(id)
        if (current === undefined) throw new AnomalyNotFound({ id })
        throw new AnomalyStateConflict({ id, current: current.status })
      }
      tx.invalidate(NAMESPACE)
      const { verdict } = handling
      tx.audit({
        action: handling.status === 'resolved' ? 'anomaly.resolve' : 'anomaly.acknowledge',
        object: { type: 'anomaly', id },
        after: { status: handling.status, verdict }
      })
      if (verdict !== undefined) tx.afterCommit(() => metrics.judged(verdict))
      return toAnomaly(changed, languageOf(request))
    })
    await observe(tenantOf(request))
  }

  app.post(
    '/anomalies/:id/acknowledge',
    {
      config: access('staff'),
      preValidation: bodyOptional,
      schema: {
        tags,
        summary: 'Somebody looks into it',
        params: AnomalyParams,
        body: AcknowledgeRequest,
        response: { 200: Anomaly, ...problems }
      }
    },
    async (request, reply) => {
      await handle(request, reply, request.params.id, {
        status: 'acknowledged',
        from: ['open'],
        note: request.body.note
      })
    }
  )

  app.post(
    '/anomalies/:id/resolve',
    {
      config: access('manager'),
      schema: {
        tags,
        summary: 'Closes it with a verdict',
        params: AnomalyParams,
        body: ResolveRequest,
        response: { 200: Anomaly, ...problems }
      }
    },
    async (request, reply) => {
      const { note, verdict } = request.body
      await handle(request, reply, request.params.id, {
        status: 'resolved',
        from: ['open', 'acknowledged'],
        note,
        verdict
      })
    }
  )
}
