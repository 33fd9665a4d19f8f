/** For tests: the memory of a host of an emulated fabric, as its devices reach it. See fabric.ts. */
import { DmaError, type ErrorCode } from '../../../src/errors.js';
import type { MemoryPort, Platform } from '../../../src/platform/ports.js';
import { RangeMap } from '../../../src/range-map.js';
import { hex, type Va } from '../../../src/units.js';

/** The memory of a host. */
export interface HostMemory {
  /** The port of the host, which remembers what the devices have to find. */
  readonly memory: MemoryPort;
  /** The bytes of requests and completions at an address. EFAULT when there is no array. */
  words(address: number, length: number, operation: string): DataView;
  /** A view of the user's memory. EFAULT when nothing is mapped there. */
  view(va: number, length: number): { buffer: ArrayBuffer; offset: number; release: () => void };
}

export function hostMemory(base: Platform): HostMemory {
  /** Arrays whose address was asked for: where requests and completions are. */
  const arrays = new RangeMap<Uint8Array>();
  /** What was mapped here, for platforms whose memory can only be viewed as a whole. */
  const mapped = new RangeMap<{ va: Va; length: number }>();
  const fail = (code: ErrorCode, operation: string, reason: string): never => {
    throw new DmaError({ code, operation, reason });
  };
  const words = (address: number, length: number, operation: string): DataView => {
    const array = arrays.at(address) ?? fail('EFAULT', operation, `there is no array at ${hex(address)}`);
    const start = address - base.memory.addressOf(array);
    return new DataView(array.buffer, array.byteOffset + start, length);
  };
  const view = (va: number, length: number): { buffer: ArrayBuffer; offset: number; release: () => void } => {
    if (base.limitation === undefined) {
      const buffer = base.memory.view(va as Va, length);
      return { buffer, offset: 0, release: () => base.memory.detach(buffer) };
    }
    const whole = mapped.at(va) ?? fail('EFAULT', 'ibv_reg_mr', `nothing is mapped at ${hex(va)}`);
    return { buffer: base.memory.view(whole.va, whole.length), offset: va - whole.va, release: () => undefined };
  };

  const memory = new Proxy(base.memory, {
    get(target, key): unknown {
      if (key === 'addressOf')
        return (array: ArrayBufferView | ArrayBufferLike): Va => {
          const va = target.addressOf(array);
          // Requests and completions begin where their buffer does; others are the user's and can be long.
          if (ArrayBuffer.isView(array) && array.byteLength <= 2 ** 24) {
            for (
              let old = arrays.overlapping(va, va + array.byteLength);
              old !== undefined;
              old = arrays.overlapping(va, va + array.byteLength)
            )
              arrays.delete(target.addressOf(old));
            arrays.insert(va, array.byteLength, new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
          }
          return va;
        };
      if (key === 'map')
        return (options: Parameters<typeof target.map>[0]): Va => {
          const va = target.map(options);
          mapped.insert(va, options.length, { va, length: options.length });
          return va;
        };
      if (key === 'unmap')
        return (va: Va, length: number): void => {
          target.unmap(va, length);
          mapped.delete(va);
        };
      const value: unknown = Reflect.get(target, key);
      return typeof value === 'function' ? (...args: unknown[]): unknown => Reflect.apply(value, target, args) : value;
    },
  });
  return { memory, words, view };
}
