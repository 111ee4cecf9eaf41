import { type Static, Type } from 'typebox'
import { Closed, Name, Uuid } from './common.js'
import { Username } from './identity.js'
import { ACCOUNT, personal } from './personal.js'

export const SubjectParams = Closed({ id: Uuid })

export const Rectification = Type.Object(
  {
    username: Type.Optional(personal(Username, ACCOUNT)),
    displayName: Type.Optional(personal(Name, ACCOUNT))
  },
  { additionalProperties: false, minProperties: 1 }
)
export type Rectification = Static<typeof Rectification>
export const Rectified = Closed({
  subject: Type.String(),
  username: personal(Type.String(), ACCOUNT),
  displayName: personal(Type.String(), ACCOUNT)
})
export type Rectified = Static<typeof Rectified>

export const Erasure = Closed({
  subject: Type.String(),
  erased: Type.Record(Type.String(), Type.Integer(), { description: 'Rows changed or removed, by who held them' })
})

/** What a subject's file begins with; `data` holds a list for each kind of record. */
export const SubjectFile = Type.Object(
  {
    format: Type.Literal('inventory-enterprise/personal-data'),
    version: Type.Literal(1),
    subject: Type.String(),
    tenant: Type.String(),
    generatedAt: Type.String({ format: 'date-time' }),
    data: Type.Record(Type.String(), Type.Array(Type.Record(Type.String(), Type.Unknown())))
  },
  { additionalProperties: false }
)

export const Register = Closed({
  activities: Type.Array(
    Closed({
      activity: Type.String(),
      purpose: Type.String(),
      basis: Type.String(),
      retention: Type.String(),
      fields: Type.Array(Type.String(), { description: 'Fields of the API, as schema.field' }),
      columns: Type.Array(Type.String(), { description: 'Columns of the database, as table.column' })
    })
  ),
  retention: Type.Array(Closed({ what: Type.String(), keptFor: Type.String() }))
})
export type Register = Static<typeof Register>
