import fc from 'fast-check'
import { Webhook as Verifier } from 'standardwebhooks'
import t from 'tap'
import { isBroken, isSpent, retryAfter, retryDelay } from '../modules/webhooks/retry.js'
import { createSender } from '../modules/webhooks/sender.js'
import { newSecret, signedHeaders } from '../modules/webhooks/signature.js'
import { createTargetPolicy, isPublic } from '../modules/webhooks/targets.js'
import { HOUR, NEVER, receiver, status } from './webhooks-harness.js'

/** What a webhook is sent with and where it may go: signatures, waits between attempts, addresses. */

t.test('signatures: what the public library of the standard accepts', async (t) => {
  const [old, fresh] = [newSecret(), newSecret()]
  const now = Math.floor(Date.now() / 1000)
  const headers = signedHeaders([fresh, old], 'msg_1', now, '{"é":1}')
  t.same(new Verifier(old).verify('{"é":1}', headers), { é: 1 })
  t.same(new Verifier(fresh).verify('{"é":1}', headers), { é: 1 })
  const refused: [string, Record<string, string>, string][] = [
    ['{"é":2}', headers, 'another body'],
    ['{"é":1}', { ...headers, 'webhook-id': 'msg_2' }, 'another id'],
    ['{"é":1}', { ...headers, 'webhook-timestamp': String(now + 1) }, 'another time'],
    ['{"é":1}', signedHeaders([fresh], 'msg_1', now - 600, '{"é":1}'), 'too old']
  ]
  for (const [body, changed, what] of refused) t.throws(() => new Verifier(fresh).verify(body, changed), what)
  t.throws(() => new Verifier(newSecret()).verify('{"é":1}', headers), 'another secret')
  // The example of the specification's own test suite.
  t.equal(
    signedHeaders(
      ['whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'],
      'msg_p5jXN8AQM9LWM0D4loKWxJek',
      1614265330,
      '{"test": 2432232314}'
    )['webhook-signature'],
    'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE='
  )
})

t.test('retries: longer each time, never all at once, and not for ever', async (t) => {
  const whole = [10, 30, 90, 270, 810, 2430, 7290, 21_600, 21_600].map((seconds) => seconds * 1000)
  t.same(
    whole.map((_, n) => [retryDelay(n + 1, 0), retryDelay(n + 1, 1)]),
    whole.map((each) => [each / 2, each])
  )
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 1000 }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      fc.nat(),
      (n, chance, asked) => {
        const delay = retryDelay(n, chance, asked)
        return delay >= 5_000 && delay <= 6 * HOUR && delay >= Math.min(asked, 6 * HOUR)
      }
    )
  )
  t.same([isSpent(11, 5, 10), isSpent(12, 5, 10), isSpent(1, 10, 10)], [false, true, true])
  const day = 24 * HOUR
  t.same(
    [isBroken(9, 0, 30 * day), isBroken(10, 0, 3 * day - 1), isBroken(10, 0, 3 * day)],
    [false, false, true],
    'often and long, not one of both'
  )
  const at = Date.UTC(2026, 0, 5)
  const headers: [string | undefined, number][] = [
    [undefined, 0],
    ['120', 120_000],
    ['Mon, 05 Jan 2026 00:02:00 GMT', 120_000],
    ['Mon, 05 Jan 2015 00:02:00 GMT', 0],
    ['soon', 0],
    ['-5', 0]
  ]
  for (const [header, expected] of headers) t.equal(retryAfter(header, at), expected, String(header))
})

t.test('V1.3.6 webhook URLs: a corpus of addresses that are refused, and of those that are not', async (t) => {
  const policy = createTargetPolicy([])
  const refused: [string, string][] = [
    ...['0.0.0.0', '0.1.2.3', '10.0.0.1', '10.255.255.255', '100.64.0.1', '100.100.100.200', '100.127.255.255'],
    ...['127.0.0.1', '127.1.2.3', '127.255.255.255', '168.63.129.16', '169.254.0.1', '169.254.169.254'],
    ...['172.16.0.1', '172.31.255.255', '192.0.0.1', '192.0.0.192', '192.0.2.1', '192.31.196.1', '192.52.193.1'],
    ...['192.88.99.1', '192.168.0.1', '192.168.255.255', '192.175.48.1', '198.18.0.1', '198.19.255.255'],
    ...['198.51.100.7', '203.0.113.9', '224.0.0.1', '239.255.255.250', '240.0.0.1', '255.255.255.255']
  ].map((address) => [`https://${address}/`, 'address'])
  refused.push(
    ...[
      ...['::', '::1', '::2', '::127.0.0.1', '::ffff:127.0.0.1', '::ffff:7f00:1', '::ffff:10.0.0.1', '::ffff:8.8.8.8'],
      ...[
        '::ffff:0:127.0.0.1',
        '64:ff9b::7f00:1',
        '64:ff9b::8.8.8.8',
        '64:ff9b:1::1',
        '100::1',
        '2001::1',
        '2001:2::1'
      ],
      ...[
        '2001:0:4136:e378:8000:63bf:3fff:fdd2',
        '2001:10::1',
        '2001:20::1',
        '2001:db8::1',
        '2002:7f00:1::',
        '3fff::1'
      ],
      ...['2002:808:808::1', '2620:4f:8000::1', '5f00::1', 'fc00::1', 'fd00:ec2::254', 'fdff::1', 'fe80::1', 'fec0::1'],
      ...['febf::1', 'ff02::1', 'ff05::2', '4000::1', '8000::1', 'e000::1']
    ].map((address): [string, string] => {
      // As a URL spells it; another spelling is refused for that alone.
      return [`https://${new URL(`https://[${address}]/`).hostname}/`, 'address']
    })
  )
  const otherwise: [string, string][] = [
    ['https://2130706433/', 'host'],
    ['https://0x7f000001/', 'host'],
    ['https://0x7f.1/', 'host'],
    ['https://0177.0.0.1/', 'host'],
    ['https://127.1/', 'host'],
    ['https://134744072/', 'host'],
    ['https://8.8.8.8./', 'host'],
    ['https://①②⑦.⓪.⓪.①/', 'host'],
    ['https://127。0。0。1/', 'host'],
    ['https://%31%32%37.0.0.1/', 'host'],
    ['https://[0:0:0:0:0:0:0:1]/', 'host'],
    ['https://[::ffff:127.0.0.1]/', 'host'],
    ['https://localhost/', 'host'],
    ['https://LOCALHOST:8443/', 'host'],
    ['https://a.localhost./', 'host'],
    ['http://example.org/', 'scheme'],
    ['ftp://example.org/', 'scheme'],
    ['file:///etc/passwd', 'scheme'],
    ['gopher://127.0.0.1:6379/_FLUSHALL', 'scheme'],
    ['javascript:alert(1)', 'scheme'],
    ['https://user:password@example.org/', 'credentials'],
    ['https://user@example.org/', 'credentials'],
    ['https://example.org@127.0.0.1/', 'credentials'],
    ['https://example.org/#here', 'fragment'],
    ['https://example.org/#', 'fragment'],
    ['https://example.org:22/', 'port'],
    ['https://example.org:25/', 'port'],
    ['https://example.org:0/', 'port'],
    ['https://example.org:99999/', 'syntax'],
    ['https://', 'syntax'],
    ['https://[::1/', 'syntax'],
    ['https://[fe80::1%25eth0]/', 'syntax'],
    ['https://256.1.1.1/', 'syntax'],
    ['//example.org/', 'syntax'],
    ['', 'syntax']
  ]
  const all = [...refused, ...otherwise]
  t.ok(all.length >= 60, `${all.length} refused`)
  for (const [url, reason] of all) t.equal(policy.refusalOf(url), reason, url)
  const accepted = [
    ...['https://example.org/', 'https://EXAMPLE.org/in?key=1', 'https://example.org:8443/', 'https://bücher.example/'],
    ...[
      'https://8.8.8.8/',
      'https://172.15.0.1/',
      'https://172.32.0.1/',
      'https://100.63.0.1/',
      'https://100.128.0.1/'
    ],
    ...['https://[2606:4700::1111]/', 'https://[2a00:1450:4001::200e]:443/', 'https://223.255.255.254/']
  ]
  for (const url of accepted) t.equal(policy.refusalOf(url), undefined, url)
  for (const text of ['', 'localhost', 'fe80::1%eth0', '127.0.0.1:80', '0x7f.1']) t.notOk(isPublic(text), text)

  const intranet = createTargetPolicy(['10.1.0.0/16', 'Hooks.Intranet', '::1', 'fd12::/16'])
  const own: [string, string | undefined][] = [
    ['http://10.1.2.3:8080/', undefined],
    ['http://10.2.0.1/', 'scheme'],
    ['https://10.2.0.1/', 'address'],
    ['http://hooks.intranet/', undefined],
    ['http://other.intranet/', 'scheme'],
    ['http://evil-hooks.intranet/', 'scheme'],
    ['https://[::1]/', undefined],
    ['http://[fd12::5]/', undefined],
    ['http://[fd13::5]/', 'scheme'],
    ['http://169.254.169.254/', 'scheme'],
    ['ftp://10.1.2.3/', 'scheme']
  ]
  for (const [url, reason] of own) t.equal(intranet.refusalOf(url), reason, url)
  t.same(
    [
      intranet.mayReach('10.9.9.9', 'hooks.intranet'),
      intranet.mayReach('10.1.9.9', 'other.example'),
      intranet.mayReach('10.9.9.9', 'other.example'),
      intranet.mayReach('8.8.8.8', 'other.example')
    ],
    [true, true, false, true]
  )
  for (const bad of ['10.0.0.0/33', '10.0.0.0/x', 'a b', 'name/8', ''])
    t.throws(() => createTargetPolicy([bad]), RangeError, bad)
})

t.test('V1.3.6 what a name stands for: rebinding, mixed answers, redirects, slow and endless answers', async (t) => {
  const { url, port, requests, state } = await receiver(t)
  const policy = createTargetPolicy(['127.0.0.1'])
  const attempt = async (answers: readonly string[][], target = `https://rebind.example:${port}/`) => {
    let asked = 0
    const sender = createSender({ policy, resolve: async () => answers[Math.min(asked++, answers.length - 1)] ?? [] })
    return { ...(await sender.send(target, {}, '{}', NEVER)), asked }
  }
  t.match(
    await attempt([['127.0.0.1'], ['169.254.169.254']]),
    { outcome: 'network', asked: 1, detail: /SSL|EPROTO|WRONG_VERSION/ },
    'asked once, and connected to that: what answers there speaks no TLS'
  )
  t.match(await attempt([['169.254.169.254'], ['127.0.0.1']]), { outcome: 'refused', detail: 'address', asked: 1 })
  t.match(await attempt([['8.8.8.8', '10.0.0.1']]), { outcome: 'refused', detail: 'address' }, 'one private is enough')
  t.match(await attempt([['::ffff:169.254.169.254']]), { outcome: 'refused', detail: 'address' })
  t.match(await attempt([['not an address']]), { outcome: 'refused' })
  t.match(await attempt([[]]), { outcome: 'network', detail: 'ENOTFOUND' })
  t.match(await attempt([['8.8.8.8']], 'http://plain.example/'), { outcome: 'refused', detail: 'scheme', asked: 0 })
  t.match(await attempt([['8.8.8.8']], 'https://10.0.0.1/'), { outcome: 'refused', detail: 'address', asked: 0 })
  t.equal(requests.length, 0, 'none of these has reached anybody')

  const listed = createTargetPolicy(['hooks.intranet'])
  const byName = createSender({ policy: listed, resolve: async () => ['127.0.0.1'] })
  t.match(await byName.send(`http://hooks.intranet:${port}/in`, {}, '{}', NEVER), {
    outcome: 'success',
    httpStatus: 204
  })
  t.match(requests.at(-1)?.headers, { host: `hooks.intranet:${port}`, connection: 'close' })

  const send = (timeoutMilliseconds = 2_000) => createSender({ policy, timeoutMilliseconds }).send(url, {}, '{}', NEVER)
  for (const code of [301, 302, 303, 307, 308]) {
    const before = requests.length
    state.answer = status(code, { location: `${url}/elsewhere` })
    t.match(await send(), { outcome: 'status', httpStatus: code })
    t.equal(requests.length, before + 1, `${code} is not followed`)
  }
  let written = 0
  state.answer = (response) => {
    response.writeHead(200)
    const more = () => {
      if (response.destroyed) return
      written += 65_536
      response.write(Buffer.alloc(65_536), () => setImmediate(more))
    }
    more()
  }
  t.match(await send(), { outcome: 'success', httpStatus: 200 }, 'an endless answer is cut off')
  t.ok(written < 20_000_000, `${written} bytes`)
  state.answer = (response) => response.writeHead(200, { 'x-long': 'x'.repeat(30_000) }).end()
  t.match(await send(), { outcome: 'network', detail: 'HPE_HEADER_OVERFLOW' })
  state.answer = () => {}
  const slow = await send(60)
  t.match(slow, { outcome: 'timeout', httpStatus: null })
  t.ok(slow.durationMilliseconds < 1_000)
  state.answer = (response) => response.writeHead(200).write('drip')
  // Long enough for a busy machine to have connected and said 200; what follows never ends.
  t.match(await send(1_000), { outcome: 'success' }, 'who has said 200 has taken it')
  state.answer = (response) => response.destroy()
  t.match(await send(), { outcome: 'network', detail: 'ECONNRESET' })
  const never = createSender({ policy, timeoutMilliseconds: 50, resolve: () => new Promise(() => {}) })
  t.match(await never.send('https://slow-dns.example/', {}, '{}', NEVER), { outcome: 'timeout' })
  const stop = new AbortController()
  stop.abort(new Error('closing'))
  await t.rejects(createSender({ policy }).send(url, {}, '{}', stop.signal), /closing/)
})
