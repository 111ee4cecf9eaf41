import { Socket } from 'node:net'
import pg from 'pg'

/** How long a connection in use may say nothing before it is asked whether the server is there at all. */
const SILENT_MILLISECONDS = 4_000
const PROBE_MILLISECONDS = 2_000
const LOOK_EVERY_MILLISECONDS = 500

/** A client whose socket can be looked at, and ended. */
export class WatchedClient extends pg.Client {
  readonly socket: Socket

  constructor(config: pg.ClientConfig = {}) {
    const socket = new Socket()
    super({ ...config, keepAlive: true, keepAliveInitialDelayMillis: 10_000, stream: () => socket })
    this.socket = socket
  }
}

/**
 * Ends connections on which nothing comes any more. A server that is frozen, or a network that swallows packets, closes nothing: TCP
 * would wait for a quarter of an hour, and whoever asked with it. A query may well take long, so silence alone ends nothing;
 * only when a new connection is not answered either, whoever waits is told so.
 * @returns how to stop watching
 */
export function endSilent(pool: pg.Pool, connection: pg.ClientConfig): () => void {
  const inUse = new Map<WatchedClient, { bytes: number; since: number }>()
  pool.on('acquire', (client) => {
    if (client instanceof WatchedClient) inUse.set(client, { bytes: client.socket.bytesRead, since: performance.now() })
  })
  const forget = (client: unknown) => void (client instanceof WatchedClient && inUse.delete(client))
  pool.on('release', (_error, client) => forget(client))
  pool.on('remove', forget)

  const silent = () => {
    const now = performance.now()
    return [...inUse].filter(([client, seen]) => {
      const { bytesRead } = client.socket
      if (bytesRead !== seen.bytes) Object.assign(seen, { bytes: bytesRead, since: now })
      return now - seen.since > SILENT_MILLISECONDS
    })
  }
  let asking = false
  const look = async () => {
    if (asking || silent().length === 0) return
    asking = true
    const answers = await answered(connection)
    asking = false
    for (const [client, seen] of silent()) {
      if (answers) seen.since = performance.now()
      else client.socket.destroy(new Error('Connection terminated: the server does not answer'))
    }
  }
  const timer = setInterval(() => void look(), LOOK_EVERY_MILLISECONDS).unref()
  return () => clearInterval(timer)
}

async function answered(connection: pg.ClientConfig): Promise<boolean> {
  const timeouts = { connectionTimeoutMillis: PROBE_MILLISECONDS, query_timeout: PROBE_MILLISECONDS }
  const client = new WatchedClient({ ...connection, ...timeouts })
  client.on('error', () => {})
  try {
    await client.connect()
    await client.query('select 1')
    return true
  } catch (error) {
    // One that is refused was answered: too many connections, or a server that is starting.
    return error instanceof pg.DatabaseError
  } finally {
    client.socket.destroy()
  }
}
