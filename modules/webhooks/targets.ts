import { BlockList, isIP } from 'node:net'

/** Where a webhook may go: whoever names the URL must not thereby reach what only this machine can reach. */

type TargetRefusal = 'syntax' | 'scheme' | 'credentials' | 'fragment' | 'port' | 'host' | 'address'

export interface TargetPolicy {
  /** What is wrong with a URL before any name is looked up; undefined: nothing. */
  refusalOf(url: string): TargetRefusal | undefined
  /** Whether an address that `hostname` stands for may be connected to. */
  mayReach(address: string, hostname: string): boolean
}

/**
 * IPv4 that is not globally reachable: the IANA special-purpose registry (RFC 6890 and its updates), multicast, reserved and
 * broadcast addresses, and the one public address that a cloud (Azure) answers on to its own machines only.
 */
const SPECIAL_IPV4: readonly [string, number][] = [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['168.63.129.16', 32],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.0.2.0', 24],
  ['192.31.196.0', 24],
  ['192.52.193.0', 24],
  ['192.88.99.0', 24],
  ['192.168.0.0', 16],
  ['192.175.48.0', 24],
  ['198.18.0.0', 15],
  ['198.51.100.0', 24],
  ['203.0.113.0', 24],
  ['224.0.0.0', 3]
]
/** All global unicast. What carries an IPv4 address inside (mapped, compatible, NAT64) is outside of it. */
const GLOBAL_IPV6: readonly [string, number][] = [['2000::', 3]]
/** Of that: protocol assignments with Teredo, benchmarking and ORCHID, documentation, 6to4, AS112. */
const SPECIAL_IPV6: readonly [string, number][] = [
  ['2001::', 23],
  ['2001:db8::', 32],
  ['2002::', 16],
  ['2620:4f:8000::', 48],
  ['3fff::', 20]
]

const HTTP_PORTS = new Set([80, 443])
const PRIVILEGED_PORTS = 1024

const family = (address: string) => (isIP(address) === 6 ? 'ipv6' : 'ipv4')

function listOf(ranges: readonly (readonly [string, number])[]): BlockList {
  const list = new BlockList()
  for (const [address, bits] of ranges) list.addSubnet(address, bits, family(address))
  return list
}

const special4 = listOf(SPECIAL_IPV4)
const global6 = listOf(GLOBAL_IPV6)
const special6 = listOf(SPECIAL_IPV6)

/** Globally reachable; what is no address is not. */
export function isPublic(address: string): boolean {
  const version = isIP(address)
  if (version === 4) return !special4.check(address, 'ipv4')
  return version === 6 && global6.check(address, 'ipv6') && !special6.check(address, 'ipv6')
}

/** An address as a URL spells it, IPv6 without its brackets. */
export const hostOf = ({ hostname }: URL): string => hostname.replace(/^\[|\]$/g, '')

/**
 * @param allowed names, addresses and ranges that may be private, and be spoken to over http
 * @throws RangeError for one that is none of these
 */
export function createTargetPolicy(allowed: readonly string[]): TargetPolicy {
  const names = new Set<string>()
  const addresses = new BlockList()
  for (const entry of allowed) {
    const [base = '', bits] = entry.split('/')
    const version = isIP(base)
    if (version === 0 && bits === undefined && /^[a-z0-9._-]+$/i.test(base)) names.add(base.toLowerCase())
    else if (version !== 0) addresses.addSubnet(base, Number(bits ?? (version === 4 ? 32 : 128)), family(base))
    else throw new RangeError(`${JSON.stringify(entry)} is no name, address or range`)
  }
  const isAllowed = (host: string) =>
    isIP(host) === 0 ? names.has(host.toLowerCase()) : addresses.check(host, family(host))

  return {
    refusalOf: (text) => {
      const url = URL.canParse(text) ? new URL(text) : undefined
      if (url === undefined) return 'syntax'
      const host = hostOf(url)
      const listed = isAllowed(host)
      if (url.protocol !== 'https:' && !(url.protocol === 'http:' && listed)) return 'scheme'
      if (url.username !== '' || url.password !== '') return 'credentials'
      if (text.includes('#')) return 'fragment'
      const port = Number(url.port)
      if (url.port !== '' && port < PRIVILEGED_PORTS && !HTTP_PORTS.has(port)) return 'port'
      if (isIP(host) === 0) return !listed && /(^|\.)localhost\.?$/i.test(host) ? 'host' : undefined
      // `2130706433`, `0x7f.1` and `0177.0.0.1` are 127.0.0.1 too: an address is written as one, or is meant to deceive.
      const authority = /^https?:\/\/([^/?#]*)/i.exec(text)?.[1] ?? ''
      if (authority.toLowerCase().replace(/:\d+$/, '') !== url.hostname) return 'host'
      return listed || isPublic(host) ? undefined : 'address'
    },
    mayReach: (address, hostname) => isPublic(address) || isAllowed(address) || isAllowed(hostname)
  }
}
