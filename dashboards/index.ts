import { database } from './database.js'
import { http } from './http.js'
import { inventoryOverview } from './inventory-overview.js'
import { models } from './models.js'
import { nodes } from './nodes.js'
import type { Dashboard } from './panel.js'
import { runtime } from './runtime.js'
import { security } from './security.js'

export const DASHBOARDS: readonly Dashboard[] = [inventoryOverview, database, models, http, security, runtime, nodes]
