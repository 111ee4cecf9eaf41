import { createHash } from 'node:crypto'
import type {
  PublicKeyCredentialCreationOptionsJSON,
  PublicKeyCredentialRequestOptionsJSON
} from '@simplewebauthn/server'
import type { Seal, Tenant } from '../../plugins/contracts.js'
import type { User } from '../../schemas/identity.js'
import type { PasskeyAssertion, PasskeyRegistration } from '../../schemas/identity-accounts.js'
import { createPasskeyStore, type NewPasskey, type StoredPasskey } from './passkey-store.js'

const PRODUCT = 'Inventory Enterprise'
const CHALLENGE_SECONDS = 300

/** Loaded at the first passkey, since every start would pay a sixth of a second for it. */
const webauthn = () => import('@simplewebauthn/server')
const webauthnHelpers = () => import('@simplewebauthn/server/helpers')

/** Who a challenge was made for: it proves nothing for anything or anybody else. */
type Ceremony =
  | { readonly purpose: 'register' | 'second-factor'; readonly userId: string }
  | { readonly purpose: 'sign-in' }

export interface Passkeys {
  registrationOptions(tenant: Tenant, user: User): Promise<PublicKeyCredentialCreationOptionsJSON>
  /** What is to be stored, or undefined when the response proves nothing. Its challenge is used up. */
  verifyRegistration(
    tenant: Tenant,
    userId: string,
    response: PasskeyRegistration
  ): Promise<Omit<NewPasskey, 'name'> | undefined>
  /** For the passkeys of one user. */
  secondFactorOptions(tenant: Tenant, userId: string): Promise<PublicKeyCredentialRequestOptionsJSON>
  /** For any passkey on the device that can tell whose it is; whether there is such a tenant is not told. */
  signInOptions(tenantId: string): Promise<PublicKeyCredentialRequestOptionsJSON>
  /** The id of the user who holds the passkey, or undefined. The challenge and the passkey's counter are used up. */
  verifyAssertion(tenant: Tenant, ceremony: Ceremony, response: PasskeyAssertion): Promise<string | undefined>
}

/** WebAuthn Level 3. The site is the configured one, never what a request says it is. */
export function createPasskeys(seal: Seal, publicUrl: string, now: () => number = Date.now): Passkeys {
  const { hostname: rpId, origin } = new URL(publicUrl)
  const challenges = createChallenges(seal, now)
  const described = ({ credentialId, transports }: StoredPasskey) => ({ id: credentialId, transports })
  return {
    registrationOptions: async (tenant, { id, username, displayName }) => {
      const held = await createPasskeyStore(tenant.db).ofUser(id)
      return (await webauthn()).generateRegistrationOptions({
        rpName: PRODUCT,
        rpID: rpId,
        userID: Uint8Array.from(Buffer.from(id)),
        userName: username,
        userDisplayName: displayName,
        challenge: challenges.make(tenant.id, { purpose: 'register', userId: id }),
        timeout: CHALLENGE_SECONDS * 1000,
        attestationType: 'none',
        excludeCredentials: held.map(({ stored }) => described(stored)),
        authenticatorSelection: { residentKey: 'preferred', userVerification: 'preferred' }
      })
    },

    verifyRegistration: async (tenant, userId, response) => {
      if (await carriesCertificates(response)) return undefined
      const { verifyRegistrationResponse } = await webauthn()
      const ceremony = { purpose: 'register', userId } as const
      const { clientDataJSON, attestationObject, transports = [] } = response.response
      const attestation = { clientDataJSON, attestationObject }
      const verified = await settled(
        verifyRegistrationResponse({
          response: { ...ofBrowser(response), response: attestation },
          expectedChallenge: (given) => challenges.counts(tenant.id, ceremony, given),
          expectedOrigin: origin,
          expectedRPID: rpId,
          requireUserVerification: false
        })
      )
      if (verified?.registrationInfo === undefined) return undefined
      const { credential, credentialBackedUp: isBackedUp } = verified.registrationInfo
      const { id: credentialId, publicKey, counter } = credential
      const challenge = await challengeOf(clientDataJSON)
      const isNew = await tenant.transact((tx) => createPasskeyStore(tx.db).useChallenge(...challenge))
      return isNew ? { userId, credentialId, publicKey, counter, transports, isBackedUp } : undefined
    },

    secondFactorOptions: async (tenant, userId) => {
      const held = await createPasskeyStore(tenant.db).ofUser(userId)
      return (await webauthn()).generateAuthenticationOptions({
        rpID: rpId,
        challenge: challenges.make(tenant.id, { purpose: 'second-factor', userId }),
        timeout: CHALLENGE_SECONDS * 1000,
        userVerification: 'preferred',
        allowCredentials: held.map(({ stored }) => described(stored))
      })
    },

    signInOptions: async (tenantId) =>
      (await webauthn()).generateAuthenticationOptions({
        rpID: rpId,
        challenge: challenges.make(tenantId, { purpose: 'sign-in' }),
        timeout: CHALLENGE_SECONDS * 1000,
        userVerification: 'required'
      }),

    verifyAssertion: async (tenant, ceremony, response) => {
      const passkey = await createPasskeyStore(tenant.db).byCredential(response.id)
      if (passkey === undefined) return undefined
      const { id, userId, credentialId, publicKey, counter } = passkey
      const { userHandle, ...assertion } = response.response
      if (ceremony.purpose !== 'sign-in' && ceremony.userId !== userId) return undefined
      if (userHandle != null && Buffer.from(userHandle, 'base64url').toString() !== userId) return undefined
      const { verifyAuthenticationResponse } = await webauthn()
      const verified = await settled(
        verifyAuthenticationResponse({
          response: { ...ofBrowser(response), response: assertion },
          expectedChallenge: (given) => challenges.counts(tenant.id, ceremony, given),
          expectedOrigin: origin,
          expectedRPID: rpId,
          credential: { id: credentialId, publicKey, counter },
          // Alone it has to prove two things: that it is there, and that its owner is.
          requireUserVerification: ceremony.purpose === 'sign-in'
        })
      )
      if (verified?.verified !== true) return undefined
      const { newCounter, credentialBackedUp } = verified.authenticationInfo
      const challenge = await challengeOf(assertion.clientDataJSON)
      const isUsed = await tenant.transact(async (tx) => {
        const store = createPasskeyStore(tx.db)
        const isNew = await store.useChallenge(...challenge)
        return isNew && (await store.use(id, newCounter, credentialBackedUp))
      })
      return isUsed ? userId : undefined
    }
  }
}

/** The library says why it refuses by throwing; whatever it was given came from a client. */
async function settled<R>(verification: Promise<R>): Promise<R | undefined> {
  try {
    return await verification
  } catch {
    return undefined
  }
}

const ofBrowser = ({ id, rawId, type }: { id: string; rawId: string; type: 'public-key' }) => ({
  id,
  rawId,
  type,
  clientExtensionResults: {}
})

/**
 * None is asked for, so a browser sends none; and the library would fetch revocation lists from wherever the certificates say.
 */
async function carriesCertificates({ response }: PasskeyRegistration): Promise<boolean> {
  const { decodeAttestationObject } = await webauthnHelpers()
  try {
    const decoded = decodeAttestationObject(Uint8Array.from(Buffer.from(response.attestationObject, 'base64url')))
    return !['none', 'packed'].includes(decoded.get('fmt')) || decoded.get('attStmt').get('x5c') !== undefined
  } catch {
    return true
  }
}

/** A challenge tells itself what it is for and until when, so that only one that was answered rightly is written down. */
function createChallenges(seal: Seal, now: () => number) {
  const contextOf = (tenantId: string, ceremony: Ceremony) =>
    `passkey ${ceremony.purpose} ${tenantId} ${ceremony.purpose === 'sign-in' ? '' : ceremony.userId}`
  return {
    make: (tenantId: string, ceremony: Ceremony): string =>
      seal.seal(String(now() + CHALLENGE_SECONDS * 1000), contextOf(tenantId, ceremony)),
    counts: (tenantId: string, ceremony: Ceremony, challenge: string): boolean => {
      try {
        const sealed = Buffer.from(challenge, 'base64url').toString()
        return Number(seal.open(sealed, contextOf(tenantId, ceremony))) > now()
      } catch {
        return false
      }
    }
  }
}

/** What is written down of a challenge that was answered: from then on it counts no more. */
async function challengeOf(clientDataJSON: string): Promise<[hash: string, forgetAt: number]> {
  const { decodeClientDataJSON } = await webauthnHelpers()
  const hash = createHash('sha256').update(decodeClientDataJSON(clientDataJSON).challenge).digest('base64url')
  return [hash, Date.now() + 2 * CHALLENGE_SECONDS * 1000]
}
