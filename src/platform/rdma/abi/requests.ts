/** Work requests and completions: infiniband/verbs.h. */

export const IBV_WR_RDMA_WRITE = 0;
export const IBV_WR_RDMA_WRITE_WITH_IMM = 1;
export const IBV_WR_SEND = 2;
export const IBV_WR_SEND_WITH_IMM = 3;
export const IBV_WR_RDMA_READ = 4;
export const IBV_WR_ATOMIC_CMP_AND_SWP = 5;
export const IBV_WR_ATOMIC_FETCH_AND_ADD = 6;
export const IBV_WR_LOCAL_INV = 7;
export const IBV_WR_BIND_MW = 8;
export const IBV_WR_SEND_WITH_INV = 9;

export const IBV_SEND_FENCE = 1;
export const IBV_SEND_SIGNALED = 2;
export const IBV_SEND_SOLICITED = 4;
export const IBV_SEND_INLINE = 8;

export const IBV_WC_SEND = 0;
export const IBV_WC_RDMA_WRITE = 1;
export const IBV_WC_RDMA_READ = 2;
export const IBV_WC_COMP_SWAP = 3;
export const IBV_WC_FETCH_ADD = 4;
export const IBV_WC_BIND_MW = 5;
export const IBV_WC_LOCAL_INV = 6;
export const IBV_WC_RECV = 128;
export const IBV_WC_RECV_RDMA_WITH_IMM = 129;

export const IBV_WC_GRH = 1;
export const IBV_WC_WITH_IMM = 2;
export const IBV_WC_WITH_INV = 8;

/** `enum ibv_wc_status`: the names without `IBV_WC_`, each at its number. */
export const WC_STATUSES = [
  'SUCCESS',
  'LOC_LEN_ERR',
  'LOC_QP_OP_ERR',
  'LOC_EEC_OP_ERR',
  'LOC_PROT_ERR',
  'WR_FLUSH_ERR',
  'MW_BIND_ERR',
  'BAD_RESP_ERR',
  'LOC_ACCESS_ERR',
  'REM_INV_REQ_ERR',
  'REM_ACCESS_ERR',
  'REM_OP_ERR',
  'RETRY_EXC_ERR',
  'RNR_RETRY_EXC_ERR',
  'LOC_RDD_VIOL_ERR',
  'REM_INV_RD_REQ_ERR',
  'REM_ABORT_ERR',
  'INV_EECN_ERR',
  'INV_EEC_STATE_ERR',
  'FATAL_ERR',
  'RESP_TIMEOUT_ERR',
  'GENERAL_ERR',
  'TM_ERR',
  'TM_RNDV_INCOMPLETE',
] as const;

export const IBV_WC_SUCCESS = 0;
export const IBV_WC_LOC_LEN_ERR = 1;
export const IBV_WC_LOC_QP_OP_ERR = 2;
export const IBV_WC_LOC_PROT_ERR = 4;
export const IBV_WC_WR_FLUSH_ERR = 5;
export const IBV_WC_MW_BIND_ERR = 6;
export const IBV_WC_LOC_ACCESS_ERR = 8;
export const IBV_WC_REM_INV_REQ_ERR = 9;
export const IBV_WC_REM_ACCESS_ERR = 10;
export const IBV_WC_REM_OP_ERR = 11;
export const IBV_WC_RETRY_EXC_ERR = 12;
export const IBV_WC_RNR_RETRY_EXC_ERR = 13;

/** `struct ibv_sge`. */
export const SGE = {
  size: 16,
  addr: 0,
  length: 8,
  lkey: 12,
} as const;

/** `struct ibv_recv_wr`. The same as the start of `SEND_WR`. */
export const RECV_WR = {
  size: 32,
  wr_id: 0,
  next: 8,
  sg_list: 16,
  num_sge: 24,
} as const;

/** `struct ibv_send_wr`. Immediate data are big-endian. */
export const SEND_WR = {
  size: 128,
  wr_id: 0,
  next: 8,
  sg_list: 16,
  num_sge: 24,
  opcode: 28,
  send_flags: 32,
  imm_data: 36,
  invalidate_rkey: 36,
  'wr.rdma.remote_addr': 40,
  'wr.rdma.rkey': 48,
  'wr.atomic.remote_addr': 40,
  'wr.atomic.compare_add': 48,
  'wr.atomic.swap': 56,
  'wr.atomic.rkey': 64,
  'wr.ud.ah': 40,
  'wr.ud.remote_qpn': 48,
  'wr.ud.remote_qkey': 52,
  'bind_mw.mw': 80,
  'bind_mw.rkey': 88,
  'bind_mw.bind_info.mr': 96,
  'bind_mw.bind_info.addr': 104,
  'bind_mw.bind_info.length': 112,
  'bind_mw.bind_info.mw_access_flags': 120,
} as const;

/** `struct ibv_wc`. Immediate data are big-endian. */
export const WC = {
  size: 48,
  wr_id: 0,
  status: 8,
  opcode: 12,
  vendor_err: 16,
  byte_len: 20,
  imm_data: 24,
  invalidated_rkey: 24,
  qp_num: 28,
  src_qp: 32,
  wc_flags: 36,
} as const;
