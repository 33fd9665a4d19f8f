/** Chooses the platform of this machine. */
import { isMainThread } from 'node:worker_threads';
import { loadLibc } from './linux/libc.js';
import { linuxPlatform } from './linux.js';
import type { Platform } from './ports.js';
import { portablePlatform } from './portable.js';
import { libcOfWorker } from './linux/worker-libc.js';

/**
 * Returns the ports of this machine: Linux's where system calls are available, else the portable ones, whose
 * `limitation` says why. Every call makes new ports, which hold nothing until they are used. They belong to the calling
 * thread; when a worker ends, in whatever way, everything that its ports took is released.
 *
 * @throws DmaError EMFILE, ENFILE if no descriptor is left to load them with
 */
export function openPlatform(): Platform {
  const libc = loadLibc();
  return typeof libc === 'string' ? portablePlatform(libc) : linuxPlatform(isMainThread ? libc : libcOfWorker(libc));
}
