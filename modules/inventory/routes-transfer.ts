import { rm } from 'node:fs/promises'
import { Readable } from 'node:stream'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from 'typebox'
import { v7 as uuidv7 } from 'uuid'
import { access, agentOf, localeOf, type Transaction } from '../../plugins/contracts.js'
import { Closed, Job, PageQuery, problems } from '../../schemas/common.js'
import * as schemas from '../../schemas/inventory.js'
import { authorOf, type Context, seesCost, tenantOf } from './context.js'
import { ImportNotFound, ImportNotUndoable, ImportRefused, ImportUnreadable } from './errors.js'
import { exportCsv, exportNdjson } from './exports.js'
import { parseMap, type ReadOptions } from './import-reader.js'
import { createImportStore, presentRun } from './import-store.js'
import { IMPORT_CACHE, IMPORT_JOB, moveTo, rehearse, runImport, runUndo, UNDO_JOB } from './imports.js'
import { EMPTY, spoolPath, spoolUpload } from './spool.js'

const tags = ['import and export']
const UPLOAD_TYPES = [
  'text/csv',
  'application/x-ndjson',
  'application/ndjson',
  'application/gzip',
  'application/x-gzip',
  'application/octet-stream',
  'text/plain'
]
/** Text for the client, a stream for the handler. */
const Streamed = Type.Unsafe<Readable>({ type: 'string' })
const EXPORTED = {
  description: 'The file, streamed',
  content: { 'text/csv': { schema: Streamed }, 'application/x-ndjson': { schema: Streamed } }
}
const UPLOAD_MAX_BYTES = 1024 ** 3

export function defineImportJobs({ jobs, metrics }: Context): void {
  // An import is told to be running, or undoing, until its job says how that ended.
  const kept = { runsCancelled: true }
  jobs.define<{ importId: string }>({
    ...kept,
    kind: IMPORT_JOB,
    where: 'local',
    run: (job) => runImport({ metrics }, job),
    // Nothing of the file is to stay; where that was under way already, it may be asked for again.
    givenUp: async ({ tenant, tx, params }) => {
      if (await moveTo(tx, params.importId, ['running'], 'undoing')) await jobs.start(tenant, UNDO_JOB, params, tx)
      else await moveTo(tx, params.importId, ['undoing'], 'failed')
    }
  })
  jobs.define<{ importId: string }>({
    ...kept,
    kind: UNDO_JOB,
    run: (job) => runUndo({ metrics }, job),
    givenUp: async ({ tx, params }) => void (await moveTo(tx, params.importId, ['undoing'], 'failed'))
  })
}

/** Files in and out. */
export const transferRoutes: FastifyPluginAsyncTypebox<Context> = async (app, { answers, jobs, spoolDir }) => {
  await app.register(async (uploads) => {
    uploads.removeAllContentTypeParsers()
    uploads.addContentTypeParser(UPLOAD_TYPES, { bodyLimit: UPLOAD_MAX_BYTES }, (_request, payload, done) =>
      done(null, payload)
    )
    uploads.post<{ Params: { kind: schemas.ImportKind }; Querystring: schemas.ImportQuery }>(
      '/import/:kind',
      {
        config: access('manager', { limit: 'import' }),
        bodyLimit: UPLOAD_MAX_BYTES,
        schema: {
          tags,
          summary: 'Import a CSV or NDJSON file (plain or gzip): all of it or nothing',
          consumes: ['text/csv', 'application/x-ndjson', 'application/gzip'],
          params: schemas.ImportParams,
          querystring: schemas.ImportQuery,
          response: { 200: { anyOf: [schemas.ImportReport, Job] }, 202: Job, ...problems }
        }
      },
      async (request, reply) => {
        if (!(request.body instanceof Readable)) throw new ImportUnreadable({ reason: EMPTY })
        const { kind } = request.params
        const { dryRun = false, map, type } = request.query
        const format = request.headers['content-type']?.includes('ndjson') === true ? 'ndjson' : 'csv'
        const options: ReadOptions = { kind, format, map: parseMap(kind, map), type }
        const locale = localeOf(request)
        const tenant = tenantOf(request)
        const importId = uuidv7()
        const path = spoolPath(spoolDir, tenant, importId, format)
        const fingerprint = await spoolUpload(request.body, path)
        let [begun, kept] = [false, false]
        try {
          if (dryRun) {
            const report = await rehearse(tenant, path, options, locale)
            return reply.code(200).header('content-language', locale).send(report)
          }
          let rows = 0
          const check = async () => {
            const report = await rehearse(tenant, path, options, locale)
            rows = report.rows
            if (report.accepted < rows) {
              const { errors } = report
              throw new ImportRefused({
                rejectedRows: rows - report.accepted,
                shown: errors.length,
                errors: errors.map((error) => ({
                  path: `row ${error.row}${error.column === null ? '' : `, column ${error.column}`}`,
                  message: error.message
                }))
              })
            }
          }
          const { actor, requestId } = authorOf(request)
          const start = async (tx: Transaction) => {
            begun = true
            tx.invalidate(IMPORT_CACHE)
            await createImportStore(tx.db).insert({
              id: importId,
              kind,
              status: 'running',
              total_rows: rows,
              done_rows: 0,
              spool: path,
              options: JSON.stringify(options),
              actor,
              request_id: requestId,
              created_at: Date.now(),
              finished_at: null
            })
            tx.afterCommit(() => {
              kept = true
            })
            return jobs.start(tenant, IMPORT_JOB, { importId }, tx)
          }
          return await answers.job(request, reply, start, { fingerprint, check })
        } finally {
          // Once the import is on record the file is the job's; where that cannot be told now, upkeep removes what nobody waits for.
          const isOnRecord = () =>
            createImportStore(tenant.db)
              .find(importId)
              .then(
                (run) => run !== undefined,
                () => true
              )
          if (!kept && !(begun && (await isOnRecord()))) await rm(path, { force: true })
        }
      }
    )
  })

  app.get(
    '/imports',
    {
      config: access('manager'),
      schema: {
        tags,
        summary: 'Imports, newest first',
        querystring: Closed(PageQuery),
        response: { 200: schemas.ImportRunList, ...problems }
      }
    },
    async (request, reply) =>
      answers.read(request, reply, IMPORT_CACHE, request.url, () =>
        createImportStore(tenantOf(request).db).list(request.query)
      )
  )
  app.get(
    '/imports/:id',
    {
      config: access('manager'),
      schema: {
        tags,
        summary: 'One import',
        params: schemas.ImportRunParams,
        response: { 200: schemas.ImportRun, ...problems }
      }
    },
    async (request, reply) =>
      answers.read(request, reply, IMPORT_CACHE, request.url, async () => {
        const row = await createImportStore(tenantOf(request).db).find(request.params.id)
        if (row === undefined) throw new ImportNotFound({ id: request.params.id })
        return presentRun(row)
      })
  )
  app.post(
    '/imports/:id/undo',
    {
      config: access('manager', { limit: 'import' }),
      schema: {
        tags,
        summary: 'Take a whole import back',
        params: schemas.ImportRunParams,
        response: { 200: Job, 202: Job, ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const tenant = tenantOf(request)
      return answers.job(request, reply, async (tx) => {
        const row = await createImportStore(tx.db).find(id)
        if (row === undefined) throw new ImportNotFound({ id })
        if (!(await moveTo(tx, id, ['running', 'succeeded', 'failed'], 'undoing')))
          throw new ImportNotUndoable({ id, status: row.status })
        return jobs.start(tenant, UNDO_JOB, { importId: id }, tx)
      })
    }
  )

  app.get(
    '/export/:kind',
    {
      config: access('viewer', { limit: 'export' }),
      schema: {
        tags,
        summary: 'Export as CSV or NDJSON',
        params: schemas.ExportParams,
        querystring: schemas.ExportQuery,
        response: { 200: EXPORTED, ...problems }
      }
    },
    async (request, reply) => {
      const { kind } = request.params
      const tenant = tenantOf(request)
      const ndjson = request.query.format === 'ndjson'
      await tenant.transact(async (tx) => tx.audit({ action: 'export', object: { type: 'export', id: kind } }), {
        agent: agentOf(request)
      })
      const rows = (ndjson ? exportNdjson : exportCsv)(kind, tenant, seesCost(request))
      return reply
        .type(ndjson ? 'application/x-ndjson; charset=utf-8' : 'text/csv; charset=utf-8')
        .header('content-disposition', `attachment; filename="${kind}.${ndjson ? 'ndjson' : 'csv'}"`)
        .header('cache-control', 'no-store')
        .send(Readable.from(rows))
    }
  )
}
