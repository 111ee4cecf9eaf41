import { type Static, Type } from 'typebox'
import { Closed, Instant, Name, Nullable, PageQuery, Role, TenantId, TokenUse, Uuid } from './common.js'
import { ACCOUNT, personal, SECURITY } from './personal.js'

/** Letters, digits and what addresses hold: no white space, so that a name is one word in a log. */
export const Username = Type.String({
  minLength: 1,
  maxLength: 64,
  pattern: '^[\\p{L}\\p{N}][\\p{L}\\p{N}._@+-]*$',
  description: 'Unique whatever its case'
})
/** Bounded here for safety alone; the rules for a new one are told by the code ID_PASSWORD_REFUSED. */
export const Password = Type.String({ minLength: 1, maxLength: 1024, writeOnly: true } as const)

export const User = Closed({
  id: Uuid,
  username: personal(Type.String(), ACCOUNT),
  displayName: personal(Type.String(), ACCOUNT),
  role: Role,
  disabled: Type.Boolean(),
  deleted: Type.Boolean({ description: 'Deleted users are kept for the history, and out of lists' }),
  mustChangePassword: Type.Boolean({ description: 'Until then nothing else is answered' }),
  createdAt: Instant,
  updatedAt: Instant
})
export type User = Static<typeof User>

export const UserParams = Closed({ id: Uuid })
export const UserListQuery = Closed({ ...PageQuery, cursor: Type.Optional(Uuid) })
export const UserCreate = Closed({
  username: personal(Username, ACCOUNT),
  displayName: Type.Optional(personal(Name, ACCOUNT)),
  role: Role,
  password: Type.Optional(Password),
  mustChangePassword: Type.Optional(Type.Boolean())
})
export type UserCreate = Static<typeof UserCreate>
export const UserPatch = Type.Object(
  {
    displayName: Type.Optional(personal(Name, ACCOUNT)),
    role: Type.Optional(Role),
    disabled: Type.Optional(Type.Boolean()),
    password: Type.Optional(Password),
    mustChangePassword: Type.Optional(Type.Boolean())
  },
  { additionalProperties: false, minProperties: 1 }
)
export type UserPatch = Static<typeof UserPatch>

/** Tokens in HttpOnly cookies instead of the answer: for the pages of this server itself. */
export const CookieMode = Type.Optional(
  Type.Boolean({ description: 'true: the tokens come as HttpOnly cookies, which scripts cannot read' })
)
export const Login = Closed({
  username: personal(Type.String({ minLength: 1, maxLength: 64 }), ACCOUNT),
  password: Password,
  tenant: Type.Optional(TenantId),
  cookie: CookieMode
})
export type Login = Static<typeof Login>

/** A session has begun or goes on. In cookie mode the tokens are in cookies and not here. */
export const SignedIn = Closed({
  accessToken: Type.Optional(Type.String()),
  refreshToken: Type.Optional(Type.String()),
  tokenType: Type.Union([Type.Literal('Bearer'), Type.Literal('Cookie')]),
  expiresInSeconds: Type.Integer({ description: 'of the access token' }),
  sessionExpiresAt: Instant,
  user: User
})
export type SignedIn = Static<typeof SignedIn>
/** The password was right, and a step is left: `pendingToken` is a bearer token for that step alone. */
export const StepPending = Closed({
  step: TokenUse,
  methods: Type.Array(Type.String()),
  pendingToken: Type.String(),
  expiresInSeconds: Type.Integer()
})
export const LoginAnswer = Type.Union([SignedIn, StepPending])
export type LoginAnswer = Static<typeof LoginAnswer>

export const OidcLogin = Closed({
  fresh: Type.Optional(Type.Boolean({ description: 'true: the provider asks again, whoever is signed in there' }))
})
/** Providers add parameters of their own. */
export const OidcCallback = Type.Object(
  {
    code: Type.Optional(Type.String({ maxLength: 4000 })),
    state: Type.Optional(Type.String({ maxLength: 500 })),
    error: Type.Optional(Type.String({ maxLength: 500 }))
  },
  { additionalProperties: Type.String({ maxLength: 4000 }) }
)

const RefreshToken = Type.String({ minLength: 1, maxLength: 200, writeOnly: true } as const)
/** Without a token the one of the cookie counts. */
export const Refresh = Closed({ refreshToken: Type.Optional(RefreshToken) })
export const Reauthentication = Closed({ password: Password, cookie: CookieMode })

export const Session = Closed({
  id: Uuid,
  createdAt: Instant,
  lastSeenAt: Instant,
  expiresAt: Instant,
  current: Type.Boolean({ description: 'whether this request belongs to it' }),
  methods: Type.Array(Type.String()),
  address: personal(Type.String(), SECURITY),
  userAgent: personal(Type.String(), SECURITY)
})
export type Session = Static<typeof Session>
export const SessionParams = Closed({ id: Uuid })

/** What a token for a program may do: `inventory:read`, `ledger:write`, `*:read`; an area is a tag of the OpenAPI document. */
export const Scope = Type.String({ pattern: '^(\\*|[a-z0-9-]{1,40}):(read|write)$' })
export const ApiTokenCreate = Closed({
  name: Name,
  scopes: Type.Array(Scope, { minItems: 1, maxItems: 50 }),
  role: Type.Optional(Role),
  expiresInDays: Type.Optional(Type.Integer({ minimum: 1, maximum: 366, default: 90 }))
})
const apiToken = {
  id: Uuid,
  name: Type.String(),
  hint: Type.String({ description: 'how the token begins and ends' }),
  role: Role,
  scopes: Type.Array(Type.String()),
  createdAt: Instant,
  expiresAt: Instant,
  lastUsedAt: Nullable(Instant)
}
export const ApiToken = Closed(apiToken)
export type ApiToken = Static<typeof ApiToken>
export const ApiTokenCreated = Closed({ ...apiToken, token: Type.String() })
export const TokenParams = Closed({ id: Uuid })

export const PasswordChange = Closed({ currentPassword: Password, newPassword: Password })
/** `user` is null for a token printed at the console, which belongs to no user. */
export const Me = Closed({
  subject: personal(Type.String(), ACCOUNT),
  role: Role,
  tenant: TenantId,
  user: Nullable(User)
})
