import type { Registry } from 'prom-client'

/** The value of one line of the scrape, such as `auth_login_attempts_total{outcome="success"}`; NaN when it is not there. */
export async function scraped(registry: Registry, line: string): Promise<number> {
  const found = (await registry.metrics()).split('\n').find((each) => each.startsWith(`${line} `))
  return Number(found?.split(' ').at(-1))
}
