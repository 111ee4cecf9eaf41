/** Runs at most `limit` at once, the others in the order they came; one that is aborted while it waits is rejected at once. */
export function limiter(limit: number) {
  const waiting: (() => void)[] = []
  let free = limit
  const slot = (signal: AbortSignal | undefined) =>
    new Promise<void>((resolve, reject) => {
      const give = () => {
        signal?.removeEventListener('abort', abort)
        resolve()
      }
      const abort = () => {
        waiting.splice(waiting.indexOf(give), 1)
        reject(signal?.reason)
      }
      waiting.push(give)
      signal?.addEventListener('abort', abort, { once: true })
    })
  const run = async <R>(signal: AbortSignal | undefined, work: () => Promise<R>): Promise<R> => {
    signal?.throwIfAborted()
    if (free > 0) free--
    else await slot(signal)
    try {
      return await work()
    } finally {
      const next = waiting.shift()
      if (next === undefined) free++
      else next()
    }
  }
  return { run, load: () => ({ running: limit - free, waiting: waiting.length }) }
}
