import { setTimeout as sleep } from 'node:timers/promises'
import Fastify from 'fastify'
import pg from 'pg'
import { type Cleanup, random, withCleanup } from '../../bench/support.js'
import { createTokens } from '../../plugins/auth.js'
import { freePort } from '../ports.js'
import { type Server, startPostgres, startRedis } from '../services.js'
import { checkCoherence, type Latencies } from './coherence.js'
import { checkFanOut, Follower } from './fan-out.js'
import { checkScheduled, checkTrained, startTraining, type Training } from './jobs.js'
import { checkLimits, RATE_LIMITS } from './limits.js'
import { agent, type Client, Load, receipt, type Seen, send } from './load.js'
import { provePooled } from './pooled.js'
import { Node, startBalancer, WorkerProcess } from './processes.js'
import { checkRevocation } from './revocation.js'

/** Proves that many nodes are one service: see `npm run verify:cluster`. Each step says what it saw and throws when it is not so. */

export interface Verification {
  readonly haproxy: string
  readonly pgbouncer: string
  /** An empty folder. */
  readonly folder: string
  /** How long nodes are killed. */
  readonly seconds: number
  readonly seed: number
  say(line: string): void
}

const SECRET = 'Jc5-vQx8mZt2wLp6yHk3sRd9nTf1bGu7'
const CLIENTS = 6
const NODES = 3
const WORKERS = 2
const ROUNDS = 40
/** The balancer has seen by then that a node is ready. */
const BALANCED_MILLISECONDS = 1_000
/** What another node may need to hear of a write. */
const COHERENT_MILLISECONDS = 100
/** The same where Redis does not carry the message: what is held in a process is no older. */
const WITHOUT_REDIS_MILLISECONDS = 1_000
const REPLAYED = 400

/** The service as it is deployed: three nodes and two workers on one PostgreSQL and one Redis, behind the balancer. */
export interface Cluster {
  readonly url: string
  readonly nodes: readonly Node[]
  readonly workers: readonly WorkerProcess[]
  /** One that is added, and taken away again, in the middle of the work. */
  readonly spare: WorkerProcess
  readonly database: pg.Client
  readonly admin: string
  readonly clients: readonly Client[]
  readonly sign: (subject: string) => string
}

export function verify(options: Verification): Promise<void> {
  return withCleanup(async (cleanup) => {
    cleanup.add(() => agent.destroy())
    const owned = async (starting: Promise<Server>) => {
      const server = await starting
      cleanup.add(() => server.stop())
      return server
    }
    const [postgres, redis] = await Promise.all([owned(startPostgres()), owned(startRedis())])
    await proveCluster(options, environment(postgres.url, redis.url), cleanup)
  })
}

const environment = (databaseUrl: string, redisUrl: string) => ({
  DATABASE_URL: databaseUrl,
  REDIS_URL: redisUrl,
  JWT_SECRET: SECRET,
  SECRETS_KEY: `seal-${SECRET}`,
  NODE_ENV: 'test',
  LOG_LEVEL: 'info',
  DRAIN_SECONDS: '2',
  RATE_LIMITS,
  TRUST_PROXY: '127.0.0.1'
})

async function proveCluster(
  { haproxy, pgbouncer, folder, seconds, seed, say }: Verification,
  env: Readonly<Record<string, string>>,
  cleanup: Cleanup
): Promise<void> {
  const cluster = await startCluster(haproxy, folder, env, cleanup)
  say(`started: ${NODES} nodes at once on an empty database, each migration applied once, and ${WORKERS} workers`)
  const [first] = cluster.clients
  if (first === undefined) return

  const load = new Load(cluster.url)
  load.start(cluster.clients, 100)
  const urls = cluster.nodes.map(({ url }) => url)
  const before = cutOffs(cluster.nodes)
  const latencies = await checkCoherence(urls, cluster.admin, first.itemCode, ROUNDS)
  sayCoherence(latencies, cutOffs(cluster.nodes) - before, say)
  await checkRevocation(urls, cluster.admin, cluster.sign)
  say('revocation: who is disabled at one node is refused by the next request at another')
  await checkFanOut(urls, cluster.url, cluster.admin, say)
  say(await checkLimits(urls, cluster.sign, () => cutOffs(cluster.nodes)))
  sayLoad('while nothing is killed', load.take(), say)

  const items = cluster.clients.map(({ itemCode }) => itemCode)
  const followers = ['one', 'two'].map((name) => new Follower(cluster.url, cluster.sign(`follower-${name}`), items))
  for (const follower of followers) {
    cleanup.add(() => follower.stop())
    follower.start()
  }
  cluster.spare.start()
  await cluster.spare.waits()
  const training = await startTraining(cluster)
  const kills = await killAtRandom(cluster, random(seed), seconds, training)
  const { requests, failures, stale } = load.take()
  say(
    `killed: ${kills.join(', ')}; ${requests} requests, ${failures.length} were asked again, ${stale} reads were behind`
  )
  await training.ended()
  const { again, late } = await checkTrained(cluster.database)
  const spread = [...training.ranOn].map(([name, jobs]) => `${name} ${jobs.size}`).sort()
  say(
    `training: each series once, while one worker was killed and one was added and sent away; ${again} began again, ${late} took longer than they may; ${spread.join(', ')}`
  )

  load.take()
  await rollingRestart(cluster)
  sayLoad('rolling restart', load.take(), say)
  await checkScheduled(cluster)
  say('scheduled: every node looked, one started it')
  await load.stop()
  await Promise.all(followers.map((follower) => follower.shows(load.counts)))
  const sum = (of: (follower: Follower) => number) => followers.reduce((total, each) => total + of(each), 0)
  say(
    `followed: ${followers.length} streams through the balancer, which came again ${sum(({ opened }) => opened - 1)} times, ${sum(({ resumed }) => resumed)} of them without a gap; by what they told, every item is shown as it is`
  )
  await Promise.all(followers.map((follower) => follower.stop()))
  await checkStored(cluster, load, say)
  for (const process of [...cluster.nodes, ...cluster.workers]) await process.end('SIGKILL')
  await provePooled({ pgbouncer, folder, env, database: cluster.database, sign: cluster.sign, say }, cleanup)
}

/** How often a node gave up on Redis, which on a starved machine may take longer than it waits. */
const cutOffs = (nodes: readonly Node[]) =>
  nodes.reduce((sum, node) => sum + (node.log().match(/"msg":"redis is down/g) ?? []).length, 0)

function sayCoherence(latencies: Latencies, cutOff: number, say: (line: string) => void): void {
  const { p50, p99, max, read, staleAtWriter } = latencies
  const ms = (value: number) => `${value.toFixed(1)} ms`
  say(
    `coherence: others show a write after ${ms(p50)} (p50), ${ms(p99)} (p99), ${ms(max)} (max), where a read takes ${ms(read)} (p99); ${ROUNDS} writes; ${cutOff} times a node was without Redis`
  )
  if (staleAtWriter > 0) throw new Error(`${staleAtWriter} times the node that wrote showed what was before`)
  const promised = cutOff === 0 ? COHERENT_MILLISECONDS : WITHOUT_REDIS_MILLISECONDS
  if (!(p99 <= promised + read)) throw new Error(`that is more than ${promised} ms and a read`)
}

function sayLoad(when: string, { requests, failures, stale }: Seen, say: (line: string) => void): void {
  say(`${when}: ${requests} requests, ${failures.length} failed, ${stale} reads behind the reader's own writes`)
  if (failures.length > 0) throw new Error(failures.slice(0, 5).join('\n'))
  if (stale > 0) throw new Error('a reader did not see what it had written')
  if (requests < CLIENTS * 10) throw new Error('that is no load')
}

async function startCluster(
  haproxy: string,
  folder: string,
  env: Readonly<Record<string, string>>,
  cleanup: Cleanup
): Promise<Cluster> {
  const nodes: Node[] = []
  for (let n = 1; n <= NODES; n++) nodes.push(new Node(folder, `node${n}`, await freePort(), env))
  const workers = Array.from({ length: WORKERS }, (_, n) => new WorkerProcess(folder, `worker${n + 1}`, env))
  const spare = new WorkerProcess(folder, `worker${WORKERS + 1}`, env)
  for (const process of [...nodes, ...workers, spare]) cleanup.add(() => process.end('SIGKILL'))
  // All at once: one migrates, the others wait for it.
  for (const node of nodes) node.start()
  await Promise.all(nodes.map((node) => node.ready()))
  const database = new pg.Client({ connectionString: env.DATABASE_URL })
  await database.connect()
  cleanup.add(() => database.end())
  for (const worker of workers) worker.start()
  await Promise.all(workers.map((worker) => worker.waits()))
  const { url, balancer } = await startBalancer(haproxy, folder, nodes)
  cleanup.add(() => balancer.end('SIGKILL'))

  const sign = await signer()
  const admin = sign('admin')
  const clients = Array.from({ length: CLIENTS }, (_, n) => ({ token: sign(`client-${n}`), itemCode: `ITEM-${n}` }))
  for (const { itemCode } of clients) {
    const made = await send(url, admin, 'POST', '/api/inventory', { body: { itemCode, name: itemCode, unit: 'each' } })
    if (made.status !== 201) throw new Error(`no item: ${made.status} ${made.text}`)
  }
  return { url, nodes, workers, spare, database, admin, clients, sign }
}

async function signer(): Promise<(subject: string) => string> {
  const app = Fastify()
  const tokens = createTokens(app, { keys: [{ id: 'default', secret: SECRET }] })
  await app.ready()
  return (subject) => tokens.sign({ subject, role: 'admin', tenant: 'main' }, 7_200)
}

/** SIGKILL to a worker while it trains, SIGTERM to another that is not needed any more, SIGKILL to one node after the other. */
async function killAtRandom(
  { nodes, workers, spare }: Cluster,
  next: () => number,
  seconds: number,
  training: Training
): Promise<string[]> {
  const worker = await training.atWork(workers)
  await worker.end('SIGKILL')
  worker.start()
  const kills = [worker.name]
  await training.atWork([spare])
  const code = await spare.end('SIGTERM')
  if (code !== 0) throw new Error(`${spare.name} ended with ${code}\n${spare.log().slice(-2000)}`)
  for (const until = performance.now() + seconds * 1000; performance.now() < until; ) {
    const node = nodes[Math.floor(next() * nodes.length)]
    if (node === undefined) break
    await sleep(next() * 1_000)
    await node.end('SIGKILL')
    kills.push(node.name)
    await sleep(next() * 1_000)
    node.start()
    await node.ready()
  }
  await Promise.all(workers.map((each) => each.waits()))
  return kills
}

/** As an upgrade does it: one node after the other, and none before the balancer has the last one back. */
async function rollingRestart({ nodes }: Cluster): Promise<void> {
  for (const node of nodes) {
    const code = await node.end('SIGTERM')
    if (code !== 0) throw new Error(`${node.name} ended with ${code}\n${node.log().slice(-2000)}`)
    node.start()
    await node.ready()
    await sleep(BALANCED_MILLISECONDS)
  }
}

/** What was acknowledged is there, once and with the same bytes, and the books are right. */
async function checkStored({ url, admin, nodes }: Cluster, load: Load, say: (line: string) => void): Promise<void> {
  for (const [itemCode, count] of load.counts) {
    const { text } = await send(url, admin, 'GET', `/api/inventory/${itemCode}`)
    if (!text.includes(`"onHand":${count},`)) throw new Error(`${count} of ${itemCode} were acknowledged: ${text}`)
  }
  const step = Math.max(1, Math.floor(load.acknowledged.length / REPLAYED))
  const again = load.acknowledged.filter((_, n) => n % step === 0)
  for (const [n, { client, key, text }] of again.entries()) {
    const answer = await send(nodes[n % nodes.length]?.url ?? '', client.token, 'POST', '/api/movements', {
      key,
      body: receipt(client)
    })
    if (answer.status !== 201 || answer.text !== text) throw new Error(`${key} answers ${answer.status} ${answer.text}`)
  }
  const ledger = await send(url, admin, 'GET', '/api/ledger/verify')
  if (!ledger.text.includes('"ok":true')) throw new Error(`the ledger: ${ledger.text}`)
  const trail = await send(url, admin, 'GET', '/api/audit/verify')
  if (!trail.text.includes('"ok":true')) throw new Error(`the audit trail: ${trail.text}`)
  say(
    `stored: ${load.acknowledged.length} acknowledged, each there once; ${again.length} keys answer the same bytes on any node; ledger and audit trail hold`
  )
}
