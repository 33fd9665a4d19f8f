/**
 * Commands of NVMe: opcodes, where the fields of an entry and of a completion are, and the numbers that they take (NVM
 * Express Base Specification 1.4, sections 4 to 6).
 */

/** Opcodes of the admin queue (section 5). */
export const ADMIN = {
  DELETE_SQ: 0x00,
  CREATE_SQ: 0x01,
  GET_LOG_PAGE: 0x02,
  DELETE_CQ: 0x04,
  CREATE_CQ: 0x05,
  IDENTIFY: 0x06,
  ABORT: 0x08,
  SET_FEATURES: 0x09,
  GET_FEATURES: 0x0a,
  ASYNC_EVENT: 0x0c,
  NAMESPACE_MANAGEMENT: 0x0d,
  FIRMWARE_COMMIT: 0x10,
  FIRMWARE_DOWNLOAD: 0x11,
  SELF_TEST: 0x14,
  NAMESPACE_ATTACHMENT: 0x15,
  KEEP_ALIVE: 0x18,
  DIRECTIVE_SEND: 0x19,
  DIRECTIVE_RECEIVE: 0x1a,
  DOORBELL_BUFFER_CONFIG: 0x7c,
  FORMAT: 0x80,
  SECURITY_SEND: 0x81,
  SECURITY_RECEIVE: 0x82,
  SANITIZE: 0x84,
} as const;

/** Opcodes of I/O queues: the NVM command set (section 6), and those of zoned namespaces. */
export const NVM = {
  FLUSH: 0x00,
  WRITE: 0x01,
  READ: 0x02,
  WRITE_UNCORRECTABLE: 0x04,
  COMPARE: 0x05,
  WRITE_ZEROES: 0x08,
  DATASET_MANAGEMENT: 0x09,
  VERIFY: 0x0c,
  COPY: 0x19,
  ZONE_SEND: 0x79,
  ZONE_RECEIVE: 0x7a,
  ZONE_APPEND: 0x7d,
} as const;

/** Which way an opcode moves data: its low two bits (section 4.2). */
export const DATA_DIRECTION = { NONE: 0, TO_CONTROLLER: 1, FROM_CONTROLLER: 2, BOTH: 3 } as const;

/** Fields of a submission entry of 64 bytes: offsets in bytes (section 4.2). */
export const SQE = {
  OPCODE: 0,
  /** fused operation in bits 1:0, PSDT in bits 7:6 */
  FLAGS: 1,
  /** command identifier, 16 bits */
  CID: 2,
  NSID: 4,
  CDW2: 8,
  CDW3: 12,
  /** metadata pointer, 64 bits */
  MPTR: 16,
  /** data pointer: two PRP entries, or one SGL descriptor */
  PRP1: 24,
  PRP2: 32,
  SGL: 24,
  CDW10: 40,
  CDW11: 44,
  CDW12: 48,
  CDW13: 52,
  CDW14: 56,
  CDW15: 60,
} as const;

/** PSDT: how the data pointer of an entry is to be read, in bits 7:6 of {@link SQE.FLAGS}. */
export const PSDT = { PRP: 0, SGL: 1, SGL_METADATA: 2, SHIFT: 6 } as const;

/** The bits of {@link SQE.FLAGS} that make two commands one (section 6.2). */
export const FUSED_MASK = 0x3;

/** Fields of a completion of 16 bytes: offsets in bytes (section 4.6). */
export const CQE = {
  /** of the command: 32 bits; some commands also use the next 32 */
  RESULT: 0,
  RESULT_HIGH: 4,
  /** how far the submission queue has been taken, 16 bits */
  SQ_HEAD: 8,
  SQ_ID: 10,
  CID: 12,
  /** bit 0 the phase, 15:1 the status field, 16 bits */
  STATUS: 14,
} as const;

/** The namespace identifier that means all of them. */
export const ALL_NAMESPACES = 0xffffffff;

/** Bits of CDW12 of reads, writes and their kin (section 6.9). */
export const IO_CDW12 = {
  /** blocks, 0-based */
  BLOCKS_MASK: 0xffff,
  /** write zeroes: the blocks may be deallocated */
  DEALLOCATE: 1 << 25,
  /** protection information: the action and the checks */
  PRINFO_SHIFT: 26,
  PRINFO_MASK: 0xf,
  /** force unit access: the media, not a cache */
  FUA: 1 << 30,
  LIMITED_RETRY: (1 << 31) >>> 0,
} as const;

/** Dataset management (section 6.7): attributes of CDW11, and a range of 16 bytes. */
export const DSM = {
  DEALLOCATE: 1 << 2,
  RANGE_BYTES: 16,
  /** offsets of a range: 32 bits of attributes, 32 of length in blocks (not 0-based), 64 of LBA */
  RANGE_ATTRIBUTES: 0,
  RANGE_LENGTH: 4,
  RANGE_LBA: 8,
  MAX_RANGES: 256,
} as const;

/** Create I/O queues (sections 5.3 and 5.4): bits of CDW11. */
export const QUEUE = {
  CONTIGUOUS: 1 << 0,
  /** completion queues: interrupts on */
  INTERRUPTS: 1 << 1,
  PRIORITY_SHIFT: 1,
} as const;

/** What IDENTIFY is asked for: CNS, the low 8 bits of CDW10 (section 5.15). */
export const CNS = {
  NAMESPACE: 0x00,
  CONTROLLER: 0x01,
  ACTIVE_NAMESPACES: 0x02,
  NAMESPACE_DESCRIPTORS: 0x03,
  NVM_SET_LIST: 0x04,
  IO_NAMESPACE: 0x05,
  IO_CONTROLLER: 0x06,
  IO_ACTIVE_NAMESPACES: 0x07,
  ALLOCATED_NAMESPACES: 0x10,
  ALLOCATED_NAMESPACE: 0x11,
  NAMESPACE_CONTROLLERS: 0x12,
  CONTROLLERS: 0x13,
  IO_COMMAND_SETS: 0x1c,
} as const;

/** I/O command sets, the CSI of IDENTIFY (NVMe 2.0). */
export const COMMAND_SET = { NVM: 0, KEY_VALUE: 1, ZONED: 2 } as const;

/** Log pages (section 5.14.1). */
export const LOG = {
  SUPPORTED: 0x00,
  ERROR: 0x01,
  SMART: 0x02,
  FIRMWARE: 0x03,
  CHANGED_NAMESPACES: 0x04,
  COMMAND_EFFECTS: 0x05,
  SELF_TEST: 0x06,
  TELEMETRY_HOST: 0x07,
  TELEMETRY_CONTROLLER: 0x08,
  SANITIZE: 0x81,
} as const;

/** Features (section 5.21.1). */
export const FEATURE = {
  ARBITRATION: 0x01,
  POWER: 0x02,
  LBA_RANGE: 0x03,
  TEMPERATURE: 0x04,
  ERROR_RECOVERY: 0x05,
  WRITE_CACHE: 0x06,
  QUEUES: 0x07,
  COALESCING: 0x08,
  VECTOR: 0x09,
  ATOMICITY: 0x0a,
  ASYNC_EVENTS: 0x0b,
  AUTONOMOUS_POWER: 0x0c,
  HOST_MEMORY: 0x0d,
  TIMESTAMP: 0x0e,
  KEEP_ALIVE: 0x0f,
  HOST_THERMAL: 0x10,
  HOST_BEHAVIOUR: 0x16,
  COMMAND_SET_PROFILE: 0x19,
  SOFTWARE_PROGRESS: 0x80,
  HOST_IDENTIFIER: 0x81,
} as const;

/** Which value of a feature is asked for: bits 10:8 of CDW10 of GET_FEATURES. */
export const FEATURE_SELECT = { CURRENT: 0, DEFAULT: 1, SAVED: 2, CAPABILITIES: 3, SHIFT: 8 } as const;

/** Set in CDW10 of SET_FEATURES: keep the value over resets. */
export const FEATURE_SAVE = (1 << 31) >>> 0;

/** Kinds of asynchronous events: bits 2:0 of the result (section 5.2). */
export const EVENT_TYPE = { ERROR: 0, HEALTH: 1, NOTICE: 2, IO_COMMAND_SET: 6, VENDOR: 7 } as const;

/** What happened: bits 15:8 of the result, by kind. */
export const EVENT = {
  ERROR: { BAD_DOORBELL: 0, BAD_DOORBELL_VALUE: 1, DIAGNOSTIC: 2, PERSISTENT: 3, TRANSIENT: 4, FIRMWARE_IMAGE: 5 },
  HEALTH: { RELIABILITY: 0, TEMPERATURE: 1, SPARE: 2 },
  NOTICE: { NAMESPACES: 0, FIRMWARE: 1, TELEMETRY: 2, ANA: 3 },
} as const;

/** The asynchronous events a host may switch on: bits of CDW11 of {@link FEATURE.ASYNC_EVENTS}. */
export const EVENT_CONFIG = {
  /** health: the bits of the SMART page's critical warning */
  HEALTH_MASK: 0xff,
  NAMESPACES: 1 << 8,
  FIRMWARE: 1 << 9,
} as const;

/** Makes the result of an asynchronous event. */
export function eventResult(type: number, info: number, log: number): number {
  return type | (info << 8) | (log << 16);
}

/** SGL descriptors of 16 bytes (section 4.4): offsets, and types in bits 7:4 of the last byte. */
export const SGL = {
  BYTES: 16,
  ADDRESS: 0,
  LENGTH: 8,
  TYPE: 15,
  DATA_BLOCK: 0x0,
  BIT_BUCKET: 0x1,
  SEGMENT: 0x2,
  LAST_SEGMENT: 0x3,
  KEYED: 0x4,
} as const;

/** FORMAT (section 5.23): fields of CDW10. */
export const FORMAT = {
  LBAF_MASK: 0xf,
  METADATA_INLINE: 1 << 4,
  PI_SHIFT: 5,
  /** the protection information is the first bytes of the metadata, and not the last */
  PI_FIRST: 1 << 8,
  SES_SHIFT: 9,
  SES_MASK: 0x7,
} as const;

const ADMIN_NAMES = namesOf(ADMIN);
const NVM_NAMES = namesOf(NVM);

/** The name of an opcode, as the specification writes it, such as `identify`; `opcode 0x99` if it has none here. */
export function commandName(opcode: number, admin: boolean): string {
  return (admin ? ADMIN_NAMES : NVM_NAMES).get(opcode) ?? `opcode 0x${opcode.toString(16)}`;
}

function namesOf(table: Readonly<Record<string, number>>): ReadonlyMap<number, string> {
  return new Map(Object.entries(table).map(([name, code]) => [code, name.toLowerCase().replaceAll('_', ' ')]));
}

/**
 * How many bytes of data a command transfers, where its words tell; else 0.
 *
 * @param entry the words of its submission entry
 * @param blockBytes of the namespace; 0 for the admin queue
 */
export function dataBytes(entry: Uint32Array, blockBytes: number): number {
  const [cdw10, cdw11, cdw12] = [SQE.CDW10, SQE.CDW11, SQE.CDW12].map((offset) => entry[offset / 4]);
  const opcode = entry[0] & 0xff;
  if (blockBytes === 0) {
    if (opcode === ADMIN.IDENTIFY) return IDENTIFY_DATA;
    return opcode === ADMIN.GET_LOG_PAGE ? ((((cdw11 & 0xffff) << 16) | (cdw10 >>> 16)) + 1) * 4 : 0;
  }
  switch (opcode) {
    case NVM.READ:
    case NVM.WRITE:
    case NVM.COMPARE:
    case NVM.ZONE_APPEND:
      return ((cdw12 & IO_CDW12.BLOCKS_MASK) + 1) * blockBytes;
    case NVM.DATASET_MANAGEMENT:
      return ((cdw10 & 0xff) + 1) * DSM.RANGE_BYTES;
    case NVM.COPY:
      return ((cdw12 & 0xff) + 1) * COPY_RANGE_BYTES;
    default:
      return 0;
  }
}

/** Identify answers with one page of data (section 5.15), and a source range of copy has 32 bytes. */
const IDENTIFY_DATA = 4096;
const COPY_RANGE_BYTES = 32;
