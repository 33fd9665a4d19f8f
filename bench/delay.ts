/** The longest delay of the event loop while much memory is allocated, mapped and freed; and allocating in one thread and in several. */
import { freemem } from 'node:os';
import { Eal, formatSize, GiB, MiB, type Device } from '../src/index.js';
import { spawnDevice } from '../src/entry/model.js';
import { measure, time, timeAsync, type Case, type Effort, type Result } from './harness/harness.js';
import { longestDelay } from './harness/longest-delay.js';

const SIZES = [512 * MiB, 2 * GiB, 8 * GiB];

export async function benchDelay({ quick, progress }: Effort): Promise<Result[]> {
  await using eal = await Eal.start({ memory: { noHuge: true }, origins: false, onForgotten: () => undefined });
  await using served = await spawnDevice('copy');
  const devices = [await eal.probe('vdev:copy0'), await eal.probe(`vfio-user:${served.socketPath}`)];
  const results: Result[] = [];
  const rounds = { warmUp: 1, measured: quick ? 1 : 3 };
  for (const size of SIZES.filter((each) => 2 * each < freemem() && !(quick && each > SIZES[0]))) {
    progress(`delays of the event loop, ${formatSize(size)}`);
    results.push(
      ...(await measure(
        [...devices.map((device) => mapping(eal, device, size)), growing(eal, size), starting(size)],
        rounds,
      )),
    );
  }
  progress('getting pages in one thread and in several');
  results.push(...(await measure(touching(eal, SIZES[0]), rounds)));
  return results;
}

function mapping(eal: Eal, device: Device, size: number): Case {
  return {
    name: `longest delay: ${formatSize(size)} of external memory on ${device.bus.name}`,
    unit: 'us',
    count: 1,
    round: () =>
      longestDelay(async () => {
        const memory = await eal.external.allocateAsync(size);
        const map = await device.dmaMapAsync(memory);
        await map.unmapAsync();
        await memory.unregisterAsync();
      }),
  };
}

function growing(eal: Eal, size: number): Case {
  return {
    name: `longest delay: ${formatSize(size)} of memory that grows, and goes`,
    unit: 'us',
    count: 1,
    round: () =>
      longestDelay(async () => {
        const block = await eal.mallocAsync(size);
        await block.freeAsync();
        await eal.memory.trimAsync();
      }),
  };
}

function starting(size: number): Case {
  return {
    name: `longest delay: a start with ${formatSize(size)}, and the stop`,
    unit: 'us',
    count: 1,
    round: () =>
      longestDelay(async () => {
        const eal = await Eal.start({ memory: { noHuge: true, size } });
        await eal.stop();
      }),
  };
}

/** All pages of memory: what most of the time of mapping goes to. */
function touching(eal: Eal, size: number): Case[] {
  const one = `pages of ${formatSize(size)}, got in one thread`;
  const common = { unit: 'GB/s', count: size } as const;
  return [
    {
      ...common,
      name: one,
      round: () => {
        using memory = eal.external.allocate(size, { populate: false });
        return time(() => eal.platform.memory.populate(memory.va, size));
      },
    },
    {
      ...common,
      name: `pages of ${formatSize(size)}, got in ${eal.platform.memory.lanes} threads`,
      to: one,
      round: async () => {
        let unregister = async (): Promise<void> => undefined;
        const ms = await timeAsync(async () => {
          const memory = await eal.external.allocateAsync(size);
          unregister = async () => memory.unregisterAsync();
        });
        await unregister();
        return ms;
      },
    },
  ];
}
