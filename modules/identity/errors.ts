import { problem } from '../../plugins/contracts.js'

export const LoginFailed = problem('ID_LOGIN_FAILED', 401, {
  en: 'The user name or the password is wrong.',
  fr: 'Le nom d’utilisateur ou le mot de passe est incorrect.'
})
export const LoginThrottled = problem<{ retryAfterSeconds: number }>('ID_LOGIN_THROTTLED', 429, {
  en: 'Too many failed attempts; try again in {retryAfterSeconds} s.',
  fr: 'Trop d’échecs ; réessayez dans {retryAfterSeconds} s.'
})
export const PasswordRefused = problem<{ reason: string; minimumLength: number; maximumLength: number }>(
  'ID_PASSWORD_REFUSED',
  422,
  {
    en: 'This password is refused ({reason}): take {minimumLength} to {maximumLength} characters, not a common password and not the user’s name.',
    fr: 'Ce mot de passe est refusé ({reason}) : prenez de {minimumLength} à {maximumLength} caractères, ni un mot de passe courant, ni le nom de l’utilisateur.'
  }
)
export const UserNotFound = problem<{ id: string }>('ID_USER_NOT_FOUND', 404, {
  en: 'The user {id} does not exist.',
  fr: 'L’utilisateur {id} n’existe pas.'
})
export const UsernameTaken = problem<{ username: string }>('ID_USERNAME_TAKEN', 409, {
  en: 'The user name {username} is taken.',
  fr: 'Le nom d’utilisateur {username} est déjà pris.'
})
export const NoOwnPassword = problem('ID_NO_OWN_PASSWORD', 409, {
  en: 'This token belongs to no user, so it has no password.',
  fr: 'Ce jeton n’appartient à aucun utilisateur ; il n’a pas de mot de passe.'
})
export const HashingBusy = problem<{ retryAfterSeconds: number }>('ID_BUSY', 503, {
  en: 'Too many sign-ins at once; try again in {retryAfterSeconds} s.',
  fr: 'Trop de connexions simultanées ; réessayez dans {retryAfterSeconds} s.'
})
export const RevocationsUnavailable = problem<{ retryAfterSeconds: number }>('ID_REVOCATIONS_UNAVAILABLE', 503, {
  en: 'Whether this token still counts cannot be told now; try again in {retryAfterSeconds} s.',
  fr: 'Impossible de vérifier maintenant si ce jeton est encore valable ; réessayez dans {retryAfterSeconds} s.'
})
export const SessionEnded = problem<{ reason: string }>('ID_SESSION_ENDED', 401, {
  en: 'This session is over ({reason}); sign in again.',
  fr: 'Cette session est terminée ({reason}) ; reconnectez-vous.'
})
export const SessionNotFound = problem<{ id: string }>('ID_SESSION_NOT_FOUND', 404, {
  en: 'You have no session {id}.',
  fr: 'Vous n’avez pas de session {id}.'
})
export const NoSession = problem('ID_NO_SESSION', 409, {
  en: 'This token belongs to no session that could be renewed.',
  fr: 'Ce jeton n’appartient à aucune session renouvelable.'
})
export const NoAccount = problem('ID_NO_ACCOUNT', 409, {
  en: 'This token belongs to no user, who alone can have API tokens.',
  fr: 'Ce jeton n’appartient à aucun utilisateur ; seul un utilisateur peut avoir des jetons d’API.'
})
export const TokenNotFound = problem<{ id: string }>('ID_TOKEN_NOT_FOUND', 404, {
  en: 'You have no API token {id}.',
  fr: 'Vous n’avez pas de jeton d’API {id}.'
})
export const TokenRoleTooHigh = problem<{ role: string; own: string }>('ID_TOKEN_ROLE_TOO_HIGH', 422, {
  en: 'An API token of the role {role} is more than you may; yours is {own}.',
  fr: 'Un jeton d’API du rôle {role} dépasse vos droits ; le vôtre est {own}.'
})
export const ScopeUnknown = problem<{ scope: string; areas: readonly string[] }>('ID_SCOPE_UNKNOWN', 422, {
  en: 'There is no scope {scope}; the areas are {areas}.',
  fr: 'La portée {scope} n’existe pas ; les domaines sont {areas}.'
})
export const TooManyTokens = problem<{ maximum: number }>('ID_TOO_MANY_TOKENS', 409, {
  en: 'A user has at most {maximum} API tokens; end one first.',
  fr: 'Un utilisateur a au plus {maximum} jetons d’API ; supprimez-en un d’abord.'
})
