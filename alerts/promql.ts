import { parser } from '@prometheus-io/lezer-promql'

/** What a query is made of, by Prometheus' own grammar. */

type SyntaxNode = ReturnType<typeof parser.parse>['topNode']

interface Selector {
  readonly metric: string
  readonly matchers: readonly { readonly label: string; readonly operator: string; readonly value: string }[]
}

export interface Span {
  readonly from: number
  readonly to: number
}

const text = (query: string, { from, to }: Span) => query.slice(from, to)

/** @throws when it is no PromQL */
function nodesOf(query: string): SyntaxNode[] {
  const nodes: SyntaxNode[] = []
  parser.parse(query).iterate({
    enter({ node }) {
      if (node.type.isError) throw new Error(`not PromQL at ${node.from}: ${query}`)
      nodes.push(node)
    }
  })
  return nodes
}

/** Every series that a query selects. */
export function selectorsOf(query: string): Selector[] {
  return nodesOf(query)
    .filter(({ name }) => name === 'VectorSelector')
    .map((node) => {
      const identifier = node.getChild('Identifier')
      const matchers: SyntaxNode[] = []
      node.cursor().iterate((each) => {
        if (each.name === 'UnquotedLabelMatcher') matchers.push(each.node)
      })
      return {
        metric: identifier === null ? '' : text(query, identifier),
        matchers: matchers.map((matcher) => {
          const [, label = '', operator = '', value = ''] =
            /^\s*(\w+)\s*(=~|!~|!=|=)\s*"(.*)"$/s.exec(text(query, matcher)) ?? []
          return { label, operator, value: value.replaceAll('\\\\', '\\') }
        })
      }
    })
}

/** The labels that a query groups or joins by. */
export const groupingsOf = (query: string): string[] =>
  nodesOf(query)
    .filter(({ name }) => name === 'GroupingLabels')
    .flatMap((node) =>
      text(query, node)
        .replace(/[()\s]/g, '')
        .split(',')
    )
    .filter((label) => label !== '')

const FLIPPED: Readonly<Record<string, string>> = {
  '>': '<=',
  '<': '>=',
  '>=': '<',
  '<=': '>',
  '==': '!=',
  '!=': '==',
  and: 'or'
}
const OPERATORS = new Set(['Gtr', 'Lss', 'Gte', 'Lte', 'EqlC', 'Neq', 'And'])

interface Mutant {
  readonly what: string
  readonly query: string
}

/** The query with each of its comparisons turned round, and each `and` made an `or`, one at a time. */
export const mutantsOf = (query: string): Mutant[] =>
  nodesOf(query)
    .filter(({ name }) => OPERATORS.has(name))
    .map((node) => {
      const operator = text(query, node)
      const flipped = FLIPPED[operator]
      if (flipped === undefined) throw new Error(`${operator} is not known`)
      return {
        what: `${operator} at ${node.from} becomes ${flipped}`,
        query: `${query.slice(0, node.from)}${flipped}${query.slice(node.to)}`
      }
    })

/** A counter, or any series, as a function over a range of time reads it. */
interface RangeRead {
  readonly function: string
  readonly metric: string
  /** As written: `5m`. */
  readonly range: string
}

export const rangesOf = (query: string): RangeRead[] =>
  nodesOf(query)
    .filter(({ name }) => name === 'MatrixSelector')
    .map((node) => {
      let call: SyntaxNode | null = node.parent
      while (call !== null && call.name !== 'FunctionCall') call = call.parent
      const called = call?.getChild('FunctionIdentifier') ?? null
      const identifier = node.getChild('VectorSelector')?.getChild('Identifier') ?? null
      const [, range = ''] = /\[([^\]:]+)\]$/.exec(text(query, node)) ?? []
      return {
        function: called === null ? '' : text(query, called),
        metric: identifier === null ? '' : text(query, identifier),
        range
      }
    })
