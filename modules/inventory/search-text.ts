/** Marks where a field begins, twice, so that one or two letters make a trigram with it: short searches find by prefix. */
const FIELD = '\u0001\u0001'

/** Lower case, without accents, white space folded: what is searched and what is found are both written so. */
export const fold = (text: string): string =>
  text
    .normalize('NFD')
    .replace(/\p{M}/gu, '')
    .toLowerCase()
    // biome-ignore lint/suspicious/noControlCharactersInRegex: the marks between fields must not be typed
    .replace(/[\s\u0000-\u001f]+/g, ' ')
    .trim()

export const searchText = (item: {
  code: string
  name: string
  nameFr: string | null
  barcodes: readonly string[]
}): string =>
  [item.code, item.name, item.nameFr ?? '', ...item.barcodes]
    .filter((field) => field !== '')
    .map((field) => FIELD + fold(field))
    .join('')

/** Short words are found where a field begins. */
export const anchored = (folded: string): string => {
  const letters = [...folded].length
  return letters >= 3 ? folded : `${FIELD.slice(0, 3 - letters)}${folded}`
}

/** For FTS5: one quoted phrase. */
export const matchPhrase = (folded: string): string => `"${anchored(folded).replaceAll('"', '""')}"`
/**
 * SQL of one trigram that stands for a category and that nobody can type: of the text index it is a list of the items of the
 * category, which is narrowed down together with those of the words.
 */
export const categoryMark = (id: string): string => `char(2, 57344 + ${id} / 6400, 57344 + ${id} % 6400)`
/** SQL of what FTS5 indexes of a row of `item_texts`. */
export const INDEXED_TEXT = `iif(category_id is null, '', ${categoryMark('category_id')}) || text`
/** For LIKE over the text itself, its wildcards escaped. */
export const likePattern = (folded: string): string => `%${anchored(folded).replace(/[\\%_]/g, '\\$&')}%`

/**
 * SQL of what pg_trgm indexes of `text`. It takes what is neither letter nor digit for the end of a word, and has no trigram from one
 * word to the next: of "organic premium" it would know the items that have either. A capital is in no text that is folded.
 */
export const JOINED_TEXT = "replace(text, ' ', 'Q')"
/** For LIKE over that. */
export const joinedPattern = (folded: string): string => likePattern(folded).replaceAll(' ', 'Q')
