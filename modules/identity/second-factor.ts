import { randomBytes } from 'node:crypto'
import type { Seal, Tenant, TokenClaims, Transaction } from '../../plugins/contracts.js'
import type { Role } from '../../schemas/common.js'
import type { User } from '../../schemas/identity.js'
import type { SecondFactorProof } from '../../schemas/identity-accounts.js'
import { CodeWrong, EnrolmentNotStarted } from './errors.js'
import { createPasskeyStore } from './passkey-store.js'
import { createPasskeys, type Passkeys } from './passkeys.js'
import { hashRecoveryCode, makeRecoveryCodes } from './recovery-codes.js'
import { createSecondFactorStore, type Factors, isEnrolled } from './second-factor-store.js'
import { isStrong, type SecondFactor } from './sign-in.js'
import { base32, matchingStep, otpauthUri, SEED_BYTES } from './totp.js'

export type SecondFactorPolicy = 'required' | 'optional'
/** As a token tells it (RFC 8176); a recovery code is a one-time password too. */
export type ProofMethod = 'otp' | 'hwk'

const PRODUCT = 'Inventory Enterprise'
const PENDING_MILLISECONDS = 15 * 60_000
const MANDATORY_FOR: readonly Role[] = ['manager', 'admin']

/** Whether nobody of this role works without a second factor. */
export const isRequired = (policy: SecondFactorPolicy, role: Role): boolean =>
  policy === 'required' && MANDATORY_FOR.includes(role)

/** Whether the password is all that this user is asked for. */
export async function isPasswordAlone(
  tenant: Tenant,
  { id, role }: Pick<User, 'id' | 'role'>,
  policy: SecondFactorPolicy
): Promise<boolean> {
  return !isRequired(policy, role) && !isEnrolled(await createSecondFactorStore(tenant.db).factors(id))
}

/** A session that was begun before the role demanded more: its tokens count no more than its refresh does. */
export function lacksFactor({ required }: SecondFactor, { sid, use, role, amr = [] }: TokenClaims): boolean {
  return sid !== undefined && use === undefined && required(role) && !isStrong(amr)
}

export interface SecondFactors extends SecondFactor {
  readonly passkeys: Passkeys
  of(tenant: Tenant, userId: string): Promise<Factors>
  isPasswordAlone(tenant: Tenant, user: Pick<User, 'id' | 'role'>): Promise<boolean>
  startTotp(tenant: Tenant, user: User): Promise<{ secret: string; otpauthUri: string }>
  /** Checks the code against the seed that waits; what it returns makes the seed count. @throws CodeWrong, EnrolmentNotStarted */
  checkPendingTotp(tenant: Tenant, userId: string, code: string): Promise<(tx: Transaction) => Promise<void>>
  /** How it was proved, or undefined. What proved it is used up. */
  prove(tenant: Tenant, userId: string, proof: SecondFactorProof): Promise<ProofMethod | undefined>
}

interface SecondFactorOptions {
  readonly seal: Seal
  readonly policy: SecondFactorPolicy
  readonly publicUrl: string
  readonly now: () => number
}

/** TOTP, recovery codes and passkeys of users, by what the policy demands of their roles. */
export function createSecondFactors({ seal, policy, publicUrl, now }: SecondFactorOptions): SecondFactors {
  const passkeys = createPasskeys(seal, publicUrl, now)
  const of = (tenant: Tenant, userId: string) => createSecondFactorStore(tenant.db).factors(userId)
  const contextOf = (tenant: Tenant, userId: string) => `totp ${tenant.id} ${userId}`

  const proveByCode = async (tenant: Tenant, userId: string, code: string): Promise<boolean> => {
    const sealed = (await createSecondFactorStore(tenant.db).totp(userId))?.seed
    if (sealed == null) return false
    const context = contextOf(tenant, userId)
    const seed = seal.open(sealed, context)
    const step = matchingStep(seed, code, now())
    if (step === undefined) return false
    return tenant.transact(async (tx) => {
      const store = createSecondFactorStore(tx.db)
      if (!(await store.useTotpStep(userId, sealed, step))) return false
      if (seal.isOutdated(sealed)) await store.resealTotp(userId, sealed, seal.seal(seed, context))
      return true
    })
  }

  return {
    passkeys,
    required: (role) => isRequired(policy, role),
    of,
    methods: async (tenant, userId) => methodsOf(await of(tenant, userId)),
    isPasswordAlone: (tenant, user) => isPasswordAlone(tenant, user, policy),

    startTotp: async (tenant, { id, username }) => {
      const seed = randomBytes(SEED_BYTES)
      const sealed = seal.seal(seed, contextOf(tenant, id))
      await tenant.transact((tx) => createSecondFactorStore(tx.db).startTotp(id, sealed, now()))
      return { secret: base32(seed), otpauthUri: otpauthUri(seed, PRODUCT, username) }
    },

    checkPendingTotp: async (tenant, userId, code) => {
      const row = await createSecondFactorStore(tenant.db).totp(userId)
      const sealed = row?.pendingSeed ?? null
      if (sealed === null || now() - (row?.pendingAt ?? 0) > PENDING_MILLISECONDS) throw new EnrolmentNotStarted({})
      const step = matchingStep(seal.open(sealed, contextOf(tenant, userId)), code, now())
      if (step === undefined) throw new CodeWrong({})
      return async (tx) => {
        const confirmed = await createSecondFactorStore(tx.db).confirmTotp(userId, sealed, step)
        if (!confirmed) throw new EnrolmentNotStarted({})
      }
    },

    prove: async (tenant, userId, { code, recoveryCode, passkey }) => {
      if (passkey !== undefined) {
        const holder = await passkeys.verifyAssertion(tenant, { purpose: 'second-factor', userId }, passkey)
        return holder === userId ? 'hwk' : undefined
      }
      const proved =
        recoveryCode !== undefined
          ? await useRecoveryCode(tenant, userId, recoveryCode, now())
          : code !== undefined && (await proveByCode(tenant, userId, code))
      return proved ? 'otp' : undefined
    }
  }
}

/** What may be given at a sign-in; nothing for a user who has no second factor. */
function methodsOf(factors: Factors): string[] {
  if (!isEnrolled(factors)) return []
  const { totp, passkeys, recoveryCodesLeft } = factors
  return [
    ...(totp ? ['totp'] : []),
    ...(passkeys > 0 ? ['passkey'] : []),
    ...(recoveryCodesLeft > 0 ? ['recovery-code'] : [])
  ]
}

const useRecoveryCode = (tenant: Tenant, userId: string, code: string, at: number): Promise<boolean> =>
  tenant.transact((tx) => createSecondFactorStore(tx.db).useRecoveryCode(userId, hashRecoveryCode(code), at))

/** New codes in place of all earlier ones; the texts are known only now. */
export async function renewRecoveryCodes(tx: Transaction, userId: string): Promise<string[]> {
  const codes = makeRecoveryCodes()
  await createSecondFactorStore(tx.db).replaceRecoveryCodes(userId, codes.map(hashRecoveryCode))
  tx.audit({ action: 'user.recovery-codes', object: { type: 'user', id: userId } })
  return codes
}

/** The user is as one who never had a second factor. */
export async function removeFactors(tx: Transaction, userId: string): Promise<void> {
  const store = createSecondFactorStore(tx.db)
  await store.removeTotp(userId)
  await store.replaceRecoveryCodes(userId, [])
  await createPasskeyStore(tx.db).removeAll(userId)
  tx.audit({ action: 'user.second-factor.remove', object: { type: 'user', id: userId } })
}
