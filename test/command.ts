import { Readable, Writable } from 'node:stream'
import { inventory } from '../commands/program.js'

/**
 * A command of the operator as typed at a terminal, without the two seconds that a process takes to start. What only a process
 * shows (signals, its end) is tested with one.
 */

export interface Run {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

function collector(): { stream: Writable; text(): string } {
  const chunks: Buffer[] = []
  const stream = new Writable({
    write(chunk: Buffer, _encoding, done) {
      chunks.push(chunk)
      done()
    }
  })
  return { stream, text: () => Buffer.concat(chunks).toString() }
}

/**
 * @param env all of the environment that the command sees
 * @param input its standard input
 */
export async function runCommand(env: Record<string, string>, args: readonly string[], input = ''): Promise<Run> {
  const [stdout, stderr] = [collector(), collector()]
  const code = await inventory(args, {
    env,
    stdin: Readable.from([input]),
    stdout: stdout.stream,
    stderr: stderr.stream
  })
  return { code, stdout: stdout.text(), stderr: stderr.text() }
}
