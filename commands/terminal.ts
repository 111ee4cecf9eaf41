import type { Readable, Writable } from 'node:stream'

/** Where a command was typed: what it is given, and where it answers. */
export interface Surroundings {
  readonly env: Readonly<Record<string, string | undefined>>
  readonly stdin: Readable
  readonly stdout: Writable
  readonly stderr: Writable & { readonly isTTY?: boolean }
}

/** The surroundings as the commands use them: answers go to standard output, everything that is for people to standard error. */
export class Terminal {
  readonly env: Surroundings['env']
  readonly stdin: Readable
  readonly stdout: Writable
  readonly stderr: Writable
  /** Whether a person looks on. */
  readonly isWatched: boolean

  constructor({ env, stdin, stdout, stderr }: Surroundings) {
    this.env = env
    this.stdin = stdin
    this.stdout = stdout
    this.stderr = stderr
    this.isWatched = stderr.isTTY === true
  }

  print(line: string): void {
    this.stdout.write(`${line}\n`)
  }

  note(line: string): void {
    this.stderr.write(`${line}\n`)
  }

  /** A bar, for people. */
  bar(done: number, total: number): void {
    if (!this.isWatched || total === 0) return
    const filled = Math.round((Math.min(done, total) / total) * 30)
    this.stderr.write(`\r[${'#'.repeat(filled).padEnd(30, '.')}] ${done}/${total} `)
  }

  /** Leaves the line of the bar. */
  endBar(): void {
    if (this.isWatched) this.note('')
  }

  /** Of the terminal, as POSIX has it: `fr_FR.UTF-8` is French. */
  language(): string {
    const { LC_ALL, LC_MESSAGES, LANG } = this.env
    return (LC_ALL || LC_MESSAGES || LANG || 'en').split(/[_.@]/, 1)[0] ?? 'en'
  }
}

export class CommandFailed extends Error {}

/** Ends the command with what the service answered. */
export function fail({ detail, errors = [] }: { detail: string; errors?: { path: string; message: string }[] }): never {
  throw new CommandFailed([detail, ...errors.map(({ path, message }) => `  ${path}: ${message}`)].join('\n'))
}
