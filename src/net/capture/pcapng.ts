/**
 * The format pcapng: blocks of a type and a length (draft-ietf-opsawg-pcapng). Several sections with byte orders of their
 * own, interfaces with time units of their own, and the three kinds of blocks that have frames; other blocks are passed over.
 */
import { invalid } from '../../errors.js';
import type { CaptureFormat, CaptureFrame, FrameFacts } from './capture-frame.js';
import { MAX_CAPTURED, mustHaveTime } from './pcap.js';

const BLOCK = { SECTION: 0x0a0d0d0a, INTERFACE: 1, PACKET: 2, SIMPLE: 3, ENHANCED: 6 } as const;
const BYTE_ORDER = 0x1a2b3c4d;
/** Options of interfaces: units of time, and seconds to add. */
const OPTION = { END: 0, TSRESOL: 9, TSOFFSET: 14 } as const;
/** Type and length, twice. */
const FRAME = 12;

interface Interface {
  readonly link: number;
  /** The most that was captured of a frame; 0: no limit. */
  readonly snap: number;
  readonly ticksPerSecond: number;
  /** Seconds to add to its times. */
  readonly offset: number;
}

/** Does a file that begins with these bytes have this format? They are at least four. */
export function isPcapng(bytes: Uint8Array): boolean {
  return viewOf(bytes).getUint32(0, true) === BLOCK.SECTION;
}

/** Reads it. */
export class PcapngFormat implements CaptureFormat {
  #little = true;
  #interfaces: Interface[] = [];
  #inSection = false;
  frame: CaptureFrame | undefined;
  needs = FRAME;

  take(bytes: Uint8Array, at: number): number {
    this.frame = undefined;
    const left = bytes.length - at;
    if (left < this.needs) return 0;
    const view = viewOf(bytes, at);
    // The type of a section is a palindrome: it can be read before its byte order is known.
    const isSection = view.getUint32(0, true) === BLOCK.SECTION;
    if (isSection) this.#little = byteOrder(view.getUint32(8, true));
    else if (!this.#inSection) throw damaged('a file begins with a section header');
    const little = this.#little;
    const size = view.getUint32(4, little);
    if (size % 4 !== 0 || size < FRAME || size > MAX_CAPTURED) throw damaged(`a block of ${size} bytes`);
    if (left < size) {
      this.needs = size;
      return 0;
    }
    if (view.getUint32(size - 4, little) !== size) throw damaged('a block whose two lengths differ');
    this.needs = FRAME;
    const block = bytes.subarray(at, at + size);
    const type = isSection ? BLOCK.SECTION : view.getUint32(0, little);
    if (type === BLOCK.SECTION) this.#section(block);
    else if (type === BLOCK.INTERFACE) this.#interfaces.push(interfaceOf(block, little));
    else if (type === BLOCK.ENHANCED) this.frame = this.#enhanced(block, 'u32');
    else if (type === BLOCK.PACKET) this.frame = this.#enhanced(block, 'u16');
    else if (type === BLOCK.SIMPLE) this.frame = this.#simple(block);
    return size;
  }

  #section(block: Uint8Array): void {
    if (block.length < 28) throw damaged(`a section header of ${block.length} bytes`);
    const major = viewOf(block).getUint16(12, this.#little);
    if (major !== 1) throw invalid('capture', `version ${major} of pcapng is not known, only 1`);
    this.#inSection = true;
    this.#interfaces = [];
  }

  /** An enhanced packet block; the obsolete packet block differs in the width of the interface number only. */
  #enhanced(block: Uint8Array, width: 'u32' | 'u16'): CaptureFrame {
    if (block.length < 32) throw damaged(`a packet block of ${block.length} bytes`);
    const view = viewOf(block);
    const little = this.#little;
    const { link, ticksPerSecond, offset } = this.#interface(
      width === 'u32' ? view.getUint32(8, little) : view.getUint16(8, little),
    );
    const captured = view.getUint32(20, little);
    if (captured > block.length - 32) throw damaged(`a frame of ${captured} bytes in a block of ${block.length}`);
    const { seconds, nanos } = timeOf(view.getUint32(12, little), view.getUint32(16, little), ticksPerSecond);
    return {
      data: block.subarray(28, 28 + captured),
      wire: Math.max(captured, view.getUint32(24, little)),
      seconds: seconds + offset,
      nanos,
      link,
    };
  }

  /** A simple packet block: of the first interface, without a time. */
  #simple(block: Uint8Array): CaptureFrame {
    if (block.length < 16) throw damaged(`a packet block of ${block.length} bytes`);
    const { link, snap } = this.#interface(0);
    const wire = viewOf(block).getUint32(8, this.#little);
    const captured = Math.min(wire, snap === 0 ? wire : snap, block.length - 16);
    return { data: block.subarray(12, 12 + captured), wire, seconds: 0, nanos: 0, link };
  }

  #interface(number: number): Interface {
    const there = this.#interfaces[number];
    if (there === undefined) throw damaged(`a frame of interface ${number}, of ${this.#interfaces.length}`);
    return there;
  }
}

function interfaceOf(block: Uint8Array, little: boolean): Interface {
  if (block.length < 20) throw damaged(`an interface block of ${block.length} bytes`);
  const view = viewOf(block);
  let ticksPerSecond = 1e6;
  let offset = 0;
  for (let at = 16; at + 4 <= block.length - 4;) {
    const code = view.getUint16(at, little);
    const length = view.getUint16(at + 2, little);
    const value = at + 4;
    if (code === OPTION.END) break;
    if (value + length > block.length - 4) throw damaged('an option that is longer than its block');
    if (code === OPTION.TSRESOL && length === 1) {
      const unit = view.getUint8(value);
      ticksPerSecond = (unit & 0x80) === 0 ? 10 ** unit : 2 ** (unit & 0x7f);
    } else if (code === OPTION.TSOFFSET && length === 8) offset = Number(view.getBigInt64(value, little));
    at = value + ((length + 3) & ~3);
  }
  return { link: view.getUint16(8, little), snap: view.getUint32(12, little), ticksPerSecond, offset };
}

/** A time of 64 bits in units of its interface. */
function timeOf(high: number, low: number, ticksPerSecond: number): { seconds: number; nanos: number } {
  const nanosPerTick = 1e9 / ticksPerSecond;
  if (!Number.isInteger(nanosPerTick)) return exactTimeOf(high, low, ticksPerSecond);
  // Division in steps of 16 bits: no step is more than a Number holds exactly.
  let seconds = 0;
  let left = 0;
  for (const digits of [high >>> 16, high & 0xffff, low >>> 16, low & 0xffff]) {
    const part = left * 0x1_0000 + digits;
    const whole = Math.floor(part / ticksPerSecond);
    seconds = seconds * 0x1_0000 + whole;
    left = part - whole * ticksPerSecond;
  }
  return { seconds, nanos: left * nanosPerTick };
}

/** The same for units that are no whole number of nanoseconds: fractions are cut off. */
function exactTimeOf(high: number, low: number, ticksPerSecond: number): { seconds: number; nanos: number } {
  const ticks = (BigInt(high) << 32n) | BigInt(low);
  const unit = BigInt(ticksPerSecond);
  const seconds = ticks / unit;
  return { seconds: Number(seconds), nanos: Number(((ticks - seconds * unit) * 1_000_000_000n) / unit) };
}

/** Is the section written with the least significant byte first? @throws DmaError EINVAL */
function byteOrder(magic: number): boolean {
  if (magic === BYTE_ORDER) return true;
  if (magic === 0x4d3c2b1a) return false;
  throw damaged('a section without a byte order');
}

function damaged(what: string): Error {
  return invalid('capture', `${what}: this is no pcapng, or it is damaged`);
}

/** Bytes of a file: a section, and one interface that counts nanoseconds. */
export function pcapngHeader(link: number): Uint8Array<ArrayBuffer> {
  const header = new Uint8Array(28 + 32);
  const view = viewOf(header);
  view.setUint32(0, BLOCK.SECTION, true);
  view.setUint32(4, 28, true);
  view.setUint32(8, BYTE_ORDER, true);
  view.setUint16(12, 1, true);
  // The length of the section is not known.
  view.setBigInt64(16, -1n, true);
  view.setUint32(24, 28, true);
  const at = 28;
  view.setUint32(at, BLOCK.INTERFACE, true);
  view.setUint32(at + 4, 32, true);
  view.setUint16(at + 8, link, true);
  view.setUint32(at + 12, 0x40000, true);
  view.setUint16(at + 16, OPTION.TSRESOL, true);
  view.setUint16(at + 18, 1, true);
  view.setUint8(at + 20, 9);
  view.setUint32(at + 28, 32, true);
  return header;
}

/** Bytes in front of the data of a frame, and behind them: padding and the length again. */
export const PCAPNG_FRAME = 28;

/** The first second that 64 bits of nanoseconds do not have as a whole. */
const END_OF_TIME = 18_446_744_073;

/**
 * Writes the header of a frame at `at`; its data and {@link putPcapngEnd} follow. Returns how many bytes it has.
 *
 * @throws DmaError ERANGE for a time that the format does not have
 */
export function putPcapngFrame(into: DataView, at: number, frame: FrameFacts, captured: number): number {
  mustHaveTime(frame, END_OF_TIME, 'pcapng', 'it counts from 1970 to 2554: editcap -t moves the times of a capture');
  // In parts, because nanoseconds since 1970 are more than a Number holds exactly.
  const upper = Math.floor(frame.seconds / 0x1_0000) * 1e9;
  const lower = (upper % 0x1_0000) * 0x1_0000 + (frame.seconds % 0x1_0000) * 1e9 + frame.nanos;
  into.setUint32(at, BLOCK.ENHANCED, true);
  into.setUint32(at + 4, blockSize(captured), true);
  into.setUint32(at + 8, 0, true);
  into.setUint32(at + 12, Math.floor(upper / 0x1_0000) + Math.floor(lower / 0x1_0000_0000), true);
  into.setUint32(at + 16, lower % 0x1_0000_0000, true);
  into.setUint32(at + 20, captured, true);
  into.setUint32(at + 24, frame.wire, true);
  return PCAPNG_FRAME;
}

/** Writes what follows the data of a frame, from the data's end at `at`. Returns where the next block begins. */
export function putPcapngEnd(into: DataView, at: number, captured: number): number {
  let end = at;
  for (let pad = captured; pad % 4 !== 0; pad++) into.setUint8(end++, 0);
  into.setUint32(end, blockSize(captured), true);
  return end + 4;
}

function blockSize(captured: number): number {
  return PCAPNG_FRAME + ((captured + 3) & ~3) + 4;
}

function viewOf(bytes: Uint8Array, at = 0): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset + at, bytes.byteLength - at);
}
