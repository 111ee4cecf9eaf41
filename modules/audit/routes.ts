import { Readable } from 'node:stream'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import {
  access,
  agentOf,
  csvCell,
  decodeCursor,
  encodeCursor,
  pageOf,
  reportsOf,
  type Tenant
} from '../../plugins/contracts.js'
import {
  AuditEntry,
  AuditExportQuery,
  type AuditFilter,
  AuditList,
  AuditQuery,
  AuditVerification
} from '../../schemas/audit.js'
import { problems } from '../../schemas/common.js'
import { AuditRangeInvalid } from './errors.js'
import type { AuditMetrics } from './metrics.js'
import { createAuditStore, toEntry } from './store.js'
import { verifyTrail } from './verify.js'

const tags = ['audit']
const ROWS_PER_READ = 500
const tenantOf = (request: FastifyRequest) => request.getDecorator<Tenant>('tenant')

/** Text for the client, a stream for the handler. */
const Streamed = Type.Unsafe<Readable>({ type: 'string' })
const EXPORTED = {
  description: 'The file, streamed, newest first',
  content: { 'text/csv': { schema: Streamed }, 'application/x-ndjson': { schema: Streamed } }
}

const checkRange = ({ from, to }: { from?: string; to?: string }) => {
  if (from !== undefined && to !== undefined && Date.parse(from) > Date.parse(to))
    throw new AuditRangeInvalid({ from, to })
}

/** Never cached: the trail grows with every change, and what it shows is for few eyes. */
export const routes: FastifyPluginAsyncTypebox<{ metrics: AuditMetrics }> = async (app, { metrics }) => {
  app.get(
    '/audit',
    {
      config: access('manager'),
      schema: {
        tags,
        summary: 'Who did what, newest first',
        querystring: AuditQuery,
        response: { 200: AuditList, ...problems }
      }
    },
    async (request, reply) => {
      checkRange(request.query)
      const { limit = 50, cursor, ...filter } = request.query
      const purpose = `audit ${JSON.stringify(filter)}`
      const before = Number(decodeCursor(purpose, cursor, ['number'])?.[0] ?? Number.MAX_SAFE_INTEGER)
      const tenant = tenantOf(request)
      reply.header('cache-control', 'no-store')
      return pageOf(
        await createAuditStore(tenant.db).list(filter, before, limit + 1),
        limit,
        ({ seq }) => encodeCursor(purpose, [seq]),
        (row) => toEntry(row, tenant.id)
      )
    }
  )

  app.get(
    '/audit/verify',
    {
      config: access('manager'),
      schema: {
        tags,
        summary: 'Recomputes the chain; says what was changed, removed, inserted or exchanged',
        response: { 200: AuditVerification, ...problems }
      }
    },
    async (request, reply) => {
      const tenant = tenantOf(request)
      const result = await verifyTrail(tenant)
      metrics.verified(tenant.id, result.mismatches.length)
      reply.header('cache-control', 'no-store')
      return result
    }
  )

  app.get(
    '/audit/export',
    {
      config: access('manager'),
      schema: {
        tags,
        summary: 'Export as NDJSON or CSV',
        querystring: AuditExportQuery,
        response: { 200: EXPORTED, ...problems }
      }
    },
    async (request, reply) => {
      checkRange(request.query)
      const { format = 'ndjson', ...filter } = request.query
      const tenant = tenantOf(request)
      await tenant.transact(async (tx) => tx.audit({ action: 'audit.export', details: { format, ...filter } }), {
        agent: agentOf(request)
      })
      const entries = entriesOf(tenant, filter)
      return reply
        .type(format === 'ndjson' ? 'application/x-ndjson; charset=utf-8' : 'text/csv; charset=utf-8')
        .header('content-disposition', `attachment; filename="audit.${format}"`)
        .header('cache-control', 'no-store')
        .send(Readable.from(format === 'ndjson' ? ndjson(entries) : csv(entries)))
    }
  )
}

/** All that match, newest first, in pages: it needs no more memory for millions than for ten. */
export async function* entriesOf(tenant: Tenant, filter: AuditFilter): AsyncGenerator<AuditEntry> {
  const report = await reportsOf(tenant)
  for (let before = Number.MAX_SAFE_INTEGER; ; ) {
    const rows = await report((db) => createAuditStore(db).list(filter, before, ROWS_PER_READ))
    for (const row of rows) yield toEntry(row, tenant.id)
    const last = rows.at(-1)
    if (last === undefined || rows.length < ROWS_PER_READ) return
    before = last.seq
  }
}

async function* ndjson(entries: AsyncIterable<AuditEntry>): AsyncGenerator<string> {
  for await (const entry of entries) yield `${JSON.stringify(entry)}\n`
}

async function* csv(entries: AsyncIterable<AuditEntry>): AsyncGenerator<string> {
  const { object: _object, ...fields } = AuditEntry.properties
  const columns = Object.keys(fields)
  yield `${[...columns, 'objectType', 'objectId'].join(',')}\r\n`
  for await (const { object, ...entry } of entries) {
    const values = new Map(Object.entries(entry))
    const cells = [...columns.map((name) => cellOf(values.get(name))), object?.type ?? null, object?.id ?? null]
    yield `${cells.map(csvCell).join(',')}\r\n`
  }
}

const cellOf = (value: unknown): string | number | null =>
  value === null || value === undefined
    ? null
    : typeof value === 'string' || typeof value === 'number'
      ? value
      : JSON.stringify(value)
