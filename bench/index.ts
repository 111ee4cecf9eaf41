import { existsSync } from 'node:fs'
import { BenchError } from './support.js'

interface Bench {
  /** Compiled file beside this one; it exports `run(args)`. */
  file: string
  about: string
  options: string
}

const BENCHES: Record<string, Bench> = {
  load: {
    file: 'load.js',
    about: 'GET /api/inventory?limit=50 at 100 connections, beside bare Fastify and the Express stack',
    options: '--seconds 5 --rounds 3 --connections 100 --items 500'
  },
  ledger: {
    file: 'ledger.js',
    about: 'postings a second over HTTP and through the store, beside raw inserts, on both databases',
    options: '--seconds 4 --items 500'
  },
  mirror: {
    file: 'mirror.js',
    about: 'what a mirror costs a write: phases with it and without it take turns in one run',
    options: '--seconds 1 --pairs 20 --items 200 --clients 16 --rate 400'
  },
  soak: {
    file: 'soak.js',
    about: 'minutes of mixed load: memory, handles and errors stay flat, and SIGTERM drains, on both databases',
    options: '--minutes 5 --warmup 8 --rate 60 --items 300 --history 400000'
  },
  scrape: {
    file: 'scrape.js',
    about: 'GET /metrics with many tenants, idle and at full load, and how many series there are, on both databases',
    options: '--tenants 100 --items 50 --seconds 10 --connections 50'
  },
  tenants: {
    file: 'tenants.js',
    about: 'what a tenant costs on PostgreSQL: to make, to start with, to hold open, to do nothing with',
    options: '--tenants 1000'
  },
  backup: {
    file: 'backup.js',
    about: 'backups and restores of a ledger at two sizes: time, throughput, peak memory',
    options: '--moves 1000000 --items 500'
  },
  search: {
    file: 'search.js',
    about: 'search and keyset pages on 1,000,000 items, on both databases',
    options: '--items 1000000 --repeats 15'
  },
  telemetry: {
    file: 'telemetry.js',
    about: 'what logs and traces cost a request while traces are off, by CPU time in turns of a millisecond',
    options: '--processes 10 --reads 1000 --writes 400'
  },
  traces: {
    file: 'traces.js',
    about: 'what traces cost a request over HTTP: off, off again, a few kept, all kept, in turns in one run',
    options: '--seconds 2 --rounds 12 --connections 32 --items 200'
  },
  import: {
    file: 'import.js',
    about: '541,909 lines as one import, verified and undone, on both databases',
    options: '(env BENCH_DATA: the folder of data sets)'
  },
  reads: {
    file: 'reads.js',
    about: 'GET of a forecast past every cache, idle and while training runs, on both databases',
    options: '--items 400 --days 200 --seconds 5'
  },
  forecast: {
    file: 'forecast.js',
    about: 'forecast accuracy, intervals and cost beside baselines and R; the choice that was made; 10,000 items',
    options:
      '--sets m4,m3,retail,daily,carparts,selection,cost,volume --r 200 --items 10000 (env BENCH_DATA: the folder of data sets)'
  }
}

const usage = () =>
  [
    'usage: npm run bench -- <name> [--option value]',
    '',
    ...Object.entries(BENCHES).map(
      ([name, { about, options }]) => `  ${name.padEnd(10)}${about}\n${' '.repeat(12)}${options}`
    )
  ].join('\n')

async function main([name, ...args]: string[]): Promise<number> {
  if (name === undefined || name === '--help') {
    process.stdout.write(`${usage()}\n`)
    return 0
  }
  const bench = Object.hasOwn(BENCHES, name) ? BENCHES[name] : undefined
  if (bench === undefined) throw new BenchError(`There is no bench ${JSON.stringify(name)}.\n${usage()}`)
  const file = new URL(bench.file, import.meta.url)
  if (!existsSync(file))
    throw new BenchError(`The bench ${name} is not built: ${bench.file} is missing from dist/bench.`)
  const { run }: { run(args: string[]): Promise<unknown> } = await import(file.href)
  await run(args)
  return 0
}

try {
  process.exitCode = await main(process.argv.slice(2))
} catch (error) {
  process.stderr.write(
    `${error instanceof BenchError ? error.message : error instanceof Error ? (error.stack ?? '') : String(error)}\n`
  )
  process.exitCode = error instanceof BenchError ? 2 : 1
}
