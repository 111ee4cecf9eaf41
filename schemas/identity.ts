import { type Static, Type } from 'typebox'
import { Closed, Instant, Name, Nullable, PageQuery, Role, TenantId, Uuid } from './common.js'
import { ACCOUNT, personal } from './personal.js'

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
  password: Password
})
export type UserCreate = Static<typeof UserCreate>
export const UserPatch = Type.Object(
  {
    displayName: Type.Optional(personal(Name, ACCOUNT)),
    role: Type.Optional(Role),
    disabled: Type.Optional(Type.Boolean()),
    password: Type.Optional(Password)
  },
  { additionalProperties: false, minProperties: 1 }
)
export type UserPatch = Static<typeof UserPatch>

export const Login = Closed({
  username: personal(Type.String({ minLength: 1, maxLength: 64 }), ACCOUNT),
  password: Password,
  tenant: Type.Optional(TenantId)
})
export type Login = Static<typeof Login>
export const LoginAnswer = Closed({
  accessToken: Type.String(),
  tokenType: Type.Literal('Bearer'),
  expiresInSeconds: Type.Integer(),
  user: User
})
export type LoginAnswer = Static<typeof LoginAnswer>
export const PasswordChange = Closed({ currentPassword: Password, newPassword: Password })
/** `user` is null for a token printed at the console, which belongs to no user. */
export const Me = Closed({
  subject: personal(Type.String(), ACCOUNT),
  role: Role,
  tenant: TenantId,
  user: Nullable(User)
})
