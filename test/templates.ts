import { copyFileSync, existsSync, mkdtempSync, renameSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import pg from 'pg'
import type { Test } from 'tap'
import { loadConfig } from '../plugins/config/index.js'
import { build } from '../server.js'
import { freshDatabase, postgresUrl, templateName } from './services.js'

/**
 * Databases as the service leaves them when it starts on an empty one and ends: tables, and rows that migrations wrote. Made once
 * in a run of `npm test` and copied for each test, since to make one costs most of a second; that it can be made is tested by
 * those who ask for an empty one.
 */

export type Dialect = 'sqlite' | 'postgres'

/** Where those of this run are; not set where a file is run by itself. */
const folder = process.env.TEST_TEMPLATES

async function startAndEnd(env: Record<string, string>): Promise<void> {
  const app = await build(loadConfig({ NODE_ENV: 'test', LOG_LEVEL: 'silent', ...env }))
  await app.ready()
  await app.close()
}

/** The file appears whole or not at all: other processes may make it at the same time. */
async function sqliteTemplate(path: string): Promise<string> {
  if (existsSync(path)) return path
  const dataDir = mkdtempSync(join(tmpdir(), 'inventory-test-'))
  await startAndEnd({ DATA_DIR: dataDir })
  renameSync(join(dataDir, 'inventory.sqlite'), path)
  rmSync(dataDir, { recursive: true, force: true })
  return path
}

async function postgresTemplate(name: string): Promise<string> {
  const client = new pg.Client({ connectionString: postgresUrl() })
  await client.connect()
  try {
    await client.query('SELECT pg_advisory_lock(hashtext($1))', [name])
    const { rowCount } = await client.query('SELECT 1 FROM pg_database WHERE datname = $1', [name])
    if (rowCount !== 0) return name
    const dataDir = mkdtempSync(join(tmpdir(), 'inventory-test-'))
    const { url } = await freshDatabase()
    await startAndEnd({ DATA_DIR: dataDir, DATABASE_URL: url })
    rmSync(dataDir, { recursive: true, force: true })
    await client.query(`ALTER DATABASE ${basename(new URL(url).pathname)} RENAME TO ${name}`)
    return name
  } finally {
    await client.end()
  }
}

const made: Partial<Record<Dialect, Promise<string>>> = {}

interface Place {
  dialect: Dialect
  /** A server of many tenants has none at first. */
  tenancy?: 'single' | 'multi'
  dataDir: string
}

/**
 * Puts a database where a service that keeps its data in `dataDir` looks for it; it goes when the test ends.
 * @returns its URL where it is not in that folder
 */
export async function provideDatabase(
  t: Test,
  { dialect, tenancy = 'single', dataDir }: Place
): Promise<string | undefined> {
  const copied = folder !== undefined && tenancy === 'single'
  if (dialect === 'sqlite') {
    if (!copied) return undefined
    made.sqlite ??= sqliteTemplate(join(folder, 'inventory.sqlite'))
    copyFileSync(await made.sqlite, join(dataDir, 'inventory.sqlite'))
    return undefined
  }
  if (copied) made.postgres ??= postgresTemplate(templateName(folder))
  const database = await freshDatabase(copied ? await made.postgres : undefined)
  t.teardown(() => database.drop())
  return database.url
}
