/**
 * The file format of libpcap: a header of 24 bytes, then frames with headers of 16 bytes (pcap-savefile(5), and
 * draft-ietf-opsawg-pcap). Any byte order, micro- or nanoseconds, and the form with longer headers of old Linux kernels.
 */
import { DmaError, invalid } from '../../errors.js';
import type { CaptureFormat, CaptureFrame, FrameFacts } from './capture-frame.js';

const MAGIC = { MICROS: 0xa1b2c3d4, NANOS: 0xa1b23c4d, LONG: 0xa1b2cd34 } as const;
const FILE_HEADER = 24;
const FRAME_HEADER = 16;
/** The headers of `LONG` also have an interface index, a protocol and a type of packet. */
const LONG_HEADER = 24;

/** What DG/UX wrote as the minor version. */
const DG_UX = 543;

/** No frame is longer: what libpcap accepts (MAXIMUM_SNAPLEN), with room for the large ones of USB. */
export const MAX_CAPTURED = 128 * 1024 * 1024;

/** Does a file that begins with these bytes have this format? They are at least four. */
export function isPcap(bytes: Uint8Array): boolean {
  return headerOf(bytes) !== undefined;
}

function headerOf(bytes: Uint8Array): { readonly magic: number; readonly little: boolean } | undefined {
  const view = viewOf(bytes);
  for (const little of [true, false]) {
    const magic = view.getUint32(0, little);
    if (magic === MAGIC.MICROS || magic === MAGIC.NANOS || magic === MAGIC.LONG) return { magic, little };
  }
  return undefined;
}

/** Reads it. */
export class PcapFormat implements CaptureFormat {
  #little = true;
  #header = 0;
  #nanosPerTick = 1;
  #link = 0;
  #minor = 0;
  frame: CaptureFrame | undefined;
  needs = FILE_HEADER;

  take(bytes: Uint8Array, at: number): number {
    this.frame = undefined;
    const left = bytes.length - at;
    if (left < this.needs) return 0;
    const view = viewOf(bytes, at);
    if (this.#header === 0) return this.#begin(bytes.subarray(at), view);
    const little = this.#little;
    let captured = view.getUint32(8, little);
    let wire = view.getUint32(12, little);
    // The two lengths were the other way round before version 2.3, and in some programs with 2.3 (libpcap: sf-pcap.c).
    if (this.#minor < 3 || this.#minor === DG_UX || (this.#minor === 3 && captured > wire))
      [captured, wire] = [wire, captured];
    if (captured > MAX_CAPTURED)
      throw invalid('capture', `a frame of ${captured} bytes: this is no capture, or it is damaged`);
    const size = this.#header + captured;
    if (left < size) {
      this.needs = size;
      return 0;
    }
    const fraction = view.getUint32(4, little) * this.#nanosPerTick;
    this.frame = {
      data: bytes.subarray(at + this.#header, at + size),
      wire: Math.max(captured, wire),
      // Some programs let microseconds run over.
      seconds: view.getUint32(0, little) + Math.floor(fraction / 1e9),
      nanos: fraction % 1e9,
      link: this.#link,
    };
    this.needs = this.#header;
    return size;
  }

  #begin(bytes: Uint8Array, view: DataView): number {
    const header = headerOf(bytes);
    if (header === undefined) throw invalid('capture', 'this is no file of libpcap');
    const { magic, little } = header;
    const major = view.getUint16(4, little);
    if (major !== 2) throw invalid('capture', `version ${major} of the format of libpcap is not known, only 2`);
    this.#little = little;
    this.#minor = view.getUint16(6, little);
    this.#header = magic === MAGIC.LONG ? LONG_HEADER : FRAME_HEADER;
    this.#nanosPerTick = magic === MAGIC.NANOS ? 1 : 1000;
    // The upper bits tell of a frame check sequence at the end of frames.
    this.#link = view.getUint32(20, little) & 0x3ffffff;
    this.needs = this.#header;
    return FILE_HEADER;
  }
}

/** Bytes of a file: its header, in this machine's usual byte order. */
export function pcapHeader(link: number): Uint8Array<ArrayBuffer> {
  const header = new Uint8Array(FILE_HEADER);
  const view = viewOf(header);
  view.setUint32(0, MAGIC.NANOS, true);
  view.setUint16(4, 2, true);
  view.setUint16(6, 4, true);
  view.setUint32(16, 0x40000, true);
  view.setUint32(20, link, true);
  return header;
}

/**
 * Writes the header of a frame at `at`; its data follow. Returns how many bytes it has.
 *
 * @throws DmaError ERANGE for a time that the format does not have
 */
export function putPcapFrame(into: DataView, at: number, frame: FrameFacts, captured: number): number {
  mustHaveTime(frame, 2 ** 32, 'pcap', 'pcapng tells times up to the year 2554: its name ends in .pcapng');
  into.setUint32(at, frame.seconds, true);
  into.setUint32(at + 4, frame.nanos, true);
  into.setUint32(at + 8, captured, true);
  into.setUint32(at + 12, frame.wire, true);
  return FRAME_HEADER;
}

/** @throws DmaError ERANGE unless the time is from 1970 until `end`, in seconds */
export function mustHaveTime({ seconds, nanos }: FrameFacts, end: number, format: string, hint: string): void {
  if (seconds >= 0 && seconds < end && nanos >= 0 && nanos < 1e9) return;
  const reason = `a frame of ${seconds} s and ${nanos} ns since 1970: ${format} has no such time`;
  throw new DmaError({ code: 'ERANGE', operation: 'capture', reason, hint });
}

function viewOf(bytes: Uint8Array, at = 0): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset + at, bytes.byteLength - at);
}
