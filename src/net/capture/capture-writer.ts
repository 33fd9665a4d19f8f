/** Writes capture files: pcapng, or pcap with nanoseconds. */
import type { FrameFacts } from './capture-frame.js';
import { pcapHeader, putPcapFrame } from './pcap.js';
import { pcapngHeader, putPcapngEnd, putPcapngFrame } from './pcapng.js';
import { STAYS } from '../../stays.js';

/** The formats that are written. */
export type CaptureKind = 'pcap' | 'pcapng';

/** The format that the name of a file says; pcapng if it says none. */
export function captureKindOf(path: string): CaptureKind {
  return /\.(pcap|cap|dmp)$/i.test(path) ? 'pcap' : 'pcapng';
}

/** Bytes that are collected before they are written. */
const BUFFER = 256 * 1024;
/** More than headers and ends of a frame in any format. */
const AROUND = 64;

/** Writes frames into a buffer, and gives it to `write` when it is full. */
export class CaptureWriter {
  /** @internal */
  readonly stays = STAYS;
  readonly #kind: CaptureKind;
  readonly #write: (bytes: Uint8Array) => void;
  #bytes = new Uint8Array(BUFFER);
  #view = new DataView(this.#bytes.buffer);
  #at = 0;

  /**
   * Begins a file.
   *
   * @param link the LINKTYPE of all frames
   * @param write writes bytes to the file, all of them; they may be changed afterwards
   */
  constructor(kind: CaptureKind, link: number, write: (bytes: Uint8Array) => void) {
    this.#kind = kind;
    this.#write = write;
    const header = kind === 'pcap' ? pcapHeader(link) : pcapngHeader(link);
    this.#bytes.set(header);
    this.#at = header.length;
  }

  /** Begins a frame of `captured` bytes, whose data follow by {@link CaptureWriter.add}. @throws DmaError ERANGE for a time that the format does not have; what `write` throws */
  begin(frame: FrameFacts, captured: number): void {
    if (this.#at + captured + AROUND > this.#bytes.length) this.flush();
    if (captured + AROUND > this.#bytes.length) {
      this.#bytes = new Uint8Array(2 * (captured + AROUND));
      this.#view = new DataView(this.#bytes.buffer);
    }
    const put = this.#kind === 'pcap' ? putPcapFrame : putPcapngFrame;
    this.#at += put(this.#view, this.#at, frame, captured);
  }

  /** Adds data of the frame. */
  add(part: Uint8Array): void {
    this.#bytes.set(part, this.#at);
    this.#at += part.length;
  }

  /** Ends the frame. */
  end(captured: number): void {
    if (this.#kind === 'pcapng') this.#at = putPcapngEnd(this.#view, this.#at, captured);
  }

  /** Writes what was collected. @throws what `write` throws; nothing of it is kept then */
  flush(): void {
    const bytes = this.#bytes.subarray(0, this.#at);
    this.#at = 0;
    if (bytes.length > 0) this.#write(bytes);
  }
}
