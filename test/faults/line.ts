import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'

/** A network between the program and a server that it speaks to, which can be slow, silent, or cut. */
export class Line {
  readonly #pairs = new Set<{ client: Socket; server: Socket }>()
  #latency = 0
  #silent = false
  #refusing = false
  /** Called with what the server is sent; true: the line is cut before the answer comes back. */
  #cutAfter: ((sent: Buffer) => boolean) | undefined
  port = 0

  static async to(t: Test, target: string): Promise<Line> {
    const proxy = new Line()
    const { hostname, port } = new URL(target)
    const server = createServer((client) => proxy.#join(client, connect(Number(port), hostname)))
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    proxy.port = (server.address() as AddressInfo).port
    t.teardown(() => {
      server.close()
      proxy.cut()
    })
    return proxy
  }

  /** The target's URL by way of here. */
  url(target: string): string {
    const url = new URL(target)
    url.host = `127.0.0.1:${this.port}`
    return url.href
  }

  #join(client: Socket, server: Socket): void {
    const pair = { client, server }
    if (this.#refusing) {
      client.destroy()
      server.destroy()
      return
    }
    this.#pairs.add(pair)
    const end = () => {
      client.destroy()
      server.destroy()
      this.#pairs.delete(pair)
    }
    for (const socket of [client, server])
      socket
        .setNoDelay(true)
        .on('error', () => {})
        .on('close', end)
    this.#carry(client, server, true)
    this.#carry(server, client, false)
  }

  /** One direction, in order; what arrives while the line is silent is kept, as TCP would send it again. */
  #carry(from: Socket, to: Socket, towardsServer: boolean): void {
    let tail: Promise<unknown> = Promise.resolve()
    from.on('data', (chunk: Buffer) => {
      const due = performance.now() + this.#latency
      tail = tail.then(async () => {
        const wait = due - performance.now()
        if (wait > 0) await sleep(wait)
        while (this.#silent && !to.destroyed) await sleep(10)
        if (to.destroyed) return
        to.write(chunk)
        if (!towardsServer || this.#cutAfter?.(chunk) !== true) return
        this.#cutAfter = undefined
        // The server has it and answers; nobody hears that.
        from.destroy()
      })
    })
  }

  /** Milliseconds each way. */
  slow(latency: number): void {
    this.#latency = latency
  }
  /** Connections stay open and carry nothing, new ones too. */
  silence(silent: boolean): void {
    this.#silent = silent
  }
  refuse(refusing: boolean): void {
    this.#refusing = refusing
    if (refusing) this.cut()
  }
  cut(): void {
    for (const { client, server } of this.#pairs) {
      client.destroy()
      server.destroy()
    }
  }
  /** The next statement that holds the text reaches the server, and its answer never comes back. */
  loseAnswerTo(text: string): void {
    this.#cutAfter = (sent) => sent.includes(text)
  }
}
