/** Servers that mean no good, and servers that die: whatever they do, a call succeeds or says why, and nothing is left. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { copyEngineDriver } from '../../../src/drivers/copy-engine-driver.js';
import { Eal } from '../../../src/eal.js';
import type { Device } from '../../../src/bus/model.js';
import { isDmaError } from '../../../src/errors.js';
import { spawnDevice } from '../../../src/vfio-user/device-process.js';
import { fuzz } from '../../fuzz/vfio-user-fuzzer.js';
import { KINDS, type HostileServerOptions } from '../hostile-server.js';
import type { Storm, Weather } from '../storm.js';

const MiB = 2 ** 20;

export async function begin({ random, gc }: Weather): Promise<Storm> {
  const socketPath = join(tmpdir(), 'hostile');
  const options: HostileServerOptions = { socketPath, seed: random.below(2 ** 31) };
  const server = new Worker(new URL('../hostile-server.js', import.meta.url), { workerData: options });
  await once(server, 'message');
  const seen = { lies: 0, probed: 0, 'calls done': 0, failed: 0, deaths: 0 };
  const eal = await Eal.start({ memory: { noHuge: true }, onForgotten: () => undefined });
  let met = 0;

  /** Failing is fine, with a typed error. */
  const attempt = async (call: () => unknown): Promise<void> => {
    try {
      await call();
      seen['calls done']++;
    } catch (error) {
      assert.ok(isDmaError(error), error instanceof Error ? error.stack : String(error));
      seen.failed++;
    }
  };

  const meet = async (): Promise<void> => {
    met++;
    let device: Device;
    try {
      device = await eal.probe(`vfio-user:${socketPath},timeout=40`);
    } catch (error) {
      assert.ok(isDmaError(error), error instanceof Error ? error.stack : String(error));
      seen.failed++;
      return;
    }
    seen.probed++;
    const memory = eal.external.allocate(64 * 1024);
    const bytes = new Uint8Array(4);
    const calls: readonly (() => unknown)[] = [
      () => device.dmaMap(memory).unmap(),
      async () => (await device.dmaMapAsync(memory)).unmap(),
      () => device.access.registers(0).read32(4 * random.below(2000)),
      () => device.access.registers(0).write32(4 * random.below(2000), 5),
      () => device.access.reset(),
      () => eal.malloc(4 * MiB).free(),
      () => eal.dmaMapAll(memory).unmap(),
      () => bytes.fill(0),
    ];
    for (let left = random.below(12); left > 0; left--) {
      await attempt(random.pick(calls));
      if (random.oneIn(3)) await sleep(random.below(4));
    }
    await attempt(() => eal.remove(device));
    assert.deepEqual(eal.devices(), []);
    // What a device that went has not answered about is given back as well.
    memory.unregister();
  };

  /** A good server is killed while it copies. */
  const die = async (): Promise<void> => {
    const served = await spawnDevice('copy');
    const device = await eal.probe(`vfio-user:${served.socketPath}`);
    const source = eal.external.allocate(4 * MiB);
    const target = eal.external.allocate(4 * MiB);
    const from = device.dmaMap(source);
    const to = device.dmaMap(target);
    const lost = once(eal.events, 'lost');
    const copies = Promise.allSettled(
      Array.from({ length: 8 }, () => device.use(copyEngineDriver).copy(from.iova, to.iova, 4 * MiB)),
    );
    await sleep(random.below(6));
    process.kill(served.pid, 'SIGKILL');
    for (const result of await copies)
      if (result.status === 'rejected') assert.ok(isDmaError(result.reason), String(result.reason));
    await lost;
    from.unmap();
    to.unmap();
    source.unregister();
    target.unregister();
    await served.close();
    seen.deaths++;
  };

  return {
    seen,
    async round(number) {
      if (number % 10 === 9) await die();
      else if (number % 10 === 4) {
        await fuzz({ messages: 200, batch: 200, seed: random.below(2 ** 31) });
        seen.lies++;
      } else await meet();
      if (gc !== undefined && random.oneIn(10)) gc();
    },
    async calm() {
      // One client of each kind, so that the server's own things are the same each time.
      while (met % KINDS.length !== 0) await meet();
      eal.memory.trim();
      await sleep(50);
    },
    async close() {
      await eal.stop();
      server.postMessage('end');
      await once(server, 'exit');
    },
  };
}
