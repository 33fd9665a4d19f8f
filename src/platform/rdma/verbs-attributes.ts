/** Converts attributes between structs of libibverbs and plain objects. */
import { invalid } from '../../errors.js';
import * as devices from './abi/devices.js';
import * as queues from './abi/queues.js';
import type {
  VerbsDevice,
  VerbsDeviceAttributes,
  VerbsGid,
  VerbsPath,
  VerbsPortAttributes,
  VerbsQpAttributes,
  VerbsQpStatus,
} from './verbs-types.js';

const { DEVICE_ATTR_EX, GID_ENTRY, PORT_ATTR } = devices;
const { AH_ATTR, QP_ATTR } = queues;

const NODES: ReadonlyMap<number, VerbsDevice['node']> = new Map([
  [devices.IBV_NODE_CA, 'ca'],
  [devices.IBV_NODE_SWITCH, 'switch'],
  [devices.IBV_NODE_ROUTER, 'router'],
  [devices.IBV_NODE_RNIC, 'rnic'],
  [devices.IBV_NODE_USNIC, 'usnic'],
  [devices.IBV_NODE_USNIC_UDP, 'usnic-udp'],
  [devices.IBV_NODE_UNSPECIFIED, 'unspecified'],
]);

const TRANSPORTS: ReadonlyMap<number, VerbsDevice['transport']> = new Map([
  [devices.IBV_TRANSPORT_IB, 'ib'],
  [devices.IBV_TRANSPORT_IWARP, 'iwarp'],
  [devices.IBV_TRANSPORT_USNIC, 'usnic'],
  [devices.IBV_TRANSPORT_USNIC_UDP, 'usnic-udp'],
  [devices.IBV_TRANSPORT_UNSPECIFIED, 'unspecified'],
]);

const STATES: ReadonlyMap<number, VerbsPortAttributes['state']> = new Map([
  [devices.IBV_PORT_NOP, 'nop'],
  [devices.IBV_PORT_DOWN, 'down'],
  [devices.IBV_PORT_INIT, 'init'],
  [devices.IBV_PORT_ARMED, 'armed'],
  [devices.IBV_PORT_ACTIVE, 'active'],
  [devices.IBV_PORT_ACTIVE_DEFER, 'active-defer'],
]);

const LINK_LAYERS: ReadonlyMap<number, VerbsPortAttributes['linkLayer']> = new Map([
  [devices.IBV_LINK_LAYER_INFINIBAND, 'infiniband'],
  [devices.IBV_LINK_LAYER_ETHERNET, 'ethernet'],
]);

const GID_TYPES: ReadonlyMap<number, VerbsGid['type']> = new Map([
  [devices.IBV_GID_TYPE_IB, 'ib'],
  [devices.IBV_GID_TYPE_ROCE_V1, 'roce-v1'],
  [devices.IBV_GID_TYPE_ROCE_V2, 'roce-v2'],
]);

const ATOMICS: ReadonlyMap<number, VerbsDeviceAttributes['atomics']> = new Map([
  [devices.IBV_ATOMIC_HCA, 'device'],
  [devices.IBV_ATOMIC_GLOB, 'global'],
]);

const MTUS: ReadonlyMap<number, number> = new Map([
  [queues.IBV_MTU_256, 256],
  [queues.IBV_MTU_512, 512],
  [queues.IBV_MTU_1024, 1024],
  [queues.IBV_MTU_2048, 2048],
  [queues.IBV_MTU_4096, 4096],
]);

/** The node type in a `struct ibv_device`. */
export function nodeType(value: number): VerbsDevice['node'] {
  return NODES.get(value) ?? 'unknown';
}

/** The transport type in a `struct ibv_device`. */
export function transportType(value: number): VerbsDevice['transport'] {
  return TRANSPORTS.get(value) ?? 'unknown';
}

/** The C string of at most `room` bytes at `offset`. */
export function readText(struct: DataView, offset: number, room: number): string {
  const bytes = new Uint8Array(struct.buffer, struct.byteOffset + offset, room);
  const end = bytes.indexOf(0);
  return String.fromCharCode(...bytes.subarray(0, end === -1 ? room : end));
}

/** `struct ibv_device_attr_ex`. */
export function readDeviceAttributes(struct: DataView): VerbsDeviceAttributes {
  const at = DEVICE_ATTR_EX;
  const u32 = (offset: number) => struct.getUint32(offset, true);
  const u64 = (offset: number) => u32(offset) + u32(offset + 4) * 4294967296;
  const pageSizes = struct.getBigUint64(at['orig_attr.page_size_cap'], true);
  return {
    firmware: readText(struct, at['orig_attr.fw_ver'], 64),
    nodeGuid: readHexGroups(struct, at['orig_attr.node_guid'], 8),
    systemGuid: readHexGroups(struct, at['orig_attr.sys_image_guid'], 8),
    vendorId: u32(at['orig_attr.vendor_id']),
    vendorPart: u32(at['orig_attr.vendor_part_id']),
    hardwareVersion: u32(at['orig_attr.hw_ver']),
    ports: u32(at.phys_port_cnt_ex) || struct.getUint8(at['orig_attr.phys_port_cnt']),
    maxMrLength: u64(at['orig_attr.max_mr_size']),
    pageSizes: Array.from({ length: 53 }, (_, bit) => bit)
      .filter((bit) => ((pageSizes >> BigInt(bit)) & 1n) === 1n)
      .map((bit) => 2 ** bit),
    maxMrs: u32(at['orig_attr.max_mr']),
    maxMws: u32(at['orig_attr.max_mw']),
    maxPds: u32(at['orig_attr.max_pd']),
    maxQps: u32(at['orig_attr.max_qp']),
    maxRequests: u32(at['orig_attr.max_qp_wr']),
    maxSges: u32(at['orig_attr.max_sge']),
    maxReadSges: u32(at['orig_attr.max_sge_rd']),
    maxCqs: u32(at['orig_attr.max_cq']),
    maxCqEntries: u32(at['orig_attr.max_cqe']),
    maxAhs: u32(at['orig_attr.max_ah']),
    maxInitiatorDepth: u32(at['orig_attr.max_qp_init_rd_atom']),
    maxResponderDepth: u32(at['orig_attr.max_qp_rd_atom']),
    atomics: ATOMICS.get(u32(at['orig_attr.atomic_cap'])) ?? 'none',
    capabilities: u32(at['orig_attr.device_cap_flags']),
    odp: {
      general: u32(at['odp_caps.general_caps']),
      rc: u32(at['odp_caps.per_transport_caps.rc_odp_caps']),
      uc: u32(at['odp_caps.per_transport_caps.uc_odp_caps']),
      ud: u32(at['odp_caps.per_transport_caps.ud_odp_caps']),
    },
  };
}

/** `struct ibv_port_attr`. */
export function readPortAttributes(struct: DataView): VerbsPortAttributes {
  const u32 = (offset: number) => struct.getUint32(offset, true);
  const u16 = (offset: number) => struct.getUint16(offset, true);
  return {
    state: STATES.get(u32(PORT_ATTR.state)) ?? 'unknown',
    linkLayer: LINK_LAYERS.get(struct.getUint8(PORT_ATTR.link_layer)) ?? 'unspecified',
    maxMtu: MTUS.get(u32(PORT_ATTR.max_mtu)) ?? 0,
    activeMtu: MTUS.get(u32(PORT_ATTR.active_mtu)) ?? 0,
    maxMessage: u32(PORT_ATTR.max_msg_sz),
    gids: u32(PORT_ATTR.gid_tbl_len),
    pkeys: u16(PORT_ATTR.pkey_tbl_len),
    lid: u16(PORT_ATTR.lid),
    smLid: u16(PORT_ATTR.sm_lid),
    capabilities: u32(PORT_ATTR.port_cap_flags),
    grhRequired: (struct.getUint8(PORT_ATTR.flags) & devices.IBV_QPF_GRH_REQUIRED) !== 0,
  };
}

/** A `struct ibv_gid_entry`. */
export function readGid(struct: DataView): VerbsGid {
  const u32 = (offset: number) => struct.getUint32(offset, true);
  return {
    port: u32(GID_ENTRY.port_num),
    index: u32(GID_ENTRY.gid_index),
    gid: readHexGroups(struct, GID_ENTRY.gid, 16),
    type: GID_TYPES.get(u32(GID_ENTRY.gid_type)) ?? 'unknown',
    interfaceIndex: u32(GID_ENTRY.ndev_ifindex),
  };
}

/** A numeric attribute of a queue pair: its mask bit, offset and width in bytes, and largest value. */
interface QpField {
  readonly name: keyof VerbsQpStatus;
  readonly mask: number;
  readonly at: number;
  readonly width: 1 | 2 | 4;
  readonly max: number;
}

const MAX24 = 0xffffff;
const MAX32 = 0xffffffff;
const QP_FIELDS: readonly QpField[] = [
  { name: 'state', mask: queues.IBV_QP_STATE, at: QP_ATTR.qp_state, width: 4, max: queues.IBV_QPS_ERR },
  { name: 'access', mask: queues.IBV_QP_ACCESS_FLAGS, at: QP_ATTR.qp_access_flags, width: 4, max: MAX32 },
  { name: 'pkeyIndex', mask: queues.IBV_QP_PKEY_INDEX, at: QP_ATTR.pkey_index, width: 2, max: 0xffff },
  { name: 'port', mask: queues.IBV_QP_PORT, at: QP_ATTR.port_num, width: 1, max: 255 },
  { name: 'qkey', mask: queues.IBV_QP_QKEY, at: QP_ATTR.qkey, width: 4, max: MAX32 },
  { name: 'mtu', mask: queues.IBV_QP_PATH_MTU, at: QP_ATTR.path_mtu, width: 4, max: 4096 },
  { name: 'peer', mask: queues.IBV_QP_DEST_QPN, at: QP_ATTR.dest_qp_num, width: 4, max: MAX24 },
  { name: 'receivePsn', mask: queues.IBV_QP_RQ_PSN, at: QP_ATTR.rq_psn, width: 4, max: MAX24 },
  { name: 'sendPsn', mask: queues.IBV_QP_SQ_PSN, at: QP_ATTR.sq_psn, width: 4, max: MAX24 },
  { name: 'timeout', mask: queues.IBV_QP_TIMEOUT, at: QP_ATTR.timeout, width: 1, max: 31 },
  { name: 'retries', mask: queues.IBV_QP_RETRY_CNT, at: QP_ATTR.retry_cnt, width: 1, max: 7 },
  { name: 'rnrRetries', mask: queues.IBV_QP_RNR_RETRY, at: QP_ATTR.rnr_retry, width: 1, max: 7 },
  { name: 'minRnrTimer', mask: queues.IBV_QP_MIN_RNR_TIMER, at: QP_ATTR.min_rnr_timer, width: 1, max: 31 },
  { name: 'initiatorDepth', mask: queues.IBV_QP_MAX_QP_RD_ATOMIC, at: QP_ATTR.max_rd_atomic, width: 1, max: 255 },
  {
    name: 'responderDepth',
    mask: queues.IBV_QP_MAX_DEST_RD_ATOMIC,
    at: QP_ATTR.max_dest_rd_atomic,
    width: 1,
    max: 255,
  },
];

/** The mask of everything that {@link readQpStatus} reads. */
export const QP_STATUS_MASK = QP_FIELDS.reduce((mask, field) => mask | field.mask, 0);

/** Writes the given attributes to a `struct ibv_qp_attr`; EINVAL if one is out of range. Returns the mask. */
export function writeQpAttributes(struct: DataView, attributes: VerbsQpAttributes): number {
  let mask = 0;
  for (const { name, mask: bit, at, width, max } of QP_FIELDS) {
    let value = attributes[name];
    if (value === undefined) continue;
    checkNumber('ibv_modify_qp', name, value, max);
    if (name === 'mtu') value = mtuCode(value);
    if (width === 4) struct.setUint32(at, value, true);
    else if (width === 2) struct.setUint16(at, value, true);
    else struct.setUint8(at, value);
    mask |= bit;
  }
  if (attributes.path !== undefined) {
    const room = new DataView(struct.buffer, struct.byteOffset + QP_ATTR.ah_attr, AH_ATTR.size);
    writePath(room, attributes.path, 'ibv_modify_qp');
    mask |= queues.IBV_QP_AV;
  }
  return mask;
}

/** The contents of a `struct ibv_qp_attr`. */
export function readQpStatus(struct: DataView): VerbsQpStatus {
  const values = QP_FIELDS.map(({ name, at, width }) => {
    const value =
      width === 4 ? struct.getUint32(at, true) : width === 2 ? struct.getUint16(at, true) : struct.getUint8(at);
    return [name, name === 'mtu' ? (MTUS.get(value) ?? 0) : value];
  });
  return Object.fromEntries(values) as VerbsQpStatus;
}

/** The attributes of a `struct ibv_qp_attr` that are in `mask`: the inverse of {@link writeQpAttributes}. */
export function readQpAttributes(struct: DataView, mask: number): VerbsQpAttributes {
  const all = Object.entries(readQpStatus(struct));
  const chosen = all.filter(([name]) => QP_FIELDS.some((field) => field.name === name && (mask & field.mask) !== 0));
  if ((mask & queues.IBV_QP_AV) === 0) return Object.fromEntries(chosen);
  const path = readPath(new DataView(struct.buffer, struct.byteOffset + QP_ATTR.ah_attr, AH_ATTR.size));
  return { ...Object.fromEntries(chosen), path };
}

/** A `struct ibv_ah_attr`. */
function readPath(struct: DataView): VerbsPath {
  const isGlobal = struct.getUint8(AH_ATTR.is_global) !== 0;
  const route = {
    gid: readHexGroups(struct, AH_ATTR['grh.dgid'], 16),
    localIndex: struct.getUint8(AH_ATTR['grh.sgid_index']),
    hopLimit: struct.getUint8(AH_ATTR['grh.hop_limit']),
    trafficClass: struct.getUint8(AH_ATTR['grh.traffic_class']),
    flowLabel: struct.getUint32(AH_ATTR['grh.flow_label'], true),
  };
  return {
    port: struct.getUint8(AH_ATTR.port_num),
    lid: struct.getUint16(AH_ATTR.dlid, true),
    serviceLevel: struct.getUint8(AH_ATTR.sl),
    route: isGlobal ? route : undefined,
  };
}

/** Fills a zeroed `struct ibv_ah_attr`; EINVAL if a value is out of range. */
export function writePath(struct: DataView, path: VerbsPath, operation: string): void {
  const { port, lid = 0, serviceLevel = 0, route } = path;
  checkNumber(operation, 'port', port, 255);
  checkNumber(operation, 'lid', lid, 0xffff);
  checkNumber(operation, 'serviceLevel', serviceLevel, 15);
  struct.setUint8(AH_ATTR.port_num, port);
  struct.setUint16(AH_ATTR.dlid, lid, true);
  struct.setUint8(AH_ATTR.sl, serviceLevel);
  if (route === undefined) return;
  const { gid, localIndex, hopLimit = 64, trafficClass = 0, flowLabel = 0 } = route;
  checkNumber(operation, 'localIndex', localIndex, 255);
  checkNumber(operation, 'hopLimit', hopLimit, 255);
  checkNumber(operation, 'trafficClass', trafficClass, 255);
  checkNumber(operation, 'flowLabel', flowLabel, 0xfffff);
  writeGid(struct, AH_ATTR['grh.dgid'], gid, operation);
  struct.setUint8(AH_ATTR.is_global, 1);
  struct.setUint8(AH_ATTR['grh.sgid_index'], localIndex);
  struct.setUint8(AH_ATTR['grh.hop_limit'], hopLimit);
  struct.setUint8(AH_ATTR['grh.traffic_class'], trafficClass);
  struct.setUint32(AH_ATTR['grh.flow_label'], flowLabel, true);
}

/** EINVAL unless `value` is an integer in [0, max]. */
export function checkNumber(operation: string, name: string, value: number, max: number): void {
  if (!Number.isInteger(value) || value < 0 || value > max)
    throw invalid(operation, `${name} is ${value}, which is not an integer between 0 and ${max}`);
}

function mtuCode(bytes: number): number {
  for (const [code, each] of MTUS) if (each === bytes) return code;
  throw invalid('ibv_modify_qp', `the MTU ${bytes} is not one of ${[...MTUS.values()].join(', ')}`);
}

/** Big-endian bytes in the kernel's notation of GUIDs and GIDs. */
function readHexGroups(struct: DataView, offset: number, bytes: number): string {
  return Array.from({ length: bytes / 2 }, (_, i) =>
    struct
      .getUint16(offset + 2 * i)
      .toString(16)
      .padStart(4, '0'),
  ).join(':');
}

function writeGid(struct: DataView, offset: number, gid: string, operation: string): void {
  const groups = gid.split(':');
  if (groups.length !== 8 || !groups.every((group) => /^[0-9a-f]{1,4}$/i.test(group)))
    throw invalid(operation, `${JSON.stringify(gid)} is not a GID: 8 groups of 4 hexadecimal digits`);
  for (const [i, group] of groups.entries()) struct.setUint16(offset + 2 * i, parseInt(group, 16));
}
