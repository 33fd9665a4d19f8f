/**
 * The platform where system calls are not available (macOS, Windows, no koffi binary). Memory is ordinary ArrayBuffers
 * at made-up addresses, enough for allocators, ledgers and tests; everything else throws ENOTSUP with the reason.
 */
import { constants } from 'node:buffer';
import { DmaError, invalid } from '../errors.js';
import { isArrayBuffer } from '../realms.js';
import { alignUp, hex, isAddress, TiB } from '../units.js';
import type { Va } from '../units.js';
import type { MmapOptions, MemoryPort, Platform } from './ports.js';
import type { RdmaCmPort } from './rdma/rdma-cm-port.js';
import type { VerbsPort } from './rdma/verbs-port.js';

/** @param reason why system calls are not available, as a clause; becomes `limitation` and part of every ENOTSUP */
export function portablePlatform(reason: string): Platform {
  const refuse = (operation: string) => (): never => {
    throw new DmaError({ code: 'ENOTSUP', operation, reason });
  };
  return {
    name: 'portable',
    limitation: reason,
    memory: new PortableMemory(reason),
    files: {
      open: refuse('open'),
      create: refuse('open'),
      remove: refuse('unlink'),
      hasName: refuse('statx'),
      truncate: refuse('ftruncate'),
      allocateRange: refuse('fallocate'),
      punch: refuse('fallocate'),
      allocateRangeAsync: refuse('fallocate'),
      punchAsync: refuse('fallocate'),
      lock: refuse('flock'),
      close: refuse('close'),
      foreign: refuse('fcntl'),
      closeForeign: refuse('close'),
      closing: () => 0,
      duplicate: refuse('fcntl'),
      status: refuse('statx'),
      fileSystem: refuse('fstatfs'),
      sealedAgainstShrinking: refuse('fcntl'),
      batch: () => undefined,
      readAt: refuse('pread'),
      writeAt: refuse('pwrite'),
      read: refuse('read'),
      write: refuse('write'),
    },
    sockets: {
      connect: refuse('connect'),
      listen: refuse('listen'),
      accept: refuse('accept4'),
      pair: refuse('socketpair'),
      send: refuse('sendmsg'),
      receive: refuse('recvmsg'),
      shutdown: refuse('shutdown'),
      peer: refuse('getsockopt'),
      peerProcess: refuse('getsockopt'),
    },
    events: {
      create: refuse('eventfd'),
      signal: refuse('write'),
      signalForeign: refuse('io_submit'),
      take: refuse('read'),
    },
    readiness: { watch: refuse('watch'), wait: refuse('poll') },
    ioctl: { call: refuse('ioctl'), callAsync: refuse('ioctl') },
    limits: {
      lockedMemory: () => ({ limit: Infinity, used: 0 }),
      pinnedMemory: () => 0,
      mappings: () => ({ limit: Infinity, used: 0 }),
      descriptors: () => ({ limit: Infinity, most: Infinity, open: 0 }),
      room: () => ({ bytes: Infinity, limit: reason }),
      freeHugePages: () => undefined,
      hugePageRoom: () => ({ bytes: Infinity, limit: reason }),
    },
    kernel: {
      readText: () => undefined,
      writeText: refuse('write'),
      list: () => [],
      readLink: () => undefined,
      realPath: () => undefined,
      mayOpen: () => 'no-such-file',
      log: () => undefined,
      changeOwner: refuse('chown'),
      makeDirectory: refuse('mkdir'),
      mount: refuse('mount'),
      unmount: refuse('umount2'),
      nodeAt: () => undefined,
      claim: refuse('open'),
      routes: refuse('socket'),
      idOf: refuse('getpwnam'),
    },
    verbs: absentPort<VerbsPort>(reason, VERBS_FUNCTIONS),
    rdmaCm: absentPort<RdmaCmPort>(reason, RDMA_CM_FUNCTIONS),
  };
}

/** What an absent port answers: each call is ENOTSUP, by the name of the C function that it would have made. */
function absentPort<Port extends { readonly limitation: string | undefined }>(
  limitation: string,
  functions: Readonly<Record<Exclude<keyof Port, 'limitation'>, string>>,
): Port {
  const refuse = (operation: string) => (): never => {
    throw new DmaError({ code: 'ENOTSUP', operation, reason: limitation });
  };
  const calls = Object.entries<string>(functions).map(([call, operation]) => [call, refuse(operation)]);
  return { limitation, ...Object.fromEntries(calls) } as Port;
}

const RDMA_CM_FUNCTIONS: Readonly<Record<Exclude<keyof RdmaCmPort, 'limitation'>, string>> = {
  createChannel: 'rdma_create_event_channel',
  destroyChannel: 'rdma_destroy_event_channel',
  nextEvent: 'rdma_get_cm_event',
  createId: 'rdma_create_id',
  destroyId: 'rdma_destroy_id',
  bind: 'rdma_bind_addr',
  listen: 'rdma_listen',
  resolveAddress: 'rdma_resolve_addr',
  resolveRoute: 'rdma_resolve_route',
  device: 'rdma_create_id',
  local: 'rdma_get_local_addr',
  remote: 'rdma_get_peer_addr',
  qpAttributes: 'rdma_init_qp_attr',
  connect: 'rdma_connect',
  accept: 'rdma_accept',
  establish: 'rdma_establish',
  reject: 'rdma_reject',
  disconnect: 'rdma_disconnect',
};

const VERBS_FUNCTIONS: Readonly<Record<Exclude<keyof VerbsPort, 'limitation'>, string>> = {
  devices: 'ibv_get_device_list',
  open: 'ibv_open_device',
  close: 'ibv_close_device',
  queryDevice: 'ibv_query_device',
  queryPort: 'ibv_query_port',
  gids: 'ibv_query_gid_table',
  nextAsyncEvent: 'ibv_get_async_event',
  allocatePd: 'ibv_alloc_pd',
  deallocatePd: 'ibv_dealloc_pd',
  registerMemory: 'ibv_reg_mr',
  registerMemoryAsync: 'ibv_reg_mr',
  registerDmabuf: 'ibv_reg_dmabuf_mr',
  deregisterMemory: 'ibv_dereg_mr',
  deregisterMemoryAsync: 'ibv_dereg_mr',
  adviseMemory: 'ibv_advise_mr',
  allocateMw: 'ibv_alloc_mw',
  deallocateMw: 'ibv_dealloc_mw',
  bindMw: 'ibv_bind_mw',
  createChannel: 'ibv_create_comp_channel',
  destroyChannel: 'ibv_destroy_comp_channel',
  nextCqEvent: 'ibv_get_cq_event',
  createCq: 'ibv_create_cq',
  resizeCq: 'ibv_resize_cq',
  destroyCq: 'ibv_destroy_cq',
  requestNotify: 'ibv_req_notify_cq',
  pollCq: 'ibv_poll_cq',
  createQp: 'ibv_create_qp',
  modifyQp: 'ibv_modify_qp',
  modifyQpAsync: 'ibv_modify_qp',
  queryQp: 'ibv_query_qp',
  destroyQp: 'ibv_destroy_qp',
  lend: 'ibv_post_send',
  borrow: 'ibv_post_send',
  giveBack: 'ibv_post_send',
  createAh: 'ibv_create_ah',
  createAhAsync: 'ibv_create_ah',
  destroyAh: 'ibv_destroy_ah',
  postSend: 'ibv_post_send',
  postReceive: 'ibv_post_recv',
};

/** The first made-up address: far from any that an operating system uses. */
const FIRST_VA = 0x100000000000;

/**
 * Memory at made-up addresses. Each ArrayBuffer begins on its own page, with a gap after it, so that two buffers never
 * look like one range. A view must cover a whole buffer: JavaScript can not create two ArrayBuffers over the same
 * memory.
 */
class PortableMemory implements MemoryPort {
  readonly pageSize = 4096;
  readonly maxView = Math.min(constants.MAX_LENGTH, TiB);
  readonly #reason: string;
  #nextVa = FIRST_VA;
  readonly #mappings = new Map<number, { readonly buffer: ArrayBuffer; readonly length: number }>();
  readonly #addresses = new WeakMap<ArrayBufferLike, number>();
  readonly #foreign = new Map<number, WeakRef<ArrayBuffer>>();
  readonly #forget = new FinalizationRegistry<number>((va) => this.#foreign.delete(va));

  constructor(reason: string) {
    this.#reason = reason;
  }

  map(options: MmapOptions): Va {
    const { length, writable = true, fd, hugePageSize } = options;
    if (!isAddress(length) || length === 0 || length % this.pageSize !== 0)
      throw invalid('mmap', `the length ${length} is not a multiple of the page size ${this.pageSize}`);
    if (fd !== undefined) throw this.#unsupported('mmap', 'mapping a descriptor is not supported');
    if (hugePageSize !== undefined) throw this.#unsupported('mmap', 'there are no huge pages');
    if (!writable) throw this.#unsupported('mmap', 'memory can not be made read-only');
    const buffer = allocate(length);
    const va = this.#place(buffer);
    this.#mappings.set(va, { buffer, length });
    return va;
  }

  copyFrom(va: Va, into: Uint8Array): void {
    into.set(new Uint8Array(this.view(va, into.byteLength)));
  }

  copyTo(va: Va, from: Uint8Array): void {
    new Uint8Array(this.view(va, from.byteLength)).set(from);
  }

  unmap(va: Va, length: number): void {
    if (this.#mappings.get(va)?.length !== length)
      throw invalid('munmap', `${length} bytes at ${hex(va)} are not one whole mapping`);
    this.#mappings.delete(va);
  }

  /** The ArrayBuffer lives as long as anyone uses it, so nothing needs protection. */
  retire(va: Va, length: number): void {
    if (this.#mappings.get(va)?.length !== length)
      throw invalid('mmap', `${length} bytes at ${hex(va)} are not one whole mapping`);
    this.#mappings.set(va, { buffer: new ArrayBuffer(0), length });
  }

  memfd(): never {
    throw this.#unsupported('memfd_create', 'memfds are not supported');
  }

  reserve(): never {
    throw this.#unsupported('mmap', 'reserving addresses without memory is not supported');
  }

  reserveAt(): never {
    throw this.#unsupported('mmap', 'reserving addresses without memory is not supported');
  }

  commit(): never {
    throw this.#unsupported('mmap', 'mapping at a given address is not supported');
  }

  readonly lanes = 1;

  async populateAsync(): Promise<never> {
    throw this.#unsupported('madvise', 'faulting pages in is not supported');
  }

  async dropAsync(): Promise<never> {
    throw this.#unsupported('madvise', 'dropping single pages is not supported');
  }

  populate(): never {
    throw this.#unsupported('madvise', 'faulting pages in is not supported');
  }

  decommit(): never {
    throw this.#unsupported('mmap', 'mapping at a given address is not supported');
  }

  bind(): never {
    throw this.#unsupported('mbind', 'binding memory to a NUMA node is not supported');
  }

  nodesOf(_va: Va, _pageSize: number, count: number): Int32Array {
    return new Int32Array(count).fill(-1);
  }

  frames(): undefined {
    return undefined;
  }

  lock(): never {
    throw this.#unsupported('mlock', 'locking memory is not supported');
  }

  /** Returns the whole ArrayBuffer at `va`. It is the memory itself: detaching it loses the contents. */
  view(va: Va, length: number): ArrayBuffer {
    const buffer = this.#mappings.get(va)?.buffer ?? this.#foreign.get(va)?.deref();
    if (buffer === undefined || buffer.byteLength !== length)
      throw this.#unsupported('view', `${length} bytes at ${hex(va)} are not one whole ArrayBuffer`);
    return buffer;
  }

  detach(buffer: ArrayBuffer): void {
    if (buffer.byteLength !== 0) structuredClone(buffer, { transfer: [buffer] });
  }

  addressOf(view: ArrayBufferView | ArrayBufferLike): Va {
    const { buffer, offset } = whole(view);
    return ((this.#addresses.get(buffer) ?? this.#adopt(buffer)) + offset) as Va;
  }

  /** Memory here always belongs to its own thread. */
  keeper(): undefined {
    return undefined;
  }

  secret(): undefined {
    return undefined;
  }

  protection(va: Va, length: number): 'none' | 'read-write' {
    for (const [start, { buffer }] of this.#mappings) if (covers(start, buffer, va, length)) return 'read-write';
    for (const [start, buffer] of this.#foreign) if (covers(start, buffer.deref(), va, length)) return 'read-write';
    return 'none';
  }

  #adopt(buffer: ArrayBufferLike): number {
    const va = this.#place(buffer);
    if (isArrayBuffer(buffer)) {
      this.#foreign.set(va, new WeakRef(buffer));
      this.#forget.register(buffer, va);
    }
    return va;
  }

  #place(buffer: ArrayBufferLike): Va {
    const va = this.#nextVa;
    this.#nextVa = va + alignUp(buffer.byteLength, this.pageSize) + this.pageSize;
    this.#addresses.set(buffer, va);
    return va as Va;
  }

  #unsupported(operation: string, reason: string): DmaError {
    return new DmaError({ code: 'ENOTSUP', operation, reason: `${reason}: ${this.#reason}` });
  }
}

/** Does `buffer`, which begins at `start`, contain all of [va, va + length)? */
function covers(start: number, buffer: ArrayBuffer | undefined, va: number, length: number): boolean {
  return buffer !== undefined && length > 0 && va >= start && va + length <= start + buffer.byteLength;
}

function allocate(length: number): ArrayBuffer {
  try {
    return new ArrayBuffer(length);
  } catch (error) {
    throw new DmaError({
      code: 'ENOMEM',
      operation: 'mmap',
      reason: `${length} bytes are not available`,
      cause: error,
    });
  }
}

/** The underlying buffer of `view` and the view's byte offset in it; EINVAL if the view is empty. */
function whole(view: ArrayBufferView | ArrayBufferLike): { buffer: ArrayBufferLike; offset: number } {
  try {
    if (view.byteLength > 0)
      return ArrayBuffer.isView(view) ? { buffer: view.buffer, offset: view.byteOffset } : { buffer: view, offset: 0 };
  } catch {
    // A DataView of a detached buffer throws instead of returning 0.
  }
  throw invalid('addressOf', 'the buffer is empty or detached, so it has no address');
}
