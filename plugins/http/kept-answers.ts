import type { Kysely } from 'kysely'
import { REPETITION } from '../../schemas/personal.js'
import type { PersonalData } from '../contracts.js'

type Tables = { idempotency_keys: { key: string; body: string | null; created_at: number } }
const tables = (db: Kysely<unknown>) => db.withTables<Tables>()

/** Answers kept for repeated requests: under the caller's id, and of whomever they tell. */
export const personalData: PersonalData = {
  holder: 'core',
  schemas: {},
  columns: { 'idempotency_keys.key': REPETITION, 'idempotency_keys.body': REPETITION },
  sections: {
    repeatableRequests: async function* ({ db }, subject) {
      const rows = await tables(db)
        .selectFrom('idempotency_keys')
        .select(['key', 'created_at'])
        .where('key', '>=', `${subject} `)
        .where('key', '<', `${subject}!`)
        .execute()
      for (const { key, created_at } of rows)
        yield { idempotencyKey: key.slice(subject.length + 1), createdAt: new Date(created_at).toISOString() }
    }
  },
  erase: async ({ db }, subject) => {
    const { numDeletedRows } = await tables(db)
      .deleteFrom('idempotency_keys')
      .where(({ eb, and, or }) =>
        or([
          and([eb('key', '>=', `${subject} `), eb('key', '<', `${subject}!`)]),
          // What somebody else was answered when they made or changed the account.
          eb('body', 'like', `%${subject}%`)
        ])
      )
      .executeTakeFirst()
    return Number(numDeletedRows)
  },
  retention: [{ what: 'Answers kept for repeated requests', keptFor: '7 days' }]
}
