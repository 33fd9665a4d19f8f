/** How a connection is closed in which descriptors may lie that nobody took. */
import { isDmaError } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { ALL_FDS } from './messages.js';

/** Messages that are looked through: more than fit into the queue of a socket with the default buffer. */
const MOST = 512;

/**
 * Closes a connected socket of this process. The other side can put descriptors into its queue of which closing blocks,
 * and close(2) of the socket closes them all: so they are taken out first. Never throws.
 */
export function hangUp({ sockets, files }: Platform, fd: number): void {
  try {
    // From here on the other side can not send any more.
    sockets.shutdown(fd);
  } catch {
    // The other side was faster.
  }
  if (isEmptied({ sockets, files }, fd)) files.close(fd);
  else files.closeForeign(fd);
}

/** Takes all out of its queue. */
function isEmptied({ sockets, files }: Pick<Platform, 'sockets' | 'files'>, fd: number): boolean {
  const into = new Uint8Array(65536);
  try {
    for (let n = 0; n < MOST; n++) {
      const received = sockets.receive(fd, into, ALL_FDS);
      if (received === undefined) return true;
      received.fds.forEach(files.closeForeign);
      if (received.truncated) return false;
      if (received.bytes === 0) return true;
    }
  } catch (error) {
    if (!isDmaError(error)) throw error;
  }
  return false;
}
