/** Chooses the platform of this machine. */
import { isMainThread } from 'node:worker_threads';
import { loadLibc } from './linux/libc.js';
import { linuxPlatform } from './linux.js';
import type { Platform } from './ports.js';
import { portablePlatform } from './portable.js';
import { libcOfWorker } from './linux/worker-libc.js';

/**
 * The ports of this machine: Linux's where system calls can be made, else the portable ones, whose `limitation` says why.
 * Every call makes new ports, which hold nothing until they are used; they belong to the calling thread, and in a
 * worker all that they took is given back when that ends, in whatever way.
 *
 * @throws DmaError EMFILE, ENFILE when no descriptor is left to load them with
 */
export function openPlatform(): Platform {
  const libc = loadLibc();
  return typeof libc === 'string' ? portablePlatform(libc) : linuxPlatform(isMainThread ? libc : libcOfWorker(libc));
}
