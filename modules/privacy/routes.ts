import { Readable } from 'node:stream'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply, FastifyRequest } from 'fastify'
import {
  type Answers,
  access,
  agentOf,
  type PersonalData,
  type Principal,
  type Tenant
} from '../../plugins/contracts.js'
import { problems } from '../../schemas/common.js'
import { Erasure, Rectification, Rectified, Register, SubjectFile, SubjectParams } from '../../schemas/privacy.js'
import { SubjectNotFound } from './errors.js'
import type { Subjects } from './index.js'
import type { PrivacyMetrics } from './metrics.js'
import { registerOf } from './register.js'

const tags = ['privacy']
const tenantOf = (request: FastifyRequest) => request.getDecorator<Tenant>('tenant')
const callerOf = (request: FastifyRequest) => request.getDecorator<Principal | null>('principal')?.subject ?? ''

interface Context {
  answers: Answers
  holders: readonly PersonalData[]
  subjects: Subjects
  metrics: PrivacyMetrics
}

export const routes: FastifyPluginAsyncTypebox<Context> = async (app, { answers, holders, subjects, metrics }) => {
  const register = registerOf(holders)
  const file = { 200: { description: 'The file, streamed', content: { 'application/json': { schema: SubjectFile } } } }

  async function answerFile(request: FastifyRequest, reply: FastifyReply, id: string) {
    const tenant = tenantOf(request)
    if (!(await subjects.exists(tenant, id))) throw new SubjectNotFound({ id })
    await tenant.transact(async (tx) => tx.audit({ action: 'privacy.export', object: { type: 'user', id } }), {
      agent: agentOf(request)
    })
    metrics.exercised('access')
    return reply
      .type('application/json; charset=utf-8')
      .header('content-disposition', `attachment; filename="personal-data-${id}.json"`)
      .header('cache-control', 'no-store')
      .send(Readable.from(fileOf(tenant, id, holders)))
  }

  app.get(
    '/privacy/me',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Everything that is kept about the caller, as one file',
        response: { ...file, ...problems }
      }
    },
    async (request, reply) => answerFile(request, reply, callerOf(request))
  )

  app.patch(
    '/privacy/me',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Correct the own name',
        body: Rectification,
        response: { 200: Rectified, ...problems }
      }
    },
    async (request, reply) => {
      const id = callerOf(request)
      return answers.write(request, reply, 200, async (tx) => {
        const names = await subjects.rectify(tx, id, request.body)
        if (names === undefined) throw new SubjectNotFound({ id })
        tx.afterCommit(() => metrics.exercised('rectification'))
        return { subject: id, ...names }
      })
    }
  )

  app.get(
    '/privacy/subjects/:id/export',
    {
      config: access('admin'),
      schema: {
        tags,
        summary: 'Everything that is kept about a user, as one file',
        params: SubjectParams,
        response: { ...file, ...problems }
      }
    },
    async (request, reply) => answerFile(request, reply, request.params.id)
  )

  app.post(
    '/privacy/subjects/:id/erase',
    {
      config: access('admin', { fresh: true }),
      schema: {
        tags,
        summary: 'Erase who a user is; ledger and audit trail keep an id that leads to nobody',
        params: SubjectParams,
        response: { 200: Erasure, ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      if (!(await subjects.exists(tenantOf(request), id))) throw new SubjectNotFound({ id })
      return answers.write(request, reply, 200, async (tx) => {
        const erased: Record<string, number> = {}
        for (const holder of holders) {
          if (holder.erase !== undefined) erased[holder.holder] = await holder.erase(tx, id, tenantOf(request))
        }
        tx.audit({ action: 'privacy.erase', object: { type: 'user', id }, details: erased })
        tx.afterCommit(() => metrics.exercised('erasure'))
        return { subject: id, erased }
      })
    }
  )

  app.get(
    '/privacy/register',
    {
      config: access('manager'),
      schema: {
        tags,
        summary: 'The register of processing: what is kept about people, why, and for how long',
        response: { 200: Register, ...problems }
      }
    },
    async () => register
  )
}

/** The file in pieces: it needs no more memory for a million movements than for one. */
async function* fileOf(tenant: Tenant, subject: string, holders: readonly PersonalData[]): AsyncGenerator<string> {
  const head = {
    format: 'inventory-enterprise/personal-data',
    version: 1,
    subject,
    tenant: tenant.id,
    generatedAt: new Date().toISOString()
  }
  yield `${JSON.stringify(head).slice(0, -1)},"data":{`
  let section = ''
  for (const { sections } of holders) {
    for (const [name, read] of Object.entries(sections)) {
      yield `${section}${JSON.stringify(name)}:[`
      section = ','
      let record = ''
      for await (const each of read(tenant, subject)) {
        yield record + JSON.stringify(each)
        record = ','
      }
      yield ']'
    }
  }
  yield '}}'
}
