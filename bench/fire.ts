import autocannon from 'autocannon'
import { BenchError, type Target } from './support.js'

interface Fired {
  readonly perSecond: number
  /** Of each answer, in milliseconds. */
  readonly times: readonly number[]
  /** What one answer took of the server's processors. */
  readonly cpuMicroseconds: number
}

/** Requests over HTTP, as many as are answered in `duration` seconds. @throws BenchError unless each was answered with 2xx */
export async function fire(target: Target, options: Partial<autocannon.Options>): Promise<Fired> {
  const times: number[] = []
  const cpuBefore = target.cpuMilliseconds()
  const result = await new Promise<autocannon.Result>((resolve, reject) => {
    const instance = autocannon({ url: target.url, ...options }, (error, done) =>
      error ? reject(error) : resolve(done)
    )
    instance.on('response', (_client, _status, _bytes, milliseconds) => void times.push(milliseconds))
  })
  if (result.non2xx > 0 || result.errors > 0)
    throw new BenchError(`${result.non2xx} answers were not 2xx, ${result.errors} requests were not answered`)
  return {
    perSecond: result['2xx'] / result.duration,
    times,
    cpuMicroseconds: ((target.cpuMilliseconds() - cpuBefore) * 1000) / result['2xx']
  }
}
