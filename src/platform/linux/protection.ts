/**
 * What access the process has to addresses. Since Linux 6.11 an ioctl of /proc/self/maps answers for one address, in
 * constant time; older kernels only give the text of all mappings.
 */
import { DmaError, ERRNO } from '../../errors.js';
import { isAddress } from '../../units.js';
import { fail, type Libc } from './libc.js';
import { readKernelText } from './proc.js';
import type { MemoryPort } from '../ports.js';
import { Struct } from '../struct.js';
import { O_CLOEXEC, O_RDONLY } from '../uapi/fcntl.js';
import {
  PROCMAP_QUERY,
  PROCMAP_QUERY_ARGUMENT as QUERY,
  PROCMAP_QUERY_VMA_READABLE,
  PROCMAP_QUERY_VMA_WRITABLE,
} from '../uapi/procmap.js';

type Protection = ReturnType<MemoryPort['protection']>;

const MAPS = '/proc/self/maps';
/** Errors of kernels without this ioctl. */
const NOT_KNOWN: readonly number[] = [ERRNO.ENOTTY, ERRNO.EINVAL, ERRNO.ENOSYS];

/** `MemoryPort.protection`. */
export function linuxProtection(libc: Libc): MemoryPort['protection'] {
  let canBeAsked = true;
  const query = new Struct(QUERY.sizeof);
  return (va, length) => {
    if (!isAddress(va) || !isAddress(length) || length === 0) return 'none';
    const answer = canBeAsked ? askedIn(libc, query, va, va + length) : undefined;
    if (answer !== undefined) return answer;
    canBeAsked = false;
    return readIn(va, va + length);
  };
}

/** Queries mapping after mapping. @returns `undefined` if the kernel lacks the ioctl */
function askedIn(libc: Libc, query: Struct, start: number, end: number): Protection | undefined {
  const fd = libc.open(MAPS, O_CLOEXEC | O_RDONLY, 0);
  if (fd === -1) {
    const errno = libc.errno();
    return errno === ERRNO.ENOENT ? undefined : fail(errno, 'protection', MAPS);
  }
  try {
    let writable = true;
    for (let at = start; at < end; at = query.u64(QUERY.vma_end)) {
      query.bytes.fill(0);
      query.set64(QUERY.size, QUERY.sizeof).set64(QUERY.query_addr, at);
      if (libc.ioctl(fd, PROCMAP_QUERY, query.bytes) === -1) {
        const errno = libc.errno();
        if (errno === ERRNO.ENOENT) return 'none';
        return NOT_KNOWN.includes(errno) ? undefined : fail(errno, 'protection', 'PROCMAP_QUERY');
      }
      const flags = query.u32(QUERY.vma_flags);
      if ((flags & PROCMAP_QUERY_VMA_READABLE) === 0) return 'none';
      if ((flags & PROCMAP_QUERY_VMA_WRITABLE) === 0) writable = false;
    }
    return writable ? 'read-write' : 'read';
  } finally {
    libc.close(fd);
  }
}

function readIn(start: number, end: number): Protection {
  const maps = readKernelText(MAPS);
  if (maps === undefined)
    throw new DmaError({ code: 'ENOTSUP', operation: 'protection', reason: '/proc is not mounted' });
  return protectionIn(maps, start, end);
}

/** The access to all of [start, end), from the lines of /proc/self/maps, which ascend. */
export function protectionIn(maps: string, start: number, end: number): Protection {
  let covered = start;
  let writable = true;
  for (const [, from, to, read, write] of maps.matchAll(/^([0-9a-f]+)-([0-9a-f]+) (.)(.)/gm)) {
    if (parseInt(to, 16) <= covered) continue;
    if (parseInt(from, 16) > covered || read !== 'r') return 'none';
    if (write !== 'w') writable = false;
    covered = parseInt(to, 16);
    if (covered >= end) return writable ? 'read-write' : 'read';
  }
  return 'none';
}
