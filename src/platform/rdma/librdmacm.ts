/** The functions that librdmacm exports, as its header declares them. */
import { isError } from '../../realms.js';
import { needDescriptors } from '../linux/libc.js';
import type { CFunction, Libc } from '../linux/libc.js';

/**
 * The functions used here; NULL is 0, and addresses are Numbers. Functions that do not create an object return 0, or -1
 * with errno set.
 */
export interface Librdmacm {
  readonly createEventChannel: CFunction;
  readonly destroyEventChannel: CFunction;
  readonly getCmEvent: CFunction;
  readonly ackCmEvent: CFunction;
  readonly createId: CFunction;
  readonly destroyId: CFunction;
  readonly bindAddr: CFunction;
  readonly resolveAddr: CFunction;
  readonly resolveRoute: CFunction;
  readonly listen: CFunction;
  readonly connect: CFunction;
  readonly accept: CFunction;
  readonly establish: CFunction;
  readonly reject: CFunction;
  readonly disconnect: CFunction;
  readonly initQpAttr: CFunction;
}

/**
 * Loads librdmacm, or returns why it can not and what to install, as a clause. @throws DmaError EMFILE, ENFILE if no
 * descriptor is left to load it with
 */
export function loadLibrdmacm(libc: Libc, name = 'librdmacm.so.1'): Librdmacm | string {
  try {
    return declare(libc, name);
  } catch (error) {
    needDescriptors('dlopen');
    const reason = isError(error) ? error.message.split('\n', 1)[0] : String(error);
    return `${name} can not be used (${reason}): install librdmacm1 (its name on Debian)`;
  }
}

function declare(libc: Libc, name: string): Librdmacm {
  const { func } = libc.library(name);
  return {
    createEventChannel: func('rdma_create_event_channel', 'intptr_t'),
    destroyEventChannel: func('rdma_destroy_event_channel', 'void', 'intptr_t'),
    getCmEvent: func('rdma_get_cm_event', 'int', 'intptr_t', 'void *'),
    ackCmEvent: func('rdma_ack_cm_event', 'int', 'intptr_t'),
    createId: func('rdma_create_id', 'int', 'intptr_t', 'void *', 'intptr_t', 'int'),
    destroyId: func('rdma_destroy_id', 'int', 'intptr_t'),
    bindAddr: func('rdma_bind_addr', 'int', 'intptr_t', 'void *'),
    resolveAddr: func('rdma_resolve_addr', 'int', 'intptr_t', 'intptr_t', 'void *', 'int'),
    resolveRoute: func('rdma_resolve_route', 'int', 'intptr_t', 'int'),
    listen: func('rdma_listen', 'int', 'intptr_t', 'int'),
    connect: func('rdma_connect', 'int', 'intptr_t', 'void *'),
    accept: func('rdma_accept', 'int', 'intptr_t', 'void *'),
    establish: func('rdma_establish', 'int', 'intptr_t'),
    reject: func('rdma_reject', 'int', 'intptr_t', 'void *', 'uint8_t'),
    disconnect: func('rdma_disconnect', 'int', 'intptr_t'),
    initQpAttr: func('rdma_init_qp_attr', 'int', 'intptr_t', 'void *', 'void *'),
  };
}
