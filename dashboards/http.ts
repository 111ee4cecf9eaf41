import {
  bars,
  type Dashboard,
  falling,
  NEUTRAL,
  quantile,
  quantiles,
  query,
  rateOf,
  rising,
  stat,
  timeseries,
  totalRateOf
} from './panel.js'

/** Of what `alerts/slo.yml` records: shares that are over all instances already. */
const recorded = (name: string, window: string) => `max(inventory:${name}:ratio_rate${window}{job=~"$job"})`
const burn = (name: string, allowed: number) =>
  ['5m', '1h', '6h', '3d'].map((window) => query(`${recorded(name, window)} / ${allowed}`, window))

export const http: Dashboard = {
  uid: 'inventory-http',
  title: ['HTTP and objectives', 'HTTP et objectifs'],
  about: [
    'Requests, how fast and how well they are answered, and how much of the error budgets is used. A point on a latency panel is one request: it leads to its trace.',
    'Les requêtes, la rapidité et la qualité des réponses, et ce qui est consommé des budgets d’erreurs. Un point d’un panneau de latence est une requête : il mène à sa trace.'
  ],
  rows: [
    {
      title: ['Objectives', 'Objectifs'],
      panels: [
        stat(
          ['Available, 30 days', 'Disponible, 30 jours'],
          [
            'Requests not answered by a 5xx. The objective is 99.95 %.',
            'Requêtes sans réponse 5xx. L’objectif est de 99,95 %.'
          ],
          'percentunit',
          query(`1 - ${recorded('http_error', '30d')}`),
          { levels: falling(0.9995, 0.9999), decimals: 3, runbooks: ['HttpErrorBudgetBurnTicketSlow'] }
        ),
        stat(
          ['Within 250 ms, 30 days', 'En 250 ms, 30 jours'],
          [
            'The objective is 99 %. Imports, exports, proofs and trainings are not counted.',
            'L’objectif est de 99 %. Imports, exports, preuves et entraînements ne comptent pas.'
          ],
          'percentunit',
          query(`1 - ${recorded('http_slow', '30d')}`),
          { levels: falling(0.99, 0.995), decimals: 2, runbooks: ['HttpLatencyBudgetBurnTicketSlow'] }
        ),
        stat(
          ['Within 87 ms, 30 days', 'En 87 ms, 30 jours'],
          ['The objective is 95 %.', 'L’objectif est de 95 %.'],
          'percentunit',
          query(`1 - ${recorded('http_over_87ms', '30d')}`),
          { levels: falling(0.95, 0.97), decimals: 2, runbooks: ['HttpTypicalLatencyBudgetBurn'] }
        ),
        timeseries(
          ['Error budget burn', 'Consommation du budget d’erreurs'],
          [
            'How many times as fast as allowed errors use the budget; 1 uses it up in 30 days. Pages at 14.4 over 5 minutes and an hour.',
            'Combien de fois trop vite les erreurs consomment le budget ; à 1 il dure exactement 30 jours. Appelle à 14,4 sur 5 minutes et une heure.'
          ],
          'none',
          burn('http_error', 0.0005),
          {
            levels: rising(1, 14.4),
            decimals: 1,
            width: 6,
            runbooks: ['HttpErrorBudgetBurnPageFast', 'HttpErrorBudgetBurnPageSlow']
          }
        ),
        timeseries(
          ['Latency budget burn', 'Consommation du budget de latence'],
          ['The same for requests of more than 250 ms.', 'De même pour les requêtes de plus de 250 ms.'],
          'none',
          burn('http_slow', 0.01),
          {
            levels: rising(1, 14.4),
            decimals: 1,
            width: 6,
            runbooks: ['HttpLatencyBudgetBurnPageFast', 'HttpLatencyBudgetBurnPageSlow']
          }
        )
      ]
    },
    {
      title: ['Traffic', 'Trafic'],
      panels: [
        timeseries(
          ['Requests by code', 'Requêtes par code'],
          ['Answers a second.', 'Réponses par seconde, par code.'],
          'reqps',
          query(rateOf('http_requests_total', 'code'), '{{code}}'),
          { stacked: true }
        ),
        timeseries(
          ['Requests by method', 'Requêtes par méthode'],
          ['Answers a second.', 'Réponses par seconde, par méthode.'],
          'reqps',
          query(rateOf('http_requests_total', 'method'), '{{method}}'),
          { stacked: true }
        ),
        timeseries(
          ['Server errors', 'Erreurs du serveur'],
          [
            'Requests answered by a 5xx, and requests whose client left before the answer.',
            'Requêtes qui ont reçu un 5xx, et requêtes dont le client est parti avant la réponse.'
          ],
          'reqps',
          [
            query(`${totalRateOf('http_requests_total', ',code=~"5.."')} or on() vector(0)`, '5xx'),
            query(totalRateOf('http_requests_aborted_total'), 'left')
          ],
          { runbooks: ['ClientsGivingUp', 'HttpErrorBudgetBurnPageFast'] }
        ),
        timeseries(
          ['Being served', 'En cours'],
          [
            'Requests being served, and open connections, idle ones included.',
            'Requêtes en train d’être servies, et connexions ouvertes, y compris inactives.'
          ],
          'short',
          [query('sum(http_requests_in_flight{$F})', 'requests'), query('sum(http_connections{$F})', 'connections')],
          { runbooks: ['RequestsPilingUp'] }
        ),
        bars(
          ['Busiest routes', 'Routes les plus demandées'],
          ['Requests a second, the ten with the most.', 'Requêtes par seconde, les dix routes les plus demandées.'],
          'reqps',
          query(
            'topk(10, sum by (method, route) (rate(http_requests_total{$F}[$__rate_interval])))',
            '{{method}} {{route}}'
          ),
          { levels: NEUTRAL, decimals: 2 }
        ),
        bars(
          ['Routes that refuse', 'Routes qui refusent'],
          [
            'Requests answered by a 4xx a second, the ten with the most.',
            'Requêtes qui reçoivent un 4xx par seconde, les dix routes qui en donnent le plus.'
          ],
          'reqps',
          query(
            'topk(10, sum by (code, route) (rate(http_requests_total{$F,code=~"4.."}[$__rate_interval]))) or on() vector(0)',
            '{{code}} {{route}}'
          ),
          { levels: rising(1, 10), decimals: 2 }
        )
      ]
    },
    {
      title: ['Latency', 'Latence'],
      panels: [
        timeseries(
          ['Latency', 'Latence'],
          ['All routes.', 'Toutes les routes.'],
          's',
          quantiles('http_request_duration_seconds'),
          {
            levels: rising(0.087, 0.25),
            width: 12,
            runbooks: ['HttpLatencyBudgetBurnPageFast']
          }
        ),
        timeseries(
          ['Latency p95 by method', 'Latence p95 par méthode'],
          ['All routes of a method.', 'Toutes les routes d’une méthode.'],
          's',
          query(quantile(0.95, 'http_request_duration_seconds', 'method'), '{{method}}'),
          { width: 12 }
        ),
        bars(
          ['Slowest routes', 'Routes les plus lentes'],
          ['The 95th percentile, the ten with the longest.', 'Le 95e centile, les dix routes les plus longues.'],
          's',
          query(
            `topk(10, ${quantile(0.95, 'http_request_duration_seconds', 'method, route')} >= 0)`,
            '{{method}} {{route}}'
          ),
          { levels: rising(0.087, 0.25), width: 12 }
        ),
        bars(
          ['Most time spent', 'Temps total'],
          [
            'Seconds of answering in a second, the ten routes with the most: where making faster pays.',
            'Secondes de réponse par seconde, les dix routes qui en prennent le plus : là où accélérer rapporte.'
          ],
          's',
          query(
            'topk(10, sum by (method, route) (rate(http_request_duration_seconds_sum{$F}[$__rate_interval])))',
            '{{method}} {{route}}'
          ),
          { levels: NEUTRAL, width: 12 }
        )
      ]
    },
    {
      title: ['What is refused and repeated', 'Refus et répétitions'],
      panels: [
        timeseries(
          ['Refused input', 'Entrées refusées'],
          [
            'Requests that do not fit the schema of their route, by part.',
            'Requêtes qui ne suivent pas le schéma de leur route, par partie.'
          ],
          'reqps',
          query(rateOf('http_validation_failures_total', 'part'), '{{part}}'),
          { stacked: true }
        ),
        timeseries(
          ['Rate limited', 'Limites de débit'],
          [
            'Requests refused because their caller made too many, by class.',
            'Requêtes refusées parce que leur auteur en a fait trop, par classe.'
          ],
          'reqps',
          query(rateOf('http_rate_limited_requests_total', 'limiter'), '{{limiter}}'),
          { stacked: true, runbooks: ['RateLimitingHigh'] }
        ),
        timeseries(
          ['Idempotency keys', 'Clés d’idempotence'],
          [
            'replayed: a retry was answered again; conflict: a key came back with another body.',
            'replayed : un nouvel essai a reçu la même réponse ; conflict : une clé est revenue avec un autre corps.'
          ],
          'reqps',
          query(rateOf('http_idempotency_outcomes_total', 'outcome'), '{{outcome}}'),
          { stacked: true }
        ),
        timeseries(
          ['Size of answers', 'Taille des réponses'],
          [
            'As sent; streamed answers are left out.',
            'Telles qu’envoyées ; les réponses en flux sont laissées de côté.'
          ],
          'bytes',
          [
            query(quantile(0.5, 'http_response_size_bytes'), 'p50'),
            query(quantile(0.95, 'http_response_size_bytes'), 'p95')
          ],
          { width: 12 }
        ),
        timeseries(
          ['Size of requests', 'Taille des requêtes'],
          ['Bodies received.', 'Corps reçus.'],
          'bytes',
          [
            query(quantile(0.5, 'http_request_size_bytes'), 'p50'),
            query(quantile(0.95, 'http_request_size_bytes'), 'p95')
          ],
          { width: 12 }
        )
      ]
    }
  ]
}
