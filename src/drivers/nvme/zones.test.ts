/** Zoned namespaces, by a controller of the tests. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { fill, sum, withDisk } from '../../../test/fakes/nvme/disk.js';
import { dmaError, throwsDma } from '../../../test/shared/errors.js';
import { NVM } from '../../nvme/commands.js';
import { KiB } from '../../units.js';
import { NvmeError } from './nvme-error.js';

/** 8 zones of 1024 blocks, of which 768 can be written. */
const ZONES = { size: 1024, capacity: 768, maxOpen: 2, maxActive: 3 } as const;

/** Whether an error has this code, and the status of this name. */
const status =
  (code: string, name: string) =>
  (error: unknown): boolean => {
    assert.ok(error instanceof NvmeError, String(error));
    assert.deepEqual([error.code, error.nvme.name], [code, name], error.message);
    return true;
  };

describe('zones', () => {
  it('are reported from any block on, with what they have in common', () =>
    withDisk({ zones: ZONES, zasl: 2, mdts: 5 }, async ({ disk, fake }) => {
      assert.deepEqual([disk.capabilities.zoned, disk.identifiers.commandSet], [true, 2]);
      const { zones } = disk;
      assert.deepEqual(await zones.limits(), {
        ...{ zoneSize: 1024, maxOpen: 2, maxActive: 3 },
        // 2^2 pages of 4 KiB.
        ...{ maxAppend: 32, readAcross: false },
      });
      const all = await zones.report();
      assert.deepEqual(
        all,
        Array.from({ length: 8 }, (_, i) => ({
          ...{ state: 'empty', capacity: 768, lba: i * 1024, writePointer: i * 1024 },
        })),
      );
      for (const [from, first] of [
        [1023, 0],
        [1024, 1],
        [8191, 7],
      ])
        assert.deepEqual(await zones.report(from), all.slice(first));
      const before = fake.log.length;
      await assert.rejects(zones.report(8192), dmaError('ERANGE'));
      for (const wrong of [-1, NaN, 0.5, '0']) await assert.rejects(zones.report(wrong as number), dmaError('EINVAL'));
      assert.equal(fake.log.length, before);
    }));

  it('more than a report has are reported by several', () =>
    withDisk({ zones: { ...ZONES, size: 2, capacity: 2 }, blocks: 2000 }, async ({ disk, fake }) => {
      fake.log.length = 0;
      const zones = await disk.zones.report(3);
      assert.deepEqual(
        zones.map(({ lba }) => lba),
        Array.from({ length: 999 }, (_, i) => 2 + 2 * i),
      );
      // 255 zones fit into 16 KiB.
      assert.equal(fake.log.filter(({ opcode }) => opcode === NVM.ZONE_RECEIVE).length, 4);
    }));

  it('are written at their write pointers, by one command after the other', () =>
    withDisk({ zones: ZONES, mdts: 2 }, async ({ eal, disk, fake }) => {
      using memory = eal.malloc(768 * 512, { align: 4096 });
      fill(memory.bytes(), 1);
      // Each command waits until the test lets it go: no second one may have come by then.
      let most = 0;
      let running = 0;
      fake.misbehave = ({ queue }) => {
        if (queue === 0) return undefined;
        most = Math.max(most, ++running);
        setImmediate(() => {
          running--;
          fake.letGo();
        });
        return 'hold';
      };
      await disk.write({ lba: 1024, blocks: 700, from: memory });
      fake.misbehave = () => undefined;
      assert.equal(most, 1);
      assert.equal(fake.log.filter(({ opcode, queue }) => queue > 0 && opcode === NVM.WRITE).length, 22);
      assert.equal(sum(fake.disks[0].subarray(1024 * 512, 1724 * 512)), sum(memory.bytes(0, 700 * 512)));
      const [zone] = await disk.zones.report(1024);
      assert.deepEqual([zone.state, zone.writePointer], ['implicitly-open', 1724]);
      await assert.rejects(disk.write({ lba: 1024, blocks: 1, from: memory }), status('EINVAL', 'ZONE_INVALID_WRITE'));
      await assert.rejects(disk.write({ lba: 1724, blocks: 69, from: memory }), status('ERANGE', 'ZONE_BOUNDARY'));
      // Two of its three commands had room.
      await disk.writeZeroes({ lba: 1788, blocks: 4 });
      await assert.rejects(disk.write({ lba: 1792, blocks: 1, from: memory }), status('ENOSPC', 'ZONE_FULL'));
    }));

  it('a write that fails in the middle sends no more', () =>
    withDisk({ zones: ZONES, mdts: 2 }, async ({ eal, disk, fake }) => {
      using memory = eal.malloc(768 * 512, { align: 4096 });
      // 32 blocks a command; the third one begins in the next zone's place.
      await disk.write({ lba: 0, blocks: 704, from: memory });
      fake.log.length = 0;
      await assert.rejects(disk.write({ lba: 704, blocks: 128, from: memory }), status('ENOSPC', 'ZONE_FULL'));
      assert.equal(fake.log.length, 3);
    }));

  it('a stream fills a zone in order', () =>
    withDisk({ zones: ZONES }, async ({ eal, disk, fake }) => {
      using memory = eal.malloc(768 * 512, { align: 4096 });
      fill(memory.bytes(), 2);
      let running = 0;
      fake.misbehave = ({ queue }) => {
        if (queue === 0) return undefined;
        assert.equal(++running, 1);
        setImmediate(() => {
          running--;
          fake.letGo();
        });
        return 'hold';
      };
      const stream = disk.writable({ lba: 2048, blocks: 768, chunkBytes: 16 * KiB });
      await new Promise<void>((resolve, reject) => {
        stream.on('error', reject);
        stream.end(memory.bytes(), resolve);
      });
      assert.equal(sum(fake.disks[0].subarray(2048 * 512, 2816 * 512)), sum(memory.bytes()));
    }));

  it('appends say where the data is; what can not be one command is refused before it is sent', () =>
    withDisk({ zones: ZONES, zasl: 2 }, async ({ disk, fake, block }) => {
      fill(block.bytes(), 3);
      const { zones } = disk;
      const part = (index: number): { va: typeof block.va; length: number } => ({
        va: (block.va + index * 4096) as typeof block.va,
        length: 4096,
      });
      const places = await Promise.all(
        Array.from({ length: 16 }, (_, i) => zones.append({ zone: 3072, blocks: 8, from: part(i) })),
      );
      assert.deepEqual(
        places,
        places.map((_, i) => 3072 + 8 * i),
      );
      assert.equal(sum(fake.disks[0].subarray(3072 * 512, 3200 * 512)), sum(block.bytes()));
      const before = fake.log.length;
      await assert.rejects(zones.append({ zone: 0, blocks: 33, from: block }), dmaError('EINVAL', /32 at most/));
      await assert.rejects(zones.append({ zone: 8192, blocks: 1, from: block }), dmaError('ERANGE'));
      await assert.rejects(zones.append({ zone: 0, blocks: 0, from: block }), dmaError('EINVAL'));
      await assert.rejects(zones.append({ zone: 0, blocks: 1 } as never), dmaError('EINVAL', /from/));
      assert.equal(fake.log.length, before);
      await assert.rejects(zones.append({ zone: 1, blocks: 1, from: block }), status('EINVAL', 'INVALID_FIELD'));
    }));

  it('are opened, closed, finished and reset, within their limits', () =>
    withDisk({ zones: ZONES }, async ({ disk, block }) => {
      const { zones } = disk;
      const states = async (): Promise<string[]> => (await zones.report()).map(({ state }) => state).slice(0, 4);
      await zones.manage('open', 0);
      await zones.manage('open', 1024);
      await assert.rejects(zones.manage('open', 2048), status('EMFILE', 'TOO_MANY_OPEN_ZONES'));
      await zones.manage('close', 0);
      await disk.write({ lba: 2048, blocks: 1, from: block });
      assert.deepEqual(await states(), ['closed', 'explicitly-open', 'implicitly-open', 'empty']);
      await assert.rejects(
        disk.write({ lba: 3072, blocks: 1, from: block }),
        status('EMFILE', 'TOO_MANY_ACTIVE_ZONES'),
      );
      await zones.manage('finish', 2048);
      assert.equal((await states())[2], 'full');
      await assert.rejects(zones.manage('open', 2048), status('EINVAL', 'ZONE_TRANSITION'));
      await zones.manage('reset', 'all');
      assert.deepEqual(await states(), ['empty', 'empty', 'empty', 'empty']);
      await assert.rejects(zones.manage('reset', 8192), dmaError('ERANGE'));
      await assert.rejects(
        zones.manage('melt' as 'open', 0),
        dmaError('EINVAL', /close, finish, open, reset, offline/),
      );
    }));

  it('are not there in other namespaces; a namespace of a command set that is not known is passed over', async () => {
    await withDisk({}, async ({ disk }) => {
      assert.equal(disk.capabilities.zoned, false);
      throwsDma('ENOTSUP', () => disk.zones, /no zones/);
      return Promise.resolve();
    });
    // Key-value namespaces have no blocks.
    await withDisk({ commandSet: 1 }, async ({ ssd }) => {
      assert.deepEqual(ssd.namespaces, []);
      return Promise.resolve();
    });
  });
});
