import {
  bars,
  type Dashboard,
  falling,
  gauge,
  MUST_BE_ONE,
  NEUTRAL,
  quantile,
  query,
  rateOf,
  rising,
  share,
  stat,
  table,
  timeseries,
  totalRateOf
} from './panel.js'

export const database: Dashboard = {
  uid: 'inventory-database',
  title: ['Database operations', 'Base de données'],
  about: [
    'Queries, transactions, space and the cache; SQLite and PostgreSQL side by side. What a server says of itself is the same from every node.',
    'Requêtes, transactions, espace et cache ; SQLite et PostgreSQL côte à côte. Ce qu’un serveur dit de lui-même est le même de chaque nœud.'
  ],
  rows: [
    {
      title: ['State', 'État'],
      panels: [
        stat(
          ['Database', 'Base de données'],
          ['Whether every process reaches its database.', 'Si chaque processus atteint sa base de données.'],
          'short',
          query('min by (dialect) (db_up{$F})', '{{dialect}}'),
          {
            levels: MUST_BE_ONE,
            words: [
              ['down', 'arrêté'],
              ['up', 'en marche']
            ],
            runbooks: ['DatabaseDown']
          }
        ),
        stat(
          ['Size', 'Taille'],
          ['Of all tenants.', 'De tous les locataires.'],
          'bytes',
          query('max by (dialect) (db_size_bytes{$F})', '{{dialect}}'),
          { levels: NEUTRAL }
        ),
        stat(
          ['Tenants', 'Locataires'],
          ['Tenants that a process has open.', 'Locataires qu’un processus a ouverts.'],
          'short',
          query('max(db_tenants{$F})'),
          {
            levels: NEUTRAL
          }
        ),
        stat(
          ['Slow queries', 'Requêtes lentes'],
          [
            'Queries of more than 250 ms, over the shown range.',
            'Requêtes de plus de 250 ms, sur la période affichée.'
          ],
          'short',
          query('sum(increase(db_slow_queries_total{$F}[$__range]))'),
          { levels: rising(10, 100), decimals: 0, runbooks: ['SlowQueriesFrequent'] }
        ),
        stat(
          ['Cache hits', 'Succès du cache'],
          [
            'Reads that were answered from the memory of the process.',
            'Lectures auxquelles la mémoire du processus a répondu.'
          ],
          'percentunit',
          query(
            share(
              totalRateOf('cache_operations_total', ',backend="memory",operation="get",result="hit"'),
              totalRateOf('cache_operations_total', ',backend="memory",operation="get"')
            )
          ),
          { levels: falling(0.5, 0.8), decimals: 1, runbooks: ['CacheHitRatioLow'] }
        ),
        stat(
          ['Redis', 'Redis'],
          [
            'Whether every process reaches its shared cache; without one they answer by themselves.',
            'Si chaque processus atteint son cache partagé ; sans lui, ils répondent seuls.'
          ],
          'short',
          query('min(cache_backend_up{$F,backend="redis"}) or on() vector(1)'),
          {
            levels: MUST_BE_ONE,
            words: [
              ['down', 'arrêté'],
              ['up', 'en marche']
            ],
            runbooks: ['CacheBackendDown']
          }
        )
      ]
    },
    {
      title: ['Queries and transactions', 'Requêtes et transactions'],
      panels: [
        timeseries(
          ['Queries', 'Requêtes'],
          ['Queries a second, by what they do.', 'Requêtes par seconde, selon ce qu’elles font.'],
          'ops',
          query(rateOf('db_query_duration_seconds_count', 'dialect, operation'), '{{dialect}} {{operation}}'),
          { stacked: true }
        ),
        timeseries(
          ['Query latency p99', 'Latence p99 des requêtes'],
          ['By engine and by what they do.', 'Par moteur et selon ce qu’elles font.'],
          's',
          query(quantile(0.99, 'db_query_duration_seconds', 'dialect, operation'), '{{dialect}} {{operation}}'),
          { runbooks: ['QueryLatencyHigh'] }
        ),
        timeseries(
          ['Query errors', 'Erreurs de requête'],
          [
            'A constraint is a rule that held; busy, deadlock and serialization are writers in each other’s way.',
            'Une contrainte est une règle qui a tenu ; busy, deadlock et serialization sont des écritures qui se gênent.'
          ],
          'ops',
          query(rateOf('db_query_errors_total', 'kind'), '{{kind}}'),
          { stacked: true, runbooks: ['DatabaseErrorRateHigh', 'DatabaseLockContention'] }
        ),
        timeseries(
          ['Transactions', 'Transactions'],
          [
            'A retry is one that PostgreSQL asked to be run again.',
            'Un retry est une transaction que PostgreSQL a demandé de refaire.'
          ],
          'ops',
          query(rateOf('db_transactions_total', 'dialect, outcome'), '{{dialect}} {{outcome}}'),
          { stacked: true, runbooks: ['TransactionRetriesHigh'] }
        ),
        timeseries(
          ['Transaction latency', 'Latence des transactions'],
          ['Waiting and the commit to disk included.', 'Attente et validation sur disque comprises.'],
          's',
          [
            query(quantile(0.5, 'db_transaction_duration_seconds', 'dialect'), '{{dialect}} p50'),
            query(quantile(0.99, 'db_transaction_duration_seconds', 'dialect'), '{{dialect}} p99')
          ],
          { runbooks: ['TransactionLatencyHigh'] }
        ),
        timeseries(
          ['Waiting p99', 'Attente p99'],
          [
            'For a connection of the pool (PostgreSQL), or for the turn to write (SQLite).',
            'D’une connexion du pool (PostgreSQL), ou du tour d’écrire (SQLite).'
          ],
          's',
          query(quantile(0.99, 'db_wait_seconds', 'dialect'), '{{dialect}}'),
          { levels: rising(0.1, 1), runbooks: ['ConnectionPoolSaturated'] }
        )
      ]
    },
    {
      title: ['SQLite', 'SQLite'],
      panels: [
        timeseries(
          ['Write-ahead log', 'Journal d’écriture'],
          [
            'It is written back at 32 MB; one that grows on has a reader that never ends.',
            'Il est reversé à 32 Mo ; s’il grandit encore, une lecture ne finit jamais.'
          ],
          'bytes',
          query('max by (instance) (db_wal_size_bytes{$F,dialect="sqlite"}) or on() vector(0)', '{{instance}}'),
          { levels: rising(128e6, 256e6), runbooks: ['WalTooLarge'] }
        ),
        timeseries(
          ['Transactions per commit', 'Transactions par validation'],
          [
            'How many transactions share one wait for the disk: more under load.',
            'Combien de transactions partagent une attente du disque : plus il y a de charge, plus elles sont nombreuses.'
          ],
          'short',
          query(
            share(totalRateOf('db_group_commit_transactions_sum'), totalRateOf('db_group_commit_transactions_count')),
            'mean'
          ),
          { decimals: 1 }
        ),
        timeseries(
          ['Unused space', 'Espace inutilisé'],
          ['What a VACUUM would give back.', 'Ce qu’un VACUUM rendrait.'],
          'bytes',
          query('max by (instance) (db_free_bytes{$F}) or on() vector(0)', '{{instance}}')
        )
      ]
    },
    {
      title: ['PostgreSQL', 'PostgreSQL'],
      panels: [
        timeseries(
          ['Pool', 'Pool'],
          [
            'Connections of each process, and the most that it may have.',
            'Connexions de chaque processus, et le nombre qu’il peut avoir.'
          ],
          'short',
          [
            query('sum by (state) (db_pool_connections{$F})', '{{state}}'),
            query('sum(db_pool_max_connections{$F})', 'max')
          ],
          { runbooks: ['ConnectionPoolSaturated'] }
        ),
        timeseries(
          ['Connections of the server', 'Connexions du serveur'],
          ['To this database, by whomever.', 'À cette base, de qui que ce soit.'],
          'short',
          [
            query('max by (state) (db_server_connections{$F}) or on() vector(0)', '{{state}}'),
            query('max(db_server_max_connections{$F}) or on() vector(0)', 'max')
          ]
        ),
        timeseries(
          ['Oldest transaction', 'Transaction la plus ancienne'],
          [
            'Until it ends, nothing that died since can be removed.',
            'Tant qu’elle dure, rien de ce qui est mort depuis ne peut être retiré.'
          ],
          's',
          query('max(db_server_oldest_transaction_age_seconds{$F}) or on() vector(0)', 'age'),
          { levels: rising(60, 600) }
        ),
        gauge(
          ['Blocks from memory', 'Blocs en mémoire'],
          [
            'Blocks that the server had in its memory, of those read over the shown range.',
            'Blocs que le serveur avait en mémoire, parmi ceux lus sur la période affichée.'
          ],
          'percentunit',
          query(
            'sum(increase(db_blocks_read_total{$F,source="memory"}[$__range])) / (sum(increase(db_blocks_read_total{$F}[$__range])) > 0) or on() vector(1)'
          ),
          { levels: falling(0.9, 0.97), max: 1, width: 6 }
        ),
        stat(
          ['Waiting for locks', 'En attente de verrous'],
          ['Sessions that wait for a lock of another.', 'Sessions qui attendent le verrou d’une autre.'],
          'short',
          query('max(db_server_lock_waiters{$F}) or on() vector(0)'),
          { levels: rising(1, 5), width: 6, runbooks: ['DatabaseLockContention'] }
        ),
        stat(
          ['Deadlocks', 'Interblocages'],
          [
            'Deadlocks that the server broke, over the shown range.',
            'Interblocages que le serveur a rompus, sur la période affichée.'
          ],
          'short',
          query('max(increase(db_server_deadlocks_total{$F}[$__range])) or on() vector(0)'),
          { levels: rising(1, 10), decimals: 0, width: 6, runbooks: ['DatabaseLockContention'] }
        ),
        stat(
          ['Temporary files', 'Fichiers temporaires'],
          [
            'Written by queries that wanted more memory than work_mem allows, over the shown range.',
            'Écrits par des requêtes qui voulaient plus de mémoire que work_mem n’en permet, sur la période affichée.'
          ],
          'bytes',
          query('max(increase(db_temporary_bytes_total{$F}[$__range])) or on() vector(0)'),
          { levels: rising(100e6, 1e9), width: 6 }
        ),
        timeseries(
          ['Checkpoints', 'Points de contrôle'],
          [
            'Of the PostgreSQL server, and write-ahead logs of SQLite written back, over ten minutes.',
            'Du serveur PostgreSQL, et journaux d’écriture de SQLite reversés, sur dix minutes.'
          ],
          'short',
          query('max by (dialect) (increase(db_checkpoints_total{$F}[10m]))', '{{dialect}}'),
          { width: 12 }
        ),
        table(
          ['Schema', 'Schéma'],
          [
            'The last migration of each module that a process knows; nodes of one version know the same.',
            'La dernière migration de chaque module qu’un processus connaît ; des nœuds de même version connaissent les mêmes.'
          ],
          'short',
          query('count by (module, migration) (db_schema_info{$F})'),
          { width: 12, runbooks: ['VersionsDiffer'] }
        )
      ]
    },
    {
      title: ['Cache', 'Cache'],
      panels: [
        timeseries(
          ['Reads by result', 'Lectures par résultat'],
          [
            'From the memory of the process, and from Redis where it was not there.',
            'De la mémoire du processus, et de Redis quand elle n’y était pas.'
          ],
          'ops',
          query(
            `sum by (backend, result) (rate(cache_operations_total{$F,operation="get"}[$__rate_interval]))`,
            '{{backend}} {{result}}'
          ),
          { stacked: true, runbooks: ['CacheHitRatioLow'] }
        ),
        timeseries(
          ['Invalidations', 'Invalidations'],
          [
            'write: changed here; remote: changed by another process; ttl: too old.',
            'write : modifié ici ; remote : modifié par un autre processus ; ttl : trop vieux.'
          ],
          'ops',
          query(rateOf('cache_invalidations_total', 'reason'), '{{reason}}'),
          { stacked: true }
        ),
        timeseries(
          ['Latency of Redis p99', 'Latence p99 de Redis'],
          ['Of the operations that leave the process.', 'Des opérations qui sortent du processus.'],
          's',
          query(quantile(0.99, 'cache_operation_duration_seconds', 'operation'), '{{operation}}')
        ),
        timeseries(
          ['Memory of the cache', 'Mémoire du cache'],
          ['Bytes held in each process.', 'Octets gardés dans chaque processus.'],
          'bytes',
          query('sum by (instance) (cache_size_bytes{$F})', '{{instance}}')
        ),
        bars(
          ['Entries', 'Entrées'],
          ['Answers held, by what they are about.', 'Réponses gardées, selon ce dont elles parlent.'],
          'short',
          query('sum by (cache) (cache_entries{$F})', '{{cache}}'),
          { levels: NEUTRAL }
        ),
        timeseries(
          ['Without Redis', 'Sans Redis'],
          [
            'Calls that Redis did not answer, by why, and entries evicted for space.',
            'Appels auxquels Redis n’a pas répondu, selon la raison, et entrées chassées faute de place.'
          ],
          'ops',
          [
            query(rateOf('redis_call_failures_total', 'reason'), '{{reason}}'),
            query(totalRateOf('cache_evictions_total'), 'evicted')
          ],
          { runbooks: ['CacheFallbacksHigh'] }
        )
      ]
    },
    {
      title: ['Mirror', 'Miroir'],
      panels: [
        stat(
          ['Mirror', 'Miroir'],
          ['Whether a copy on the other engine is kept.', 'Si une copie sur l’autre moteur est tenue.'],
          'short',
          query('max(mirror_on{$F}) or on() vector(0)'),
          {
            levels: NEUTRAL,
            words: [
              ['off', 'non'],
              ['on', 'oui']
            ],
            width: 6
          }
        ),
        stat(
          ['Rows that differ', 'Lignes différentes'],
          ['When every row was last compared.', 'Lors de la dernière comparaison de toutes les lignes.'],
          'short',
          query('max(mirror_parity_mismatched_rows{$F}) or on() vector(0)'),
          {
            levels: [
              [0, 'green'],
              [1, 'red']
            ],
            width: 6,
            runbooks: ['MirrorDiverged']
          }
        ),
        timeseries(
          ['Behind', 'Retard'],
          [
            'How long ago the copy was the same as its original.',
            'Depuis quand la copie n’est plus égale à son original.'
          ],
          's',
          query('max(mirror_lag_seconds{$F}) or on() vector(0)', 'lag'),
          { levels: rising(30, 300), width: 6, runbooks: ['MirrorLagging'] }
        ),
        timeseries(
          ['Rows copied', 'Lignes copiées'],
          [
            'Rows written to the copy a second, and times that copying began again.',
            'Lignes écrites dans la copie par seconde, et reprises de la copie.'
          ],
          'ops',
          [
            query(`${totalRateOf('mirror_applied_changes_total')} or on() vector(0)`, 'rows'),
            query(`${totalRateOf('mirror_errors_total')} or on() vector(0)`, 'failures')
          ],
          { width: 6, runbooks: ['MirrorFailing'] }
        )
      ]
    }
  ]
}
