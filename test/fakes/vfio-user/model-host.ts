/** For tests of device models and of drivers: a host without sockets, whose memory is plain arrays. */
import { DmaError } from '../../../src/errors.js';
import type { DmaAccess } from '../../../src/dma/address-space.js';
import { grants } from '../../../src/dma/address-space.js';
import { Range } from '../../../src/ranges.js';
import type { DeviceDma, DeviceModel, ModelFactory, ModelHost } from '../../../src/vfio-user/devices/model.js';

/**
 * How a {@link FakeDma} is reached: `direct`, in place; `copied`, only by copying, at once; `messages`, only by copying,
 * and each copy takes a turn of the event loop.
 */
export type Reach = 'direct' | 'copied' | 'messages';

interface Mapped {
  readonly range: Range;
  readonly bytes: Uint8Array;
  readonly access: DmaAccess;
}

/** A table of memory as a client would have mapped it. */
export class FakeDma implements DeviceDma {
  reach: Reach;
  /** Calls that moved or gave out bytes. */
  calls = 0;
  /** When set, every copy fails with it, after it was found to be permitted. */
  failure: Error | undefined;
  readonly #mapped: Mapped[] = [];

  constructor(reach: Reach = 'direct') {
    this.reach = reach;
  }

  /** Maps `bytes` at `iova`; returns them. */
  map(iova: number, bytes: Uint8Array, access: DmaAccess = 'read-write'): Uint8Array {
    this.#mapped.push({ range: new Range(iova, bytes.length), bytes, access });
    return bytes;
  }

  /** Unmaps what was mapped at `iova`. */
  unmap(iova: number): void {
    this.#mapped.splice(
      this.#mapped.findIndex(({ range }) => range.start === iova),
      1,
    );
  }

  direct(iova: number, length: number, access: 'read' | 'write'): Uint8Array | undefined {
    const parts = this.#find(new Range(iova, length), access);
    if (this.reach !== 'direct' || parts.length !== 1) return undefined;
    this.calls++;
    return parts[0];
  }

  read(iova: number, into: Uint8Array): Promise<void> | undefined {
    return this.#copy(() => {
      let at = 0;
      for (const part of this.#find(new Range(iova, into.length), 'read')) {
        into.set(part, at);
        at += part.length;
      }
    });
  }

  write(iova: number, from: Uint8Array): Promise<void> | undefined {
    return this.#copy(() => {
      let at = 0;
      for (const part of this.#find(new Range(iova, from.length), 'write')) {
        part.set(from.subarray(at, at + part.length));
        at += part.length;
      }
    });
  }

  #copy(copy: () => void): Promise<void> | undefined {
    this.calls++;
    const work = (): void => {
      if (this.failure !== undefined) throw this.failure;
      copy();
    };
    if (this.reach === 'messages') return new Promise<void>((resolve) => setImmediate(resolve)).then(work);
    work();
    return undefined;
  }

  /** The pieces of `range`, in order; throws EFAULT or EACCES unless all of it is there. */
  #find(range: Range, access: 'read' | 'write'): Uint8Array[] {
    const parts: Uint8Array[] = [];
    for (let at: number = range.start; at < range.end;) {
      const mapped = this.#mapped.find((candidate) => candidate.range.contains(at));
      if (mapped === undefined) throw new DmaError({ code: 'EFAULT', operation: 'dma', reason: 'not mapped', range });
      if (!grants(mapped.access, access))
        throw new DmaError({ code: 'EACCES', operation: 'dma', reason: `no ${access} access`, range });
      const end = Math.min(range.end, mapped.range.end);
      parts.push(mapped.bytes.subarray(at - mapped.range.start, end - mapped.range.start));
      at = end;
    }
    return parts;
  }
}

/** A host of one model. */
export class FakeModelHost implements ModelHost {
  readonly dma: FakeDma;
  readonly model: DeviceModel;
  readonly #memory = new Map<number, Uint8Array>();
  /** Interrupts that the model has signalled. */
  interrupts = 0;
  /** Called on each interrupt. */
  onInterrupt: (vector: number) => void = () => {};

  constructor(factory: ModelFactory, memory = new FakeDma()) {
    this.dma = memory;
    this.model = factory(this);
  }

  interrupt(vector: number): void {
    this.interrupts++;
    this.onInterrupt(vector);
  }

  /** All of a region, which is plain memory as far as the model says so. */
  regionMemory(region: number): Uint8Array {
    const known = this.#memory.get(region);
    if (known !== undefined) return known;
    const described = this.model.regions.find(({ index }) => index === region);
    if (described?.memory === undefined) throw new Error(`region ${region} has no memory`);
    const memory = new Uint8Array(described.size);
    this.#memory.set(region, memory);
    return memory;
  }

  /** Loads `length` bytes of region 0. */
  load(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length).fill(0x55);
    this.model.read(0, offset, bytes);
    return bytes;
  }

  /** Stores bytes to region 0. */
  store(offset: number, bytes: Uint8Array): void {
    this.model.write(0, offset, bytes);
  }

  read32(offset: number): number {
    return new DataView(this.load(offset, 4).buffer).getUint32(0, true);
  }

  write32(offset: number, value: number): void {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, value, true);
    this.store(offset, bytes);
  }

  read64(offset: number): bigint {
    return new DataView(this.load(offset, 8).buffer).getBigUint64(0, true);
  }

  write64(offset: number, value: bigint): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, value, true);
    this.store(offset, bytes);
  }
}

/** Lets the event loop turn `turns` times. */
export async function turn(turns = 1): Promise<void> {
  for (let n = 0; n < turns; n++) await new Promise<void>((resolve) => setImmediate(resolve));
}

/** Bytes that differ from their neighbours and from those of another `seed`. */
export function pattern(length: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at++) bytes[at] = (Math.imul(at + 1, 2654435761) ^ Math.imul(seed, 40503)) >>> 13;
  return bytes;
}
