/** A whole life of memory and mappings, with its 1st, 2nd ... nth system call failing: nothing may be left behind. */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isDmaError, type ErrorCode } from '../errors.js';
import { AreaIndex } from '../memory/area-index.js';
import { External } from '../memory/external.js';
import { openPlatform } from '../platform/open.js';
import type { Platform } from '../platform/ports.js';
import { failingPlatform, trackingPlatform } from '../../test/fakes/platform/platforms.js';
import { alignUp } from '../units.js';
import { Bench, FakeSpace } from '../../test/fakes/dma/address-space.js';
import { Domain } from './domain.js';

const real = openPlatform();
const skip = real.limitation ?? false;
const PAGE = real.memory.pageSize;

const directory = mkdtempSync(join(tmpdir(), 'anydma-'));
after(() => rmSync(directory, { recursive: true }));
const path = join(directory, 'file');
writeFileSync(path, Buffer.alloc(3 * PAGE));

const spare = Buffer.alloc(3 * PAGE);
const from = skip === false ? alignUp(real.memory.addressOf(spare), PAGE) - real.memory.addressOf(spare) : 0;
const registered = spare.subarray(from, from + PAGE);

/** Allocates, opens, registers, maps, looks, cuts, unmaps and frees, in the synchronous form. */
function life(platform: Platform, external: External, domain: Domain): void {
  using owned = external.allocate(2 * PAGE, { label: 'owned' });
  using anonymous = external.allocate(PAGE, { source: 'anonymous', iovas: [0x5000] });
  const fd = platform.files.open(path, 'read-write');
  try {
    using file = external.fromFd(fd, { offset: PAGE });
    using buffer = external.register(registered);
    const va = platform.memory.map({ length: PAGE });
    try {
      using raw = external.fromAddress(va, PAGE);
      using first = domain.mapFor('d0', owned);
      using shared = domain.mapFor('d1', owned);
      using tabled = domain.mapFor('d0', anonymous);
      using ofFile = domain.mapFor('d0', file, { access: 'read' });
      using ofBuffer = domain.mapFor('d0', buffer);
      using ofRaw = domain.mapFor('d1', raw);
      for (const each of [owned, anonymous, file, raw]) each.bytes()[0] = 1;
      assert.equal(new Set([first, shared, tabled, ofFile, ofBuffer, ofRaw].map(({ iova }) => iova)).size, 5);
      domain.unmapFor('d0', { va: owned.va, length: owned.length });
    } finally {
      platform.memory.unmap(va, PAGE);
    }
  } finally {
    platform.files.close(fd);
  }
}

/** The same in the asynchronous form, in pieces. */
async function asyncLife(platform: Platform, external: External, domain: Domain): Promise<void> {
  using owned = external.allocate(4 * PAGE);
  const fd = platform.files.open(path, 'read-write');
  try {
    using file = external.fromFd(fd);
    await using first = await domain.mapForAsync('d0', owned, { chunkBytes: PAGE });
    await using second = await domain.mapForAsync('d1', file);
    owned.bytes()[0] = 1;
    assert.notEqual(first.iova, second.iova);
  } finally {
    platform.files.close(fd);
  }
}

/** A domain whose limits are asked of the platform, so that these calls can fail as well. */
function world(platform: Platform, asynchronous: boolean) {
  const areas = new AreaIndex();
  const space = new FakeSpace({ asynchronous, constraints: { pins: true } });
  const domain = new Domain({ name: 'domain', space, areas, limits: platform.limits });
  return { areas, space, domain, external: new External(platform, areas) };
}

function descriptors(): string[] {
  return readdirSync('/proc/self/fd');
}

for (const code of ['ENOMEM', 'EMFILE', 'EPERM'] as ErrorCode[])
  for (const asynchronous of [false, true])
    test(`each system call fails with ${code} (${asynchronous ? 'async' : 'sync'})`, { skip }, async () => {
      const before = descriptors().length;
      const names = new Set<string>();
      let steps = 0;
      for (let n = 1; ; n++) {
        const tracking = trackingPlatform(real);
        const platform = failingPlatform(tracking);
        const { areas, space, domain, external } = world(platform, asynchronous);
        platform.failCall(n, code);
        let error: unknown;
        try {
          if (asynchronous) await asyncLife(platform, external, domain);
          else life(platform, external, domain);
        } catch (thrown) {
          error = thrown;
        }
        assert.deepEqual([tracking.leaks(), areas.size, [...external]], [[], 0, []], `call ${n}`);
        assert.deepEqual([domain.entries, space.table, space.violations], [0, [], []], `call ${n}`);
        assert.equal(descriptors().length, before, `call ${n}`);
        const failed = platform.failed();
        if (failed === undefined) {
          assert.equal(error, undefined);
          break;
        }
        assert.ok(isDmaError(error, code), `call ${n}, ${failed}: ${String(error)}`);
        names.add(failed);
        steps++;
      }
      assert.ok(steps >= 8, `${steps} steps`);
      for (const name of ['memory.memfd', 'memory.map', 'files.duplicate', 'memory.view', 'limits.lockedMemory'])
        assert.ok(names.has(name), `${name} never failed: ${[...names].join(', ')}`);
    });

test('each space call fails, in each of its ways: what could not be undone is told, and stays on the books', async () => {
  const ways = ['EIO', { bytes: 0 }] as const;
  for (const asynchronous of [false, true])
    for (const call of ['map', 'unmap'] as const)
      for (const way of ways) {
        if (call === 'map' && way !== 'EIO') continue;
        for (let n = 1; ; n++) {
          const bench = new Bench({ asynchronous });
          const { space, domain } = bench;
          const area = bench.area(0x10000, 4, { iovas: [0x50000, 0x30000, 0x31000, 0x10000] });
          space.fail(call, n, way);
          let error: unknown;
          try {
            await using first = asynchronous
              ? await domain.mapForAsync('d0', { va: area.range.start, length: 4 * PAGE })
              : undefined;
            using second = asynchronous ? undefined : domain.mapFor('d0', { va: area.range.start, length: 4 * PAGE });
            assert.notEqual(first, second);
          } catch (thrown) {
            error = thrown;
          }
          assert.deepEqual(bench.differences(), []);
          if (space.calm() > 0) break;
          assert.ok(isDmaError(error, 'EIO'));
          if (call === 'map') assert.deepEqual([domain.entries, area.holders.size], [0, 0]);
          else assert.deepEqual([domain.entries > 0, area.holders.get('d0')], [true, 1]);
          assert.ok(n < 4);
        }
      }
});
