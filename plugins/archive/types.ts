import type { Tenant } from '../contracts.js'

/** An archive of one tenant's data, as its name tells. */
export interface ArchiveEntry {
  /** Twelve hexadecimal digits. */
  readonly id: string
  /** `increment`: what has changed since the archive `previous`. */
  readonly kind: 'full' | 'increment'
  readonly previous: string | null
  /** Milliseconds since 1970: everything that was acknowledged before is in it. */
  readonly stateAt: number
  readonly bytes: number
}
/** Up to where changes are archived, in the database's own terms. */
export interface ArchivePosition {
  readonly capture: string
  readonly position: string
}
export interface MadeArchive extends ArchiveEntry {
  /** Rows of its tables, or that changed. */
  readonly rows: number
  /** By table; of an increment those that it touches. */
  readonly counts: Readonly<Record<string, number>>
  readonly parts: number
  readonly sha256: string
  readonly seconds: number
  /** Where the next increment goes on; null where changes are not noted. */
  readonly next: ArchivePosition | null
}
export interface ArchiveRun {
  readonly signal?: AbortSignal
  progress?(done: number, total: number): void
}
/** What a proof found in a copy; it is good when nothing. */
export interface ArchiveProof {
  readonly name: string
  readonly checked: number
  readonly problems: readonly string[]
}
export interface ArchiveRehearsal {
  /** The last archive that was loaded. */
  readonly id: string
  readonly stateAt: number
  readonly archives: number
  readonly bytes: number
  readonly rows: number
  readonly seconds: number
  readonly proofs: readonly ArchiveProof[]
}
/** A database past its service: what proofs look at. */
export type TenantCopy = Pick<Tenant, 'id' | 'dialect' | 'db'>

/** Copies of tenants' data outside of the database, encrypted: a decorator, `archives`; null where none are configured. */
export interface Archives {
  /** `local`: in a folder of this machine. */
  readonly where: 'local' | 'anywhere'
  /** Whether changes are noted, so that increments can be made. */
  readonly increments: boolean
  /** Whether we have the key that opens them. */
  readonly readable: boolean
  list(tenant: string): Promise<ArchiveEntry[]>
  /** The whole of one committed state, whatever is written meanwhile. */
  full(tenant: string, run?: ArchiveRun): Promise<MadeArchive>
  /** What has changed since; `broken`: it cannot be told, so a full one is due. */
  increment(
    tenant: string,
    previous: string,
    since: ArchivePosition
  ): Promise<MadeArchive | { readonly nothing: 'unchanged' | 'broken'; readonly at: number }>
  /** Lets the database forget what was noted up to there. */
  forget(tenant: Tenant, position: ArchivePosition): Promise<void>
  /** Reads all of an archive and of those that it goes on from. Rejects when anything is not as it was written. */
  check(tenant: string, id: string, run?: ArchiveRun): Promise<{ archives: number; rows: number; parts: number }>
  /** Restores the last state into a database of its own, on the same engine, proves it, and removes it. */
  rehearse(
    tenant: string,
    prove: (copy: TenantCopy) => Promise<readonly ArchiveProof[]>,
    run?: ArchiveRun
  ): Promise<ArchiveRehearsal>
  remove(tenant: string, entries: readonly ArchiveEntry[]): Promise<void>
}
