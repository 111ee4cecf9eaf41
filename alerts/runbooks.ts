import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { ROOT } from './rules.js'

/** The runbooks, and the commands in them. */

const RUNBOOKS = join(ROOT, 'docs', 'runbooks')

interface Block {
  readonly runbook: string
  readonly line: number
  readonly command: string
  /** Why nobody runs it to check, as `<!-- not run: … -->` before it says. */
  readonly notRun: string | undefined
}

/** Names of the alerts that have a runbook. */
export const runbookNames = (): string[] =>
  readdirSync(RUNBOOKS)
    .filter((name) => name.endsWith('.md') && name !== 'README.md')
    .map((name) => name.replace('.md', ''))

export const textOf = (runbook: string): string => readFileSync(join(RUNBOOKS, `${runbook}.md`), 'utf8')

export function blocksOf(runbook: string): Block[] {
  const text = textOf(runbook)
  return [...text.matchAll(/(?:<!-- not run: (.+?) -->\n+)?```sh\n([\s\S]*?)```/g)].map((match) => ({
    runbook,
    line: text.slice(0, match.index).split('\n').length,
    command: match[2] ?? '',
    notRun: match[1]
  }))
}
