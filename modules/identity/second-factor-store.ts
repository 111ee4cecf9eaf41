import type { Kysely } from 'kysely'

type SecondFactorTables = {
  totp_factors: {
    user_id: string
    seed: string | null
    last_step: number | null
    pending_seed: string | null
    pending_at: number | null
  }
  recovery_codes: { user_id: string; code_hash: string; used_at: number | null }
  passkeys: { user_id: string }
}

/** What a user has beside the password. */
export interface Factors {
  readonly totp: boolean
  readonly passkeys: number
  readonly recoveryCodesLeft: number
}

/** Whether a sign-in of this user asks for more than the password. Recovery codes alone are no factor: they replace one. */
export const isEnrolled = ({ totp, passkeys }: Factors): boolean => totp || passkeys > 0

interface TotpRow {
  /** Sealed; null until the first is confirmed. */
  readonly seed: string | null
  readonly pendingSeed: string | null
  readonly pendingAt: number | null
}

/** Authenticator apps and recovery codes. Seeds are sealed and codes hashed before they get here. */
export function createSecondFactorStore(database: Kysely<unknown>) {
  const db = database.withTables<SecondFactorTables>()
  return {
    factors: async (userId: string): Promise<Factors> => {
      const { totp, passkeys, codes } = await db
        .selectNoFrom(({ selectFrom }) => [
          selectFrom('totp_factors')
            .select(({ fn }) => fn.count<number>('seed').as('count'))
            .where('user_id', '=', userId)
            .as('totp'),
          selectFrom('passkeys')
            .select(({ fn }) => fn.countAll<number>().as('count'))
            .where('user_id', '=', userId)
            .as('passkeys'),
          selectFrom('recovery_codes')
            .select(({ fn }) => fn.countAll<number>().as('count'))
            .where('user_id', '=', userId)
            .where('used_at', 'is', null)
            .as('codes')
        ])
        .executeTakeFirstOrThrow()
      return { totp: Number(totp) > 0, passkeys: Number(passkeys), recoveryCodesLeft: Number(codes) }
    },

    totp: (userId: string): Promise<TotpRow | undefined> =>
      db
        .selectFrom('totp_factors')
        .select(['seed', 'pending_seed as pendingSeed', 'pending_at as pendingAt'])
        .where('user_id', '=', userId)
        .executeTakeFirst(),

    /** Replaces what was pending; a confirmed seed keeps counting until the new one is confirmed. */
    startTotp: async (userId: string, sealed: string, at: number): Promise<void> => {
      const pending = { pending_seed: sealed, pending_at: at }
      await db
        .insertInto('totp_factors')
        .values({ user_id: userId, seed: null, last_step: null, ...pending })
        .onConflict((conflict) => conflict.column('user_id').doUpdateSet(pending))
        .execute()
    },

    /** False when another is pending by now. The step of the code is used up. */
    confirmTotp: async (userId: string, pendingSeed: string, step: number): Promise<boolean> => {
      const { numUpdatedRows } = await db
        .updateTable('totp_factors')
        .set({ seed: pendingSeed, last_step: step, pending_seed: null, pending_at: null })
        .where('user_id', '=', userId)
        .where('pending_seed', '=', pendingSeed)
        .executeTakeFirst()
      return numUpdatedRows === 1n
    },

    /** Uses up the step and all before it, once: false when it was used, however many ask at the same time. */
    useTotpStep: async (userId: string, seed: string, step: number): Promise<boolean> => {
      const { numUpdatedRows } = await db
        .updateTable('totp_factors')
        .set({ last_step: step })
        .where('user_id', '=', userId)
        .where('seed', '=', seed)
        .where((e) => e.or([e('last_step', 'is', null), e('last_step', '<', step)]))
        .executeTakeFirst()
      return numUpdatedRows === 1n
    },

    /** The same seed under a newer key. */
    resealTotp: async (userId: string, before: string, sealed: string): Promise<void> => {
      await db
        .updateTable('totp_factors')
        .set({ seed: sealed })
        .where('user_id', '=', userId)
        .where('seed', '=', before)
        .execute()
    },

    removeTotp: async (userId: string): Promise<void> => {
      await db.deleteFrom('totp_factors').where('user_id', '=', userId).execute()
    },

    /** No earlier code counts any more. */
    replaceRecoveryCodes: async (userId: string, hashes: readonly string[]): Promise<void> => {
      await db.deleteFrom('recovery_codes').where('user_id', '=', userId).execute()
      if (hashes.length === 0) return
      await db
        .insertInto('recovery_codes')
        .values(hashes.map((code_hash) => ({ user_id: userId, code_hash, used_at: null })))
        .execute()
    },

    /** False for one that is wrong or was used, however many ask at the same time. */
    useRecoveryCode: async (userId: string, hash: string, at: number): Promise<boolean> => {
      const { numUpdatedRows } = await db
        .updateTable('recovery_codes')
        .set({ used_at: at })
        .where('user_id', '=', userId)
        .where('code_hash', '=', hash)
        .where('used_at', 'is', null)
        .executeTakeFirst()
      return numUpdatedRows === 1n
    }
  }
}
