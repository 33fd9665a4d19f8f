/** What a copy engine shows of its rings, in whichever thread or process it is worked. */
import { STAYS } from '../stays.js';
import type { CopyRing } from './copy-engine-ring.js';

/** Sizes and results of an engine: the common part of `CopyEngine` and `AttachedCopyEngine`. */
export abstract class CopyEngineResults {
  /** @internal */
  readonly stays = STAYS;
  /** Most outstanding copies: the entries of the rings. */
  readonly capacity: number;
  /** Most bytes of one `submit`. */
  readonly maxTransfer: number;

  // Results of `poll`, entry by entry. Valid until the caller returns to the event loop.
  /** Cookies that `submit` returned. */
  readonly cookies: Uint32Array;
  /** Completion codes: `COPY_CODE`, 0 is success; {@link copyError} explains the others. */
  readonly codes: Uint8Array;
  /** Bytes copied; fewer than requested after a failure. */
  readonly bytes: Uint32Array;
  /** The IOVAs that could not be accessed; 0 after success. */
  readonly faults: Float64Array;

  /** @internal */
  protected constructor({ capacity, cookies, codes, bytes, faults }: CopyRing, maxTransfer: number) {
    this.capacity = capacity;
    this.maxTransfer = maxTransfer;
    this.cookies = cookies;
    this.codes = codes;
    this.bytes = bytes;
    this.faults = faults;
  }
}
