/** What runs in a worker of the storm `workers`: it takes hold of something, says so, and ends as it was ordered. */
import { isMainThread, parentPort, workerData } from 'node:worker_threads';
import { Eal } from '../../src/eal.js';
import type { Device } from '../../src/bus/model.js';
import { isDmaError } from '../../src/errors.js';
import { deviceModel } from '../../src/vfio-user/devices/catalog.js';
import { serve } from '../../src/vfio-user/server.js';

const MiB = 2 ** 20;

export const ENDINGS = [
  'terminate',
  'terminate early',
  'terminate in a call',
  'process.exit()',
  'throw',
  'reject',
  'no heap left',
  'return',
  'stop and return',
] as const;

export const HOLDINGS = ['device', 'served', 'owned', 'heap', 'pool', 'all'] as const;

export interface Order {
  /** The socket of a device that no other worker uses at the time. */
  readonly device: string;
  /** Where to serve one. */
  readonly socketPath: string;
  readonly ending: (typeof ENDINGS)[number];
  readonly holding: (typeof HOLDINGS)[number];
}

export type Word = 'ready' | { readonly failed: string };

if (!isMainThread && parentPort !== null) {
  const port = parentPort;
  try {
    await work(workerData as Order);
  } catch (error) {
    port.postMessage({
      failed: error instanceof Error ? (error.stack ?? error.message) : String(error),
    } satisfies Word);
  }

  async function work({ device: name, socketPath, ending, holding }: Order): Promise<void> {
    const eal = await Eal.start({ onForgotten: () => undefined });
    const is = (what: Order['holding']): boolean => holding === what || holding === 'all';
    const held: unknown[] = [eal];
    let device: Device | undefined;
    if (is('device') || ending === 'terminate in a call') {
      device = await probe(eal, name);
      const memory = eal.external.allocate(4 * MiB);
      held.push(memory, device.dmaMap(memory));
      memory.bytes().fill(7);
    }
    if (holding === 'served') held.push(serve(eal.platform, { socketPath, model: deviceModel('edu') }));
    if (is('owned')) for (let n = 0; n < 8; n++) held.push(eal.malloc((1 << n) * 4096));
    if (is('heap')) {
      eal.heaps.create('mine');
      eal.heaps.addMemory('mine', eal.external.allocate(2 * MiB));
      held.push(eal.malloc(MiB / 2, { heap: 'mine' }));
    }
    if (is('pool')) held.push(eal.pools.create({ elements: 500, elementSize: 2048 }));
    port.postMessage('ready' satisfies Word);
    await new Promise((resolve) => port.once('message', resolve));
    const busy = setInterval(() => held.push(eal.external.allocate(4096).bytes()), 1);
    switch (ending) {
      case 'process.exit()':
        setTimeout(() => process.exit(3), 5);
        return;
      case 'throw':
        setTimeout(() => {
          throw new Error('of the storm');
        }, 5);
        return;
      case 'reject':
        setTimeout(() => void Promise.reject(new Error('of the storm')), 5);
        return;
      case 'no heap left':
        // Some other ways to run out end the whole process on Node 24 and 26.
        setTimeout(() => {
          for (const all = []; ;) all.push({ list: [all.length] });
        }, 5);
        return;
      case 'terminate in a call': {
        const memory = eal.external.allocate(MiB);
        setInterval(() => device?.dmaMap(memory).unmap(), 0);
        return;
      }
      case 'stop and return':
        clearInterval(busy);
        for (const each of held) if (isServer(each)) await each.close();
        await eal.stop();
        return;
      case 'return':
        // Only what has to hold a thread does: a server is closed, the idle device is forgotten.
        clearInterval(busy);
        for (const each of held) if (isServer(each)) await each.close();
        return;
      default:
    }
  }
}

function isServer(each: unknown): each is { close(): Promise<void>; closed: Promise<void> } {
  return typeof each === 'object' && each !== null && 'closed' in each;
}

/** The last client may be on its way out. */
async function probe(eal: Eal, socketPath: string): Promise<Device> {
  for (let tries = 1; ; tries++) {
    try {
      return await eal.probe(`vfio-user:${socketPath}`);
    } catch (error) {
      if (!isDmaError(error) || tries === 100) throw error;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}
