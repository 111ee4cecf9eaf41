import { get } from 'node:http'
import { text } from 'node:stream/consumers'
import pg from 'pg'

/** On a connection that nobody has used: one that was kept could lead to a process that hangs. */
export const afresh = (url: string) =>
  new Promise<{ code: number | undefined; body: string }>((resolve, reject) => {
    const signal = AbortSignal.timeout(20_000)
    const request = get(url, { agent: false, signal }, (answer) => {
      text(answer).then((body) => resolve({ code: answer.statusCode, body }), reject)
    })
    request.on('error', reject)
  })

/** Who starts reads what was migrated before it serves; until the answer is called it waits. */
export async function startsHeld(databaseUrl: string): Promise<() => Promise<void>> {
  const client = new pg.Client({ connectionString: databaseUrl })
  await client.connect()
  await client.query('begin; lock table tenant_main.migrations_core in access exclusive mode')
  return () => client.end()
}
