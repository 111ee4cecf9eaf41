import { createReadStream, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createGunzip } from 'node:zlib'
import { parse } from 'csv-parse'
import type { Job } from '../schemas/common.js'
import {
  BenchError,
  newSecret,
  numbers,
  postgres,
  type Service,
  say,
  startService,
  table,
  withCleanup
} from './support.js'

const FILE = 'online_retail.csv.gz'
const SECONDS_GOAL = 60
const MEGABYTES_GOAL = 400
const MAP = 'map=itemCode:StockCode,quantity:Quantity,occurredAt:InvoiceDate,reference:InvoiceNo'
const UNDO_TIMEOUT_SECONDS = 1_800

/**
 * The whole of UCI Online Retail, 541,909 lines with returns, through the API: all of it as one import, the ledger verified, and taken
 * back as one group. The file has no purchases, so each item has enough from the start.
 */
export async function run(args: string[]): Promise<void> {
  numbers(args, {})
  const folder = process.env.BENCH_DATA
  if (!folder) throw new BenchError(`BENCH_DATA is not set: it names the folder with ${FILE}`)
  const file = join(folder, FILE)
  await withCleanup(async (cleanup) => {
    const rows: string[][] = []
    const secret = newSecret()
    const databases = [{ name: 'SQLite', url: `sqlite:${join(cleanup.folder(), 'inventory.sqlite')}` }]
    const server = await postgres(cleanup)
    if (server !== undefined) databases.push({ name: 'PostgreSQL', url: server.url })
    for (const { name, url } of databases) {
      const service = await startService(cleanup, { databaseUrl: url, secret })
      rows.push([name, ...(await measure(service, name, file))])
    }
    process.stdout.write(
      `\nOne upload of ${FILE}, with what the service needs of memory at most (VmHWM), from its start on\n${table(
        [
          '',
          'lines',
          'transactions',
          'import s',
          'lines/s',
          'verify s',
          'undo s',
          'peak MB',
          `< ${SECONDS_GOAL} s, < ${MEGABYTES_GOAL} MB`
        ],
        rows
      )}\n`
    )
  })
}

async function measure(service: Service, name: string, file: string): Promise<string[]> {
  say(`${name}: items and stock`)
  const codes = await itemCodes(file)
  await finished(
    service,
    await upload(service, 'items', `itemCode,name\n${codes.map((code) => `${code},${code}\n`).join('')}`)
  )
  const opening = codes.map((code) => `${code},1000000,2009-01-01,1\n`).join('')
  const stock = `itemCode,quantity,occurredAt,unitCost\n${opening}`
  await finished(service, await upload(service, 'movements?type=receipt', stock))
  say(`${name}: the file`)
  const startedAt = performance.now()
  const answer = await upload(service, `movements?type=issue&${MAP}`, readFileSync(file))
  const { importId, ...report } = await finished(service, answer)
  const seconds = (performance.now() - startedAt) / 1000
  const peak = peakMegabytes(service.pid)
  say(`${name}: verify`)
  const verified = await timed(() => get<{ ok: boolean }>(service, '/api/ledger/verify'))
  if (!verified.result.ok) throw new BenchError(`${name}: the ledger does not verify`)
  say(`${name}: undo`)
  const undone = await timed(async () => {
    const headers = { authorization: `Bearer ${service.token}` }
    return finished(
      service,
      await fetch(`${service.url}/api/imports/${String(importId)}/undo`, { method: 'POST', headers })
    )
  })
  if (!(await get<{ ok: boolean }>(service, '/api/ledger/verify')).ok)
    throw new BenchError(`${name}: the ledger does not verify after the undo`)
  const [rows, created] = [Number(report.rows), Number(report.created)]
  const met = seconds < SECONDS_GOAL && peak < MEGABYTES_GOAL
  return [
    rows.toLocaleString('en'),
    created.toLocaleString('en'),
    seconds.toFixed(1),
    Math.round(rows / seconds).toLocaleString('en'),
    verified.seconds.toFixed(1),
    undone.seconds.toFixed(1),
    peak.toFixed(0),
    met ? 'met' : 'MISSED'
  ]
}

async function itemCodes(file: string): Promise<string[]> {
  const codes = new Set<string>()
  const records = createReadStream(file)
    .pipe(createGunzip())
    .pipe(parse({ columns: true }))
  for await (const record of records as AsyncIterable<{ StockCode: string }>) codes.add(record.StockCode.trim())
  return [...codes]
}

function upload(service: Service, path: string, body: string | Buffer): Promise<Response> {
  const headers = { authorization: `Bearer ${service.token}`, 'content-type': 'text/csv' }
  return fetch(`${service.url}/api/import/${path}`, { method: 'POST', headers, body })
}

/** Waits for the job that the answer tells of. */
async function finished(service: Service, answer: Response): Promise<Record<string, unknown>> {
  if (answer.status !== 202)
    throw new BenchError(`${answer.url}: ${answer.status} ${(await answer.text()).slice(0, 500)}`)
  const { id }: Job = JSON.parse(await answer.text())
  for (let waited = 0; waited < UNDO_TIMEOUT_SECONDS; waited += 0.2) {
    const job = await get<Job>(service, `/api/jobs/${id}`)
    if (job.status === 'succeeded') return typeof job.result === 'object' ? { ...job.result } : {}
    if (job.status === 'failed') throw new BenchError(JSON.stringify(job.error))
    await new Promise((resolve) => setTimeout(resolve, 200))
  }
  throw new BenchError(`the job ${id} does not end`)
}

async function get<R>(service: Service, path: string): Promise<R> {
  const answer = await fetch(service.url + path, { headers: { authorization: `Bearer ${service.token}` } })
  if (!answer.ok) throw new BenchError(`${path}: ${answer.status}`)
  return JSON.parse(await answer.text())
}

async function timed<R>(work: () => Promise<R>): Promise<{ result: R; seconds: number }> {
  const startedAt = performance.now()
  return { result: await work(), seconds: (performance.now() - startedAt) / 1000 }
}

/** The most that has been resident so far. */
const peakMegabytes = (pid: number): number =>
  Number(/^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? Number.NaN) / 1024
