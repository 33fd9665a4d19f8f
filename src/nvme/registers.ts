/**
 * The registers of an NVMe controller (NVM Express Base Specification 1.4, section 3.1). 64-bit registers are given by
 * their low word; the high one is 4 bytes further.
 */

/** Offsets in bytes, from the beginning of BAR 0. */
export const NVME_REGISTER = {
  /** controller capabilities, 64 bits */
  CAP: 0x00,
  /** version: major 31:16, minor 15:8, tertiary 7:0 */
  VS: 0x08,
  /** interrupt mask set */
  INTMS: 0x0c,
  /** interrupt mask clear */
  INTMC: 0x10,
  /** controller configuration */
  CC: 0x14,
  /** controller status */
  CSTS: 0x1c,
  /** NVM subsystem reset */
  NSSR: 0x20,
  /** admin queue attributes */
  AQA: 0x24,
  /** admin submission queue base address, 64 bits */
  ASQ: 0x28,
  /** admin completion queue base address, 64 bits */
  ACQ: 0x30,
  /** controller memory buffer location */
  CMBLOC: 0x38,
  /** controller memory buffer size */
  CMBSZ: 0x3c,
  /** controller memory buffer memory space control, 64 bits */
  CMBMSC: 0x50,
  /** controller memory buffer status */
  CMBSTS: 0x58,
  /** the tail of submission queue 0; the others follow (section 3.1.24) */
  DOORBELLS: 0x1000,
} as const;

/** Fields of CC: the number of the lowest bit, and a mask of the field's width (section 3.1.5). */
export const CC = {
  EN: 1 << 0,
  CSS_SHIFT: 4,
  CSS_MASK: 0x7,
  /** memory page size: 2^(12 + MPS) bytes */
  MPS_SHIFT: 7,
  MPS_MASK: 0xf,
  AMS_SHIFT: 11,
  AMS_MASK: 0x7,
  /** shutdown notification: 0 none, 1 normal, 2 abrupt */
  SHN_SHIFT: 14,
  SHN_MASK: 0x3,
  /** entries of I/O submission queues: 2^n bytes */
  IOSQES_SHIFT: 16,
  IOSQES_MASK: 0xf,
  /** entries of I/O completion queues: 2^n bytes */
  IOCQES_SHIFT: 20,
  IOCQES_MASK: 0xf,
} as const;

/** CC.SHN: what a host announces before it takes the power away. */
export const SHUTDOWN = { NONE: 0, NORMAL: 1, ABRUPT: 2 } as const;

/** CSTS.SHST: how far a shutdown is. */
export const SHUTDOWN_STATUS = { NORMAL: 0, OCCURRING: 1, COMPLETE: 2 } as const;

/** CC.CSS: which command sets a controller is enabled with. */
export const COMMAND_SETS = { NVM: 0, ALL: 6, ADMIN_ONLY: 7 } as const;

/** Fields of CSTS (section 3.1.6). */
export const CSTS = {
  RDY: 1 << 0,
  /** controller fatal status */
  CFS: 1 << 1,
  SHST_SHIFT: 2,
  SHST_MASK: 0x3,
} as const;

/** The bytes of a submission entry and of a completion, and their powers of two, as CC has them. */
export const ENTRY = { SUBMISSION: 64, COMPLETION: 16, SUBMISSION_POWER: 6, COMPLETION_POWER: 4 } as const;

/** Most entries of an admin queue (AQA has 12 bits, 0-based). */
export const MAX_ADMIN_ENTRIES = 4096;

/** CAP, in units that are of use (section 3.1.1). */
export interface NvmeCapabilities {
  /** Most entries of an I/O queue, 2 to 65536 (CAP.MQES is 0-based). */
  readonly maxEntries: number;
  /** Must queues be contiguous in memory? */
  readonly contiguous: boolean;
  /** Is weighted round robin offered? */
  readonly weightedRoundRobin: boolean;
  /** Milliseconds within which CSTS.RDY follows CC.EN. */
  readonly readyTimeoutMs: number;
  /** Bytes from one doorbell to the next, a power of two from 4 on. */
  readonly doorbellStride: number;
  readonly subsystemReset: boolean;
  /** Bits of CAP.CSS: 0 NVM, 6 one or more I/O command sets, 7 admin only. */
  readonly commandSets: number;
  /** Smallest memory page of the host, bytes. MDTS counts in these. */
  readonly minPageSize: number;
  /** Largest memory page of the host, bytes. */
  readonly maxPageSize: number;
  /** Are CMBLOC and CMBSZ there, but only after CMBMSC.CRE is set? (CAP.CMBS; NVMe 1.4) */
  readonly memoryBuffer: boolean;
}

/** Takes CAP apart. */
export function capabilitiesOf(low: number, high: number): NvmeCapabilities {
  return {
    maxEntries: (low & 0xffff) + 1,
    contiguous: (low & (1 << 16)) !== 0,
    weightedRoundRobin: (low & (1 << 17)) !== 0,
    readyTimeoutMs: (low >>> 24) * 500,
    doorbellStride: 4 << (high & 0xf),
    subsystemReset: (high & (1 << 4)) !== 0,
    commandSets: (high >>> 5) & 0xff,
    minPageSize: 2 ** (12 + ((high >>> 16) & 0xf)),
    maxPageSize: 2 ** (12 + ((high >>> 20) & 0xf)),
    memoryBuffer: (high & (1 << 25)) !== 0,
  };
}

/** The two words of CAP. What its fields can not hold is the caller's mistake. */
export function capabilityWords(of: NvmeCapabilities): { readonly low: number; readonly high: number } {
  const low =
    (of.maxEntries - 1) |
    (of.contiguous ? 1 << 16 : 0) |
    (of.weightedRoundRobin ? 1 << 17 : 0) |
    (Math.ceil(of.readyTimeoutMs / 500) << 24);
  const high =
    (Math.log2(of.doorbellStride) - 2) |
    (of.subsystemReset ? 1 << 4 : 0) |
    (of.commandSets << 5) |
    ((Math.log2(of.minPageSize) - 12) << 16) |
    ((Math.log2(of.maxPageSize) - 12) << 20) |
    (of.memoryBuffer ? 1 << 25 : 0);
  return { low: low >>> 0, high: high >>> 0 };
}

/** The doorbell of submission queue `queue` (its tail). @param stride bytes from one doorbell to the next */
export function submissionDoorbell(queue: number, stride: number): number {
  return NVME_REGISTER.DOORBELLS + 2 * queue * stride;
}

/** The doorbell of completion queue `queue` (its head). */
export function completionDoorbell(queue: number, stride: number): number {
  return NVME_REGISTER.DOORBELLS + (2 * queue + 1) * stride;
}

/**
 * Must a doorbell be written, when its value went from `old` to `value` and the other side has asked to hear of
 * `eventIndex`? For shadow doorbells (section 7.13); all values are below `entries`, and wrap there.
 */
export function needsDoorbell(eventIndex: number, value: number, old: number): boolean {
  // As virtio does it: in 16 bits, although values wrap at the size of the queue. A wrap may ring once too often, and
  // never too seldom.
  return ((value - eventIndex - 1) & 0xffff) < ((value - old) & 0xffff);
}

/** The version in VS, such as `1.4.0`. */
export function versionText(vs: number): string {
  return `${vs >>> 16}.${(vs >>> 8) & 0xff}.${vs & 0xff}`;
}

/** The value of VS for a version. */
export function versionWord(major: number, minor: number, tertiary = 0): number {
  return ((major << 16) | (minor << 8) | tertiary) >>> 0;
}

/** Fields of CMBLOC and CMBSZ (sections 3.1.11 and 3.1.12). */
export const CMB = {
  /** CMBSZ: submission queues may lie there, completion queues, PRP and SGL lists, data that is read, that is written */
  SQS: 1 << 0,
  CQS: 1 << 1,
  LISTS: 1 << 2,
  RDS: 1 << 3,
  WDS: 1 << 4,
  /** CMBMSC: capabilities registers enabled, memory space enabled */
  CRE: 1 << 0,
  CMSE: 1 << 1,
} as const;

/** Where the controller memory buffer is. */
export interface NvmeMemoryBuffer {
  /** the BAR, 0 to 5 */
  readonly bar: number;
  /** bytes from the beginning of the BAR */
  readonly offset: number;
  /** bytes */
  readonly length: number;
  /** {@link CMB} SQS to WDS */
  readonly uses: number;
}

/** Takes CMBLOC and CMBSZ apart; `undefined` if there is no buffer. */
export function memoryBufferOf(location: number, size: number): NvmeMemoryBuffer | undefined {
  const units = size >>> 12;
  if (units === 0) return undefined;
  const unit = 2 ** (12 + 4 * ((size >>> 8) & 0xf));
  return { bar: location & 0x7, offset: (location >>> 12) * unit, length: units * unit, uses: size & 0x1f };
}
