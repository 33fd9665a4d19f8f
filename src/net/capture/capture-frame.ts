/** A frame of a capture file, whatever the format. */

/** LINKTYPE_ETHERNET (https://www.tcpdump.org/linktypes.html). */
export const LINK_ETHERNET = 1;

/** When a frame was seen, and how long it was. */
export interface FrameFacts {
  /** Bytes that it had on the wire; more than were captured if it was cut. */
  readonly wire: number;
  /** When: seconds since 1970, and nanoseconds below 10^9. Finer fractions are cut off. */
  readonly seconds: number;
  readonly nanos: number;
}

/** A frame that was read. */
export interface CaptureFrame extends FrameFacts {
  /** What was captured of it. Valid until the next frame is read. */
  readonly data: Uint8Array;
  /** The LINKTYPE of its interface. */
  readonly link: number;
}

/** Reads the frames of one format from bytes that come in pieces. */
export interface CaptureFormat {
  /**
   * The next frame in `bytes` from `at`.
   *
   * @returns how many bytes it took, with its frame in `frame` or no frame; 0: there are too few bytes, and it needs at least `needs`
   * @throws DmaError EINVAL if they can not be of this format
   */
  take(bytes: Uint8Array, at: number): number;
  /** The frame of the last call of `take`, if that was one. */
  readonly frame: CaptureFrame | undefined;
  /** Bytes that `take` wants to have. */
  readonly needs: number;
}
