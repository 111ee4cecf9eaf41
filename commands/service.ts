import { InvalidArgumentError, Option } from 'commander'
import type { FastifyInstance } from 'fastify'
import { type Config, loadConfig } from '../plugins/config/index.js'
import type { AuditEntry, Tenant } from '../plugins/contracts.js'
import type { Tenants } from '../plugins/core.js'
import { fail, type Terminal } from './terminal.js'

/** The service beneath the commands. It takes most of a second to load, so only those that need it do. */

export const theService = () => import('../server.js')
export const identity = () => import('../modules/identity/index.js')

export const ROLES = ['viewer', 'staff', 'manager', 'admin'] as const
export type Role = (typeof ROLES)[number]
export const POLL_MILLISECONDS = 200

export const tenantOption = () => new Option('--tenant <name>', 'which tenant (TENANCY=multi)')
export const jsonOption = () => new Option('--json', 'print JSON')

/**
 * Quiet unless something is wrong: a command's output is for the person or the program that asked. And without the documents, which
 * only who listens can show.
 */
export function quietConfig({ env }: Terminal): Config {
  const config = loadConfig(env)
  return { ...config, LOG_LEVEL: env.LOG_LEVEL ? config.LOG_LEVEL : 'error', DOCS: 'off' }
}

/** Runs with the whole service ready but not listening, and closes it. */
export async function withService<R>(
  terminal: Terminal,
  work: (service: FastifyInstance, config: Config) => Promise<R>,
  mode: 'service' | 'worker' = 'service'
): Promise<R> {
  const config = quietConfig(terminal)
  const { build } = await theService()
  // What a command answers may be read by a program: a line of the log in it would spoil it.
  const service = await build(config, mode, mode === 'worker' ? {} : { logTo: terminal.stderr })
  try {
    await service.ready()
    return await work(service, config)
  } finally {
    await service.close()
  }
}

/** In the tenant's audit trail, as done at the console. */
export const record = async (tenant: Tenant, entry: AuditEntry): Promise<void> =>
  (await identity()).recordAtConsole(tenant, entry)

export const tenantsOf = (service: FastifyInstance) => service.getDecorator<Tenants>('tenants')

export function tenantName({ TENANCY }: Config, named: string | undefined): string {
  if (named !== undefined) return named
  if (TENANCY === 'multi') throw new InvalidArgumentError('with TENANCY=multi name a tenant: --tenant <name>')
  return 'main'
}

export const withTenant = (
  terminal: Terminal,
  named: string | undefined,
  work: (tenant: Tenant, config: Config) => Promise<void>
) =>
  withService(terminal, async (service, config) =>
    work(await tenantsOf(service).get(tenantName(config, named)), config)
  )

export async function tokenFor(config: Config, role: Role, tenant: string, ttlSeconds: number): Promise<string> {
  const [{ default: Fastify }, { createTokens }] = await Promise.all([import('fastify'), import('../plugins/auth.js')])
  const signer = Fastify()
  const tokens = createTokens(signer, { keys: config.jwtKeys })
  await signer.ready()
  const { issueToken } = await identity()
  return issueToken(tokens, { role, tenant, ttlSeconds })
}

export interface JobView {
  id: string
  status: string
  progress: { done: number; total: number }
  result?: unknown
  error?: { code: string; message: string }
}

/** Follows a job with a bar on standard error until it has succeeded. @throws CommandFailed when it ends otherwise */
export async function follow(
  terminal: Terminal,
  service: FastifyInstance,
  authorization: string,
  job: JobView
): Promise<JobView> {
  for (let view = job; ; ) {
    terminal.bar(view.progress.done, view.progress.total)
    if (view.status !== 'queued' && view.status !== 'running') {
      terminal.endBar()
      if (view.status === 'succeeded') return view
      fail({ detail: `job ${view.id}: ${view.error?.message ?? view.status}` })
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MILLISECONDS))
    view = (await service.inject({ url: `/api/jobs/${job.id}`, headers: { authorization } })).json<JobView>()
  }
}
