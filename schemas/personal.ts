import { type Static, type TSchema, type TUnsafe, Type } from 'typebox'

/** Why data about people are kept: the register of processing is made of these. */
export interface Activity {
  readonly activity: string
  readonly purpose: string
  /** Article 6 GDPR. */
  readonly basis: string
  readonly retention: string
}

export const ACCOUNT: Activity = {
  activity: 'account',
  purpose: 'Let a person sign in, and show who that is',
  basis: 'Contract: Art. 6(1)(b) GDPR',
  retention: 'Until the account is erased; what ends by itself (tokens, sessions) goes within an hour of its end'
}
export const SECURITY: Activity = {
  activity: 'security',
  purpose: 'Find and prove misuse: who did what, when and from where',
  basis: 'Legitimate interest in a secure service: Art. 6(1)(f) GDPR',
  retention: 'AUDIT_RETENTION_DAYS (365 by default); addresses until the person is erased'
}
export const BOOKKEEPING: Activity = {
  activity: 'bookkeeping',
  purpose: 'Prove who recorded a movement of stock, by an opaque id',
  basis: 'Legal obligation to keep books: Art. 6(1)(c) GDPR',
  retention: 'As long as the ledger; once the account is erased the id leads to nobody'
}
export const JUDGEMENT: Activity = {
  activity: 'judgement',
  purpose: 'Know who said what of a forecast or a finding, to ask them and to weigh it',
  basis: 'Legitimate interest in right figures: Art. 6(1)(f) GDPR',
  retention: 'As long as the figures; comments and notes until the person is erased'
}
export const REPETITION: Activity = {
  activity: 'repetition',
  purpose: 'Answer a repeated request as the first',
  basis: 'Contract: Art. 6(1)(b) GDPR',
  retention: '7 days'
}

export const PERSONAL = 'x-personal-data'

/** Marks a field that tells of a person, with why it is kept. Inside `Type.Optional` and `Nullable`, not around them. */
export const personal = <S extends TSchema>(schema: S, activity: Activity): TUnsafe<Static<S>> =>
  Type.Unsafe<Static<S>>({ ...schema, [PERSONAL]: activity })
