import { problem } from '../../plugins/contracts.js'

export const LoginFailed = problem('ID_LOGIN_FAILED', 401, {
  en: 'The user name or the password is wrong.',
  fr: 'Le nom d’utilisateur ou le mot de passe est incorrect.'
})
export const LoginThrottled = problem<{ retryAfterSeconds: number }>('ID_LOGIN_THROTTLED', 429, {
  en: 'Too many failed attempts; try again in {retryAfterSeconds} s.',
  fr: 'Trop d’échecs ; réessayez dans {retryAfterSeconds} s.'
})
export const PasswordRefused = problem<{ reason: string; minimumLength: number; maximumBytes: number }>(
  'ID_PASSWORD_REFUSED',
  422,
  {
    en: 'This password is refused ({reason}): take {minimumLength} characters or more ({maximumBytes} bytes at most), not a common password and not the user’s name.',
    fr: 'Ce mot de passe est refusé ({reason}) : prenez {minimumLength} caractères ou plus ({maximumBytes} octets au plus), ni un mot de passe courant, ni le nom de l’utilisateur.'
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
export const SecondFactorFailed = problem('ID_SECOND_FACTOR_FAILED', 401, {
  en: 'The code or the passkey is wrong, too old, or was used before.',
  fr: 'Le code ou la clé d’accès est incorrect, trop ancien ou a déjà servi.'
})
export const SecondFactorMandatory = problem<{ role: string }>('ID_SECOND_FACTOR_MANDATORY', 409, {
  en: 'The role {role} demands a second factor, and this is the last one; add another first.',
  fr: 'Le rôle {role} exige un second facteur et c’est le dernier ; ajoutez-en d’abord un autre.'
})
export const EnrolmentNotStarted = problem('ID_ENROLMENT_NOT_STARTED', 409, {
  en: 'No authenticator app waits to be confirmed; ask for a new secret.',
  fr: 'Aucune application d’authentification n’attend de confirmation ; demandez un nouveau secret.'
})
export const NoStepPending = problem('ID_NO_STEP_PENDING', 409, {
  en: 'No sign-in waits for a second factor here; sign in, and answer with its pending token.',
  fr: 'Aucune connexion n’attend ici un second facteur ; connectez-vous et répondez avec son jeton d’attente.'
})
export const OidcFailed = problem<{ reason: string }>('ID_OIDC_FAILED', 401, {
  en: 'The sign-in by the identity provider failed ({reason}); begin it again.',
  fr: 'La connexion par le fournisseur d’identité a échoué ({reason}) ; recommencez-la.'
})
export const OidcRefused = problem<{ reason: string }>('ID_OIDC_REFUSED', 403, {
  en: 'The identity provider knows you, but you may not use this service ({reason}).',
  fr: 'Le fournisseur d’identité vous connaît, mais ce service vous est fermé ({reason}).'
})
export const OidcUnavailable = problem<{ retryAfterSeconds: number }>('ID_OIDC_UNAVAILABLE', 503, {
  en: 'The identity provider does not answer; try again in {retryAfterSeconds} s.',
  fr: 'Le fournisseur d’identité ne répond pas ; réessayez dans {retryAfterSeconds} s.'
})
export const CodeWrong = problem('ID_CODE_WRONG', 422, {
  en: 'This is not the code that the app shows now; check the clock of the device.',
  fr: 'Ce n’est pas le code que l’application affiche ; vérifiez l’horloge de l’appareil.'
})
export const NotEnrolled = problem('ID_SECOND_FACTOR_NONE', 409, {
  en: 'This user has no second factor.',
  fr: 'Cet utilisateur n’a pas de second facteur.'
})
export const PasskeyRefused = problem('ID_PASSKEY_REFUSED', 422, {
  en: 'This passkey cannot be registered: it answers another site or an old request, or is registered already.',
  fr: 'Cette clé d’accès ne peut être enregistrée : elle répond à un autre site ou à une ancienne demande, ou l’est déjà.'
})
export const PasskeyNotFound = problem<{ id: string }>('ID_PASSKEY_NOT_FOUND', 404, {
  en: 'You have no passkey {id}.',
  fr: 'Vous n’avez pas de clé d’accès {id}.'
})
export const PasskeysFull = problem<{ maximum: number }>('ID_PASSKEYS_FULL', 409, {
  en: 'A user has {maximum} passkeys at most; delete one first.',
  fr: 'Un utilisateur a au plus {maximum} clés d’accès ; supprimez-en une d’abord.'
})
export const LinkInvalid = problem('ID_LINK_INVALID', 422, {
  en: 'This link was used, has expired or never was one; ask for a new one.',
  fr: 'Ce lien a servi, a expiré ou n’en est pas un ; demandez-en un nouveau.'
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
