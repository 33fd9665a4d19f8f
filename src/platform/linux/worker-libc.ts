/**
 * The C library for a worker thread. Nothing of ours runs when a worker is terminated, runs out of memory, or ends with the
 * process; so all that a worker takes from the system is taken in a way that Node or V8 give back by themselves.
 */
import type { Outcome } from '../background.js';
import type { Libc } from './libc.js';
import { WorkerAddresses } from './worker-addresses.js';
import { descriptorsOfWorker } from './worker-descriptors.js';
import { pollInWorker } from './worker-poll.js';

/** @param libc that of {@link loadLibc} */
export function libcOfWorker(libc: Libc): Libc {
  const { mmap, munmap, keeper } = new WorkerAddresses(libc);
  const descriptors = descriptorsOfWorker(libc);
  // Node has to be told what is closed, by the thread itself.
  const close = (fd: number): Promise<Outcome> => Promise.resolve({ result: descriptors.close(fd), errno: 0 });
  const later = { ...libc.later, close };
  return { ...libc, ...descriptors, later, mmap, munmap, keeper, pollHandle: pollInWorker(libc) };
}
