import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { temporaryFolder } from '../service-process.js'

/** Certificates made for one test, by the openssl program that every PostgreSQL brings along. */

interface Issued {
  readonly cert: string
  readonly key: string
  /** Paths of the same two. */
  readonly certFile: string
  readonly keyFile: string
}
interface Authority {
  readonly ca: string
  readonly caFile: string
  /** @param name the common name, and the name of a server @param days of life; negative: it has ended */
  issue(name: string, days?: number): Issued
}

const NEW_KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']

function openssl(folder: string, ...args: string[]): void {
  try {
    execFileSync('openssl', args, { cwd: folder, stdio: ['ignore', 'ignore', 'pipe'] })
  } catch (error) {
    throw new Error('certificates for this test need the program openssl (apt-get install openssl)', { cause: error })
  }
}

export function createAuthority(t: Test): Authority {
  const folder = temporaryFolder(t)
  openssl(
    folder,
    'req',
    '-x509',
    ...NEW_KEY,
    '-keyout',
    'ca.key',
    '-out',
    'ca.pem',
    '-subj',
    '/CN=test authority',
    '-days',
    '2'
  )
  let serial = 0
  return {
    ca: readFileSync(join(folder, 'ca.pem'), 'utf8'),
    caFile: join(folder, 'ca.pem'),
    issue: (name, days = 2) => {
      const own = join(folder, String(++serial))
      mkdirSync(own)
      writeFileSync(join(own, 'names'), `subjectAltName=DNS:${name}\n`)
      openssl(own, 'req', ...NEW_KEY, '-keyout', 'key.pem', '-out', 'request', '-subj', `/CN=${name}`)
      const signed = ['-CA', '../ca.pem', '-CAkey', '../ca.key', '-set_serial', String(serial), '-extfile', 'names']
      openssl(own, 'x509', '-req', '-in', 'request', ...signed, '-days', String(days), '-out', 'cert.pem')
      const [certFile, keyFile] = [join(own, 'cert.pem'), join(own, 'key.pem')]
      return { certFile, keyFile, cert: readFileSync(certFile, 'utf8'), key: readFileSync(keyFile, 'utf8') }
    }
  }
}
