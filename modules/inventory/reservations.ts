import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Kysely } from 'kysely'
import { v7 as uuidv7 } from 'uuid'
import { access, decodeCursor, encodeCursor, pageOf, type Tenant, type Transaction } from '../../plugins/contracts.js'
import { problems } from '../../schemas/common.js'
import { fromMicros, toMicros } from '../../schemas/decimal.js'
import * as schemas from '../../schemas/inventory.js'
import { type Author, Book, DEFAULT_LOCATION } from './book.js'
import { authorOf, type Context, cacheKey, tenantOf } from './context.js'
import { ExpiresInPast, ReservationClosed, ReservationNotFound } from './errors.js'
import { createLedgerStore } from './ledger-store.js'
import { announce, draftOf, STOCK_CACHE } from './movements.js'
import { DEFAULT_LOT, type InventoryTables } from './tables.js'

/** Stock promised but not yet gone: it is on hand, and not available. */
function createReservationStore(root: Kysely<unknown>) {
  const db = root.withTables<InventoryTables>()
  const rows = () =>
    db
      .selectFrom('reservations as r')
      .innerJoin('stock_accounts as a', 'a.id', 'r.account_id')
      .innerJoin('items as i', 'i.id', 'a.item_id')
      .innerJoin('locations as p', 'p.id', 'a.location_id')
      .innerJoin('lots as l', 'l.id', 'a.lot_id')
      .select([
        'r.seq',
        'r.id',
        'i.code as itemCode',
        'r.quantity',
        'p.code as location',
        'l.code as lot',
        'r.reference',
        'r.status'
      ])
      .select(['r.expires_at', 'r.movement_id', 'r.created_at'])
  return {
    find: (id: string) => rows().where('r.id', '=', id).executeTakeFirst(),
    list: async ({
      limit = 50,
      cursor,
      status,
      itemCode
    }: {
      limit?: number
      cursor?: string
      status?: schemas.Reservation['status']
      itemCode?: string
    }) => {
      const after = Number(decodeCursor('reservations', cursor, ['number'])?.[0] ?? 0)
      let query = rows().where('r.seq', '>', after)
      if (status !== undefined) query = query.where('r.status', '=', status)
      if (itemCode !== undefined) query = query.where('i.code', '=', itemCode)
      const found = await query
        .orderBy('r.seq')
        .limit(limit + 1)
        .execute()
      return pageOf(found, limit, ({ seq }) => encodeCursor('reservations', [seq]), present)
    },
    expired: (now: number, limit: number) =>
      rows().where('r.status', '=', 'pending').where('r.expires_at', '<', now).orderBy('r.seq').limit(limit).execute(),
    insert: (row: Omit<InventoryTables['reservations'], 'seq'>) => db.insertInto('reservations').values(row).execute(),
    /** @returns whether it was still pending */
    close: async (id: string, status: 'posted' | 'voided', movementId: string | null): Promise<boolean> => {
      const { numUpdatedRows } = await db
        .updateTable('reservations')
        .set({ status, movement_id: movementId })
        .where('id', '=', id)
        .where('status', '=', 'pending')
        .executeTakeFirst()
      return Number(numUpdatedRows) > 0
    }
  }
}

type Row = NonNullable<Awaited<ReturnType<ReturnType<typeof createReservationStore>['find']>>>
const present = (row: Row): schemas.Reservation => ({
  id: row.id,
  itemCode: row.itemCode,
  quantity: fromMicros(row.quantity),
  location: row.location,
  lot: row.lot === DEFAULT_LOT ? null : row.lot,
  reference: row.reference,
  status: row.status,
  expiresAt: row.expires_at === null ? null : new Date(row.expires_at).toISOString(),
  movementId: row.movement_id,
  createdAt: new Date(row.created_at).toISOString()
})

const lineOf = ({
  itemCode,
  location,
  lot,
  quantity
}: {
  itemCode: string
  location: string
  lot?: string | null | undefined
  quantity: number
}) => ({
  itemCode,
  location,
  quantity,
  ...(lot == null || lot === DEFAULT_LOT ? {} : { lot })
})

const hasRunOut = (expiresAt: string) => Date.parse(expiresAt) < Date.now()

async function reserve(tx: Transaction, body: schemas.NewReservation): Promise<schemas.Reservation> {
  const { itemCode, quantity, location = DEFAULT_LOCATION, lot, reference, expiresAt } = body
  if (expiresAt !== undefined && hasRunOut(expiresAt)) throw new ExpiresInPast({ expiresAt })
  const book = new Book(createLedgerStore(tx.db), { lock: true })
  await book.load([lineOf({ itemCode, location, lot, quantity })], [])
  const held = book.holdUsable(itemCode, location, lot)
  await book.reserve(held, toMicros(quantity))
  const store = createReservationStore(tx.db)
  const id = uuidv7()
  await store.insert({
    id,
    account_id: held.account.id,
    quantity: toMicros(quantity),
    reference: reference ?? null,
    status: 'pending',
    expires_at: expiresAt === undefined ? null : Date.parse(expiresAt),
    movement_id: null,
    created_at: Date.now()
  })
  tx.invalidate(STOCK_CACHE)
  return closed(await store.find(id), id)
}

/** Ends a reservation: `posted` issues what it held in the same transaction, `voided` lets it go. */
async function close(
  tx: Transaction,
  id: string,
  status: 'posted' | 'voided',
  author: Author
): Promise<schemas.Reservation> {
  const store = createReservationStore(tx.db)
  const row = closed(await store.find(id), id)
  const line = lineOf(row)
  const book = new Book(createLedgerStore(tx.db), { lock: true })
  await book.load([line], status === 'posted' ? ['issue'] : [])
  const current = closed(await store.find(id), id)
  if (current.status !== 'pending') throw new ReservationClosed({ id, status: current.status })
  // The sweep that voids it may still be some seconds away.
  if (status === 'posted' && current.expiresAt !== null && hasRunOut(current.expiresAt))
    throw new ReservationClosed({ id, status: 'expired' })
  await book.reserve(book.hold(row.itemCode, row.location, row.lot ?? undefined), -toMicros(row.quantity))
  let movementId: string | null = null
  if (status === 'posted') {
    book.post(
      draftOf({ type: 'issue', ...(row.reference === null ? {} : { reference: row.reference }), lines: [line] }),
      author
    )
    const movements = await book.save()
    movementId = movements[0]?.id ?? null
    await announce(tx, movements)
  }
  if (!(await store.close(id, status, movementId))) throw new ReservationClosed({ id, status: current.status })
  tx.invalidate(STOCK_CACHE)
  return closed(await store.find(id), id)
}

function closed(row: Row | undefined, id: string): schemas.Reservation {
  if (row === undefined) throw new ReservationNotFound({ id })
  return present(row)
}

/** Voids what has run out. Another node, or its owner, may come first. */
export async function voidExpired(tenant: Tenant): Promise<void> {
  for (const { id } of await createReservationStore(tenant.db).expired(Date.now(), 100)) {
    await tenant
      .transact((tx) => close(tx, id, 'voided', { actor: 'expiry', requestId: 'expiry' }))
      .catch((error) => {
        if (!(error instanceof ReservationClosed)) throw error
      })
  }
}

export const reservationRoutes: FastifyPluginAsyncTypebox<Context> = async (app, { answers }) => {
  const tags = ['reservations']
  const response = { 200: schemas.Reservation, ...problems }
  app.get(
    '/',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Reservations',
        querystring: schemas.ReservationQuery,
        response: { 200: schemas.ReservationList, ...problems }
      }
    },
    async (request, reply) =>
      answers.read(request, reply, STOCK_CACHE, cacheKey(request), () =>
        createReservationStore(tenantOf(request).db).list(request.query)
      )
  )
  app.get(
    '/:id',
    {
      config: access('viewer'),
      schema: { tags, summary: 'One reservation', params: schemas.MovementParams, response }
    },
    async (request, reply) =>
      answers.read(request, reply, STOCK_CACHE, cacheKey(request), async () =>
        closed(await createReservationStore(tenantOf(request).db).find(request.params.id), request.params.id)
      )
  )
  app.post(
    '/',
    {
      config: access('staff'),
      schema: {
        tags,
        summary: 'Reserve stock',
        body: schemas.NewReservation,
        response: { 201: schemas.Reservation, ...problems }
      }
    },
    async (request, reply) => answers.write(request, reply, 201, (tx) => reserve(tx, request.body))
  )
  for (const [path, status, summary] of [
    ['/:id/post', 'posted', 'Issue what was reserved'],
    ['/:id/void', 'voided', 'Let go what was reserved']
  ] as const) {
    app.post(
      path,
      { config: access('staff'), schema: { tags, summary, params: schemas.MovementParams, response } },
      async (request, reply) =>
        answers.write(request, reply, 200, (tx) => close(tx, request.params.id, status, authorOf(request)))
    )
  }
}
