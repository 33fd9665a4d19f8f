/**
 * Views of raw memory that can not outlive it: all that were handed out are detached before the memory is freed.
 * retired.ts tracks what can still reach the memory after that.
 */
import { typeHint } from '../check.js';
import { invalid, type DmaError } from '../errors.js';
import type { MemoryPort } from '../platform/ports.js';
import { Range } from '../ranges.js';
import { show } from '../show.js';
import { formatSize, isAddress, type Va } from '../units.js';
import type { HandedOut } from './retired.js';

/** Checks a part of `length` bytes of memory. @throws DmaError EINVAL if it is not inside */
export function checkPart(offset: number, length: number, whole: number, operation: string): void {
  if (isAddress(offset) && isAddress(length) && offset + length <= whole) return;
  throw notInside(offset, length, whole, operation);
}

function notInside(offset: number, length: number, whole: number, operation: string): DmaError {
  const all = `it has ${whole} bytes (${formatSize(whole)})`;
  if (!isAddress(offset)) {
    const reason = `the offset is ${show(offset)}, not a number of bytes from 0 to ${whole}`;
    return invalid(operation, reason, { hint: typeHint(offset, 'number') ?? all });
  }
  if (offset > whole) return invalid(operation, `offset ${offset} is past the end`, { hint: all });
  const left = whole - offset;
  if (!isAddress(length)) {
    const reason = `the length is ${show(length)}, not a number of bytes from 0 to ${left}`;
    return invalid(operation, reason, { hint: typeHint(length, 'number') ?? all });
  }
  const hint = `${all}, of which ${left} follow offset ${offset}`;
  return invalid(operation, `${length} bytes at offset ${offset} reach past the end`, { hint });
}

/** EINVAL of `bytes`: somebody else transferred an ArrayBuffer that belongs to the memory. */
export function viewMoved(range: Range<Va>): DmaError {
  return invalid('bytes', 'the ArrayBuffer of this memory was transferred away', {
    range,
    hint:
      'ArrayBuffer.transfer, readers of byte streams and a WebAssembly.Memory that grows do that: ' +
      'give such calls a copy, and register memory that stays',
  });
}

/** Makes the views of one mapping, and detaches them. */
export class Views {
  readonly #port: MemoryPort;
  readonly #va: Va;
  readonly #length: number;
  readonly #handedOut: HandedOut | undefined;
  readonly #forDevices: boolean;
  /**
   * The only window, if one covers all of the memory. Not used for devices: their windows are checked before each use.
   */
  #whole: ArrayBuffer | undefined;
  /**
   * Windows by their first byte. There is one, unless the memory is longer than an ArrayBuffer can be; and none of most memory,
   * which only devices look at.
   */
  #windows: Map<number, ArrayBuffer> | undefined;
  /** ArrayBuffers of parts that are longer than half a window. */
  #parts: ArrayBuffer[] | undefined;

  /**
   * @param handedOut notes what was handed out; `undefined` for views that never leave the library
   * @param forDevices these views are for models of devices, which reach the memory as long as it is mapped: a view
   *   that a model transferred is replaced
   */
  constructor(port: MemoryPort, va: Va, length: number, handedOut: HandedOut | undefined, forDevices = false) {
    this.#forDevices = forDevices;
    this.#port = port;
    this.#va = va;
    this.#length = length;
    this.#handedOut = handedOut;
  }

  /**
   * The bytes [offset, offset + length); cheap after the first call.
   *
   * @throws DmaError EINVAL if the ArrayBuffer was transferred, unless these views are for devices
   */
  bytes(offset: number, length: number): Uint8Array {
    if (length === 0) return new Uint8Array(0);
    if (this.#whole !== undefined) return this.#within(this.#whole, offset, length);
    const { maxView } = this.#port;
    // Windows overlap by half, so each part that is at most half as long lies inside one.
    const half = this.#length <= maxView ? this.#length : maxView / 2;
    if (length > half) {
      const part = this.#view(offset, length);
      (this.#parts ??= []).push(part);
      return new Uint8Array(part);
    }
    const start = Math.floor(offset / half) * half;
    const windows = (this.#windows ??= new Map<number, ArrayBuffer>());
    let window = windows.get(start);
    if (this.#forDevices && window?.byteLength === 0) {
      this.#handedOut?.escape();
      window = undefined;
    }
    if (window === undefined) {
      window = this.#view(start, Math.min(maxView, this.#length - start));
      windows.set(start, window);
      if (half === this.#length && !this.#forDevices) this.#whole = window;
    }
    return this.#within(window, offset - start, length);
  }

  #within(window: ArrayBuffer, offset: number, length: number): Uint8Array {
    try {
      return new Uint8Array(window, offset, length);
    } catch (error) {
      // The constructor throws for a detached ArrayBuffer. Checking first would cost more than making the view.
      throw window.byteLength === 0 ? viewMoved(new Range(this.#va, this.#length)) : error;
    }
  }

  /** Views of the same memory over ArrayBuffers of their own, for devices. */
  another(): Views {
    return new Views(this.#port, this.#va, this.#length, this.#handedOut, true);
  }

  /** Did somebody else transfer a view? Then the receiver can reach the memory for ever. */
  get escaped(): boolean {
    for (const window of this.#windows?.values() ?? []) if (window.byteLength === 0) return true;
    return this.#parts?.some((part) => part.byteLength === 0) === true;
  }

  /** Detaches every view that was handed out. New ones can be made afterwards. */
  detach(): void {
    this.#whole = undefined;
    const windows = this.#windows;
    if (windows !== undefined)
      for (const [start, window] of windows) {
        this.#detach(window);
        windows.delete(start);
      }
    const parts = this.#parts;
    if (parts !== undefined)
      for (let part = parts.at(-1); part !== undefined; part = parts.at(-1)) {
        this.#detach(part);
        parts.pop();
      }
  }

  #detach(buffer: ArrayBuffer): void {
    if (buffer.byteLength === 0) this.#handedOut?.escape();
    this.#port.detach(buffer);
    if (this.#handedOut?.escaped === false) this.#handedOut.emptied(buffer);
  }

  #view(offset: number, length: number): ArrayBuffer {
    return this.#port.view((this.#va + offset) as Va, length);
  }
}
