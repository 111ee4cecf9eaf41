import { execFileSync } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { until } from '../../alerts/run.js'
import type { Cleanup } from '../../bench/support.js'
import { openReader } from '../../plugins/portable/index.js'
import { freePort } from '../ports.js'
import { type Client, Load, send } from './load.js'
import { Node, startPooler } from './processes.js'
import { checkRevocation } from './revocation.js'

const SECONDS = 5
const NODES = 2

interface Pooled {
  readonly pgbouncer: string
  readonly folder: string
  readonly env: Readonly<Record<string, string>>
  /** A superuser's connection to the server itself. */
  readonly database: pg.Client
  readonly sign: (subject: string) => string
  say(line: string): void
}

/**
 * The service behind PgBouncer in transaction mode: each transaction may have another session, so nothing may be left in one. Two
 * nodes start at once, are written to and killed, and afterwards no session holds a lock or a setting of theirs.
 */
export async function provePooled(options: Pooled, cleanup: Cleanup): Promise<void> {
  const { pgbouncer, folder, env, database, sign, say } = options
  await database.query('create database pooled')
  const direct = new URL(env.DATABASE_URL ?? '')
  direct.pathname = '/pooled'
  const { pooler, url } = await startPooler(pgbouncer, folder, direct.href, unprivileged())
  cleanup.add(() => pooler.end('SIGKILL'))
  await until('PgBouncer answers', 20, async () => {
    const client = new pg.Client({ connectionString: url })
    client.on('error', () => {})
    return client.connect().then(
      () => client.end().then(() => true),
      () => false
    )
  })
  const nodes: Node[] = []
  for (let n = 1; n <= NODES; n++)
    nodes.push(new Node(folder, `pooled${n}`, await freePort(), { ...env, DATABASE_URL: url }))
  for (const node of nodes) {
    cleanup.add(() => node.end('SIGKILL'))
    node.start()
  }
  await Promise.all(nodes.map((node) => node.ready()))
  const [one, two] = nodes
  if (one === undefined || two === undefined) return

  const admin = sign('admin')
  const clients = [0, 1, 2, 3].map((n): Client => ({ token: sign(`pooled-${n}`), itemCode: `P-${n}` }))
  for (const { itemCode } of clients) {
    const made = await send(one.url, admin, 'POST', '/api/inventory', {
      body: { itemCode, name: itemCode, unit: 'each' }
    })
    if (made.status !== 201) throw new Error(`no item behind PgBouncer: ${made.status} ${made.text}`)
  }
  const load = new Load(one.url)
  load.start(clients, 0)
  await sleep(SECONDS * 1000)
  await two.end('SIGKILL')
  two.start()
  await two.ready()
  await load.stop()
  const { requests, failures } = load.take()
  if (failures.length > 0) throw new Error(`behind PgBouncer: ${failures.slice(0, 3).join('\n')}`)
  await checkRevocation(
    nodes.map((node) => node.url),
    admin,
    sign
  )
  for (const path of ['/api/ledger/verify', '/api/audit/verify']) {
    const answer = await send(two.url, admin, 'GET', path)
    if (!answer.text.includes('"ok":true')) throw new Error(`${path} behind PgBouncer: ${answer.status} ${answer.text}`)
  }
  // What sets up its session must not leave it to others.
  const copying = await openReader({ dialect: 'postgres', url, schema: 'tenant_main' }, []).then(
    () => 'goes through',
    (error) => String(error)
  )
  if (!copying.includes('needs the PostgreSQL server itself')) throw new Error(`a copy behind PgBouncer: ${copying}`)
  for (const node of nodes) await node.end('SIGTERM')
  const left = await leftBehind(direct.href)
  if (left.length > 0) throw new Error(`left in PgBouncer's sessions: ${left.join(', ')}`)
  say(
    `pooled: ${NODES} nodes at once behind PgBouncer (transaction mode, 4 sessions); ${requests} requests, none failed; nothing left behind`
  )
}

/** Advisory locks, open transactions, and settings that are not the server's. */
async function leftBehind(url: string): Promise<string[]> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    const { rows } = await client.query<{ what: string }>(
      `select 'advisory lock of ' || pid as what from pg_locks where locktype = 'advisory'
       union all select 'open transaction of ' || pid from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid() and xact_start is not null`
    )
    return rows.map(({ what }) => what)
  } finally {
    await client.end()
  }
}

/** PgBouncer does not run as root. */
function unprivileged(): { uid: number; gid: number } | undefined {
  if (process.getuid?.() !== 0) return undefined
  const id = (flag: string) =>
    Number(execFileSync('id', [flag, process.env.TEST_POSTGRES_USER ?? 'nobody'], { encoding: 'utf8' }))
  return { uid: id('-u'), gid: id('-g') }
}
