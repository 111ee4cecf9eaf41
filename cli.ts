#!/usr/bin/env node
import { inventory } from './commands/program.js'

const { argv, env, stdin, stdout, stderr } = process
process.exitCode = await inventory(argv.slice(2), { env, stdin, stdout, stderr })
