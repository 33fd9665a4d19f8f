/** What split and packed rings have in common: the driver puts chains of buffers in, and takes back those that the device has used. */

/** No chain. */
export const NO_CHAIN = -1;

/** A queue of a virtio device, without what is in its buffers. Makes no garbage. */
export interface Ring {
  /** Number of descriptors, a power of two. */
  readonly size: number;
  /** Descriptors that are free. */
  readonly free: number;
  /** How many bytes the device says it has written to the chain that {@link Ring.take} returned last. Any number of 32 bits. */
  readonly written: number;
  /** What the device did that no device may do; nothing is taken from then on. `undefined`: nothing. */
  readonly broken: string | undefined;
  /** Where the device finds its three parts. */
  readonly parts: RingParts;
  /** Begins a chain. At least one descriptor is free. @returns its number, below `size` */
  begin(): number;
  /** Adds a buffer to it. A free descriptor is left. @param isWritten by the device, instead of read */
  add(iova: number, bytes: number, isWritten: boolean): void;
  /** Ends the chain, which has a buffer. The device sees it after {@link Ring.publish}. */
  end(): void;
  /** Forgets the chain that was begun. */
  cancel(): void;
  /** Shows the device what was put. @returns whether it wants to be told */
  publish(): boolean;
  /** Takes back a chain that the device has used. @returns its number; {@link NO_CHAIN} if there is none, or if it is {@link Ring.broken} */
  take(): number;
  /** Would `take` have something to tell? */
  readonly isReady: boolean;
  /** Shall the device interrupt when it has used a chain? Look whether one `isReady` afterwards. */
  setInterrupts(on: boolean): void;
}

/** IOVAs of descriptors, of what the driver writes, and of what the device writes. */
export interface RingParts {
  readonly descriptors: number;
  readonly driver: number;
  readonly device: number;
}

/** Memory for a ring, zeros, on a page, in one piece. */
export interface RingMemory {
  readonly bytes: Uint8Array;
  readonly iova: number;
}
