/**
 * The C library for a worker thread. Nothing of ours runs when a worker is terminated, runs out of memory, or ends with the
 * process; so all that a worker takes from the system is taken in a way that Node or V8 give back by themselves.
 */
import type { Libc } from './libc.js';
import { WorkerAddresses } from './worker-addresses.js';
import { descriptorsOfWorker } from './worker-descriptors.js';
import { pollInWorker } from './worker-poll.js';

/** @param libc that of {@link loadLibc} */
export function libcOfWorker(libc: Libc): Libc {
  const { mmap, munmap, keeper } = new WorkerAddresses(libc);
  return { ...libc, ...descriptorsOfWorker(libc), mmap, munmap, keeper, pollHandle: pollInWorker(libc) };
}
