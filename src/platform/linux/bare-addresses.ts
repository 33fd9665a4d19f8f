/** Bare addresses: reserved without memory, so that no page can be touched and no other mapping is placed there. */
import type { Libc } from './libc.js';
import { MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE } from '../uapi/mman.js';

/** The flags of such a mapping: the same as V8's, so that the kernel merges adjacent ones. */
export const BARE = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

/** Replaces mapped memory by bare addresses. @returns -1 on failure, as mmap(2) */
export function makeBare(libc: Libc, va: number, length: number): number {
  return libc.mmap(va, length, PROT_NONE, BARE | MAP_FIXED, -1, 0);
}

/**
 * Reserves bare addresses, if all of them are free. Also used after a failed mmap with MAP_FIXED: it may have unmapped
 * the old memory (as for missing hugepages), and another thread's mapping could take its place.
 *
 * @returns whether they were free
 */
export function holdBare(libc: Libc, va: number, length: number): boolean {
  const at = libc.mmap(va, length, PROT_NONE, BARE | MAP_FIXED_NOREPLACE, -1, 0);
  // A kernel without MAP_FIXED_NOREPLACE takes the address as a hint.
  if (at !== -1 && at !== va) libc.munmap(at, length);
  return at === va;
}
