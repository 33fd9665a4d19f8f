/**
 * Heaps over the user's memory. EM-Ann and EM-Bnn are the cases of DPDK's external_mem_autotest, groups A and B; those of
 * attaching and detaching (EM-A06, A07, A12, A13, A17, A18, A21, A22) are about secondary processes: see eal-secondaries.
 */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { throwsDma } from '../../../test/shared/errors.js';
import { isDmaError } from '../../errors.js';
import { briefStep } from '../../long-work.js';
import { openPlatform } from '../../platform/open.js';
import { failingPlatform, trackingPlatform } from '../../../test/fakes/platform/platforms.js';
import { KiB, MiB } from '../../units.js';
import type { Area } from '../area.js';
import { AreaIndex } from '../area-index.js';
import { External } from '../external.js';
import { Heaps } from './heaps.js';
import { MemoryHandlers } from '../memory-events.js';

const SKIP = { skip: openPlatform().limitation ?? false };
const BAD_NAMES = [null as never, '', 'a name of fifty-three bytes, which is twenty-two too many'];
const NAME = 'valid heap name';
const L = 4 * MiB;

function bench(platform = openPlatform(), mode: 'va' | 'pa' = 'va') {
  const areas = new AreaIndex();
  const reached = new Set<Area>();
  const log: string[] = [];
  const failing = { reach: false, release: false };
  const handlers = new MemoryHandlers();
  const heaps = new Heaps({
    platform,
    areas,
    handlers,
    iovaMode: () => mode,
    origins: false,
    native: () => [],
    reach: (wanted) => {
      log.push('reach');
      if (failing.reach) throw new Error('a device refuses');
      for (const area of wanted) reached.add(area);
      return briefStep(() => {
        log.push('release');
        if (failing.release) throw new Error('a device does not let go');
        for (const area of wanted) reached.delete(area);
      });
    },
    reachAsync: async () => assert.fail('not here'),
  });
  const external = new External(platform, areas);
  return { areas, heaps, external, reached, log, failing, handlers, P: platform.memory.pageSize };
}

for (const withTable of [true, false]) {
  describe(`external_mem_autotest, ${withTable ? 'with' : 'without'} an IOVA table`, SKIP, () => {
    const { heaps, external, areas, reached, P } = bench(openPlatform(), 'pa');
    const pages = L / P;
    const T = Array.from({ length: pages }, (_, i) => 2 ** 32 + i * P);
    const iovas = withTable ? T : undefined;
    const other = bench();
    const A = other.external.allocate(L, { source: 'anonymous' }).va;

    it('EM-A01 create with a bad name: EINVAL', () => {
      for (const name of BAD_NAMES) throwsDma('EINVAL', () => heaps.create(name));
    });
    it('EM-A02 destroy with a bad name: EINVAL', () => {
      for (const name of BAD_NAMES) throwsDma('EINVAL', () => heaps.destroy(name));
    });
    it('EM-A03 find with a bad name: EINVAL', () => {
      for (const name of BAD_NAMES) throwsDma('EINVAL', () => heaps.find(name));
    });
    it('EM-A04 addMemory with a bad name: EINVAL', () => {
      for (const name of BAD_NAMES) throwsDma('EINVAL', () => heaps.addMemory(name, { va: A, length: L, iovas }));
    });
    it('EM-A05 removeMemory with a bad name: EINVAL', () => {
      for (const name of BAD_NAMES) throwsDma('EINVAL', () => heaps.removeMemory(name, { va: A, length: L }));
    });
    it('EM-A08 destroy of a heap there is not: ENOENT', () => {
      throwsDma('ENOENT', () => heaps.destroy(NAME));
    });
    it('EM-A09 find of a heap there is not: ENOENT', () => {
      assert.equal(heaps.find(NAME), undefined);
    });
    it('EM-A10 addMemory to a heap there is not: ENOENT', () => {
      throwsDma('ENOENT', () => heaps.addMemory(NAME, { va: A, length: L, iovas }));
    });
    it('EM-A11 removeMemory from a heap there is not: ENOENT', () => {
      throwsDma('ENOENT', () => heaps.removeMemory(NAME, { va: A, length: L }));
    });
    it('EM-A14 create', () => {
      assert.equal(heaps.create(NAME).name, NAME);
    });
    it('EM-A15 addMemory of length 0: EINVAL', () => {
      throwsDma('EINVAL', () => heaps.addMemory(NAME, { va: A, length: 0 }));
    });
    it('EM-A16 removeMemory of length 0: EINVAL', () => {
      throwsDma('EINVAL', () => heaps.removeMemory(NAME, { va: A, length: 0 }));
    });
    it('EM-A19 addMemory at address 0: EINVAL', () => {
      throwsDma('EINVAL', () => heaps.addMemory(NAME, { va: 0, length: L }));
    });
    it('EM-A20 removeMemory at address 0: EINVAL', () => {
      throwsDma('EINVAL', () => heaps.removeMemory(NAME, { va: 0, length: L }));
    });
    if (withTable) {
      it('EM-A23 addMemory with a table of no pages: EINVAL', () => {
        throwsDma('EINVAL', () => heaps.addMemory(NAME, { va: A, length: L, iovas: [] }));
      });
      it('EM-A24 addMemory with a table that is one too short: EINVAL', () => {
        throwsDma('EINVAL', () => heaps.addMemory(NAME, { va: A, length: L, iovas: T.slice(1) }));
      });
      it('EM-A25 addMemory with a table that is one too long: EINVAL', () => {
        throwsDma('EINVAL', () => heaps.addMemory(NAME, { va: A, length: L, iovas: [0, ...T] }));
      });
    }
    it('EM-A26 destroy after all those failures', () => {
      heaps.destroy(NAME);
      assert.equal(areas.size, 0);
    });

    let id = 0;
    it('EM-B01 create', () => {
      id = heaps.create('heap').id;
    });
    it('EM-B02 its id is 256 or more, and not that of a heap before', () => {
      assert.equal(heaps.named('heap', 'test').id, id);
      assert.ok(id > 256);
    });
    it('EM-B03 there is nothing in an empty heap', () => {
      throwsDma('ENOMEM', () => heaps.named('heap', 'test').malloc(64, { align: 0 }));
    });
    it('EM-B04 addMemory', () => {
      heaps.addMemory('heap', { va: A, length: L, iovas });
      assert.equal(reached.size, 1, 'every device has it');
    });
    it('EM-B05, EM-B06 every page is of an area of the heap', () => {
      for (let page = 0; page < pages; page++) {
        const area = areas.at(A + page * P);
        assert.equal(area?.owner, 'heap');
        assert.ok(area.range.contains(A + page * P));
      }
    });
    it('EM-B07 the IOVA of every page is that of the table, or none', () => {
      const area = areas.at(A);
      assert.deepEqual(area?.iovas === undefined ? undefined : [...area.iovas], iovas);
    });
    it('EM-B08 to EM-B11, EM-B14 a block of it, and what it keeps from happening', () => {
      const heap = heaps.named('heap', 'test');
      const block = heap.malloc(64);
      assert.ok(block.va >= A && block.va + 64 <= A + L);
      assert.equal(block.iova, withTable ? T[0] + (block.va - A) : undefined);
      throwsDma('EBUSY', () => heaps.removeMemory('heap', { va: A, length: L }), /1 block of the heap heap/);
      throwsDma('EBUSY', () => heaps.destroy('heap'));
      assert.match(JSON.stringify([heap.statistics(), [...heap.memory]]), /"total":4194304/);
      block.free();
    });
    it('EM-B12, EM-B13 two pages, and two contiguous pages: with a table only, where addresses are physical', () => {
      const heap = heaps.named('heap', 'test');
      heap.malloc(2 * P).free();
      if (withTable) heap.malloc(2 * P, { contiguous: true }).free();
      else throwsDma('ENOMEM', () => heap.malloc(2 * P, { contiguous: true }));
      if (!withTable) {
        // Not so in DPDK: without a table an area is one mapping, which is contiguous for every device.
        const va = bench();
        const memory = va.external.allocate(L);
        va.heaps.create('heap');
        va.heaps.addMemory('heap', memory);
        assert.equal(va.heaps.named('heap', 'test').malloc(2 * P, { contiguous: true }).length, 2 * P);
        va.heaps.close();
        memory.unregister();
      }
    });
    it('EM-B15 removeMemory, once all is freed', () => {
      heaps.removeMemory('heap', { va: A, length: L });
      assert.equal(areas.size, 0);
      assert.equal(reached.size, 0);
    });
    it('EM-B16 destroy', () => {
      heaps.destroy('heap');
      assert.equal(heaps.find('heap'), undefined);
      for (const memory of [...external, ...other.external]) memory.unregister();
    });
  });
}

describe('heaps over the user’s memory', SKIP, () => {
  it('1.11.1, 1.11.2: names are unique, ids are new', () => {
    const { heaps } = bench();
    const a = heaps.create('a');
    const b = heaps.create('b');
    throwsDma('EEXIST', () => heaps.create('b'));
    heaps.destroy('a');
    throwsDma('EEXIST', () => heaps.create('b'), /already/);
    const again = heaps.create('a');
    assert.deepEqual([a.id, b.id, again.id], [256, 257, 258]);
    assert.deepEqual([...heaps], [b, again]);
    assert.equal(heaps.create('x'.repeat(31)).name.length, 31);
    throwsDma('EINVAL', () => heaps.create('ä'.repeat(16)), /1 to 31 bytes/);
  });

  it('the area is the heap’s, and the user’s again', () => {
    const { heaps, external } = bench();
    heaps.create('h');
    const memory = external.allocate(64 * KiB);
    memory.bytes().fill(7);
    heaps.addMemory('h', memory);
    assert.equal(memory.area.owner, 'heap');
    throwsDma('EBUSY', () => memory.unregister(), /in the heap h/);
    throwsDma('EEXIST', () => heaps.addMemory('h', memory), /in the heap h already/);
    heaps.create('other');
    throwsDma('EEXIST', () => heaps.addMemory('other', memory), /in the heap h already/);
    throwsDma('EEXIST', () => heaps.addMemory('other', { va: memory.va, length: 4096 }), /overlaps the heap area/);
    throwsDma(
      'ENOENT',
      () => heaps.removeMemory('other', { va: memory.va, length: memory.length }),
      /it has no memory/,
    );
    throwsDma('ENOENT', () => heaps.removeMemory('h', { va: memory.va, length: 4096 }), /it has: \[/);
    const block = heaps.named('h', 'test').malloc(64);
    assert.ok(
      block.bytes().every((byte) => byte === 7),
      'what was in it is kept',
    );
    block.free();
    heaps.removeMemory('h', { va: memory.va, length: memory.length });
    assert.equal(memory.area.owner, 'external');
    memory.unregister();
  });

  it('is cleared if that is wanted, once every device has it', () => {
    const { heaps, external, failing } = bench();
    heaps.create('h');
    const memory = external.allocate(64 * KiB);
    memory.bytes().fill(7);
    failing.reach = true;
    throwsDma('EIO', () => heaps.addMemory('h', memory, { clear: true }), /a device refuses/);
    assert.ok(memory.bytes().every((byte) => byte === 7));
    assert.equal(memory.area.owner, 'external');
    failing.reach = false;
    heaps.addMemory('h', memory, { clear: true });
    assert.ok(memory.bytes().every((byte) => byte === 0));
    heaps.close();
    memory.unregister();
  });

  it('may come from anywhere, if it can be written', () => {
    const { heaps, external, P } = bench();
    heaps.create('h');
    const platform = openPlatform();
    const whole = new Uint8Array(16 * P);
    const start = (P - (platform.memory.addressOf(whole) % P)) % P;
    const fd = platform.memory.memfd({ name: 'test', length: 8 * P });
    const sources = [
      external.allocate(8 * P),
      external.allocate(8 * P, { source: 'anonymous' }),
      external.register(whole.subarray(start, start + 8 * P)),
      external.fromFd(fd),
    ];
    for (const source of sources) heaps.addMemory('h', source);
    const heap = heaps.named('h', 'test');
    assert.equal(heap.total, 4 * 8 * P);
    const blocks = sources.map(() => heap.malloc(8 * P));
    blocks.forEach((block, n) => block.bytes().fill(n + 1));
    for (const { va, length, area } of sources) {
      const block = heap.blockAt(va);
      assert.equal(block?.length, length, 'they do not merge');
      assert.equal(block.area, area);
    }
    for (const block of blocks) block.free();
    for (const { va, length } of sources) heaps.removeMemory('h', { va, length });
    for (const source of sources) source.unregister();
    const readOnly = external.fromFd(fd, { writable: false });
    throwsDma('EACCES', () => heaps.addMemory('h', readOnly));
    readOnly.unregister();
    throwsDma('EINVAL', () => heaps.addMemory('h', readOnly), /not registered/);
    throwsDma('EINVAL', () => heaps.addMemory('h', bench().external.allocate(P)), /not registered/);
    throwsDma('EFAULT', () => heaps.addMemory('h', { va: 2 ** 46, length: P }));
    platform.files.close(fd);
  });

  it('1.11.10: all or nothing, when a device does not let go, or a handler', () => {
    const { heaps, external, failing, handlers, log } = bench();
    heaps.create('h');
    const memory = external.allocate(64 * KiB);
    heaps.addMemory('h', memory);
    failing.release = true;
    throwsDma('EIO', () => heaps.removeMemory('h', { va: memory.va, length: memory.length }), /does not let go/);
    const heap = heaps.named('h', 'test');
    heap.malloc(64 * KiB).free();
    assert.equal(memory.area.owner, 'heap');
    failing.release = false;
    const veto = handlers.add({
      shrink: () => {
        throw new Error('keep it');
      },
    });
    throwsDma('ECANCELED', () => heaps.removeMemory('h', { va: memory.va, length: memory.length }), /keep it/);
    heap.malloc(64 * KiB).free();
    veto[Symbol.dispose]();
    const told: string[] = [];
    handlers.add({
      shrink: ({ heap: name }) => void told.push(`shrink ${name}`),
      shrunk: ({ range }) => void told.push(`shrunk ${range.length}`),
    });
    log.length = 0;
    heaps.removeMemory('h', { va: memory.va, length: memory.length });
    assert.deepEqual(told, ['shrink h', 'shrunk 65536']);
    assert.deepEqual(log, ['release']);
    memory.unregister();
  });

  it('blocks end with their heaps', () => {
    const platform = trackingPlatform(openPlatform());
    const { heaps, external } = bench(platform);
    heaps.create('h');
    const memory = external.allocate(64 * KiB);
    const raw = bench();
    const more = raw.external.allocate(8192);
    heaps.addMemory('h', memory);
    heaps.addMemory('h', { va: more.va, length: 8192 });
    const block = heaps.named('h', 'test').malloc(64);
    const bytes = block.bytes();
    assert.deepEqual(heaps.close(), []);
    assert.equal(bytes.length, 0);
    assert.equal(block.live, false);
    memory.unregister();
    more.unregister();
    assert.deepEqual(platform.leaks(), []);
  });

  it('whichever system call fails, nothing is left', () => {
    for (let n = 1, done = false; !done; n++) {
      const tracking = trackingPlatform(openPlatform());
      const platform = failingPlatform(tracking);
      const { heaps, external } = bench(platform);
      const users = bench();
      const raw = users.external.allocate(8192);
      platform.failCall(n, 'ENOMEM');
      try {
        heaps.create('h');
        const memory = external.allocate(64 * KiB);
        heaps.addMemory('h', memory, { clear: true });
        heaps.addMemory('h', { va: raw.va, length: 8192 });
        const heap = heaps.named('h', 'test');
        const block = heap.calloc(4, 100);
        heap.realloc(block, 10_000, { zero: true }).bytes().fill(1);
        heaps.removeMemory('h', { va: raw.va, length: 8192 });
      } catch (error) {
        assert.ok(isDmaError(error), String(error));
      }
      done = platform.failed() === undefined;
      platform.failCall(0, 'EIO', 'none');
      assert.deepEqual(heaps.close(), []);
      for (const memory of external) memory.unregister();
      raw.unregister();
      assert.deepEqual(tracking.leaks(), [], `call ${n}`);
      assert.ok(n < 100);
    }
  });
});
