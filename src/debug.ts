/** The log for who looks for a fault: `NODE_DEBUG=anydma node program.js` writes it to standard error, as Node's own parts do. */
import { createRequire } from 'node:module';
import { HERE } from './here.js';

/**
 * Writes a line; `undefined` unless it was asked for when the program started, so that `debug?.(...)` costs a comparison, and its
 * text is not made.
 */
export const debug: ((text: string) => void) | undefined = asked();

function asked(): ((text: string) => void) | undefined {
  if ((process.env['NODE_DEBUG'] ?? '') === '') return undefined;
  // Importing node:util opens standard input on Node 26, so that it is left alone without need.
  const { debuglog } = createRequire(HERE)('node:util') as typeof import('node:util');
  const log = debuglog('anydma');
  return log.enabled ? (text) => log('%s', text) : undefined;
}
