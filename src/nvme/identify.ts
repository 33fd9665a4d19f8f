/**
 * What IDENTIFY answers, 4096 bytes each: the controller, a namespace, its descriptors, lists (NVM Express Base
 * Specification 1.4, section 5.15.2).
 */

/** Bytes of an answer of IDENTIFY. */
export const IDENTIFY_BYTES = 4096;

/** Offsets in bytes of the controller's structure (figure 247). */
export const CONTROLLER = {
  VID: 0,
  SSVID: 2,
  /** serial number, 20 characters */
  SN: 4,
  /** model number, 40 characters */
  MN: 24,
  /** firmware revision, 8 characters */
  FR: 64,
  /** most bytes a command: 2^MDTS pages of CAP.MPSMIN, or 0 for no limit */
  MDTS: 77,
  CNTLID: 78,
  VER: 80,
  /** how long a shutdown takes, microseconds, 32 bits */
  RTD3E: 88,
  /** asynchronous events that are offered, 32 bits */
  OAES: 92,
  CNTRLTYPE: 111,
  /** optional admin commands, 16 bits */
  OACS: 256,
  /** aborts at once, 0-based */
  ACL: 258,
  /** asynchronous event requests at once, 0-based */
  AERL: 259,
  FRMW: 260,
  LPA: 261,
  /** entries of the error log, 0-based */
  ELPE: 262,
  /** warning and critical temperature, kelvins */
  WCTEMP: 266,
  CCTEMP: 268,
  /** host memory buffer, preferred and least, in 4 KiB */
  HMPRE: 272,
  HMMIN: 276,
  TNVMCAP: 280,
  /** entry sizes, least in the low four bits, most in the high ones */
  SQES: 512,
  CQES: 513,
  /** namespaces */
  NN: 516,
  /** optional I/O commands, 16 bits */
  ONCS: 520,
  /** volatile write cache: bit 0 there, bits 2:1 what a flush of all namespaces does */
  VWC: 525,
  /** SGLs: bits 1:0, 0 none, 1 any, 2 of whole words */
  SGLS: 536,
  SUBNQN: 768,
  POWER_STATES: 2048,
} as const;

/** Bits of OACS: optional admin commands. */
export const OACS = {
  SECURITY: 1 << 0,
  FORMAT: 1 << 1,
  FIRMWARE: 1 << 2,
  NAMESPACES: 1 << 3,
  SELF_TEST: 1 << 4,
  DIRECTIVES: 1 << 5,
  DOORBELL_BUFFER: 1 << 8,
} as const;

/** Bits of ONCS: optional I/O commands and what belongs to them. */
export const ONCS = {
  COMPARE: 1 << 0,
  WRITE_UNCORRECTABLE: 1 << 1,
  DATASET_MANAGEMENT: 1 << 2,
  WRITE_ZEROES: 1 << 3,
  /** save in SET_FEATURES, select in GET_FEATURES */
  FEATURE_SAVE: 1 << 4,
  RESERVATIONS: 1 << 5,
  TIMESTAMP: 1 << 6,
  VERIFY: 1 << 7,
  COPY: 1 << 8,
} as const;

/** Bits of LPA: log pages. */
export const LPA = { SMART_PER_NAMESPACE: 1 << 0, COMMAND_EFFECTS: 1 << 1, EXTENDED: 1 << 2 } as const;

/** Offsets in bytes of a namespace's structure (figure 245). */
export const NAMESPACE = {
  /** blocks, 64 bits: size, capacity, in use */
  NSZE: 0,
  NCAP: 8,
  NUSE: 16,
  NSFEAT: 24,
  /** formats, 0-based */
  NLBAF: 25,
  /** the format in use: bits 3:0, and bit 4, metadata behind each block's data */
  FLBAS: 26,
  DPS: 29,
  /** how deallocated blocks read: bits 2:0, 1 zeroes; bit 3, write zeroes may deallocate */
  DLFEAT: 33,
  NVMCAP: 48,
  NPWG: 64,
  NPWA: 66,
  NPDG: 68,
  NPDA: 70,
  /** bit 0: write protected */
  NSATTR: 99,
  NGUID: 104,
  EUI64: 120,
  /** formats of 4 bytes: metadata 15:0, power of the block's bytes 23:16, relative performance 25:24 */
  LBAF: 128,
} as const;

/** Bits of NSFEAT. */
export const NSFEAT = { THIN: 1 << 0, OPTIMAL_IO: 1 << 4 } as const;

/**
 * Offsets in bytes of what the zoned command set has of its own: of a namespace (CNS 05h), and of a controller (CNS 06h; Zoned
 * Namespace Command Set 1.1, sections 4.1.5.1 and 4.1.5.2).
 */
export const ZONED = {
  /** bit 0: reads may go over the end of a zone; 16 bits */
  OZCS: 2,
  /** zones that may be active, and open, 0-based; all ones: without a limit */
  MAR: 4,
  MOR: 8,
  /** formats of 16 bytes, of which the first 8 are the blocks of a zone */
  LBAFE: 2816,
  LBAFE_BYTES: 16,
  /** of the controller: most bytes of an append are 2^ZASL pages of CAP.MPSMIN; 0: those of MDTS */
  ZASL: 0,
} as const;

/** Types of a namespace's descriptors (CNS 03h). */
export const DESCRIPTOR_TYPE = { EUI64: 1, NGUID: 2, UUID: 3, CSI: 4 } as const;

/** Who and what a controller says it is. */
export interface NvmeControllerIdentity {
  /** PCI vendor and subsystem vendor */
  readonly vendor: number;
  readonly subsystemVendor: number;
  readonly serial: string;
  readonly model: string;
  readonly firmware: string;
  /** controller id in its subsystem */
  readonly controllerId: number;
  /** the VER field, as the register VS; 0 before NVMe 1.2 */
  readonly version: number;
  /** Most bytes a command are 2^mdts of the least pages; 0: no limit. */
  readonly mdts: number;
  /** optional admin commands, `OACS` */
  readonly oacs: number;
  /** optional I/O commands, `ONCS` */
  readonly oncs: number;
  /** aborts that may be outstanding at once (not 0-based) */
  readonly abortLimit: number;
  /** asynchronous event requests that may be outstanding at once (not 0-based) */
  readonly eventLimit: number;
  /** entries of the error log (not 0-based) */
  readonly errorLogEntries: number;
  /** log page attributes, `LPA` */
  readonly lpa: number;
  /** asynchronous events that are offered, as `EVENT_CONFIG` has them */
  readonly events: number;
  /** the largest namespace id that may be valid */
  readonly namespaces: number;
  /** Is there a volatile write cache? */
  readonly writeCache: boolean;
  /** SGL support, the whole field */
  readonly sgls: number;
  /** host memory buffer in bytes: what is preferred, and the least; 0: it wants none */
  readonly hostMemoryPreferred: number;
  readonly hostMemoryMinimum: number;
  /** kelvins; 0: not told */
  readonly warningTemperature: number;
  readonly criticalTemperature: number;
  /** milliseconds that a shutdown may take (RTD3E); 0: not told */
  readonly shutdownMs: number;
  /** bytes in all; 0: not told */
  readonly capacity: number;
  /** powers of two of the bytes of entries: least and most */
  readonly submissionEntry: readonly [least: number, most: number];
  readonly completionEntry: readonly [least: number, most: number];
  /** NVMe qualified name of the subsystem; empty if it has none */
  readonly subsystem: string;
}

/** A format that a namespace may have. */
export interface NvmeFormat {
  /** bytes of a block, without metadata; 0: this format is not there */
  readonly blockSize: number;
  /** bytes of metadata a block */
  readonly metadataSize: number;
  /** 0 best to 3 degraded */
  readonly performance: number;
}

/** What a namespace says of itself. */
export interface NvmeNamespaceIdentity {
  /** blocks; 0: no namespace is there */
  readonly blocks: number;
  /** blocks that may be allocated at once */
  readonly capacity: number;
  /** blocks that are allocated */
  readonly used: number;
  readonly formats: readonly NvmeFormat[];
  /** index of the format in use */
  readonly format: number;
  readonly blockSize: number;
  readonly metadataSize: number;
  /** Is the metadata behind each block's data, in one piece with it? */
  readonly metadataInline: boolean;
  /** protection information type, 0 none to 3 */
  readonly protection: number;
  /** Is the protection information in the first bytes of the metadata, rather than in the last? */
  readonly protectionFirst: boolean;
  /** Do deallocated blocks read as zeroes? */
  readonly deallocatedZeroes: boolean;
  readonly thin: boolean;
  readonly writeProtected: boolean;
  /** hexadecimal; empty if it has none */
  readonly nguid: string;
  readonly eui64: string;
}

/** What a namespace's descriptors say (CNS 03h). */
export interface NvmeDescriptors {
  readonly eui64: string | undefined;
  readonly nguid: string | undefined;
  readonly uuid: string | undefined;
  /** the I/O command set, `COMMAND_SET` */
  readonly commandSet: number | undefined;
}

/** Reads the answer of CNS 01h. @param bytes 4096 of them */
export function controllerIdentityOf(bytes: Uint8Array): NvmeControllerIdentity {
  const view = viewOf(bytes);
  const u8 = (at: number): number => view.getUint8(at);
  const u16 = (at: number): number => view.getUint16(at, true);
  const u32 = (at: number): number => view.getUint32(at, true);
  return {
    vendor: u16(CONTROLLER.VID),
    subsystemVendor: u16(CONTROLLER.SSVID),
    serial: paddedText(bytes, CONTROLLER.SN, 20),
    model: paddedText(bytes, CONTROLLER.MN, 40),
    firmware: paddedText(bytes, CONTROLLER.FR, 8),
    controllerId: u16(CONTROLLER.CNTLID),
    version: u32(CONTROLLER.VER),
    mdts: u8(CONTROLLER.MDTS),
    oacs: u16(CONTROLLER.OACS),
    oncs: u16(CONTROLLER.ONCS),
    abortLimit: u8(CONTROLLER.ACL) + 1,
    eventLimit: u8(CONTROLLER.AERL) + 1,
    errorLogEntries: u8(CONTROLLER.ELPE) + 1,
    lpa: u8(CONTROLLER.LPA),
    events: u32(CONTROLLER.OAES),
    namespaces: u32(CONTROLLER.NN),
    writeCache: (u8(CONTROLLER.VWC) & 1) !== 0,
    sgls: u32(CONTROLLER.SGLS),
    hostMemoryPreferred: u32(CONTROLLER.HMPRE) * 4096,
    hostMemoryMinimum: u32(CONTROLLER.HMMIN) * 4096,
    warningTemperature: u16(CONTROLLER.WCTEMP),
    criticalTemperature: u16(CONTROLLER.CCTEMP),
    shutdownMs: u32(CONTROLLER.RTD3E) / 1000,
    capacity: numberAt(view, CONTROLLER.TNVMCAP, 16),
    submissionEntry: [u8(CONTROLLER.SQES) & 0xf, u8(CONTROLLER.SQES) >>> 4],
    completionEntry: [u8(CONTROLLER.CQES) & 0xf, u8(CONTROLLER.CQES) >>> 4],
    subsystem: paddedText(bytes, CONTROLLER.SUBNQN, 256),
  };
}

/** Reads the answer of CNS 00h. @param bytes 4096 of them */
export function namespaceIdentityOf(bytes: Uint8Array): NvmeNamespaceIdentity {
  const view = viewOf(bytes);
  const formats: NvmeFormat[] = [];
  for (let index = 0; index <= Math.min(15, bytes[NAMESPACE.NLBAF]); index++) {
    const word = view.getUint32(NAMESPACE.LBAF + 4 * index, true);
    const power = (word >>> 16) & 0xff;
    formats.push({
      // The least is 512 bytes; 0 says that the format is not there.
      blockSize: power < 9 || power > 31 ? 0 : 2 ** power,
      metadataSize: word & 0xffff,
      performance: (word >>> 24) & 0x3,
    });
  }
  const format = bytes[NAMESPACE.FLBAS] & 0xf;
  const current = formats.at(format);
  return {
    blocks: numberAt(view, NAMESPACE.NSZE, 8),
    capacity: numberAt(view, NAMESPACE.NCAP, 8),
    used: numberAt(view, NAMESPACE.NUSE, 8),
    formats,
    format,
    blockSize: current?.blockSize ?? 0,
    metadataSize: current?.metadataSize ?? 0,
    metadataInline: (bytes[NAMESPACE.FLBAS] & (1 << 4)) !== 0,
    protection: bytes[NAMESPACE.DPS] & 0x7,
    protectionFirst: (bytes[NAMESPACE.DPS] & (1 << 3)) !== 0,
    deallocatedZeroes: (bytes[NAMESPACE.DLFEAT] & 0x7) === 1,
    thin: (bytes[NAMESPACE.NSFEAT] & NSFEAT.THIN) !== 0,
    writeProtected: (bytes[NAMESPACE.NSATTR] & 1) !== 0,
    nguid: hexOf(bytes, NAMESPACE.NGUID, 16) ?? '',
    eui64: hexOf(bytes, NAMESPACE.EUI64, 8) ?? '',
  };
}

/** Reads the answer of CNS 03h. What is cut off or not known is passed over. @param bytes 4096 of them */
export function descriptorsOf(bytes: Uint8Array): NvmeDescriptors {
  let eui64: string | undefined;
  let nguid: string | undefined;
  let uuid: string | undefined;
  let commandSet: number | undefined;
  for (let at = 0; at + 4 <= bytes.length && bytes[at] !== 0;) {
    const type = bytes[at];
    const length = bytes[at + 1];
    const value = at + 4;
    at = value + length;
    if (length === 0 || at > bytes.length) break;
    if (type === DESCRIPTOR_TYPE.EUI64 && length === 8) eui64 = hexOf(bytes, value, 8);
    else if (type === DESCRIPTOR_TYPE.NGUID && length === 16) nguid = hexOf(bytes, value, 16);
    else if (type === DESCRIPTOR_TYPE.UUID && length === 16) uuid = dashed(hexOf(bytes, value, 16));
    else if (type === DESCRIPTOR_TYPE.CSI && length === 1) commandSet = bytes[value];
  }
  return { eui64, nguid, uuid, commandSet };
}

/** What a zoned namespace says of its zones. */
export interface NvmeZonedNamespace {
  /** blocks from the beginning of one zone to the next */
  readonly zoneSize: number;
  /** zones that may be open at once; `Infinity` without a limit */
  readonly maxOpen: number;
  /** zones that may be open or closed at once; `Infinity` without a limit */
  readonly maxActive: number;
  /** May a read go over the end of a zone? */
  readonly readAcross: boolean;
}

/** Reads the answer of CNS 05h of the zoned command set. @param bytes 4096 of them; @param format index of the one in use */
export function zonedNamespaceOf(bytes: Uint8Array, format: number): NvmeZonedNamespace {
  const view = viewOf(bytes);
  const limit = (at: number): number => {
    const most = view.getUint32(at, true);
    return most === 0xffffffff ? Infinity : most + 1;
  };
  return {
    zoneSize: numberAt(view, ZONED.LBAFE + format * ZONED.LBAFE_BYTES, 8),
    maxOpen: limit(ZONED.MOR),
    maxActive: limit(ZONED.MAR),
    readAcross: (view.getUint16(ZONED.OZCS, true) & 1) !== 0,
  };
}

/** Reads the answer of CNS 06h of the zoned command set. @param bytes 4096 of them */
export function zonedControllerOf(bytes: Uint8Array): { readonly appendPower: number } {
  return { appendPower: bytes[ZONED.ZASL] };
}

/** Reads a list of namespace ids (CNS 02h): up to the first 0. */
export function namespaceListOf(bytes: Uint8Array): number[] {
  const view = viewOf(bytes);
  const ids: number[] = [];
  for (let at = 0; at + 4 <= bytes.length; at += 4) {
    const id = view.getUint32(at, true);
    if (id === 0) break;
    ids.push(id);
  }
  return ids;
}

/** A text field: printable ASCII, padded with blanks behind (or, against the specification, with zeroes). */
export function paddedText(bytes: Uint8Array, at: number, length: number): string {
  let text = '';
  for (const code of bytes.subarray(at, at + length)) {
    if (code === 0) break;
    text += code >= 0x20 && code < 0x7f ? String.fromCharCode(code) : '?';
  }
  return text.trim();
}

/** Writes a text field, padded with blanks. What does not fit is cut off. */
export function putPadded(bytes: Uint8Array, at: number, length: number, text: string): void {
  for (let n = 0; n < length; n++) {
    const code = n < text.length ? text.charCodeAt(n) : 0x20;
    bytes[at + n] = code >= 0x20 && code < 0x7f ? code : 0x3f;
  }
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** A little-endian number of 8 or 16 bytes; not exact from 2^53 on. */
export function numberAt(view: DataView, at: number, length: 8 | 16): number {
  let value = 0;
  for (let word = length - 4; word >= 0; word -= 4) value = value * 2 ** 32 + view.getUint32(at + word, true);
  return value;
}

/** `undefined` if all of it is 0, which means that there is no such identifier. */
function hexOf(bytes: Uint8Array, at: number, length: number): string | undefined {
  const part = bytes.subarray(at, at + length);
  if (part.every((byte) => byte === 0)) return undefined;
  return Array.from(part, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

function dashed(text: string | undefined): string | undefined {
  return text?.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}
