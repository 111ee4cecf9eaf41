import { setTimeout as sleep } from 'node:timers/promises'
import { send } from './load.js'

/** From the answer to a write until another node's answers show it, in ms. */
export interface Latencies {
  readonly p50: number
  readonly p99: number
  readonly max: number
  /** What a read took meanwhile (p99): a machine that is that busy hears no sooner. */
  readonly read: number
  /** Reads at the node that wrote, right after, that were old. */
  readonly staleAtWriter: number
}

/** Longer than any message takes: then it came by age alone. */
const GIVEN_UP_MILLISECONDS = 5_000

/** Writes at one node after the other, and asks the others, whose answers are cached, until each shows it. */
export async function checkCoherence(
  urls: readonly string[],
  token: string,
  itemCode: string,
  rounds: number
): Promise<Latencies> {
  const path = `/api/inventory/${itemCode}`
  const shows = async (url: string, name: string) =>
    (await send(url, token, 'GET', path)).text.includes(`"name":${JSON.stringify(name)}`)
  const delays: number[] = []
  const reads: number[] = []
  let staleAtWriter = 0
  for (let round = 0; round < rounds; round++) {
    const writer = urls[round % urls.length] ?? ''
    const others = urls.filter((url) => url !== writer)
    await Promise.all(others.map((url) => send(url, token, 'GET', path)))
    const name = `Name ${round}`
    const written = await send(writer, token, 'PATCH', path, { body: { name } })
    if (written.status !== 200) throw new Error(`a write was refused: ${written.status} ${written.text}`)
    const writtenAt = performance.now()
    if (!(await shows(writer, name))) staleAtWriter++
    await Promise.all(
      others.map(async (url) => {
        for (;;) {
          // From when on a request sees it: how long that one takes is the machine's affair.
          const askedAt = performance.now()
          const shown = await shows(url, name)
          reads.push(performance.now() - askedAt)
          if (shown) return void delays.push(askedAt - writtenAt)
          if (askedAt - writtenAt > GIVEN_UP_MILLISECONDS) throw new Error(`${url} never showed ${name}`)
          await sleep(1)
        }
      })
    )
  }
  const at = (values: number[], share: number) =>
    values.sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(share * values.length))] ?? Number.NaN
  return { p50: at(delays, 0.5), p99: at(delays, 0.99), max: at(delays, 1), read: at(reads, 0.99), staleAtWriter }
}
