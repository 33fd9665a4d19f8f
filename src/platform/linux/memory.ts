/** Mappings, memfds and views of raw memory on Linux. */
import { constants } from 'node:buffer';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { DmaError, ERRNO, invalid } from '../../errors.js';
import { hex, isAddress, TiB } from '../../units.js';
import type { Va } from '../../units.js';
import { bound } from './bound.js';
import { check, checkFd, checkPath, fail } from './libc.js';
import type { Libc } from './libc.js';
import { checkPages, hugePageFlag } from './page-checks.js';
import { needMappings } from './mapping-limit.js';
import { Pages, type PagesPort } from './pages.js';
import { linuxProtection } from './protection.js';
import { Reservations, type ReservationsPort } from './reservations.js';
import type { MmapOptions, MemfdOptions, MemoryPort } from '../ports.js';
import { F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SHRINK } from '../uapi/fcntl.js';
import { MFD_ALLOW_SEALING, MFD_CLOEXEC, MFD_HUGE_SHIFT, MFD_HUGETLB } from '../uapi/memfd.js';
import { AT_RANDOM, RANDOM_BYTES } from '../uapi/auxvec.js';
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
  const mappings = bound<MappingsPort>(new Mappings(libc));
  const { pageSize } = mappings;
  const reservations = bound<ReservationsPort>(new Reservations(libc, pageSize));
  return {
    ...mappings,
    ...reservations,
    reserve(...args) {
      needMappings('mmap');
      return reservations.reserve(...args);
    },
    ...bound<PagesPort>(new Pages(libc, pageSize)),
    protection: linuxProtection(libc),
  };
}

type MappingsPort = Pick<
  MemoryPort,
  | 'pageSize'
  | 'maxView'
  | 'map'
  | 'memfd'
  | 'view'
  | 'detach'
  | 'copyFrom'
  | 'copyTo'
  | 'addressOf'
  | 'keeper'
  | 'secret'
>;

/** The part of the {@link MemoryPort} about whole mappings, memfds and views. */
class Mappings implements MappingsPort {
  readonly pageSize: number;
  /** Node 20 reports its real limit (4 GiB); later versions report 2^53, but reserve address space as the view grows. */
  readonly maxView = Math.min(constants.MAX_LENGTH, TiB);
  readonly #libc: Libc;

  constructor(libc: Libc) {
    this.#libc = libc;
    this.pageSize = libc.getpagesize();
  }

  map(options: MmapOptions): Va {
    const { length, writable = true, readOnly = false, fd, offset = 0, hugePageSize, populate = false } = options;
    checkPages('mmap', 'length', length, this.pageSize);
    if (length === 0) throw invalid('mmap', 'the length of a mapping can not be 0');
    checkPages('mmap', 'offset', offset, this.pageSize);
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
    const va = this.#libc.mmap(0, length, prot, flags, fd ?? -1, offset);
    // Before Linux 6.7, a file sealed against writing can not be mapped shared. Its contents never change, so a
    // private mapping is equivalent.
    if (va === -1 && readOnly && this.#libc.errno() === ERRNO.EPERM) {
      const own = (flags & ~MAP_SHARED) | MAP_PRIVATE;
      const again = this.#libc.mmap(0, length, prot, own, fd ?? -1, offset);
      return check(this.#libc, again, 'mmap', `${length} bytes`) as Va;
    }
    return check(this.#libc, va, 'mmap', `${length} bytes`) as Va;
  }

  memfd(options: MemfdOptions): number {
    const { name, length, hugePageSize, sealed = true } = options;
    checkPath(name, 'memfd_create');
    if (!isAddress(length)) throw invalid('ftruncate', `${length} bytes is not a valid length`);
    let flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    if (hugePageSize !== undefined) flags |= MFD_HUGETLB | hugePageFlag('memfd_create', hugePageSize, MFD_HUGE_SHIFT);
    const fd = check(this.#libc, this.#libc.memfd_create(name, flags), 'memfd_create', name);
    try {
      check(this.#libc, this.#libc.ftruncate(fd, length), 'ftruncate', `${length} bytes`);
      if (sealed)
        check(this.#libc, this.#libc.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 'fcntl', 'F_ADD_SEALS');
    } catch (error) {
      this.#libc.close(fd);
      throw error;
    }
    return fd;
  }

  view(va: Va, length: number): ArrayBuffer {
    if (!isAddress(va) || va === 0 || !isAddress(length) || length === 0)
      throw invalid('view', `can not create a view of ${length} bytes at ${hex(va)}`);
    if (length > this.maxView) {
      const reason = `${length} bytes are more than an ArrayBuffer of Node ${process.versions.node} can hold (${this.maxView})`;
      throw new DmaError({ code: 'ENOTSUP', operation: 'view', reason });
    }
    return this.#libc.view(va, length);
  }

  detach(buffer: ArrayBuffer): void {
    detach(buffer);
  }

  copyFrom(va: Va, into: Uint8Array): void {
    this.#copy('process_vm_readv', va, into);
  }

  copyTo(va: Va, from: Uint8Array): void {
    this.#copy('process_vm_writev', va, from);
  }

  addressOf(view: ArrayBufferView | ArrayBufferLike): Va {
    if (isEmpty(view)) throw invalid('addressOf', 'the buffer is empty or detached, so it has no address');
    return this.#libc.addressOf(ArrayBuffer.isView(view) ? view : new Uint8Array(view)) as Va;
  }

  keeper(va: Va): readonly SharedArrayBuffer[] | undefined {
    return this.#libc.keeper(va);
  }

  secret(): Uint8Array | undefined {
    const at = this.#libc.getauxval(AT_RANDOM);
    if (at <= 0) return undefined;
    const view = this.#libc.view(at, RANDOM_BYTES);
    const secret = new Uint8Array(view).slice();
    detach(view);
    return secret;
  }

  /** The kernel copies, so a missing page is an error instead of a signal. */
  #copy(call: 'process_vm_readv' | 'process_vm_writev', va: Va, bytes: Uint8Array): void {
    if (!isAddress(va) || va === 0) throw invalid(call, `can not copy ${bytes.byteLength} bytes at ${hex(va)}`);
    for (let done = 0; done < bytes.byteLength;) {
      const rest = bytes.byteLength - done;
      const vectors = new BigUint64Array([
        BigInt(this.#libc.addressOf(bytes) + done),
        BigInt(rest),
        BigInt(va + done),
        BigInt(rest),
      ]);
      const [ours, theirs] = [vectors.subarray(0, 2), vectors.subarray(2)];
      const count = this.#libc[call](process.pid, ours, 1, theirs, 1, 0);
      const errno = count === -1 ? this.#libc.errno() : ERRNO.EFAULT;
      if (count <= 0) fail(errno, call, `${rest} bytes at ${hex(va + done)}`);
      done += count;
    }
  }
}

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
