import { spawn } from 'node:child_process'

export interface Ended {
  readonly code: number | null
  readonly output: string
  readonly stdout: string
}

/** Runs a program to its end; `output` is what it says on both streams, as it comes. */
export function run(command: string, args: readonly string[], options: { env?: NodeJS.ProcessEnv; cwd?: string } = {}) {
  return new Promise<Ended>((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options })
    let output = ''
    let stdout = ''
    const keep = (chunk: Buffer) => {
      output += chunk.toString()
    }
    child.stdout.on('data', (chunk: Buffer) => {
      stdout += chunk.toString()
      keep(chunk)
    })
    child.stderr.on('data', keep)
    child.on('error', reject)
    child.on('close', (code) => resolve({ code, output, stdout }))
  })
}

/** At most `width` at once, in order. */
export async function inParallel<T, R>(all: readonly T[], width: number, work: (one: T) => Promise<R>): Promise<R[]> {
  const results = new Array<R>(all.length)
  let next = 0
  const lane = async () => {
    for (let n = next++; n < all.length; n = next++) {
      const one = all[n]
      if (one !== undefined) results[n] = await work(one)
    }
  }
  await Promise.all(Array.from({ length: width }, lane))
  return results
}

/** Resolves when `ask` is true. @throws after so many seconds, saying what was waited for */
export async function until(what: string, seconds: number, ask: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + seconds * 1000
  while (!(await ask())) {
    if (performance.now() > deadline) throw new Error(`waited ${seconds} s in vain: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}
