/** Servers of vfio-user that map in large pages, or take few regions: what the program is told, and what works. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import type { Device } from './bus/model.js';
import { Eal } from './eal.js';
import { isDmaError, type DmaError } from './errors.js';
import { openPlatform } from './platform/open.js';
import { trackingPlatform } from '../test/fakes/platform/platforms.js';
import { KiB, MiB } from './units.js';
import { COMMAND, decodeDmaMap, DEFAULT_CAPABILITIES, type DmaMapRequest } from './vfio-user/messages.js';
import { serveScripted, type FakeServer } from '../test/fakes/vfio-user/server.js';

const SKIP = { skip: openPlatform().limitation ?? false };
const UNIT = 64 * KiB;

interface Scene {
  readonly eal: Eal;
  readonly probe: () => Promise<Device>;
  /** What the server was asked to map. */
  readonly asked: DmaMapRequest[];
  /** How many more it takes. */
  left: number;
}

/** A server that maps whole pages of `pgsizes` only. */
async function play(pgsizes: number, work: (scene: Scene) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'limits-'));
  const platform = trackingPlatform(openPlatform());
  const path = join(folder, 's');
  const asked: DmaMapRequest[] = [];
  const eal = await Eal.start({ platform, memory: { noHuge: true } });
  const scene: Scene = { eal, asked, left: Infinity, probe: () => eal.probe(`bus=vfio-user,name=${path}/driver=raw`) };
  const prepare = (server: FakeServer): void => {
    server.capabilities = { ...DEFAULT_CAPABILITIES, pgsizes };
  };
  const end = serveScripted(
    platform,
    path,
    (message, server) => {
      if (message.command !== COMMAND.DMA_MAP) return undefined;
      const request = decodeDmaMap(message);
      asked.push(request);
      const isWhole = [request.iova, request.length, request.offset].every((each) => each % UNIT === 0);
      return isWhole && scene.left-- > 0 ? undefined : server.error(message, 'EINVAL');
    },
    prepare,
  );
  try {
    await work(scene);
  } finally {
    await eal.stop();
    end();
    rmSync(folder, { recursive: true });
  }
  assert.deepEqual(platform.leaks(), []);
}

function failureOf(work: () => unknown): DmaError {
  try {
    work();
  } catch (error) {
    assert.ok(isDmaError(error), String(error));
    return error;
  }
  return assert.fail('it went well');
}

describe('a server with pages of 64 KiB', SKIP, () => {
  for (const pgsizes of [UNIT, UNIT + 2 ** 21])
    it(`says how to have memory for it (pgsizes ${pgsizes})`, () =>
      play(pgsizes, async ({ eal, probe }) => {
        const device = await probe();
        // Wherever mmap puts the first, one of two neighbours is off.
        const some = Array.from({ length: 3 }, () => eal.external.allocate(68 * KiB));
        const { code, hint } = failureOf(() => some.forEach((memory) => device.dmaMap(memory)));
        assert.equal(code, 'EINVAL');
        assert.match(hint ?? '', /units of 64 KiB.*external\.allocate\(131072, \{ align: 65536 \}\)/);
        for (const source of ['memfd', 'anonymous'] as const)
          for (let n = 0; n < 8; n++) {
            const memory = eal.external.allocate(128 * KiB, { align: 65536, source });
            assert.equal(memory.va % UNIT, 0);
            device.dmaMap(memory).unmap();
            memory.unregister();
          }
        for (const memory of some) memory.unregister();
      }));

  it('gets memory of the library in its units, whether it comes before that or after', () =>
    play(UNIT, async ({ eal, probe, asked }) => {
      const before = eal.malloc(3 * MiB + 4 * KiB);
      const device = await probe();
      const after = [5 * MiB + 12 * KiB, 100, 7 * MiB - 4 * KiB].map((size) => eal.malloc(size));
      const pool = eal.pools.create({ elements: 3000, elementSize: 2500 });
      const zone = eal.zones.reserve('z', 9 * MiB + 4 * KiB);
      assert.ok(asked.length > 0);
      for (const { va } of [before, ...after, zone]) assert.ok(device.iovaOf({ va, length: 1 }) > 0);
      pool.free();
      zone.free();
      for (const block of [before, ...after]) block.free();
    }));
});

it('alignments that there are not, and without memory for them, are refused', SKIP, async () => {
  const platform = trackingPlatform(openPlatform());
  const eal = await Eal.start({ platform });
  for (const align of [0, 3, -4096, 1.5, 2 ** 60])
    assert.equal(failureOf(() => eal.external.allocate(4096, { align })).code, 'EINVAL', String(align));
  const memory = eal.external.allocate(4096, { align: 2 ** 30 });
  assert.equal(memory.va % 2 ** 30, 0);
  memory.bytes()[4095] = 1;
  memory.unregister();
  await eal.stop();
  assert.deepEqual(platform.leaks(), []);
});

it('a server that takes fewer regions than it announces is named, whatever needs the next one', SKIP, () =>
  play(4096, async (scene) => {
    const { eal, probe } = scene;
    const device = await probe();
    const given = Array.from({ length: 16 }, () => eal.external.allocate(UNIT, { align: UNIT }));
    const mappings = given.map((memory) => device.dmaMap(memory));
    scene.left = 0;
    const heap = eal.heaps.create('mine');
    const one = eal.external.allocate(UNIT, { align: UNIT });
    for (const work of [
      () => device.dmaMap(one),
      () => eal.malloc(MiB),
      () => eal.zones.reserve('z', MiB),
      () => eal.pools.create({ elements: 100, elementSize: 1000 }),
      () => eal.heaps.addMemory('mine', one),
    ]) {
      const { hint } = failureOf(work);
      assert.match(hint ?? '', /16 regions are mapped; servers are known that take no more/, String(work));
    }
    assert.equal(heap.statistics().total, 0);
    eal.heaps.destroy('mine');
    for (const mapping of mappings) mapping.unmap();
    for (const memory of [one, ...given]) memory.unregister();
  }),
);

it('memory leaves a heap by the same name as it came', SKIP, async () => {
  const eal = await Eal.start();
  const heap = eal.heaps.create('mine');
  const [a, b] = [eal.external.allocate(UNIT), eal.external.allocate(UNIT)];
  eal.heaps.addMemory('mine', a);
  eal.heaps.addMemory('mine', b);
  const stranger = eal.external.allocate(UNIT);
  assert.equal(failureOf(() => eal.heaps.removeMemory('mine', stranger)).code, 'ENOENT');
  eal.heaps.removeMemory('mine', a);
  await eal.heaps.removeMemoryAsync('mine', b);
  assert.equal(heap.statistics().total, 0);
  assert.equal(failureOf(() => eal.heaps.removeMemory('mine', a)).code, 'ENOENT');
  a.unregister();
  const { va, length } = eal.external.allocate(UNIT);
  eal.external.unregister({ va, length });
  b.unregister();
  stranger.unregister();
  await eal.stop();
});
