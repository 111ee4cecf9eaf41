import { once } from 'node:events'
import { type AddressInfo, connect } from 'node:net'
import type { FastifyInstance } from 'fastify'
import type { Auth } from '../plugins/contracts.js'
import type { Role } from '../schemas/common.js'

export const bearer = (app: FastifyInstance, role: Role = 'admin') => ({
  authorization: `Bearer ${app.getDecorator<Auth>('auth').sign({ subject: 'test', role, tenant: 'main' }, 600)}`
})
export const json = { 'content-type': 'application/json' }
export const item = (itemCode: string) => ({ itemCode, name: `Item ${itemCode}`, unit: 'each' })

/** Sends bytes as they are and resolves to all that comes back before the server closes, or 2 s pass. */
export async function raw(app: FastifyInstance, text: string): Promise<string> {
  const { port }: AddressInfo = addressOf(app)
  const socket = connect(port, '127.0.0.1')
  const chunks: Buffer[] = []
  socket.on('data', (chunk) => void chunks.push(chunk))
  socket.setTimeout(2_000, () => socket.destroy())
  socket.on('error', () => {})
  socket.write(text)
  await once(socket, 'close')
  return Buffer.concat(chunks).toString()
}

function addressOf(app: FastifyInstance): AddressInfo {
  const address = app.server.address()
  if (address === null || typeof address === 'string') throw new Error('the app does not listen')
  return address
}
