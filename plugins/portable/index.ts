import type { MigrationSet, Place, Portability, PortableReader, PortableSchema, PortableWriter } from '../contracts.js'
import { type DatabaseOptions, openDatabaseServer, placeOf } from '../database.js'
import { UNWATCHED } from '../dialects/dialect.js'
import { migrate } from '../migrate/index.js'
import { postgresReader, postgresWriter } from './postgres.js'
import { sqliteReader, sqliteWriter } from './sqlite.js'

export { linesOf, NotPortable, parseRow } from './values.js'

/** Opens one consistent state of a tenant's data for reading, on a connection of its own. */
export const openReader = async (place: Place, traits: readonly Portability[]): Promise<PortableReader> =>
  place.dialect === 'sqlite' ? sqliteReader(place.path, traits) : postgresReader(place, traits)

/** Opens a migrated place for writing past its guards: a fresh one that is loaded, or a copy that follows another. */
export const openWriter = async (place: Place, traits: readonly Portability[]): Promise<PortableWriter> =>
  place.dialect === 'sqlite' ? sqliteWriter(place.path, traits) : postgresWriter(place, traits)

/**
 * Makes a tenant's database where there is none, with the migrations that are named (all, when none are).
 * @throws MigrationError where one is not known to this version of the program
 */
export async function createPlace(
  options: Omit<DatabaseOptions, 'poolSize'>,
  tenant: string,
  sets: readonly MigrationSet[],
  only?: PortableSchema['migrations']
): Promise<Place> {
  const server = openDatabaseServer({ ...options, poolSize: 1 }, UNWATCHED)
  try {
    await server.create(tenant)
    const { migrator, close } = await server.open(tenant)
    await migrate(migrator.db, sets, {
      ...(migrator.schema === undefined ? {} : { schema: migrator.schema }),
      ...(only === undefined ? {} : { only })
    })
    await close()
  } finally {
    await server.close()
  }
  return placeOf(options, tenant)
}

/** What the tables of all modules need. */
export const portabilityOf = (sets: readonly MigrationSet[]): Portability[] =>
  sets.flatMap(({ portability }) => (portability === undefined ? [] : [portability]))
