/**
 * Makes the demo's data from the UCI data set Online Retail: the rules are in demo/README.md.
 *
 * usage: node scripts/make-demo-data.mjs <online_retail.csv.gz>
 * Source columns: InvoiceNo, StockCode, Description, Quantity, InvoiceDate (YYYY-MM-DD HH:MM), UnitPrice; others are ignored.
 */
import { createReadStream, mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createGunzip, gzipSync } from 'node:zlib'
import { parse } from 'csv-parse'

const ITEMS_KEPT = 300
const COST_SHARE_OF_PRICE = 0.6

/** Goods carry a code of five digits and perhaps letters; the rest is postage, fees, discounts, vouchers and samples. */
const GOODS_CODE = /^\d{5}[A-Z]*$/

/** The first row of which a word or phrase occurs in the description names the category. */
const CATEGORIES = [
  ['signs', 'SIGN'],
  ['lighting', 'T-LIGHT|LIGHT|LIGHTS|LANTERN|CANDLES|CANDLEHOLDER'],
  ['bags', 'BAG|SHOPPER|MINI CASES|WALLET|UMBRELLA|PARASOL'],
  ['party', 'PARTY|BUNTING|NAPKINS|PAPER PLATES|PAPER CUPS|PARASOLS|PAPER CHAIN|TISSUES|DOILIES'],
  [
    'kitchen',
    'CAKE|CAKESTAND|BAKING|COOKIE|JELLY|JAM|RECIPE|KITCHEN SCALES|SPOONS|BREAD|OVEN|APRON|TEA|TEACUP|MUG|CUP|BOWL|BOWLS|' +
      'PLATE|JUG|CUTLERY|TIN|TINS|POPCORN|PLACE SETTING|LUNCH BOX|SNACK BOXES|FOOD CONTAINER'
  ],
  [
    'toys and crafts',
    'DOLL|PLAYHOUSE|GAME|SNAP CARDS|DOMINOES|SKITTLES|SPINNING TOPS|SKIPPING ROPE|ROUNDERS|SNAKES & LADDERS|GLIDERS|' +
      'HARMONICA|BABUSHKA|FELTCRAFT|KNITTING|SEWING|MODELLING CLAY|PAINT SET|TOY'
  ],
  [
    'stationery',
    'CARD|NOTEBOOK|NOTEBOOKS|STATIONERY|PENCILS|CRAYONS|CHALK|COLOURING|CHALKBOARD|BLACK BOARD|MEMO BOARD|WRAP|RIBBON|RIBBONS'
  ],
  [
    'home',
    'DOORMAT|CLOCK|FRAME|DRAWER|CABINET|HOOK|RACK|CHEST|BOX|HOT WATER BOTTLE|CUSHION|PEGS|TRINKET POT|MONEY BANK|LADDER|KEY FOB'
  ],
  ['decoration', 'HEART|HEARTS|DECORATION|ORNAMENT|BUILDING BLOCK|WICKER|PAINTED METAL|FAN']
].map(([category, words]) => ({ category, pattern: new RegExp(`(?<![A-Z])(?:${words})(?![A-Z])`) }))

const categoryOf = (name) => CATEGORIES.find(({ pattern }) => pattern.test(name))?.category ?? 'other'

function median(numbers) {
  const sorted = numbers.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

function mostFrequent(values) {
  const counts = new Map()
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1)
  return [...counts].sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1))[0]?.[0]
}

/** A return is booked on an invoice C…; negative lines elsewhere, and lines without a price, are stock corrections. */
function kindOf({ quantity, price, invoice }) {
  if (price <= 0) return 'correction'
  if (quantity > 0) return 'sale'
  return quantity < 0 && invoice.startsWith('C') ? 'return' : 'correction'
}

async function readGoods(file) {
  const items = new Map()
  const counts = { lines: 0, notGoods: 0 }
  const rows = createReadStream(file)
    .pipe(createGunzip())
    .pipe(parse({ columns: true, bom: true }))
  for await (const row of rows) {
    counts.lines += 1
    // Some lines write the letter of a code in lower case: 85123a is 85123A.
    const code = row.StockCode.trim().toUpperCase()
    if (!GOODS_CODE.test(code)) {
      counts.notGoods += 1
      continue
    }
    const line = {
      code,
      invoice: row.InvoiceNo,
      quantity: Number(row.Quantity),
      price: Number(row.UnitPrice),
      at: row.InvoiceDate
    }
    if (!items.has(code)) items.set(code, { code, names: [], lines: [], saleDays: new Set() })
    const item = items.get(code)
    item.lines.push({ ...line, kind: kindOf(line) })
    const name = row.Description.trim().replace(/\s+/g, ' ')
    if (name !== '' && name !== 'NA' && item.lines.at(-1).kind === 'sale') item.names.push(name)
    if (item.lines.at(-1).kind === 'sale') item.saleDays.add(line.at.slice(0, 10))
  }
  return { items, counts }
}

const csvField = (value) =>
  /[",\r\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value)

function writeCsv(file, header, rows) {
  const text = [header, ...rows].map((row) => `${row.map(csvField).join(',')}\n`).join('')
  const bytes = gzipSync(text, { level: 9 })
  writeFileSync(file, bytes)
  process.stdout.write(`${file}: ${rows.length} rows, ${bytes.length} bytes\n`)
}

const source = process.argv[2]
if (!source) {
  process.stderr.write('usage: node scripts/make-demo-data.mjs <online_retail.csv.gz>\n')
  process.exit(2)
}
const folder = join(dirname(dirname(fileURLToPath(import.meta.url))), 'demo', 'data')
mkdirSync(folder, { recursive: true })

const { items, counts } = await readGoods(source)
const kept = [...items.values()]
  .sort((a, b) => b.saleDays.size - a.saleDays.size || (a.code < b.code ? -1 : 1))
  .slice(0, ITEMS_KEPT)
  .sort((a, b) => (a.code < b.code ? -1 : 1))
const lines = kept.flatMap((item) => item.lines)
// The sort is stable: lines of one minute stay in the order of the source.
const movements = lines
  .filter(({ kind }) => kind !== 'correction')
  .sort((a, b) => (a.at < b.at ? -1 : a.at > b.at ? 1 : 0))

writeCsv(
  join(folder, 'items.csv.gz'),
  ['itemCode', 'name', 'category', 'unit', 'unitCost'],
  kept.map((item) => {
    const name = mostFrequent(item.names)
    const prices = item.lines.filter(({ kind }) => kind === 'sale').map(({ price }) => price)
    return [item.code, name, categoryOf(name), 'each', (COST_SHARE_OF_PRICE * median(prices)).toFixed(2)]
  })
)
writeCsv(
  join(folder, 'sales.csv.gz'),
  ['itemCode', 'quantity', 'occurredAt', 'reference', 'unitPrice'],
  movements.map(({ code, quantity, at, invoice, price }) => [
    code,
    quantity,
    `${at.replace(' ', 'T')}:00Z`,
    invoice,
    price
  ])
)
const sum = (kind) => lines.filter((line) => line.kind === kind).length
process.stdout.write(
  `${counts.lines} source lines, ${counts.notGoods} not goods, ${items.size} goods; kept ${kept.length} goods: ` +
    `${sum('sale')} sales, ${sum('return')} returns; ${sum('correction')} corrections left out; ` +
    `fewest sale days ${Math.min(...kept.map(({ saleDays }) => saleDays.size))}\n`
)
