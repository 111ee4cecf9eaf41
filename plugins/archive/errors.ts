import { problem } from '../http/problem.js'

export const ArchiveNotFound = problem<{ reason: string }>('BACKUP_NOT_FOUND', 404, {
  en: 'The backup cannot be used: {reason}.',
  fr: 'La sauvegarde ne peut être utilisée : {reason}.'
})
export const ArchiveRefused = problem<{ reason: string; part: string }>('BACKUP_DAMAGED', 422, {
  en: 'The backup is refused: {reason}.',
  fr: 'La sauvegarde est refusée : {reason}.'
})
export const ArchiveKeyRefused = problem<{ reason: string }>('BACKUP_KEY_REFUSED', 422, {
  en: 'The backup cannot be opened: {reason}.',
  fr: 'La sauvegarde ne peut être ouverte : {reason}.'
})
export const RestoreUnproved = problem<{ reason: string }>('BACKUP_RESTORE_UNPROVED', 422, {
  en: 'What was restored is not right, so nothing was replaced: {reason}.',
  fr: 'Ce qui a été restauré n’est pas juste ; rien n’a été remplacé : {reason}.'
})
export const DatabaseInUse = problem<{ reason: string }>('BACKUP_DATABASE_IN_USE', 409, {
  en: 'The database is in use, so nothing was replaced: {reason}. Stop every service on it first.',
  fr: 'La base de données est utilisée ; rien n’a été remplacé : {reason}. Arrêtez d’abord tout service qui l’utilise.'
})
