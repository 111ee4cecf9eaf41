import t from 'tap'
import { buildApp, client, eachDialect } from './helper.js'

await eachDialect(t, async (t, dialect) => {
  const app = await buildApp(t, { dialect })
  const manager = client(app, 'manager')
  const made = await manager.post('/api/inventory', { itemCode: 'A-1', name: 'Nails', unit: 'each' })
  t.equal(made.status, 201)
  t.equal((await manager.get('/api/inventory/A-1')).body.name, 'Nails')
  t.equal((await manager.get('/api/inventory/A-2')).status, 404)
  t.equal((await manager.get('/nowhere')).status, 404)
})
