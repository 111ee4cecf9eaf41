import { problem } from '../../plugins/contracts.js'

export const SubjectNotFound = problem<{ id: string }>('PRIVACY_SUBJECT_NOT_FOUND', 404, {
  en: 'There is no user {id}.',
  fr: 'L’utilisateur {id} n’existe pas.'
})
