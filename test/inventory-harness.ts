import type { FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import { type Answer, buildApp, type Client, client, type Dialect } from './helper.js'

export interface Context {
  app: FastifyInstance
  viewer: Client
  staff: Client
  manager: Client
}

/** Every code of a list, page by page; fails on a repeated row. */
export async function pagesOf(t: Test, as: Client, url: string, limit: number, key = 'itemCode'): Promise<string[]> {
  const seen: string[] = []
  for (let cursor = ''; ; ) {
    const { status, body } = await as.get(`${url}${url.includes('?') ? '&' : '?'}limit=${limit}${cursor}`)
    t.equal(status, 200, url)
    for (const row of body.data) seen.push(row[key])
    if (body.page.nextCursor === null) break
    t.equal(body.data.length, limit, 'a page before the last is full')
    cursor = `&cursor=${encodeURIComponent(body.page.nextCursor)}`
  }
  t.equal(new Set(seen).size, seen.length, `${url}: no row twice`)
  return seen
}

export const codesOf = ({ body }: Answer): string[] => body.data.map((row: { itemCode: string }) => row.itemCode)
export const made = async (t: Test, answer: Promise<Answer>, status = 201) => {
  const { status: actual, body, text } = await answer
  t.equal(actual, status, actual === status ? 'as expected' : text.slice(0, 300))
  return body
}
export const NO_ID = '01890000-0000-7000-8000-000000000000'
export const post = (as: Client, type: string, ...lines: object[]) => as.post('/api/movements', { type, lines })

/** The whole service on an empty database, and those who speak to it. */
export async function openStock(t: Test, dialect: Dialect): Promise<Context> {
  const app = await buildApp(t, { dialect })
  return { app, viewer: client(app, 'viewer'), staff: client(app, 'staff'), manager: client(app, 'manager') }
}
