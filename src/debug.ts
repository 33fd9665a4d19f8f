/** The debug log: `NODE_DEBUG=anydma node program.js` writes it to standard error, like that of Node's own modules. */
import { createRequire } from 'node:module';
import { HERE } from './here.js';

/**
 * Writes a line; `undefined` unless enabled at start, so that a disabled `debug?.(...)` costs one comparison and builds
 * no text.
 */
export const debug: ((text: string) => void) | undefined = asked();

function asked(): ((text: string) => void) | undefined {
  if ((process.env['NODE_DEBUG'] ?? '') === '') return undefined;
  // Importing node:util opens standard input on Node 26, so import it only if needed.
  const { debuglog } = createRequire(HERE)('node:util') as typeof import('node:util');
  const log = debuglog('anydma');
  return log.enabled ? (text) => log('%s', text) : undefined;
}
