import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyBaseLogger, FastifyRequest } from 'fastify'
import { type Static, Type } from 'typebox'
import { Closed, Instant, Nullable, problems } from '../../schemas/common.js'
import type { Member } from '../cluster/index.js'
import { type Answers, access, type EnterModule, type ModuleOptions, type Principal } from '../contracts.js'
import { OperatorRequired } from '../http/errors.js'
import { shape } from '../http/validation.js'
import type { RedisLink } from '../redis.js'

const LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'trace'] as const
const Level = Type.Enum(LEVELS)
const MINUTES_MAX = 1_440
const MINUTES = 15
/** Whom a token that was printed at the console speaks for. */
const CONSOLE = 'cli'

const LogLevel = Closed({
  level: Type.String(),
  configured: Type.String({ description: 'What LOG_LEVEL says; what it is again afterwards' }),
  until: Nullable(Instant)
})
type LogLevel = Static<typeof LogLevel>
const Order = Closed({
  level: Level,
  minutes: Type.Optional(
    Type.Integer({ minimum: 1, maximum: MINUTES_MAX, default: MINUTES, description: `${MINUTES} when left out` })
  )
})
/** What nodes tell each other. */
const Told = Closed({ level: Level, until: Type.Integer() })
type Told = Static<typeof Told>

interface LogLevels {
  current(): LogLevel
  /** Here, in every process of this cluster, and on every node that Redis reaches; for so long, and never for good. */
  set(level: Told['level'], minutes: number): void
  close(): void
}

/** The level of the log while the service runs. What was configured comes back by itself: debug must not stay on for ever. */
export function createLogLevels(
  log: FastifyBaseLogger,
  redis: RedisLink | null,
  member?: Pick<Member, 'share'>
): LogLevels {
  const configured = log.level
  const key = `${redis?.prefix ?? ''}log-level`
  let until: number | null = null
  let timer: NodeJS.Timeout | undefined

  const restore = () => {
    clearTimeout(timer)
    if (until === null) return
    until = null
    log.level = configured
    log.warn({ level: configured }, 'the log is at its configured level again')
  }
  const apply = ({ level, until: end }: Told) => {
    const left = end - Date.now()
    if (level === configured || left <= 0) return restore()
    clearTimeout(timer)
    // Before it may be too quiet for that: who reads the log sees why it changes.
    if (end !== until)
      log.warn({ level, until: new Date(end).toISOString() }, 'the log is at another level for a while')
    until = end
    log.level = level
    timer = setTimeout(restore, left).unref()
  }
  const hear = (message: string) => {
    const told = parsed(message)
    if (shape(Told)(told)) apply(told)
  }
  /** What was set here and Redis has not taken yet. */
  let untold: Told | undefined
  const tellNodes = async () => {
    const told = untold
    const left = told === undefined ? 0 : told.until - Date.now()
    if (left <= 0) return
    const message = JSON.stringify(told)
    const taken = await redis?.call((client) =>
      Promise.all([client.set(key, message, 'PX', left), client.publish(key, message)])
    )
    if (taken !== undefined && untold === told) untold = undefined
  }
  // A node that starts, or was cut off, finds what it missed; what it was told itself meanwhile is newer.
  const catchUp = async () => {
    const message = await redis?.call((client) => client.get(key))
    if (typeof message === 'string' && untold === undefined) hear(message)
  }
  // A subscription may begin before commands are taken again, and what is asked for then is not answered.
  redis?.onReady(() => void tellNodes().then(catchUp))
  const tellProcesses = member?.share('log-level', hear)
  redis?.subscribe(key, hear, () => void catchUp())
  return {
    current: () => ({
      level: log.level,
      configured,
      until: until === null ? null : new Date(until).toISOString()
    }),
    set: (level, minutes) => {
      const told = { level, until: Date.now() + minutes * 60_000 }
      apply(told)
      tellProcesses?.(JSON.stringify(told))
      if (redis !== null) untold = told
      void tellNodes()
    },
    close: () => clearTimeout(timer)
  }
}

/** Anybody who reaches the Redis may send anything. */
function parsed(message: string): unknown {
  try {
    return JSON.parse(message)
  } catch {
    return undefined
  }
}

interface LogLevelOptions extends ModuleOptions {
  readonly levels: LogLevels
  readonly tenancy: 'single' | 'multi'
}

/** `GET` and `PUT /api/log-level`. Where there are many tenants their administrators are not who runs the service. */
export const logLevelRoutes: FastifyPluginAsyncTypebox<LogLevelOptions> = async (app, options) => {
  app.getDecorator<EnterModule>('enterModule')(app, options)
  const { levels, tenancy } = options
  const answers = app.getDecorator<Answers>('answers')
  const operatorOnly = (request: FastifyRequest) => {
    if (tenancy === 'single' || request.getDecorator<Principal | null>('principal')?.subject === CONSOLE) return
    throw new OperatorRequired({})
  }
  const tags = ['log']

  const shown = { tags, summary: 'Shows the level of the log', response: { 200: LogLevel, ...problems } }
  app.get('', { schema: shown, config: access('admin') }, async (request, reply) => {
    operatorOnly(request)
    reply.header('cache-control', 'no-store')
    return levels.current()
  })

  const changed = {
    tags,
    summary: 'Changes the level of the log for a while, on all nodes',
    description:
      'The level that is configured ends the change. Without Redis it is this node alone, with all its processes.',
    body: Order,
    response: { 200: LogLevel, ...problems }
  }
  app.put('', { schema: changed, config: access('admin') }, async (request, reply) => {
    operatorOnly(request)
    const { level, minutes = MINUTES } = request.body
    return answers.write(request, reply, 200, async (tx) => {
      const before = levels.current()
      const until = level === before.configured ? null : new Date(Date.now() + minutes * 60_000).toISOString()
      const after = { ...before, level, until }
      tx.audit({ action: 'log.level', object: { type: 'log', id: 'level' }, before, after })
      tx.afterCommit(() => levels.set(level, minutes))
      return after
    })
  })
}
