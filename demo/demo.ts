import { randomBytes } from 'node:crypto'
import { createReadStream, createWriteStream, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { fileURLToPath } from 'node:url'
import { createGunzip } from 'node:zlib'
import { parse } from 'csv-parse'
import Fastify, { type FastifyInstance } from 'fastify'
import { createUser, issueToken } from '../modules/identity/index.js'
import { createTokens } from '../plugins/auth.js'
import { type Config, loadConfig } from '../plugins/config/index.js'
import type { Tenants } from '../plugins/core.js'
import { build, listen, listening } from '../server.js'
import { type Delivery, type Sale, weeklyDeliveries } from './deliveries.js'

const DATA = fileURLToPath(new URL('../../demo/data/', import.meta.url))
const DAY = 86_400_000
const POLL_MILLISECONDS = 100
const SHOWN = 8

const say = (line = '') => process.stdout.write(`${line}\n`)

/** Loads a year of a real shop, learns from it, says what a manager wants to know, and serves. */
export async function runDemo(env: Record<string, string | undefined>, keepServing: boolean): Promise<void> {
  const folder =
    env.DATA_DIR === undefined || env.DATA_DIR === '' ? mkdtempSync(join(tmpdir(), 'inventory-demo-')) : undefined
  if (folder !== undefined) process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
  // One login and a look around: whoever tries this out has nothing to protect yet.
  const defaults = { LOG_LEVEL: 'warn', ...(env.NODE_ENV === 'production' ? {} : { SECOND_FACTOR: 'optional' }) }
  const config = loadConfig({ ...defaults, ...env, ...(folder === undefined ? {} : { DATA_DIR: folder }) })
  const service = await build(config)
  try {
    await service.ready()
    const demo = await Demo.open(service, config)
    if (await demo.isEmpty()) await demo.load()
    else say(`Using what is in ${config.DATA_DIR}.`)
    await demo.learn()
    await demo.report()
    if (!keepServing) return await service.close()
    const password = await demo.account()
    await listen(listening(service), config)
    demo.farewell(service, password)
  } catch (error) {
    await service.close()
    throw error
  }
}

interface JobView {
  id: string
  status: string
  progress: { done: number; total: number }
  result?: Record<string, unknown>
  error?: { message: string }
}

class Demo {
  private constructor(
    readonly service: FastifyInstance,
    readonly config: Config,
    readonly authorization: string
  ) {}

  static async open(service: FastifyInstance, config: Config): Promise<Demo> {
    const signer = Fastify()
    const tokens = createTokens(signer, { keys: config.jwtKeys })
    await signer.ready()
    return new Demo(
      service,
      config,
      `Bearer ${issueToken(tokens, { role: 'admin', tenant: 'main', ttlSeconds: 86_400 })}`
    )
  }

  /** The demo is a REST consumer like any other. */
  async call<T>(method: 'GET' | 'POST', url: string, payload?: object | Readable, type?: string): Promise<T> {
    const headers = { authorization: this.authorization, ...(type === undefined ? {} : { 'content-type': type }) }
    const answer = await this.service.inject({ method, url, headers, ...(payload === undefined ? {} : { payload }) })
    if (answer.statusCode >= 400)
      throw new Error(`${method} ${url} answered ${answer.statusCode}: ${answer.body.slice(0, 2_000)}`)
    return answer.json<T>()
  }

  async isEmpty(): Promise<boolean> {
    return (await this.call<{ data: unknown[] }>('GET', '/api/inventory?limit=1')).data.length === 0
  }

  async load(): Promise<void> {
    say('A year of a real shop: Online Retail (UCI, CC BY 4.0), its 300 most regular items. See demo/README.md.')
    await this.#job(
      'items',
      this.call('POST', '/api/import/items', createReadStream(join(DATA, 'items.csv.gz')), 'text/csv')
    )
    const movements = join(this.config.DATA_DIR, 'demo-movements.csv')
    try {
      await pipeline(Readable.from(movementRows(await readSales())), createWriteStream(movements))
      await this.#job('movements', this.call('POST', '/api/import/movements', createReadStream(movements), 'text/csv'))
    } finally {
      rmSync(movements, { force: true })
    }
  }

  async learn(): Promise<void> {
    const trained = await this.#job(
      'forecasts',
      this.call('POST', '/api/ai/forecast/train', { all: true, frequency: 'day', horizonDays: 28 })
    )
    const failed = trained.result?.failed
    if (Array.isArray(failed) && failed.length > 0) say(`  ${failed.length} series could not be trained`)
    await this.call('POST', '/api/ai/consumption/detect-anomalies', {
      from: new Date(Date.now() - 60 * DAY).toISOString().slice(0, 10)
    })
  }

  async #job(title: string, started: Promise<JobView>): Promise<JobView> {
    const startedAt = performance.now()
    const first = await started
    for (let view = first; ; ) {
      const { done, total } = view.progress
      if (process.stdout.isTTY && total > 0) process.stdout.write(`\r  ${title}: ${done} of ${total}   `)
      if (view.status === 'succeeded') {
        if (process.stdout.isTTY) process.stdout.write('\r\u001b[K')
        say(`  ${title}: done in ${((performance.now() - startedAt) / 1000).toFixed(1)} s`)
        return view
      }
      if (view.status !== 'queued' && view.status !== 'running')
        throw new Error(`${title}: the job is ${view.status}: ${view.error?.message ?? ''}`)
      await new Promise((resolve) => setTimeout(resolve, POLL_MILLISECONDS))
      view = await this.call<JobView>('GET', `/api/jobs/${first.id}`)
    }
  }

  /** What a manager wants: the worth of the stock, what runs out first, what moved unusually, what each forecast rests on. */
  async report(): Promise<void> {
    const stats = await this.call<DashboardView>('GET', '/api/dashboard/stats')
    const { ok, transactions, moves } = await this.call<{ ok: boolean; transactions: number; moves: number }>(
      'GET',
      '/api/ledger/verify'
    )
    const names = new Map<string, string>()
    for (let cursor = ''; ; ) {
      const page = await this.call<ItemsView>(
        'GET',
        `/api/inventory?limit=500${cursor === '' ? '' : `&cursor=${cursor}`}`
      )
      for (const { itemCode, name } of page.data) names.set(itemCode, name)
      if (page.page.nextCursor === null) break
      cursor = page.page.nextCursor
    }
    const named = (itemCode: string) => `${itemCode.padEnd(8)} ${(names.get(itemCode) ?? '').slice(0, 36).padEnd(36)}`
    say()
    say(
      `Stock: ${stats.items} items worth ${Math.round(stats.stockValue).toLocaleString('en')}; ${stats.outOfStock} out of stock, ${stats.lowStock} low.`
    )
    say(
      `Ledger: ${transactions} transactions, ${moves} moves; ${ok ? 'every balance agrees with them' : 'MISMATCHES, see /api/ledger/verify'}.`
    )
    say()
    say('Runs out first:')
    for (const { itemCode, available, daysOfCover, date } of stats.runsOutFirst.slice(0, SHOWN)) {
      const { model } = await this.call<{ model: string }>('GET', `/api/ai/forecast/${encodeURIComponent(itemCode)}`)
      const days = daysOfCover.toFixed(1).padStart(5)
      say(`  ${named(itemCode)} ${String(available).padStart(6)} left, ${days} days, until ${date} (${model})`)
    }
    say()
    say(`Moved unusually in the last 60 days: ${stats.anomalies.open} findings, the latest:`)
    for (const { itemCode, date, observed, expected } of stats.anomalies.latest.slice(0, SHOWN)) {
      say(`  ${named(itemCode)} ${date}  ${String(observed).padStart(6)} where ${expected.toFixed(1)} was expected`)
    }
    say()
    const { forecasts } = stats
    say(
      `Forecasts, ${forecasts.series} series a day: WAPE ${percent(forecasts.wape)} out of sample (the baseline: ${percent(forecasts.baselineWape)}).`
    )
    for (const { model, series, wape } of forecasts.byModel)
      say(`  ${model.padEnd(16)} ${String(series).padStart(4)} series, WAPE ${percent(wape)}`)
    say(
      `  ${forecasts.baselineServes} of them are served by the baseline, because nothing beat it. Each item's model: /api/ai/models/list`
    )
  }

  /** One login for the person at the console; nobody is there before. */
  async account(): Promise<string> {
    const password = randomBytes(12).toString('base64url')
    const tenant = await this.service.getDecorator<Tenants>('tenants').get('main')
    const username = `demo-${randomBytes(2).toString('hex')}`
    const user = { username, displayName: 'Demo', role: 'admin', password } as const
    await createUser(tenant, user, this.config.secondFactor)
    this.#username = username
    return password
  }
  #username = ''

  farewell(service: FastifyInstance, password: string): void {
    const address = service.listeningOrigin
    say()
    say(`Serving on ${address} — the API's reference page is ${address}/docs`)
    say(`  login: ${this.#username} / ${password}   (POST /api/auth/login)`)
    if (this.config.secondFactor === 'optional')
      say(
        '         no second factor is asked for here; a service asks managers and administrators for one (SECOND_FACTOR)'
      )
    say(`  token: ${this.authorization.slice('Bearer '.length)}`)
    say('  look:  curl -H "Authorization: Bearer $TOKEN" followed by one of')
    for (const path of [
      '/api/dashboard/stats',
      '/api/inventory?status=low',
      '/api/inventory?q=heart',
      '/api/ai/forecast/85123A',
      '/api/anomalies'
    ]) {
      say(`         ${address}${path}`)
    }
    say(`         ${address}/metrics and ${address}/health need no token`)
    say('  stop:  Ctrl-C')
  }
}

const percent = (value: number | null) => (value === null ? 'unknown' : `${value.toFixed(1)} %`)

interface ItemsView {
  data: { itemCode: string; name: string }[]
  page: { nextCursor: string | null }
}
interface DashboardView {
  items: number
  stockValue: number
  lowStock: number
  outOfStock: number
  runsOutFirst: { itemCode: string; available: number; daysOfCover: number; date: string }[]
  anomalies: { open: number; latest: { itemCode: string; date: string; observed: number; expected: number }[] }
  forecasts: {
    series: number
    wape: number | null
    baselineWape: number | null
    baselineServes: number
    byModel: { model: string; series: number; wape: number | null }[]
  }
}

/** The sales, shifted by whole days so that the last is yesterday's. */
async function readSales(): Promise<Sale[]> {
  const sales: Sale[] = []
  const rows = createReadStream(join(DATA, 'sales.csv.gz'))
    .pipe(createGunzip())
    .pipe(parse({ columns: true }))
  for await (const { itemCode, quantity, occurredAt, reference } of rows as AsyncIterable<Record<string, string>>) {
    sales.push({
      itemCode: itemCode ?? '',
      quantity: Number(quantity),
      at: Date.parse(`${occurredAt}`),
      reference: reference ?? ''
    })
  }
  const lastDay = Math.floor((sales.at(-1)?.at ?? 0) / DAY)
  const yesterday = Math.floor(Date.now() / DAY) - 1
  return sales.map((sale) => ({ ...sale, at: sale.at + (yesterday - lastDay) * DAY }))
}

/** Sales and generated deliveries in the order they happened, as the import reads them. */
function* movementRows(sales: readonly Sale[]): Generator<string> {
  const deliveries = weeklyDeliveries(sales)
  yield 'itemCode,type,quantity,occurredAt,reference,reason\n'
  let next = 0
  const until = function* (at: number) {
    for (; next < deliveries.length && (deliveries[next]?.at ?? 0) <= at; next++) yield deliveryRow(deliveries[next])
  }
  for (const { itemCode, quantity, at, reference } of sales) {
    yield* until(at)
    // A negative issue is a return.
    yield `${itemCode},issue,${quantity},${new Date(at).toISOString()},${reference},\n`
  }
}

const deliveryRow = (delivery: Delivery | undefined) =>
  delivery === undefined
    ? ''
    : `${delivery.itemCode},receipt,${delivery.quantity},${new Date(delivery.at).toISOString()},generated-${new Date(delivery.at).toISOString().slice(0, 10)},generated: the source has no purchases\n`
