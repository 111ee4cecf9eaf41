import { type Command, InvalidArgumentError } from 'commander'
import type { Tenants } from '../plugins/core.js'
import { jsonOption, tenantsOf, withService } from './service.js'
import { fail, type Terminal } from './terminal.js'

const multi = (terminal: Terminal, work: (tenants: Tenants) => Promise<void>) =>
  withService(terminal, async (service, { TENANCY }) => {
    if (TENANCY !== 'multi') throw new InvalidArgumentError('there is one tenant; set TENANCY=multi')
    await work(tenantsOf(service))
  })

const move = (terminal: Terminal, tenant: string, { to, json }: { to: string; json?: boolean }) =>
  withService(terminal, async (service, config) => {
    const { moveTenantOf } = await import('../plugins/mirror.js')
    if (!(await tenantsOf(service).list()).includes(tenant)) fail({ detail: `there is no tenant ${tenant}` })
    const moved = await moveTenantOf(config, tenantsOf(service).migrations(), tenant, to)
    const { rows, tables, hash } = moved.verified
    const waited = (moved.pausedMilliseconds / 1000).toFixed(1)
    terminal.print(
      json
        ? JSON.stringify(moved)
        : `${tenant} is on ${to}: ${rows} rows of ${tables} tables compared, ${hash}; no writes for ${waited} s`
    )
  })

export function addTenants(cli: Command, terminal: Terminal): void {
  const group = cli.command('tenants').description('tenants (TENANCY=multi)')
  group
    .command('create')
    .argument('<name>', 'a lower-case letter, then letters, digits and dashes; 40 at most')
    .action((name: string) =>
      multi(terminal, async (tenants) => terminal.print(`${(await tenants.create(name)).id} created`))
    )
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
      multi(terminal, async (tenants) => tenants.drop(name).then(() => terminal.print(`${name} dropped`)))
    )
}
