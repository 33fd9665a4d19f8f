/**
 * The messages of the vfio-user protocol, version 0.1: numbers, layouts and codecs. Integers are little-endian. Offsets
 * in payload layouts count from the byte after the 16-byte header. The layouts come from the protocol's "Commands"
 * chapter; its structs are those of include/uapi/linux/vfio.h with the same names.
 *
 * Decoders throw `DmaError` EINVAL for malformed messages, and never read beyond the payload. Encoders write into a
 * buffer of the caller and return the message's size, so that a connection can use one buffer for all messages that it
 * sends.
 */
import { DmaError, ERRNO, errorCode, invalid } from '../errors.js';
import type { ErrorCode } from '../errors.js';
import { isAddress, KiB, MiB } from '../units.js';
import type { DmaAccess } from '../dma/address-space.js';

/** The version that both ends here speak. */
export const PROTOCOL_VERSION = { major: 0, minor: 1 } as const;

/** The size of the header of every message, in bytes. */
export const HEADER_SIZE = 16;

/** The largest `count` of region and DMA accesses that both ends here accept, in bytes; also the protocol's default. */
export const MAX_DATA = 1 * MiB;

/**
 * The most data that one message carries to the other side, in bytes, even if that announces more. libvfio-user and
 * QEMU announce 1 MiB. But libvfio-user needs a message to arrive in one piece, and QEMU loses what the socket's send
 * buffer (208 KiB) does not take at once.
 */
export const SAFE_TRANSFER = 64 * KiB;

/** The largest message that both ends here accept, in bytes: an access of {@link MAX_DATA} bytes. */
export const MAX_MESSAGE = HEADER_SIZE + 16 + MAX_DATA;

/** Descriptors that both ends here accept in one message. Some peers refuse a connection that announces more. */
export const MAX_FDS = 16;

/**
 * The most descriptors that a message can have. All are received, so that unused ones are closed here and not by the
 * kernel.
 */
export const ALL_FDS = 253;

/** Command numbers. From 14 on they belong to later versions (migration, dirty page tracking). */
export const COMMAND = {
  VERSION: 1,
  DMA_MAP: 2,
  DMA_UNMAP: 3,
  GET_INFO: 4,
  GET_REGION_INFO: 5,
  GET_REGION_IO_FDS: 6,
  GET_IRQ_INFO: 7,
  SET_IRQS: 8,
  REGION_READ: 9,
  REGION_WRITE: 10,
  DMA_READ: 11,
  DMA_WRITE: 12,
  RESET: 13,
} as const;

const COMMAND_NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(COMMAND).map(([name, number]) => [number, name]),
);

/** The command for errors and logs: `vfio-user DMA_MAP`. */
export function operationOf(command: number): string {
  return `vfio-user ${COMMAND_NAMES.get(command) ?? `command ${command}`}`;
}

/** Bits of the header's flags. */
export const FLAG = { TYPE: 0xf, COMMAND: 0, REPLY: 1, NO_REPLY: 0x10, ERROR: 0x20 } as const;

/** One whole message. */
export interface Message {
  /** Chosen by the sender of the command, and repeated in the reply. Each direction has its own ids. */
  readonly id: number;
  readonly command: number;
  readonly flags: number;
  /** Linux error number if `flags` has ERROR; some peers leave it 0 even then. */
  readonly errno: number;
  /** The bytes after the header. They belong to the connection, and are valid only until it receives again. */
  readonly payload: Uint8Array;
  /** The descriptors of the message. A receiver takes those that it keeps out of the array; the rest is closed. */
  readonly fds: number[];
}

export function get16(bytes: Uint8Array, at: number): number {
  return bytes[at] | (bytes[at + 1] << 8);
}

export function get32(bytes: Uint8Array, at: number): number {
  return (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24)) >>> 0;
}

/** A 64-bit integer as a Number. 2^53 and more are rounded but never below 2^53, so that `isAddress` refuses them. */
export function get64(bytes: Uint8Array, at: number): number {
  return get32(bytes, at + 4) * 4294967296 + get32(bytes, at);
}

export function put16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
}

export function put32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
  bytes[at + 2] = value >>> 16;
  bytes[at + 3] = value >>> 24;
}

export function put64(bytes: Uint8Array, at: number, value: number): void {
  put32(bytes, at, value >>> 0);
  put32(bytes, at + 4, Math.floor(value / 4294967296));
}

function putHeader(into: Uint8Array, id: number, command: number, size: number, flags: number, errno: number): number {
  put16(into, 0, id);
  put16(into, 2, command);
  put32(into, 4, size);
  put32(into, 8, flags);
  put32(into, 12, errno);
  return size;
}

/** Writes the header of a command with a payload of `payload` bytes. Returns the size of the message. */
export function putCommand(into: Uint8Array, id: number, command: number, payload: number, noReply = false): number {
  return putHeader(into, id, command, HEADER_SIZE + payload, noReply ? FLAG.NO_REPLY : FLAG.COMMAND, 0);
}

/** Writes the header of a reply with a payload of `payload` bytes. Returns the size of the message. */
export function putReply(into: Uint8Array, id: number, command: number, payload: number): number {
  return putHeader(into, id, command, HEADER_SIZE + payload, FLAG.REPLY, 0);
}

/** Writes an error reply, which is only a header. Returns its size. */
export function putErrorReply(into: Uint8Array, id: number, command: number, code: ErrorCode): number {
  return putHeader(into, id, command, HEADER_SIZE, FLAG.REPLY | FLAG.ERROR, ERRNO[code]);
}

/** The error in a reply; `undefined` for a good reply. EIO if the peer gives no error number. */
export function errorOfReply(message: Message): DmaError | undefined {
  if ((message.flags & FLAG.ERROR) === 0) return undefined;
  const { command, errno } = message;
  const code = errorCode(errno);
  const reason = errno === 0 ? 'refused by the other side, without a reason' : `refused by the other side (${code})`;
  return new DmaError({ code, errno: errno === 0 ? ERRNO.EIO : errno, operation: operationOf(command), reason });
}

/** Throws EINVAL unless the payload has at least `size` bytes. */
export function needPayload(message: Message, size: number): Uint8Array {
  const { payload, command } = message;
  if (payload.length < size)
    throw invalid(operationOf(command), `a payload of ${payload.length} bytes where ${size} are needed`);
  return payload;
}

/** As {@link needPayload}, for payloads that begin with `argsz`, which must also be at least `size`. */
export function needStruct(message: Message, size: number): Uint8Array {
  const payload = needPayload(message, size);
  const argsz = get32(payload, 0);
  if (argsz < size) throw invalid(operationOf(message.command), `an argsz of ${argsz} where ${size} are needed`);
  return payload;
}

// VERSION: 0:2 major, 2:2 minor, 4: JSON text, NUL.

/** The capabilities of one end. An absent one has the protocol's default. */
export interface Capabilities {
  /** Descriptors that it can receive in one message. */
  readonly maxMsgFds: number;
  /** The largest count of region and DMA accesses that it accepts, in bytes. */
  readonly maxDataXferSize: number;
  /** Most DMA regions at a time. */
  readonly maxDmaMaps: number;
  /** Page sizes for DMA regions in bytes, combined by OR. */
  readonly pgsizes: number;
  /** A second socket for the server's commands: offered (client) or given, as descriptor `fdIndex` (server). */
  readonly twinSocket: { readonly fdIndex: number | undefined } | undefined;
}

/** The defaults of the protocol ("Version"). */
export const DEFAULT_CAPABILITIES: Capabilities = {
  maxMsgFds: 1,
  maxDataXferSize: MAX_DATA,
  maxDmaMaps: 65535,
  pgsizes: 4096,
  twinSocket: undefined,
};

/** VERSION, in either direction. */
export interface Version {
  readonly major: number;
  readonly minor: number;
  readonly capabilities: Capabilities;
}

/** Longest VERSION payload that is accepted, in bytes. */
const MAX_VERSION = 16384;

/** The payload of VERSION. Contains only what differs from the default, because a peer's buffer may be short. */
export function encodeVersion(version: Version): Uint8Array {
  const { maxMsgFds, maxDataXferSize, maxDmaMaps, pgsizes, twinSocket } = version.capabilities;
  const named: Record<string, unknown> = { max_msg_fds: maxMsgFds, max_data_xfer_size: maxDataXferSize };
  if (maxDmaMaps !== DEFAULT_CAPABILITIES.maxDmaMaps) named.max_dma_maps = maxDmaMaps;
  if (pgsizes !== DEFAULT_CAPABILITIES.pgsizes) named.pgsizes = pgsizes;
  if (twinSocket !== undefined) named.twin_socket = { supported: true, fd_index: twinSocket.fdIndex };
  const text = new TextEncoder().encode(JSON.stringify({ capabilities: named }) + '\0');
  const payload = new Uint8Array(4 + text.length);
  put16(payload, 0, version.major);
  put16(payload, 2, version.minor);
  payload.set(text, 4);
  return payload;
}

/** Decodes VERSION. Unknown keys are ignored, missing ones have their defaults, wrong types are EINVAL. */
export function decodeVersion(message: Message): Version {
  const payload = needPayload(message, 4);
  return { major: get16(payload, 0), minor: get16(payload, 2), capabilities: decodeCapabilities(payload.subarray(4)) };
}

function decodeCapabilities(bytes: Uint8Array): Capabilities {
  if (bytes.length === 0) return DEFAULT_CAPABILITIES;
  if (bytes.length > MAX_VERSION) throw badVersion(`${bytes.length} bytes of capabilities`);
  if (bytes[bytes.length - 1] !== 0) throw badVersion('the capabilities do not end with NUL');
  let text: string;
  let json: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes.subarray(0, bytes.indexOf(0)));
    json = JSON.parse(text);
  } catch (cause) {
    throw badVersion('the capabilities are not JSON', cause);
  }
  const given = objectOf(json, 'the text').capabilities ?? {};
  const names = objectOf(given, 'capabilities');
  const number = (name: string, least: number, byDefault: number): number => {
    const value = Object.hasOwn(names, name) ? names[name] : byDefault;
    if (typeof value !== 'number' || !isAddress(value) || value < least)
      throw badVersion(`${name} is not an integer of at least ${least}`);
    return value;
  };
  return {
    maxMsgFds: number('max_msg_fds', 0, DEFAULT_CAPABILITIES.maxMsgFds),
    maxDataXferSize: number('max_data_xfer_size', 1, DEFAULT_CAPABILITIES.maxDataXferSize),
    maxDmaMaps: number('max_dma_maps', 1, DEFAULT_CAPABILITIES.maxDmaMaps),
    pgsizes: pageSizes(names.pgsizes, text),
    twinSocket: Object.hasOwn(names, 'twin_socket') ? decodeTwinSocket(names.twin_socket) : undefined,
  };
}

/** Page sizes, combined by OR: 64 bits. If a Number can not hold them, only the smallest one is returned. */
function pageSizes(value: unknown, text: string): number {
  if (value === undefined) return DEFAULT_CAPABILITIES.pgsizes;
  if (typeof value === 'number' && isAddress(value) && value > 0) return value;
  const digits = /"pgsizes"\s*:\s*(\d{1,20})(?![\d.eE])/.exec(text)?.[1];
  const lowest = digits === undefined ? 0 : Number(BigInt(digits) & -BigInt(digits));
  if (!isAddress(lowest) || lowest === 0) throw badVersion('pgsizes has no page size');
  return lowest;
}

function decodeTwinSocket(value: unknown): Capabilities['twinSocket'] {
  const { supported = false, fd_index: fdIndex } = objectOf(value, 'twin_socket');
  if (typeof supported !== 'boolean') throw badVersion('twin_socket.supported is not a boolean');
  if (fdIndex !== undefined && (typeof fdIndex !== 'number' || !isAddress(fdIndex)))
    throw badVersion('twin_socket.fd_index is not an index');
  return supported ? { fdIndex } : undefined;
}

function objectOf(value: unknown, name: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw badVersion(`${name} is not an object`);
  return value as Record<string, unknown>;
}

function badVersion(reason: string, cause?: unknown): DmaError {
  return invalid(operationOf(COMMAND.VERSION), reason, { cause });
}

// DMA_MAP: 0:4 argsz, 4:4 flags, 8:8 offset, 16:8 iova, 24:8 size. DMA_UNMAP: 0:4 argsz, 4:4 flags, 8:8 iova, 16:8 size.

export const DMA_MAP_SIZE = 32;
export const DMA_UNMAP_SIZE = 24;
const DMA_READABLE = 1;
const DMA_WRITEABLE = 2;
/** Advice of one implementation's clients how to access the memory ("map it", "read and write the file"). */
const DMA_ADVICE = 4 | 8;
const UNMAP_ALL = 2;

/** A DMA region, as in DMA_MAP. */
export interface DmaMapRequest {
  readonly iova: number;
  /** Bytes. */
  readonly length: number;
  readonly readable: boolean;
  readonly writable: boolean;
  /** Where it begins in the descriptor, in bytes. */
  readonly offset: number;
}

/** The flags that mean `access`. */
export function encodeDmaMap(
  into: Uint8Array,
  id: number,
  iova: number,
  length: number,
  access: DmaAccess,
  offset: number,
): number {
  put32(into, 16, DMA_MAP_SIZE);
  put32(into, 20, (access === 'write' ? 0 : DMA_READABLE) | (access === 'read' ? 0 : DMA_WRITEABLE));
  put64(into, 24, offset);
  put64(into, 32, iova);
  put64(into, 40, length);
  return putCommand(into, id, COMMAND.DMA_MAP, DMA_MAP_SIZE);
}

export function decodeDmaMap(message: Message): DmaMapRequest {
  const payload = needStruct(message, DMA_MAP_SIZE);
  const flags = get32(payload, 4);
  const offset = get64(payload, 8);
  const iova = get64(payload, 16);
  const length = get64(payload, 24);
  const operation = operationOf(COMMAND.DMA_MAP);
  if ((flags & ~(DMA_READABLE | DMA_WRITEABLE | DMA_ADVICE)) !== 0) throw invalid(operation, `unknown flags ${flags}`);
  if (length === 0 || !isAddress(iova + length) || !isAddress(offset + length))
    throw invalid(operation, 'an empty region, or one that passes 2^53');
  return { iova, length, readable: (flags & DMA_READABLE) !== 0, writable: (flags & DMA_WRITEABLE) !== 0, offset };
}

export function encodeDmaUnmap(into: Uint8Array, id: number, iova: number, length: number): number {
  put32(into, 16, DMA_UNMAP_SIZE);
  put32(into, 20, 0);
  put64(into, 24, iova);
  put64(into, 32, length);
  return putCommand(into, id, COMMAND.DMA_UNMAP, DMA_UNMAP_SIZE);
}

/** What to unmap: exactly one region that was mapped, or all. */
export function decodeDmaUnmap(message: Message): { readonly iova: number; readonly length: number } | 'all' {
  const payload = needStruct(message, DMA_UNMAP_SIZE);
  const flags = get32(payload, 4);
  const iova = get64(payload, 8);
  const length = get64(payload, 16);
  const operation = operationOf(COMMAND.DMA_UNMAP);
  if ((flags & ~UNMAP_ALL) !== 0) throw invalid(operation, `flags ${flags}, of which only "all" is served`);
  if (flags === 0) return { iova, length };
  if (iova !== 0 || length !== 0) throw invalid(operation, '"all" with a range');
  return 'all';
}

// GET_INFO: 0:4 argsz, 4:4 flags, 8:4 regions, 12:4 kinds of interrupt.

export const DEVICE_INFO_SIZE = 16;

/** The content of GET_INFO. */
export interface DeviceInfo {
  /** Whether the device has a reset. */
  readonly resettable: boolean;
  /** Whether it is a PCI device, with regions and interrupts numbered as in VFIO. */
  readonly pci: boolean;
  readonly regionCount: number;
  /** Kinds of interrupt (INTx, MSI, ...), not vectors. */
  readonly interruptKinds: number;
}

export function encodeDeviceInfoRequest(into: Uint8Array, id: number): number {
  into.fill(0, 16, 32);
  put32(into, 16, DEVICE_INFO_SIZE);
  return putCommand(into, id, COMMAND.GET_INFO, DEVICE_INFO_SIZE);
}

export function encodeDeviceInfo(into: Uint8Array, id: number, info: DeviceInfo): number {
  put32(into, 16, DEVICE_INFO_SIZE);
  put32(into, 20, (info.resettable ? 1 : 0) | (info.pci ? 2 : 0));
  put32(into, 24, info.regionCount);
  put32(into, 28, info.interruptKinds);
  return putReply(into, id, COMMAND.GET_INFO, DEVICE_INFO_SIZE);
}

export function decodeDeviceInfo(message: Message): DeviceInfo {
  const payload = needPayload(message, DEVICE_INFO_SIZE);
  const flags = get32(payload, 4);
  return {
    resettable: (flags & 1) !== 0,
    pci: (flags & 2) !== 0,
    regionCount: get32(payload, 8),
    interruptKinds: get32(payload, 12),
  };
}

// GET_REGION_INFO: 0:4 argsz, 4:4 flags, 8:4 index, 12:4 first capability, 16:8 size, 24:8 offset in the descriptor.
// Capability: 0:2 id, 2:2 version, 4:4 next; sparse mmap (id 1): 8:4 areas, 12:4 reserved, then 0:8 offset, 8:8 size each.

export const REGION_INFO_SIZE = 32;
const REGION_READ = 1;
const REGION_WRITE = 2;
const REGION_MMAP = 4;
const REGION_CAPS = 8;
const CAP_SPARSE_MMAP = 1;
/** Far more than any device has; limits how long a list of a peer can keep us busy. */
const MAX_CAPS = 16;
const MAX_AREAS = 1024;

/** A part of a region that can be mapped, in bytes from the beginning of the region. */
export interface SparseArea {
  readonly offset: number;
  readonly length: number;
}

/** The content of GET_REGION_INFO. */
export interface RegionDescription {
  readonly index: number;
  /** Bytes; 0 if the device does not have it. */
  readonly size: number;
  readonly readable: boolean;
  readonly writable: boolean;
  readonly mappable: boolean;
  /** Where the region begins in its descriptor, in bytes. */
  readonly fdOffset: number;
  /** The parts that can be mapped. */
  readonly areas: readonly SparseArea[];
  /** The size of the complete answer in bytes; larger than requested if `areas` are missing. */
  readonly argsz: number;
}

export function encodeRegionInfoRequest(into: Uint8Array, id: number, index: number, argsz: number): number {
  into.fill(0, 16, 16 + REGION_INFO_SIZE);
  put32(into, 16, argsz);
  put32(into, 24, index);
  return putCommand(into, id, COMMAND.GET_REGION_INFO, REGION_INFO_SIZE);
}

/**
 * The reply. If the client's `argsz` has no room for the areas, they are left out, and `argsz` tells the size that they
 * need.
 */
export function encodeRegionInfo(into: Uint8Array, id: number, region: RegionDescription, room: number): number {
  const { areas, mappable, readable, writable } = region;
  const full = REGION_INFO_SIZE + (areas.length === 0 ? 0 : 16 + areas.length * 16);
  const withAreas = areas.length > 0 && room >= full;
  const flags =
    (readable ? REGION_READ : 0) |
    (writable ? REGION_WRITE : 0) |
    (mappable ? REGION_MMAP : 0) |
    (withAreas ? REGION_CAPS : 0);
  put32(into, 16, full);
  put32(into, 20, flags);
  put32(into, 24, region.index);
  put32(into, 28, withAreas ? REGION_INFO_SIZE : 0);
  put64(into, 32, region.size);
  put64(into, 40, region.fdOffset);
  if (!withAreas) return putReply(into, id, COMMAND.GET_REGION_INFO, REGION_INFO_SIZE);
  const at = HEADER_SIZE + REGION_INFO_SIZE;
  put16(into, at, CAP_SPARSE_MMAP);
  put16(into, at + 2, 1);
  put32(into, at + 4, 0);
  put32(into, at + 8, areas.length);
  put32(into, at + 12, 0);
  areas.forEach((area, i) => {
    put64(into, at + 16 + i * 16, area.offset);
    put64(into, at + 24 + i * 16, area.length);
  });
  return putReply(into, id, COMMAND.GET_REGION_INFO, full);
}

export function decodeRegionInfo(message: Message): RegionDescription {
  const payload = needPayload(message, REGION_INFO_SIZE);
  const flags = get32(payload, 4);
  const size = get64(payload, 16);
  const fdOffset = get64(payload, 24);
  const operation = operationOf(COMMAND.GET_REGION_INFO);
  if (!isAddress(size) || !isAddress(fdOffset + size)) throw invalid(operation, 'a region that passes 2^53');
  const mappable = (flags & REGION_MMAP) !== 0 && size > 0;
  let areas: readonly SparseArea[] = mappable ? [{ offset: 0, length: size }] : [];
  if ((flags & REGION_CAPS) !== 0) {
    let at = get32(payload, 12);
    for (let seen = 0; at !== 0; seen++) {
      if (seen === MAX_CAPS || at < REGION_INFO_SIZE || at + 8 > payload.length)
        throw invalid(operation, 'a chain of capabilities that leaves the message or does not end');
      if (get16(payload, at) === CAP_SPARSE_MMAP && mappable) areas = decodeAreas(payload, at, size);
      at = get32(payload, at + 4);
    }
  }
  return {
    index: get32(payload, 8),
    size,
    readable: (flags & REGION_READ) !== 0,
    writable: (flags & REGION_WRITE) !== 0,
    mappable,
    fdOffset,
    areas,
    argsz: get32(payload, 0),
  };
}

function decodeAreas(payload: Uint8Array, at: number, size: number): SparseArea[] {
  const operation = operationOf(COMMAND.GET_REGION_INFO);
  const count = at + 16 <= payload.length ? get32(payload, at + 8) : Infinity;
  if (count > MAX_AREAS || at + 16 + count * 16 > payload.length)
    throw invalid(operation, 'a list of areas that leaves the message');
  const areas: SparseArea[] = [];
  for (let i = 0; i < count; i++) {
    const offset = get64(payload, at + 16 + i * 16);
    const length = get64(payload, at + 24 + i * 16);
    if (offset + length > size) throw invalid(operation, 'an area outside its region');
    if (length > 0) areas.push({ offset, length });
  }
  return areas;
}

// GET_REGION_IO_FDS: 0:4 argsz, 4:4 flags, 8:4 region, 12:4 count.

export const IO_FDS_SIZE = 16;

/** The reply for a region without descriptors for its registers. */
export function encodeNoIoFds(into: Uint8Array, id: number, region: number): number {
  put32(into, 16, IO_FDS_SIZE);
  put32(into, 20, 0);
  put32(into, 24, region);
  put32(into, 28, 0);
  return putReply(into, id, COMMAND.GET_REGION_IO_FDS, IO_FDS_SIZE);
}

// GET_IRQ_INFO: 0:4 argsz, 4:4 flags, 8:4 index, 12:4 count.

export const IRQ_INFO_SIZE = 16;

/** Kinds of interrupts, numbered as VFIO does for PCI devices (VFIO_PCI_INTX_IRQ_INDEX ...). */
export const IRQ = { INTX: 0, MSI: 1, MSIX: 2, ERR: 3, REQ: 4 } as const;

/** The content of GET_IRQ_INFO for one kind of interrupt. */
export interface IrqDescription {
  readonly index: number;
  /** Number of vectors. */
  readonly count: number;
  /** Whether it can be signalled through eventfds. */
  readonly eventfd: boolean;
  readonly maskable: boolean;
  /** Whether each signal masks it. */
  readonly automasked: boolean;
}

export function encodeIrqInfoRequest(into: Uint8Array, id: number, index: number): number {
  into.fill(0, 16, 32);
  put32(into, 16, IRQ_INFO_SIZE);
  put32(into, 24, index);
  return putCommand(into, id, COMMAND.GET_IRQ_INFO, IRQ_INFO_SIZE);
}

export function encodeIrqInfo(into: Uint8Array, id: number, irq: IrqDescription): number {
  put32(into, 16, IRQ_INFO_SIZE);
  put32(into, 20, (irq.eventfd ? 1 : 0) | (irq.maskable ? 2 : 0) | (irq.automasked ? 4 : 0));
  put32(into, 24, irq.index);
  put32(into, 28, irq.count);
  return putReply(into, id, COMMAND.GET_IRQ_INFO, IRQ_INFO_SIZE);
}

export function decodeIrqInfo(message: Message): IrqDescription {
  const payload = needPayload(message, IRQ_INFO_SIZE);
  const flags = get32(payload, 4);
  return {
    index: get32(payload, 8),
    count: get32(payload, 12),
    eventfd: (flags & 1) !== 0,
    maskable: (flags & 2) !== 0,
    automasked: (flags & 4) !== 0,
  };
}

// SET_IRQS: 0:4 argsz, 4:4 flags, 8:4 index, 12:4 start, 16:4 count, 20: a byte a vector when the data is `bool`.

export const SET_IRQS_SIZE = 20;
const IRQ_DATA = { none: 1, bool: 2, eventfd: 4 } as const;
const IRQ_ACTION = { mask: 8, unmask: 16, trigger: 32 } as const;

/** An action on interrupt vectors. */
export interface SetIrqs {
  readonly index: number;
  readonly start: number;
  readonly count: number;
  readonly action: 'mask' | 'unmask' | 'trigger';
  /**
   * `none`: act on all of them; bytes: act on those whose byte is not 0; `eventfd`: connect them to the descriptors of
   * the message.
   */
  readonly data: 'none' | 'eventfd' | Uint8Array;
}

export function encodeSetIrqs(into: Uint8Array, id: number, irqs: SetIrqs): number {
  const { data, action } = irqs;
  const flags = typeof data === 'string' ? IRQ_DATA[data] : IRQ_DATA.bool;
  const extra = typeof data === 'string' ? 0 : data.length;
  put32(into, 16, SET_IRQS_SIZE + extra);
  put32(into, 20, flags | IRQ_ACTION[action]);
  put32(into, 24, irqs.index);
  put32(into, 28, irqs.start);
  put32(into, 32, irqs.count);
  if (typeof data !== 'string') into.set(data, 36);
  return putCommand(into, id, COMMAND.SET_IRQS, SET_IRQS_SIZE + extra);
}

export function decodeSetIrqs(message: Message): SetIrqs {
  const payload = needStruct(message, SET_IRQS_SIZE);
  const flags = get32(payload, 4);
  const index = get32(payload, 8);
  const start = get32(payload, 12);
  const count = get32(payload, 16);
  const action =
    (flags & ~7) === IRQ_ACTION.mask
      ? 'mask'
      : (flags & ~7) === IRQ_ACTION.unmask
        ? 'unmask'
        : (flags & ~7) === IRQ_ACTION.trigger
          ? 'trigger'
          : undefined;
  if (action === undefined) throw invalid(operationOf(COMMAND.SET_IRQS), `flags ${flags} name no single action`);
  switch (flags & 7) {
    case IRQ_DATA.none:
      return { index, start, count, action, data: 'none' };
    case IRQ_DATA.eventfd:
      return { index, start, count, action, data: 'eventfd' };
    case IRQ_DATA.bool:
      needPayload(message, SET_IRQS_SIZE + count);
      return { index, start, count, action, data: payload.subarray(SET_IRQS_SIZE, SET_IRQS_SIZE + count) };
    default:
      throw invalid(operationOf(COMMAND.SET_IRQS), `flags ${flags} name no single kind of data`);
  }
}

// REGION_READ, REGION_WRITE: 0:8 offset, 8:4 region, 12:4 count, 16: data. Data goes with the WRITE and the READ's reply.

export const REGION_ACCESS_SIZE = 16;

/** The head of a region access. */
export interface RegionAccess {
  readonly offset: number;
  readonly region: number;
  readonly count: number;
}

function putRegionAccess(into: Uint8Array, region: number, offset: number, count: number): void {
  put64(into, 16, offset);
  put32(into, 24, region);
  put32(into, 28, count);
}

export function encodeRegionRead(into: Uint8Array, id: number, region: number, offset: number, count: number): number {
  putRegionAccess(into, region, offset, count);
  return putCommand(into, id, COMMAND.REGION_READ, REGION_ACCESS_SIZE);
}

export function encodeRegionWrite(
  into: Uint8Array,
  id: number,
  region: number,
  offset: number,
  from: Uint8Array,
  noReply: boolean,
): number {
  putRegionAccess(into, region, offset, from.length);
  into.set(from, HEADER_SIZE + REGION_ACCESS_SIZE);
  return putCommand(into, id, COMMAND.REGION_WRITE, REGION_ACCESS_SIZE + from.length, noReply);
}

/** The reply to an access. For REGION_READ, the caller has written `count` bytes of data at byte 32. */
export function encodeRegionReply(into: Uint8Array, message: Message, access: RegionAccess): number {
  putRegionAccess(into, access.region, access.offset, access.count);
  const data = message.command === COMMAND.REGION_READ ? access.count : 0;
  return putReply(into, message.id, message.command, REGION_ACCESS_SIZE + data);
}

export function decodeRegionAccess(message: Message): RegionAccess {
  const payload = needPayload(message, REGION_ACCESS_SIZE);
  const count = get32(payload, 12);
  if (count > MAX_DATA) throw invalid(operationOf(message.command), `${count} bytes, more than ${MAX_DATA}`);
  return { offset: get64(payload, 0), region: get32(payload, 8), count };
}

// DMA_READ, DMA_WRITE (server to client): 0:8 iova, 8:8 count, 16: data.

export const DMA_ACCESS_SIZE = 16;

/** The head of a DMA access by message. */
export interface DmaMessageAccess {
  readonly iova: number;
  readonly count: number;
}

export function encodeDmaRead(into: Uint8Array, id: number, iova: number, count: number): number {
  put64(into, 16, iova);
  put64(into, 24, count);
  return putCommand(into, id, COMMAND.DMA_READ, DMA_ACCESS_SIZE);
}

export function encodeDmaWrite(into: Uint8Array, id: number, iova: number, from: Uint8Array): number {
  put64(into, 16, iova);
  put64(into, 24, from.length);
  into.set(from, HEADER_SIZE + DMA_ACCESS_SIZE);
  return putCommand(into, id, COMMAND.DMA_WRITE, DMA_ACCESS_SIZE + from.length);
}

/** The reply to a DMA_READ, with `data`. */
export function encodeDmaReadReply(into: Uint8Array, message: Message, iova: number, data: Uint8Array): number {
  put64(into, 16, iova);
  put64(into, 24, data.length);
  into.set(data, HEADER_SIZE + DMA_ACCESS_SIZE);
  return putReply(into, message.id, message.command, DMA_ACCESS_SIZE + data.length);
}

/** The reply to a DMA_WRITE. The specification's table gives its count 4 bytes; all implementations send 8. */
export function encodeDmaWriteReply(into: Uint8Array, message: Message, access: DmaMessageAccess): number {
  put64(into, 16, access.iova);
  put64(into, 24, access.count);
  return putReply(into, message.id, message.command, DMA_ACCESS_SIZE);
}

export function decodeDmaAccess(message: Message): DmaMessageAccess {
  const payload = needPayload(message, DMA_ACCESS_SIZE);
  const count = get64(payload, 8);
  const operation = operationOf(message.command);
  if (count === 0 || count > MAX_DATA) throw invalid(operation, `${count} bytes, not 1 to ${MAX_DATA}`);
  if (message.command === COMMAND.DMA_WRITE) needPayload(message, DMA_ACCESS_SIZE + count);
  return { iova: get64(payload, 0), count };
}
