import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isDmaError } from '../../errors.js';
import { openPlatform } from '../../platform/open.js';
import type { Platform } from '../../platform/ports.js';
import { failingPlatform, trackingPlatform } from '../../../test/fakes/platform/platforms.js';
import { AreaIndex } from '../area-index.js';
import { anonymousPages, memfdPages } from './page-source.js';
import { SegmentList } from './segment-list.js';

const SKIP = { skip: openPlatform().limitation ?? false };
const P = openPlatform().memory.pageSize;
const PAGES = 64;

function listOn(platform: Platform, areas = new AreaIndex(), physical = false): SegmentList {
  const source = memfdPages(platform, { pageSize: P, pages: PAGES });
  return new SegmentList({ platform, areas, source, pages: PAGES, physical, sameIova: false });
}

describe('a list of pages', SKIP, () => {
  it('takes addresses at once, and memory as it is wanted', () => {
    const platform = trackingPlatform(openPlatform());
    const areas = new AreaIndex();
    const list = listOn(platform, areas);
    assert.equal(list.reserved.length, PAGES * P);
    assert.equal(platform.memory.protection(list.reserved.start, P), 'none');
    assert.equal(areas.size, 0);
    const extent = list.take(3);
    assert.ok(extent !== undefined);
    assert.equal(extent.range.length, 3 * P);
    assert.equal(extent.dirty, false);
    assert.equal(list.pages, 3);
    assert.equal(areas.at(extent.range.start), extent.areas[0]);
    assert.equal(areas.at(extent.range.end), undefined, 'only pages that are there are found');
    const { backing, owner, iovas } = extent.areas[0];
    assert.deepEqual({ owner, iovas }, { owner: 'owned', iovas: undefined });
    assert.equal(typeof backing?.fd, 'number');
    const view = platform.memory.view(extent.range.start, 3 * P);
    new Uint8Array(view).fill(1);
    platform.memory.detach(view);
    list.giveBack(extent);
    assert.equal(areas.size, 0);
    assert.equal(platform.memory.protection(extent.range.start, P), 'none');
    assert.throws(
      () => list.giveBack(extent),
      (error) => isDmaError(error, 'EINVAL'),
    );
    list.close();
    assert.deepEqual(platform.leaks(), []);
  });

  it('is full when it is, and has room again afterwards', () => {
    const list = listOn(openPlatform());
    const all = [list.take(32), list.take(31)];
    assert.equal(list.take(2), undefined);
    const last = list.take(1);
    assert.ok(last !== undefined);
    assert.equal([...list.extents].length, 3);
    assert.equal(list.take(1), undefined);
    list.giveBack(last);
    const [first] = all;
    assert.ok(first !== undefined);
    list.giveBack(first);
    assert.equal(list.take(33), undefined);
    assert.equal(list.take(32)?.range.start, first.range.start);
    list.close();
  });

  it('does not give back what a device has', () => {
    const list = listOn(openPlatform());
    const extent = list.take(1);
    assert.ok(extent !== undefined);
    extent.areas[0].hold('vdev:edu0');
    assert.throws(
      () => list.giveBack(extent),
      (error) => isDmaError(error, 'EBUSY') && /vdev:edu0/.test(error.message),
    );
    extent.areas[0].release('vdev:edu0');
    list.giveBack(extent);
    list.close();
  });

  it('knows physical addresses, where the kernel tells them', (t) => {
    const platform = openPlatform();
    const areas = new AreaIndex();
    const list = listOn(platform, areas, true);
    try {
      const [area] = list.take(2)?.areas ?? [];
      const frames = platform.memory.frames(area.range.start, P, 2);
      assert.deepEqual([...(area.iovas ?? [])], [...(frames ?? [])]);
    } catch (error) {
      assert.ok(isDmaError(error, 'EPERM'), String(error));
      assert.equal(areas.size, 0);
      t.diagnostic(`not told here: ${error.message}`);
    } finally {
      list.close();
    }
  });

  it('whichever system call fails, nothing is left', () => {
    for (const cleanup of [false, true]) {
      for (let n = 1, done = false; !done; n++) {
        const tracking = trackingPlatform(openPlatform());
        const platform = failingPlatform(tracking, { cleanup });
        const areas = new AreaIndex();
        const lists: SegmentList[] = [];
        platform.failCall(n, 'ENOMEM');
        try {
          const list = listOn(platform, areas);
          lists.push(list);
          const extent = list.take(3);
          list.take(2);
          if (extent !== undefined) list.giveBack(extent);
        } catch (error) {
          assert.ok(isDmaError(error), String(error));
        }
        done = platform.failed() === undefined;
        platform.failCall(0, 'EIO', 'none');
        for (const list of lists) {
          assert.equal(areas.size, [...list.extents].length, `call ${n}`);
          list.close();
        }
        if (!cleanup) assert.deepEqual(tracking.leaks(), [], `call ${n}`);
        assert.ok(n < 100);
      }
    }
  });

  it('anonymous pages have no descriptor', () => {
    const platform = openPlatform();
    const source = anonymousPages(platform, { pageSize: P, pages: 4 });
    const list = new SegmentList({
      platform,
      areas: new AreaIndex(),
      source,
      pages: 4,
      physical: false,
      sameIova: false,
    });
    assert.equal(list.take(4)?.areas[0].backing, undefined);
    list.close();
  });
});
