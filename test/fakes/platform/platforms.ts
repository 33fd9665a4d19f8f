/** Platforms for tests: one whose calls fail on demand, and one that reports leaks. Either wraps any platform. */
import { DmaError } from '../../../src/errors.js';
import type { ErrorCode } from '../../../src/errors.js';
import { hex } from '../../../src/units.js';
import type { IoctlPort, MmapOptions, MemoryPort, Platform } from '../../../src/platform/ports.js';
import { IOMMU_FAULT_ALLOC } from '../../../src/platform/uapi/iommufd.js';

/** An {@link IoctlPort} that answers by `call`; its asynchronous form a turn of the event loop later. */
export function ioctlPort(call: IoctlPort['call']): IoctlPort {
  return {
    call,
    async callAsync(...args) {
      await new Promise((resolve) => setImmediate(resolve));
      return call(...args);
    },
  };
}

/** One call of a port's method, or of a watch's, on its way. */
interface Call {
  /** `port.method`, such as `memory.map`; `Watch.close` for a method of a watch; `ioctl.VFIO_SET_IOMMU` for that ioctl. */
  readonly name: string;
  readonly args: readonly unknown[];
  /** The port or watch itself. */
  readonly target: object;
  /** Does it. */
  run(): unknown;
}

/** `platform` with every call of a port, and of the watches it hands out, going through `around`. */
function intercept<P extends Platform>(platform: P, around: (call: Call) => unknown): P {
  const wrap = <T extends object>(target: T, owner: string): T => {
    const methods = new Map<PropertyKey, unknown>();
    return new Proxy(target, {
      get(object, key): unknown {
        const value: unknown = Reflect.get(object, key);
        if (typeof value !== 'function') return value;
        if (!methods.has(key))
          methods.set(key, (...args: unknown[]) => {
            // The name of the ioctl instead of the method.
            const name = `${owner}.${String(owner === 'ioctl' ? args[3] : key)}`;
            const result = around({
              name,
              args,
              target: object,
              run: (): unknown => Reflect.apply(value, object, args),
            });
            return name === 'readiness.watch' ? wrap(result as object, 'Watch') : result;
          });
        return methods.get(key);
      },
    });
  };
  const ports = Object.entries(platform).map(([key, value]: [string, unknown]) => [
    key,
    typeof value === 'object' && value !== null ? wrap(value, key) : value,
  ]);
  return Object.fromEntries(ports) as P;
}

/**
 * A platform whose calls fail when a test says so. Calls are named `port.method` (`memory.map`, `Watch.close`), ioctls by
 * the name they are called with (`ioctl.VFIO_SET_IOMMU`).
 */
export interface FailingPlatform extends Platform {
  /**
   * The `n`th call from now (1 is the next one) is not made but throws a DmaError of `code`; calls after it work again.
   * Takes the place of what was asked for before.
   *
   * @param name count only the calls of this name, which may be one of a clean-up; without it, all that may fail
   */
  failCall(n: number, code: ErrorCode, name?: string): void;
  /** The name of the call that {@link failCall} made fail; `undefined` as long as none did. */
  failed(): string | undefined;
  /** How many calls of this name there were; without a name, how many that may fail. */
  calls(name?: string): number;
}

/** Calls that undo, and what they count. A program can not do anything about their failure, so they do not fail unless asked to by name. */
const CLEANUP: readonly string[] = [
  'files.close',
  'files.closeForeign',
  'files.closing',
  'files.remove',
  'files.punch',
  'files.punchAsync',
  'memory.unmap',
  'memory.retire',
  'memory.decommit',
  'memory.detach',
  'Watch.close',
  'ioctl.VFIO_GROUP_UNSET_CONTAINER',
  'ioctl.VFIO_IOMMU_UNMAP_DMA',
  'ioctl.VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY',
  'ioctl.VFIO_DEVICE_DETACH_IOMMUFD_PT',
  'ioctl.IOMMU_IOAS_UNMAP',
  'ioctl.IOMMU_DESTROY',
  'verbs.close',
  'verbs.deallocatePd',
  'verbs.deregisterMemory',
  'verbs.deregisterMemoryAsync',
  'verbs.deallocateMw',
  'verbs.destroyChannel',
  'verbs.destroyCq',
  'verbs.destroyQp',
  'verbs.destroyAh',
  'rdmaCm.destroyId',
  'rdmaCm.destroyChannel',
];

/**
 * Wraps `platform` so that single calls can be made to fail.
 *
 * @param options.cleanup may calls that undo (close, remove, punch, unmap, retire, decommit, detach, Watch.close, and the ioctls and
 * verbs that do such) fail as well? Default false.
 */
export function failingPlatform(platform: Platform, options: { readonly cleanup?: boolean } = {}): FailingPlatform {
  const mayFail = (name: string): boolean => options.cleanup === true || !CLEANUP.includes(name);
  const counts = new Map<string, number>();
  let armed: { left: number; readonly code: ErrorCode; readonly name: string | undefined } | undefined;
  let failed: string | undefined;

  const controls: FailingPlatform = {
    ...platform,
    failCall(n, code, name) {
      armed = { left: n, code, name };
      failed = undefined;
    },
    failed: () => failed,
    calls(name) {
      if (name !== undefined) return counts.get(name) ?? 0;
      return [...counts].reduce((sum, [each, count]) => (mayFail(each) ? sum + count : sum), 0);
    },
  };
  return intercept(controls, ({ name, run }) => {
    counts.set(name, (counts.get(name) ?? 0) + 1);
    if (armed !== undefined && (armed.name === undefined ? mayFail(name) : armed.name === name) && --armed.left === 0) {
      const { code } = armed;
      armed = undefined;
      failed = name;
      throw new DmaError({ code, operation: name, reason: 'made to fail by the test' });
    }
    return run();
  });
}

/** A platform that tracks what is open. */
export interface TrackingPlatform extends Platform {
  /**
   * A line for each mapping, reservation, descriptor, view, watch and RDMA handle that was made and has not been given back, oldest
   * first; then one for each stretch of a reservation that is committed. Addresses that were retired are no leak: see
   * {@link retired}.
   */
  leaks(): string[];
  /** A line for each stretch of addresses that was retired, and waits until nothing reaches it (`MemoryPort.retire`). */
  retired(): string[];
}

/** Calls that return descriptors: a number, several, or a `ReceivedBytes`. */
const MAKES_DESCRIPTORS: readonly string[] = [
  'memory.memfd',
  'files.open',
  'files.create',
  'files.duplicate',
  'sockets.connect',
  'sockets.listen',
  'sockets.accept',
  'sockets.pair',
  'sockets.receive',
  'sockets.peerProcess',
  'events.create',
  'ioctl.VFIO_GROUP_GET_DEVICE_FD',
];

/** Calls that return handles of RDMA devices, and those that give them back. */
const MAKES_HANDLES: readonly string[] = [
  'verbs.open',
  'verbs.allocatePd',
  'verbs.registerMemory',
  'verbs.registerDmabuf',
  'verbs.allocateMw',
  'verbs.createChannel',
  'verbs.createCq',
  'verbs.createQp',
  'verbs.createAh',
  'rdmaCm.createChannel',
  'rdmaCm.createId',
];
const TAKES_HANDLES: readonly string[] = CLEANUP.filter((name) => /^(verbs|rdmaCm)\./.test(name));

/** Wraps `platform` so that a test can assert that `leaks()` is empty. */
export function trackingPlatform(platform: Platform): TrackingPlatform {
  /** What is open, under the object or text that its release will name. */
  const open = new Map<unknown, string>();
  const committed = new Stretches();
  const retired = new Stretches();
  /** Mappings and reservations, which have a place of their own in `open` as well: that keeps the order. */
  const mapped = new Stretches();
  const leaks = (): string[] => {
    const unretired = new Set(mapped.without(retired).map(({ text }) => text));
    return [
      ...[...open.values()].filter((text) => !text.startsWith('mapping') || unretired.has(text)),
      ...committed.lines(),
    ];
  };

  return intercept({ ...platform, leaks, retired: () => retired.lines() }, ({ name, args, target, run }) => {
    const result = run();
    if (name === 'verbs.registerMemoryAsync' || name === 'verbs.createAhAsync')
      return (result as Promise<unknown>).then((made) => {
        open.set(made, `what ${name} made`);
        return made;
      });
    if (name === 'verbs.deregisterMemoryAsync') return (result as Promise<void>).then(() => void open.delete(args[0]));
    if (MAKES_DESCRIPTORS.includes(name)) {
      for (const fd of descriptorsIn(result)) open.set(`fd ${fd}`, `fd ${fd} of ${name}(${describe(args[0])})`);
    } else if (name === 'ioctl.IOMMU_FAULT_QUEUE_ALLOC') {
      const [, , struct] = args as Parameters<IoctlPort['call']>;
      if (typeof struct === 'number') return result;
      const fd = new DataView(struct.buffer, struct.byteOffset).getInt32(IOMMU_FAULT_ALLOC.out_fault_fd, true);
      open.set(`fd ${fd}`, `fd ${fd} of ${name}(${describe(args[0])})`);
    } else if (name === 'files.close' || name === 'files.closeForeign') {
      open.delete(`fd ${String(args[0])}`);
    } else if (name === 'memory.map' || name === 'memory.reserve') {
      const [what] = args as [number | MmapOptions];
      const length = typeof what === 'number' ? what : what.length;
      const text = `mapping at ${describe(result)} of ${describe(what)}`;
      open.set(text, text);
      mapped.add(Number(result), Number(result) + length, text);
    } else if (name === 'memory.reserveAt') {
      const [va, length] = args as Parameters<MemoryPort['reserveAt']>;
      const text = `mapping at ${describe(va)} of ${describe(length)}`;
      open.set(text, text);
      mapped.add(va, va + length, text);
    } else if (name === 'memory.commit') {
      const [va, options] = args as Parameters<MemoryPort['commit']>;
      committed.add(va, va + options.length, `memory at ${hex(va)} of ${describe(options)}`);
    } else if (name === 'memory.decommit') {
      const [va, length] = args as Parameters<MemoryPort['decommit']>;
      committed.remove(va, va + length);
      retired.remove(va, va + length);
    } else if (name === 'memory.retire') {
      const [va, length] = args as Parameters<MemoryPort['retire']>;
      committed.remove(va, va + length);
      retired.add(va, va + length, 'retired addresses');
    } else if (name === 'memory.unmap') {
      const [va, length] = args as Parameters<MemoryPort['unmap']>;
      const texts = mapped.textsIn(va, va + length);
      for (const stretches of [mapped, committed, retired]) stretches.remove(va, va + length);
      for (const text of texts) if (!mapped.has(text)) open.delete(text);
    } else if (name === 'memory.view') {
      open.set(result, `view of ${describe(args[1])} bytes at ${describe(args[0])}`);
    } else if (name === 'memory.detach') {
      open.delete(args[0]);
    } else if (name === 'readiness.watch') {
      open.set(result, `watch on fd ${String(args[0])}`);
    } else if (name === 'Watch.close') {
      open.delete(target);
    } else if (MAKES_HANDLES.includes(name)) {
      open.set(result, `what ${name} made`);
    } else if (TAKES_HANDLES.includes(name)) {
      open.delete(args[0]);
    }
    return result;
  });
}

/** Stretches of addresses. One can be taken back in other pieces than it was given. */
class Stretches {
  #parts: { readonly start: number; readonly end: number; readonly text: string }[] = [];

  add(start: number, end: number, text: string): void {
    this.remove(start, end);
    this.#parts.push({ start, end, text });
  }

  remove(start: number, end: number): void {
    this.#parts = this.#parts.flatMap((part) =>
      part.end <= start || part.start >= end
        ? [part]
        : [
            { ...part, end: start },
            { ...part, start: end },
          ].filter((rest) => rest.start < rest.end),
    );
  }

  textsIn(start: number, end: number): readonly string[] {
    return this.#parts.filter((part) => part.end > start && part.start < end).map(({ text }) => text);
  }

  has(text: string): boolean {
    return this.#parts.some((part) => part.text === text);
  }

  /** What is left of these without `others`. */
  without(others: Stretches): readonly { readonly text: string }[] {
    const rest = new Stretches();
    rest.#parts = this.#parts;
    for (const { start, end } of others.#parts) rest.remove(start, end);
    return rest.#parts;
  }

  lines(): string[] {
    return this.#parts.map(({ start, end, text }) => `${end - start} bytes at ${hex(start)} of the ${text}`);
  }
}

function descriptorsIn(result: unknown): readonly number[] {
  if (typeof result === 'number') return [result];
  if (Array.isArray(result)) return result.filter((each) => typeof each === 'number');
  if (typeof result === 'object' && result !== null && 'fds' in result) return descriptorsIn(result.fds);
  return [];
}

function describe(value: unknown): string {
  if (typeof value === 'number') return value < 65536 ? String(value) : hex(value);
  return value === undefined ? '' : JSON.stringify(value);
}
