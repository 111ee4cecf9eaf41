#!/usr/bin/env node
import { inventory } from './commands/program.js'

const { argv, env, stdin, stdout, stderr } = process
// Whoever reads has seen enough, as `head` does.
stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error
  process.exit(0)
})
process.exitCode = await inventory(argv.slice(2), { env, stdin, stdout, stderr })
