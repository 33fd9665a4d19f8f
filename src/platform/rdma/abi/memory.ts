/** Memory regions and windows: infiniband/verbs.h. */

export const IBV_ACCESS_LOCAL_WRITE = 1;
export const IBV_ACCESS_REMOTE_WRITE = 2;
export const IBV_ACCESS_REMOTE_READ = 4;
export const IBV_ACCESS_REMOTE_ATOMIC = 8;
export const IBV_ACCESS_MW_BIND = 16;
export const IBV_ACCESS_ZERO_BASED = 32;
export const IBV_ACCESS_ON_DEMAND = 64;
export const IBV_ACCESS_HUGETLB = 128;
export const IBV_ACCESS_RELAXED_ORDERING = 0x100000;

export const IBV_ADVISE_MR_ADVICE_PREFETCH = 0;
export const IBV_ADVISE_MR_ADVICE_PREFETCH_WRITE = 1;
export const IBV_ADVISE_MR_ADVICE_PREFETCH_NO_FAULT = 2;
export const IBV_ADVISE_MR_FLAG_FLUSH = 1;

export const IBV_MW_TYPE_1 = 1;
export const IBV_MW_TYPE_2 = 2;

/** `struct ibv_mr`. */
export const MR = {
  size: 48,
  lkey: 36,
  rkey: 40,
} as const;

/** `struct ibv_mw`. */
export const MW = {
  size: 32,
  rkey: 16,
} as const;

/** `struct ibv_mw_bind`. */
export const MW_BIND = {
  size: 48,
  wr_id: 0,
  send_flags: 8,
  'bind_info.mr': 16,
  'bind_info.addr': 24,
  'bind_info.length': 32,
  'bind_info.mw_access_flags': 40,
} as const;
