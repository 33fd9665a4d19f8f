/** A copy of any length by the copy engine, which takes many descriptors. */
import { DmaError, isDmaError } from '../errors.js';
import { Range } from '../ranges.js';
import { KiB } from '../units.js';
import { COPY_CODE } from '../vfio-user/devices/copy-engine-layout.js';
import type { CopyRing, Submitter } from './copy-engine-ring.js';
import { copyError } from './copy-error.js';

/** Size of the pieces of a `copy`: large enough for a negligible cost each, small enough to report progress. */
export const PIECE_BYTES = 1024 * KiB;
/** Most outstanding descriptors of one `copy`, which limits the time that cancelling takes. */
const PIECES_UNDER_WAY = 64;
/** One in so many descriptors requests an interrupt, so that the ring is refilled before it is empty. */
const INTERRUPT_STRIDE = 16;

/** Explains an IOVA that the device failed to access. */
type Explain = (iova: number, access: 'read' | 'write') => string | undefined;

/** What a copy is asked for. */
interface CopyRequest {
  readonly source: number;
  readonly destination: number;
  readonly length: number;
  /** Tells how many bytes are done. */
  readonly report: ((doneBytes: number) => void) | undefined;
  /** Called once, when none of it is outstanding any more. */
  readonly settle: (error: unknown) => void;
}

/** A copy that has not settled. */
export class Copy implements Submitter {
  readonly #request: CopyRequest;
  readonly #pieceBytes: number;
  readonly #explain: Explain | undefined;
  /** Bytes passed to the device. */
  #sent = 0;
  /** Bytes that the device has completed. */
  #done = 0;
  /** Outstanding descriptors. */
  #underWay = 0;
  #error: unknown;

  constructor(request: CopyRequest, pieceBytes: number, explain: Explain | undefined) {
    this.#request = request;
    this.#pieceBytes = pieceBytes;
    this.#explain = explain;
  }

  /** Is the device working on it? */
  get isUnderWay(): boolean {
    return this.#underWay > 0;
  }

  /** Submits no more; it will fail because of `error`, unless it has failed already. */
  fail(error: unknown): void {
    this.#error ??= error;
  }

  /** Ends it if none of it is outstanding and it is done, or has failed. */
  settleIfFinished(): void {
    if (this.#underWay > 0) return;
    if (this.#error !== undefined || this.#done === this.#request.length) this.#request.settle(this.#error);
  }

  /** Ends it, because the device does not work on it any more. */
  abandon(error: unknown): void {
    this.#request.settle(this.#error ?? error);
  }

  /** Submits as much of it as may be outstanding. @returns false if the ring is full */
  feed(ring: CopyRing): boolean {
    const { source, destination, length } = this.#request;
    const interruptMask = Math.min(INTERRUPT_STRIDE, ring.capacity / 2) - 1;
    while (this.#error === undefined && this.#sent < length && this.#underWay < PIECES_UNDER_WAY) {
      const sent = this.#sent;
      const piece = Math.min(this.#pieceBytes, length - sent);
      const interrupt = sent + piece === length || (ring.tail & interruptMask) === 0;
      if (ring.put(source + sent, destination + sent, piece, interrupt, this, sent) < 0) return false;
      this.#sent += piece;
      this.#underWay++;
    }
    return true;
  }

  completed(offset: number, code: number, reported: number): void {
    this.#underWay--;
    if (this.#error !== undefined) return;
    const { source, destination, length, report } = this.#request;
    const piece = Math.min(this.#pieceBytes, length - offset);
    const bytes = Math.min(reported, piece);
    this.#done = offset + bytes;
    if (code !== COPY_CODE.OK) {
      const writing = code >= COPY_CODE.WRITE_UNMAPPED;
      // A faulty device must not cause an invalid range.
      const done = Math.min(this.#done, offset + piece - 1);
      const fault = (writing ? destination : source) + done;
      this.#error = copyError(code, new Range(fault, length - done), 'copy').with({
        hint: this.#explain?.(fault, writing ? 'write' : 'read'),
      });
    } else if (bytes < piece) {
      this.#error = new DmaError({
        code: 'EPROTO',
        operation: 'copy',
        reason: `the device reports success after ${bytes} of ${piece} bytes`,
      });
    } else {
      try {
        report?.(this.#done);
      } catch (error) {
        this.#error = isDmaError(error) ? error.with({ operation: 'copy' }) : error;
      }
    }
  }
}
