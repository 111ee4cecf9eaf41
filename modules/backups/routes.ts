import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import {
  type Answers,
  type ArchiveEntry,
  type Archives,
  access,
  decodeCursor,
  encodeCursor,
  type Jobs,
  pageOf,
  type Tenant
} from '../../plugins/contracts.js'
import {
  type Backup,
  BackupDetail,
  BackupList,
  BackupParams,
  BackupQuery,
  CheckList,
  CheckQuery
} from '../../schemas/backups.js'
import { Job, problems } from '../../schemas/common.js'
import { BackupsNotConfigured, BackupUnknown } from './errors.js'
import { DRILL_JOB, FULL_JOB, VERIFY_JOB } from './schedule.js'
import { type ArchiveRow, checkOf, createBackupStore } from './store.js'

const tags = ['backups']
const tenantOf = (request: FastifyRequest) => request.getDecorator<Tenant>('tenant')

interface Context {
  answers: Answers
  jobs: Jobs
  archives: Archives | null
}

/** Never cached: what there is is told by the place where backups are, which others may change too. */
export const routes: FastifyPluginAsyncTypebox<Context> = async (app, { answers, jobs, archives }) => {
  const configured = (): Archives => {
    if (archives === null) throw new BackupsNotConfigured({})
    return archives
  }
  const found = async (tenant: Tenant, id: string): Promise<ArchiveEntry> => {
    const entry = (await configured().list(tenant.id)).find((each) => each.id === id)
    if (entry === undefined) throw new BackupUnknown({ id })
    return entry
  }
  const job = { 200: Job, 202: Job, ...problems }

  app.addHook('onRequest', async (_request, reply) => {
    reply.header('cache-control', 'no-store')
  })

  app.get(
    '/backups',
    {
      config: access('admin'),
      schema: {
        tags,
        summary: 'The backups there are, newest first',
        querystring: BackupQuery,
        response: { 200: BackupList, ...problems }
      }
    },
    async (request) => {
      const { limit = 50, cursor, kind } = request.query
      const tenant = tenantOf(request)
      const purpose = `backups ${kind ?? ''}`
      const [at, id] = decodeCursor(purpose, cursor, ['number', 'string']) ?? []
      const isAfter = (entry: ArchiveEntry) =>
        at === undefined || entry.stateAt < Number(at) || (entry.stateAt === at && entry.id < String(id))
      const entries = (await configured().list(tenant.id))
        .filter((entry) => (kind === undefined || entry.kind === kind) && isAfter(entry))
        .sort((a, b) => b.stateAt - a.stateAt || (a.id < b.id ? 1 : -1))
        .slice(0, limit + 1)
      const known = await createBackupStore(tenant.db).archives(entries.map((entry) => entry.id))
      const byId = new Map(known.map((row) => [row.id, row]))
      return pageOf(
        entries,
        limit,
        (entry) => encodeCursor(purpose, [entry.stateAt, entry.id]),
        (entry) => backupOf(entry, byId.get(entry.id))
      )
    }
  )

  app.post(
    '/backups',
    {
      config: access('admin', { limit: 'export' }),
      schema: { tags, summary: 'Make a full backup', response: job }
    },
    async (request, reply) => {
      configured()
      return answers.job(request, reply, (tx) => jobs.start(tenantOf(request), FULL_JOB, {}, tx))
    }
  )

  app.get(
    '/backups/checks',
    {
      config: access('admin'),
      schema: {
        tags,
        summary: 'Verifications and restore drills, newest first, with the measured time to restore',
        querystring: CheckQuery,
        response: { 200: CheckList, ...problems }
      }
    },
    async (request) => {
      const { limit = 50, cursor, kind } = request.query
      const purpose = `backup checks ${kind ?? ''}`
      const [at, id] = decodeCursor(purpose, cursor, ['number', 'string']) ?? []
      const before = at === undefined ? undefined : { at: Number(at), id: String(id) }
      return pageOf(
        await createBackupStore(tenantOf(request).db).checks(kind, before, limit + 1),
        limit,
        (row) => encodeCursor(purpose, [row.at, row.id]),
        checkOf
      )
    }
  )

  app.post(
    '/backups/drill',
    {
      config: access('admin', { fresh: true, limit: 'export' }),
      schema: {
        tags,
        summary: 'Restore the last state into a database of its own, prove it, and measure how long that takes',
        response: job
      }
    },
    async (request, reply) => {
      configured()
      return answers.job(request, reply, (tx) => jobs.start(tenantOf(request), DRILL_JOB, {}, tx))
    }
  )

  app.get(
    '/backups/:id',
    {
      config: access('admin'),
      schema: {
        tags,
        summary: 'One backup, with the rows of each table',
        params: BackupParams,
        response: { 200: BackupDetail, ...problems }
      }
    },
    async (request) => {
      const tenant = tenantOf(request)
      const entry = await found(tenant, request.params.id)
      const [row] = await createBackupStore(tenant.db).archives([entry.id])
      return {
        ...backupOf(entry, row),
        parts: row?.parts ?? null,
        sha256: row?.sha256 ?? null,
        tables: row === undefined ? null : JSON.parse(row.counts)
      }
    }
  )

  app.post(
    '/backups/:id/verify',
    {
      config: access('admin', { limit: 'export' }),
      schema: {
        tags,
        summary: 'Read every part of a backup, and of those that it goes on from',
        params: BackupParams,
        response: job
      }
    },
    async (request, reply) => {
      const tenant = tenantOf(request)
      const { id } = await found(tenant, request.params.id)
      return answers.job(request, reply, (tx) => jobs.start(tenant, VERIFY_JOB, { id }, tx))
    }
  )
}

const backupOf = ({ id, kind, previous, stateAt, bytes }: ArchiveEntry, row: ArchiveRow | undefined): Backup => ({
  ...{ id, kind, previous, bytes },
  stateAt: new Date(stateAt).toISOString(),
  rows: row?.rows ?? null,
  seconds: row === undefined ? null : row.duration_ms / 1000
})
