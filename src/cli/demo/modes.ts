/** The three ways to have memory for DMA, each from taking memory to a device that reaches it, and back. */
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

/** A way to have memory for DMA; `--help` says what each is. */
export type Mode = (typeof MODES)[number];

/** What `--mode` takes. */
export type ModeChoice = Mode | 'all';

/** The heap for memory of mode `heap`. */
const HEAP = 'demo';

/** What each mode is, for help pages. */
export const MODES_TEXT = `Modes: external is memory of the program, which registers it and maps it for the device (external.allocateAsync,
  dmaMapAsync). heap is memory of the program that was added to a heap: the library maps it for every device and allocates blocks from it
  (heaps.addMemoryAsync, malloc). owned is memory of the library, mapped for every device already (mallocAsync).`;

/** What is measured in each mode, for help pages. */
export const TIMES_TEXT = `MAP TIME is the time of dmaMapAsync for external memory; for heap and owned it is the time to get a block
  (addMemoryAsync and malloc, or mallocAsync), including the mapping that the library does.`;

/** `--mode`, which is `external` unless it is given. */
export function modeOption(): Option {
  return new Option('--mode <mode>', 'how to have the memory').choices([...MODES, 'all']).default('external');
}

/** The modes that are chosen, in the order they are shown. */
export function modesOf(choice: ModeChoice): readonly Mode[] {
  return choice === 'all' ? MODES : [choice];
}

/** Memory that a device reaches. Disposing it takes it from the device, unless that was done, and gives it back. */
export interface Reached extends AsyncDisposable {
  readonly mode: Mode;
  readonly va: Va;
  /** Where the device finds the first byte. */
  readonly iova: Iova;
  /** bytes, at least what was asked for */
  readonly length: number;
  readonly access: DmaAccess;
  /** bytes */
  readonly pageSize: number;
  /** What the memory is, such as `memfd`. */
  readonly source: string;
  /** How long the step took that let the device reach it. */
  readonly mapMicroseconds: number;
  /** Entries of the device's domain that were made for it: none when it could be reached already. */
  readonly entries: number;
  /** What peers name it by, if they may use it: see `MapOptions.remote`. */
  readonly rkey?: number;
  /** The bytes [offset, offset + length); see `ExternalMemory.bytes` and `Block.bytes`. */
  bytes(offset?: number, length?: number): Uint8Array;
  /** Takes it from the device. Of blocks nothing is left then. */
  withdraw(): Promise<void>;
}

/** What memory is taken for. */
export interface Reacher {
  readonly eal: Eal;
  readonly device: Device;
  /** Gives up, within one piece of the work. */
  readonly signal?: AbortSignal;
}

/** How external memory is taken. The library maps memory of the other modes as it needs to. */
export interface ExternalOptions extends MapOptions {
  readonly source?: 'memfd' | 'anonymous';
  /** What messages call it. */
  readonly label?: string;
}

/**
 * New memory in `mode` that the device reaches. What fails half-way goes with the `Eal`.
 *
 * @param bytes how much, at least
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
    // Else the library would keep the memory, for the next block.
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
    // All of it, so that no other block comes into this piece.
    return eal.malloc(memory.length, { heap: HEAP, contiguous: true });
  };
  const takeAway = async (): Promise<void> =>
    eal.heaps.removeMemoryAsync(HEAP, { va: memory.va, length: memory.length });
  return reachBlock(mode, reacher, take, takeAway, memory);
}

/** Maps external memory, and owns it from then on. */
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
 * @param takeAway takes from the device what the block was in, once that is freed
 * @param memory what the heap was given, which is unregistered at the end
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
    const reason = `the device can not reach memory of mode ${mode}: nothing maps memory for it`;
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

/** What `take` returns, its time in microseconds, and how many entries of the device's domain it made. */
async function measured<T>(
  { domain }: Device,
  take: () => Promise<T>,
): Promise<[value: T, microseconds: number, entries: number]> {
  const before = domain?.entries ?? 0;
  return [...(await timedAsync(take)), (domain?.entries ?? 0) - before];
}
