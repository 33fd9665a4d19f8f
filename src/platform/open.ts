/** Chooses the platform of this machine. */
import { loadLibc } from './libc.js';
import { linuxPlatform } from './linux.js';
import type { Platform } from './ports.js';
import { portablePlatform } from './portable.js';

/**
 * The ports of this machine: Linux's where system calls can be made, else the portable ones, whose `limitation` says why.
 * Every call makes new ports, which hold nothing until they are used; they belong to the calling thread.
 *
 * @throws DmaError EMFILE, ENFILE when no descriptor is left to load them with
 */
export function openPlatform(): Platform {
  const libc = loadLibc();
  return typeof libc === 'string' ? portablePlatform(libc) : linuxPlatform(libc);
}
