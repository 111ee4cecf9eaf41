import { randomUUID } from 'node:crypto'
import { send } from './load.js'

const ROUNDS = 5

/** Who is disabled through one node gets nothing from another, by the very next request. */
export async function checkRevocation(
  urls: readonly string[],
  admin: string,
  sign: (subject: string) => string
): Promise<void> {
  for (let round = 0; round < ROUNDS; round++) {
    const [at = '', other = ''] = [urls[round % urls.length], urls[(round + 1) % urls.length]]
    const made = await send(at, admin, 'POST', '/api/users', {
      body: { username: `user-${randomUUID().slice(0, 8)}`, role: 'viewer', password: `${randomUUID()}Aa1` }
    })
    if (made.status !== 201) throw new Error(`no user: ${made.status} ${made.text}`)
    const { id }: { id: string } = JSON.parse(made.text)
    const token = sign(id)
    const read = async () => (await send(other, token, 'GET', '/api/inventory')).status
    const before = await read()
    const ended = await send(at, admin, 'PATCH', `/api/users/${id}`, { body: { disabled: true } })
    const after = await read()
    if (before !== 200 || ended.status !== 200 || after !== 401)
      throw new Error(
        `a user reads with ${before}, is disabled with ${ended.status} ${ended.text}, reads with ${after}`
      )
  }
}
