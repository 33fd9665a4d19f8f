/** For tests of the served NVMe controller: calls to its image files that end when the test says so. */
import { NODE_CALLS, type ImageCalls } from '../../../src/vfio-user/devices/nvme/image.js';

/** A call that has begun. */
export interface HeldCall {
  readonly what: 'read' | 'write' | 'sync';
  /** What is read into or written, or nothing. */
  readonly parts: readonly Uint8Array[];
  /** Ends it, as if all of it had been done. */
  end(): void;
}

/** Calls of these kinds are held, in the order that they came; the others are Node's. */
export function heldCalls(...kinds: readonly HeldCall['what'][]): {
  readonly calls: ImageCalls;
  readonly held: HeldCall[];
} {
  const held: HeldCall[] = [];
  const vector =
    (what: 'read' | 'write') =>
    (_fd: number, parts: Uint8Array[], _position: number, done: (error: null, count: number) => void): void => {
      const bytes = parts.reduce((sum, part) => sum + part.length, 0);
      held.push({ what, parts, end: () => done(null, bytes) });
    };
  const fdatasync = (_fd: number, done: (error: null) => void): void => {
    held.push({ what: 'sync', parts: [], end: () => done(null) });
  };
  const calls: ImageCalls = {
    ...NODE_CALLS,
    ...(kinds.includes('read') ? { readv: vector('read') as ImageCalls['readv'] } : {}),
    ...(kinds.includes('write') ? { writev: vector('write') as ImageCalls['writev'] } : {}),
    ...(kinds.includes('sync') ? { fdatasync: fdatasync as ImageCalls['fdatasync'] } : {}),
  };
  return { calls, held };
}
