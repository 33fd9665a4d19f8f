/** Every call with few descriptors left, or none: it succeeds or says so, loses nothing, and works again afterwards. */
import { closeSync, openSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Eal } from '../../../src/eal.js';
import { NO_DESCRIPTORS } from '../../../src/errors.js';
import { deviceModel } from '../../../src/vfio-user/devices/catalog.js';
import { spawnDevice } from '../../../src/vfio-user/device-process.js';
import { serve } from '../../../src/vfio-user/server.js';
import { shortageRounds } from '../shortage.js';
import type { Storm, Weather } from '../storm.js';

const MiB = 2 ** 20;
/** More than any of the calls needs. */
const MOST = 24;

export async function begin({ random }: Weather): Promise<Storm> {
  const served = await spawnDevice('copy');
  const eal = await Eal.start({ onForgotten: () => undefined });
  const device = await eal.probe('vdev:copy0');
  const socketPath = join(tmpdir(), 'here');
  const file = openSync('/proc/self/exe', 'r');
  const calls = {
    start: async () => {
      const another = await Eal.start({
        memory: { size: 4 * MiB, filePrefix: undefined },
        onForgotten: () => undefined,
      });
      await another.stop();
    },
    allocate: () => {
      const memory = eal.external.allocate(64 * 1024);
      try {
        device.dmaMap(memory).unmap();
      } finally {
        memory.unregister();
      }
    },
    'from a descriptor': () => eal.external.fromFd(file, { length: 4096, writable: false }).unregister(),
    malloc: () => {
      eal.malloc(3 * MiB).free();
      eal.memory.trim();
    },
    pool: () => eal.pools.create({ elements: 100, elementSize: 2048 }).free(),
    vdev: async () => eal.remove(await eal.probe('vdev:edu0')),
    'vfio-user': async () => eal.remove(await eal.probe(`vfio-user:${served.socketPath}`)),
    serve: () => serve(eal.platform, { socketPath, model: deviceModel('edu') }).close(),
    scan: () => eal.scan(),
    'spawn a device': async () => (await spawnDevice('edu')).close(),
  };
  // Starting a process takes long: it has its turn less often.
  const short = (Object.keys(calls) as (keyof typeof calls)[]).filter((name) => name !== 'spawn a device');
  const rounds = shortageRounds({
    calls,
    pick: () => (random.oneIn(30) ? 'spawn a device' : random.pick(short)),
    codes: NO_DESCRIPTORS,
    begin() {
      const taken = takeAll();
      for (let left = random.below(MOST); left > 0; left--) {
        const fd = taken.pop();
        if (fd !== undefined) closeSync(fd);
      }
      return () => {
        for (const fd of taken) closeSync(fd);
      };
    },
    async again(call, name) {
      for (let tries = 1; ; tries++) {
        try {
          await call();
          return;
        } catch (error) {
          // The device may not have seen yet that the last client has gone.
          if (name !== 'vfio-user' || tries === 100) throw error;
          await sleep(5);
        }
      }
    },
  });

  return {
    ...rounds,
    async calm() {
      eal.memory.trim();
      await sleep(20);
    },
    async close() {
      closeSync(file);
      await eal.stop();
      await served.close();
    },
  };
}

/** Takes all descriptors that there are. */
function takeAll(): number[] {
  const taken: number[] = [];
  for (;;) {
    try {
      taken.push(openSync('/dev/null', 'r'));
    } catch {
      return taken;
    }
  }
}
