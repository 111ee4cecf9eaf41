/**
 * Where a run of the tests keeps its files: in memory, where there is enough of it. To copy a database for each test is to make
 * some five hundred files, which took PostgreSQL 250-500 ms on a disk and takes 30 in memory; nothing that a test asserts is
 * different there, since a process that is killed loses nothing that it wrote either way.
 */
import { accessSync, chmodSync, constants, mkdtempSync, readdirSync, rmSync, statfsSync, statSync } from 'node:fs'
import { freemem, tmpdir } from 'node:os'
import { join } from 'node:path'

/** Memory that Linux shows as a folder. In a container it is often 64 MB, which is too small. */
const MEMORY = '/dev/shm'
/** A whole run has taken 0.3 GB at most. */
const NEEDED_BYTES = 1024 ** 3
const PREFIX = 'inventory-tests-'

function hasRoom() {
  try {
    accessSync(MEMORY, constants.W_OK | constants.X_OK)
    const { bavail, bsize } = statfsSync(MEMORY)
    return Math.min(bavail * bsize, process.availableMemory?.() ?? freemem()) >= NEEDED_BYTES
  } catch {
    return false
  }
}

const alive = (pid) => {
  try {
    return process.kill(pid, 0)
  } catch (error) {
    return error.code === 'EPERM'
  }
}

/** What a run of ours that was killed has left would take memory for good. */
function removeAbandoned() {
  for (const name of readdirSync(MEMORY).filter((name) => name.startsWith(PREFIX))) {
    const path = join(MEMORY, name)
    const pid = Number.parseInt(name.slice(PREFIX.length), 10)
    const isOurs = statSync(path, { throwIfNoEntry: false })?.uid === process.getuid?.()
    if (isOurs && pid > 0 && !alive(pid)) rmSync(path, { recursive: true, force: true })
  }
}

/** Makes the folder. Others may pass through it, since PostgreSQL does not run as root, to whom only its own TMPDIR may be open. */
export function makeTestFolder() {
  const inMemory = hasRoom()
  if (inMemory) removeAbandoned()
  const onDisk = process.getuid?.() === 0 ? '/tmp' : tmpdir()
  const folder = mkdtempSync(join(inMemory ? MEMORY : onDisk, `${PREFIX}${process.pid}-`))
  chmodSync(folder, 0o711)
  return folder
}
