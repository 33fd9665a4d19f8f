/** Mappings, memfds and views of raw memory on Linux. */
import { constants } from 'node:buffer';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { DmaError, ERRNO, invalid, NO_DESCRIPTORS, unlessFails } from '../../errors.js';
import { hex, isAddress, TiB } from '../../units.js';
import type { Va } from '../../units.js';
import { check, checkFd, checkPath, fail } from './libc.js';
import type { Libc } from './libc.js';
import { checkPages, hugePageFlag } from './page-checks.js';
import { mappingFacts } from './limits.js';
import { linuxPages } from './pages.js';
import { linuxProtection } from './protection.js';
import { linuxReservations } from './reservations.js';
import type { MmapOptions, MemfdOptions, MemoryPort } from '../ports.js';
import { F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SHRINK } from '../uapi/fcntl.js';
import { MFD_ALLOW_SEALING, MFD_CLOEXEC, MFD_HUGE_SHIFT, MFD_HUGETLB } from '../uapi/memfd.js';
import {
  MAP_ANONYMOUS,
  MAP_HUGE_SHIFT,
  MAP_HUGETLB,
  MAP_POPULATE,
  MAP_PRIVATE,
  MAP_SHARED,
  PROT_READ,
  PROT_WRITE,
} from '../uapi/mman.js';

/** The {@link MemoryPort} that makes real system calls. */
export function linuxMemory(libc: Libc): MemoryPort {
  const pageSize = libc.getpagesize();
  // Node 20 reports its real limit (4 GiB); later versions report 2^53, but reserve address space as the view grows.
  const maxView = Math.min(constants.MAX_LENGTH, TiB);

  const reservations = linuxReservations(libc, pageSize);
  /** The kernel copies, so a missing page is an error instead of a signal. */
  const copy = (call: 'process_vm_readv' | 'process_vm_writev', va: Va, bytes: Uint8Array): void => {
    if (!isAddress(va) || va === 0) throw invalid(call, `can not copy ${bytes.byteLength} bytes at ${hex(va)}`);
    for (let done = 0; done < bytes.byteLength;) {
      const rest = bytes.byteLength - done;
      const vectors = new BigUint64Array([
        BigInt(libc.addressOf(bytes) + done),
        BigInt(rest),
        BigInt(va + done),
        BigInt(rest),
      ]);
      const [ours, theirs] = [vectors.subarray(0, 2), vectors.subarray(2)];
      const count = libc[call](process.pid, ours, 1, theirs, 1, 0);
      const errno = count === -1 ? libc.errno() : ERRNO.EFAULT;
      if (count <= 0) fail(errno, call, `${rest} bytes at ${hex(va + done)}`);
      done += count;
    }
  };

  return {
    pageSize,
    maxView,
    ...reservations,
    reserve(...args) {
      needMappings('mmap');
      return reservations.reserve(...args);
    },
    ...linuxPages(libc, pageSize),

    map(options: MmapOptions): Va {
      const { length, writable = true, readOnly = false, fd, offset = 0, hugePageSize, populate = false } = options;
      checkPages('mmap', 'length', length, pageSize);
      if (length === 0) throw invalid('mmap', 'the length of a mapping can not be 0');
      checkPages('mmap', 'offset', offset, pageSize);
      let flags = populate ? MAP_POPULATE : 0;
      if (fd === undefined) flags |= MAP_PRIVATE | MAP_ANONYMOUS;
      else {
        checkFd(fd, 'mmap');
        flags |= writable || readOnly ? MAP_SHARED : MAP_PRIVATE;
      }
      if (hugePageSize !== undefined) {
        if (fd !== undefined)
          throw invalid('mmap', 'hugePageSize is for anonymous memory: a file has a page size of its own');
        checkPages('mmap', 'length', length, hugePageSize);
        flags |= MAP_HUGETLB | hugePageFlag('mmap', hugePageSize, MAP_HUGE_SHIFT);
      }
      const prot = readOnly ? PROT_READ : PROT_READ | PROT_WRITE;
      needMappings('mmap');
      const va = libc.mmap(0, length, prot, flags, fd ?? -1, offset);
      // Before Linux 6.7, a file sealed against writing can not be mapped shared. Its contents never change, so a
      // private mapping is equivalent.
      if (va === -1 && readOnly && libc.errno() === ERRNO.EPERM) {
        const own = (flags & ~MAP_SHARED) | MAP_PRIVATE;
        return check(libc, libc.mmap(0, length, prot, own, fd ?? -1, offset), 'mmap', `${length} bytes`) as Va;
      }
      return check(libc, va, 'mmap', `${length} bytes`) as Va;
    },

    memfd(options: MemfdOptions): number {
      const { name, length, hugePageSize, sealed = true } = options;
      checkPath(name, 'memfd_create');
      if (!isAddress(length)) throw invalid('ftruncate', `${length} bytes is not a valid length`);
      let flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
      if (hugePageSize !== undefined) flags |= MFD_HUGETLB | hugePageFlag('memfd_create', hugePageSize, MFD_HUGE_SHIFT);
      const fd = check(libc, libc.memfd_create(name, flags), 'memfd_create', name);
      try {
        check(libc, libc.ftruncate(fd, length), 'ftruncate', `${length} bytes`);
        if (sealed) check(libc, libc.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 'fcntl', 'F_ADD_SEALS');
      } catch (error) {
        libc.close(fd);
        throw error;
      }
      return fd;
    },

    view(va: Va, length: number): ArrayBuffer {
      if (!isAddress(va) || va === 0 || !isAddress(length) || length === 0)
        throw invalid('view', `can not create a view of ${length} bytes at ${hex(va)}`);
      if (length > maxView) {
        const reason = `${length} bytes are more than an ArrayBuffer of Node ${process.versions.node} can hold (${maxView})`;
        throw new DmaError({ code: 'ENOTSUP', operation: 'view', reason });
      }
      return libc.view(va, length);
    },

    detach,

    copyFrom: (va, into) => copy('process_vm_readv', va, into),
    copyTo: (va, from) => copy('process_vm_writev', va, from),

    addressOf(view: ArrayBufferView | ArrayBufferLike): Va {
      if (isEmpty(view)) throw invalid('addressOf', 'the buffer is empty or detached, so it has no address');
      return libc.addressOf(ArrayBuffer.isView(view) ? view : new Uint8Array(view)) as Va;
    },

    keeper: (va) => libc.keeper(va),

    protection: linuxProtection(libc),
  };
}

/** Mappings reserved for V8 and the rest of the process, which abort it if they get none. */
const SPARE_MAPPINGS = 4096;
/**
 * How many mappings are made without counting: at least this many close to the limit, and at most this many far from
 * it.
 */
const LEAST_UNCHECKED = SPARE_MAPPINGS / 16;
const MOST_UNCHECKED = SPARE_MAPPINGS / 8;

/**
 * Keeps the process away from vm.max_map_count. Counting takes about 1 us per mapping, so it is repeated only after a
 * sixteenth of what was left may have been used. Each thread counts for itself: 16 threads that saw the same number
 * free use no more than that, or no more than the spare ones if fewer are left. `most` limits a thread that counted
 * long ago, when more were free. A process without descriptors can not count; it assumes one more mapping for each of
 * its calls since the last count.
 *
 * Call it before creating a mapping. @throws DmaError ENOMEM
 */
function needMappings(operation: string): void {
  known.used++;
  if (unchecked-- > 0) return;
  known = unlessFails(NO_DESCRIPTORS, mappingFacts) ?? known;
  // Not counted yet.
  if (known.limit === 0) known = mappingFacts();
  const { limit, used } = known;
  const left = limit - used - SPARE_MAPPINGS;
  if (left > 0) {
    const most = Math.max(MOST_UNCHECKED, Math.floor(used / 16));
    unchecked = Math.min(Math.max(LEAST_UNCHECKED, Math.floor(left / 16)), most);
    return;
  }
  unchecked = 0;
  const reason = `the process has ${used} mappings, and the kernel allows ${limit} (vm.max_map_count)`;
  const hint =
    `${SPARE_MAPPINGS} are reserved for the rest of the process: map fewer, larger pieces (a heap hands out parts of one), or raise ` +
    'it with "sysctl vm.max_map_count"';
  throw new DmaError({ code: 'ENOMEM', operation, reason, hint });
}
/** How many mappings this thread may still make before it counts again, and the last count. */
let unchecked = 0;
let known = { limit: 0, used: 0 };

/** Is `view` empty? Once its buffer is detached, a DataView throws where other views return 0. */
function isEmpty(view: ArrayBufferView | ArrayBufferLike): boolean {
  try {
    return view.byteLength === 0;
  } catch {
    return true;
  }
}

/**
 * Returns `ArrayBuffer.prototype.transfer`, the only way to detach an ArrayBuffer created outside V8 (on Node 20,
 * structuredClone copies such a buffer and leaves it attached). Node 20 has the method only behind a flag, in contexts
 * created after the flag was set. The flag stays set, because another thread may be between the two steps; its only
 * effect is to give later contexts a method that newer versions have anyway.
 */
function findTransfer(): unknown {
  const own: unknown = Reflect.get(ArrayBuffer.prototype, 'transfer');
  if (typeof own === 'function') return own;
  setFlagsFromString('--harmony-rab-gsab-transfer');
  return runInNewContext('ArrayBuffer.prototype.transfer');
}

let transfer: unknown;

/** See {@link MemoryPort.detach}. ENOTSUP if this version of Node has no way to detach. */
function detach(buffer: ArrayBuffer): void {
  if (buffer.byteLength === 0) return;
  transfer ??= findTransfer();
  if (typeof transfer === 'function') Reflect.apply(transfer, buffer, [0]);
  if (buffer.byteLength !== 0) {
    const reason = `Node ${process.versions.node} can not detach an ArrayBuffer`;
    throw new DmaError({ code: 'ENOTSUP', operation: 'detach', reason });
  }
}
