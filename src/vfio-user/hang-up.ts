/** Closes a connection whose socket may hold descriptors that were not received. */
import { isDmaError } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { ALL_FDS } from './messages.js';

/** Most messages that are received: more than fit into the queue of a socket with the default buffer. */
const MOST = 512;

/**
 * Closes a connected socket of this process. The other side can send descriptors whose close blocks, and closing the
 * socket closes all descriptors in its queue. So they are received first, and closed on another thread. Never throws.
 */
export function hangUp({ sockets, files }: Platform, fd: number): void {
  try {
    // After this the other side can not send more.
    sockets.shutdown(fd);
  } catch {
    // The other side has closed it already.
  }
  if (isEmptied({ sockets, files }, fd)) files.close(fd);
  else files.closeForeign(fd);
}

/** Receives everything in its queue. @returns whether the queue is empty */
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
