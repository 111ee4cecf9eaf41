/**
 * The peers of the load bench, each in a process of its own.
 * usage: target.js bytes <file> [encoding] | express <database file> <secret>
 */
import { readFileSync } from 'node:fs'
import Sqlite from 'better-sqlite3'
import compression from 'compression'
import express from 'express'
import Fastify from 'fastify'
import helmet from 'helmet'
import jwt from 'jsonwebtoken'

const port = Number(process.env.PORT)
const host = '127.0.0.1'

/** The ceiling: the same bytes from memory, and nothing else. */
async function bytes(file: string, encoding: string | undefined): Promise<void> {
  const body = readFileSync(file)
  const app = Fastify()
  app.get('/health/ready', async () => ({ status: 'ok' }))
  app.get('/api/inventory', (_request, reply) => {
    reply.header('content-type', 'application/json; charset=utf-8')
    if (encoding !== undefined) reply.header('content-encoding', encoding)
    reply.send(body)
  })
  await app.listen({ port, host })
}

interface Row {
  id: number
  code: string
  name: string
  name_fr: string | null
  category: string | null
  unit: string
  tracking: string
  reorder_point: number | null
  par_level: number | null
  on_hand: number
  reserved: number
  value: number
  status: string
}

const decimal = (micros: number | null) => (micros === null ? null : micros / 1e6)

/** What such a service is usually made of: the page is read, checked for a token and compressed at every request. */
function expressStack(file: string, secret: string): void {
  const db = new Sqlite(file, { readonly: true })
  const page = db.prepare<[number], Row>(
    `select i.id, i.code, i.name, i.name_fr, c.name as category, i.unit, i.tracking, i.reorder_point, i.par_level,
       t.on_hand, t.reserved, t.value, t.status
     from items i join item_totals t on t.item_id = i.id left join categories c on c.id = i.category_id
     where i.archived_at is null order by i.code, i.id limit ?`
  )
  const app = express()
  app.use(helmet())
  app.use(compression())
  app.use(express.json())
  app.get('/health/ready', (_request, response) => void response.json({ status: 'ok' }))
  app.use((request, response, next) => {
    try {
      jwt.verify(request.headers.authorization?.replace(/^Bearer /, '') ?? '', secret, { algorithms: ['HS256'] })
      next()
    } catch {
      response.status(401).json({ error: 'unauthorized' })
    }
  })
  app.get('/api/inventory', (request, response) => {
    const limit = Number(request.query.limit ?? 50)
    const rows = page.all(limit + 1)
    const data = rows.slice(0, limit).map((row) => ({
      itemCode: row.code,
      name: row.name,
      nameFr: row.name_fr,
      category: row.category,
      unit: row.unit,
      tracking: row.tracking,
      onHand: decimal(row.on_hand),
      reserved: decimal(row.reserved),
      available: decimal(row.on_hand - row.reserved),
      onOrder: 0,
      reorderPoint: decimal(row.reorder_point),
      parLevel: decimal(row.par_level),
      unitCost: row.on_hand > 0 ? Math.round((row.value / row.on_hand) * 1e6) / 1e6 : null,
      value: decimal(row.value),
      status: row.status,
      daysOfCover: null
    }))
    const nextCursor = rows.length > limit ? String(data.at(-1)?.itemCode) : null
    response.json({ data, page: { limit, nextCursor } })
  })
  app.listen(port, host)
}

const [kind, first = '', second] = process.argv.slice(2)
if (kind === 'bytes') await bytes(first, second)
else expressStack(first, second ?? '')
