/** A host of forecasting, anomaly and dashboard over a ledger in memory, for the tests of each. */
import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import type { Test } from 'tap'
import { random } from '../bench/support.js'
import anomaly, { anomalyHeadline } from '../modules/anomaly/index.js'
import dashboard from '../modules/dashboard/index.js'
import { createDerivation } from '../modules/forecasting/derive.js'
import forecasting, {
  type ConsumptionSource,
  consumptionSeries,
  type DailyFlow,
  forecastHeadline,
  runOut,
  unusualDays
} from '../modules/forecasting/index.js'
import { createNightly } from '../modules/forecasting/nightly.js'
import type { Breather, Principal, Tenant } from '../plugins/contracts.js'
import core, { type Tenants } from '../plugins/core.js'
import type { JobService } from '../plugins/jobs/index.js'
import type { Role } from '../schemas/common.js'
import type { InventoryHeadline } from '../schemas/dashboard.js'
import { StockMoved } from '../schemas/inventory.js'
import { freshDatabase } from './services.js'

/** Quick to train; which models serve is not what these tests are about. */
export const ONE_MODEL = { models: ['stl-damped'] }
/** Answers when the job has ended, and not before. */
export const WAIT = { prefer: 'wait=60' }

export { random }

export interface Entry {
  itemCode: string
  day: string
  /** units used; negative: returned */
  used?: number
  /** units received */
  received?: number
  /** where it was used (main) */
  location?: string
}

/** Days count from here; "now" is the first moment of the day after the last one named. */
export const day = (n: number): string => new Date(Date.UTC(2026, 0, 5 + n)).toISOString().slice(0, 10)

export class MemoryLedger implements ConsumptionSource {
  readonly entries: Entry[] = []
  reads = 0

  async items(_tenant: Tenant, query: Parameters<ConsumptionSource['items']>[1]) {
    const { itemCodes, afterItemCode = '', limit } = query
    return [...new Set(this.entries.map(({ itemCode }) => itemCode))]
      .filter((code) => code > afterItemCode && (itemCodes === undefined || itemCodes.includes(code)))
      .sort()
      .slice(0, limit)
      .map((itemCode) => ({
        itemCode,
        name: `Item ${itemCode}`,
        category: itemCode.includes(':') ? (itemCode.split(':')[0] ?? null) : null
      }))
  }

  async dailyFlow(_tenant: Tenant, query: Parameters<ConsumptionSource['dailyFlow']>[1]): Promise<DailyFlow[]> {
    const { itemCodes, fromDay = '', toDay = '9999' } = query
    this.reads++
    const flows = new Map<string, DailyFlow>()
    for (const { itemCode, day, used = 0, received = 0 } of this.entries) {
      if (!itemCodes.includes(itemCode) || day < fromDay || day > toDay) continue
      const flow = flows.get(`${itemCode} ${day}`) ?? { itemCode, day, usedMicros: 0, changeMicros: 0 }
      flow.usedMicros += used * 1_000_000
      flow.changeMicros += (received - used) * 1_000_000
      flows.set(`${itemCode} ${day}`, flow)
    }
    return [...flows.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, flow]) => flow)
  }

  async dailyUseByLocation(
    _tenant: Tenant,
    { itemCodes, fromDay = '', toDay = '9999' }: Parameters<ConsumptionSource['dailyFlow']>[1]
  ) {
    const flows = new Map<string, { location: string; day: string; usedMicros: number }>()
    for (const { itemCode, day, used = 0, location = 'main' } of this.entries) {
      if (!itemCodes.includes(itemCode) || used === 0 || day < fromDay || day > toDay) continue
      const flow = flows.get(`${location} ${day}`) ?? { location, day, usedMicros: 0 }
      flow.usedMicros += used * 1_000_000
      flows.set(`${location} ${day}`, flow)
    }
    return [...flows.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, flow]) => flow)
  }

  /** Posts and says so, as the ledger does. */
  async post(tenant: Tenant, entries: readonly Entry[]): Promise<void> {
    this.entries.push(...entries)
    const days = entries.map((entry) => entry.day).sort()
    const payload: StockMoved = {
      itemCodes: [...new Set(entries.map(({ itemCode }) => itemCode))],
      fromDay: days[0] ?? '',
      toDay: days.at(-1) ?? ''
    }
    await tenant.transact((tx) => tx.publish(StockMoved.topic, payload))
  }
}

/** An answer's JSON, which each test checks by what it expects of it. */
type Body = ReturnType<typeof JSON.parse>

export interface Host {
  app: FastifyInstance
  tenant: Tenant
  ledger: MemoryLedger
  clock: { now: number }
  inventory: InventoryHeadline
  stock: { itemCode: string; available: number }[]
  call(
    method: 'GET' | 'POST' | 'PUT' | 'DELETE',
    url: string,
    body?: object,
    headers?: Record<string, string>
  ): Promise<{ status: number; body: Body; headers: Record<string, unknown> }>
}

const roles: Role[] = ['viewer', 'staff', 'manager', 'admin']

export async function openHost(t: Test, databaseUrl: string): Promise<Host> {
  const ledger = new MemoryLedger()
  const clock = { now: Date.parse(day(200)) }
  const now = () => clock.now
  const inventory = { items: 3, stockValue: 12.5, lowStock: 1, outOfStock: 0, movementsToday: 4 }
  const stock: Host['stock'] = []
  const app = Fastify()
  // The caller's role comes in a header; what a role may do is tested with the core's own `authorize`.
  const authorize = async (request: FastifyRequest) => {
    const role = roles.find((each) => each === request.headers['x-role']) ?? 'manager'
    const principal: Principal = { subject: 'tester', role, tenant: 'main' }
    request.setDecorator('principal', principal)
  }
  const tenants = async () => [await app.getDecorator<Tenants>('tenants').get('main')]
  await app.register(core, { databaseUrl, workerThreads: 2 })
  await app.register(forecasting, { prefix: '/api', authorize, consumption: ledger, now, tenants })
  await app.register(anomaly, {
    prefix: '/api',
    authorize,
    now,
    tenants,
    series: (tenant, query) => consumptionSeries(tenant, query, clock.now),
    unusualDays: (tenant) => unusualDays(tenant, ledger, clock.now)
  })
  await app.register(dashboard, {
    prefix: '/api',
    authorize,
    inventory: async () => ({ ...inventory }),
    forecasts: forecastHeadline,
    anomalies: anomalyHeadline,
    runsOutFirst: (tenant, limit) => runOut(tenant, stock, limit, clock.now)
  })
  await app.ready()
  t.teardown(() => app.close())
  const [tenant] = await tenants()
  if (tenant === undefined) throw new Error('no tenant')
  return {
    app,
    tenant,
    ledger,
    clock,
    inventory,
    stock,
    call: async (method, url, body, headers = {}) => {
      const answer = await app.inject({ method, url, headers, ...(body === undefined ? {} : { payload: body }) })
      return {
        status: answer.statusCode,
        body: answer.body === '' ? undefined : answer.json(),
        headers: answer.headers
      }
    }
  }
}

/** Runs the same test on both databases. */
export function onBothDatabases(t: Test, name: string, run: (t: Test, host: Host) => Promise<void>): void {
  t.test(`${name}, SQLite`, async (t) => run(t, await openHost(t, 'sqlite::memory:')))
  t.test(`${name}, PostgreSQL`, async (t) => {
    const database = await freshDatabase()
    t.teardown(() => database.drop())
    await run(t, await openHost(t, database.url))
  })
}

/** `days` days of use with a week in it, after an ample opening stock. */
export function weeklyUse(itemCode: string, days: number, level: number, seed: number): Entry[] {
  const next = random(seed)
  const entries: Entry[] = [{ itemCode, day: day(0), received: 1_000_000 }]
  for (let n = 1; n < days; n++) {
    const weekday = (n % 7) - 3
    entries.push({
      itemCode,
      day: day(n),
      used: Math.max(0, Math.round(level * (1 + weekday / 6) + (next() - 0.5) * level * 0.3))
    })
  }
  return entries
}

/** As every node has one; the trainings that it asks for are jobs of the service. */
export const nightlyOf = ({ app, ledger, clock }: Host) =>
  createNightly({
    jobs: app.getDecorator<JobService>('jobs'),
    derivation: createDerivation(ledger, () => clock.now, app.getDecorator<Breather>('breather')),
    aggregate: async () => 0,
    hour: 2,
    now: () => clock.now,
    train: async () => {
      throw new Error('the job is the service’s')
    }
  })
