/** A process that migrates and is killed at it; see online.test.ts. Its arguments: the URL, and at which update it kills itself. */
import { pathToFileURL } from 'node:url'
import { type KyselyPlugin, RawNode } from 'kysely'
import { openDatabaseServer } from '../../plugins/database.js'
import { UNWATCHED } from '../../plugins/dialects/dialect.js'
import { migrate } from '../../plugins/migrate/index.js'
import { versionTwo } from './versions.js'

/** The rows before it are filled, and those after it never. */
function killedAt(update: number): KyselyPlugin {
  let updates = 0
  return {
    transformQuery: ({ node }) => {
      const updating = RawNode.is(node) && node.sqlFragments[0]?.startsWith('update ') === true
      if (updating && ++updates === update) process.kill(process.pid, 'SIGKILL')
      return node
    },
    transformResult: async ({ result }) => result
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [, , databaseUrl = '', update] = process.argv
  const server = openDatabaseServer({ databaseUrl, tenancy: 'single', poolSize: 3 }, UNWATCHED)
  const { migrator } = await server.open('main')
  const db = update === undefined ? migrator.db : migrator.db.withPlugin(killedAt(Number(update)))
  await migrate(db, [versionTwo], migrator.schema === undefined ? {} : { schema: migrator.schema })
  await server.close()
}
