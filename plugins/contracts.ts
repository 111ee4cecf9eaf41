import type { FastifyContextConfig, FastifyInstance, FastifyReply, FastifyRequest, onRequestHookHandler } from 'fastify'
import type { Redis } from 'ioredis'
import type { Kysely } from 'kysely'
import type { Job, Role, TokenClaims, TokenUse } from '../schemas/common.js'
import type { Activity } from '../schemas/personal.js'
import type { Migrations as MigrationsByName } from './migrate/index.js'
import type { Portability } from './portable/types.js'
import type { Writer } from './writer.js'

export type { TokenClaims, TokenUse } from '../schemas/common.js'
export type * from './archive/types.js'
export { atMost, forEachOf } from './at-most.js'
export { agentOf } from './audit.js'
export { csvCell } from './csv.js'
export { CursorInvalid, decodeCursor, encodeCursor, pageOf } from './cursor.js'
export { answerIn } from './http/language.js'
export { PayloadTooLarge } from './http/limits.js'
export { networkOf } from './http/network.js'
export { type Locale, type Localised, localeOf, Problem, type ProblemParams, problem } from './http/problem.js'
export { shape } from './http/validation.js'
export type * from './jobs/types.js'
export { kept } from './metrics/kept-figures.js'
export type * from './portable/types.js'
export { type Prepared, prepared, type Slots, slots } from './prepared.js'
export { NO_TRACING, type Tracing } from './telemetry/tracing.js'
export { send, type Writer } from './writer.js'

/** What a domain may rely on. A host that embeds one domain supplies these decorators itself, or registers the core. */

export type Dialect = 'sqlite' | 'postgres'

/** One database transaction. What is published or invalidated takes effect only after it commits. */
export interface Transaction extends Writer {
  /** Writes an event to the outbox, within the transaction. Delivered at least once, in order, after commit. */
  publish(topic: string, payload: unknown): Promise<void>
  /** Drops cached answers of a namespace after commit: here at once, on other nodes through Redis. */
  invalidate(namespace: string): void
  /** Runs after commit, and never when it rolls back: counters, wake-ups. Must not throw. */
  afterCommit(run: () => void): void
  /**
   * Keeps what was done in the audit trail, in this transaction: both are there or neither. Without a trail it does nothing.
   * A write of `answers` that says nothing itself is recorded by its route and path.
   */
  audit(entry: AuditEntry): void
}

/** What was done, for the audit trail. Who did it is the transaction's agent. */
export interface AuditEntry {
  /** The thing and what is done to it, such as `item.update`, `ledger.post`, `auth.login`. */
  readonly action: string
  /** `success` when left out. */
  readonly outcome?: AuditOutcome
  readonly object?: { readonly type: string; readonly id: string }
  /** The object's fields before and after: what differs is kept. Leave secrets out; fields named like one are concealed. */
  readonly before?: object | null
  readonly after?: object | null
  /** Fields that tell who a person is: that they changed is kept, what they hold is not. */
  readonly personal?: readonly string[]
  /** What else matters: counts, reasons. No names of people, no free text. */
  readonly details?: Readonly<Record<string, string | number | boolean | null>>
}
export type AuditOutcome = 'success' | 'failure' | 'denied'

/** Who acts and how the request reached us, in opaque ids: names live with the users, who may be erased. */
export interface Agent {
  /** A user's id; `cli` at the console, `system` for upkeep and jobs, null when nobody was recognised. */
  readonly actor: string | null
  readonly role: Role | null
  /** How they were recognised: `token`, `console`, … */
  readonly method: string | null
  /** Opaque id of the session or token. */
  readonly session: string | null
  readonly requestId: string | null
  readonly traceId: string | null
  readonly address: string | null
}

/** The audit trail's side of the core: a decorator, `audit`. */
export interface Audit {
  /**
   * Notes what happens outside a transaction, such as a failed sign-in: kept soon, and coalesced in a flood. Answers that are
   * 401 or 403 are noted as `auth.denied` anyway, unless the request was noted before.
   */
  note(request: FastifyRequest, entry: AuditEntry): void
  /** Where entries go from now on; one module says so. */
  keepIn(trail: AuditTrail): void
}

/** What a module keeps about people, for the rights that they have on it. Whoever serves these takes it as an option. */
export interface PersonalData {
  /** Who holds it, such as `identity`. */
  readonly holder: string
  /** Schemas of the API whose fields are marked by `personal`. */
  readonly schemas: Readonly<Record<string, object>>
  /** Columns as `table.column`, with why they are kept. */
  readonly columns: Readonly<Record<string, Activity>>
  /** Everything that is kept about a subject, without secrets; each becomes a list of the subject's file. */
  readonly sections: Readonly<Record<string, (tenant: Tenant, subject: string) => AsyncIterable<object>>>
  /** Takes out what names the subject; opaque ids stay, so ledger and audit trail hold. @returns how many rows changed */
  erase?(tx: Transaction, subject: string, tenant: Tenant): Promise<number>
  /** How long what is kept; whoever keeps it removes what is older. */
  readonly retention?: readonly RetentionRule[]
}
export interface RetentionRule {
  readonly what: string
  readonly keptFor: string
}

/** What keeps audit entries. */
export interface AuditTrail {
  /** In the transaction of the change. */
  append(tx: Writer, agent: Agent, entries: readonly AuditEntry[]): Promise<void>
  /** `tenant` is null where none was recognised. Must not throw. */
  note(tenant: Tenant | null, agent: Agent, entry: AuditEntry): void
}

/**
 * Runs `work` in one transaction: durable when the promise resolves, undone when it rejects. `work` may run again on
 * PostgreSQL (serialization failure, deadlock), so it must not touch anything but the transaction; it never calls out.
 */
export type Transact = <R>(work: (tx: Transaction) => Promise<R>, options?: TransactOptions) => Promise<R>

export interface TransactOptions {
  /** Whom the audit trail names; the system itself when left out. */
  agent?: Agent
  /**
   * `relaxed`: for what can be computed again. It outlives the death of the process and comes before every later commit, but does
   * not wait for the disk, so a power cut may take it; a long run of them holds up nobody.
   */
  durability?: 'full' | 'relaxed'
}

/** A cached text with what HTTP needs of it; compressed forms are made once and kept. */
export interface CachedText {
  readonly body: Buffer
  /** Strong validator of the body, quotes included. */
  readonly etag: string
  encoded(encoding: 'br' | 'gzip'): Buffer
}

export interface Cache {
  /** Read-through, two levels. Never answers what was loaded before the last `invalidate` of its namespace. */
  read(namespace: string, key: string, load: () => Promise<string | Buffer>): Promise<CachedText>
}

/** What all processes share while Redis is there. Nothing may depend on it: without it each process is on its own. */
export interface SharedStore {
  /** Starts every key, so that deployments can share a Redis. */
  readonly prefix: string
  /** Runs commands, bounded in time. Never rejects; undefined when Redis is absent, down, too slow or answers an error. */
  call<T>(run: (client: Redis) => Promise<T>): Promise<T | undefined>
}

/** What a domain works with on behalf of one tenant: on `request.tenant`, and handed to jobs and event handlers. */
export interface Tenant {
  readonly id: string
  readonly dialect: Dialect
  /** Reads; on SQLite it refuses writes. A store says which tables it knows: `db.withTables<InventoryTables>()`. */
  readonly db: Kysely<unknown>
  readonly transact: Transact
  /**
   * Reads on a connection that is kept for what every request waits for before it is let in: it must not stand in line behind the work
   * of those who are in. Left out where there is none.
   */
  readonly gate?: Kysely<unknown>
  readonly cache: Cache
  /**
   * For what leaves as a file, page by page: how to read it, on a replica that has all that was committed before this call, where there
   * is one; else, and where it is left out, on `db`.
   */
  reports?(): Promise<Report>
  /** Changes when another process has committed before this turn of the event loop; undefined where the engine cannot tell cheaply. */
  foreignVersion?(): number | undefined
}

/** Runs a read; once more, on the primary, where the replica breaks it off. Nothing of it may be kept in a cache that is kept coherent. */
export type Report = <R>(read: (db: Kysely<unknown>) => Promise<R>) => Promise<R>
export const reportsOf = (tenant: Tenant): Promise<Report> =>
  tenant.reports?.() ?? Promise.resolve((read) => read(tenant.db))

/** Who makes the request; null where the host's own `authorize` sets none. */
export interface Principal {
  /** Opaque id: a user's UUID, or `cli` for a token printed at the console. */
  readonly subject: string
  readonly role: Role
  readonly tenant: string
  /** Opaque id of the session or token that speaks for them, and how it was recognised; for the audit trail. */
  readonly session?: string
  readonly method?: string
}

/** A route's `config`: the least role that may call it. The core's `authorize` refuses a route that has none. */
export interface RouteAccess extends RouteDemands {
  readonly role: Role | 'public'
}
export type LimitClass = 'sign-in' | 'export' | 'import' | 'report' | 'training' | 'write' | 'read'
export interface RouteDemands {
  /** What it costs, for `RATE_LIMITS`; by its method where it is left out. */
  readonly limit?: LimitClass
  /** Tokens of these uses may call it too; without this a token that is no access token never counts. */
  readonly pending?: readonly TokenUse[]
  /** The caller must have proved who it is within the last minutes: for the few routes that a stolen token must not reach. */
  readonly fresh?: boolean
  /**
   * Called once a token of the right role is known, while the database is asked whether it was revoked: to begin what the handler will need.
   * Nothing of the request is validated yet.
   */
  readonly ahead?: (request: FastifyRequest) => void
}
export const access = (role: RouteAccess['role'], demands: RouteDemands = {}): RouteAccess & FastifyContextConfig => ({
  role,
  ...demands
})

/** Answers at once from what this process knows, or a promise when it must ask the database first. */
export type RevocationCheck = (claims: TokenClaims, tenant: Tenant) => boolean | Promise<boolean>

/** What is known of a bearer token that is not a JWT: who it speaks for, and what it may at most. */
export interface OpaqueToken {
  readonly claims: TokenClaims
  /** `area:read`, `area:write`, or `*` for all areas; an area is the first tag of a route in the OpenAPI document. */
  readonly scopes: readonly string[]
}
/** Finds what a token of its kind stands for; undefined when there is none. Asked once, then remembered until it ends. */
export interface OpaqueTokens {
  readonly prefix: string
  /** The tenant that the token names; undefined when it is not well-formed. */
  tenantOf(token: string): string | undefined
  find(token: string, tenant: Tenant): Promise<OpaqueToken | undefined>
}

export interface TokenSubject {
  readonly subject: string
  readonly role: Role
  readonly tenant: string
  readonly epoch?: number
  readonly session?: string
  /** How the caller proved who it is; see `amr` of the claims. */
  readonly methods?: readonly string[]
  /** Milliseconds: when that was. */
  readonly authenticatedAt?: number
  /** Left out: an access token. */
  readonly use?: TokenUse
}

export interface Tokens {
  sign(subject: TokenSubject, ttlSeconds: number): string
  /** Everything but revocation. @throws Unauthenticated */
  verify(token: string): TokenClaims
}

export interface Auth extends Tokens {
  /** Finds the role that the route declares, who asks, and for which tenant. A route that declares none is closed. */
  readonly authorize: onRequestHookHandler
  /** What the request's token says, from its header or its cookie. @throws Unauthenticated */
  claims(request: FastifyRequest): TokenClaims
  /** Refuses a request that a page of another site may have caused. @throws CrossSite */
  requireSameSite(request: FastifyRequest): void
  /** Gives a public route, such as the login, its tenant. Rejects or throws when there is no such tenant. */
  enterTenant(request: FastifyRequest, tenantId: string): Tenant | Promise<Tenant>
  /** Whether a request that was let in still would be; for connections that outlive their request. */
  stillAllowed(request: FastifyRequest): Promise<boolean>
  /** Whoever issues tokens also says which of them no longer count; asked at every request. */
  refuseWhen(check: RevocationCheck): void
  /** Bearer tokens of one more kind, told by how they begin. */
  accept(tokens: OpaqueTokens): void
  /** What the routes of this app are about, as scopes name it. */
  areas(): readonly string[]
  /** How cookies are called and limited for this request; see `plugins/http/cookies.ts`. */
  readonly cookies: SessionCookies
}

/** Tokens in cookies that scripts cannot read, for pages of this server itself. */
export interface SessionCookies {
  accessToken(request: FastifyRequest): string | undefined
  refreshToken(request: FastifyRequest): string | undefined
  /** `refreshPath`: the one path that is sent the refresh token. */
  set(request: FastifyRequest, reply: FastifyReply, tokens: CookieTokens): void
  clear(request: FastifyRequest, reply: FastifyReply, refreshPath: string): void
}
export interface CookieTokens {
  readonly accessToken: string
  readonly accessSeconds: number
  readonly refreshToken: string
  readonly refreshSeconds: number
  readonly refreshPath: string
}

/** Keeps secrets that must be read again (seeds, signing keys) encrypted at rest, under a key that no database backup holds. */
export interface Seal {
  /** `context` says what and whose it is, such as `totp main <user id>`; only the same opens it again. */
  seal(plaintext: string | Uint8Array, context: string): string
  /** @throws SEAL_UNREADABLE */
  open(sealed: string, context: string): Buffer
  /** Whether it was sealed under an older key, so that it should be sealed anew. */
  isOutdated(sealed: string): boolean
}

export interface ModuleOptions {
  prefix?: string
  /** Runs before every route of the module. Required, so that embedding never opens a route by accident. */
  authorize: onRequestHookHandler
}

/** A body that was a stream. */
export interface Upload {
  /** Stands for its bytes: the same key with other bytes is refused. */
  readonly fingerprint: string
  /** Looks through it before the job starts, for as long as it takes. What it throws is the answer. */
  check(): Promise<void>
}

/** The two ways a route answers: a read that is cached and validated by ETag, a write that is one idempotent transaction. */
export interface Answers {
  /**
   * Serialises `load()` by the route's 200 schema (a string or a buffer is taken for the JSON itself), caches the bytes under `key`,
   * honours If-None-Match and Accept-Encoding.
   */
  read(
    request: FastifyRequest,
    reply: FastifyReply,
    namespace: string,
    key: string,
    load: () => Promise<unknown>
  ): Promise<FastifyReply>
  /** Begins, for a route's `ahead`, what its handler will `read` under the same key. */
  ahead(request: FastifyRequest, namespace: string, key: string, load: () => Promise<string | Buffer>): void
  /**
   * Runs `work` in a transaction and answers what it returns with `status`. With an `Idempotency-Key` the answer's bytes are
   * kept in the same transaction: the same key and request answers them again, another request under the key answers 422.
   */
  write(
    request: FastifyRequest,
    reply: FastifyReply,
    status: number,
    work: (tx: Transaction) => Promise<unknown>
  ): Promise<FastifyReply>
  /**
   * Starts a job and answers 202, with its Location where jobs are served, or, with `Prefer: wait=N`, 200 with the job once
   * it ends. Honours the `Idempotency-Key` as `write` does: `start` puts the job on record in the transaction that keeps the
   * answer.
   */
  job(
    request: FastifyRequest,
    reply: FastifyReply,
    start: (tx: Transaction) => Promise<Job>,
    upload?: Upload
  ): Promise<FastifyReply>
  /**
   * Refuses a stale `If-Match`; `current` is the resource as the route's 200 schema shows it.
   * @throws PRECONDITION_FAILED (412)
   */
  requireMatch(request: FastifyRequest, reply: FastifyReply, current: unknown): void
}

/** Begins work in steps on the event loop; what it answers is awaited between them, and leaves the loop to requests. */
export type Breather = () => () => Promise<void>

/** Runs the default export of a worker file in a thread of another process: for arithmetic that would hold up the event loop. */
export interface Compute {
  run<Input, Output>(file: URL, input: Input, options?: { signal?: AbortSignal }): Promise<Output>
}

export interface OutboxEvent {
  /** Of the row; on SQLite an id may come again once its row is gone. */
  readonly id: number
  readonly topic: string
  readonly payload: unknown
  /** Milliseconds since 1970. */
  readonly createdAt: number
}
export interface EventHandler {
  readonly topic: string
  /** Names the subscription in logs. */
  readonly name: string
  handle(event: OutboxEvent, tenant: Tenant): Promise<void>
  /**
   * Given where events of the topic wait one behind the other: handles them together. When it fails each is handled alone.
   * @returns those that are to be handled alone all the same
   */
  handleAll?(events: readonly OutboxEvent[], tenant: Tenant): Promise<readonly OutboxEvent[]>
}

export interface Events {
  /** At-least-once: a handler must be safe to repeat. */
  subscribe(handler: EventHandler): void
}

/** Tells all processes of the deployment something, without keeping it: a decorator, `broadcast`. */
export interface Broadcast {
  /** To all who listen, this process included, once or not at all. Without Redis this process alone hears it. */
  send(channel: string, text: string): void
  /**
   * One listener for each channel. `own`: this process sent it. `onGap`: something may have been missed, so what was made of it should be
   * made anew.
   */
  listen(channel: string, heard: (text: string, own: boolean) => void, onGap?: () => void): void
}

/** Small upkeep of every tenant's data, on every node; harmless when two nodes do it at once. */
export interface Periodic {
  every(seconds: number, name: string, work: (tenant: Tenant) => Promise<void>): void
}

/** One part of the service as `/health` reports it. */
export interface HealthCheck {
  readonly name: string
  /** A part the service can do without makes it `degraded`, never `down`. */
  readonly optional: boolean
  /** Rejects when the part does not work. Asked once a second at most, and given two seconds. */
  probe(): Promise<void>
}

/** The state of the service, as balancers and orchestrators ask for it: a decorator, `health`, of a whole service. */
export interface Health {
  add(check: HealthCheck): void
  /** From now on `/health/ready` answers 503 with the state `draining`, while requests are still answered. */
  drain(): void
}

/** Tells the core which tables a module owns; they are migrated in every tenant's database before the app is ready. */
export interface MigrationSet {
  readonly module: string
  readonly migrations: MigrationsByName
  /** For backups and mirrors, where its tables are not the same on both engines. */
  readonly portability?: Portability
}
export interface Migrations {
  add(set: MigrationSet): void
}

/**
 * Prepares a module's own context: strict validation, problem+json errors, the `authorize` hook. It touches nothing outside
 * the module, so an embedding host keeps its own conventions.
 */
export type EnterModule = (app: FastifyInstance, options: ModuleOptions) => void
