import { bars, type Dashboard, MUST_BE_ONE, NEUTRAL, query, rising, stat, table, timeseries } from './panel.js'

const byInstance = (expr: string) => query(expr, '{{instance}}')

export const nodes: Dashboard = {
  uid: 'inventory-nodes',
  title: ['Nodes', 'Nœuds'],
  about: [
    'The processes beside each other: whether they are there, do alike work, and are the same program on the same schema.',
    'Les processus côte à côte : s’ils sont là, travaillent pareillement, et sont le même programme sur le même schéma.'
  ],
  rows: [
    {
      title: ['Which there are', 'Lesquels'],
      panels: [
        stat(
          ['Processes up', 'Processus présents'],
          ['Processes that Prometheus reaches.', 'Processus que Prometheus atteint.'],
          'short',
          query('sum(up{$F})'),
          { levels: NEUTRAL, runbooks: ['ServiceDown', 'ServiceAbsent'] }
        ),
        stat(
          ['Processes down', 'Processus absents'],
          ['Processes that it does not reach.', 'Processus qu’il n’atteint pas.'],
          'short',
          query('count(up{$F} == 0) or on() vector(0)'),
          { levels: rising(1, 1), runbooks: ['ServiceDown'] }
        ),
        stat(
          ['Versions', 'Versions'],
          [
            'Different versions that run: 1, and 2 while a new one is rolled out.',
            'Versions différentes en marche : 1, et 2 pendant le déploiement d’une nouvelle.'
          ],
          'short',
          query('count(count by (version) (app_build_info{$F}))'),
          { levels: rising(2, 3), runbooks: ['VersionsDiffer'] }
        ),
        stat(
          ['Restarts', 'Redémarrages'],
          ['Over the shown range.', 'Sur la période affichée.'],
          'short',
          query('sum(changes(process_start_time_seconds{$F}[$__range]))'),
          { levels: rising(1, 5), decimals: 0, runbooks: ['RestartLoop'] }
        ),
        stat(
          ['Ready', 'Prêts'],
          [
            'Whether each process takes requests: 0 while it drains.',
            'Si chaque processus prend des requêtes : 0 pendant qu’il se vide.'
          ],
          'short',
          byInstance('min by (instance) (app_ready{$F,check="lifecycle"})'),
          {
            levels: MUST_BE_ONE,
            words: [
              ['drains', 'se vide'],
              ['ready', 'prêt']
            ],
            width: 8,
            runbooks: ['DrainStuck']
          }
        ),
        table(
          ['Versions by process', 'Versions par processus'],
          ['What runs where.', 'Ce qui tourne où.'],
          'short',
          query('max by (instance, version) (app_build_info{$F})'),
          { width: 8 }
        ),
        bars(
          ['Running since', 'En marche depuis'],
          ['How long each process has been running.', 'Depuis quand chaque processus tourne.'],
          's',
          byInstance('time() - max by (instance) (process_start_time_seconds{$F})'),
          { levels: NEUTRAL, width: 8, runbooks: ['RestartLoop'] }
        ),
        bars(
          ['Start took', 'Durée du démarrage'],
          [
            'From the start of the process until it was ready, migrations included.',
            'Du lancement du processus jusqu’à ce qu’il soit prêt, migrations comprises.'
          ],
          's',
          byInstance('max by (instance) (app_start_duration_seconds{$F})'),
          { levels: rising(20, 60), width: 8 }
        )
      ]
    },
    {
      title: ['What they do', 'Leur travail'],
      panels: [
        timeseries(
          ['Requests', 'Requêtes'],
          [
            'Answered a second by each: alike where a balancer shares them out.',
            'Réponses par seconde de chacun : semblables là où un répartiteur les partage.'
          ],
          'reqps',
          byInstance('sum by (instance) (rate(http_requests_total{$F}[$__rate_interval]))'),
          { stacked: true }
        ),
        timeseries(
          ['Latency p95', 'Latence p95'],
          [
            'Of each: one that stands out has a cause of its own.',
            'De chacun : celui qui se détache a une cause à lui.'
          ],
          's',
          byInstance(
            'histogram_quantile(0.95, sum by (le, instance) (rate(http_request_duration_seconds_bucket{$F}[$__rate_interval])))'
          ),
          { levels: rising(0.087, 0.25) }
        ),
        timeseries(
          ['In flight', 'En cours'],
          ['Requests being served by each.', 'Requêtes en train d’être servies par chacun.'],
          'short',
          byInstance('sum by (instance) (http_requests_in_flight{$F})'),
          { runbooks: ['RequestsPilingUp'] }
        ),
        timeseries(
          ['Server errors', 'Erreurs du serveur'],
          ['Requests answered by a 5xx a second, by each.', 'Requêtes qui ont reçu un 5xx par seconde, par chacun.'],
          'reqps',
          byInstance(
            'sum by (instance) (rate(http_requests_total{$F,code=~"5.."}[$__rate_interval])) or 0 * sum by (instance) (rate(http_requests_total{$F}[$__rate_interval]))'
          )
        ),
        timeseries(
          ['Transactions', 'Transactions'],
          ['Committed a second by each.', 'Validées par seconde par chacun.'],
          'ops',
          byInstance('sum by (instance) (rate(db_transactions_total{$F,outcome="commit"}[$__rate_interval]))'),
          { stacked: true }
        ),
        timeseries(
          ['Jobs running', 'Tâches en cours'],
          ['Runs in progress in each.', 'Exécutions en cours dans chacun.'],
          'short',
          byInstance('sum by (instance) (job_runs_in_progress{$F})'),
          { stacked: true }
        )
      ]
    },
    {
      title: ['What they use', 'Leur consommation'],
      panels: [
        timeseries(
          ['CPU', 'CPU'],
          ['Cores in use by each.', 'Cœurs utilisés par chacun.'],
          'short',
          byInstance('sum by (instance) (rate(process_cpu_seconds_total{$F}[$__rate_interval]))'),
          { decimals: 2, runbooks: ['CpuSaturated'] }
        ),
        timeseries(
          ['Memory', 'Mémoire'],
          ['Resident memory of each.', 'Mémoire résidente de chacun.'],
          'bytes',
          byInstance('max by (instance) (process_resident_memory_bytes{$F})'),
          { runbooks: ['HeapNearLimit'] }
        ),
        timeseries(
          ['Connections to the database', 'Connexions à la base'],
          ['In use by each.', 'Utilisées par chacun.'],
          'short',
          byInstance('sum by (instance) (db_pool_connections{$F,state="active"})'),
          { runbooks: ['ConnectionPoolSaturated'] }
        ),
        timeseries(
          ['Exports by place', 'Exports par serveur'],
          [
            'Begun a second, by where they were read; 0 where there is no read replica.',
            'Commencés par seconde, selon l’endroit de la lecture ; 0 sans réplique en lecture.'
          ],
          'ops',
          query('sum by (place) (rate(db_reports_total{$F}[$__rate_interval]))', '{{place}}'),
          { width: 6, runbooks: ['ReplicaUnused'] }
        ),
        timeseries(
          ['Scrape takes', 'Durée de la collecte'],
          [
            'How long Prometheus waits for the metrics of each.',
            'Combien de temps Prometheus attend les métriques de chacun.'
          ],
          's',
          byInstance('max by (instance) (scrape_duration_seconds{$F})'),
          { levels: rising(0.5, 2), width: 6 }
        ),
        timeseries(
          ['Series', 'Séries'],
          ['That each tells; the program bounds them at 6,000.', 'Que chacun donne ; le programme les borne à 6 000.'],
          'short',
          byInstance('max by (instance) (scrape_samples_post_metric_relabeling{$F})'),
          { levels: rising(5_000, 6_000), width: 6 }
        ),
        timeseries(
          ['Changed by others', 'Changements des autres'],
          [
            'Cached answers dropped because another process changed what they show.',
            'Réponses en cache abandonnées parce qu’un autre processus a changé ce qu’elles montrent.'
          ],
          'ops',
          byInstance('sum by (instance) (rate(cache_invalidations_total{$F,reason="remote"}[$__rate_interval]))'),
          { width: 6 }
        )
      ]
    },
    {
      title: ['Processes of one node', 'Processus d’un nœud'],
      panels: [
        timeseries(
          ['Workers', 'Processus'],
          [
            'Of CLUSTER_WORKERS: wanted, running, and those whose metrics were in the scrape; 0 where there is one process.',
            'De CLUSTER_WORKERS : voulus, en marche, et ceux dont les métriques étaient dans la collecte ; 0 s’il n’y a qu’un processus.'
          ],
          'short',
          query('sum by (state) (cluster_workers{$F}) or on() vector(0)', '{{state}}'),
          { width: 8, runbooks: ['WorkerSilent'] }
        ),
        timeseries(
          ['Requests by worker', 'Requêtes par processus'],
          ['Answered a second by each process of a node.', 'Réponses par seconde de chaque processus d’un nœud.'],
          'reqps',
          query(
            'sum by (instance, worker) (rate(http_requests_total{$F,worker!=""}[$__rate_interval])) or on() vector(0)',
            '{{instance}} {{worker}}'
          ),
          { stacked: true, width: 8 }
        ),
        stat(
          ['Workers that are silent', 'Processus muets'],
          [
            'That are wanted and did not answer the scrape: they hang, are stopped, or do not start.',
            'Qui sont voulus et n’ont pas répondu à la collecte : ils sont bloqués, arrêtés, ou ne démarrent pas.'
          ],
          'short',
          query(
            'sum(cluster_workers{$F,state="wanted"} - ignoring (state) cluster_workers{$F,state="scraped"}) or on() vector(0)'
          ),
          { levels: rising(1, 1), decimals: 0, width: 4, runbooks: ['WorkerSilent'] }
        ),
        stat(
          ['Workers replaced', 'Processus remplacés'],
          [
            'That ended without being told to, over the shown range.',
            'Qui ont fini sans qu’on le leur dise, sur la période affichée.'
          ],
          'short',
          query('sum(increase(cluster_worker_exits_total{$F}[$__range])) or on() vector(0)'),
          { levels: rising(1, 5), decimals: 0, width: 4 }
        )
      ]
    }
  ]
}
