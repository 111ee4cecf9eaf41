import type { PersonalData } from '../../plugins/contracts.js'
import { AuditEntry } from '../../schemas/audit.js'
import { SECURITY } from '../../schemas/personal.js'
import { entriesOf } from './routes.js'
import { createAuditStore } from './store.js'

/** Entries name by opaque id; what an erasure takes out is where requests came from. The chain covers digests alone. */
export const personalData: PersonalData = {
  holder: 'audit',
  schemas: { AuditEntry },
  columns: {
    'audit_entries.actor': SECURITY,
    'audit_entries.session': SECURITY,
    'audit_entries.address': SECURITY,
    'audit_entries.address_salt': SECURITY,
    'audit_entries.address_digest': SECURITY
  },
  sections: {
    auditEntries: (tenant, actor) => entriesOf(tenant, { actor }),
    auditEntriesAbout: (tenant, objectId) => entriesOf(tenant, { objectType: 'user', objectId })
  },
  erase: ({ db }, subject) => createAuditStore(db).eraseAddresses(subject),
  retention: [
    { what: 'Audit entries', keptFor: 'AUDIT_RETENTION_DAYS, in whole batches; batches and checkpoints stay' }
  ]
}
