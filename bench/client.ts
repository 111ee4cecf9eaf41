import { type Agent, request } from 'node:http'

/**
 * One request over the connections of `agent`, so that it is known how many there are. Not `fetch`: what that does for one answer
 * takes this process longer than a short answer itself takes the service.
 */
export const ask = (
  agent: Agent,
  url: string,
  {
    method = 'GET',
    headers = {},
    body
  }: { method?: string; headers?: Record<string, string>; body?: string | undefined }
) =>
  new Promise<{ status: number; text: string }>((resolve, reject) => {
    const asked = request(url, { agent, method, headers }, (answer) => {
      let text = ''
      answer
        .setEncoding('utf8')
        .on('data', (piece: string) => {
          text += piece
        })
        .on('end', () => resolve({ status: answer.statusCode ?? 0, text }))
        .on('error', reject)
    })
    asked.on('error', reject).end(body)
  })
