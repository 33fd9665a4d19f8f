/**
 * The library's own memory against DPDK's, where that is installed: the same operations, the same hugepages. DPDK clears
 * what is freed; the library clears nothing unless it is asked to, so that the larger a block is, the more that tells.
 *
 * Without hugepages, and without the right to reserve some for the time of the run, ordinary pages are measured.
 */
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { Eal, formatSize, GiB, KiB, MiB } from '../src/index.js';
import { ElementStack } from '../src/memory/pool/element-stack.js';
import { PoolCache } from '../src/memory/pool/pool-cache.js';
import { openPlatform } from '../src/platform/open.js';
import { hugePagesForTest } from '../test/shared/real-hugepages.js';
import { measure, timeWork, type Case, type Effort, type Result, type Rounds } from './harness/harness.js';
import { Peer } from './harness/peer.js';

/** Memory that both have from the start for blocks and pools, in bytes. */
const STOCK = 256 * MiB;
/** Sizes of blocks in bytes, and how many pairs of calls a round has. */
const BLOCKS = [
  { size: 64, count: 10_000 },
  { size: 4 * KiB, count: 10_000 },
  { size: 64 * KiB, count: 5000 },
  { size: MiB, count: 500 },
];
/** The pool of `peers/dpdk-memory.c`, and how many elements a call takes: bursts, and one by one. */
const POOL = {
  elements: 8192,
  cache: 256,
  bursts: [
    { burst: 32, count: 20_000 },
    { burst: 1, count: 100_000 },
  ],
};
/** At most so many times the time of DPDK. */
const POOL_GOAL = 3;
const PAGE = 2 * MiB;
/** Pages that a heap grows by in a round, one by one. */
const GROWTH = 64;
/** How much to have at the start, in bytes: the first that the machine has. */
const STARTS = [GiB, 512 * MiB, 256 * MiB];
/** Pages beyond what is measured: DPDK's own, and what it leaves over. */
const SPARE = 32;

/** Measures blocks, pools, growth and start-up. */
export async function benchMemory({ quick, progress }: Effort): Promise<Result[]> {
  const platform = openPlatform();
  if (platform.limitation !== undefined) {
    progress(`memory: left out, ${platform.limitation}`);
    return [];
  }
  const many = quick ? { warmUp: 10, measured: 21 } : { warmUp: 30, measured: 101 };
  const few = quick ? { warmUp: 1, measured: 5 } : { warmUp: 3, measured: 15 };

  progress('memory: blocks and pools in ordinary pages');
  const results = await benchBlocks(false, many);
  let reason: string | undefined;
  for (const size of STARTS) {
    const pages = hugePagesForTest(platform, Math.max(size, 2 * STOCK) / PAGE + SPARE);
    if (typeof pages === 'string') {
      reason = pages;
      continue;
    }
    try {
      progress('memory: blocks and pools in hugepages');
      results.push(...(await benchBlocks(true, many)));
      progress('memory: growth');
      results.push(...(await benchGrowth(few)));
      progress(`memory: start with ${formatSize(size)}`);
      results.push(...(await benchStart(size, few)));
    } finally {
      pages.giveBack();
    }
    return results;
  }
  progress(`memory: nothing in hugepages, ${reason ?? ''}`);
  return results;
}

/**
 * Starts the C program, and gives it an order.
 *
 * @returns the peer, which the caller closes; or the reason why there is none
 */
async function startPeer(order?: string): Promise<Peer | string> {
  const peer = Peer.start('dpdk-memory');
  if (typeof peer === 'string' || order === undefined) return peer;
  try {
    await peer.ask(order);
    return peer;
  } catch (error) {
    await peer[Symbol.asyncDispose]();
    return `DPDK does not start: ${String(error)}`;
  }
}

async function benchBlocks(huge: boolean, rounds: Rounds): Promise<Result[]> {
  const peer = await startPeer(`open ${huge ? 'huge' : 'no-huge'} ${STOCK / MiB}`);
  await using _closed = typeof peer === 'string' ? undefined : peer;
  await using eal = await Eal.start({ memory: huge ? { size: STOCK } : { size: STOCK, noHuge: true } });
  const pages = huge ? 'hugepages' : 'ordinary pages';
  const cases = BLOCKS.flatMap(({ size, count }) => {
    const what = `${formatSize(size)}, ${pages}`;
    const c = `rte_malloc + rte_free, ${what}`;
    const common = { unit: 'ns', count } as const;
    const fewer = count / 10;
    return [
      {
        ...common,
        ...against(peer, c),
        name: `malloc + free, ${what}`,
        round: () =>
          timeWork(() => {
            for (let i = 0; i < count; i++) eal.malloc(size).free();
          }),
      },
      {
        ...common,
        count: fewer,
        ...against(peer, c),
        name: `malloc + bytes + free, ${what}`,
        round: () =>
          timeWork(() => {
            for (let i = 0; i < fewer; i++) {
              const block = eal.malloc(size);
              block.bytes()[0] = 1;
              block.free();
            }
          }),
      },
      ...peerCase(peer, { ...common, name: c }, `pairs ${count} ${size}`),
    ];
  });
  const pools = POOL.bursts.flatMap(({ burst, count }) => poolCases(peer, pages, burst, count));
  return await measure([...cases, ...pools], rounds);
}

/** @param burst elements in a call @param count pairs of calls in a round */
function poolCases(peer: Peer | string, pages: string, burst: number, count: number): Case[] {
  const { elements, cache: size } = POOL;
  const cache = new PoolCache(ElementStack.create(elements), size);
  const taken = new Int32Array(burst);
  const c = `rte_mempool get + put of ${burst}, each, ${pages}`;
  const common = { unit: 'ns', count: count * burst } as const;
  const compared = { ...against(peer, c), ...(typeof peer === 'string' ? {} : { goal: POOL_GOAL }) };
  return [
    {
      ...common,
      ...compared,
      name: `pool get + put of ${burst}, each, ${pages}`,
      round: () =>
        timeWork(() => {
          for (let i = 0; i < count; i++) {
            if (!cache.get(taken, burst)) throw new Error('the pool is empty');
            cache.put(taken, burst);
          }
        }),
    },
    {
      ...common,
      ...compared,
      name: `pool get + put of ${burst} in place, each read, ${pages}`,
      round: () =>
        timeWork(() => {
          const { numbers } = cache;
          let sum = 0;
          for (let i = 0; i < count; i++) {
            const start = cache.getInPlace(burst);
            if (start < 0) throw new Error('the pool is empty');
            for (let at = start; at < start + burst; at++) sum += numbers[at];
            cache.putInPlace(cache.roomFor(burst), burst);
          }
          if (sum < 0) throw new Error('no numbers');
        }),
    },
    ...peerCase(peer, { ...common, name: c }, `pool ${count} ${burst}`),
  ];
}

/**
 * Growth of a heap in use, by blocks that fill a page each. DPDK has a header in the memory, for which it needs room. It
 * takes just what it needs, so the library is told to do that too.
 */
async function benchGrowth(rounds: Rounds): Promise<Result[]> {
  const peer = await startPeer('open huge 0');
  await using _closed = typeof peer === 'string' ? undefined : peer;
  const c = 'growth by a page of 2 MiB, DPDK';
  const common = { unit: 'us', count: GROWTH } as const;
  const round = async (): Promise<number> => {
    await using eal = await Eal.start({ memory: { pageSizes: [PAGE], matchAllocations: true } });
    const blocks = [eal.malloc(PAGE)];
    const ms = timeWork(() => {
      for (let i = 0; i < GROWTH; i++) blocks.push(eal.malloc(PAGE));
    });
    for (const block of blocks) block.free();
    return ms;
  };
  return await measure(
    [
      { ...common, ...against(peer, c), name: 'growth by a page of 2 MiB', round },
      ...peerCase(peer, { ...common, name: c }, `grow ${GROWTH} ${PAGE - 4 * KiB}`),
    ],
    rounds,
  );
}

/** In processes of their own. Not measured is what comes before: Node.js and loading the library, or the C program. */
async function benchStart(size: number, rounds: Rounds): Promise<Result[]> {
  const peer = await startPeer();
  await using _closed = typeof peer === 'string' ? undefined : peer;
  const program = fileURLToPath(new URL('./memory-start.js', import.meta.url));
  const c = `rte_eal_init with ${formatSize(size)}`;
  const common = { unit: 'us', count: 1 } as const;
  return await measure(
    [
      {
        ...common,
        ...against(peer, c),
        name: `Eal.start with ${formatSize(size)}`,
        round: () => Number(execFileSync(process.execPath, [program, String(size)], { encoding: 'utf8' })),
      },
      ...peerCase(peer, { ...common, name: c }, `start ${size / MiB}`),
    ],
    rounds,
  );
}

/** What a case of ours is compared with. */
function against(peer: Peer | string, name: string): Pick<Case, 'to' | 'note'> {
  return typeof peer === 'string' ? { note: peer } : { to: name };
}

/** The same in C, where there is DPDK. */
function peerCase(peer: Peer | string, common: Pick<Case, 'name' | 'unit' | 'count'>, order: string): Case[] {
  if (typeof peer === 'string') return [];
  return [{ ...common, round: async () => (await peer.ask(order))[0] / 1e6 }];
}
