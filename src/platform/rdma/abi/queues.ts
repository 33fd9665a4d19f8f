/** Completion queues, queue pairs and address handles: infiniband/verbs.h. */

export const IBV_QPT_RC = 2;
export const IBV_QPT_UC = 3;
export const IBV_QPT_UD = 4;

export const IBV_QPS_RESET = 0;
export const IBV_QPS_INIT = 1;
export const IBV_QPS_RTR = 2;
export const IBV_QPS_RTS = 3;
export const IBV_QPS_SQD = 4;
export const IBV_QPS_SQE = 5;
export const IBV_QPS_ERR = 6;

export const IBV_QP_STATE = 1;
export const IBV_QP_ACCESS_FLAGS = 8;
export const IBV_QP_PKEY_INDEX = 16;
export const IBV_QP_PORT = 32;
export const IBV_QP_QKEY = 64;
export const IBV_QP_AV = 128;
export const IBV_QP_PATH_MTU = 0x100;
export const IBV_QP_TIMEOUT = 0x200;
export const IBV_QP_RETRY_CNT = 0x400;
export const IBV_QP_RNR_RETRY = 0x800;
export const IBV_QP_RQ_PSN = 0x1000;
export const IBV_QP_MAX_QP_RD_ATOMIC = 0x2000;
export const IBV_QP_MIN_RNR_TIMER = 0x8000;
export const IBV_QP_SQ_PSN = 0x10000;
export const IBV_QP_MAX_DEST_RD_ATOMIC = 0x20000;
export const IBV_QP_DEST_QPN = 0x100000;

export const IBV_MTU_256 = 1;
export const IBV_MTU_512 = 2;
export const IBV_MTU_1024 = 3;
export const IBV_MTU_2048 = 4;
export const IBV_MTU_4096 = 5;

/** `struct ibv_comp_channel`. */
export const COMP_CHANNEL = {
  size: 16,
  fd: 8,
} as const;

/** `struct ibv_cq`. */
export const CQ = {
  size: 128,
  cqe: 28,
} as const;

/** `struct ibv_qp`. */
export const QP = {
  size: 160,
  qp_num: 52,
} as const;

/** `struct ibv_qp_init_attr`. */
export const QP_INIT_ATTR = {
  size: 64,
  send_cq: 8,
  recv_cq: 16,
  'cap.max_send_wr': 32,
  'cap.max_recv_wr': 36,
  'cap.max_send_sge': 40,
  'cap.max_recv_sge': 44,
  'cap.max_inline_data': 48,
  qp_type: 52,
  sq_sig_all: 56,
} as const;

/** `struct ibv_qp_attr`. */
export const QP_ATTR = {
  size: 144,
  qp_state: 0,
  path_mtu: 8,
  qkey: 16,
  rq_psn: 20,
  sq_psn: 24,
  dest_qp_num: 28,
  qp_access_flags: 32,
  ah_attr: 56,
  pkey_index: 120,
  max_rd_atomic: 126,
  max_dest_rd_atomic: 127,
  min_rnr_timer: 128,
  port_num: 129,
  timeout: 130,
  retry_cnt: 131,
  rnr_retry: 132,
} as const;

/** `struct ibv_ah_attr`. */
export const AH_ATTR = {
  size: 32,
  'grh.dgid': 0,
  'grh.flow_label': 16,
  'grh.sgid_index': 20,
  'grh.hop_limit': 21,
  'grh.traffic_class': 22,
  dlid: 24,
  sl: 26,
  is_global: 29,
  port_num: 30,
} as const;
