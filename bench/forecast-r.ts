import { spawnSync } from 'node:child_process'
import type { Dataset } from './forecast-data.js'

/**
 * Point forecasts of R's `forecast` (ets, auto.arima, thetaf and their mean), with the processor time of each; empty when
 * Rscript or the package is not here. Negative forecasts become zero, as ours do.
 */
export function rForecasts(set: Dataset): { label: string; rows: number[][]; milliseconds: number }[] {
  const period = set.frequency === 'month' ? 12 : set.frequency === 'day' ? 7 : 1
  const script = `suppressMessages(library(forecast)); con <- file('stdin'); x <- readLines(con)
    for (l in x) { y <- ts(as.numeric(strsplit(l, ',')[[1]]), frequency = ${period})
      for (f in list(ets, auto.arima, thetaf)) { t <- sum(proc.time()[1:2])
        p <- tryCatch(as.numeric(if (identical(f, thetaf)) thetaf(y, h = ${set.horizon})$mean else forecast(f(y), h = ${set.horizon})$mean),
          error = function(e) rep(tail(y, 1), ${set.horizon}))
        cat(paste(c(1000 * (sum(proc.time()[1:2]) - t), pmax(p, 0)), collapse = ','), '\\n', sep = '') } }`
  const input = set.cases.map(({ train }) => train.join(',')).join('\n')
  const answer = spawnSync('Rscript', ['-e', script], { input, encoding: 'utf8', maxBuffer: 1 << 28 })
  if (answer.status !== 0) return []
  const rows = answer.stdout
    .trim()
    .split('\n')
    .map((line) => line.split(',').map(Number))
  const labels = ['R ets', 'R auto.arima', 'R thetaf']
  const peers = labels.map((label, m) => {
    const own = rows.filter((_, i) => i % 3 === m)
    return {
      label,
      rows: own.map((row) => row.slice(1)),
      milliseconds: own.reduce((sum, row) => sum + row[0]!, 0) / own.length
    }
  })
  const together = {
    label: 'R mean of 3',
    rows: peers[0]!.rows.map((row, i) =>
      row.map((_, k) => peers.reduce((sum, peer) => sum + peer.rows[i]![k]!, 0) / 3)
    ),
    milliseconds: peers.reduce((sum, peer) => sum + peer.milliseconds, 0)
  }
  return [...peers, together]
}
