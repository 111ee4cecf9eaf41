import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync } from 'node:fs'
import { createServer as createWebServer, type RequestListener } from 'node:http'
import { createServer } from 'node:net'
import { join } from 'node:path'

/** A web server of the test's own. @returns its URL, and what ends it with whatever it still answers */
export async function listening(answer: RequestListener): Promise<{ url: string; port: number; close(): void }> {
  const server = createWebServer(answer).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('no TCP port could be had')
  const close = () => {
    server.closeAllConnections()
    server.close()
  }
  return { url: `http://127.0.0.1:${address.port}`, port: address.port, close }
}

/**
 * A TCP port on 127.0.0.1 that nothing listened on a moment ago, and that nobody else of this run is given. It is below those that
 * the system hands out by itself, or some connection would have it by the time that it is used.
 */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < 1_000; tries++) {
    const port = randomInt(10_000, 30_000)
    if (!claimed(port)) continue
    const probe = createServer().listen(port, '127.0.0.1')
    const isFree = await once(probe, 'listening').then(
      () => true,
      () => false
    )
    if (!isFree) continue
    probe.close()
    await once(probe, 'close')
    return port
  }
  throw new Error('no TCP port could be had')
}

/** Of all processes of a run only one makes the folder. */
function claimed(port: number): boolean {
  const run = process.env.TEST_FOLDER
  if (run === undefined) return true
  const claims = join(run, 'ports')
  mkdirSync(claims, { recursive: true })
  try {
    mkdirSync(join(claims, String(port)))
    return true
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EEXIST') return false
    throw error
  }
}
