import { setTimeout as sleep } from 'node:timers/promises'
import { parentPort, workerData } from 'node:worker_threads'

/** In a thread of its own: who makes the load has no time to look at the clock. */

export interface Scrapes {
  readonly scrapes: readonly number[]
  /** The cheapest route, asked just before each: what a request waits for at all. */
  readonly controls: readonly number[]
  readonly text: string
}

const PAUSE_MS = 100
/** As Prometheus asks. */
const HEADERS = {
  accept:
    'application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1',
  'accept-encoding': 'gzip'
}

let over = false
parentPort?.once('message', () => {
  over = true
})

const scrapes: number[] = []
const controls: number[] = []
let text = ''
while (!over) {
  controls.push((await timed(`${workerData}/health/live`)).milliseconds)
  const scrape = await timed(`${workerData}/metrics`)
  scrapes.push(scrape.milliseconds)
  text = scrape.text
  await sleep(PAUSE_MS)
}
parentPort?.postMessage({ scrapes, controls, text } satisfies Scrapes)

async function timed(url: string) {
  const startedAt = performance.now()
  const answer = await fetch(url, { headers: HEADERS })
  const text = await answer.text()
  if (!answer.ok) throw new Error(`${url}: ${answer.status}`)
  return { text, milliseconds: performance.now() - startedAt }
}
