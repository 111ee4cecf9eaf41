/**
 * Compiles each schema once for the whole process, told apart by its text. A process has several apps with the same schemas where a
 * mirror changes places, and in tests; how many there are depends on the program, not on what it serves.
 */
export function compiledOnce<S, C>(compile: (schema: S) => C): (schema: S) => C {
  const known = new Map<string, C>()
  return (schema) => {
    const text = JSON.stringify(schema)
    const compiled = known.get(text) ?? compile(schema)
    known.set(text, compiled)
    return compiled
  }
}
