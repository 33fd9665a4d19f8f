/**
 * From an address to its key, per look-up, on the data path of a queue; against what mlx5 of DPDK and SPDK do, in C
 * (peers/mr-cache.c). One page is registered in each of so many places with gaps between them. The library and SPDK look at
 * the whole of an I/O of 512 bytes, mlx5 at its first byte. `keysOf` is the other way to have keys: by the number of an
 * element of a pool, which has one element a region here.
 *
 * And what it costs to register the memory of a pool of up to 64 GiB, in hugepages, of which only the addresses are there.
 */
import { dmaMapPool, type MappablePool, type PoolMapping } from '../src/bus/map-pool.js';
import { Domain } from '../src/dma/domain.js';
import { KeyCache } from '../src/dma/key-cache.js';
import { TranslationTable } from '../src/dma/translation-table.js';
import { formatSize, GiB, KiB, MiB, Range, type Va } from '../src/index.js';
import type { AddressSpace, Constraints, MapKeys, Segment } from '../src/entry/driver.js';
import { Area } from '../src/memory/area.js';
import { AreaIndex } from '../src/memory/area-index.js';
import { ADDRESSES, areaStarts, randomNumbers } from './harness/areas.js';
import { measure, timeWork, type Case, type Effort, type Result } from './harness/harness.js';
import { Peer } from './harness/peer.js';
import type { MemoryPart } from '../src/memory/part.js';

const REGION_COUNTS = [1, 64, 1_000, 100_000];
/** `hot`: nine of ten addresses are in eight of the regions, as many as mlx5 has in front of its sorted table. */
const ORDERS = ['sequential', 'random', 'hot'] as const;
/** How many regions are hot, and bytes of an I/O; the peer has these numbers too. */
const HOT = 8;
const IO = 512;

/** Sizes of pools in bytes, and where they begin. */
const POOLS = [4 * GiB, 16 * GiB, 64 * GiB];
const POOL_BASE = 2 ** 45;
const HUGE = 2 * MiB;

type Order = (typeof ORDERS)[number];

/** Measures look-ups, and registering pools. */
export async function benchLkey({ quick, progress }: Effort): Promise<Result[]> {
  const peer = Peer.start('mr-cache');
  await using _closed = typeof peer === 'string' ? undefined : peer;
  const results: Result[] = [];
  for (const page of [2 * MiB, 4 * KiB]) {
    progress(`lkey: regions of ${page / KiB} KiB`);
    const cases = REGION_COUNTS.flatMap((regions) => {
      const starts = areaStarts(page, regions);
      const table = new TranslationTable();
      starts.forEach((va, i) => table.add(va, page, va, i + 1));
      return ORDERS.flatMap((order) => casesOf(peer, table, starts, page, order, quick ? 2 : 4));
    });
    results.push(...(await measure(cases, quick ? { warmUp: 10, measured: 9 } : { warmUp: 20, measured: 31 })));
  }
  progress('lkey: registering pools');
  const pools = POOLS.flatMap((size) => [poolCase(size, true), poolCase(size, false)]);
  results.push(...(await measure(pools, quick ? { warmUp: 2, measured: 5 } : { warmUp: 4, measured: 15 })));
  return results;
}

/** The library's cases, and those of the peer if there is one. */
function casesOf(
  peer: Peer | string,
  table: TranslationTable,
  starts: Float64Array,
  page: number,
  order: Order,
  passes: number,
): Case[] {
  const what = `${page === 4 * KiB ? '4 KiB' : '2 MiB'} regions, ${starts.length.toLocaleString('en')}, ${order}`;
  const { regions, addresses } = traceOf(starts, page, order);
  const expected = regions.reduce((sum, region) => sum + region + 1, 0);
  const check = (sum: number, who: string): void => {
    if (sum !== expected) throw new Error(`${who}, ${what}: the sum of the keys is ${sum}, not ${expected}`);
  };
  const unit = 'ns';
  const count = passes * ADDRESSES;
  const ours = (who: string, more: Partial<Case>, sumOf: () => number): Case => ({
    ...more,
    name: `${who}, ${what}`,
    unit,
    count,
    round: () => {
      let sum = 0;
      const ms = timeWork(() => {
        for (let pass = 0; pass < passes; pass++) sum = sumOf();
      });
      check(sum, who);
      return ms;
    },
  });
  const cache = new KeyCache({ device: 'a device', table });
  const pool = { name: 'a pool', vas: starts, headroom: 0, elementSize: page, live: true };
  const [keyOf, keysOf, mlx5, spdk] = ['keyOf', 'keysOf', 'mlx5 in C', 'SPDK in C'];
  const to = (who: string): Partial<Case> => (typeof peer === 'string' ? { note: peer } : { to: `${who}, ${what}` });
  const own = [
    ours(keyOf, to(spdk), () => sumOfKeys(cache, addresses)),
    ours(keysOf, to(spdk), () => sumOfElements(cache.keysOf(pool), regions)),
  ];
  if (typeof peer === 'string') return own;
  const theirs = (who: string, more: Partial<Case>): Case => ({
    ...more,
    name: `${who}, ${what}`,
    unit,
    count,
    round: async () => {
      const [ns, sum] = await peer.ask(`${who === mlx5 ? 'mlx5' : 'spdk'} ${page} ${starts.length} ${order} ${passes}`);
      check(sum, who);
      return ns / 1e6;
    },
  });
  return [...own, theirs(spdk, {}), theirs(mlx5, to(keyOf))];
}

/** What is measured. */
function sumOfKeys(cache: KeyCache, addresses: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < addresses.length; i++) sum += cache.keyOf(addresses[i], IO);
  return sum;
}

/** What is measured. */
function sumOfElements(keys: Uint32Array, elements: Int32Array): number {
  let sum = 0;
  for (let i = 0; i < elements.length; i++) sum += keys[elements[i]];
  return sum;
}

/** Addresses of I/Os, and the region of each: `sequential` goes through all regions once, upwards. */
function traceOf(starts: Float64Array, page: number, order: Order): { addresses: Float64Array; regions: Int32Array } {
  const addresses = new Float64Array(ADDRESSES);
  const regions = new Int32Array(ADDRESSES);
  const random = randomNumbers();
  for (let i = 0; i < ADDRESSES; i++) {
    if (order === 'sequential') regions[i] = Math.floor((i * starts.length) / ADDRESSES);
    else if (order === 'hot' && random(10) > 0) regions[i] = Math.floor((random(HOT) * starts.length) / HOT);
    else regions[i] = random(starts.length);
    addresses[i] = starts[regions[i]] + random(page - IO + 1);
  }
  return { addresses, regions };
}

/**
 * A pool of so many bytes, in a domain that does nothing but the books: one area, cut into a chunk a hugepage, as pools are
 * where addresses of devices are not known; or an area for each hugepage, with gaps between them.
 */
function poolCase(size: number, adjacent: boolean): Case {
  const pages = size / HUGE;
  const areas = new AreaIndex();
  const add = (va: number, length: number): void =>
    areas.add(new Area({ range: new Range(va as Va, length), pageSize: HUGE, owner: 'external', label: 'pages' }));
  const step = adjacent ? HUGE : 2 * HUGE;
  if (adjacent) add(POOL_BASE, size);
  else for (let page = 0; page < pages; page++) add(POOL_BASE + page * step, HUGE);
  const chunks = Array.from({ length: pages }, (_, page) => {
    return { va: (POOL_BASE + page * step) as Va, length: HUGE, iova: undefined, count: 1 };
  });
  const pool: MappablePool = { name: 'a pool', forDevices: true, live: true, chunks };
  const limits = { lockedMemory: () => ({ limit: Infinity, used: 0 }) };
  const what = adjacent ? 'adjacent' : 'with gaps';
  return {
    name: poolName(size, what),
    unit: 'ns',
    count: pages,
    ...(size > POOLS[0] ? { to: poolName(POOLS[0], what) } : {}),
    round: () => {
      const domain = new Domain({ name: 'a domain', space: new NoSpace(), areas, limits });
      const device = { name: 'a device', dmaMap: (target: MemoryPart) => domain.mapFor('a device', target) };
      let mapping: PoolMapping | undefined;
      const ms = timeWork(() => (mapping = dmaMapPool(device, pool, areas)));
      const expected = adjacent ? 1 : pages;
      if (mapping?.mappings.length !== expected || domain.bytes !== size) throw new Error(`${what}: not all is mapped`);
      return ms;
    },
  };
}

function poolName(size: number, what: string): string {
  return `dmaMapPool, ${formatSize(size)} of 2 MiB pages, ${what}, a page`;
}

/** A protection domain that gives out keys, and does nothing else. */
class NoSpace implements AddressSpace {
  readonly kind = 'verbs';
  readonly constraints: Constraints = {
    granule: 4 * KiB,
    windows: [],
    entryLimit: Infinity,
    iova: 'ignored',
    partialUnmap: false,
    pins: true,
  };
  #keys = 0;

  map(): MapKeys {
    const key = ++this.#keys;
    return { lkey: key, rkey: key };
  }

  unmap({ length }: Segment): number {
    return length;
  }

  close(): void {
    this.#keys = 0;
  }
}
