/** Models that keep what they were lent: the memory of clients and of regions. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { describe, it } from 'node:test';
import { openPlatform } from './platform/open.js';

const SKIP = { skip: openPlatform().limitation ?? false };
const INDEX = JSON.stringify(new URL('./index.js', import.meta.url).href);
const MODEL = JSON.stringify(new URL('./entry/model.js', import.meta.url).href);

/** A device that keeps the views it is given, and a client of it. */
const PROGRAM = `
  import assert from 'node:assert/strict';
  import { randomFill } from 'node:crypto';
  import { mkdtempSync, rmSync } from 'node:fs';
  import { tmpdir } from 'node:os';
  import { join } from 'node:path';
  import { setImmediate as turn } from 'node:timers/promises';
  import { promisify } from 'node:util';
  import { Eal, MiB, rawDriver } from ${INDEX};
  import { serve } from ${MODEL};

  const LENGTH = 16 * MiB;
  const kept = { direct: undefined, region: undefined };
  const factory = (host) => ({
    name: 'keeper',
    identity: { vendor: 1, device: 2, subsystemVendor: 3, subsystem: 4, revision: 5, classCode: 0xff0000 },
    regions: [{ index: 0, size: 4096 }, { index: 2, size: 8192, memory: [{ offset: 4096, length: 4096 }] }],
    interrupts: { intx: 0, msi: 0, msix: 0 },
    read: () => undefined,
    write: (region, offset, from) => {
      const iova = Number(new DataView(from.buffer, from.byteOffset).getBigUint64(0, true));
      kept.direct = host.dma.direct(iova, LENGTH, 'write');
      kept.region = host.regionMemory(2, 4096);
    },
    reset: () => undefined,
    quiesce: () => undefined,
    resume: () => undefined,
  });
  /** Moves what view is on into another ArrayBuffer. */
  const moved = async (view) => {
    const pull = (controller) => controller.byobRequest?.respond(1);
    const { value } = await new ReadableStream({ type: 'bytes', pull }).getReader({ mode: 'byob' }).read(view);
    return new Uint8Array(value.buffer);
  };
  const directory = mkdtempSync(join(tmpdir(), 'models-'));
  const path = join(directory, 'socket');
  const eal = await Eal.start();
  const open = async () => {
    if (process.env.BUS === 'vdev') {
      eal.vdev.define('keeper', factory);
      return { device: await eal.probe('vdev:keeper0'), close: () => undefined };
    }
    const server = serve(eal.platform, { socketPath: path, model: factory });
    return { device: await eal.probe('vfio-user:' + path), close: () => server.close() };
  };
  const { device, close } = await open();
  const registers = device.use(rawDriver).registers(0);
  const part = device.use(rawDriver).registers(2);
  const show = async () => {
    const memory = eal.external.allocate(LENGTH);
    const mapping = device.dmaMap(memory);
    registers.write64(0, mapping.iova);
    registers.flush?.(0);
    assert.equal(kept.direct.length, LENGTH);
    kept.direct[0] = 3;
    assert.equal(memory.bytes()[0], 3);
    return { memory, end: () => { mapping.unmap(); memory.unregister(); } };
  };

  // Kept: it is empty at once.
  {
    const { end } = await show();
    end();
    assert.equal(kept.direct.length, 0);
  }
  // Worked on in another thread: the work goes on, and hits nobody.
  {
    const { end } = await show();
    const work = promisify(randomFill)(kept.direct);
    end();
    const others = Array.from({ length: 3 }, () => eal.external.allocate(LENGTH));
    await work;
    for (const other of others) {
      assert.ok(other.bytes().every((byte) => byte === 0));
      other.unregister();
    }
  }
  // Moved away: it reads zeros afterwards; the device goes on reaching memory meanwhile.
  {
    const { memory, end } = await show();
    const escaped = await moved(kept.direct);
    registers.write64(0, device.iovaOf(memory.va));
    registers.flush?.(0);
    assert.equal(kept.direct.length, LENGTH);
    assert.equal(kept.direct[0], 3);
    end();
    assert.equal(kept.direct.length, 0);
    assert.ok(escaped.every((byte) => byte === 0));
    escaped.fill(1);
  }
  // The memory of a region.
  part.write32(4096, 77);
  const before = kept.region;
  const region = await moved(kept.region);
  if (process.env.BUS === 'vdev') assert.throws(() => part.read32(4096), { code: 'EIO' });
  else assert.equal(part.read32(4096), 77);
  await eal.remove(device);
  await close();
  assert.equal(before.length, 0);
  region.fill(2);
  await eal.stop();
  await turn();
  region.fill(3);
  rmSync(directory, { recursive: true });
  console.log('lives');
`;

describe('a model that keeps what it was lent', SKIP, () => {
  for (const bus of ['vfio-user', 'vdev'])
    it(`${bus}: neither faults nor meets the next owner`, () => {
      const { status, signal, stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', PROGRAM], {
        encoding: 'utf8',
        env: { ...process.env, BUS: bus },
      });
      assert.deepEqual([status, signal, stdout, stderr], [0, null, 'lives\n', '']);
    });
});
