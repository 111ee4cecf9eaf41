import {
  bars,
  type Dashboard,
  falling,
  gauge,
  NEUTRAL,
  quantile,
  query,
  rateOf,
  rising,
  share,
  stat,
  timeseries,
  totalRateOf
} from './panel.js'

const REALISED = 'window_days="28"'

export const models: Dashboard = {
  uid: 'inventory-models',
  title: ['AI models and forecasting', 'Modèles et prévisions'],
  about: [
    'How good the forecasts are, before and after they were served, which models serve, what training costs, and what was found unusual.',
    'La qualité des prévisions, avant et après leur usage, les modèles qui servent, ce que coûte l’entraînement, et ce qui a été trouvé d’inhabituel.'
  ],
  rows: [
    {
      title: ['Freshness and quality', 'Fraîcheur et qualité'],
      panels: [
        stat(
          ['Trained', 'Entraîné'],
          ['How long ago the last training run ended.', 'Depuis quand le dernier entraînement est fini.'],
          's',
          query('time() - max(forecast_last_success_timestamp_seconds{$F} > 0) or on() vector(0)'),
          { levels: rising(90_000, 129_600), runbooks: ['ForecastStale'] }
        ),
        stat(
          ['Series served', 'Séries servies'],
          ['Series that have a forecast, all tenants.', 'Séries qui ont une prévision, tous locataires confondus.'],
          'short',
          query('sum(max by (model) (forecast_series{$F}))'),
          { levels: NEUTRAL }
        ),
        gauge(
          ['Nothing beats naive', 'Rien ne bat le naïf'],
          [
            'Share of the series that the naive baseline serves, because no model did better on the back-test.',
            'Part des séries servies par la référence naïve, faute d’un modèle meilleur sur le passé.'
          ],
          'percentunit',
          query('max(forecast_naive_wins_ratio{$F})'),
          { levels: rising(0.3, 0.5), max: 1, runbooks: ['ForecastWorseThanNaive'] }
        ),
        stat(
          ['Drifted, waiting', 'Dérive, en attente'],
          [
            'Series that drifted from their forecast and wait to be trained again.',
            'Séries qui se sont écartées de leur prévision et attendent d’être entraînées à nouveau.'
          ],
          'short',
          query('max(forecast_drift_waiting{$F})'),
          { levels: rising(10, 50), runbooks: ['ForecastDriftWaiting'] }
        ),
        stat(
          ['Overrides', 'Corrections'],
          ['Forecasts that a person has overridden, in force.', 'Prévisions qu’une personne a corrigées, en vigueur.'],
          'short',
          query('max(forecast_overrides{$F})'),
          { levels: NEUTRAL }
        ),
        stat(
          ['Open anomalies', 'Anomalies ouvertes'],
          ['By severity, not yet resolved.', 'Par gravité, pas encore traitées.'],
          'short',
          query('max by (severity) (anomaly_open{$F})', '{{severity}}'),
          { levels: rising(20, 100), runbooks: ['AnomalyBacklog'] }
        )
      ]
    },
    {
      title: ['Accuracy on the back-test', 'Exactitude au test rétrospectif'],
      panels: [
        bars(
          ['WAPE by model', 'WAPE par modèle'],
          [
            'Weighted absolute percentage error of the models that serve.',
            'Erreur absolue pondérée en pourcentage des modèles qui servent.'
          ],
          'percentunit',
          query('max by (model) (forecast_wape_ratio{$F})', '{{model}}'),
          { levels: rising(0.4, 0.8), runbooks: ['ForecastAccuracyDegraded'] }
        ),
        bars(
          ['MASE by model', 'MASE par modèle'],
          [
            'Error over that of the naive forecast in the past: below 1 is better than naive.',
            'Erreur rapportée à celle de la prévision naïve sur le passé : au-dessous de 1, mieux que la naïve.'
          ],
          'none',
          query('max by (model) (forecast_mase_ratio{$F})', '{{model}}'),
          { levels: rising(1, 1.5), decimals: 2 }
        ),
        bars(
          ['Series by model', 'Séries par modèle'],
          ['Which models serve.', 'Quels modèles servent.'],
          'short',
          query('max by (model) (forecast_series{$F}) > 0', '{{model}}'),
          { levels: NEUTRAL }
        ),
        bars(
          ['Bias by model', 'Biais par modèle'],
          [
            'Signed error over what was used: above 0 the forecast is too high.',
            'Erreur signée rapportée à ce qui a été consommé : au-dessus de 0, la prévision est trop haute.'
          ],
          'percentunit',
          query('max by (model) (forecast_bias_ratio{$F})', '{{model}}'),
          { levels: NEUTRAL }
        ),
        timeseries(
          ['Interval coverage', 'Couverture des intervalles'],
          [
            'Share of the actual values inside the interval, mean over models; it should be what the level says.',
            'Part des valeurs réelles dans l’intervalle, moyenne des modèles ; elle devrait égaler le niveau.'
          ],
          'percentunit',
          query('avg by (level) (forecast_interval_coverage_ratio{$F})', '{{level}} %'),
          { max: 1, runbooks: ['ForecastIntervalsMiscalibrated'] }
        ),
        timeseries(
          ['What was served, 28 days', 'Prévisions servies, 28 jours'],
          [
            'Errors of the forecasts that were served, over the last 28 days of data, beside those of the baseline.',
            'Erreurs des prévisions servies, sur les 28 derniers jours de données, à côté de celles de la référence.'
          ],
          'none',
          query(`max by (measure) (forecast_realised_ratio{$F,${REALISED}}) or on() vector(0)`, '{{measure}}'),
          { decimals: 2, runbooks: ['ForecastAccuracyDegraded'] }
        )
      ]
    },
    {
      title: ['Training', 'Entraînement'],
      panels: [
        timeseries(
          ['Series trained', 'Séries entraînées'],
          ['Series whose training ended, a second.', 'Séries dont l’entraînement s’est terminé, par seconde.'],
          'ops',
          [
            query(rateOf('forecast_runs_total', 'outcome'), '{{outcome}}'),
            query(totalRateOf('forecast_skipped_total'), 'unchanged')
          ],
          { stacked: true, runbooks: ['ForecastFitsFailing'] }
        ),
        timeseries(
          ['Time of one series', 'Durée d’une série'],
          [
            'Training time of one series in its worker thread.',
            'Durée d’entraînement d’une série dans son fil de calcul.'
          ],
          's',
          [
            query(quantile(0.5, 'forecast_run_duration_seconds'), 'p50'),
            query(quantile(0.95, 'forecast_run_duration_seconds'), 'p95')
          ]
        ),
        timeseries(
          ['Drift found', 'Dérives trouvées'],
          [
            'Series found to have drifted, by kind, over an hour.',
            'Séries trouvées en dérive, par sorte, sur une heure.'
          ],
          'short',
          query('sum by (kind) (increase(forecast_drift_total{$F}[1h]))', '{{kind}}'),
          { stacked: true }
        )
      ]
    },
    {
      title: ['Anomalies', 'Anomalies'],
      panels: [
        timeseries(
          ['Found', 'Trouvées'],
          [
            'Anomalies found for the first time, over an hour.',
            'Anomalies trouvées pour la première fois, sur une heure.'
          ],
          'short',
          query('sum by (severity) (increase(anomaly_detections_total{$F}[1h]))', '{{severity}}'),
          { stacked: true }
        ),
        bars(
          ['By detector', 'Par détecteur'],
          ['Found since the processes started.', 'Trouvées depuis le démarrage des processus.'],
          'short',
          query('sum by (detector) (increase(anomaly_detections_total{$F}[$__range]))', '{{detector}}'),
          { levels: NEUTRAL, decimals: 0 }
        ),
        gauge(
          ['Confirmed by people', 'Confirmées'],
          [
            'Share of the verdicts that confirmed an anomaly; 0 before the first verdict.',
            'Part des jugements qui ont confirmé une anomalie ; 0 avant le premier.'
          ],
          'percentunit',
          query(
            share(
              'sum(increase(anomaly_feedback_total{$F,verdict="confirmed"}[$__range]))',
              'sum(increase(anomaly_feedback_total{$F}[$__range]))'
            )
          ),
          { levels: falling(0.3, 0.6), max: 1, width: 8 }
        ),
        timeseries(
          ['Series looked through', 'Séries examinées'],
          ['A second, while a scan runs.', 'Par seconde, pendant un examen.'],
          'short',
          query(totalRateOf('anomaly_series_scanned_total'), 'series')
        ),
        stat(
          ['Scan p95', 'Examen p95'],
          [
            'How long a look through the series asked for takes.',
            'Combien de temps prend l’examen des séries demandées.'
          ],
          's',
          query(
            'histogram_quantile(0.95, sum by (le) (increase(anomaly_scan_duration_seconds_bucket{$F}[$__range]))) >= 0 or on() vector(0)'
          ),
          { width: 8, levels: rising(15, 60) }
        ),
        stat(
          ['Last scan', 'Dernier examen'],
          ['How long ago.', 'Depuis quand.'],
          's',
          query('time() - max(anomaly_last_scan_timestamp_seconds{$F} > 0) or on() vector(0)'),
          { width: 8, levels: NEUTRAL }
        )
      ]
    }
  ]
}
