/**
 * The functions that libibverbs exports, as its header declares them. Others are pointers in open devices:
 * `abi/context.ts`.
 */
import { isError } from '../../realms.js';
import { needDescriptors } from '../linux/libc.js';
import type { CFunction, CFunctionLater, Libc } from '../linux/libc.js';

/** The functions used here; NULL is 0, and addresses are Numbers. */
export interface Libibverbs {
  readonly getDeviceList: CFunction;
  readonly freeDeviceList: CFunction;
  readonly openDevice: CFunction;
  readonly closeDevice: CFunction;
  readonly queryDevice: CFunction;
  readonly queryPort: CFunction;
  readonly queryGidTable: CFunction;
  readonly getAsyncEvent: CFunction;
  readonly ackAsyncEvent: CFunction;
  readonly allocPd: CFunction;
  readonly deallocPd: CFunction;
  readonly regMr: CFunction;
  readonly regMrLater: CFunctionLater;
  /** Since rdma-core 34. */
  readonly regDmabufMr: CFunction | undefined;
  readonly deregMr: CFunction;
  readonly deregMrLater: CFunctionLater;
  readonly createCompChannel: CFunction;
  readonly destroyCompChannel: CFunction;
  readonly getCqEvent: CFunction;
  readonly ackCqEvents: CFunction;
  readonly createCq: CFunction;
  readonly resizeCq: CFunction;
  readonly destroyCq: CFunction;
  readonly createQp: CFunction;
  readonly modifyQp: CFunction;
  readonly modifyQpLater: CFunctionLater;
  readonly queryQp: CFunction;
  readonly destroyQp: CFunction;
  readonly createAh: CFunction;
  readonly createAhLater: CFunctionLater;
  readonly destroyAh: CFunction;
}

/**
 * Loads libibverbs, or returns why it can not and what to install, as a clause. @throws DmaError EMFILE, ENFILE if no
 * descriptor is left to load it with
 */
export function loadLibibverbs(libc: Libc, name = 'libibverbs.so.1'): Libibverbs | string {
  try {
    return declare(libc, name);
  } catch (error) {
    needDescriptors('dlopen');
    const reason = isError(error) ? error.message.split('\n', 1)[0] : String(error);
    return `${name} of rdma-core 33 or newer can not be used (${reason}): install libibverbs1 and ibverbs-providers (their names on Debian)`;
  }
}

function declare(libc: Libc, name: string): Libibverbs {
  const { func, later } = libc.library(name);
  const regMr = ['ibv_reg_mr_iova2', 'intptr_t', 'intptr_t', 'intptr_t', 'size_t', 'uint64_t', 'uint'] as const;
  return {
    getDeviceList: func('ibv_get_device_list', 'intptr_t', 'void *'),
    freeDeviceList: func('ibv_free_device_list', 'void', 'intptr_t'),
    openDevice: func('ibv_open_device', 'intptr_t', 'intptr_t'),
    closeDevice: func('ibv_close_device', 'int', 'intptr_t'),
    queryDevice: func('ibv_query_device', 'int', 'intptr_t', 'void *'),
    queryPort: func('ibv_query_port', 'int', 'intptr_t', 'uint8_t', 'void *'),
    queryGidTable: func('_ibv_query_gid_table', 'intptr_t', 'intptr_t', 'void *', 'size_t', 'uint', 'size_t'),
    getAsyncEvent: func('ibv_get_async_event', 'int', 'intptr_t', 'void *'),
    ackAsyncEvent: func('ibv_ack_async_event', 'void', 'void *'),
    allocPd: func('ibv_alloc_pd', 'intptr_t', 'intptr_t'),
    deallocPd: func('ibv_dealloc_pd', 'int', 'intptr_t'),
    // The header's ibv_reg_mr and ibv_reg_mr_iova call this function, except for constant flags of the first kernels.
    regMr: func(...regMr),
    regMrLater: later(...regMr),
    regDmabufMr: optional(() =>
      func('ibv_reg_dmabuf_mr', 'intptr_t', 'intptr_t', 'uint64_t', 'size_t', 'uint64_t', 'int', 'int'),
    ),
    deregMr: func('ibv_dereg_mr', 'int', 'intptr_t'),
    deregMrLater: later('ibv_dereg_mr', 'int', 'intptr_t'),
    createCompChannel: func('ibv_create_comp_channel', 'intptr_t', 'intptr_t'),
    destroyCompChannel: func('ibv_destroy_comp_channel', 'int', 'intptr_t'),
    getCqEvent: func('ibv_get_cq_event', 'int', 'intptr_t', 'void *', 'void *'),
    ackCqEvents: func('ibv_ack_cq_events', 'void', 'intptr_t', 'uint'),
    createCq: func('ibv_create_cq', 'intptr_t', 'intptr_t', 'int', 'intptr_t', 'intptr_t', 'int'),
    resizeCq: func('ibv_resize_cq', 'int', 'intptr_t', 'int'),
    destroyCq: func('ibv_destroy_cq', 'int', 'intptr_t'),
    createQp: func('ibv_create_qp', 'intptr_t', 'intptr_t', 'void *'),
    modifyQp: func('ibv_modify_qp', 'int', 'intptr_t', 'void *', 'int'),
    modifyQpLater: later('ibv_modify_qp', 'int', 'intptr_t', 'intptr_t', 'int'),
    queryQp: func('ibv_query_qp', 'int', 'intptr_t', 'void *', 'int', 'void *'),
    destroyQp: func('ibv_destroy_qp', 'int', 'intptr_t'),
    createAh: func('ibv_create_ah', 'intptr_t', 'intptr_t', 'void *'),
    createAhLater: later('ibv_create_ah', 'intptr_t', 'intptr_t', 'intptr_t'),
    destroyAh: func('ibv_destroy_ah', 'int', 'intptr_t'),
  };
}

function optional(declare: () => CFunction): CFunction | undefined {
  try {
    return declare();
  } catch {
    return undefined;
  }
}
