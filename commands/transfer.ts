import { createReadStream, statSync } from 'node:fs'
import { Argument, type Command, InvalidArgumentError, Option } from 'commander'
import { follow, type JobView, tenantName, tenantOption, tokenFor, withService } from './service.js'
import { fail, type Terminal } from './terminal.js'

interface TransferOptions {
  tenant?: string
  map?: string
  type?: string
  dryRun?: boolean
  format?: string
}

async function importFile(
  terminal: Terminal,
  kind: string,
  file: string,
  { tenant, map, type, dryRun }: TransferOptions
): Promise<void> {
  if (!statSync(file, { throwIfNoEntry: false })?.isFile()) throw new InvalidArgumentError(`there is no file ${file}`)
  await withService(terminal, async (service, config) => {
    const authorization = `Bearer ${await tokenFor(config, 'admin', tenantName(config, tenant), 86_400)}`
    const query: Record<string, string> = {}
    if (map !== undefined) query.map = map
    if (type !== undefined) query.type = type
    if (dryRun === true) query.dryRun = 'true'
    const answer = await service.inject({
      method: 'POST',
      url: `/api/import/${encodeURIComponent(kind)}`,
      query,
      headers: {
        authorization,
        'accept-language': terminal.language(),
        'content-type': /\.(nd)?jsonl?(\.gz)?$/.test(file) ? 'application/x-ndjson' : 'text/csv'
      },
      payload: createReadStream(file)
    })
    if (answer.statusCode >= 400) fail(answer.json())
    if (answer.statusCode === 200) return terminal.print(JSON.stringify(answer.json(), null, 2))
    const job = await follow(terminal, service, authorization, answer.json<JobView>())
    terminal.print(JSON.stringify(job.result, null, 2))
  })
}

async function exportFile(
  terminal: Terminal,
  kind: string,
  { tenant, format = 'csv' }: TransferOptions
): Promise<void> {
  await withService(terminal, async (service, config) => {
    const authorization = `Bearer ${await tokenFor(config, 'admin', tenantName(config, tenant), 3600)}`
    const answer = await service.inject({
      url: `/api/export/${encodeURIComponent(kind)}`,
      query: { format },
      headers: { authorization },
      payloadAsStream: true
    })
    if (answer.statusCode >= 400) fail({ detail: `the service answered ${answer.statusCode}` })
    for await (const chunk of answer.stream()) terminal.stdout.write(chunk)
  })
}

export function addTransfer(cli: Command, terminal: Terminal): void {
  cli
    .command('import')
    .description('import a CSV or NDJSON file (plain or gzip)')
    .addArgument(new Argument('<kind>').choices(['items', 'movements']))
    .argument('<file>')
    .option('--map <pairs>', 'field:Header pairs, such as itemCode:StockCode,quantity:Quantity')
    .option('--type <type>', 'the type of every movement row that has none')
    .option('--dry-run', 'say what would happen, store nothing')
    .addOption(tenantOption())
    .action((kind: string, file: string, options: TransferOptions) => importFile(terminal, kind, file, options))
  cli
    .command('export')
    .description('print items, movements or stock')
    .addArgument(new Argument('<kind>').choices(['items', 'movements', 'stock']))
    .addOption(new Option('--format <format>').choices(['csv', 'ndjson']).default('csv'))
    .addOption(tenantOption())
    .action((kind: string, options: TransferOptions) => exportFile(terminal, kind, options))
}
