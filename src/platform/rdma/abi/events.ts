/** Asynchronous events: infiniband/verbs.h. */

/** `enum ibv_event_type`: the names without `IBV_EVENT_`, each at its number. */
export const EVENTS = [
  'CQ_ERR',
  'QP_FATAL',
  'QP_REQ_ERR',
  'QP_ACCESS_ERR',
  'COMM_EST',
  'SQ_DRAINED',
  'PATH_MIG',
  'PATH_MIG_ERR',
  'DEVICE_FATAL',
  'PORT_ACTIVE',
  'PORT_ERR',
  'LID_CHANGE',
  'PKEY_CHANGE',
  'SM_CHANGE',
  'SRQ_ERR',
  'SRQ_LIMIT_REACHED',
  'QP_LAST_WQE_REACHED',
  'CLIENT_REREGISTER',
  'GID_CHANGE',
  'WQ_FATAL',
] as const;

export const IBV_EVENT_CQ_ERR = 0;
export const IBV_EVENT_QP_FATAL = 1;
export const IBV_EVENT_QP_REQ_ERR = 2;
export const IBV_EVENT_QP_ACCESS_ERR = 3;
export const IBV_EVENT_COMM_EST = 4;
export const IBV_EVENT_SQ_DRAINED = 5;
export const IBV_EVENT_PATH_MIG = 6;
export const IBV_EVENT_PATH_MIG_ERR = 7;
export const IBV_EVENT_DEVICE_FATAL = 8;
export const IBV_EVENT_PORT_ACTIVE = 9;
export const IBV_EVENT_PORT_ERR = 10;
export const IBV_EVENT_LID_CHANGE = 11;
export const IBV_EVENT_PKEY_CHANGE = 12;
export const IBV_EVENT_SM_CHANGE = 13;
export const IBV_EVENT_SRQ_ERR = 14;
export const IBV_EVENT_SRQ_LIMIT_REACHED = 15;
export const IBV_EVENT_QP_LAST_WQE_REACHED = 16;
export const IBV_EVENT_CLIENT_REREGISTER = 17;
export const IBV_EVENT_GID_CHANGE = 18;
export const IBV_EVENT_WQ_FATAL = 19;

/** `struct ibv_async_event`. `element` is a pointer or, for events of ports, an int. */
export const ASYNC_EVENT = {
  size: 16,
  element: 0,
  event_type: 8,
} as const;
