/** Open devices and their functions: infiniband/verbs.h. */

/** `struct ibv_context`, up to its mutex; `abi_compat`, a pointer, comes right after that. */
export const CONTEXT = {
  device: 0,
  'ops.alloc_mw': 64,
  'ops.bind_mw': 72,
  'ops.dealloc_mw': 80,
  'ops.poll_cq': 96,
  'ops.req_notify_cq': 104,
  'ops.post_send': 208,
  'ops.post_recv': 216,
  async_fd: 268,
  num_comp_vectors: 272,
  mutex: 280,
} as const;

/**
 * `struct verbs_context`, whose last member is the `ibv_context`, present if that has all ones in `abi_compat`. It grew
 * at the start: `sz` is the size that the library knows.
 */
export const VERBS_CONTEXT = {
  query_port: 0,
  advise_mr: 8,
  query_device_ex: 216,
  sz: 312,
  context: 320,
} as const;

/** The size of glibc's `pthread_mutex_t`. */
export function mutexSize(arch: string): number {
  return arch === 'arm64' ? 48 : 40;
}
