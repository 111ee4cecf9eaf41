/**
 * Read before each test file. tap follows every promise from the test that made it, to name that test when an error comes late: a
 * tenth of what the tests cost. Without it such an error ends the process, and so the files in it fail as well.
 */
import hooks from 'node:async_hooks'
import { syncBuiltinESMExports } from 'node:module'

const none = { enable: () => none, disable: () => none }
hooks.createHook = () => none
syncBuiltinESMExports()
