import {
  bars,
  type Dashboard,
  MUST_BE_ONE,
  NEUTRAL,
  quantile,
  query,
  rateOf,
  rising,
  stat,
  table,
  timeseries
} from './panel.js'

const busy =
  'sum by (instance) (rate(nodejs_eventloop_seconds_total{$F,state="active"}[$__rate_interval])) / sum by (instance) (rate(nodejs_eventloop_seconds_total{$F}[$__rate_interval]))'

export const runtime: Dashboard = {
  uid: 'inventory-runtime',
  title: ['Runtime and jobs', 'Exécution et tâches'],
  about: [
    'Each process: its event loop, memory and files; and what is done in the background.',
    'Chaque processus : sa boucle d’événements, sa mémoire et ses fichiers ; et ce qui se fait en arrière-plan.'
  ],
  rows: [
    {
      title: ['Process', 'Processus'],
      panels: [
        timeseries(
          ['Event loop busy', 'Boucle d’événements occupée'],
          [
            'Share of the time that the one thread of a process does something; near 1 everybody waits.',
            'Part du temps où le seul fil d’un processus fait quelque chose ; près de 1, tout le monde attend.'
          ],
          'percentunit',
          query(busy, '{{instance}}'),
          { levels: rising(0.7, 0.9), max: 1, runbooks: ['EventLoopLagHigh', 'CpuSaturated'] }
        ),
        timeseries(
          ['Event loop lag p99', 'Retard de la boucle p99'],
          ['How long a callback that is due waits.', 'Combien de temps attend un rappel qui est dû.'],
          's',
          query('max by (instance) (nodejs_eventloop_lag_p99_seconds{$F})', '{{instance}}'),
          { levels: rising(0.1, 0.2), runbooks: ['EventLoopLagHigh'] }
        ),
        timeseries(
          ['CPU', 'CPU'],
          ['Cores in use, without the process that computes.', 'Cœurs utilisés, sans le processus de calcul.'],
          'short',
          query('sum by (instance) (rate(process_cpu_seconds_total{$F}[$__rate_interval]))', '{{instance}}'),
          { decimals: 2, runbooks: ['CpuSaturated'] }
        ),
        timeseries(
          ['Memory', 'Mémoire'],
          ['Resident memory of each process.', 'Mémoire résidente de chaque processus.'],
          'bytes',
          query('max by (instance) (process_resident_memory_bytes{$F})', '{{instance}}'),
          { runbooks: ['HeapNearLimit'] }
        ),
        timeseries(
          ['Heap', 'Tas'],
          ['In use, and the limit at which the process ends.', 'Utilisé, et la limite à laquelle le processus finit.'],
          'bytes',
          [
            query('max(nodejs_heap_size_used_bytes{$F})', 'used'),
            query('max(nodejs_heap_size_total_bytes{$F})', 'reserved'),
            query('min(nodejs_heap_size_limit_bytes{$F})', 'limit')
          ],
          { runbooks: ['HeapNearLimit'] }
        ),
        timeseries(
          ['Garbage collection', 'Ramasse-miettes'],
          ['Seconds of a second, by kind.', 'Secondes par seconde, par sorte.'],
          'percentunit',
          query('sum by (kind) (rate(nodejs_gc_duration_seconds_sum{$F}[$__rate_interval]))', '{{kind}}'),
          { stacked: true }
        ),
        bars(
          ['Memory of the limit', 'Mémoire, part de la limite'],
          [
            'Resident memory over what the container or the machine allows.',
            'Mémoire résidente rapportée à ce que le conteneur ou la machine permet.'
          ],
          'percentunit',
          query(
            'max by (instance) (process_resident_memory_bytes{$F} / process_memory_limit_bytes{$F})',
            '{{instance}}'
          ),
          { levels: rising(0.7, 0.9), max: 1 }
        ),
        bars(
          ['Open files of the limit', 'Fichiers ouverts'],
          [
            'Files and connections, of those that the process may have.',
            'Fichiers et connexions, parmi ceux que le processus peut avoir.'
          ],
          'percentunit',
          query('max by (instance) (process_open_fds{$F} / process_max_fds{$F})', '{{instance}}'),
          { levels: rising(0.5, 0.8), max: 1, decimals: 2, runbooks: ['OpenFilesNearLimit'] }
        ),
        bars(
          ['Disk in use', 'Disque utilisé'],
          ['Of the volume where data lies.', 'Du volume où sont les données.'],
          'percentunit',
          query(
            'max by (instance, volume) (1 - app_disk_free_bytes{$F} / app_disk_size_bytes{$F})',
            '{{instance}} {{volume}}'
          ),
          { levels: rising(0.8, 0.9), max: 1, runbooks: ['DiskAlmostFull', 'DiskWillFill'] }
        )
      ]
    },
    {
      title: ['Health', 'Santé'],
      panels: [
        stat(
          ['Checks', 'Contrôles'],
          ['Each part, in the process where it is worst.', 'Chaque partie, dans le processus où elle va le plus mal.'],
          'short',
          query('min by (check) (app_ready{$F})', '{{check}}'),
          {
            levels: MUST_BE_ONE,
            words: [
              ['fails', 'en échec'],
              ['passes', 'réussi']
            ],
            width: 12,
            runbooks: ['ReadinessCheckFailing', 'DrainStuck']
          }
        ),
        timeseries(
          ['Probes take', 'Durée des contrôles'],
          [
            'How long the last probe of each part took.',
            'Combien de temps le dernier contrôle de chaque partie a pris.'
          ],
          's',
          query('max by (check) (app_health_check_duration_seconds{$F})', '{{check}}'),
          { levels: rising(0.5, 2), width: 12 }
        )
      ]
    },
    {
      title: ['Jobs', 'Tâches'],
      panels: [
        timeseries(
          ['Runs ended', 'Exécutions terminées'],
          ['Over ten minutes, by job and outcome.', 'Sur dix minutes, par tâche et issue.'],
          'short',
          query(
            'sum by (task, outcome) (increase(job_runs_total{$F}[10m])) > 0 or on() vector(0)',
            '{{task}} {{outcome}}'
          ),
          { stacked: true, runbooks: ['JobFailing'] }
        ),
        timeseries(
          ['Running', 'En cours'],
          ['Runs in progress.', 'Exécutions en cours.'],
          'short',
          query('sum by (task) (job_runs_in_progress{$F})', '{{task}}'),
          { stacked: true, runbooks: ['JobStuck'] }
        ),
        timeseries(
          ['Queue', 'File d’attente'],
          [
            'Jobs that wait for a process, at the last sweep.',
            'Tâches qui attendent un processus, au dernier passage.'
          ],
          'short',
          query('max by (task) (job_queue_depth{$F})', '{{task}}'),
          { stacked: true, runbooks: ['QueueBacklog'] }
        ),
        timeseries(
          ['Oldest in the queue', 'Plus ancienne en attente'],
          ['Age of the job that waits longest.', 'Âge de la tâche qui attend depuis le plus longtemps.'],
          's',
          query('max by (task) (job_queue_oldest_age_seconds{$F})', '{{task}}'),
          { levels: rising(300, 900), runbooks: ['QueueBacklog'] }
        ),
        bars(
          ['Run time p95', 'Durée p95'],
          ['By job, over the shown range.', 'Par tâche, sur la période affichée.'],
          's',
          query(
            'histogram_quantile(0.95, sum by (le, task) (increase(job_run_duration_seconds_bucket{$F}[$__range]))) >= 0',
            '{{task}}'
          ),
          { levels: NEUTRAL }
        ),
        bars(
          ['Wait p95', 'Attente p95'],
          [
            'From the start of a job by its caller until a process took it, over the shown range.',
            'Du lancement d’une tâche jusqu’à sa prise par un processus, sur la période affichée.'
          ],
          's',
          query(
            'histogram_quantile(0.95, sum by (le, task) (increase(job_wait_seconds_bucket{$F}[$__range]))) >= 0',
            '{{task}}'
          ),
          { levels: rising(30, 300) }
        ),
        table(
          ['Last success', 'Dernier succès'],
          [
            'How long ago each job last succeeded; jobs that never have are left out.',
            'Depuis quand chaque tâche a réussi pour la dernière fois ; celles qui n’ont jamais réussi sont laissées de côté.'
          ],
          's',
          query('time() - max by (task) (job_last_success_timestamp_seconds{$F} > 0)'),
          { levels: rising(100_000, 200_000), width: 12 }
        ),
        stat(
          ['Taken back', 'Reprises'],
          [
            'Runs taken back from a process that died, over the shown range.',
            'Exécutions reprises d’un processus mort, sur la période affichée.'
          ],
          'short',
          query('sum(increase(job_retries_total{$F}[$__range]))'),
          { levels: rising(1, 10), decimals: 0, width: 12, runbooks: ['JobRetriesHigh'] }
        )
      ]
    },
    {
      title: ['Worker threads', 'Fils de calcul'],
      panels: [
        timeseries(
          ['Computations', 'Calculs'],
          ['Ended a second, by outcome.', 'Terminés par seconde, par issue.'],
          'ops',
          query(rateOf('compute_tasks_total', 'outcome'), '{{outcome}}'),
          { stacked: true }
        ),
        timeseries(
          ['Threads', 'Fils'],
          [
            'Running and waiting computations, and the threads that there may be.',
            'Calculs en cours et en attente, et les fils qu’il peut y avoir.'
          ],
          'short',
          [
            query('sum(compute_tasks_running{$F})', 'running'),
            query('sum(compute_tasks_waiting{$F})', 'waiting'),
            query('sum(compute_threads{$F})', 'threads')
          ]
        ),
        timeseries(
          ['Time of one', 'Durée d’un calcul'],
          ['In its thread, and waiting for one.', 'Dans son fil, et à en attendre un.'],
          's',
          [
            query(quantile(0.95, 'compute_task_duration_seconds'), 'computing p95'),
            query(quantile(0.95, 'compute_task_wait_seconds'), 'waiting p95')
          ]
        ),
        timeseries(
          ['Memory of the threads', 'Mémoire des fils'],
          [
            'Of the process that they are in, apart from the service’s own.',
            'Du processus qui les contient, à part de celui du service.'
          ],
          'bytes',
          query('sum by (instance) (compute_process_resident_memory_bytes{$F})', '{{instance}}')
        ),
        timeseries(
          ['Processors of the threads', 'Processeurs des fils'],
          ['How many they keep busy, at the lowest priority.', 'Combien ils en occupent, à la plus basse priorité.'],
          'short',
          query('sum by (instance) (rate(compute_process_cpu_seconds_total{$F}[$__rate_interval]))', '{{instance}}'),
          { decimals: 2 }
        ),
        stat(
          ['Processes lost', 'Processus perdus'],
          [
            'Processes of the threads that ended by themselves, over the shown range.',
            'Processus des fils qui se sont terminés d’eux-mêmes, sur la période affichée.'
          ],
          'short',
          query('sum(increase(compute_process_losses_total{$F}[$__range]))'),
          { levels: rising(1, 10), decimals: 0 }
        )
      ]
    },
    {
      title: ['Upkeep, events and webhooks', 'Entretien, événements et webhooks'],
      panels: [
        timeseries(
          ['Upkeep that failed', 'Entretien en échec'],
          [
            'Rounds in which that of any tenant failed, over an hour.',
            'Passages où celui d’un locataire a échoué, sur une heure.'
          ],
          'short',
          query('sum by (task) (increase(upkeep_rounds_total{$F,outcome="failure"}[1h]))', '{{task}}'),
          { stacked: true }
        ),
        bars(
          ['Upkeep takes', 'Durée de l’entretien'],
          ['The last round of each, all tenants.', 'Le dernier passage de chacun, tous locataires confondus.'],
          's',
          query('topk(10, max by (task) (upkeep_last_duration_seconds{$F}))', '{{task}}'),
          { levels: rising(10, 60), decimals: 3 }
        ),
        timeseries(
          ['Outbox', 'Boîte d’envoi'],
          [
            'Events that wait, and those given up, which a person has to look at.',
            'Événements en attente, et ceux abandonnés, qu’une personne doit regarder.'
          ],
          'short',
          query('max by (state) (event_outbox_events{$F})', '{{state}}'),
          { runbooks: ['EventDeliveriesFailing'] }
        ),
        timeseries(
          ['Events delivered', 'Événements livrés'],
          ['To subscribers in the program, a second.', 'Aux abonnés dans le programme, par seconde.'],
          'ops',
          query(rateOf('event_deliveries_total', 'outcome'), '{{outcome}}'),
          { stacked: true, runbooks: ['EventDeliveriesFailing'] }
        ),
        timeseries(
          ['Webhook messages', 'Messages webhook'],
          ['Attempts a second, by outcome.', 'Essais par seconde, par issue.'],
          'ops',
          query(rateOf('webhook_attempts_total', 'outcome'), '{{outcome}}'),
          { stacked: true, runbooks: ['WebhookDeliveriesFailing'] }
        ),
        timeseries(
          ['Webhook time p95', 'Durée webhook p95'],
          ['Of one attempt.', 'D’un essai.'],
          's',
          query(quantile(0.95, 'webhook_attempt_duration_seconds'), 'p95'),
          { levels: rising(2, 8) }
        ),
        stat(
          ['Webhooks', 'Webhooks'],
          ['Served, and taken out of service.', 'En service, et mis hors service.'],
          'short',
          query('max by (state) (webhooks{$F})', '{{state}}'),
          { levels: NEUTRAL, width: 8, runbooks: ['WebhookDisabled'] }
        ),
        stat(
          ['Messages waiting', 'Messages en attente'],
          ['For their next attempt.', 'De leur prochain essai.'],
          'short',
          query('max(webhook_deliveries_waiting{$F})'),
          { levels: rising(10, 100), width: 8, runbooks: ['WebhookDeliveriesFailing'] }
        ),
        stat(
          ['Messages given up', 'Messages abandonnés'],
          ['After the last attempt, over the shown range.', 'Après le dernier essai, sur la période affichée.'],
          'short',
          query('sum(increase(webhook_deliveries_dead_total{$F}[$__range]))'),
          { levels: rising(1, 10), decimals: 0, width: 8, runbooks: ['WebhookDeliveriesFailing'] }
        )
      ]
    }
  ]
}
