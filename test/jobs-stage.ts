import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'
import type { Tenant } from '../plugins/contracts.js'
import type { JobService, JobsOptions } from '../plugins/jobs/index.js'
import type { JobTables } from '../plugins/jobs/store.js'
import { openJobs, openTenants } from './jobs-harness.js'
import { freshDatabase } from './services.js'

export const until = async (what: () => Promise<boolean> | boolean, timeoutMs = 10_000) => {
  const deadline = performance.now() + timeoutMs
  while (!(await what())) {
    if (performance.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${what}`)
    await sleep(10)
  }
}
export const running = async (jobs: JobService, tenant: Tenant, id: string) =>
  (await jobs.get(tenant, id)).status === 'running'
export const rowOf = (tenant: Tenant, id: string) =>
  tenant.db.withTables<JobTables>().selectFrom('jobs').selectAll().where('id', '=', id).executeTakeFirstOrThrow()
export const change = (tenant: Tenant, id: string, set: Partial<JobTables['jobs']>) =>
  tenant.transact(({ db }) => db.withTables<JobTables>().updateTable('jobs').set(set).where('id', '=', id).execute())

/** One database, and as many processes' worth of services over it as the test opens; all is closed with the test. */
export async function stage(t: Pick<Test, 'teardown' | 'testdir'>, dialect: Dialect) {
  const closers: (() => Promise<void>)[] = []
  t.teardown(async () => {
    for (const close of closers.reverse()) await close()
  })
  const database =
    dialect === 'postgres'
      ? await freshDatabase()
      : { url: `sqlite:${join(t.testdir(), 'main.sqlite')}`, drop: async () => {} }
  closers.push(database.drop)
  const queueName = `jobs-${randomUUID()}`
  const serve = async (options: Partial<JobsOptions> = {}) => {
    const tenants = openTenants(database.url)
    closers.push(tenants.close)
    const tenant = await tenants.create('main')
    const service = openJobs(tenants, { queueName, ...options })
    closers.push(() => service.jobs.close())
    return { ...service, tenant, tenants }
  }
  return { serve, url: database.url, queueName, closers }
}

export type Dialect = 'sqlite' | 'postgres'
