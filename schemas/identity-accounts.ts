import { type Static, Type } from 'typebox'
import { Closed, Instant, Name, Nullable, TenantId, Uuid } from './common.js'
import { CookieMode, LoginAnswer, Password, Username } from './identity.js'
import { ACCOUNT, personal } from './personal.js'

/** Second factors, passkeys and one-time links. */

const Base64Url = (maxLength: number) => Type.String({ minLength: 1, maxLength, pattern: '^[A-Za-z0-9_-]+$' })

const TotpCode = Type.String({ pattern: '^[0-9]{6}$', description: 'What the authenticator app shows' })
const RecoveryCode = Type.String({
  minLength: 1,
  maxLength: 64,
  description: 'Case, spaces and dashes do not matter'
})

export const SecondFactorState = Closed({
  required: Type.Boolean({ description: 'Whether the role demands one' }),
  enrolled: Type.Boolean(),
  totp: Type.Boolean(),
  passkeys: Type.Integer(),
  recoveryCodesLeft: Type.Integer()
})
export const TotpEnrolment = Closed({
  secret: Type.String({ description: 'Base32, to be typed into an app' }),
  otpauthUri: Type.String({ description: 'The same as an app reads it from a QR code' })
})
export const TotpConfirmation = Closed({ code: TotpCode, cookie: CookieMode })
/** Shown once: only hashes of the codes are kept. */
export const RecoveryCodes = Closed({ recoveryCodes: Type.Array(Type.String()) })
/**
 * A further factor ends the user's tokens, and this begins a new session. With the first factor come recovery codes, of which only
 * hashes are kept; with another one the list is empty.
 */
export const FactorAdded = Closed({ recoveryCodes: Type.Array(Type.String()), session: LoginAnswer })

/** As the browser's `PublicKeyCredential.toJSON()` makes it (WebAuthn Level 3, 5.1). */
const credential = {
  id: Base64Url(1400),
  rawId: Base64Url(1400),
  type: Type.Literal('public-key'),
  authenticatorAttachment: Type.Optional(Nullable(Type.String({ maxLength: 32 }))),
  clientExtensionResults: Type.Optional(Type.Object({}, { description: 'Not used' }))
}
export const PasskeyRegistration = Closed({
  ...credential,
  response: Closed({
    clientDataJSON: Base64Url(4096),
    attestationObject: Base64Url(16_384),
    authenticatorData: Type.Optional(Base64Url(8192)),
    transports: Type.Optional(Type.Array(Type.String({ maxLength: 32 }), { maxItems: 8 })),
    publicKeyAlgorithm: Type.Optional(Type.Integer()),
    publicKey: Type.Optional(Nullable(Base64Url(4096)))
  })
})
export type PasskeyRegistration = Static<typeof PasskeyRegistration>
export const PasskeyAssertion = Closed({
  ...credential,
  response: Closed({
    clientDataJSON: Base64Url(4096),
    authenticatorData: Base64Url(4096),
    signature: Base64Url(2048),
    userHandle: Type.Optional(Nullable(Base64Url(128)))
  })
})
export type PasskeyAssertion = Static<typeof PasskeyAssertion>

export const PasskeyCreate = Closed({ name: Name, credential: PasskeyRegistration, cookie: CookieMode })
export const PasskeyPatch = Closed({ name: Name })
export const PasskeyParams = Closed({ id: Uuid })
export const Passkey = Closed({
  id: Uuid,
  name: Type.String(),
  backedUp: Type.Boolean({ description: 'Whether the passkey is copied to other devices of its owner' }),
  createdAt: Instant,
  lastUsedAt: Nullable(Instant)
})
export type Passkey = Static<typeof Passkey>
export const PasskeyAdded = Closed({
  passkey: Passkey,
  recoveryCodes: Type.Array(Type.String()),
  session: LoginAnswer
})
export const PasskeyList = Closed({ data: Type.Array(Passkey) })
/** For `navigator.credentials.create` and `.get`, by `PublicKeyCredential.parse…OptionsFromJSON`. */
export const PasskeyOptions = Type.Object({ challenge: Type.String() }, { additionalProperties: true })

export const SecondFactorProof = Type.Object(
  {
    code: Type.Optional(TotpCode),
    recoveryCode: Type.Optional(RecoveryCode),
    passkey: Type.Optional(PasskeyAssertion),
    cookie: CookieMode
  },
  {
    additionalProperties: false,
    description: 'One of the three',
    oneOf: [{ required: ['code'] }, { required: ['recoveryCode'] }, { required: ['passkey'] }]
  }
)
export type SecondFactorProof = Static<typeof SecondFactorProof>

export const PasskeySignInOptions = Closed({ tenant: Type.Optional(TenantId) })
export const PasskeySignIn = Closed({
  tenant: Type.Optional(TenantId),
  credential: PasskeyAssertion,
  cookie: CookieMode
})

const LinkToken = Type.String({ minLength: 1, maxLength: 200, writeOnly: true } as const)
export const OneTimeLink = Closed({
  url: Type.String({ description: 'To be handed to the user; it sets a password, once' }),
  expiresAt: Instant
})
export type OneTimeLink = Static<typeof OneTimeLink>
export const LinkAcceptance = Closed({ token: LinkToken, password: Password })
export const FirstUser = Closed({
  token: LinkToken,
  username: personal(Username, ACCOUNT),
  displayName: Type.Optional(personal(Name, ACCOUNT)),
  password: Password
})
