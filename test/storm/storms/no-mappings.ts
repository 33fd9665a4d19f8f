/**
 * Every call near vm.max_map_count: near the kernel's line, where each mapping may be refused, and near the library's own, which
 * leaves some to the rest of the process.
 */
import assert from 'node:assert/strict';
import { access } from 'node:fs/promises';
import { setImmediate as turn } from 'node:timers/promises';
import { Eal } from '../../../src/eal.js';
import { ERRNO } from '../../../src/errors.js';
import type { ExternalMemory } from '../../../src/memory/external.js';
import { loadLibc } from '../../../src/platform/linux/libc.js';
import { MAP_SHARED, PROT_READ } from '../../../src/platform/uapi/mman.js';
import { shortageRounds } from '../shortage.js';
import type { Storm, Weather } from '../storm.js';

const MiB = 2 ** 20;
/** More than most calls need. */
const MOST = 24;
/** What the library leaves to others. */
const SPARE = 4096;
/** Enough for each call, and for V8 meanwhile. */
const ROOM = 96;
/** Where somebody has raised the limit, filling it would take more memory than it is worth. */
const HIGHEST = 2_000_000;

export async function begin({ random }: Weather): Promise<Storm> {
  // libuv makes its threads with the first asynchronous call, and ends the process when it can not.
  await access('/');
  const eal = await Eal.start({ memory: { noHuge: true }, onForgotten: () => undefined });
  const device = await eal.probe('vdev:copy0');
  const { memory, limits } = eal.platform;
  const { limit } = limits.mappings();
  if (limit > HIGHEST) throw new Error(`vm.max_map_count is ${limit}, which is more than ${HIGHEST}`);
  const { pageSize } = memory;
  const buffer = new Uint8Array(new ArrayBuffer(64 * 1024));

  // One page of one file again and again: neighbours never become one mapping, and each goes without a split. Past the port,
  // which would stop at its own line.
  const libc = loadLibc();
  if (typeof libc === 'string') throw new Error(libc);
  const file = memory.memfd({ name: 'storm', length: pageSize });
  const filled: number[] = [];
  /** Leaves room for `room` mappings. */
  const fill = (room: number): void => {
    for (let n = limit - limits.mappings().used - room; n > 0; n--) {
      const va = libc.mmap(0, pageSize, PROT_READ, MAP_SHARED, file, 0);
      if (va === -1) {
        // Others took some meanwhile: it is full.
        assert.equal(libc.errno(), ERRNO.ENOMEM);
        return;
      }
      filled.push(va);
    }
  };
  const empty = (most: number): void => {
    for (const va of filled.splice(Math.max(0, filled.length - most))) libc.munmap(va, pageSize);
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

  const calls = {
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
      const heap = eal.heaps.create('here');
      try {
        const external = eal.external.allocate(MiB);
        await withMemory(external, async () => {
          eal.heaps.addMemory('here', external);
          try {
            const block = eal.malloc(5000, { heap: 'here' });
            await giveBack(() => block.free());
          } finally {
            await giveBack(() => eal.heaps.removeMemory('here', { va: external.va, length: external.length }));
          }
        });
      } finally {
        await giveBack(() => eal.heaps.destroy(heap.name));
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
  const names = Object.keys(calls) as (keyof typeof calls)[];
  const rounds = shortageRounds({
    calls,
    pick: () => random.pick(names),
    codes: ['ENOMEM'],
    begin() {
      fill(random.below(MOST) + (random.oneIn(4) ? SPARE : 0));
      return () => empty(SPARE + ROOM);
    },
    async again(call) {
      for (const step of again.splice(0)) await step();
      await call();
      await turn();
    },
  });

  return {
    ...rounds,
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
