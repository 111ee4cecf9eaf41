import { readFileSync } from 'node:fs'
import { join } from 'node:path'

/**
 * Which control stands behind which test: what `npm run verify:controls` takes out of the compiled program, and which test must then
 * fail. The table is `controls.txt` beside this file's source; its head says how it is written.
 */

interface Removal {
  /** Of the program, as `plugins/auth.ts`. */
  readonly file: string
  /** Text of one line, as it is compiled. */
  readonly find: string
  readonly replace: string
}
export interface Control {
  /** The requirement, as in docs/security.md. */
  readonly id: string
  /** As it is named on the command line: `security/http`. */
  readonly suite: string
  /** The test by its name, and those around it by theirs, from the outside. */
  readonly path: readonly string[]
  /** So many names of the path choose what is run: where the test needs those before it, one less. */
  readonly chosen: number
  /** Taken out together: where one alone is not missed, because the other does its work. */
  readonly removals: readonly Removal[]
}

const SOURCE = 'test/security/controls.txt'

/** @throws Error that names the line that cannot be read */
export function readControls(root: string): Control[] {
  const controls: { id: string; suite: string; path: string[]; chosen: number; removals: Removal[] }[] = []
  let file = ''
  let find: string | undefined
  for (const [index, line] of readFileSync(join(root, SOURCE), 'utf8').split('\n').entries()) {
    const [, kind = '', rest = ''] = /^(# ?|V[\d.]+ |Art\.\d+ |Peers |in |- |\+ ?|$)(.*)$/.exec(line) ?? [
      undefined,
      'none'
    ]
    const control = controls.at(-1)
    if (kind === '' || kind.startsWith('#')) continue
    if (/^[VAP]/.test(kind)) {
      const [alone = '', ...needing] = rest.trim().split(' >> ')
      const [suite = '', ...outer] = alone.split(' > ')
      controls.push({ id: kind.trim(), suite, path: [...outer, ...needing], chosen: outer.length, removals: [] })
    } else if (kind === 'in ') file = rest
    else if (kind === '- ' && find === undefined) find = rest
    else if (kind.startsWith('+') && find !== undefined && control !== undefined) {
      control.removals.push({ file, find, replace: rest })
      find = undefined
    } else throw new Error(`${SOURCE}:${index + 1} cannot be read: ${line}`)
  }
  return controls
}

/** The compiled file without the control. @throws Error where its text is not there once */
export function without(compiled: string, { file, find, replace }: Removal): string {
  const found = compiled.split(find).length - 1
  if (found !== 1) throw new Error(`${file}: ${found === 0 ? 'there is no' : 'there is more than one'} ${find}`)
  return compiled.replace(find, () => replace)
}
