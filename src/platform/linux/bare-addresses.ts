/** Addresses that are held without memory: nothing may be found there, and no other mapping comes to lie there. */
import type { Libc } from './libc.js';
import { MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE } from '../uapi/mman.js';

/** The flags of such a mapping: as V8's own ones, so that the kernel joins them to one mapping. */
export const BARE = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

/** Replaces what is mapped by bare addresses. @returns -1 when that fails, as mmap(2) */
export function makeBare(libc: Libc, va: number, length: number): number {
  return libc.mmap(va, length, PROT_NONE, BARE | MAP_FIXED, -1, 0);
}

/**
 * Takes bare addresses, if all of them are free. Also after an mmap with MAP_FIXED that failed: it may have unmapped what was
 * there (as for missing hugepages), and another thread's mapping could come to lie there.
 *
 * @returns were they free?
 */
export function holdBare(libc: Libc, va: number, length: number): boolean {
  const at = libc.mmap(va, length, PROT_NONE, BARE | MAP_FIXED_NOREPLACE, -1, 0);
  // A kernel that does not know the flag takes the address as a wish.
  if (at !== -1 && at !== va) libc.munmap(at, length);
  return at === va;
}
