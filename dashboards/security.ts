import {
  bars,
  type Dashboard,
  MUST_BE_ZERO,
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

const increase = (metric: string, more = '') => `sum(increase(${metric}{$F${more}}[$__range]))`

/** How long ago; where never, how long it could have been. */
const since = (metric: string) => `time() - (max(${metric}{$F} > 0) or min(process_start_time_seconds{$F}))`

export const security: Dashboard = {
  uid: 'inventory-security',
  title: ['Security and audit', 'Sécurité et audit'],
  about: [
    'Who signs in and who is refused, what is revoked, whether the audit trail holds, and how much would be lost.',
    'Qui se connecte et qui est refusé, ce qui est révoqué, si le journal d’audit tient, et combien serait perdu.'
  ],
  rows: [
    {
      title: ['State', 'État'],
      panels: [
        stat(
          ['Privileged, one factor', 'Privilégiés, un facteur'],
          [
            'Managers and administrators who have enrolled no second factor: they cannot work until they have.',
            'Responsables et administrateurs sans second facteur : ils ne peuvent pas travailler avant d’en avoir un.'
          ],
          'short',
          query('max(auth_privileged_users_without_second_factor{$F})'),
          { levels: rising(1, 5), width: 3 }
        ),
        stat(
          ['Open sessions', 'Sessions ouvertes'],
          ['All tenants.', 'Tous locataires confondus.'],
          'short',
          query('max(auth_sessions{$F})'),
          { levels: NEUTRAL, width: 3 }
        ),
        stat(
          ['API tokens', 'Jetons d’API'],
          ['Tokens of programs that count.', 'Jetons de programmes en vigueur.'],
          'short',
          query('max(auth_api_tokens{$F})'),
          { levels: NEUTRAL, width: 3 }
        ),
        stat(
          ['Refresh tokens reused', 'Jetons réutilisés'],
          [
            'Somebody had a copy of a session’s token, and the session was ended; over the shown range.',
            'Quelqu’un avait une copie du jeton d’une session, et la session a été fermée ; sur la période affichée.'
          ],
          'short',
          query(increase('auth_refresh_rejections_total', ',reason="reused"')),
          { levels: MUST_BE_ZERO, decimals: 0, width: 3, runbooks: ['RefreshTokenReuse'] }
        ),
        stat(
          ['Audit mismatches', 'Écarts de l’audit'],
          [
            'What the last proof of the audit trail found to have been changed. It must be 0.',
            'Ce que la dernière preuve du journal d’audit a trouvé modifié. Ce doit être 0.'
          ],
          'short',
          query('max(audit_chain_mismatches{$F})'),
          { levels: MUST_BE_ZERO, runbooks: ['AuditChainBroken'] }
        ),
        stat(
          ['Audit proved', 'Audit vérifié'],
          [
            'How long ago the trail was last proved by a process.',
            'Depuis quand un processus a prouvé le journal pour la dernière fois.'
          ],
          's',
          query('time() - max(audit_chain_last_verified_timestamp_seconds{$F} > 0) or on() vector(0)'),
          { levels: rising(90_000, 180_000), runbooks: ['AuditProofStale'] }
        ),
        stat(
          ['Certificates end in', 'Fin des certificats dans'],
          [
            'When the first certificate ends that is shown to PostgreSQL or Redis, or that theirs must come from.',
            'Quand finit le premier des certificats présentés à PostgreSQL ou Redis, ou dont les leurs doivent venir.'
          ],
          's',
          query('min(tls_certificate_not_after_timestamp_seconds{$F} < Inf) - time() or on() vector(0)'),
          { levels: NEUTRAL, words: [['none', 'aucun']], runbooks: ['TlsCertificateExpiring'] }
        )
      ]
    },
    {
      title: ['Signing in', 'Connexion'],
      panels: [
        timeseries(
          ['By password', 'Par mot de passe'],
          ['Sign-ins a second, by outcome.', 'Connexions par seconde, par issue.'],
          'ops',
          query(rateOf('auth_login_attempts_total', 'outcome'), '{{outcome}}'),
          { stacked: true, runbooks: ['LoginBruteForce'] }
        ),
        timeseries(
          ['Second factor', 'Second facteur'],
          ['Codes, recovery codes and passkeys, by outcome.', 'Codes, codes de secours et clés d’accès, par issue.'],
          'ops',
          query(rateOf('auth_mfa_challenges_total', 'outcome'), '{{outcome}}'),
          { stacked: true, runbooks: ['SecondFactorBruteForce'] }
        ),
        timeseries(
          ['Identity provider', 'Fournisseur d’identité'],
          ['Sign-ins by it, by outcome.', 'Connexions par lui, par issue.'],
          'ops',
          query(rateOf('auth_oidc_sign_ins_total', 'outcome'), '{{outcome}}'),
          { stacked: true }
        ),
        stat(
          ['Failed, of all', 'Échecs, de tous'],
          [
            'Sign-ins by password that failed or had to wait, over the shown range.',
            'Connexions par mot de passe qui ont échoué ou dû attendre, sur la période affichée.'
          ],
          'percentunit',
          query(
            share(increase('auth_login_attempts_total', ',outcome!="success"'), increase('auth_login_attempts_total'))
          ),
          { levels: rising(0.2, 0.5), decimals: 0, runbooks: ['LoginBruteForce'] }
        ),
        stat(
          ['Locked out', 'Bloqués'],
          [
            'Times that the attempts of a user or an address were used up, over the shown range.',
            'Fois où les essais d’un utilisateur ou d’une adresse ont été épuisés, sur la période affichée.'
          ],
          'short',
          query(increase('auth_lockouts_total')),
          { levels: rising(5, 50), decimals: 0, runbooks: ['LoginBruteForce'] }
        ),
        timeseries(
          ['Password hashing', 'Hachage'],
          [
            'Waiting included; slow hashing holds up all who sign in.',
            'Attente comprise ; un hachage lent retarde tous ceux qui se connectent.'
          ],
          's',
          [
            query(quantile(0.5, 'auth_password_hash_duration_seconds'), 'p50'),
            query(quantile(0.95, 'auth_password_hash_duration_seconds'), 'p95')
          ],
          { runbooks: ['PasswordHashingSlow'] }
        ),
        bars(
          ['Users', 'Utilisateurs'],
          ['Users who may sign in, by role.', 'Utilisateurs qui peuvent se connecter, par rôle.'],
          'short',
          query('max by (role) (auth_users{$F})', '{{role}}'),
          { levels: NEUTRAL }
        )
      ]
    },
    {
      title: ['Tokens and rights', 'Jetons et droits'],
      panels: [
        timeseries(
          ['Tokens refused', 'Jetons refusés'],
          [
            'signature, algorithm, audience and issuer are forgeries; expired and revoked are every day.',
            'signature, algorithm, audience et issuer sont des faux ; expired et revoked sont ordinaires.'
          ],
          'ops',
          query(rateOf('auth_token_rejections_total', 'reason'), '{{reason}}'),
          { stacked: true, runbooks: ['TokenForgeryAttempts'] }
        ),
        timeseries(
          ['Refused by role', 'Refus par rôle'],
          [
            'Requests refused though the token counts, by what was missing.',
            'Requêtes refusées malgré un jeton valable, selon ce qui manquait.'
          ],
          'ops',
          query(rateOf('authz_denials_total', 'kind'), '{{kind}}'),
          { stacked: true, runbooks: ['AuthorizationDenialsHigh'] }
        ),
        timeseries(
          ['Revocation checks', 'Contrôles de révocation'],
          [
            'By what answered. unavailable: the database did not, and nobody was let in.',
            'Selon ce qui a répondu. unavailable : la base n’a pas répondu, et personne n’a été admis.'
          ],
          'ops',
          query(rateOf('auth_revocation_checks_total', 'source'), '{{source}}'),
          { stacked: true }
        ),
        timeseries(
          ['Tokens issued', 'Jetons émis'],
          [
            'Access tokens signed for users, and refresh tokens refused.',
            'Jetons d’accès signés pour des utilisateurs, et jetons de renouvellement refusés.'
          ],
          'ops',
          [
            query(totalRateOf('auth_tokens_issued_total'), 'issued'),
            query(totalRateOf('auth_refresh_rejections_total'), 'refused')
          ]
        ),
        timeseries(
          ['Limited to protect', 'Limites de protection'],
          [
            'Requests refused because their caller made too many.',
            'Requêtes refusées parce que leur auteur en a fait trop.'
          ],
          'reqps',
          query(rateOf('http_rate_limited_requests_total', 'limiter'), '{{limiter}}'),
          { stacked: true, runbooks: ['RateLimitingHigh'] }
        ),
        timeseries(
          ['Rights of persons', 'Droits des personnes'],
          ['Access, rectification and erasure, over a day.', 'Accès, rectification et effacement, sur un jour.'],
          'short',
          query('sum by (right) (increase(privacy_rights_total{$F}[1d]))', '{{right}}'),
          { stacked: true }
        )
      ]
    },
    {
      title: ['Audit trail', 'Journal d’audit'],
      panels: [
        timeseries(
          ['Entries written', 'Entrées écrites'],
          ['A second, by outcome.', 'Par seconde, par issue.'],
          'ops',
          query(rateOf('audit_entries_written_total', 'outcome'), '{{outcome}}'),
          { stacked: true, width: 6 }
        ),
        timeseries(
          ['Entries chained', 'Entrées scellées'],
          ['A second, by whichever process was first.', 'Par seconde, par le processus qui fut le premier.'],
          'ops',
          query(totalRateOf('audit_entries_sealed_total'), 'entries'),
          { width: 6 }
        ),
        timeseries(
          ['Since the last seal', 'Depuis le dernier scellement'],
          [
            'How long ago each process last chained what was new.',
            'Depuis quand chaque processus a enchaîné ce qui était nouveau.'
          ],
          's',
          query(
            'time() - max by (instance) (audit_last_sealed_timestamp_seconds{$F} > 0) or on() vector(0)',
            '{{instance}}'
          ),
          { levels: rising(120, 600), width: 6 }
        ),
        timeseries(
          ['Refusals not kept one by one', 'Refus regroupés'],
          [
            'coalesced: put together, because there were too many; unattributed: of no tenant, in the log alone; lost: must be 0.',
            'coalesced : regroupés, car trop nombreux ; unattributed : d’aucun locataire, dans le journal seul ; lost : ce doit être 0.'
          ],
          'ops',
          [
            query(totalRateOf('audit_notes_coalesced_total'), 'coalesced'),
            query(totalRateOf('audit_notes_unattributed_total'), 'unattributed'),
            query(totalRateOf('audit_notes_lost_total'), 'lost')
          ],
          { width: 6, runbooks: ['AuditNotesLost'] }
        )
      ]
    },
    {
      title: ['Recovery', 'Reprise'],
      panels: [
        stat(
          ['Newest backup', 'Dernière sauvegarde'],
          [
            'How old it is, of the tenant that is furthest behind; since the start of the processes where there is none.',
            'Son âge, pour le locataire le plus en retard ; depuis le démarrage des processus s’il n’y en a pas.'
          ],
          's',
          query(since('backup_last_success_timestamp_seconds')),
          { levels: rising(86_400, 90_000), runbooks: ['BackupStale', 'BackupIncrementsStale'] }
        ),
        stat(
          ['Last restore drill', 'Dernier essai de restauration'],
          [
            'How long ago a backup was last restored and compared; since the start of the processes where none was.',
            'Depuis quand une sauvegarde a été restaurée et comparée ; depuis le démarrage des processus s’il n’y en a pas eu.'
          ],
          's',
          query(since('backup_restore_check_last_success_timestamp_seconds')),
          { levels: rising(604_800, 691_200), runbooks: ['RestoreDrillStale', 'RestoreDrillFailed'] }
        ),
        stat(
          ['A restore takes', 'Durée d’une restauration'],
          [
            'Measured by the last good drill, of the tenant that took longest.',
            'Mesurée par le dernier essai réussi, pour le locataire qui a pris le plus de temps.'
          ],
          's',
          query('max(backup_restore_check_last_duration_seconds{$F}) or on() vector(0)'),
          { levels: rising(1_800, 3_600), runbooks: ['RestoreDrillSlow'] }
        ),
        stat(
          ['Size', 'Taille'],
          ['Of the last backup.', 'De la dernière sauvegarde.'],
          'bytes',
          query('max by (type) (backup_last_size_bytes{$F}) or on() vector(0)', '{{type}}'),
          { levels: NEUTRAL }
        ),
        stat(
          ['Drills failed', 'Essais en échec'],
          ['Over the shown range.', 'Sur la période affichée.'],
          'short',
          query(`${increase('backup_restore_checks_total', ',outcome="failure"')} or on() vector(0)`),
          { levels: MUST_BE_ZERO, decimals: 0, runbooks: ['RestoreDrillFailed'] }
        ),
        stat(
          ['A backup takes', 'Durée d’une sauvegarde'],
          [
            'The 95th percentile over the shown range; 0 where none was made.',
            'Le 95e centile sur la période affichée ; 0 s’il n’y en a pas eu.'
          ],
          's',
          query(
            'histogram_quantile(0.95, sum by (le) (increase(backup_duration_seconds_bucket{$F}[$__range]))) >= 0 or on() vector(0)'
          ),
          { levels: rising(600, 3_600) }
        ),
        timeseries(
          ['Backups', 'Sauvegardes'],
          ['Ended over an hour, by type and outcome.', 'Terminées sur une heure, par type et issue.'],
          'short',
          query(
            'sum by (type, outcome) (increase(backup_runs_total{$F}[1h])) or on() vector(0)',
            '{{type}} {{outcome}}'
          ),
          { stacked: true, width: 24, runbooks: ['BackupFailed'] }
        )
      ]
    }
  ]
}
