import { readFileSync } from 'node:fs'

/** How long the main thread of a process has waited for a processor so far, ms; 0 where the kernel does not say, or it is gone. */
export function keptWaiting(pid: number | undefined): number {
  try {
    return Number(readFileSync(`/proc/${pid}/schedstat`, 'utf8').split(' ')[1]) / 1e6
  } catch {
    return 0
  }
}

/** A clock in ms that stands still while one of these processes could run and others have the processors. */
export const ownTime = (...pids: readonly (number | undefined)[]): number =>
  pids.reduce<number>((time, pid) => time - keptWaiting(pid), performance.now())
