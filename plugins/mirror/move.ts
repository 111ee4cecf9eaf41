import { setTimeout as sleep } from 'node:timers/promises'
import type { MigrationSet } from '../contracts.js'
import { type DatabaseOptions, placeOf } from '../database.js'
import { HOME, type Placements } from '../dialects/placed.js'
import { createPlace, portabilityOf } from '../portable/index.js'
import type { Comparison } from './files.js'
import { Link, openSide, type Progress } from './link.js'
import { MIRROR_TABLES } from './side.js'

/** The last changes are carried over while writers wait, so few should be left. */
const FEW_CHANGES = 200
const ROUNDS_MAX = 100
/** Every node has looked up where its tenants are by then, and uses the new place; until then nobody writes. */
const NOTICE_MILLISECONDS = 2_000

export interface Move {
  readonly tenant: string
  /** The name of a server. */
  readonly to: string
  /** Databases by the name of their server; `home` is among them. */
  readonly databases: ReadonlyMap<string, Omit<DatabaseOptions, 'poolSize'>>
  readonly placements: Placements
  readonly sets: readonly MigrationSet[]
  readonly progress?: Progress
}
export interface Moved {
  readonly verified: Comparison
  /** For how long the tenant took no writes. */
  readonly pausedMilliseconds: number
}

/** What the operator is told in one line. */
export class MoveRefused extends Error {}

/**
 * Takes a tenant to another server while it is in use: copied, followed, every row compared, then a moment without writes.
 * What stays behind is fenced. Killed at any moment, the same call goes on; until the placement is written the tenant is where it was.
 * @returns undefined where it is there already
 * @throws MoveRefused when a server is not known, or rows differ
 */
export async function moveTenant({
  tenant,
  to,
  databases,
  placements,
  sets,
  progress
}: Move): Promise<Moved | undefined> {
  const database = (name: string) => {
    const found = databases.get(name)
    if (found === undefined)
      throw new MoveRefused(`there is no server ${name}; there are: ${[...databases.keys()].join(', ')}`)
    return found
  }
  const from = (await placements.all()).get(tenant) ?? HOME
  const target = placeOf(database(to), tenant)
  const traits = [{ notCopied: MIRROR_TABLES }, ...portabilityOf(sets)]
  if (from === to) {
    // A move that was killed at its very end.
    const side = await openSide(target, traits)
    await side.fence(false).finally(() => side.close())
    return undefined
  }
  await createPlace(database(to), tenant, sets)
  const link = await Link.open(placeOf(database(from), tenant), target, traits)
  let placed = false
  try {
    if (link.position === undefined) await link.step(progress)
    const verifiedAt = link.position
    const compared = await link.compare(progress)
    refuse(compared)
    for (let round = 0; round < ROUNDS_MAX && (await link.pending()) > FEW_CHANGES; round++) await link.step()
    const startedAt = performance.now()
    refuse(await link.finish(verifiedAt ?? '', { wayBack: false }))
    await placements.set(tenant, to)
    placed = true
    await sleep(NOTICE_MILLISECONDS)
    await link.target.fence(false)
    return { verified: compared, pausedMilliseconds: performance.now() - startedAt }
  } finally {
    if (!placed) await link.source.fence(false)
    await link.source.release()
    await link.close()
  }
}

function refuse({ differing, differences }: Comparison): void {
  if (differing === 0) return
  const named = differences.map(({ table, key, what }) => `${table} ${JSON.stringify(key)} ${what}`).join('; ')
  throw new MoveRefused(`${differing} rows differ: ${named}`)
}
