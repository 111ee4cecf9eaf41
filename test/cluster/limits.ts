import { setTimeout as sleep } from 'node:timers/promises'
import { send } from './load.js'

/** Requests a minute for one caller: exports, which nothing else here asks for. */
const EXPORTS = 20
export const RATE_LIMITS = `export:${EXPORTS}`
const PATH = '/api/export/items'
/** More than the limit at each node. */
const AT_ONCE = 3 * EXPORTS
/** Counting goes on in the process where Redis does not answer; then another caller is counted. */
const ATTEMPTS = 5

interface Asked {
  readonly status: number
  readonly retryAfter: number
}

/** A caller has one limit, whichever nodes it asks, in whatever order and at once; who else asks is not in its way. */
export async function checkLimits(
  urls: readonly string[],
  sign: (subject: string) => string,
  cutOffs: () => number
): Promise<string> {
  for (let attempt = 1; ; attempt++) {
    const before = cutOffs()
    const found = await askTooMuch(urls, sign, attempt)
    if (found.wrong.length === 0) return found.said
    if (cutOffs() === before || attempt === ATTEMPTS) throw new Error(`limits: ${found.wrong.join('; ')}`)
    await sleep(1_000)
  }
}

async function askTooMuch(urls: readonly string[], sign: (subject: string) => string, attempt: number) {
  const wrong: string[] = []
  const [first = '', ...others] = urls
  const [one, two, three] = ['alone', 'spread', 'other'].map((name) => sign(`limited-${name}-${attempt}`))
  const refusedWell = (what: string, { status, retryAfter }: Asked) => {
    if (status !== 429 || !(retryAfter >= 1 && retryAfter <= 60))
      wrong.push(`${what}: ${status}, Retry-After ${retryAfter}`)
  }
  for (let n = 0; n < EXPORTS; n++) {
    const { status } = await ask(first, one)
    if (status !== 200) wrong.push(`request ${n + 1} of ${EXPORTS} at one node: ${status}`)
  }
  for (const url of others) refusedWell('one too many, at another node', await ask(url, one))
  refusedWell('one too many, at the same node', await ask(first, one))

  const all = await Promise.all(Array.from({ length: AT_ONCE }, (_, n) => ask(urls[n % urls.length] ?? '', two)))
  const refused = all.filter(({ status }) => status !== 200)
  for (const answer of refused) refusedWell('of many at once', answer)
  if (all.length - refused.length !== EXPORTS)
    wrong.push(`${all.length - refused.length} of ${AT_ONCE} at once were let through; ${EXPORTS} may be`)
  const { status } = await ask(first, three)
  if (status !== 200) wrong.push(`another caller: ${status}`)
  const said = `limits: a caller who is over it at one node is refused at the others with Retry-After; of ${AT_ONCE} requests at once to ${urls.length} nodes ${EXPORTS} are let through`
  return { wrong, said }
}

async function ask(url: string, token: string | undefined): Promise<Asked> {
  const { status, retryAfter } = await send(url, token ?? '', 'GET', PATH)
  return { status, retryAfter }
}
