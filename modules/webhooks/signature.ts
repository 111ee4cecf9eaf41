import { createHmac, randomBytes } from 'node:crypto'

/** Standard Webhooks 1.0 (https://www.standardwebhooks.com): symmetric signatures, version v1. */

const PREFIX = 'whsec_'
const KEY_BYTES = 32

export const newSecret = (): string => `${PREFIX}${randomBytes(KEY_BYTES).toString('base64')}`

/** Of `id.timestamp.body`: neither a body under another id nor an old one sent again passes for genuine. */
function sign(secret: string, id: string, timestampSeconds: number, body: string): string {
  const key = Buffer.from(secret.slice(PREFIX.length), 'base64')
  return `v1,${createHmac('sha256', key).update(`${id}.${timestampSeconds}.${body}`).digest('base64')}`
}

/** One signature for each secret that counts: a receiver that knows any of them accepts the message. */
export const signedHeaders = (
  secrets: readonly string[],
  id: string,
  timestampSeconds: number,
  body: string
): Record<'webhook-id' | 'webhook-timestamp' | 'webhook-signature', string> => ({
  'webhook-id': id,
  'webhook-timestamp': String(timestampSeconds),
  'webhook-signature': secrets.map((secret) => sign(secret, id, timestampSeconds, body)).join(' ')
})
