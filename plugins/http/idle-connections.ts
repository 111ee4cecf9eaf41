import type { Server } from 'node:http'

const LOOK_MILLISECONDS = 100

/**
 * Ends connections of a server that closes as they become idle. Node ends those that are idle when it begins; one that was answering
 * then is kept open by its client, for a next request that may never come, and the server would wait for it.
 * @returns what stops it
 */
export function endIdleConnections(server: Pick<Server, 'closeIdleConnections'>): () => void {
  const looking = setInterval(() => server.closeIdleConnections(), LOOK_MILLISECONDS).unref()
  return () => clearInterval(looking)
}
