/** The three ways to have memory for DMA: each allocates memory that a device can access, and frees it again. */
import { Option } from 'commander';
import {
  DmaError,
  type Block,
  type Device,
  type DmaAccess,
  type Eal,
  type ExternalMemory,
  type Iova,
  type MapOptions,
  type Mapping,
  type Va,
} from '../../index.js';
import { timedAsync } from './timing.js';

const MODES = ['external', 'heap', 'owned'] as const;

/** A way to have memory for DMA; `--help` explains each. */
export type Mode = (typeof MODES)[number];

/** The values of `--mode`. */
export type ModeChoice = Mode | 'all';

/** The heap for memory of mode `heap`. */
const HEAP = 'demo';

/** Explains the modes, for help pages. */
export const MODES_TEXT = `Modes: external is memory of the program, which registers it and maps it for the device (external.allocateAsync,
  dmaMapAsync). heap is memory of the program that was added to a heap: the library maps it for every device and allocates blocks from it
  (heaps.addMemoryAsync, malloc). owned is memory of the library, mapped for every device already (mallocAsync).`;

/** Explains what is measured in each mode, for help pages. */
export const TIMES_TEXT = `MAP TIME is the time of dmaMapAsync for external memory; for heap and owned it is the time to get a block
  (addMemoryAsync and malloc, or mallocAsync), including the mapping that the library does.`;

/** `--mode`; default: `external`. */
export function modeOption(): Option {
  return new Option('--mode <mode>', 'how to have the memory').choices([...MODES, 'all']).default('external');
}

/** The chosen modes, in the order in which they are shown. */
export function modesOf(choice: ModeChoice): readonly Mode[] {
  return choice === 'all' ? MODES : [choice];
}

/** Memory that a device can access. Disposing it unmaps it if necessary, and frees it. */
export interface Reached extends AsyncDisposable {
  readonly mode: Mode;
  readonly va: Va;
  /** The device address of the first byte. */
  readonly iova: Iova;
  /** Bytes, at least the requested size. */
  readonly length: number;
  readonly access: DmaAccess;
  /** Bytes. */
  readonly pageSize: number;
  /** The kind of memory, such as `memfd`. */
  readonly source: string;
  /** The time of the step that let the device access it. */
  readonly mapMicroseconds: number;
  /** Entries added to the device's domain: 0 if the device could access it already. */
  readonly entries: number;
  /** The key for peers, if they may use it: see `MapOptions.remote`. */
  readonly rkey?: number;
  /** The bytes [offset, offset + length); see `ExternalMemory.bytes` and `Block.bytes`. */
  bytes(offset?: number, length?: number): Uint8Array;
  /** Takes it from the device. A block is freed by this. */
  withdraw(): Promise<void>;
}

/** What memory is taken for. */
export interface Reacher {
  readonly eal: Eal;
  readonly device: Device;
  /** Aborts the work, within one piece of it. */
  readonly signal?: AbortSignal;
}

/** How external memory is allocated and mapped. The other modes need no choice: the library maps their memory. */
export interface ExternalOptions extends MapOptions {
  readonly source?: 'memfd' | 'anonymous';
  /** Its name in messages. */
  readonly label?: string;
}

/**
 * Allocates memory in `mode` that the device can access. If it fails half-way, the rest is released with the `Eal`.
 *
 * @param bytes the least size
 */
export async function takeMemory(
  mode: Mode,
  reacher: Reacher,
  bytes: number,
  options: ExternalOptions = {},
): Promise<Reached> {
  const { eal, signal } = reacher;
  if (mode === 'owned') {
    const take = async (): Promise<Block> => eal.mallocAsync(bytes, { contiguous: true, signal });
    // Otherwise the library would keep the freed memory for the next block.
    return reachBlock(mode, reacher, take, async () => {
      await eal.memory.trimAsync();
    });
  }
  const { source, label, ...how } = options;
  const memory = await eal.external.allocateAsync(bytes, { source, label, signal });
  if (mode === 'external') return reachExternal(reacher, memory, how);
  if (eal.heaps.find(HEAP) === undefined) eal.heaps.create(HEAP);
  const take = async (): Promise<Block> => {
    await eal.heaps.addMemoryAsync(HEAP, memory, { signal });
    // The whole memory, so that no other block is allocated in it.
    return eal.malloc(memory.length, { heap: HEAP, contiguous: true });
  };
  const takeAway = async (): Promise<void> =>
    eal.heaps.removeMemoryAsync(HEAP, { va: memory.va, length: memory.length });
  return reachBlock(mode, reacher, take, takeAway, memory);
}

/** Maps external memory, and frees it at the end. */
export async function reachExternal(
  { device, signal }: Reacher,
  memory: ExternalMemory,
  options?: MapOptions,
): Promise<Reached> {
  const map = async (): Promise<Mapping> => device.dmaMapAsync(memory, { ...options, signal });
  const [mapping, mapMicroseconds, entries] = await measured(device, map);
  const { va, iova, length, access } = mapping;
  const { source, area } = memory;
  const rkey = options?.remote === undefined ? undefined : mapping.rkey;
  return {
    ...{ mode: 'external', va, iova, length, access, pageSize: area.pageSize, source, mapMicroseconds, entries, rkey },
    bytes: (offset, part) => memory.bytes(offset, part),
    withdraw: async () => mapping.unmapAsync(),
    [Symbol.asyncDispose]: async () => {
      if (mapping.live) await mapping.unmapAsync();
      if (memory.live) await memory.unregisterAsync();
    },
  };
}

/**
 * @param takeAway unmaps the memory of the block from the device, after the block is freed
 * @param memory the memory that was added to the heap; it is unregistered at the end
 */
async function reachBlock(
  mode: Mode,
  { device }: Reacher,
  take: () => Promise<Block>,
  takeAway: () => Promise<void>,
  memory?: ExternalMemory,
): Promise<Reached> {
  const [block, mapMicroseconds, entries] = await measured(device, take);
  const { va, length } = block;
  const { pageSize, backing } = block.area;
  const source = backing === undefined ? 'anonymous' : 'memfd';
  if (device.domain === undefined) {
    const reason = `memory of mode ${mode} can not be mapped for the device: neither its driver nor its bus can map`;
    throw new DmaError({ code: 'ENOTSUP', operation: 'malloc', device: device.name, reason });
  }
  const iova = device.iovaOf(block);
  const withdraw = async (): Promise<void> => {
    await block.freeAsync();
    await takeAway();
  };
  return {
    ...{ mode, va, iova, length, access: 'read-write', pageSize, source, mapMicroseconds, entries },
    bytes: (offset, part) => block.bytes(offset, part),
    withdraw,
    [Symbol.asyncDispose]: async () => {
      if (block.live) await withdraw();
      if (memory?.live === true) await memory.unregisterAsync();
    },
  };
}

/** The result of `take`, its time in microseconds, and how many entries it added to the device's domain. */
async function measured<T>(
  { domain }: Device,
  take: () => Promise<T>,
): Promise<[value: T, microseconds: number, entries: number]> {
  const before = domain?.entries ?? 0;
  return [...(await timedAsync(take)), (domain?.entries ?? 0) - before];
}
