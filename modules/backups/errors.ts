import { problem } from '../../plugins/contracts.js'

export const BackupsNotConfigured = problem('BACKUP_NOT_CONFIGURED', 409, {
  en: 'No backups are made here: the operator has not said where they may go.',
  fr: 'Aucune sauvegarde n’est faite ici : l’exploitant n’a pas dit où elles vont.'
})
export const BackupUnknown = problem<{ id: string }>('BACKUP_UNKNOWN', 404, {
  en: 'There is no backup {id}.',
  fr: 'La sauvegarde {id} n’existe pas.'
})
