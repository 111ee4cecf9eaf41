import { Ajv, type Options } from 'ajv'
import formats from 'ajv-formats'
import type { FastifySchema, FastifySchemaCompiler } from 'fastify'

/** Six decimals divide exactly only up to rounding, so the remainder is compared at this precision. */
const MULTIPLE_OF_PRECISION = 3

const strict: Options = {
  // One error is enough to mend a request, and a hostile body cannot make us collect millions.
  allErrors: false,
  removeAdditional: false,
  strict: false,
  multipleOfPrecision: MULTIPLE_OF_PRECISION,
  useDefaults: true
}

/** Bodies are taken as they are; what comes as text (query, params, headers) is converted. Unknown fields are refused. */
export function createValidatorCompiler(): FastifySchemaCompiler<FastifySchema> {
  const bodies = formats.default(new Ajv({ ...strict, coerceTypes: false }))
  const texts = formats.default(new Ajv({ ...strict, coerceTypes: true }))
  return ({ schema, httpPart }) => (httpPart === 'body' ? bodies : texts).compile(schema)
}
