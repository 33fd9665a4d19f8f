/**
 * Memory of the library's own, heaps, pools and zones that grow and shrink, while some of what was handed out is pinned,
 * read late, or moved away: nobody may ever see the bytes of the next owner.
 */
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import { Eal } from '../../../src/eal.js';
import { isDmaError } from '../../../src/errors.js';
import type { Block } from '../../../src/memory/heap/heap.js';
import type { Storm, Weather } from '../storm.js';

const MiB = 2 ** 20;
/** At most so much is held. bytes */
const MOST = 96 * MiB;
/** What owners store; what was moved away has another one. */
const MOVED = 0xee;

interface Held {
  readonly block: Block;
  readonly fill: number;
}

export async function begin({ random, gc }: Weather): Promise<Storm> {
  const eal = await Eal.start({
    memory: { noHuge: random.oneIn(2), onNotice: () => undefined },
    onForgotten: () => undefined,
  });
  const device = await eal.probe('vdev:copy0');
  const held: Held[] = [];
  const moved: Uint8Array[] = [];
  let bytes = 0;
  let escapes = 0;
  const seen = { blocks: 0, freed: 0, trimmed: 0, pinned: 0, moved: 0, heaps: 0, pools: 0, zones: 0, late: 0 };

  const free = (at: number): void => {
    const [{ block, fill }] = held.splice(at, 1);
    const view = block.bytes();
    assert.equal(view[0], fill, 'somebody stored into a block');
    assert.equal(view[view.length - 1], fill, 'somebody stored into a block');
    assert.equal(device.iovaOf(block), device.domain?.iovaOf(block.va));
    bytes -= block.length;
    if (random.oneIn(8)) {
      const pin = block.pin('the storm');
      assert.throws(() => block.free(), { code: 'EBUSY' });
      pin[Symbol.dispose]();
      seen.pinned++;
    }
    block.free();
    assert.equal(view[0], undefined, 'a view outlived its block');
    seen.freed++;
    seen.late++;
  };

  const store = (block: Block): void => {
    const fill = 1 + random.below(200);
    block.bytes().fill(fill);
    held.push({ block, fill });
    bytes += block.length;
    seen.blocks++;
  };

  return {
    seen,
    // The heap keeps a block whose view was moved away, and with it the extent and the memfd that it is in.
    allowed: () => ({
      addresses: escapes * 2048,
      mappings: escapes,
      rss: escapes * 2048,
      hugepages: escapes * 2048,
      descriptors: escapes > 0 ? 2 : 0,
    }),
    async round() {
      switch (random.below(40)) {
        case 0:
          eal.memory.trim();
          seen.trimmed++;
          break;
        case 1: {
          const heap = eal.heaps.create('storm');
          const memory = eal.external.allocate((1 + random.below(4)) * MiB);
          eal.heaps.addMemory('storm', memory);
          const block = eal.malloc(1 + random.below(MiB / 2), { heap: 'storm' });
          assert.throws(() => eal.heaps.removeMemory('storm', { va: memory.va, length: memory.length }), {
            code: 'EBUSY',
          });
          block.free();
          eal.heaps.removeMemory('storm', { va: memory.va, length: memory.length });
          memory.unregister();
          eal.heaps.destroy(heap.name);
          seen.heaps++;
          break;
        }
        case 2: {
          using pool = eal.pools.create({ elements: 64 + random.below(2000), elementSize: 64 << random.below(6) });
          const numbers = new Int32Array(32);
          pool.get(numbers, numbers.length);
          for (const number of numbers) pool.bytes(number).fill(1);
          pool.put(numbers, numbers.length);
          seen.pools++;
          break;
        }
        case 3: {
          const zone = eal.zones.reserve('storm', 1 + random.below(4 * MiB));
          zone.bytes().fill(3);
          assert.equal(eal.zones.find('storm'), zone);
          zone.free();
          seen.zones++;
          break;
        }
        case 4:
          // Once in a while, because it costs addresses for good.
          if (random.oneIn(10)) await move();
          break;
        default:
          if (held.length > 0 && (bytes > MOST || random.oneIn(2))) free(random.below(held.length));
          else store(eal.malloc(1 << random.below(22), random.oneIn(3) ? { align: 1 << random.below(16) } : {}));
      }
      for (const view of moved)
        if (view.length > 0) {
          const [first] = view;
          assert.ok(first === MOVED || first === 0, `what was moved away shows ${first} of somebody else`);
        }
      if (gc !== undefined && random.oneIn(100)) gc();
      if (random.oneIn(20)) await turn();
    },
    async calm() {
      while (held.length > 0) free(held.length - 1);
      eal.memory.trim();
      await turn();
    },
    async close() {
      await eal.stop();
    },
  };

  /** Lets a reader take the buffer of a block's view away, which works on every Node. */
  async function move(): Promise<void> {
    const block = eal.malloc(MiB / 4);
    const view = block.bytes();
    const reader = new ReadableStream({
      type: 'bytes',
      pull(controller) {
        const { byobRequest } = controller;
        if (byobRequest === null || byobRequest.view === null) return;
        const { buffer, byteOffset, byteLength } = byobRequest.view;
        new Uint8Array(buffer, byteOffset, byteLength).fill(MOVED);
        byobRequest.respond(byteLength);
      },
    }).getReader({ mode: 'byob' });
    const { value } = await reader.read(view);
    await reader.cancel();
    if (value === undefined) throw new Error('the reader read nothing');
    assert.equal(value[0], MOVED);
    moved.push(value);
    escapes++;
    seen.moved++;
    try {
      block.free();
    } catch (error) {
      // To refuse it is right as well: the block stays where it is.
      assert.ok(isDmaError(error), String(error));
    }
  }
}
