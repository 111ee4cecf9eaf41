/**
 * Proves what the fault tests say for longer than `npm test` has time for: more cycles of killing and cutting, PostgreSQL on a full
 * disk, clocks that jump under PostgreSQL, workers that die in the middle of training, nodes that start at once, longer simulations.
 * Two minutes; FAULT_CYCLES, FAULT_SECONDS and SIMULATION_RUNS make it longer.
 *
 * usage: node scripts/verify-faults.mjs
 */
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { install } from './services.mjs'

const FILES = ['faults/service', 'faults/network', 'faults/machine', 'faults/simulation']
const BUDGET = { FAULT_CYCLES: '3', FAULT_SECONDS: '2', SIMULATION_RUNS: '6' }
const say = (line) => process.stdout.write(`${line}\n`)

// There, the tests would fail for want of it and not leave anything out.
const missing = !['x86_64', 'aarch64'].some((machine) => existsSync(`/usr/lib/${machine}-linux-gnu/faketime`))
if (missing && process.getuid?.() === 0 && existsSync('/usr/bin/apt-get')) install(['libfaketime'], say)

const { status } = spawnSync(process.execPath, [join(dirname(fileURLToPath(import.meta.url)), 'test.mjs'), ...FILES], {
  stdio: 'inherit',
  env: { ...BUDGET, ...process.env }
})
process.exitCode = status ?? 1
