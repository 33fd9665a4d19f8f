/** Every operation that uses a data structure, with n entries in it; and every kind of object that can be numerous. */
import { Eal, KiB, MiB, type Device, type EalOptions, type ExternalMemory, type Va } from '../src/index.js';
import { randomNumbers } from './harness/areas.js';
import { benchBus, benchDriver } from './harness/bus.js';
import type { MemoryPart } from '../src/memory/part.js';

/** How things are visited. */
export type Order = 'in order' | 'at random';

/** One data structure with `n` entries. Work outside of its methods is not measured. */
export interface Round {
  readonly n: number;
  /** Calls `work` for each of 0 to n - 1; the phase takes the time of all. */
  readonly each: (phase: string, work: (i: number) => void) => Promise<void>;
  readonly eachAsync: (phase: string, work: (i: number) => Promise<unknown>) => Promise<void>;
  /** Calls `work`, which does all n things. */
  readonly all: (phase: string, work: () => unknown) => Promise<void>;
}

interface Growth {
  readonly orders: readonly Order[];
  readonly sizes: readonly number[];
  readonly run: (round: Round) => Promise<void>;
}

/** Objects whose memory is measured. */
interface Held {
  /** The most that one is to take of the JavaScript heap and of ArrayBuffers, in bytes. */
  readonly goal: number;
  /** Makes `count` of them. @returns what keeps them */
  readonly make: (count: number) => Promise<unknown>;
}

const PAGE = 4096;
const SIZES = [1000, 10_000, 100_000];
/** For entries that need one mapping of the process each: the kernel allows 65,530. */
const FEW = [500, 5000, 50_000];
/** Of addresses that are freed apart from each other: more than 16,384 do not wait at a time. */
const APART = [160, 1600, 16_000];
const BOTH: readonly Order[] = ['in order', 'at random'];
const ONCE: readonly Order[] = ['in order'];

const BARE: EalOptions = { buses: [benchBus()], drivers: [benchDriver], onForgotten: () => undefined };
/** All memory is there before anything is measured. @param bytes what of it is used, with what it takes to keep it apart */
function stocked(bytes: number): EalOptions {
  return { ...BARE, memory: { noHuge: true, size: bytes + 2 * MiB } };
}

/** Operations by name. */
export const GROWTH: ReadonlyMap<string, Growth> = new Map<string, Growth>([
  ['areas at addresses', { orders: BOTH, sizes: SIZES, run: addressedAreas }],
  ['areas among mappings of the process', { orders: BOTH, sizes: FEW, run: amongMappings }],
  ['areas that are allocated', { orders: BOTH, sizes: SIZES, run: allocatedAreas }],
  ['areas of a Buffer', { orders: BOTH, sizes: SIZES, run: bufferAreas }],
  ['areas in a heap', { orders: BOTH, sizes: SIZES, run: heapAreas }],
  ['addresses in a heap', { orders: BOTH, sizes: SIZES, run: rawAreas }],
  ['retired ranges', { orders: ONCE, sizes: SIZES, run: retiredRanges }],
  ['scattered retired ranges', { orders: ['at random'], sizes: APART, run: retiredRanges }],
  ['pins', { orders: BOTH, sizes: SIZES, run: pins }],
  ['mappings', { orders: BOTH, sizes: SIZES, run: (round) => mappings(round, 'any') }],
  ['mappings at allocated IOVAs', { orders: BOTH, sizes: SIZES, run: (round) => mappings(round, 'low') }],
  ['runs of one mapping', { orders: BOTH, sizes: SIZES, run: runsOfOne }],
  ['mappings of a lost device', { orders: ONCE, sizes: SIZES, run: lostMappings }],
  ['devices', { orders: BOTH, sizes: SIZES, run: (round) => devices(round, '') }],
  ['devices of one domain', { orders: BOTH, sizes: SIZES, run: (round) => devices(round, ',domain=one') }],
  ['fresh devices', { orders: ONCE, sizes: SIZES, run: freshDevices }],
  ['dmaMapAll on devices', { orders: BOTH, sizes: SIZES, run: groups }],
  ['memory of a heap on devices', { orders: ONCE, sizes: SIZES, run: heapOnDevices }],
  ['heaps', { orders: BOTH, sizes: SIZES, run: heaps }],
  ['zones', { orders: BOTH, sizes: SIZES, run: zones }],
  ['largest zones', { orders: ONCE, sizes: SIZES, run: largestZones }],
  ['blocks of 64 B', { orders: BOTH, sizes: SIZES, run: (round) => blocks(round, 64) }],
  ['blocks of 4 KiB', { orders: BOTH, sizes: SIZES, run: (round) => blocks(round, 4 * KiB) }],
  ['malloc beside unsuitable blocks', { orders: ONCE, sizes: SIZES, run: unsuitableBlocks }],
  ['growing and shrinking', { orders: ONCE, sizes: SIZES, run: extents }],
  ['pool', { orders: BOTH, sizes: SIZES, run: pool }],
  ['pool over fragments', { orders: ONCE, sizes: SIZES, run: (round) => fragmentedPool(round, () => 16 * KiB) }],
  ['pool over uneven fragments', { orders: ONCE, sizes: SIZES, run: unevenPool }],
  ['pool over external memory', { orders: ONCE, sizes: SIZES, run: externalPool }],
  ['pools', { orders: BOTH, sizes: SIZES, run: pools }],
  ['stop', { orders: ONCE, sizes: SIZES, run: stopping }],
]);

/** Objects by name. */
export const HELD: ReadonlyMap<string, Held> = new Map<string, Held>([
  ['a live mapping', { goal: 512, make: (count) => heldMappings(count, 'any') }],
  ['a live mapping at an allocated IOVA', { goal: 512, make: (count) => heldMappings(count, 'low') }],
  ['a block of 64 B', { goal: 128, make: (count) => heldBlocks(count, 64) }],
  ['a block of 4 KiB', { goal: 128, make: (count) => heldBlocks(count, 4 * KiB) }],
  ['a zone', { goal: 256, make: heldZones }],
  ['a pool element', { goal: 8, make: heldElements }],
]);

// --- memory of the user's ---

/** Addresses of `count` pages with a gap after each, in one mapping of the process. */
function somePages(eal: Eal, count: number): { readonly memory: ExternalMemory; readonly at: (i: number) => Va } {
  const memory = eal.external.allocate(count * 2 * PAGE, { source: 'anonymous', populate: false });
  return { memory, at: (i) => (memory.va + i * 2 * PAGE) as Va };
}

async function addressedAreas({ n, each }: Round): Promise<void> {
  await using other = await Eal.start(BARE);
  await using eal = await Eal.start(BARE);
  const { at } = somePages(other, n);
  const areas = new Array<ExternalMemory>(n);
  await each('fromAddress', (i) => (areas[i] = eal.external.fromAddress(at(i), PAGE)));
  await each('find', (i) => eal.external.find({ va: at(i), length: PAGE }));
  await each('unregister', (i) => areas[i].unregister());
  await each('fromAddress again', (i) => eal.external.fromAddress(at(i), PAGE));
  await each('unregister by address', (i) => eal.external.unregister({ va: at(i), length: PAGE }));
}

async function amongMappings({ n, each }: Round): Promise<void> {
  await using eal = await Eal.start(BARE);
  const { memory } = eal.platform;
  // Neighbours that may be written and those that may not are mappings of their own.
  const pages = Array.from({ length: n }, (_, i) => memory.map({ length: PAGE, readOnly: i % 2 === 1 }));
  try {
    const areas = new Array<ExternalMemory>(n);
    await each('fromAddress', (i) => (areas[i] = eal.external.fromAddress(pages[i], PAGE, { writable: i % 2 === 0 })));
    await each('unregister', (i) => areas[i].unregister());
  } finally {
    for (const va of pages) memory.unmap(va, PAGE);
  }
}

async function allocatedAreas({ n, each }: Round): Promise<void> {
  await using eal = await Eal.start(BARE);
  const areas = new Array<ExternalMemory>(n);
  await each('allocate', (i) => (areas[i] = eal.external.allocate(PAGE, { source: 'anonymous', populate: false })));
  // The last in the row is the first to go: holes would need a mapping of the process each.
  for (const area of areas.reverse()) area.unregister();
}

async function bufferAreas({ n, each }: Round): Promise<void> {
  await using eal = await Eal.start(BARE);
  const whole = new Uint8Array((n + 1) * PAGE);
  const from = (PAGE - (Number(eal.platform.memory.addressOf(whole)) % PAGE)) % PAGE;
  const areas = new Array<ExternalMemory>(n);
  await each('register', (i) => {
    areas[i] = eal.external.register(whole.subarray(from + i * PAGE, from + (i + 1) * PAGE));
  });
  await each('unregister', (i) => areas[i].unregister());
}

async function heapAreas({ n, each }: Round): Promise<void> {
  await using other = await Eal.start(BARE);
  await using eal = await Eal.start(BARE);
  const { at } = somePages(other, n);
  const areas = Array.from({ length: n }, (_, i) => eal.external.fromAddress(at(i), PAGE));
  const heap = eal.heaps.create('bench');
  await each('addMemory', (i) => eal.heaps.addMemory('bench', areas[i]));
  // A block in each, so that what is free and what is not matters.
  const blocks = Array.from({ length: n }, () => heap.malloc(PAGE));
  await each('free of the last block', (i) => blocks[i].free());
  await each('removeMemory', (i) => eal.heaps.removeMemory('bench', { va: at(i), length: PAGE }));
}

async function rawAreas({ n, each }: Round): Promise<void> {
  await using other = await Eal.start(BARE);
  await using eal = await Eal.start(BARE);
  const { at } = somePages(other, n);
  eal.heaps.create('bench');
  await each('addMemory', (i) => eal.heaps.addMemory('bench', { va: at(i), length: PAGE }));
  await each('removeMemory', (i) => eal.heaps.removeMemory('bench', { va: at(i), length: PAGE }));
}

async function retiredRanges({ n, each }: Round): Promise<void> {
  await using eal = await Eal.start(BARE);
  const areas = Array.from({ length: n }, () => eal.external.allocate(PAGE, { source: 'anonymous', populate: false }));
  for (const area of areas) area.bytes();
  await each('unregister, looked at before', (i) => areas[i].unregister());
  await collected(eal);
}

/** Waits until addresses that were freed can be used again. */
async function collected(eal: Eal): Promise<void> {
  // They are those of the thread, so that one set of books waits for all.
  collecting ??= collectAll(eal).finally(() => (collecting = undefined));
  await collecting;
}

let collecting: Promise<void> | undefined;

async function collectAll(eal: Eal): Promise<void> {
  while (eal.external.retired.waiting.ranges > 0) {
    const gc: unknown = Reflect.get(globalThis, 'gc');
    if (typeof gc === 'function') Reflect.apply(gc, undefined, []);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

async function pins({ n, each }: Round): Promise<void> {
  await using eal = await Eal.start(BARE);
  using memory = eal.external.allocate(PAGE);
  const held = new Array<Disposable>(n);
  await each('pin', (i) => (held[i] = memory.pin()));
  await each('is it pinned?', () => memory.pinned);
  await each('unpin', (i) => held[i][Symbol.dispose]());
}

// --- mappings and devices ---

type Iovas = 'any' | 'low';

async function mapper(
  iovas: Iovas,
  n: number,
): Promise<{ eal: Eal; device: Device; at: (i: number) => Va; target: (i: number) => MemoryPart }> {
  // Otherwise what comes after IOVAs were held back is a part only of phases that take longer than that.
  const eal = await Eal.start({ ...BARE, holdBackMs: 0 });
  const device = await eal.probe(`bench:one,iovas=${iovas}`);
  const { memory, at } = somePages(eal, n);
  const targets = Array.from({ length: n }, (_, i) => ({ va: at(i), length: PAGE }));
  if (memory.length < n) throw new Error('no memory');
  return { eal, device, at, target: (i) => targets[i] };
}

async function mappings({ n, each }: Round, iovas: Iovas): Promise<void> {
  const { eal, device, at, target } = await mapper(iovas, n);
  await using _stop = eal;
  const { domain } = device;
  const made = new Array<{ unmap(): void; readonly iova: number }>(n);
  await each('dmaMap', (i) => (made[i] = device.dmaMap(target(i))));
  await each('iovaOf', (i) => device.iovaOf(at(i)));
  const addresses = Float64Array.from(made, ({ iova }) => iova);
  await each('vaOf', (i) => domain?.vaOf(addresses[i]));
  await each('explain', (i) => device.explain(addresses[i]));
  await each('the same on one more device', (i) => device.dmaMap(target(i)).unmap());
  await each('unmap', (i) => made[i].unmap());
  await each('dmaMap again', (i) => device.dmaMap(target(i)));
  await each('dmaUnmap by address', (i) => device.dmaUnmap(target(i)));
}

/** Memory whose pages are in pieces for devices, as one mapping. */
async function runsOfOne({ n, each, all }: Round): Promise<void> {
  await using eal = await Eal.start(BARE);
  const device = await eal.probe('bench:one,iovas=any');
  const iovas = Float64Array.from({ length: n }, (_, i) => (i + 1) * 2 * PAGE);
  const memory = eal.external.allocate(n * PAGE, { source: 'anonymous', populate: false, iovas });
  let mapping: ReturnType<Device['dmaMap']> | undefined;
  await all('dmaMap', () => (mapping = device.dmaMap(memory)));
  await each('mapping.iovaOf', (i) => mapping?.iovaOf(memory.va + i * PAGE));
  await each('device.iovaOf', (i) => device.iovaOf(memory.va + i * PAGE));
  await all('unmap', () => mapping?.unmap());
}

async function lostMappings({ n, all }: Round): Promise<void> {
  const { eal, device, target } = await mapper('any', n);
  await using _stop = eal;
  for (let i = 0; i < n; i++) device.dmaMap(target(i));
  await all('remove of the device', async () => eal.remove(device));
}

async function devices({ n, each, eachAsync }: Round, more: string): Promise<void> {
  await using eal = await Eal.start(BARE);
  const found = new Array<Device>(n);
  await eachAsync('probe', async (i) => (found[i] = await eal.probe(`bench:${i},iovas=any${more}`)));
  await each('find', (i) => eal.find(`bench:${i}`));
  await eachAsync('remove', async (i) => eal.remove(found[i]));
}

async function manyDevices(eal: Eal, n: number): Promise<Device[]> {
  const found: Device[] = [];
  for (let i = 0; i < n; i++) found.push(await eal.probe(`bench:${i},iovas=any`));
  return found;
}

/** The first mapping of each device, which makes what its domain keeps books in; and the next. */
async function freshDevices({ n, each }: Round): Promise<void> {
  await using eal = await Eal.start(BARE);
  const found = await manyDevices(eal, n);
  const memory = eal.external.allocate(PAGE);
  const mappings = new Array<Disposable>(n);
  await each('first dmaMap', (i) => (mappings[i] = found[i].dmaMap(memory)));
  await each('unmap', (i) => mappings[i][Symbol.dispose]());
  await each('second dmaMap', (i) => found[i].dmaMap(memory));
}

async function groups({ n, each, all }: Round): Promise<void> {
  await using eal = await Eal.start(BARE);
  const found = await manyDevices(eal, n);
  const memory = eal.external.allocate(PAGE);
  let group: ReturnType<Eal['dmaMapAll']> | undefined;
  await all('dmaMapAll, a list', () => (group = eal.dmaMapAll(memory, found)));
  await each('of', (i) => group?.of(found[i]));
  await all('unmap, a list', () => group?.unmap());
  await all('dmaMapAll', () => (group = eal.dmaMapAll(memory)));
  await all('unmap', () => group?.unmap());
  await all('dmaMapAllAsync', async () => (group = await eal.dmaMapAllAsync(memory)));
  await all('unmapAsync', async () => group?.unmapAsync());
}

async function heapOnDevices({ n, all }: Round): Promise<void> {
  await using eal = await Eal.start(BARE);
  await manyDevices(eal, n);
  eal.heaps.create('bench');
  const memory = eal.external.allocate(PAGE);
  await all('addMemory', () => eal.heaps.addMemory('bench', memory));
  await all('removeMemory', () => eal.heaps.removeMemory('bench', { va: memory.va, length: PAGE }));
  await all('addMemoryAsync', async () => eal.heaps.addMemoryAsync('bench', memory));
  await all('removeMemoryAsync', async () => eal.heaps.removeMemoryAsync('bench', { va: memory.va, length: PAGE }));
}

// --- heaps, zones, blocks ---

async function heaps({ each }: Round): Promise<void> {
  await using eal = await Eal.start(BARE);
  await each('create', (i) => eal.heaps.create(`heap ${i}`));
  await each('find', (i) => eal.heaps.find(`heap ${i}`));
  await each('destroy', (i) => eal.heaps.destroy(`heap ${i}`));
}

async function zones({ n, each }: Round): Promise<void> {
  await using eal = await Eal.start(stocked(n * 64));
  await each('reserve', (i) => eal.zones.reserve(`zone ${i}`, 64));
  await each('find', (i) => eal.zones.find(`zone ${i}`));
  await each('free', (i) => eal.zones.free(`zone ${i}`));
}

/** Fills a heap with blocks, and frees every other one. @returns those that are left */
function fragment(eal: Eal, n: number, sizeOf: (i: number) => number): unknown {
  const all = Array.from({ length: 2 * n }, (_, i) => eal.malloc(i % 2 === 0 ? sizeOf(i / 2) : 64, { heap: 'bench' }));
  // What is left behind them is of no use to what is measured.
  const rest = eal.heaps.named('bench', 'bench').mallocLargest();
  for (let i = 0; i < 2 * n; i += 2) all[i].free();
  return [all, rest];
}

/** A heap with room for `bytes`, without a page of it. */
function emptyHeap(eal: Eal, bytes: number, iovas?: Float64Array): void {
  eal.heaps.create('bench');
  const length = Math.ceil(bytes / PAGE) * PAGE;
  eal.heaps.addMemory('bench', eal.external.allocate(length, { source: 'anonymous', populate: false, iovas }));
}

async function largestZones({ n, each }: Round): Promise<void> {
  await using eal = await Eal.start(BARE);
  emptyHeap(eal, n * 8 * KiB);
  const random = randomNumbers();
  const kept = fragment(eal, n, () => 4 * KiB + 64 * random(32));
  await each('reserve', (i) => eal.zones.reserve(`zone ${i}`, 0, { heap: 'bench' }));
  await each('statistics', () => eal.heaps.named('bench', 'bench').statistics());
  await each('free', (i) => eal.zones.free(`zone ${i}`));
  if (kept === undefined) throw new Error('nothing is kept');
}

async function blocks({ n, each }: Round, size: number): Promise<void> {
  await using eal = await Eal.start(stocked(n * size));
  const held = new Array<ReturnType<Eal['malloc']>>(n);
  const [heap] = eal.memory.heaps;
  await each('malloc', (i) => (held[i] = eal.malloc(size)));
  await each('blockAt', (i) => heap.blockAt(held[i].va + size / 2));
  await each('validate', (i) => heap.validate(held[i]));
  await each('statistics', () => heap.statistics());
  await each('free', (i) => held[i].free());
}

/** Pages in pairs that are contiguous for devices only at the last one. */
async function unsuitableBlocks({ n, each }: Round): Promise<void> {
  await using eal = await Eal.start(BARE);
  const spare = 4;
  const pages = 4 * (n + spare);
  // In four pages the first three, of which blocks are made, are in three places for a device; those of the last ones in one.
  const iovas = Float64Array.from({ length: pages }, (_, i) => (i < 4 * n ? i * 2 : pages * 2 + i) * PAGE + PAGE);
  emptyHeap(eal, pages * PAGE, iovas);
  const heap = eal.heaps.named('bench', 'bench');
  const all = Array.from({ length: 2 * (n + spare) }, (_, i) => heap.malloc(i % 2 === 0 ? 3 * PAGE : PAGE));
  for (let i = 2 * n; i < all.length; i += 2) all[i].free();
  for (let i = 0; i < 2 * n; i += 2) all[i].free();
  await each('contiguous', () => heap.malloc(2 * PAGE, { contiguous: true }).free());
  await each('contiguous, by turns with others', (i) => {
    heap.malloc(2 * PAGE, { contiguous: true }).free();
    heap.malloc(64 * (1 + (i % 64))).free();
  });
  const last = heap.malloc(2 * PAGE, { contiguous: true });
  await each('that there is no room for', (i) => {
    if (i % 100 !== 0) return;
    try {
      heap.malloc(3 * PAGE, { contiguous: true, align: 16 * PAGE, boundary: 16 * PAGE });
    } catch {
      // As expected.
    }
  });
  last.free();
}

/** Pages of the library's own, an extent each. */
async function extents({ n, all }: Round): Promise<void> {
  await using eal = await Eal.start({ ...BARE, memory: { matchAllocations: true, onNotice: () => undefined } });
  const held: ReturnType<Eal['malloc']>[] = [];
  await all('malloc of an extent', () => {
    for (let i = 0; i < n; i++) held.push(eal.malloc(PAGE));
  });
  // The last ones first: holes would need a mapping of the process each.
  await all('free of an extent', () => {
    for (let i = n - 1; i >= 0; i--) held[i].free();
  });
}

// --- pools ---

async function pool({ n, each, all }: Round): Promise<void> {
  await using eal = await Eal.start(stocked(n * 64));
  const device = await eal.probe('bench:one,iovas=any');
  let made: ReturnType<Eal['pools']['create']> | undefined;
  await all('create', () => (made = eal.pools.create({ elements: n, elementSize: 64 })));
  const pool = made;
  if (pool === undefined) throw new Error('no pool');
  const numbers = new Int32Array(n);
  await each('get', (i) => pool.get(numbers, 1, i));
  await each('bytes', (i) => pool.bytes(i));
  await each('put', (i) => pool.put(numbers, 1, i));
  await all('iovasFor', () => pool.iovasFor(device));
  await all('free', () => pool.free());
}

async function fragmentedPool({ n, all }: Round, sizeOf: (i: number) => number): Promise<void> {
  await using eal = await Eal.start(BARE);
  emptyHeap(eal, n * 24 * KiB);
  const kept = fragment(eal, n, sizeOf);
  const bytes = eal.heaps.named('bench', 'bench').statistics().free;
  let made: Disposable | undefined;
  const elements = Math.floor((bytes * 0.7) / (4 * KiB));
  await all('create', () => (made = eal.pools.create({ elements, elementSize: 4 * KiB, heap: 'bench' })));
  await all('free', () => made?.[Symbol.dispose]());
  if (kept === undefined) throw new Error('nothing is kept');
}

async function unevenPool(round: Round): Promise<void> {
  const random = randomNumbers();
  await fragmentedPool(round, () => 12 * KiB + 64 * random(128));
}

async function externalPool({ n, all }: Round): Promise<void> {
  await using other = await Eal.start(BARE);
  await using eal = await Eal.start(BARE);
  const { at } = somePages(other, n);
  const external = Array.from({ length: n }, (_, i) => eal.external.fromAddress(at(i), PAGE));
  let made: Disposable | undefined;
  await all('create', () => (made = eal.pools.create({ elements: 2 * n, elementSize: 2 * KiB, external })));
  await all('free', () => made?.[Symbol.dispose]());
}

async function pools({ n, each }: Round): Promise<void> {
  await using eal = await Eal.start(stocked(n * 2 * KiB));
  const made = new Array<Disposable>(n);
  await each('create', (i) => (made[i] = eal.pools.create({ name: `pool ${i}`, elements: 8, elementSize: 64 })));
  await each('find', (i) => eal.pools.find(`pool ${i}`));
  await each('free', (i) => made[i][Symbol.dispose]());
}

// --- the end ---

/** What there is of each kind, when the Eal stops. */
async function stopping({ n, all }: Round): Promise<void> {
  const fill: Record<string, (eal: Eal) => unknown> = {
    areas: (eal) => {
      const { at } = somePages(outer, n);
      for (let i = 0; i < n; i++) eal.external.fromAddress(at(i), PAGE);
    },
    'areas in a heap': (eal) => {
      const { at } = somePages(outer, n);
      eal.heaps.create('bench');
      for (let i = 0; i < n; i++) eal.heaps.addMemory('bench', { va: at(i), length: PAGE });
    },
    mappings: async (eal) => {
      const device = await eal.probe('bench:one,iovas=any');
      const { at } = somePages(eal, n);
      for (let i = 0; i < n; i++) device.dmaMap({ va: at(i), length: PAGE });
    },
    devices: async (eal) => manyDevices(eal, n),
    heaps: (eal) => {
      for (let i = 0; i < n; i++) eal.heaps.create(`heap ${i}`);
    },
    blocks: (eal) => {
      for (let i = 0; i < n; i++) eal.malloc(64);
    },
    zones: (eal) => {
      for (let i = 0; i < n; i++) eal.zones.reserve(`zone ${i}`, 64);
    },
    pools: (eal) => {
      for (let i = 0; i < n; i++) eal.pools.create({ elements: 1, elementSize: 64 });
    },
  };
  await using outer = await Eal.start(BARE);
  const stocks: Record<string, number | undefined> = { blocks: 64, zones: 64, pools: 2 * KiB };
  for (const [kind, make] of Object.entries(fill)) {
    const stock = stocks[kind];
    const eal = await Eal.start(stock === undefined ? BARE : stocked(n * stock));
    await make(eal);
    await all(`with ${kind}`, async () => eal.stop());
  }
}

// --- memory ---

async function heldMappings(count: number, iovas: Iovas): Promise<unknown> {
  const eal = await Eal.start(BARE);
  const device = await eal.probe(`bench:one,iovas=${iovas}`);
  const { at } = somePages(eal, count);
  const made: unknown[] = [];
  for (let i = 0; i < count; i++) made.push(device.dmaMap({ va: at(i), length: PAGE }));
  return [eal, made];
}

async function heldBlocks(count: number, size: number): Promise<unknown> {
  const eal = await Eal.start(stocked(count * size));
  const made: unknown[] = [];
  for (let i = 0; i < count; i++) made.push(eal.malloc(size));
  return [eal, made];
}

async function heldZones(count: number): Promise<unknown> {
  const eal = await Eal.start(stocked(count * 64));
  for (let i = 0; i < count; i++) eal.zones.reserve(`zone ${i}`, 64);
  return eal;
}

async function heldElements(count: number): Promise<unknown> {
  const eal = await Eal.start(stocked(count * 64));
  const device = await eal.probe('bench:one,iovas=any');
  const pool = eal.pools.create({ elements: count, elementSize: 64, cache: 256 });
  const numbers = new Int32Array(512);
  for (let i = 0; i < 2 * count; i += 512) if (pool.get(numbers, 512)) pool.put(numbers, 512);
  return [eal, device, pool];
}
