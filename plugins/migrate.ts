import { type Kysely, type Migration, Migrator } from 'kysely'
import type { MigrationSet } from './contracts.js'

export type { MigrationSet } from './contracts.js'

interface MigrateOptions {
  /** PostgreSQL: the schema that holds the tables and the ledgers of what was applied. */
  schema?: string
  /** Only these, by module, such as those that a backup was made with. @throws MigrationError where one is not known */
  only?: Readonly<Record<string, readonly string[]>>
}

/** A migration failed; `migration` names it. Nothing of it stays applied, on either database. */
export class MigrationError extends Error {
  constructor(module: string, migration: string, cause: unknown) {
    super(`migration ${module}/${migration} failed: ${cause instanceof Error ? cause.message : String(cause)}`, {
      cause
    })
  }
}

/**
 * Applies what is missing of each set, in order. Each module has a ledger of its own (`migrations_<module>`), so modules
 * can be added, removed and upgraded apart.
 * @returns the names of the migrations that were applied now
 * @throws MigrationError
 */
export async function migrate(
  db: Kysely<unknown>,
  sets: readonly MigrationSet[],
  { schema, only }: MigrateOptions = {}
): Promise<string[]> {
  const applied: string[] = []
  for (const { module, migrations: known } of sets) {
    const name = module.replaceAll('-', '_')
    const ledger = `migrations_${name}`
    const migrations = only === undefined ? known : named(module, known, only[name] ?? [])
    const migrator = new Migrator({
      db,
      provider: { getMigrations: async () => migrations },
      migrationTableName: ledger,
      migrationLockTableName: `${ledger}_lock`,
      ...(schema === undefined ? {} : { migrationTableSchema: schema })
    })
    const { error, results } = await migrator.migrateToLatest()
    for (const { migrationName, status } of results ?? []) {
      if (status === 'Success') applied.push(`${module}/${migrationName}`)
      if (status === 'Error') throw new MigrationError(module, migrationName, error)
    }
    if (error !== undefined) throw new MigrationError(module, 'ledger', error)
  }
  return applied
}

function named(module: string, known: Migrations, names: readonly string[]): Migrations {
  return Object.fromEntries(
    names.map((name) => {
      const migration = known[name]
      if (migration === undefined)
        throw new MigrationError(module, name, 'this version of the program does not know it')
      return [name, migration]
    })
  )
}

/** A module's migrations by name, in the order they are to be applied. */
export type Migrations = Record<string, Migration>
