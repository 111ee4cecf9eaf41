import { _, Ajv, type AnySchema, type Options, type SchemaValidateFunction, str, type ValidateFunction } from 'ajv'
import formats from 'ajv-formats'
import type { FastifySchema, FastifySchemaCompiler, onRouteHookHandler } from 'fastify'
import type { Static, TSchema } from 'typebox'
import { Closed, Nullable } from '../../schemas/common.js'
import { compiledOnce } from './compiled.js'
import { isStorable, STORABLE_PATTERN } from './storable.js'

const strict: Options = {
  // One error is enough to mend a request, and a hostile body cannot make us collect millions.
  allErrors: false,
  removeAdditional: false,
  strict: false,
  useDefaults: true
}

/** Made when it first compiles. Its optimiser takes half the time of compiling, and what it finds V8 finds as well. */
function compilerOf(options: Options): () => Ajv {
  let ajv: Ajv | undefined
  return () => {
    ajv ??= formats.default(withUniqueItems(withExactDecimals(new Ajv({ code: { optimize: false }, ...options }))))
    return ajv
  }
}
const bodies = compilerOf({ ...strict, coerceTypes: false })
const texts = compilerOf({ ...strict, coerceTypes: true })
const shapes = compilerOf({ strict: false })
const ofBody = compiledOnce((schema: AnySchema) => bodies().compile(schema))
const ofText = compiledOnce((schema: AnySchema) => texts().compile(schema))

/** Bodies are taken as they are; what comes as text (query, params, headers) is converted. Unknown fields are refused. */
export function createValidatorCompiler(): FastifySchemaCompiler<FastifySchema> {
  return ({ schema, httpPart }) => {
    // At the first request: see the serializers.
    let validate: ValidateFunction | undefined
    return (value: unknown) => {
      validate ??= httpPart === 'body' ? ofBody(schema) : ofText(schema)
      if (!validate(value)) return { error: validate.errors ?? [] }
      const instancePath = unstorable(value, '')
      return instancePath === undefined ? true : { error: [{ ...UNSTORABLE, instancePath }] }
    }
  }
}

const UNSTORABLE = {
  keyword: 'pattern',
  schemaPath: '',
  params: { pattern: STORABLE_PATTERN },
  message: `must match pattern "${STORABLE_PATTERN}"`
}

/** Where a text is that cannot be stored. */
function unstorable(value: unknown, path: string): string | undefined {
  if (typeof value === 'string') return isStorable(value) ? undefined : path
  if (typeof value !== 'object' || value === null) return undefined
  for (const [name, each] of Object.entries(value)) {
    const found = unstorable(each, `${path}/${name}`)
    if (found !== undefined) return found
  }
  return undefined
}

/**
 * Six decimals in binary floating point divide by 10⁻⁶ only up to rounding, and any tolerance is too wide for small numbers
 * or too narrow for large ones. A number has so many decimals when it is the one nearest to such a decimal.
 */
function withExactDecimals(ajv: Ajv): Ajv {
  ajv.removeKeyword('multipleOf')
  return ajv.addKeyword({
    keyword: 'multipleOf',
    type: 'number',
    schemaType: 'number',
    compile: (step: number) => {
      const inOne = Math.round(1 / step)
      return step < 1 ? (value: number) => Math.round(value * inOne) / inOne === value : (value) => value % step === 0
    },
    error: {
      message: ({ schemaCode }) => str`must be multiple of ${schemaCode}`,
      params: ({ schemaCode }) => _`{multipleOf: ${schemaCode}}`
    }
  })
}

/** ajv looks for repeated texts by the properties of an object, which never shows that `__proto__` is there twice. */
function withUniqueItems(ajv: Ajv): Ajv {
  ajv.removeKeyword('uniqueItems')
  const validate: SchemaValidateFunction = (unique: boolean, values: unknown[]) => {
    const first = new Map<string, number>()
    const texts = unique ? values.map((value) => JSON.stringify(value)) : []
    const i = texts.findIndex((text, index) => {
      const known = first.has(text)
      if (!known) first.set(text, index)
      return known
    })
    if (i < 0) return true
    const j = first.get(texts[i] ?? '')
    const message = `must NOT have duplicate items (items ## ${j} and ${i} are identical)`
    validate.errors = [{ keyword: 'uniqueItems', params: { i, j }, message }]
    return false
  }
  return ajv.addKeyword({ keyword: 'uniqueItems', type: 'array', schemaType: 'boolean', validate })
}

/**
 * Whether a value that came from elsewhere than a request has a schema's shape, and in `errors` what it lacks. It is compiled at
 * first use, once for each schema. typebox has a checker too: 380 files that each start of the program would read.
 */
export function shape<T extends TSchema>(schema: T): ValidateFunction<Static<T>> {
  return shapes().compile<Static<T>>(schema)
}

const NO_QUERY = Closed({})
/** For a write whose URL says it all. Clients send nothing, null or an empty object. */
export const NO_BODY = Nullable(Closed({}))

/** What a route declares no schema for it does not take. A route that `consumes` files reads its body itself. */
export const refuseUndeclared: onRouteHookHandler = (route) => {
  const { method, schema = {} } = route
  const reads = method === 'GET' || method === 'HEAD' || 'consumes' in schema
  route.schema = { querystring: NO_QUERY, ...(reads ? {} : { body: NO_BODY }), ...schema }
}
