import { createRequire } from 'node:module'
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { whoAsked } from '../telemetry/request-log.js'
import { PayloadTooLarge } from './limits.js'
import { type Locale, type Localised, localeOf, Problem, problem } from './problem.js'

export { CursorInvalid } from '../cursor.js'
export { PayloadTooLarge } from './limits.js'

/** The core's own problems. A domain's stand in its `errors.ts`; `docs/errors.md` lists them all. */
export const Malformed = problem<{ reason: string | Localised }>('REQUEST_MALFORMED', 400, {
  en: 'The request cannot be read: {reason}',
  fr: 'La requête est illisible : {reason}'
})
export const Invalid = problem('REQUEST_INVALID', 400, {
  en: 'The request does not fit the schema of this route; see "errors".',
  fr: 'La requête ne respecte pas le schéma de cette route ; voir « errors ».'
})
export const Unauthenticated = problem<{ reason: string }>('AUTH_REQUIRED', 401, {
  en: 'A valid bearer token is required ({reason}).',
  fr: 'Un jeton d’accès valide est requis ({reason}).'
})
export const Forbidden = problem<{ required: string; role: string }>('AUTH_FORBIDDEN', 403, {
  en: 'This needs the role {required}; yours is {role}.',
  fr: 'Ceci exige le rôle {required} ; le vôtre est {role}.'
})
export const SecondFactorRequired = problem<{ use: string; routes: readonly string[] }>(
  'AUTH_SECOND_FACTOR_REQUIRED',
  403,
  {
    en: 'The sign-in is not complete: this token serves only for the step {use} ({routes}).',
    fr: 'La connexion n’est pas achevée : ce jeton ne sert qu’à l’étape {use} ({routes}).'
  }
)
export const FreshAuthenticationRequired = problem<{ maxAgeSeconds: number }>('AUTH_FRESH_REQUIRED', 403, {
  en: 'This needs a sign-in of the last {maxAgeSeconds} s; prove again who you are.',
  fr: 'Ceci exige une connexion datant de {maxAgeSeconds} s au plus ; prouvez de nouveau qui vous êtes.'
})
export const ScopeMissing = problem<{ required: string }>('AUTH_SCOPE_MISSING', 403, {
  en: 'This API token lacks the scope {required}.',
  fr: 'Ce jeton d’API n’a pas la portée {required}.'
})
export const CrossSite = problem('AUTH_CROSS_SITE', 403, {
  en: 'With a cookie this is allowed only to pages of this server itself.',
  fr: 'Avec un cookie, ceci n’est permis qu’aux pages de ce serveur.'
})
export const RouteClosed = problem('AUTH_ROUTE_CLOSED', 403, {
  en: 'This route declares no role, so it is closed.',
  fr: 'Cette route ne déclare aucun rôle : elle est fermée.'
})
export const OperatorRequired = problem('AUTH_OPERATOR_REQUIRED', 403, {
  en: 'With several tenants this is for whoever runs the service: a token printed at the console.',
  fr: 'Avec plusieurs locataires, ceci revient à l’exploitant du service : un jeton imprimé à la console.'
})
export const RouteNotFound = problem<{ method: string; path: string }>('ROUTE_NOT_FOUND', 404, {
  en: 'There is no route {method} {path}.',
  fr: 'La route {method} {path} n’existe pas.'
})
export const MethodNotAllowed = problem<{ method: string }>('METHOD_NOT_ALLOWED', 405, {
  en: 'The method {method} is served nowhere here.',
  fr: 'La méthode {method} n’est servie nulle part ici.'
})
export const PreconditionFailed = problem<{ current: string }>('PRECONDITION_FAILED', 412, {
  en: 'The resource has changed since you read it; its ETag is now {current}.',
  fr: 'La ressource a changé depuis votre lecture ; son ETag est maintenant {current}.'
})
export const UnsupportedMediaType = problem<{ received: string }>('REQUEST_MEDIA_TYPE', 415, {
  en: 'The content type {received} is not read by this route.',
  fr: 'Le type de contenu {received} n’est pas lu par cette route.'
})
export const ContentEncodingRefused = problem<{ received: string; allowed: readonly string[] }>(
  'REQUEST_CONTENT_ENCODING',
  415,
  {
    en: 'A body encoded as {received} is not read by this route; these encodings are: {allowed}.',
    fr: 'Un corps encodé en {received} n’est pas lu par cette route ; ces encodages le sont : {allowed}.'
  }
)
export const IdempotencyKeyReused = problem('IDEMPOTENCY_KEY_REUSED', 422, {
  en: 'This Idempotency-Key was used for another request; use a new one.',
  fr: 'Cette Idempotency-Key a déjà servi pour une autre requête ; prenez-en une nouvelle.'
})
export const IdempotencyKeyInvalid = problem('IDEMPOTENCY_KEY_INVALID', 400, {
  en: 'An Idempotency-Key is 1–255 printable ASCII characters without spaces.',
  fr: 'Une Idempotency-Key compte 1 à 255 caractères ASCII imprimables, sans espace.'
})
export const IdempotencyInProgress = problem<{ retryAfterSeconds: number }>('IDEMPOTENCY_IN_PROGRESS', 409, {
  en: 'A request with this Idempotency-Key is still running; ask again in {retryAfterSeconds} s.',
  fr: 'Une requête avec cette Idempotency-Key est encore en cours ; redemandez dans {retryAfterSeconds} s.'
})
export const TooManyRequests = problem<{ retryAfterSeconds: number }>('RATE_LIMITED', 429, {
  en: 'Too many requests; try again in {retryAfterSeconds} s.',
  fr: 'Trop de requêtes ; réessayez dans {retryAfterSeconds} s.'
})
export const InternalError = problem('INTERNAL_ERROR', 500, {
  en: 'Something failed here. The request id finds it in the log.',
  fr: 'Une erreur interne est survenue. L’identifiant de requête la retrouve dans le journal.'
})
export const DatabaseBusy = problem<{ retryAfterSeconds: number }>('DATABASE_BUSY', 503, {
  en: 'The database is busy; try again in {retryAfterSeconds} s.',
  fr: 'La base de données est occupée ; réessayez dans {retryAfterSeconds} s.'
})
export const DatabaseUnavailable = problem<{ retryAfterSeconds: number }>('DATABASE_UNAVAILABLE', 503, {
  en: 'The database does not answer; try again in {retryAfterSeconds} s.',
  fr: 'La base de données ne répond pas ; réessayez dans {retryAfterSeconds} s.'
})
export const DatabaseSwitching = problem<{ retryAfterSeconds: number }>('DATABASE_SWITCHING', 503, {
  en: 'The data are moving to another database, and nothing of this request was done; try again in {retryAfterSeconds} s.',
  fr: 'Les données passent à une autre base, et rien de cette requête n’a été fait ; réessayez dans {retryAfterSeconds} s.'
})
export const ServiceStarting = problem<{ retryAfterSeconds: number }>('SERVICE_STARTING', 503, {
  en: 'The service is starting; try again in {retryAfterSeconds} s.',
  fr: 'Le service démarre ; réessayez dans {retryAfterSeconds} s.'
})
export const TenantNotFound = problem<{ tenant: string }>('TENANT_NOT_FOUND', 404, {
  en: 'The tenant {tenant} does not exist.',
  fr: 'Le locataire {tenant} n’existe pas.'
})
export const TenantNameInvalid = problem<{ tenant: string }>('TENANT_NAME_INVALID', 400, {
  en: '{tenant} cannot name a tenant: a lower-case letter, then at most 39 letters, digits and dashes.',
  fr: '{tenant} ne peut nommer un locataire : une lettre minuscule, puis au plus 39 lettres, chiffres et tirets.'
})
export const JobNotFound = problem<{ id: string }>('JOB_NOT_FOUND', 404, {
  en: 'The job {id} does not exist.',
  fr: 'La tâche {id} n’existe pas.'
})
export const JobKindUnknown = problem<{ kind: string }>('JOB_KIND_UNKNOWN', 500, {
  en: 'No job of the kind {kind} is defined here.',
  fr: 'Aucune tâche du type {kind} n’est définie ici.'
})
export const JobEnded = problem<{ id: string; jobStatus: string }>('JOB_ENDED', 409, {
  en: 'The job {id} has ended already ({jobStatus}).',
  fr: 'La tâche {id} est déjà terminée ({jobStatus}).'
})
/** Only ever stored on a job: it threw what is not a coded problem. The log has the cause. */
export const JobFailed = problem('JOB_FAILED', 500, {
  en: 'The job failed for a reason that is in the log under its id.',
  fr: 'La tâche a échoué ; la cause est dans le journal sous son identifiant.'
})
/** Only ever stored on a job. */
export const JobLost = problem<{ attempts: number }>('JOB_LOST', 500, {
  en: 'The process that ran the job ended {attempts} times before it was done.',
  fr: 'Le processus qui exécutait la tâche s’est arrêté {attempts} fois avant la fin.'
})
/** Only ever stored on a job. */
export const JobAbandoned = problem('JOB_ABANDONED', 500, {
  en: 'The machine whose files the job needs has not been heard of for a day.',
  fr: 'La machine dont la tâche exige les fichiers est muette depuis un jour.'
})
export const ComputeMemoryExceeded = problem<{ memoryMegabytes: number }>('COMPUTE_MEMORY_EXCEEDED', 500, {
  en: 'The computation needs more than {memoryMegabytes} MB.',
  fr: 'Le calcul exige plus de {memoryMegabytes} Mo.'
})
export const ComputeThreadLost = problem('COMPUTE_THREAD_LOST', 503, {
  en: 'The thread of the computation ended before it was done.',
  fr: 'Le fil d’exécution du calcul s’est arrêté avant la fin.'
})

const TITLES: Record<number, Record<Locale, string>> = {
  400: { en: 'Bad request', fr: 'Requête incorrecte' },
  401: { en: 'Not authenticated', fr: 'Non authentifié' },
  403: { en: 'Forbidden', fr: 'Accès refusé' },
  404: { en: 'Not found', fr: 'Introuvable' },
  405: { en: 'Method not allowed', fr: 'Méthode non autorisée' },
  409: { en: 'Conflict', fr: 'Conflit' },
  412: { en: 'Precondition failed', fr: 'Précondition non remplie' },
  413: { en: 'Too large', fr: 'Trop volumineux' },
  415: { en: 'Unsupported media type', fr: 'Type de contenu non pris en charge' },
  422: { en: 'Rule broken', fr: 'Règle non respectée' },
  429: { en: 'Too many requests', fr: 'Trop de requêtes' },
  500: { en: 'Internal error', fr: 'Erreur interne' },
  503: { en: 'Unavailable', fr: 'Indisponible' }
}

/** Turns whatever was thrown into one coded problem; what is not known is a 500 that says nothing of its cause. */
function toProblem(error: unknown, request: FastifyRequest): Problem {
  if (error instanceof Problem) return error
  if (!(error instanceof Error)) return new InternalError({})
  const { statusCode, validation, code } = error as Partial<FastifyError>
  if (validation !== undefined) return new Invalid({})
  if (code === 'FST_ERR_CTP_BODY_TOO_LARGE')
    return new PayloadTooLarge({ limitBytes: request.routeOptions.bodyLimit ?? 0 })
  if (statusCode === 415) return new UnsupportedMediaType({ received: mediaTypeOf(request.headers['content-type']) })
  if (statusCode === 429) return new TooManyRequests({ retryAfterSeconds: 1 })
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500) return new Malformed({ reason: error.message })
  if (isFenced(error)) return new DatabaseSwitching({ retryAfterSeconds: 1 })
  if (isUnavailable(error)) return new DatabaseUnavailable({ retryAfterSeconds: 2 })
  return new InternalError({})
}

/** Nothing but a media type is told back. */
const mediaTypeOf = (header: string | undefined): string =>
  header === undefined ? 'none' : (/^[\w.+-]+\/[\w.+-]+/.exec(header)?.[0] ?? 'unknown')

// Its types declare a default export that the CommonJS module does not have.
const localize: Record<Locale, (errors: object[]) => void> = createRequire(import.meta.url)('ajv-i18n')

const UNAVAILABLE =
  /^(ECONNREFUSED|ECONNRESET|ETIMEDOUT|EPIPE|57P0[123]|53\d{3}|25006|58030|08\w{3}|SQLITE_BUSY\w*|SQLITE_FULL|SQLITE_IOERR\w*|SQLITE_CANTOPEN|SQLITE_READONLY\w*)$/
const CONNECTION_MESSAGE =
  /timeout exceeded when trying to connect|Connection terminated|Client has encountered a connection error/

function isUnavailable(error: Error): boolean {
  const code = 'code' in error ? String(error.code) : ''
  return UNAVAILABLE.test(code) || CONNECTION_MESSAGE.test(error.message)
}

/** What the fence of a mirror answers to writers of a database that is not the primary (any more). */
export const FENCED_MESSAGE = 'another database is the primary'
export const FENCED_STATE = 'IE001'
const isFenced = (error: Error): boolean =>
  error.message === FENCED_MESSAGE || ('code' in error && error.code === FENCED_STATE)

interface FieldError {
  path: string
  message: string
}

function fieldErrors(error: unknown, locale: Locale): FieldError[] | undefined {
  if (error instanceof Problem) return undefined
  const { validation, validationContext } = error as Partial<FastifyError>
  if (validation === undefined) return undefined
  const errors = validation.map((each) => ({ ...each, schemaPath: each.schemaPath ?? '', params: each.params ?? {} }))
  localize[locale](errors)
  return errors.map((each) => {
    const field = each.params.additionalProperty ?? each.params.missingProperty
    const path = `${validationContext ?? 'body'}${each.instancePath}${typeof field === 'string' ? `/${field}` : ''}`
    return { path: path.slice(0, 300), message: each.message ?? '' }
  })
}

/** What is answered of a problem, whoever answers it. */
export const bodyOf = (found: Problem, locale: Locale, request: { id: string; url: string }) => ({
  ...found.members(locale),
  type: `urn:problem:inventory:${found.code}`,
  title: (TITLES[found.status] ?? TITLES[500])?.[locale],
  status: found.status,
  detail: found.detail(locale),
  instance: request.url.split('?', 1)[0],
  code: found.code,
  requestId: request.id
})

/** Answers `application/problem+json`; logs what is ours to mend. */
export function answerProblem(error: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  const found = toProblem(error, request)
  if (found.status >= 500) request.log.error({ ...whoAsked(request), code: found.code, err: error }, 'request failed')
  const locale = localeOf(request)
  const retryAfter = found.params.retryAfterSeconds
  if (typeof retryAfter === 'number') void reply.header('retry-after', retryAfter)
  if (found.status === 401) void reply.header('www-authenticate', 'Bearer')
  const errors = fieldErrors(error, locale)
  const body = { ...bodyOf(found, locale, request), ...(errors === undefined ? {} : { errors }) }
  // Sent as text: a route's own response schema is for its own answers.
  return reply
    .code(found.status)
    .header('content-language', locale)
    .header('cache-control', 'no-store')
    .type('application/problem+json; charset=utf-8')
    .send(JSON.stringify(body))
}

/**
 * Makes a context answer its errors as problems; `denied` is told of each answer that refuses somebody. The core calls it for
 * each module, never for the host.
 */
export function useProblems(
  app: FastifyInstance,
  denied: (request: FastifyRequest, error: unknown) => void = () => {}
): void {
  app.setErrorHandler((error, request, reply) => {
    const sent = answerProblem(error, request, reply)
    if (reply.statusCode === 401 || reply.statusCode === 403) denied(request, error)
    return sent
  })
}
