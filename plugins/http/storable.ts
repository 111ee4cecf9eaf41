/** Of a text without NUL or half of a surrogate pair, which JSON and URLs can say and PostgreSQL cannot keep. */
export const STORABLE_PATTERN = '^[^\\u0000\\p{Surrogate}]*$'
const STORABLE = new RegExp(STORABLE_PATTERN, 'u')

export const isStorable = (text: string): boolean => STORABLE.test(text)
