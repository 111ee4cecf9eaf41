/**
 * Test files in one process, one after the other: what a start costs, and what V8 learns, is shared. They have tap's one `t`, so
 * a file's last teardowns come when all have ended.
 *
 * usage: node scripts/test-files.mjs <compiled file> …
 */
import { pathToFileURL } from 'node:url'

// tap names its folders by the arguments, and a name may not be that long.
const files = process.argv.splice(2)
process.argv.push(files[0])
const { default: t } = await import('tap')
// Once it has a teardown tap ends as soon as nothing is left to do, as between two files, and knows nothing of those that follow.
const { teardown } = t
const teardowns = []
t.teardown = (...args) => void teardowns.push(args)
let left = files.length
process.on('exit', (code) => {
  if (code === 0 && left > 0) process.exitCode = 13
})
let tests = 0
t.on('subtestAdd', () => {
  tests += 1
})
for (const file of files) {
  if (t.results) throw new Error(`tap ended before ${file}`)
  const before = tests
  await import(pathToFileURL(file).href)
  if (tests === before) t.fail(`${file} ran no test`)
  left -= 1
}
for (const args of teardowns) teardown.apply(t, args)
// A file alone would wait for what it does not await itself; here that would be left out, and nobody would know.
t.test = () => {
  throw new Error('a test began after its file: something at its top is not awaited')
}
t.end()
