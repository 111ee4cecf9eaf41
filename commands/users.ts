import { createInterface } from 'node:readline/promises'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { identity, jsonOption, ROLES, type Role, tenantOption, withTenant } from './service.js'
import { fail, type Terminal } from './terminal.js'

async function readPassword(terminal: Terminal): Promise<string> {
  if (terminal.env.INVENTORY_PASSWORD !== undefined) return terminal.env.INVENTORY_PASSWORD
  const lines = createInterface({ input: terminal.stdin, output: terminal.stderr, terminal: false })
  terminal.note('Password (one line on standard input):')
  for await (const line of lines) {
    return line
  }
  throw new InvalidArgumentError('give the password as one line on standard input, or in INVENTORY_PASSWORD')
}

interface UserOptions {
  tenant?: string
  json?: boolean
}

async function createUser(
  terminal: Terminal,
  username: string,
  { role, name, tenant: named }: UserOptions & { role: Role; name?: string }
): Promise<void> {
  const password = await readPassword(terminal)
  await withTenant(terminal, named, async (tenant, { secondFactor }) => {
    const input = { username, role, password, ...(name === undefined ? {} : { displayName: name }) }
    const user = await (await identity()).createUser(tenant, input, secondFactor)
    terminal.print(`${user.username} (${user.role})`)
  })
}

const listUsers = (terminal: Terminal, { tenant: named, json }: UserOptions) =>
  withTenant(terminal, named, async (tenant) => {
    const all = await (await identity()).listUsers(tenant)
    const lines = all.map(({ username, role, disabled }) => `${username}\t${role}${disabled ? '\tdisabled' : ''}`)
    terminal.print(json ? JSON.stringify(all) : lines.join('\n') || 'no users')
  })

async function changePassword(terminal: Terminal, username: string, { tenant: named }: UserOptions): Promise<void> {
  const password = await readPassword(terminal)
  await withTenant(terminal, named, async (tenant, { secondFactor }) => {
    const user = await (await identity()).setPassword(tenant, username, password, secondFactor)
    terminal.print(`password of ${user.username} changed`)
  })
}

const printLink = (terminal: Terminal, username: string | undefined, { tenant: named }: UserOptions) =>
  withTenant(terminal, named, async (tenant, { publicUrl }) => {
    const { linkFor, setupLinkFor } = await identity()
    const link =
      username === undefined ? await setupLinkFor(tenant, publicUrl) : await linkFor(tenant, publicUrl, username)
    if (link === undefined) fail({ detail: 'there is a user; name the one whom the link is for' })
    terminal.print(link.url)
  })

export function addUsers(cli: Command, terminal: Terminal): void {
  const users = cli.command('users').description('users of a tenant')
  users
    .command('create')
    .description('create a user; the password is read from standard input or INVENTORY_PASSWORD')
    .argument('<username>')
    .addOption(new Option('--role <role>').choices([...ROLES]).default('staff'))
    .option('--name <name>', 'display name')
    .addOption(tenantOption())
    .action((username: string, options: UserOptions & { role: Role; name?: string }) =>
      createUser(terminal, username, options)
    )
  users
    .command('list')
    .addOption(tenantOption())
    .addOption(jsonOption())
    .action((options: UserOptions) => listUsers(terminal, options))
  users
    .command('password')
    .description('set a password; it ends all sessions of the user')
    .argument('<username>')
    .addOption(tenantOption())
    .action((username: string, options: UserOptions) => changePassword(terminal, username, options))
  users
    .command('disable')
    .argument('<username>')
    .addOption(tenantOption())
    .action((username: string, { tenant: named }: UserOptions) =>
      withTenant(terminal, named, async (tenant) =>
        terminal.print(`${(await (await identity()).disableUser(tenant, username)).username} disabled`)
      )
    )
  users
    .command('link')
    .description('print a link by which the user sets a password, once; without a name, one that makes the first user')
    .argument('[username]')
    .addOption(tenantOption())
    .action((username: string | undefined, options: UserOptions) => printLink(terminal, username, options))
  users
    .command('reset-second-factor')
    .description('take the second factors of a user away who has lost them; it ends all sessions of the user')
    .argument('<username>')
    .addOption(tenantOption())
    .action((username: string, { tenant: named }: UserOptions) =>
      withTenant(terminal, named, async (tenant) =>
        terminal.print(
          `${(await (await identity()).removeSecondFactor(tenant, username)).username} has no second factor`
        )
      )
    )
}
