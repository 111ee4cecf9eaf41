import type { FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import type { Tenant } from '../plugins/contracts.js'
import type { Tenants } from '../plugins/core.js'
import { buildApp, type Client, client, type Dialect } from './helper.js'

export interface Context {
  app: FastifyInstance
  staff: Client
  manager: Client
  tenant: Tenant
}

export const line = (itemCode: string, quantity: number, rest: object = {}) => ({ itemCode, quantity, ...rest })
export const post = (as: Client, type: string, lines: object[], headers: Record<string, string> = {}) =>
  as.post('/api/movements', { type, lines }, headers)

export async function item(
  t: Test,
  { manager }: Context,
  itemCode: string,
  quantity = 0,
  rest: object = {}
): Promise<string> {
  t.equal((await manager.post('/api/inventory', { itemCode, name: itemCode, unit: 'each', ...rest })).status, 201)
  if (quantity > 0) t.equal((await post(manager, 'receipt', [line(itemCode, quantity, { unitCost: 2 })])).status, 201)
  return itemCode
}

export async function verified(t: Test, { manager }: Context): Promise<void> {
  t.match((await manager.get('/api/ledger/verify')).body, { ok: true, mismatches: [] })
}

/** The whole service on an empty database, and those who book. */
export async function openLedger(t: Test, dialect: Dialect): Promise<Context> {
  const app = await buildApp(t, { dialect })
  const tenant = await app.getDecorator<Tenants>('tenants').get('main')
  return { app, staff: client(app, 'staff'), manager: client(app, 'manager'), tenant }
}
