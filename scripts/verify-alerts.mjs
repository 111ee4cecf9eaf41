/**
 * Proves the alerts. The rules and the configuration are valid; every alert fires on a bad series and stays quiet on a good one;
 * a rule that is changed is noticed by a test; every route leads where it should; every command of the runbooks runs; and when
 * the real service is killed, the pager hears of it within 90 s. About two minutes.
 *
 * usage: node scripts/verify-alerts.mjs [--no-mutate]
 */
import { prove } from './proof.mjs'

const tools = ['prometheus', 'promtool', 'alertmanager', 'amtool', 'curl', 'ps', 'psql', 'redis']
await prove({ name: 'alerts', tools, holds: 'the alerts hold' }, async (given) => {
  const { verify } = await import('../dist/alerts/verify.js')
  await verify({ ...given, mutate: !process.argv.includes('--no-mutate') })
})
