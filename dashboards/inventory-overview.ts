import {
  bars,
  type Dashboard,
  falling,
  MUST_BE_ZERO,
  NEUTRAL,
  quantiles,
  query,
  rateOf,
  rising,
  share,
  stat,
  timeseries,
  totalRateOf
} from './panel.js'

export const inventoryOverview: Dashboard = {
  uid: 'inventory-overview',
  title: ['Inventory overview', 'Stock : vue d’ensemble'],
  about: [
    'What is in stock, what moves, and whether the ledger holds. Figures of stock are the same from every node.',
    'Ce qui est en stock, ce qui bouge, et si le registre est juste. Les chiffres du stock sont les mêmes de chaque nœud.'
  ],
  rows: [
    {
      title: ['Stock', 'Stock'],
      panels: [
        stat(
          ['Active items', 'Articles actifs'],
          ['Items that are not archived, all tenants.', 'Articles non archivés, tous locataires confondus.'],
          'short',
          query('sum(max by (status) (inventory_items{$F}))'),
          { levels: NEUTRAL }
        ),
        stat(
          ['Stock value', 'Valeur du stock'],
          [
            'At moving average cost, in major units of the currency that costs are entered in.',
            'Au coût moyen pondéré, en unités principales de la monnaie dans laquelle les coûts sont saisis.'
          ],
          'short',
          query('max(inventory_stock_value{$F})'),
          { levels: NEUTRAL, decimals: 0, runbooks: ['StockValueJump'] }
        ),
        stat(
          ['Out of stock', 'En rupture'],
          ['Items of which nothing is available.', 'Articles dont rien n’est disponible.'],
          'short',
          query('max(inventory_items{$F,status="out"})'),
          { levels: rising(1, 20), runbooks: ['OutOfStockSurge'] }
        ),
        stat(
          ['Low stock', 'Stock bas'],
          ['Items at their reorder point or below it.', 'Articles au point de commande ou au-dessous.'],
          'short',
          query('max(inventory_items{$F,status="low"})'),
          { levels: rising(10, 50), runbooks: ['LowStockSurge'] }
        ),
        stat(
          ['Expired lots', 'Lots périmés'],
          ['Lots in stock whose date has passed.', 'Lots en stock dont la date est passée.'],
          'short',
          query('max(inventory_expiring_lots{$F,window="expired"})'),
          { levels: MUST_BE_ZERO }
        ),
        stat(
          ['Ledger mismatches', 'Écarts du registre'],
          [
            'Balances, totals and values that the last proof found to differ from the moves. It must be 0.',
            'Soldes, totaux et valeurs que la dernière preuve a trouvés différents des mouvements. Ce doit être 0.'
          ],
          'short',
          query('max(inventory_ledger_mismatches{$F})'),
          { levels: MUST_BE_ZERO, runbooks: ['LedgerImbalance'] }
        ),
        bars(
          ['Items by status', 'Articles par état'],
          [
            'in: enough; low: at the reorder point; out: nothing available; over: more than the par level.',
            'in : assez ; low : au point de commande ; out : rien de disponible ; over : plus que le niveau voulu.'
          ],
          'short',
          query('max by (status) (inventory_items{$F})', '{{status}}'),
          { levels: NEUTRAL, width: 8 }
        ),
        bars(
          ['Lots that expire', 'Lots à échéance'],
          [
            'Lots in stock that have expired, or will within 7, 30 or 90 days; longer windows include shorter ones.',
            'Lots en stock périmés, ou qui le seront dans 7, 30 ou 90 jours ; une fenêtre longue comprend les plus courtes.'
          ],
          'short',
          query('max by (window) (inventory_expiring_lots{$F})', '{{window}}'),
          { levels: rising(1, 10), width: 8 }
        ),
        timeseries(
          ['Reservations', 'Réservations'],
          [
            'Open reservations, and those whose time has run out and that are about to be voided.',
            'Réservations ouvertes, et celles dont le délai est passé et qui vont être annulées.'
          ],
          'short',
          query('max by (state) (inventory_reservations{$F})', '{{state}}')
        )
      ]
    },
    {
      title: ['Movements', 'Mouvements'],
      panels: [
        timeseries(
          ['Transactions by type', 'Transactions par type'],
          ['Ledger transactions posted a second.', 'Transactions du registre passées par seconde.'],
          'ops',
          query(rateOf('inventory_stock_movements_total', 'type'), '{{type}}'),
          { stacked: true, runbooks: ['MovementsStopped'] }
        ),
        timeseries(
          ['Units by type', 'Unités par type'],
          [
            'Units moved a second, each in the base unit of its item.',
            'Unités déplacées par seconde, chacune dans l’unité de base de son article.'
          ],
          'short',
          query(rateOf('inventory_moved_units_total', 'type'), '{{type}}'),
          { stacked: true }
        ),
        timeseries(
          ['Transactions by source', 'Transactions par source'],
          ['By the API, or by an uploaded file.', 'Par l’API ou par un fichier envoyé.'],
          'ops',
          query(rateOf('inventory_stock_movements_total', 'source'), '{{source}}'),
          { stacked: true }
        ),
        timeseries(
          ['Refused transactions', 'Transactions refusées'],
          [
            'Transactions that a rule of the ledger refused, by rule.',
            'Transactions qu’une règle du registre a refusées, par règle.'
          ],
          'ops',
          query(rateOf('inventory_rejected_movements_total', 'reason'), '{{reason}}'),
          { stacked: true, runbooks: ['RejectedMovementsHigh'] }
        ),
        stat(
          ['Share refused', 'Part refusée'],
          [
            'Refused transactions of all, over the last minutes.',
            'Transactions refusées parmi toutes, sur les dernières minutes.'
          ],
          'percentunit',
          query(
            share(
              totalRateOf('inventory_rejected_movements_total'),
              `${totalRateOf('inventory_rejected_movements_total')} + ${totalRateOf('inventory_stock_movements_total')}`
            )
          ),
          { levels: rising(0.05, 0.2), decimals: 1, width: 4, runbooks: ['RejectedMovementsHigh'] }
        ),
        stat(
          ['Lines per transaction', 'Lignes par transaction'],
          [
            'How many lines a posted transaction has on average.',
            'Combien de lignes une transaction passée a en moyenne.'
          ],
          'short',
          query(share(totalRateOf('inventory_movement_lines_total'), totalRateOf('inventory_stock_movements_total'))),
          { levels: NEUTRAL, decimals: 1, width: 4 }
        ),
        timeseries(
          ['Rows imported', 'Lignes importées'],
          ['Rows of uploaded files taken in a second.', 'Lignes de fichiers envoyés reprises par seconde.'],
          'short',
          query(rateOf('inventory_import_rows_total', 'kind'), '{{kind}}'),
          { stacked: true, width: 8 }
        )
      ]
    },
    {
      title: ['Ledger and service', 'Registre et service'],
      panels: [
        stat(
          ['Ledger proved', 'Registre vérifié'],
          [
            'How long ago a process last recomputed every balance from the moves; it is proved every six hours.',
            'Depuis quand un processus a recalculé chaque solde d’après les mouvements ; la preuve est faite toutes les six heures.'
          ],
          's',
          query('time() - max(inventory_ledger_last_verified_timestamp_seconds{$F} > 0) or on() vector(0)'),
          { levels: rising(43_200, 50_400), width: 6, runbooks: ['LedgerProofStale'] }
        ),
        stat(
          ['Proof took', 'Durée de la preuve'],
          ['How long the last proof of a ledger took.', 'Combien de temps la dernière preuve d’un registre a pris.'],
          's',
          query('max(inventory_ledger_proof_duration_seconds{$F})'),
          { levels: rising(60, 600), width: 6 }
        ),
        stat(
          ['Answered without error', 'Réponses sans erreur'],
          [
            'Requests that were not answered by a 5xx, over the shown range. The objective is 99.95 %.',
            'Requêtes qui n’ont pas reçu de 5xx, sur la période affichée. L’objectif est de 99,95 %.'
          ],
          'percentunit',
          query(
            '1 - (sum(increase(http_requests_total{$F,code=~"5.."}[$__range])) or on() vector(0)) / (sum(increase(http_requests_total{$F}[$__range])) > 0)'
          ),
          { levels: falling(0.9995, 0.9999), decimals: 3, width: 6, runbooks: ['HttpErrorBudgetBurnPageFast'] }
        ),
        stat(
          ['Open anomalies', 'Anomalies ouvertes'],
          [
            'Unusual use that nobody has resolved yet.',
            'Consommations inhabituelles que personne n’a encore traitées.'
          ],
          'short',
          query('sum(max by (severity) (anomaly_open{$F}))'),
          { levels: rising(20, 100), width: 6, runbooks: ['AnomalyBacklog'] }
        ),
        timeseries(
          ['Request latency', 'Latence des requêtes'],
          [
            'All routes. The objectives: 95 % within 87 ms, 99 % within 250 ms.',
            'Toutes les routes. Les objectifs : 95 % en moins de 87 ms, 99 % en moins de 250 ms.'
          ],
          's',
          quantiles('http_request_duration_seconds'),
          { levels: rising(0.087, 0.25), width: 12, runbooks: ['HttpLatencyBudgetBurnPageFast'] }
        ),
        timeseries(
          ['Requests', 'Requêtes'],
          [
            'Requests a second, by the code that they were answered with.',
            'Requêtes par seconde, par code de réponse.'
          ],
          'reqps',
          query(rateOf('http_requests_total', 'code'), '{{code}}'),
          { stacked: true, width: 12 }
        )
      ]
    }
  ]
}
