import { copyFileSync, existsSync, mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import type { FastifyInstance } from 'fastify'
import pg from 'pg'
import t, { type Test } from 'tap'
import { random } from '../../bench/support.js'
import { type Answer, buildApp, type Client, client, type Dialect, eachDialect } from '../helper.js'
import { compareItems, ledgerCommands, startModel } from '../ledger-commands.js'
import { temporaryFolder } from '../service-process.js'
import { freshDatabase } from '../services.js'

/**
 * A simulation: random commands against the model of the ledger, while the process dies, connections are cut, answers are lost and
 * clients ask twice. What comes of it must be what the model says, as if nothing had happened. A failure names the seed;
 * `SIMULATION_SEED=… SIMULATION_RUNS=…` plays the same again (on PostgreSQL what is cut, and where it was by then, may differ).
 */
const SEED = Number(process.env.SIMULATION_SEED ?? Date.now() % 2 ** 31)
const RUNS = Number(process.env.SIMULATION_RUNS ?? 2)
const COMMANDS = 25
const ATTEMPTS_MAX = 50
/** Runs may be of hardly any command; there are more of them until so many, for each, were made: every fault has come by then. */
const POSTS_MIN = 8

type Fault = 'none' | 'twice' | 'dies' | 'cut' | 'asks again'
/** As often as it is named. */
const OFTEN: readonly Fault[] = ['none', 'none', 'none', 'twice', 'twice', 'twice', 'asks again', 'asks again', 'dies']
const FAULTS: Record<Dialect, readonly Fault[]> = { sqlite: OFTEN, postgres: [...OFTEN, 'cut', 'cut', 'cut'] }

class World {
  app: FastifyInstance | undefined
  readonly met: Record<Fault, number> = { none: 0, twice: 0, dies: 0, cut: 0, 'asks again': 0 }
  /** Answers by key, of what was done. */
  readonly #known: { key: string; role: 'manager' | 'staff'; url: string; body: unknown; text: string }[] = []
  readonly #next = random(SEED)
  readonly #dealt: Fault[] = []
  #keys = 0
  #life = 0

  constructor(
    readonly t: Test,
    readonly dialect: Dialect,
    readonly folder: string,
    readonly url: string | undefined
  ) {}

  async start(): Promise<void> {
    const folder = join(this.folder, String(this.#life))
    mkdirSync(folder, { recursive: true })
    const database = this.url === undefined ? `sqlite:${join(folder, 'inventory.sqlite')}` : this.url
    this.app = await buildApp(this.t, { dialect: this.dialect, config: { DATABASE_URL: database, DATA_DIR: folder } })
  }

  /**
   * As SIGKILL would: what is in the files at this moment is all that there will be. On PostgreSQL the server outlives its clients,
   * so they lose their connections instead.
   */
  async #dies(): Promise<void> {
    const before = this.app
    if (this.url === undefined) {
      const [from, to] = [this.#life, this.#life + 1].map((life) => join(this.folder, String(life)))
      mkdirSync(to ?? '', { recursive: true })
      for (const name of ['inventory.sqlite', 'inventory.sqlite-wal', 'jwt-secret', 'secrets-key', 'node-id'])
        if (existsSync(join(from ?? '', name))) copyFileSync(join(from ?? '', name), join(to ?? '', name))
    } else await this.#cut()
    this.#life++
    await this.start()
    await before?.close()
    if (this.url === undefined) rmSync(join(this.folder, String(this.#life - 1)), { recursive: true, force: true })
  }

  async #cut(): Promise<void> {
    const admin = new pg.Client({ connectionString: this.url })
    await admin.connect()
    await admin.query(`select pg_terminate_backend(pid, 10000) from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid()`)
    await admin.end()
  }

  as(role: 'manager' | 'staff'): Client {
    if (this.app === undefined) throw new Error('it is not running')
    return client(this.app, role)
  }

  get posts(): number {
    return this.#keys
  }

  /** Like cards: each of them comes before any comes again. */
  #deal(): Fault {
    if (this.#dealt.length === 0) {
      const left = [...FAULTS[this.dialect]]
      while (left.length > 0) this.#dealt.push(...left.splice(Math.floor(this.#next() * left.length), 1))
    }
    return this.#dealt.pop() ?? 'none'
  }

  /** A client that never gives up, as the documentation tells clients to be: the same key until the answer is no 503. */
  client(role: 'manager' | 'staff'): Pick<Client, 'post'> {
    return {
      post: async (url, body = {}) => {
        const key = `simulated-${this.#keys++}`
        const fault = this.#deal()
        this.met[fault]++
        const ask = () => this.as(role).post(url, body, { 'idempotency-key': key })
        const answer = await this.#meets(fault, ask)
        if (answer.status < 300) this.#known.push({ key, role, url, body, text: answer.text })
        return answer
      }
    }
  }

  async #meets(fault: Fault, ask: () => Promise<Answer>): Promise<Answer> {
    if (fault === 'twice') {
      const [one, other] = await Promise.all([settled(ask), settled(ask)])
      if (one.status < 300 && one.text !== other.text) throw new Error(`asked twice: ${one.text} and ${other.text}`)
      return one
    }
    if (fault === 'cut') {
      const answer = settled(ask)
      await new Promise((resolve) => setTimeout(resolve, this.#next() * 8))
      await this.#cut()
      return answer
    }
    const answer = await settled(ask)
    if (fault === 'dies') await this.#dies()
    if (fault === 'dies' || fault === 'asks again') await this.#remembers()
    return answer
  }

  /** What was acknowledged at any time answers the same bytes. */
  async #remembers(): Promise<void> {
    const known = this.#known[Math.floor(this.#next() * this.#known.length)]
    const last = this.#known.at(-1)
    for (const one of [known, last]) {
      if (one === undefined) continue
      const again = await settled(() =>
        this.as(one.role).post(one.url, Object(one.body), { 'idempotency-key': one.key })
      )
      if (again.text !== one.text)
        throw new Error(`${one.key} answered ${one.text}, and now ${again.status} ${again.text}`)
    }
  }
}

/** Asks until the database is there again. */
async function settled(ask: () => Promise<Answer>): Promise<Answer> {
  for (let attempt = 1; ; attempt++) {
    const answer = await ask()
    if (answer.status !== 503 || attempt === ATTEMPTS_MAX) return answer
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

await eachDialect(t, async (t, dialect) => {
  t.comment(`SIMULATION_SEED=${SEED} SIMULATION_RUNS=${RUNS}`)
  const database = dialect === 'postgres' ? await freshDatabase() : undefined
  if (database !== undefined) t.teardown(() => database.drop())
  const world = new World(t, dialect, temporaryFolder(t), database?.url)
  await world.start()
  t.equal((await world.as('manager').post('/api/locations', { location: 'MB-2', name: 'Second' })).status, 201)
  let run = 0
  const simulated = fc.asyncProperty(ledgerCommands(COMMANDS), async (commands) => {
    run++
    const codes = { plain: `S-P${run}`, lotted: `S-L${run}` }
    const model = await startModel(world.as('manager'), codes)
    const real = { manager: world.client('manager'), staff: world.client('staff'), codes, ids: new Map() }
    await fc.asyncModelRun(() => ({ model, real }), commands)
    await compareItems(model, world.as('manager'), codes)
    for (const path of ['/api/ledger/verify', '/api/audit/verify']) {
      const { body } = await (world.app === undefined ? world.as('manager') : client(world.app, 'admin')).get(path)
      if (body.ok !== true) throw new Error(`${path}: ${JSON.stringify(body)}`)
    }
  })
  // A smaller counterexample would be another simulation: faults come one after the other over the whole run.
  for (let more = 0; world.posts < Math.max(RUNS * POSTS_MIN, FAULTS[dialect].length); more++) {
    const failed = await fc.check(simulated, { seed: SEED + more, numRuns: RUNS, endOnFailure: true })
    t.notOk(failed.failed, `SIMULATION_SEED=${SEED} ${failed.errorInstance ?? ''} ${failed.counterexample ?? ''}`)
    if (failed.failed) return
  }
  const missed = FAULTS[dialect].filter((fault) => world.met[fault] === 0)
  t.same(missed, [], `${run} runs met ${JSON.stringify(world.met)}`)
})
