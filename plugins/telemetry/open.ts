import { listenToChannels } from './channels.js'
import { traceRequests } from './http.js'
import { Provider } from './provider.js'
import type { Telemetry, TelemetrySettings } from './tracing.js'

/** Read only where traces are on: without them no package of OpenTelemetry is loaded. */
export function openProvider(settings: TelemetrySettings): Telemetry {
  const provider = new Provider(settings)
  let unlisten = () => {}
  return {
    on: true,
    span: (name, options, work) => provider.span(name, options, work),
    past: (name, time, options, error) => provider.past(name, time, options, error),
    carrier: () => provider.carrier(),
    bind: (work) => provider.bind(work),
    detached: (work) => provider.detached(work),
    traceId: () => provider.traceId(),
    watch: (app) => {
      unlisten = listenToChannels(provider)
      traceRequests(app, provider)
    },
    exported: provider.exported,
    close: async () => {
      unlisten()
      await provider.close()
    }
  }
}
