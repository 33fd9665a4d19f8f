/**
 * The C library for a worker thread. No code of ours runs when a worker is terminated, runs out of memory, or ends with
 * the process. So everything that a worker takes from the system is taken in a way that lets Node or V8 release it.
 */
import type { Outcome } from '../background.js';
import type { Libc } from './libc.js';
import { WorkerAddresses } from './worker-addresses.js';
import { descriptorsOfWorker } from './worker-descriptors.js';
import { pollInWorker } from './worker-poll.js';

/** @param libc the result of {@link loadLibc} */
export function libcOfWorker(libc: Libc): Libc {
  const { mmap, munmap, keeper } = new WorkerAddresses(libc);
  const descriptors = descriptorsOfWorker(libc);
  // Node must learn from this thread itself which descriptors are closed.
  const close = (fd: number): Promise<Outcome> => Promise.resolve({ result: descriptors.close(fd), errno: 0 });
  const setsockopt = (...args: Parameters<Libc['setsockopt']>): Promise<Outcome> =>
    Promise.resolve({ result: libc.setsockopt(...args), errno: 0 });
  const later = { ...libc.later, setsockopt, close };
  return { ...libc, ...descriptors, later, mmap, munmap, keeper, pollHandle: pollInWorker(libc) };
}
