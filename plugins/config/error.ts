/** Names the variable, what it holds and what it may hold. Secrets are never shown. */
export class ConfigError extends Error {}
