import fastJson from 'fast-json-stringify'
import type { FastifySchema, FastifySerializerCompiler } from 'fastify'

/**
 * Fastify's own way to write an answer by its schema, compiled when the first one is written: a command at the console uses none
 * of the routes' schemas, and compiling all of them takes longer than most commands.
 */
export const serializerCompiler: FastifySerializerCompiler<FastifySchema> = ({ schema }) => {
  let write: ((value: unknown) => string) | undefined
  return (value: unknown) => {
    write ??= fastJson(schema)
    return write(value)
  }
}
