/** Reads capture files, of any format that is known, from bytes that come in pieces. */
import { invalid } from '../../errors.js';
import type { CaptureFormat, CaptureFrame } from './capture-frame.js';
import { isPcap, PcapFormat } from './pcap.js';
import { isPcapng, PcapngFormat } from './pcapng.js';
import { STAYS } from '../../stays.js';

/** Bytes that tell the format. */
const MAGIC = 4;

/**
 * Reads frames: `push` bytes as they come from the file, take frames with `next` until there is none, and call `end` when
 * the file ends.
 */
export class CaptureReader {
  /** @internal */
  readonly stays = STAYS;
  #format: CaptureFormat | undefined;
  #bytes: Uint8Array = new Uint8Array(0);
  #at = 0;

  /** Adds bytes of the file. They are copied only as far as a frame is not complete, so leave them as they are until `next` returned undefined. */
  push(bytes: Uint8Array): void {
    const left = this.#bytes.length - this.#at;
    if (left === 0) this.#bytes = bytes;
    else {
      const both = new Uint8Array(left + bytes.length);
      both.set(this.#bytes.subarray(this.#at));
      both.set(bytes, left);
      this.#bytes = both;
    }
    this.#at = 0;
  }

  /**
   * The next frame, valid until the next call; `undefined` if more bytes are needed.
   *
   * @throws DmaError EINVAL if the file is damaged, or has no format that is known
   */
  next(): CaptureFrame | undefined {
    const bytes = this.#bytes;
    this.#format ??= formatOf(bytes);
    const format = this.#format;
    while (format !== undefined) {
      const taken = format.take(bytes, this.#at);
      if (taken === 0) break;
      this.#at += taken;
      if (format.frame !== undefined) return format.frame;
    }
    // What is left is kept in a copy, because the caller uses its buffer again.
    this.#bytes = bytes.slice(this.#at);
    this.#at = 0;
    return undefined;
  }

  /** Bytes that the next frame wants at least: how much to read at once. */
  get needs(): number {
    return Math.max(1, (this.#format?.needs ?? MAGIC) - this.#bytes.length);
  }

  /** The file has ended. @throws DmaError EINVAL if it ends in the middle of a frame, or was empty */
  end(): void {
    if (this.#format !== undefined && this.#bytes.length === this.#at) return;
    throw invalid(
      'capture',
      this.#format === undefined ? 'the file is too short for a capture' : 'the capture ends in the middle of a frame',
      {
        hint: 'frames before its end were read',
      },
    );
  }
}

function formatOf(bytes: Uint8Array): CaptureFormat | undefined {
  if (bytes.length < MAGIC) return undefined;
  if (isPcapng(bytes)) return new PcapngFormat();
  if (isPcap(bytes)) return new PcapFormat();
  throw invalid('capture', 'this is no capture that is known', {
    hint:
      bytes[0] === 0x1f && bytes[1] === 0x8b
        ? 'it is compressed: gunzip it first'
        : 'pcap and pcapng are; others are converted by "editcap -F pcapng"',
  });
}
