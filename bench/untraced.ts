import Fastify, { type FastifyInstance } from 'fastify'
import { app } from '../app.js'
import type { Config } from '../plugins/config/index.js'
import { serverOptions } from '../plugins/http/server-options.js'
import { BenchError } from './support.js'

const HOOKS = new Set(['nameLog', 'logAnswer'])

/** The service without the hooks of its log; everything else is as `server.js` does it. */
export async function buildUntraced(config: Config): Promise<FastifyInstance> {
  const { logger, ...others } = serverOptions({ logLevel: config.LOG_LEVEL })
  const { mixin, ...plain } = logger
  const service = Fastify({ ...others, logger: plain })
  const left: string[] = []
  service.addHook = new Proxy(service.addHook, {
    apply: (target, self, [name, hook]: [string, { name: string }]) => {
      if (!HOOKS.has(hook.name)) return Reflect.apply(target, self, [name, hook])
      left.push(hook.name)
      return self
    }
  })
  await app(service, config)
  if (mixin === undefined || left.length !== HOOKS.size)
    throw new BenchError(`left out ${left.join() || 'nothing'}: the hooks have other names`)
  return service
}
