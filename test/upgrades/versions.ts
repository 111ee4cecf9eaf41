import { type Kysely, sql } from 'kysely'
import type { MigrationSet } from '../../plugins/migrate/index.js'

/** A module in two versions: the second adds a column, fills it and indexes it, without stopping those who write. */

const first = {
  '0001-things': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .createTable('things')
        .addColumn('id', 'integer', (c) => c.primaryKey())
        .addColumn('name', 'text', (c) => c.notNull())
        .execute()
    }
  }
}
export const versionOne: MigrationSet = { module: 'things', migrations: first }

export const versionTwo: MigrationSet = {
  module: 'things',
  migrations: {
    ...first,
    '0002-lower-name': {
      async up(db: Kysely<unknown>) {
        await db.schema.alterTable('things').addColumn('lower_name', 'text').execute()
      }
    },
    '0003-fill-lower-name': {
      online: [
        {
          backfill: 'things',
          key: 'id',
          where: sql`lower_name is null`,
          set: { lower_name: sql`lower(name)` },
          batch: 200
        },
        { index: 'things_lower_name', on: 'things', columns: ['lower_name', 'id'], where: sql`lower_name <> ''` }
      ]
    }
  }
}
