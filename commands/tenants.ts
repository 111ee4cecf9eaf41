import { appendFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Command, InvalidArgumentError } from 'commander'
import type { Config } from '../plugins/config/index.js'
import type { Tenants } from '../plugins/core.js'
import { TenantNotFound } from '../plugins/http/errors.js'
import { jsonOption, record, tenantsOf, withService } from './service.js'
import { fail, type Terminal } from './terminal.js'

const multi = (terminal: Terminal, work: (tenants: Tenants, config: Config) => Promise<void>) =>
  withService(terminal, async (service, config) => {
    if (config.TENANCY !== 'multi') throw new InvalidArgumentError('there is one tenant; set TENANCY=multi')
    await work(tenantsOf(service), config)
  })

async function create(tenants: Tenants, name: string): Promise<string> {
  const wasThere = (await tenants.list()).includes(name)
  const tenant = await tenants.create(name)
  if (wasThere) return `${tenant.id} is there already`
  await record(tenant, { action: 'tenant.create', object: { type: 'tenant', id: tenant.id } })
  return `${tenant.id} created`
}

/**
 * A tenant's trail goes with it. What stays beside the databases is that it went, when, and the hash that its trail ended with: by that
 * a copy of the trail, exported or in a backup, is known to be whole.
 */
async function drop(tenants: Tenants, id: string, dataDir: string): Promise<string> {
  if (!(await tenants.list()).includes(id)) throw new TenantNotFound({ tenant: id })
  // One that cannot be opened any more must be possible to get rid of.
  const trail = await endTrail(tenants, id).catch(() => null)
  const line = { at: new Date().toISOString(), action: 'tenant.drop', tenant: id, actor: 'cli', trail }
  appendFileSync(join(dataDir, 'dropped-tenants.ndjson'), `${JSON.stringify(line)}\n`, { mode: 0o600 })
  await tenants.drop(id)
  return `${id} dropped`
}

const move = (terminal: Terminal, tenant: string, { to, json }: { to: string; json?: boolean }) =>
  withService(terminal, async (service, config) => {
    const { MoveRefused, moveTenantOf } = await import('../plugins/mirror/index.js')
    if (!(await tenantsOf(service).list()).includes(tenant)) fail({ detail: `there is no tenant ${tenant}` })
    const moved = await moveTenantOf(config, tenantsOf(service).migrations(), tenant, to).catch((error: unknown) => {
      if (error instanceof MoveRefused) fail({ detail: error.message })
      throw error
    })
    if (moved === undefined) {
      terminal.print(json ? JSON.stringify({ already: to }) : `${tenant} is on ${to} already`)
      return
    }
    const { rows, tables, hash } = moved.verified
    const object = { type: 'tenant', id: tenant }
    await record(await tenantsOf(service).get(tenant), { action: 'tenant.move', object, details: { to, rows } })
    const waited = (moved.pausedMilliseconds / 1000).toFixed(1)
    terminal.print(
      json
        ? JSON.stringify(moved)
        : `${tenant} is on ${to}: ${rows} rows of ${tables} tables compared, ${hash}; no writes for ${waited} s`
    )
  })

async function endTrail(tenants: Tenants, id: string) {
  const { sealTrail, verifyTrail } = await import('../modules/audit/index.js')
  const tenant = await tenants.get(id)
  await record(tenant, { action: 'tenant.drop', object: { type: 'tenant', id } })
  await sealTrail(tenant)
  const { ok, entries, head } = await verifyTrail(tenant)
  return { ok, entries, head }
}

export function addTenants(cli: Command, terminal: Terminal): void {
  const group = cli.command('tenants').description('tenants (TENANCY=multi)')
  group
    .command('create')
    .argument('<name>', 'a lower-case letter, then letters, digits and dashes; 40 at most')
    .action((name: string) => multi(terminal, async (tenants) => terminal.print(await create(tenants, name))))
  group
    .command('list')
    .addOption(jsonOption())
    .action(({ json }: { json?: boolean }) =>
      multi(terminal, async (tenants) => {
        const all = await tenants.list()
        terminal.print(json ? JSON.stringify(all) : all.join('\n') || 'no tenants')
      })
    )
  group
    .command('move')
    .description('take a tenant to another PostgreSQL server (DATABASE_SERVERS) while it is in use')
    .argument('<name>')
    .requiredOption('--to <server>', 'a name of DATABASE_SERVERS, or home')
    .addOption(jsonOption())
    .action((tenant: string, options: { to: string; json?: boolean }) => move(terminal, tenant, options))
  group
    .command('drop')
    .description('delete a tenant with all its data')
    .argument('<name>')
    .requiredOption('--yes', 'say that you mean it')
    .action((name: string) =>
      multi(terminal, async (tenants, { DATA_DIR }) => terminal.print(await drop(tenants, name, DATA_DIR)))
    )
}
