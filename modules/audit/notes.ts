import type { Agent, AuditEntry, Tenant } from '../../plugins/contracts.js'
import { type NewEntry, rowOf } from './store.js'

/** So many entries of one tenant are kept one by one at once, and so many more a minute. */
const SINGLE_MAX = 200
const SINGLE_PER_MINUTE = 2
/** What is beyond is put together by who, whence, what and where; each minute the largest groups become an entry each. */
const GROUPS_MAX = 1_000
const GROUPS_KEPT = 5
const MINUTE_MILLISECONDS = 60_000
const FLUSH_MILLISECONDS = 1_000
/** While the database does not answer. */
const WAITING_MAX = 2_000

interface Group {
  readonly agent: Agent
  readonly entry: AuditEntry
  count: number
  readonly firstAt: number
  lastAt: number
}

interface Pad {
  readonly tenant: Tenant | null
  allowance: number
  filledAt: number
  groups: Map<string, Group>
  groupedAt: number
  waiting: NewEntry[]
}

interface NotesOptions {
  /** Rejects when the entries could not be kept; they are offered again. */
  keep(tenant: Tenant | null, rows: readonly NewEntry[]): Promise<void>
  /** Told how many were put together with others, and how many were lost. */
  coalesced(count: number): void
  lost(count: number): void
  now?: () => number
}

export interface Notes {
  note(tenant: Tenant | null, agent: Agent, entry: AuditEntry): void
  /** Keeps what is known so far, groups of a flood included. */
  flush(): Promise<void>
  close(): Promise<void>
}

/**
 * What happens outside a transaction, such as refusals: kept within a second or so, and bounded, so that a flood of them
 * fills no disk. At worst a tenant's trail grows by some ten entries a minute.
 */
export function createNotes({ keep, coalesced, lost, now = Date.now }: NotesOptions): Notes {
  const pads = new Map<string, Pad>()
  let timer: NodeJS.Timeout | undefined
  let flushing: Promise<void> = Promise.resolve()

  const padOf = (tenant: Tenant | null): Pad => {
    const id = tenant?.id ?? ''
    const known = pads.get(id)
    // A tenant that was dropped and made again is another.
    if (known !== undefined && known.tenant === tenant) return known
    const at = now()
    const fresh = { tenant, allowance: SINGLE_MAX, filledAt: at, groups: new Map(), groupedAt: at, waiting: [] }
    pads.set(id, fresh)
    return fresh
  }

  const schedule = () => {
    timer ??= setTimeout(() => {
      timer = undefined
      void flushAll(false)
    }, FLUSH_MILLISECONDS).unref()
  }

  async function flushPad(pad: Pad, everything: boolean): Promise<void> {
    const due = everything || now() - pad.groupedAt >= MINUTE_MILLISECONDS
    if (due && pad.groups.size > 0) {
      pad.waiting.push(...summarise([...pad.groups.values()]))
      pad.groups = new Map()
      pad.groupedAt = now()
    }
    const rows = pad.waiting.splice(0)
    if (rows.length === 0) return
    try {
      await keep(pad.tenant, rows)
    } catch {
      const kept = [...rows, ...pad.waiting].slice(0, WAITING_MAX)
      lost(rows.length + pad.waiting.length - kept.length)
      pad.waiting = kept
    }
  }

  async function flushAll(everything: boolean): Promise<void> {
    // One after the other, so that entries keep their order.
    flushing = flushing.then(async () => {
      for (const [id, pad] of pads) {
        await flushPad(pad, everything)
        if (pad.waiting.length > 0 || pad.groups.size > 0) schedule()
        else if (pad.allowance >= SINGLE_MAX && pads.get(id) === pad) pads.delete(id)
      }
    })
    await flushing
  }

  return {
    note: (tenant, agent, entry) => {
      const pad = padOf(tenant)
      const at = now()
      pad.allowance = Math.min(
        SINGLE_MAX,
        pad.allowance + ((at - pad.filledAt) / MINUTE_MILLISECONDS) * SINGLE_PER_MINUTE
      )
      pad.filledAt = at
      if (pad.allowance >= 1 && pad.waiting.length < WAITING_MAX) {
        pad.allowance--
        pad.waiting.push(rowOf(agent, entry, at))
      } else {
        coalesced(1)
        if (pad.groups.size === 0) pad.groupedAt = at
        collect(pad.groups, agent, entry, at)
      }
      schedule()
    },
    flush: () => flushAll(true),
    close: async () => {
      clearTimeout(timer)
      timer = undefined
      await flushAll(true)
      clearTimeout(timer)
    }
  }
}

function collect(groups: Map<string, Group>, agent: Agent, entry: AuditEntry, at: number): void {
  const { action, object, details } = entry
  let key = JSON.stringify([action, agent.actor, agent.address, object?.id, details])
  let told: Pick<Group, 'agent' | 'entry'> = { agent: { ...agent, requestId: null, traceId: null }, entry }
  if (groups.size >= GROUPS_MAX && !groups.has(key)) {
    key = action
    told = anyone(entry)
  }
  const group = groups.get(key)
  if (group === undefined) groups.set(key, { ...told, count: 1, firstAt: at, lastAt: at })
  else {
    group.count++
    group.lastAt = at
  }
}

const NOBODY: Agent = {
  actor: null,
  role: null,
  method: null,
  session: null,
  requestId: null,
  traceId: null,
  address: null
}
const anyone = ({ action, outcome }: AuditEntry): Pick<Group, 'agent' | 'entry'> => ({
  agent: NOBODY,
  entry: { action, ...(outcome === undefined ? {} : { outcome }), details: { from: 'several' } }
})

/** The largest groups, and the rest together by action. */
function summarise(groups: Group[]): NewEntry[] {
  const ordered = groups.sort((a, b) => b.count - a.count)
  const rest = new Map<string, Group>()
  for (const { entry, count, firstAt, lastAt } of ordered.slice(GROUPS_KEPT)) {
    const known = rest.get(entry.action)
    rest.set(entry.action, {
      ...anyone(entry),
      count: count + (known?.count ?? 0),
      firstAt: Math.min(firstAt, known?.firstAt ?? firstAt),
      lastAt: Math.max(lastAt, known?.lastAt ?? lastAt)
    })
  }
  return [...ordered.slice(0, GROUPS_KEPT), ...rest.values()].map(({ agent, entry, count, firstAt, lastAt }) => ({
    ...rowOf(agent, entry, lastAt),
    occurrences: count,
    first_at: firstAt,
    last_at: lastAt
  }))
}
