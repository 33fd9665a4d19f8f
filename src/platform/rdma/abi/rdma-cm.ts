/** Connection set-up: rdma/rdma_cma.h. */

export const RDMA_PS_TCP = 0x106;

/** `enum rdma_cm_event_type`: the names without `RDMA_CM_EVENT_`, each at its number. */
export const CM_EVENTS = [
  'ADDR_RESOLVED',
  'ADDR_ERROR',
  'ROUTE_RESOLVED',
  'ROUTE_ERROR',
  'CONNECT_REQUEST',
  'CONNECT_RESPONSE',
  'CONNECT_ERROR',
  'UNREACHABLE',
  'REJECTED',
  'ESTABLISHED',
  'DISCONNECTED',
  'DEVICE_REMOVAL',
  'MULTICAST_JOIN',
  'MULTICAST_ERROR',
  'ADDR_CHANGE',
  'TIMEWAIT_EXIT',
] as const;

/** `struct rdma_event_channel`. */
export const RDMA_EVENT_CHANNEL = { size: 4, fd: 0 } as const;

/** `struct rdma_cm_id`. `verbs` points to an `ibv_context`, or is 0; the addresses are those of sockets. */
export const RDMA_CM_ID = {
  size: 416,
  verbs: 0,
  'route.addr.src_addr': 32,
  'route.addr.dst_addr': 160,
} as const;

/** `struct rdma_conn_param`. `private_data` is a pointer. */
export const RDMA_CONN_PARAM = {
  size: 24,
  private_data: 0,
  private_data_len: 8,
  responder_resources: 9,
  initiator_depth: 10,
  retry_count: 12,
  rnr_retry_count: 13,
  qp_num: 16,
} as const;

/** `struct rdma_cm_event`. `param.conn` is an `RDMA_CONN_PARAM`. */
export const RDMA_CM_EVENT = {
  size: 80,
  id: 0,
  listen_id: 8,
  event: 16,
  status: 20,
  'param.conn': 24,
} as const;
