import { accessSync, constants, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { ConfigError } from './error.js'

/** `DATA_DIR`: a folder, and the small files in it that are made once. */

const isFolder = (path: string) => statSync(path, { throwIfNoEntry: false })?.isDirectory() === true

/** Node's own way to make all that is missing asks without end below /proc, where the folder is there and nothing can be made. */
function make(folder: string): void {
  if (isFolder(folder)) return
  if (dirname(folder) !== folder) make(dirname(folder))
  try {
    mkdirSync(folder, { mode: 0o700 })
  } catch (error) {
    // Two processes may start at once.
    if (!isFolder(folder)) throw error
  }
}

/** @throws ConfigError when it cannot be made, written and read */
export function openDataDir(folder: string): void {
  try {
    make(folder)
  } catch {
    throw refused(folder, 'which cannot be created')
  }
  try {
    accessSync(folder, constants.R_OK | constants.W_OK | constants.X_OK)
  } catch (error) {
    throw refused(folder, `which cannot be written and read (${codeOf(error)})`)
  }
}

/** What the file of that name holds (mode 0600), or what it is made with. @throws ConfigError */
export function keptIn(folder: string, name: string, content: () => string): string {
  const path = join(folder, name)
  try {
    if (!existsSync(path)) writeOnce(path, content())
    return readFileSync(path, 'utf8')
  } catch (error) {
    throw refused(folder, `in which ${name} cannot be written and read (${codeOf(error)})`)
  }
}

function writeOnce(path: string, content: string): void {
  try {
    writeFileSync(path, content, { mode: 0o600, flag: 'wx' })
  } catch (error) {
    // Two processes may start at once: the one that came first has written it.
    if (!existsSync(path)) throw error
  }
}

const codeOf = (error: unknown) => (error instanceof Error && 'code' in error ? String(error.code) : 'unusable')

const refused = (folder: string, why: string) =>
  new ConfigError(`DATA_DIR is ${JSON.stringify(folder)}, ${why}; it may be a folder this user can write`)
