/** Devices, ports and their addresses: infiniband/verbs.h. */

export const IBV_NODE_CA = 1;
export const IBV_NODE_SWITCH = 2;
export const IBV_NODE_ROUTER = 3;
export const IBV_NODE_RNIC = 4;
export const IBV_NODE_USNIC = 5;
export const IBV_NODE_USNIC_UDP = 6;
export const IBV_NODE_UNSPECIFIED = 7;

export const IBV_TRANSPORT_IB = 0;
export const IBV_TRANSPORT_IWARP = 1;
export const IBV_TRANSPORT_USNIC = 2;
export const IBV_TRANSPORT_USNIC_UDP = 3;
export const IBV_TRANSPORT_UNSPECIFIED = 4;

export const IBV_PORT_NOP = 0;
export const IBV_PORT_DOWN = 1;
export const IBV_PORT_INIT = 2;
export const IBV_PORT_ARMED = 3;
export const IBV_PORT_ACTIVE = 4;
export const IBV_PORT_ACTIVE_DEFER = 5;

export const IBV_LINK_LAYER_UNSPECIFIED = 0;
export const IBV_LINK_LAYER_INFINIBAND = 1;
export const IBV_LINK_LAYER_ETHERNET = 2;

export const IBV_GID_TYPE_IB = 0;
export const IBV_GID_TYPE_ROCE_V1 = 1;
export const IBV_GID_TYPE_ROCE_V2 = 2;

export const IBV_ATOMIC_NONE = 0;
export const IBV_ATOMIC_HCA = 1;
export const IBV_ATOMIC_GLOB = 2;

export const IBV_DEVICE_MEM_WINDOW = 0x20000;
export const IBV_DEVICE_MEM_MGT_EXTENSIONS = 0x200000;
export const IBV_DEVICE_MEM_WINDOW_TYPE_2A = 0x800000;
export const IBV_DEVICE_MEM_WINDOW_TYPE_2B = 0x1000000;

export const IBV_ODP_SUPPORT = 1;
export const IBV_ODP_SUPPORT_IMPLICIT = 2;

export const IBV_ODP_SUPPORT_SEND = 1;
export const IBV_ODP_SUPPORT_RECV = 2;
export const IBV_ODP_SUPPORT_WRITE = 4;
export const IBV_ODP_SUPPORT_READ = 8;
export const IBV_ODP_SUPPORT_ATOMIC = 16;
export const IBV_ODP_SUPPORT_SRQ_RECV = 32;

export const IBV_QPF_GRH_REQUIRED = 1;

/** `struct ibv_device`. Names and paths are C strings. */
export const DEVICE = {
  size: 664,
  node_type: 16,
  transport_type: 20,
  name: 24,
  dev_name: 88,
  dev_path: 152,
  ibdev_path: 408,
} as const;

/**
 * `struct ibv_device_attr_ex`. Its first member is `struct ibv_device_attr`, which `ibv_query_device` fills in. GUIDs
 * are big-endian.
 */
export const DEVICE_ATTR_EX = {
  size: 400,
  'orig_attr.fw_ver': 0,
  'orig_attr.node_guid': 64,
  'orig_attr.sys_image_guid': 72,
  'orig_attr.max_mr_size': 80,
  'orig_attr.page_size_cap': 88,
  'orig_attr.vendor_id': 96,
  'orig_attr.vendor_part_id': 100,
  'orig_attr.hw_ver': 104,
  'orig_attr.max_qp': 108,
  'orig_attr.max_qp_wr': 112,
  'orig_attr.device_cap_flags': 116,
  'orig_attr.max_sge': 120,
  'orig_attr.max_sge_rd': 124,
  'orig_attr.max_cq': 128,
  'orig_attr.max_cqe': 132,
  'orig_attr.max_mr': 136,
  'orig_attr.max_pd': 140,
  'orig_attr.max_qp_rd_atom': 144,
  'orig_attr.max_qp_init_rd_atom': 156,
  'orig_attr.atomic_cap': 164,
  'orig_attr.max_mw': 176,
  'orig_attr.max_ah': 200,
  'orig_attr.phys_port_cnt': 227,
  'odp_caps.general_caps': 240,
  'odp_caps.per_transport_caps.rc_odp_caps': 248,
  'odp_caps.per_transport_caps.uc_odp_caps': 252,
  'odp_caps.per_transport_caps.ud_odp_caps': 256,
  phys_port_cnt_ex: 396,
} as const;

/** `struct ibv_port_attr`. */
export const PORT_ATTR = {
  size: 52,
  state: 0,
  max_mtu: 4,
  active_mtu: 8,
  gid_tbl_len: 12,
  port_cap_flags: 16,
  max_msg_sz: 20,
  pkey_tbl_len: 32,
  lid: 34,
  sm_lid: 36,
  link_layer: 46,
  flags: 47,
} as const;

/** `struct ibv_gid_entry`. */
export const GID_ENTRY = {
  size: 32,
  gid: 0,
  gid_index: 16,
  port_num: 20,
  gid_type: 24,
  ndev_ifindex: 28,
} as const;
