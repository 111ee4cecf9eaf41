/** Why a server's certificate was not believed, or ours not by the server, in words; undefined for any other failure. */
export function tlsFailure(error: unknown): string | undefined {
  if (!(error instanceof Error)) return undefined
  const code = 'code' in error ? String(error.code) : ''
  const said = REASONS[code]
  if (said !== undefined) return `${said} (${code})`
  if (/does not support SSL/.test(error.message)) return 'it does not speak TLS'
  if (/^ERR_(SSL|TLS)_|^EPROTO$/.test(code)) return `TLS cannot be agreed on (${code})`
  return undefined
}

const UNKNOWN_ISSUER = 'its certificate is not from an authority that is trusted here'
const REASONS: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: 'its certificate has expired',
  CERT_NOT_YET_VALID: 'its certificate is not valid yet',
  CERT_REVOKED: 'its certificate is revoked',
  CERT_SIGNATURE_FAILURE: UNKNOWN_ISSUER,
  DEPTH_ZERO_SELF_SIGNED_CERT: UNKNOWN_ISSUER,
  ERR_TLS_CERT_ALTNAME_INVALID: 'its certificate is for another name',
  SELF_SIGNED_CERT_IN_CHAIN: UNKNOWN_ISSUER,
  UNABLE_TO_GET_ISSUER_CERT: UNKNOWN_ISSUER,
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: UNKNOWN_ISSUER,
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: UNKNOWN_ISSUER
}
