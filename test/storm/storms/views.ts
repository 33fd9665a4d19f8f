/** External memory that comes and goes: register, view, map, unmap, unregister, with a turn of the event loop now and then. */
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import { Eal } from '../../../src/eal.js';
import type { ExternalMemory } from '../../../src/memory/external.js';
import type { Storm, Weather } from '../storm.js';

const KiB = 1024;

export async function begin({ random, gc }: Weather): Promise<Storm> {
  const eal = await Eal.start({ onForgotten: () => undefined });
  const device = await eal.probe('vdev:copy0');
  const buffer = new ArrayBuffer(64 * KiB);
  const seen = { memfd: 0, anonymous: 0, address: 0, late: 0, turns: 0 };
  const own = eal.external.allocate(64 * KiB);
  let turnIn = 1;

  const register = (): ExternalMemory => {
    const length = 4 * KiB * (1 + random.below(8));
    switch (random.below(4)) {
      case 0:
        seen.anonymous++;
        return eal.external.allocate(length, { source: 'anonymous' });
      case 1:
      case 2:
        seen.memfd++;
        return eal.external.allocate(length);
      default: {
        seen.address++;
        const bytes = new Uint8Array(buffer);
        const first = eal.platform.memory.addressOf(bytes);
        const offset = (4096 - (first % 4096)) % 4096;
        return eal.external.register(new Uint8Array(buffer, offset, 32 * KiB));
      }
    }
  };

  return {
    seen,
    async round(number) {
      const memory = register();
      const bytes = memory.bytes();
      const fill = number & 0xff;
      bytes[0] = fill;
      bytes[bytes.length - 1] = fill;
      const mapping = device.dmaMap(memory);
      assert.equal(device.domain?.iovaOf(memory.va), mapping.iova);
      assert.equal(memory.bytes(memory.length - 1)[0], fill);
      assert.throws(() => memory.unregister(), { code: 'EBUSY' });
      mapping.unmap();
      memory.unregister();
      if (memory.source !== 'buffer') {
        // Late accesses read and write nothing.
        assert.equal(bytes[0], undefined);
        bytes[0] = 1;
        seen.late++;
      }
      if (gc !== undefined && random.oneIn(500)) gc();
      if (--turnIn > 0) return;
      turnIn = 1 + random.below(2000);
      seen.turns++;
      await turn();
    },
    async calm() {
      await turn();
    },
    async close() {
      own.unregister();
      await eal.stop();
    },
  };
}
