/** Every call near vm.max_map_count: it succeeds or says ENOMEM, loses nothing, and works again afterwards. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { access } from 'node:fs/promises';
import { setImmediate as turn } from 'node:timers/promises';
import { Eal } from '../../../src/eal.js';
import { isDmaError } from '../../../src/errors.js';
import type { ExternalMemory } from '../../../src/memory/external.js';
import type { Va } from '../../../src/units.js';
import type { Storm, Weather } from '../storm.js';

const MiB = 2 ** 20;
/** Enough for each call, and for V8 meanwhile. */
const ROOM = 96;
/** More than most calls need. */
const MOST = 24;
/** Where somebody has raised the limit, filling it would take more memory than it is worth. */
const HIGHEST = 2_000_000;

export async function begin({ random }: Weather): Promise<Storm> {
  const limit = Number(readFileSync('/proc/sys/vm/max_map_count', 'utf8'));
  if (limit > HIGHEST) throw new Error(`vm.max_map_count is ${limit}, which is more than ${HIGHEST}`);
  // libuv makes its threads with the first asynchronous call, and ends the process when it can not.
  await access('/');
  const eal = await Eal.start({ memory: { noHuge: true }, onForgotten: () => undefined });
  const device = await eal.probe('vdev:copy0');
  const { memory } = eal.platform;
  const { pageSize } = memory;
  const buffer = new Uint8Array(new ArrayBuffer(64 * 1024));

  // One page of one file again and again: neighbours never become one mapping, and each goes without a split.
  const file = memory.memfd({ name: 'storm', length: pageSize });
  const filled: Va[] = [];
  /** Leaves room for `room` mappings, or a few more. */
  const fill = (room: number): void => {
    const used = readFileSync('/proc/self/maps', 'utf8').split('\n').length - 1;
    try {
      for (let n = limit - used - room; n > 0; n--) filled.push(memory.map({ length: pageSize, fd: file }));
    } catch (error) {
      // Others took some meanwhile: it is full.
      if (!isDmaError(error, 'ENOMEM')) throw error;
    }
  };
  const empty = (most: number): void => {
    for (const va of filled.splice(Math.max(0, filled.length - most))) memory.unmap(va, pageSize);
  };

  /** What could not be given back for want of mappings: the next try has to do it. */
  const again: (() => unknown)[] = [];
  const giveBack = async (step: () => unknown): Promise<void> => {
    try {
      await step();
    } catch (error) {
      again.push(step);
      throw error;
    }
  };
  /** Works with memory, and gives it back. */
  const withMemory = async (external: ExternalMemory, work: () => unknown): Promise<void> => {
    try {
      await work();
    } finally {
      await giveBack(() => external.unregister());
    }
  };

  const calls: Readonly<Record<string, () => Promise<void>>> = {
    memfd: () => {
      const external = eal.external.allocate(64 * 1024);
      return withMemory(external, () => {
        external.bytes()[0] = 1;
        device.dmaMap(external).unmap();
      });
    },
    anonymous: () => {
      const external = eal.external.allocate(64 * 1024, { source: 'anonymous' });
      return withMemory(external, () => (external.bytes()[0] = 1));
    },
    many: async () => {
      const all: ExternalMemory[] = [];
      try {
        for (let n = 0; n < 40; n++) all.push(eal.external.allocate(pageSize));
      } finally {
        for (const each of all) await giveBack(() => each.unregister());
      }
    },
    buffer: () => withMemory(eal.external.registerPagesOf(buffer).memory, () => undefined),
    malloc: async () => {
      const block = eal.malloc((1 + random.below(8)) * MiB);
      await giveBack(() => block.free());
      await giveBack(() => eal.memory.trim());
    },
    heap: async () => {
      const heap = eal.heap.create('here');
      try {
        const external = eal.external.allocate(MiB);
        await withMemory(external, async () => {
          eal.heap.addMemory('here', external);
          try {
            const block = eal.malloc(5000, { heap: 'here' });
            await giveBack(() => block.free());
          } finally {
            await giveBack(() => eal.heap.removeMemory('here', external.va, external.length));
          }
        });
      } finally {
        await giveBack(() => eal.heap.destroy(heap.name));
      }
    },
    pool: async () => {
      const pool = eal.pools.create({ elements: 300, elementSize: 2048 });
      await giveBack(() => pool.free());
    },
    vdev: async () => {
      const edu = await eal.probe('vdev:edu0');
      await giveBack(() => eal.remove(edu));
    },
    start: async () => {
      const another = await Eal.start({ memory: { size: 2 * MiB, noHuge: true }, onForgotten: () => undefined });
      await giveBack(() => another.stop());
    },
  };
  const names = Object.keys(calls);
  const seen: Record<string, number> = { done: 0, refused: 0 };
  for (const name of names) seen[name] = 0;

  return {
    seen,
    async round() {
      const name = random.pick(names);
      fill(random.below(MOST));
      try {
        await calls[name]();
        seen.done++;
      } catch (error) {
        const text = error instanceof Error ? error.stack : String(error);
        assert.ok(isDmaError(error), `${name}: ${text}`);
        assert.equal(error.code, 'ENOMEM', `${name}: ${text}`);
        seen.refused++;
      } finally {
        empty(ROOM);
      }
      try {
        for (const step of again.splice(0)) await step();
        await calls[name]();
      } catch (cause) {
        throw new Error(`${name} does not work any more`, { cause });
      }
      seen[name]++;
      await turn();
    },
    async calm() {
      empty(filled.length);
      eal.memory.trim();
      await turn();
    },
    async close() {
      eal.platform.files.close(file);
      await eal.stop();
    },
  };
}
