/** Fields that hold secrets wherever they stand, at the top of a line or one below it. */
const SECRET_FIELDS = [
  'password',
  'token',
  'accessToken',
  'refreshToken',
  'secret',
  'authorization',
  'cookie',
  'code_verifier'
]

/** Paths for pino: what is there is written as `[Redacted]`. */
export const REDACTED = [
  ...SECRET_FIELDS.flatMap((field) => [field, `*.${field}`]),
  'req.headers.authorization',
  'req.headers.cookie',
  'headers["set-cookie"]'
]

const SECRETS: readonly [RegExp, string][] = [
  // A name and a password in a URL.
  [/(\b[a-z][a-z0-9+.-]*:\/\/)[^\s/@]+@/gi, '$1***@'],
  [/\bBearer +[^\s"',]+/gi, 'Bearer ***'],
  [/\beyJ[\w-]+\.[\w-]+\.[\w-]*/g, '***'],
  // Tokens of ours: refresh, API, links.
  [/\bi[a-z]_[a-z][a-z0-9-]*_[\w-]{16,}/g, '***']
]
const withoutSecrets = (text: string): string =>
  SECRETS.reduce((clean, [pattern, instead]) => clean.replace(pattern, instead), text)

interface LoggedError {
  [key: string]: unknown
  type: string
  message: string
  stack: string
  code?: string | number
  cause?: LoggedError
}
const CAUSES_MAX = 3

/**
 * What the log tells of an error. Drivers hang a lot on theirs (PostgreSQL the row that it refused, HTTP clients the whole request),
 * so nothing else is taken than what finds the fault.
 */
export function loggedError(error: unknown, causes = CAUSES_MAX): LoggedError {
  if (!(error instanceof Error)) return { type: typeof error, message: withoutSecrets(String(error)), stack: '' }
  const code = 'code' in error ? error.code : undefined
  return {
    type: error.constructor.name,
    message: withoutSecrets(error.message),
    stack: withoutSecrets(error.stack ?? ''),
    ...(typeof code === 'string' || typeof code === 'number' ? { code } : {}),
    ...(error.cause === undefined || causes === 0 ? {} : { cause: loggedError(error.cause, causes - 1) })
  }
}
