/**
 * Proves the demo as a stranger meets it: runs `npm run demo`, reads its report, signs in with the login that it prints, looks
 * where it says to look, and ends it by SIGINT. Half a minute.
 *
 * usage: node scripts/verify-demo.mjs
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const REPORT_SECONDS = 600
const END_SECONDS = 30

/** What a shell names must not be written to, and the port must be free. */
function environment() {
  const { DATA_DIR, DATABASE_URL, REDIS_URL, MIRROR_URL, ...env } = process.env
  return { ...env, PORT: '0', HOST: '127.0.0.1' }
}

/** The report, line by line, as a manager reads it. */
const REPORT = [
  /Stock: 300 items worth [\d,]+;/,
  /every balance agrees with them/,
  /Runs out first:\n( {2}\S+ .* left, .* days, until \d{4}-\d\d-\d\d \(\S+\)\n){8}/,
  /Moved unusually in the last 60 days: \d+ findings/,
  /Forecasts, 300 series a day: WAPE \d+\.\d %/
]

const found = (pattern, text) => {
  const match = pattern.exec(text)
  assert.ok(match, `the demo does not print ${pattern}:\n${text}`)
  return match
}

async function look(text) {
  const [, origin] = found(/Serving on (\S+)/, text)
  const [, username, password] = found(/login: (\S+) \/ (\S+)/, text)
  const login = await fetch(`${origin}/api/auth/login`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ username, password })
  })
  assert.equal(login.status, 200, 'the printed login signs in')
  const { accessToken } = await login.json()
  const [, token] = found(/token: (\S+)/, text)
  const paths = [...text.matchAll(/^ {9}(http\S+\/api\S+)$/gm)].map(([, url]) => url)
  assert.ok(paths.length >= 5, 'the demo says where to look')
  for (const [index, url] of paths.entries()) {
    const answer = await fetch(url, { headers: { authorization: `Bearer ${index % 2 === 0 ? token : accessToken}` } })
    assert.equal(answer.status, 200, url)
    assert.ok(Object.keys(await answer.json()).length > 0, `${url} has something to show`)
  }
  for (const path of ['/metrics', '/docs/', '/health'])
    assert.equal((await fetch(`${origin}${path}`)).status, 200, path)
}

const folders = () => readdirSync(tmpdir()).filter((name) => name.startsWith('inventory-demo-'))

async function main() {
  const startedAt = performance.now()
  const before = new Set(folders())
  const demo = spawn('npm', ['run', '--silent', 'demo'], {
    cwd: root,
    env: environment(),
    detached: true,
    stdio: ['ignore', 'pipe', 'inherit']
  })
  const ended = new Promise((resolve) => demo.once('exit', (code, signal) => resolve({ code, signal })))
  let text = ''
  demo.stdout.setEncoding('utf8').on('data', (chunk) => {
    text += chunk
    process.stdout.write(chunk)
  })
  try {
    while (!text.includes('stop:  Ctrl-C')) {
      assert.ok(demo.exitCode === null, `the demo ended with ${demo.exitCode}`)
      assert.ok(performance.now() - startedAt < REPORT_SECONDS * 1000, 'the demo takes too long')
      await sleep(100)
    }
    for (const line of REPORT) found(line, text)
    await look(text)
    // As a terminal sends it: to npm and to the program.
    process.kill(-demo.pid, 'SIGINT')
    const end = await Promise.race([ended, sleep(END_SECONDS * 1000, undefined)])
    assert.ok(end, 'Ctrl-C ends the demo')
    assert.deepEqual(
      folders().filter((name) => !before.has(name) && existsSync(`${tmpdir()}/${name}`)),
      [],
      'the throw-away folder is gone'
    )
  } finally {
    if (demo.exitCode === null && demo.signalCode === null) process.kill(-demo.pid, 'SIGKILL')
  }
  process.stdout.write(`\nthe demo holds; ${((performance.now() - startedAt) / 1000).toFixed(0)} s\n`)
}

main().catch((error) => {
  process.stderr.write(`${error.message}\n`)
  process.exitCode = 1
})
