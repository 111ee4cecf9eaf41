/** A process that migrates and is killed at it; see upgrades.test.ts. Its argument: the URL. */
import { pathToFileURL } from 'node:url'
import { openDatabaseServer } from '../../plugins/database.js'
import { UNWATCHED } from '../../plugins/dialects/dialect.js'
import { migrate } from '../../plugins/migrate/index.js'
import { versionTwo } from './versions.js'

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [, , databaseUrl = ''] = process.argv
  const server = openDatabaseServer({ databaseUrl, tenancy: 'single', poolSize: 3 }, UNWATCHED)
  const { migrator } = await server.open('main')
  await migrate(migrator.db, [versionTwo], migrator.schema === undefined ? {} : { schema: migrator.schema })
  await server.close()
}
