/**
 * Worker threads with live devices of other processes, served devices, owned memory and heaps, that end in every way. The
 * main thread goes on, the devices take the next client, and all that the workers had is given back.
 */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { isDmaError } from '../../../src/errors.js';
import { openPlatform } from '../../../src/platform/open.js';
import { VfioUserClient } from '../../../src/vfio-user/client.js';
import { spawnDevice, type DeviceProcess } from '../../../src/vfio-user/device-process.js';
import type { Storm, Weather } from '../storm.js';
import { ENDINGS, HOLDINGS, type Order, type Word } from '../worker.js';

/** So many at once. */
const WORKERS = 2;
/** Ways to end that are orders of the main thread; the others a worker does itself. */
const TERMINATED = ['terminate', 'terminate early', 'terminate in a call'];
/** Milliseconds that no worker needs to end. */
const LATE = 30_000;

export async function begin({ random, gc }: Weather): Promise<Storm> {
  const platform = openPlatform();
  const devices: DeviceProcess[] = [];
  for (let n = 0; n < WORKERS; n++) devices.push(await spawnDevice('copy'));
  const seen = Object.fromEntries([...ENDINGS, 'clients of workers'].map((what) => [what, 0]));

  let gone = 0;

  /** A worker comes and goes. */
  const one = async (slot: number, order: Order, wait: number): Promise<void> => {
    const worker = new Worker(new URL('../worker.js', import.meta.url), {
      workerData: order,
      resourceLimits: { maxOldGenerationSizeMb: 64, maxYoungGenerationSizeMb: 4 },
      stderr: true,
    });
    const errors: unknown[] = [];
    worker.on('error', (error) => errors.push(error));
    const ended = new Promise<number>((resolve) => worker.once('exit', resolve));
    const end = (): Promise<unknown> => worker.terminate();
    let client: VfioUserClient | undefined;
    try {
      if (order.ending === 'terminate early') {
        await sleep(wait * 10);
        await end();
      } else {
        const word = await Promise.race([
          new Promise<Word>((resolve) => worker.once('message', resolve)),
          ended.then((status): Word => ({ failed: `it ended with ${status}: ${errors.map(String).join(', ')}` })),
        ]);
        if (word !== 'ready') throw new Error(`a worker failed: ${word.failed}`);
        if (order.holding === 'served') {
          client = await VfioUserClient.connect(platform, order.socketPath, { timeoutMs: 5000 });
          await client.regionReadAsync(0, 0, new Uint8Array(4));
          seen['clients of workers']++;
        }
        worker.postMessage('go');
        await sleep(wait);
        if (TERMINATED.includes(order.ending)) await end();
      }
      const status = await Promise.race([ended, sleep(LATE, undefined, { ref: false })]);
      assert.notEqual(status, undefined, `slot ${slot}: a worker does not end: ${order.ending}, ${order.holding}`);
      seen[order.ending]++;
      gone++;
    } finally {
      client?.close();
      await end();
    }
  };

  return {
    seen,
    // koffi keeps the stack of its calls for each worker that has used it, also without this library; see docs/threads-and-processes.md.
    allowed: () => ({ mappings: 3 * gone, addresses: 3080 * gone, rss: 64 * gone }),
    async round(number) {
      const all = devices.map((device, slot) => {
        const order: Order = {
          device: device.socketPath,
          socketPath: join(tmpdir(), `served-${slot}`),
          // All of them happen in a short run, too.
          ending: ENDINGS[(number * WORKERS + slot) % ENDINGS.length],
          holding: random.pick(HOLDINGS),
        };
        return one(slot, order, random.below(30));
      });
      for (const result of await Promise.allSettled(all)) if (result.status === 'rejected') throw result.reason;
      if (gc !== undefined && random.oneIn(4)) gc();
      if (random.oneIn(4)) await comeIn();
    },
    async calm() {
      await comeIn();
      // Names of files stay when a server's thread is ended; the next one replaces them.
      for (let slot = 0; slot < WORKERS; slot++) rmSync(join(tmpdir(), `served-${slot}`), { force: true });
    },
    async close() {
      for (const device of devices) await device.close();
    },
  };

  /** The devices serve whoever comes after a worker. */
  async function comeIn(): Promise<void> {
    for (const { socketPath } of devices) {
      for (let tries = 1; ; tries++) {
        try {
          const client = await VfioUserClient.connect(platform, socketPath);
          await client.regionReadAsync(0, 0, new Uint8Array(4));
          client.close();
          break;
        } catch (error) {
          // The server may not have seen yet that the last client is gone.
          if (!isDmaError(error) || tries === 100) throw error;
          await sleep(10);
        }
      }
    }
  }
}
