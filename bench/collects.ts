/** Loaded before the service by `soak`: what is left after a full collection is what stays. */
process.on('SIGUSR2', () => {
  globalThis.gc?.()
})
