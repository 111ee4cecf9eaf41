import fastJson, { type AnySchema } from 'fast-json-stringify'
import type { FastifySchema, FastifySerializerCompiler } from 'fastify'
import { compiledOnce } from './compiled.js'

// What picks one of several shapes is ajv's work: see the validators.
const writer = compiledOnce((schema: AnySchema) => fastJson(schema, { ajv: { code: { optimize: false } } }))

/**
 * Fastify's own way to write an answer by its schema, compiled when the first one is written: a command at the console uses none
 * of the routes' schemas, and compiling all of them takes longer than most commands.
 */
export const serializerCompiler: FastifySerializerCompiler<FastifySchema> = ({ schema }) => {
  let write: ((value: unknown) => string) | undefined
  return (value: unknown) => {
    write ??= writer(schema)
    return write(value)
  }
}
