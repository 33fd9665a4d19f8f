/** Memory that the library owns, on a machine that seems to have hugepages; ME-nn are cases of DPDK's memory_autotest. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { throwsDma } from '../../../test/shared/errors.js';
import fc from 'fast-check';
import { DmaError, isDmaError } from '../../errors.js';
import { briefStep, type LongStep } from '../../long-work.js';
import { openPlatform } from '../../platform/open.js';
import type { Platform } from '../../platform/ports.js';
import { failingPlatform, trackingPlatform } from '../../../test/fakes/platform/platforms.js';
import { Range } from '../../ranges.js';
import { GiB, KiB, MiB, type Va } from '../../units.js';
import type { Area } from '../area.js';
import { AreaIndex } from '../area-index.js';
import type { Block } from '../heap/heap.js';
import { decideIovaMode } from '../iova-mode.js';
import { MemoryHandlers, type MemoryHandler } from '../memory-events.js';
import { memorySettings, type MemoryOptions } from './memory-settings.js';
import { OwnedMemory } from './owned.js';
import { poolOf, fakeHugePages, type FakePages } from '../../../test/fakes/memory/hugepages.js';

const SKIP = { skip: openPlatform().limitation ?? false };
const P2 = 2 * MiB;

interface BenchOptions {
  readonly pools?: readonly FakePages[];
  readonly options?: MemoryOptions;
  /** Between the hugepages and the machine. */
  readonly wrap?: (platform: Platform) => Platform;
}

function bench({ pools = [{ pageSize: P2, pages: [1000] }], options = {}, wrap = (p) => p }: BenchOptions = {}) {
  const tracking = trackingPlatform(openPlatform());
  const faked = fakeHugePages(tracking, pools);
  const platform = wrap(faked);
  const areas = new AreaIndex();
  const notices: string[] = [];
  const log: string[] = [];
  const reached = new Set<Area>();
  const failing = { reach: false, release: false };
  const reach = (wanted: readonly Area[]): LongStep => {
    log.push('reach');
    if (failing.reach) throw new DmaError({ code: 'ENOSPC', operation: 'map', reason: 'the device is full' });
    for (const area of wanted) reached.add(area);
    return briefStep(() => {
      log.push('release');
      if (failing.release) throw new DmaError({ code: 'EIO', operation: 'unmap', reason: 'the device is stuck' });
      for (const area of wanted) reached.delete(area);
    });
  };
  const memory = new OwnedMemory({
    idleMs: 0,
    platform,
    areas,
    settings: memorySettings({ onNotice: (text) => notices.push(text), ...options }),
    handlers: new MemoryHandlers(),
    decideIova: () =>
      decideIovaMode({ forced: options.iovaMode ?? 'va', votes: [], physicalAddresses: true, iommu: true }),
    reach,
    reachAsync: async (wanted) => reach(wanted),
  });
  /** Every page that is there can be reached, and the other way round. */
  const check = (): void => {
    assert.deepEqual(new Set(areas), reached);
    const total = [...areas].reduce((sum, { range }) => sum + range.length, 0);
    assert.equal(
      memory.heapsInUse.reduce((sum, heap) => sum + heap.total, 0),
      total,
    );
    const pages = memory.facts().lists.reduce((sum, list) => sum + list.pages * list.pageSize, 0);
    assert.equal(pages, total);
  };
  const close = (): void => {
    assert.deepEqual(memory.close(), []);
    assert.equal(areas.size, 0);
    assert.deepEqual(tracking.leaks(), []);
    pools.forEach(({ pageSize, pages }) =>
      pages.forEach((count, node) => assert.equal(faked.free.get(poolOf(pageSize, node)), count)),
    );
  };
  return { memory, areas, notices, log, reached, failing, free: faked.free, tracking, check, close };
}

/** Some turns of the event loop. */
async function turns(): Promise<void> {
  for (let i = 0; i < 5; i++) await new Promise((resolve) => setTimeout(resolve, 2));
}

async function turnsUntil(isSo: () => boolean): Promise<void> {
  for (let i = 0; i < 1000 && !isSo(); i++) await turns();
  assert.ok(isSo());
}

const extentsOf = ({ memory }: ReturnType<typeof bench>): number =>
  memory.facts().lists.reduce((sum, list) => sum + list.extents, 0);

describe('memory that the library owns', SKIP, () => {
  it('costs nothing until it is used', () => {
    const calls: ReturnType<typeof failingPlatform>[] = [];
    const made = bench({
      wrap: (platform) => {
        const counting = failingPlatform(platform);
        calls.push(counting);
        return counting;
      },
    });
    made.memory.start();
    assert.deepEqual(made.memory.facts(), { heaps: [], lists: [] });
    assert.deepEqual(made.tracking.leaks(), []);
    assert.equal(calls[0].calls(), 0);
    made.close();
  });

  it('ME-03: a block can be reached, and has no IOVA that is the same for every device', () => {
    const made = bench();
    const block = made.memory.malloc(100);
    assert.equal(block.iova, undefined);
    assert.equal(block.area.owner, 'owned');
    assert.equal(block.area.pageSize, P2);
    assert.equal(block.heap.name, 'socket_0');
    assert.equal(block.heap.id, 0);
    block.bytes().fill(3);
    assert.equal(made.memory.bytesAt((block.va + 99) as Va, 1)?.[0], 3);
    made.check();
    made.close();
    assert.equal(block.live, false);
  });

  it('300 live hugepages are in 12 extents at most', () => {
    const made = bench({ pools: [{ pageSize: 64 * KiB, pages: [320] }] });
    const blocks = Array.from({ length: 300 }, () => made.memory.malloc(64 * KiB));
    assert.ok(extentsOf(made) <= 12, String(extentsOf(made)));
    assert.equal(made.reached.size, extentsOf(made), 'one mapping each');
    made.check();
    for (const block of blocks) block.free();
    made.memory.trim();
    assert.equal(made.free.get(poolOf(64 * KiB)), 320);
    made.close();
  });

  it('takes the last page there is, and says so when there is none', () => {
    const made = bench({ pools: [{ pageSize: P2, pages: [5] }], options: { pageSizes: [P2] } });
    for (let n = 0; n < 5; n++) made.memory.malloc(P2);
    throwsDma('ENOMEM', () => made.memory.malloc(64), /10 MiB, 0 bytes of them free.*can not grow: not so many pages/);
    made.check();
    made.close();
  });

  it('survives that pages are gone in the moment they are taken', () => {
    const made = bench({ pools: [{ pageSize: P2, pages: [8] }], options: { pageSizes: [P2] } });
    made.memory.malloc(P2);
    const before = made.memory.facts();
    made.free.set(poolOf(P2), 0);
    throwsDma('ENOMEM', () => made.memory.malloc(P2));
    made.free.set(poolOf(P2), 7);
    assert.deepEqual(made.memory.facts(), before);
    made.memory.malloc(P2);
    made.close();
  });

  it('uses ordinary pages where there are no hugepages, and says so once', () => {
    const made = bench({ pools: [{ pageSize: P2, pages: [1] }] });
    made.memory.malloc(P2);
    assert.deepEqual(made.notices, []);
    assert.equal(made.memory.malloc(P2).area.pageSize, 4096);
    made.memory.malloc(8 * MiB);
    assert.equal(made.notices.length, 1);
    assert.match(made.notices[0], /no hugepages are free.*reserve some of 2 MiB/);
    throwsDma('ENOMEM', () => made.memory.malloc(64, { pageSizes: [GiB] }), /pages of 1 GiB are free/);
    made.close();
    const meant = bench({ pools: [], options: { noHuge: true } });
    assert.equal(meant.memory.malloc(64).area.pageSize, 4096);
    assert.deepEqual(meant.notices, []);
    meant.close();
  });

  it('goes by page sizes', () => {
    const made = bench({
      pools: [
        { pageSize: P2, pages: [100] },
        { pageSize: 64 * MiB, pages: [2] },
      ],
    });
    assert.equal(made.memory.malloc(64).area.pageSize, P2);
    assert.equal(made.memory.malloc(64, { pageSizes: [64 * MiB] }).area.pageSize, 64 * MiB);
    assert.equal(made.memory.malloc(64, { pageSizes: [32 * MiB], pageSizeHint: true }).area.pageSize, P2);
    assert.equal(made.memory.malloc(64 * MiB).area.pageSize, 64 * MiB, 'the largest that are filled');
    assert.equal(made.memory.malloc(64 * MiB).area.pageSize, P2, 'and others when there are no more');
    made.check();
    made.close();
  });

  it('1.3.2: limits of page sizes; 1.3.4: limits of nodes', () => {
    const limited = bench({
      pools: [{ pageSize: P2, pages: [100] }],
      options: { pageSizes: [P2], pageSizeLimits: [{ pageSize: P2, limit: 3 * P2 }] },
    });
    for (let n = 0; n < 3; n++) limited.memory.malloc(P2);
    throwsDma('ENOMEM', () => limited.memory.malloc(P2));
    limited.close();
    const none = bench({ options: { pageSizeLimits: [{ pageSize: P2, limit: 0 }] } });
    assert.equal(none.memory.malloc(64).area.pageSize, 4096);
    none.close();
    const numa = bench({ options: { numaLimit: [3 * P2] } });
    for (let n = 0; n < 3; n++) numa.memory.malloc(P2);
    throwsDma('ENOMEM', () => numa.memory.malloc(64), /numaLimit does not allow/);
    numa.close();
  });

  it('1.4.4, 1.4.5, MA-09: nodes', () => {
    const made = bench({ pools: [{ pageSize: P2, pages: [1, 2] }], options: { pageSizes: [P2] } });
    assert.equal(made.memory.malloc(P2, { node: 1 }).area.node, 1);
    assert.equal(made.memory.malloc(P2).heap.node, 0);
    assert.equal(made.memory.malloc(P2).heap.node, 1, 'any: where there is some');
    throwsDma('ENOMEM', () => made.memory.malloc(64, { node: 0 }), /socket_0/);
    throwsDma('EINVAL', () => made.memory.malloc(64, { node: 7 }), /the nodes are: 0, 1/);
    made.close();
  });

  it('no handler is called after it was closed, however much was about to go', async () => {
    const made = bench();
    const blocks = [made.memory.malloc(100 * P2), made.memory.malloc(150 * P2)];
    const told: string[] = [];
    made.memory.addHandler({
      grown: () => void told.push('grown'),
      shrink: () => void told.push('shrink'),
      shrunk: () => void told.push('shrunk'),
    });
    for (const block of blocks) block.free();
    made.close();
    await turns();
    assert.deepEqual(told, []);
  });

  describe('where a sandbox denies mbind', () => {
    const denied = (options: MemoryOptions = {}, pages = [1, 2]): ReturnType<typeof bench> =>
      bench({
        pools: [{ pageSize: P2, pages }],
        options,
        wrap: (platform) => {
          const bind = (): never => {
            throw new DmaError({ code: 'EPERM', operation: 'mbind', reason: 'denied', hint: 'give CAP_SYS_NICE' });
          };
          // The pretended pages come from node 0 unless they are bound.
          return { ...platform, memory: { ...platform.memory, bind } };
        },
      });

    it('memory on any node comes unbound, with one notice', async () => {
      const made = denied();
      const block = made.memory.malloc(P2);
      assert.deepEqual([block.heap.name, block.heap.node, block.area.node], ['socket_any', -1, -1]);
      assert.equal(block.area.pageSize, P2);
      const more = await made.memory.mallocAsync(8 * P2);
      assert.equal(made.notices.length, 2, made.notices.join());
      assert.match(made.notices[0], /any NUMA node.*denied \(give CAP_SYS_NICE\)/);
      assert.match(made.notices[1], /no hugepages are free/);
      block.free();
      more.free();
      made.close();
    });

    it('a node that was asked for stays EPERM, before and after', async () => {
      const made = denied();
      for (let n = 0; n < 2; n++) {
        throwsDma('EPERM', () => made.memory.malloc(64, { node: 0 }), /malloc.*CAP_SYS_NICE/s);
        await assert.rejects(made.memory.mallocAsync(64, { node: 1 }), { code: 'EPERM', operation: 'mallocAsync' });
        throwsDma('EINVAL', () => made.memory.malloc(64, { node: 7 }), /the nodes are: 0, 1/);
        throwsDma('EINVAL', () => made.memory.malloc(64, { node: -1 }), /the nodes are: 0, 1/);
        made.memory.malloc(64).free();
      }
      made.close();
      for (const options of [{ numaMem: [P2] }, { numaLimit: [0, P2] }]) {
        const asked = denied(options);
        throwsDma('EPERM', () => asked.memory.start(), /Eal\.start.*CAP_SYS_NICE/s);
        asked.close();
      }
    });

    it('where there is one node nothing is tried, and nothing told', () => {
      const made = denied({ noHuge: true }, [1]);
      assert.deepEqual(
        made.memory.heaps.map(({ name }) => name),
        ['socket_0'],
      );
      assert.deepEqual(made.notices, []);
      made.close();
    });
  });

  it('1.3.3: what is taken at the start stays, and is grown beyond', () => {
    const made = bench({ options: { size: 5 * MiB } });
    made.memory.start();
    assert.equal(made.memory.heaps[0].total, 6 * MiB);
    assert.equal(extentsOf(made), 2, 'what fits in one piece is in one');
    const block = made.memory.malloc(4 * MiB);
    const more = made.memory.malloc(4 * MiB);
    block.free();
    more.free();
    made.memory.trim();
    assert.equal(made.memory.heaps[0].total, 6 * MiB);
    made.close();
    const nodes = bench({ pools: [{ pageSize: P2, pages: [4, 4] }], options: { numaMem: [0, 4 * MiB] } });
    nodes.memory.start();
    assert.deepEqual(
      nodes.memory.heaps.map((heap) => heap.total),
      [0, 4 * MiB],
    );
    nodes.close();
    const mixed = bench({
      pools: [
        { pageSize: P2, pages: [4] },
        { pageSize: 16 * MiB, pages: [2] },
      ],
      options: { size: 36 * MiB },
    });
    mixed.memory.start();
    assert.equal(mixed.memory.heaps[0].total, 36 * MiB);
    mixed.close();
    const ordinary = bench({ pools: [], options: { noHuge: true, size: 3 * MiB + 1 } });
    ordinary.memory.start();
    assert.equal(ordinary.memory.heaps[0].total, 3 * MiB + 4 * KiB);
    ordinary.close();
    const tooMuch = bench({ pools: [{ pageSize: P2, pages: [3] }], options: { size: 8 * MiB, pageSizes: [P2] } });
    throwsDma('ENOMEM', () => tooMuch.memory.start(), /2 MiB of the 8 MiB/);
    tooMuch.close();
    throwsDma('EINVAL', () => bench({ options: { numaMem: [0, 0] } }).memory.start(), /2 NUMA nodes were given/);
    throwsDma('EINVAL', () => bench({ options: { hugeDir: '/nowhere' } }).memory.start(), /no hugetlbfs is mounted/);
  });

  it('gives back what nobody uses a while later, but for what became empty last', async () => {
    const made = bench();
    const blocks = [1, 1, 2, 4].map((pages) => made.memory.malloc(pages * P2));
    // Also when it is on its way back, and in no heap any more.
    const total = (): number => made.memory.facts().lists.reduce((sum, { pages }) => sum + pages, 0);
    assert.equal(total(), 8);
    blocks[3].free();
    blocks[3] = made.memory.malloc(4 * P2);
    assert.equal(total(), 8, 'used again');
    blocks[3].free();
    blocks[2].free();
    assert.equal(total(), 8, 'not in the call that frees');
    await turnsUntil(() => total() === 4);
    blocks[1].free();
    blocks[0].free();
    await turnsUntil(() => total() === 1);
    await turns();
    assert.equal(total(), 1, 'kept');
    made.check();
    assert.equal(made.memory.trim(), P2);
    assert.equal(total(), 0);
    assert.equal(made.memory.trim(), 0);
    made.close();
  });

  it('keeps what is out of proportion only for who wants as much again at once', async () => {
    const made = bench();
    // Also when it is on its way back, and in no heap any more.
    const total = (): number => made.memory.facts().lists.reduce((sum, { pages }) => sum + pages, 0);
    made.memory.malloc(100 * P2).free();
    const takes = made.log.length;
    for (let i = 0; i < 10; i++) made.memory.malloc(100 * P2).free();
    assert.equal(made.log.length, takes, 'no page came or went');
    await turnsUntil(() => total() === 0);
    made.check();
    const used = made.memory.malloc(100 * P2);
    used.free();
    const again = made.memory.malloc(60 * P2);
    await turns();
    assert.equal(total(), 100, 'a part that is used stays');
    again.free();
    const larger = made.memory.malloc(900 * P2 + 64);
    assert.equal(total(), 901, 'what nobody uses is no reason to have less room');
    larger.free();
    assert.equal(made.memory.trim(), 901 * P2, 'at once for who asks for it');
    made.check();
    made.close();
  });

  it('with matchAllocations takes what is needed, and gives it back with the allocation', () => {
    const made = bench({ options: { matchAllocations: true } });
    const blocks = Array.from({ length: 5 }, () => made.memory.malloc(P2 + 64));
    assert.equal(made.memory.heaps[0].total, 10 * P2);
    for (const block of blocks) block.free();
    assert.equal(made.memory.heaps[0].total, 0);
    made.close();
  });

  it('what is gone can not be looked at', () => {
    const made = bench({ options: { matchAllocations: true } });
    const block = made.memory.malloc(P2);
    const { va } = block;
    const shared = made.memory.bytesAt(va, 64);
    assert.equal(shared?.length, 64);
    block.free();
    assert.equal(shared.length, 0);
    assert.equal(made.memory.bytesAt(va, 64), undefined);
    made.close();
  });

  it('a device that does not take it: nothing has happened', () => {
    const made = bench();
    const first = made.memory.malloc(64);
    const before = JSON.stringify(made.memory.facts());
    const freePages = made.free.get(poolOf(P2));
    made.failing.reach = true;
    throwsDma('ENOMEM', () => made.memory.malloc(P2), /the device is full/);
    assert.equal(JSON.stringify(made.memory.facts()).replace(/,\{"kind":"memfd","pageSize":4096.*?\}/, ''), before);
    assert.equal(made.free.get(poolOf(P2)), freePages);
    made.failing.reach = false;
    made.memory.malloc(P2);
    first.free();
    made.check();
    made.close();
  });

  it('a device that does not let go: the memory stays, and works', () => {
    const made = bench({ options: { matchAllocations: true } });
    const block = made.memory.malloc(P2);
    made.failing.release = true;
    block.free();
    assert.match(made.notices.join(), /could not be given back.*the device is stuck/);
    made.check();
    made.failing.release = false;
    const again = made.memory.malloc(P2);
    assert.equal(again.va, block.va);
    again.bytes().fill(1);
    again.free();
    assert.equal(made.memory.heaps[0].total, 0);
    made.close();
  });

  it('handlers: before and after, refusing, and what they may do', () => {
    const made = bench({ options: { matchAllocations: true, pageSizes: [P2] } });
    const told: string[] = [];
    let refuse: string | undefined;
    const note = (what: 'grow' | 'grown' | 'shrink' | 'shrunk'): MemoryHandler => ({
      [what]: ({ range, heap }: { range: Range; heap: string }) => {
        told.push(`${what} ${range.length / P2} ${made.reached.size} ${heap}`);
        if (refuse === what) throw new Error('not now');
      },
    });
    for (const what of ['grow', 'grown', 'shrink', 'shrunk'] as const) made.memory.addHandler(note(what));
    const block = made.memory.malloc(P2);
    assert.deepEqual(told.splice(0), ['grow 1 0 socket_0', 'grown 1 1 socket_0']);
    refuse = 'shrink';
    block.free();
    assert.deepEqual(told.splice(0), ['shrink 1 1 socket_0', 'grown 1 1 socket_0'], 'it stays');
    assert.equal(made.memory.heaps[0].total, P2);
    assert.deepEqual(made.notices, []);
    refuse = undefined;
    assert.equal(made.memory.trim(), P2);
    assert.deepEqual(told.splice(0), ['shrink 1 1 socket_0', 'shrunk 1 0 socket_0']);
    refuse = 'grow';
    throwsDma('ENOMEM', () => made.memory.malloc(P2), /a handler refused: not now/);
    refuse = undefined;
    made.check();
    let inside: unknown;
    const handler = made.memory.addHandler({
      grow: () => {
        try {
          made.memory.malloc(64);
        } catch (error) {
          inside = error;
        }
      },
    });
    made.memory.malloc(64);
    assert.ok(isDmaError(inside, 'EBUSY'), String(inside));
    handler[Symbol.dispose]();
    made.close();
  });

  it('validators: named in the error, and the smaller wish may pass', () => {
    const made = bench({ options: { pageSizes: [P2] } });
    const small = made.memory.addValidator({ name: 'at most two pages', allows: ({ bytes }) => bytes <= 2 * P2 });
    for (let n = 0; n < 9; n++) made.memory.malloc(P2);
    throwsDma('ENOMEM', () => made.memory.malloc(3 * P2), /at most two pages does not allow 6 MiB more on node 0/);
    small[Symbol.dispose]();
    made.memory.malloc(3 * P2);
    made.close();
  });

  it('in physical mode each page has its own address, and ordinary pages will not do', () => {
    // Neighbours two by two.
    const frames = (_va: Va, pageSize: number, count: number): Float64Array =>
      Float64Array.from({ length: count }, (_, n) => 2 ** 32 + (Math.floor(n / 2) * 3 + (n % 2)) * pageSize);
    const wrap = (platform: Platform): Platform => ({
      ...platform,
      memory: { ...platform.memory, frames, lock: () => undefined },
    });
    const made = bench({ wrap, options: { iovaMode: 'pa' }, pools: [{ pageSize: P2, pages: [20] }] });
    const block = made.memory.malloc(4 * P2);
    assert.equal(block.iova, undefined, 'it is in pieces');
    assert.equal(block.area.iovaAt(block.va), 2 ** 32);
    const pair = made.memory.malloc(2 * P2, { contiguous: true });
    assert.equal((pair.iova ?? 0) % P2, 0);
    const { free } = made;
    const before = free.get(poolOf(P2));
    throwsDma('ENOMEM', () => made.memory.malloc(3 * P2, { contiguous: true }), /not contiguous/);
    assert.equal(free.get(poolOf(P2)), before, 'what was no help is given back');
    assert.equal(made.memory.iova.mode, 'pa');
    made.close();
    const ordinary = bench({ wrap, options: { iovaMode: 'pa' }, pools: [] });
    throwsDma('ENOMEM', () => ordinary.memory.malloc(64));
    ordinary.close();
  });

  it('many lists, when one is full', () => {
    const made = bench({ pools: [], options: { noHuge: true, matchAllocations: false } });
    const blocks = [100, 100].map((size) => made.memory.malloc(size * MiB));
    assert.equal(made.memory.facts().lists.length, 2);
    made.check();
    for (const block of blocks) block.free();
    made.close();
  });

  it('whichever system call fails, nothing is left', () => {
    for (const options of [{}, { matchAllocations: true }, { size: 3 * MiB }] as MemoryOptions[]) {
      for (let n = 1, done = false; !done; n++) {
        const failing: { platform?: ReturnType<typeof failingPlatform> } = {};
        const made = bench({
          pools: [{ pageSize: P2, pages: [6] }],
          options: { ...options, pageSizes: [P2] },
          wrap: (platform) => (failing.platform = failingPlatform(platform)),
        });
        const { platform } = failing;
        assert.ok(platform !== undefined);
        platform.failCall(n, 'ENOMEM');
        try {
          made.memory.start();
          const blocks = [made.memory.malloc(64), made.memory.malloc(P2), made.memory.malloc(2 * P2)];
          blocks[1].bytes().fill(1);
          for (const block of blocks) block.free();
          made.memory.trim();
        } catch (error) {
          assert.ok(isDmaError(error), String(error));
        }
        done = platform.failed() === undefined;
        platform.failCall(0, 'EIO', 'none');
        made.check();
        made.close();
        assert.ok(n < 300);
      }
    }
  });

  it('grows and shrinks like a naive model of it', () => {
    const step = fc.tuple(
      fc.constantFrom('malloc', 'malloc', 'free', 'free', 'trim', 'refuse'),
      fc.nat(5 * MiB),
      fc.nat(99),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 50 }), fc.boolean(), (steps, matchAllocations) => {
        const made = bench({
          pools: [{ pageSize: P2, pages: [12] }],
          options: { pageSizes: [P2], matchAllocations },
        });
        const live: Block[] = [];
        for (const [what, size, which] of steps) {
          made.failing.reach = what === 'refuse';
          if (what === 'malloc' || what === 'refuse') {
            try {
              const block = made.memory.malloc(size + 1);
              block.bytes(size, 1)[0] = 1;
              const range = new Range(block.va, block.length);
              assert.ok(!live.some((other) => range.overlaps(new Range(other.va, other.length))));
              live.push(block);
            } catch (error) {
              assert.ok(isDmaError(error, 'ENOMEM'), String(error));
              // There was really no room: no free page in one piece, and not enough new ones.
              const left = what === 'refuse' ? 0 : (made.free.get(poolOf(P2)) ?? 0);
              assert.ok(made.memory.heaps[0].statistics().greatestFree <= size);
              assert.ok(left * P2 <= size);
            }
          } else if (what === 'free' && live.length > 0) live.splice(which % live.length, 1)[0].free();
          else if (what === 'trim') made.memory.trim();
          made.check();
          const used = live.reduce((sum, { length }) => sum + Math.ceil(length / 64) * 64, 0);
          assert.equal(made.memory.heaps[0].statistics().allocated, used);
        }
        for (const block of live) block.free();
        made.memory.trim();
        assert.equal(made.free.get(poolOf(P2)), 12);
        made.close();
      }),
      { numRuns: 60 },
    );
  });

  it('100 KiB blocks share pages', () => {
    const made = bench();
    for (let n = 0; n < 20; n++) made.memory.malloc(100 * KiB);
    assert.equal(made.memory.heaps[0].total, P2);
    made.close();
  });
});
