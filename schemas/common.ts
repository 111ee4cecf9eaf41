import { type Static, type TSchema, Type } from 'typebox'

/** Quantities and money at the API: decimal numbers, at most six decimals, |x| ≤ 10⁹. */
export const DECIMAL_LIMIT = 1_000_000_000

/** Refuses unknown fields: a misspelt field is an error and never silence. */
export const Closed = <P extends Record<string, TSchema>>(properties: P, description?: string) =>
  Type.Object(properties, { additionalProperties: false, ...(description === undefined ? {} : { description }) })

export const Nullable = <S extends TSchema>(schema: S) => Type.Union([schema, Type.Null()])

const decimal = (minimum: number) => ({ minimum, maximum: DECIMAL_LIMIT, multipleOf: 0.000001 })
/** Signed decimal. `multipleOf` is checked exactly by the core's validator, not by floating-point division. */
export const Decimal = Type.Number(decimal(-DECIMAL_LIMIT))
/** Decimal ≥ 0. */
export const Amount = Type.Number(decimal(0))
/** Decimal > 0. */
export const Quantity = Type.Number({ exclusiveMinimum: 0, maximum: DECIMAL_LIMIT, multipleOf: 0.000001 })

// Printable, no control characters, no leading or trailing white space: what goes into a code stays readable in a log or a URL.
export const Code = Type.String({
  minLength: 1,
  maxLength: 64,
  pattern: '^[^\\s\\u0000-\\u001f\\u007f](?:[^\\u0000-\\u001f\\u007f]*[^\\s\\u0000-\\u001f\\u007f])?$'
})
export const Name = Type.String({
  minLength: 1,
  maxLength: 200,
  pattern: '^[^\\u0000-\\u001f\\u007f]*[^\\s\\u0000-\\u001f\\u007f][^\\u0000-\\u001f\\u007f]*$'
})
export const Text = Type.String({ maxLength: 1000, pattern: '^[^\\u0000]*$' })
/** RFC 3339 without leap seconds, which no clock here knows. */
export const Instant = Type.String({
  format: 'date-time',
  pattern: '^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:[0-5]\\d(\\.\\d{1,9})?(Z|[+-]\\d\\d:\\d\\d)$',
  description: 'ISO 8601 with an offset; answered in UTC'
})
export const Day = Type.String({ format: 'date' })
export const Uuid = Type.String({ format: 'uuid' })
export const TenantId = Type.String({ pattern: '^[a-z][a-z0-9-]{0,39}$' })

export const Role = Type.Union([
  Type.Literal('viewer'),
  Type.Literal('staff'),
  Type.Literal('manager'),
  Type.Literal('admin')
])
export type Role = Static<typeof Role>

/** What a token that is no access token is for: the step that a sign-in still lacks. */
export const TokenUse = Type.Union([
  /** Enrolling a second factor, which the role demands. */
  Type.Literal('enrol'),
  /** Giving one. */
  Type.Literal('second-factor'),
  /** Taking another password. */
  Type.Literal('password')
])
export type TokenUse = Static<typeof TokenUse>

/** What a bearer token says. Times are seconds since 1970 (RFC 7519). */
export const TokenClaims = Type.Object({
  iss: Type.String(),
  aud: Type.String(),
  sub: Type.String({ minLength: 1, maxLength: 100 }),
  role: Role,
  tenant: TenantId,
  jti: Type.String({ minLength: 16, maxLength: 64 }),
  iat: Type.Integer(),
  exp: Type.Integer(),
  /** The subject's `tokens_valid_from` when the token was signed; a later one refuses it. */
  epoch: Type.Optional(Type.Integer({ minimum: 0 })),
  /** The session that it belongs to; left out where somebody else vouches for it: the console, a host, an API token. */
  sid: Type.Optional(Type.String({ minLength: 16, maxLength: 64 })),
  /** How the caller proved who it is (RFC 8176: pwd, otp, hwk); beside those `console` and `api`. */
  amr: Type.Optional(Type.Array(Type.String({ minLength: 1, maxLength: 16 }), { maxItems: 8 })),
  /** When that was. */
  auth_time: Type.Optional(Type.Integer()),
  /** Where it is there, this is no access token: only routes that name the use accept it. */
  use: Type.Optional(TokenUse)
})
export type TokenClaims = Static<typeof TokenClaims>

export const PageQuery = {
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 500, default: 50 })),
  cursor: Type.Optional(Type.String({ minLength: 1, maxLength: 500 }))
}
export const Page = Closed({
  limit: Type.Integer(),
  nextCursor: Nullable(Type.String()),
  total: Type.Optional(Type.Integer())
})
export type Page = Static<typeof Page>
export const List = <S extends TSchema>(row: S) => Closed({ data: Type.Array(row), page: Page })

/** RFC 9457 problem details; every error answer of every route has this shape. */
export const Problem = Type.Object(
  {
    type: Type.String(),
    title: Type.String(),
    status: Type.Integer(),
    detail: Type.String(),
    instance: Type.String(),
    code: Type.String(),
    requestId: Type.String(),
    errors: Type.Optional(Type.Array(Closed({ path: Type.String(), message: Type.String() })))
  },
  {
    additionalProperties: true,
    description: 'RFC 9457 problem details; further members depend on the code (docs/errors.md)'
  }
)
export type Problem = Static<typeof Problem>

export const JobStatus = Type.Union([
  Type.Literal('queued'),
  Type.Literal('running'),
  Type.Literal('succeeded'),
  Type.Literal('failed'),
  Type.Literal('cancelled')
])
export type JobStatus = Static<typeof JobStatus>
export const Job = Closed({
  id: Uuid,
  kind: Type.String(),
  status: JobStatus,
  progress: Closed({ done: Type.Integer(), total: Type.Integer() }),
  result: Type.Optional(Type.Unknown()),
  error: Type.Optional(Closed({ code: Type.String(), message: Type.String() })),
  createdAt: Instant,
  finishedAt: Nullable(Instant)
})
export type Job = Static<typeof Job>

const problem = { content: { 'application/problem+json': { schema: Problem } } } as const
/** Declares the error answers of a route once: every route may answer the core's problems. */
export const problems = {
  '4xx': { description: 'The request cannot be served as it is', ...problem },
  '5xx': { description: 'The server cannot serve it now', ...problem }
} as const
