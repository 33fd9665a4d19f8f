/** Worker threads that end in every way, without `eal.stop()`: the process lives, and all that they had is given back. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { openPlatform } from './platform/open.js';
import { runModule, type Ended } from '../test/shared/programs.js';
import { spawnDevice, type DeviceProcess } from './vfio-user/device-process.js';

const SKIP = { skip: openPlatform().limitation ?? false };
const INDEX = JSON.stringify(new URL('./index.js', import.meta.url).href);

/** What a worker has when it ends: a connection, interrupts, mappings, all kinds of memory. */
const WORKER = `
  import { parentPort, workerData } from 'node:worker_threads';
  import { Eal, MiB } from ${INDEX};
  const { device: name, how } = workerData;
  // What a worker writes to a stream that nobody reads keeps the main thread's loop: Node's doing.
  const eal = await Eal.start({ onForgotten: () => undefined, memory: { onNotice: () => undefined } });
  const device = await eal.probe('vfio-user:' + name);
  const block = eal.malloc(3 * MiB);
  const memory = eal.external.allocate(4 * MiB);
  const mapping = device.dmaMap(memory);
  memory.bytes().fill(7);
  block.bytes().fill(8);
  globalThis.held = [eal, device, block, memory, mapping];
  parentPort.postMessage('ready');
  const timer = setInterval(() => memory.bytes()[0]++, 1);
  if (how === 'nothing left to do') timer.unref();
  if (how === 'process.exit()') setTimeout(() => process.exit(3), 20);
  if (how === 'an uncaught error') setTimeout(() => { throw new Error('mine'); }, 20);
  // Some ways to run out end the process on Node 24 and 26, with nothing of this library in it.
  if (how === 'no heap left') setTimeout(() => { for (const all = []; ; ) all.push({ list: [all.length] }); }, 5);
  if (how.endsWith('in a call of the device')) setInterval(() => device.dmaMap(memory), 0);
`;

/** A main thread that knows nothing of this library. \`round\` lets one worker come and go. */
const MAIN = `
  import { once } from 'node:events';
  import { readdirSync, readFileSync } from 'node:fs';
  import { setTimeout as sleep } from 'node:timers/promises';
  import { Worker } from 'node:worker_threads';
  const { device, source, how } = JSON.parse(process.env.TEST_ARGUMENTS);
  const start = async () => {
    const options = { workerData: { device, how }, resourceLimits: { maxOldGenerationSizeMb: 40, maxYoungGenerationSizeMb: 2 }, stderr: true };
    const worker = new Worker(new URL('data:text/javascript,' + encodeURIComponent(source)), options);
    worker.on('error', () => undefined);
    const exited = new Promise((resolve) => worker.once('exit', resolve));
    const ready = new Promise((resolve) => worker.once('message', resolve));
    const said = await Promise.race([ready, exited.then((status) => 'ended with ' + status)]);
    if (said !== 'ready') throw new Error(said);
    return { worker, exited };
  };
  const round = async () => {
    const { worker, exited } = await start();
    if (how === 'terminate()' || how === 'terminate() in a call of the device') await worker.terminate();
    await exited;
  };
  const status = () => readFileSync('/proc/self/status', 'utf8');
  const now = () => ({
    descriptors: readdirSync('/proc/self/fd').length,
    memfds: readFileSync('/proc/self/maps', 'utf8').split('\\n').filter((line) => line.includes('anydma')).length,
    addressesGiB: Math.round(Number(/VmSize:\\s*(\\d+)/.exec(status())[1]) / 2 ** 20),
    hugepagesKiB: Number(/HugetlbPages:\\s*(\\d+)/.exec(status())?.[1] ?? 0),
  });
`;

interface Left {
  readonly descriptors: number;
  readonly memfds: number;
  readonly addressesGiB: number;
  readonly hugepagesKiB: number;
}

describe('a worker thread that never stops its Eal', SKIP, () => {
  let device: DeviceProcess;
  before(async () => {
    device = await spawnDevice('copy');
  });
  after(async () => {
    await device.close();
  });

  /** Runs `code` in a process of its own, after {@link MAIN}. */
  const main = (how: string, code: string): Promise<Ended> =>
    runModule(MAIN + code, { device: device.socketPath, source: WORKER, how });

  const endings = [
    'nothing left to do',
    'terminate()',
    'terminate() in a call of the device',
    'process.exit()',
    'an uncaught error',
    'no heap left',
  ];
  for (const how of endings) {
    it(`gives everything back when it ends: ${how}`, async () => {
      const { status, stdout, stderr } = await main(
        how,
        `
        await round();
        const before = now();
        for (let i = 0; i < 2; i++) await round();
        console.log(JSON.stringify([before, now()]));`,
      );
      assert.deepEqual([status, stderr], [0, '']);
      const [first, last] = JSON.parse(stdout) as [Left, Left];
      assert.deepEqual(last, first);
      assert.equal(last.memfds, 0);
      assert.equal(last.hugepagesKiB, 0);
    });
  }

  const mainEndings: readonly (readonly [how: string, code: string, status: number])[] = [
    ['process.exit()', 'process.exit(5);', 5],
    ['an uncaught error', "throw new Error('of the main thread');", 1],
    ['nothing left to do', 'worker.unref();', 0],
    ['process.exit() while the worker ends', 'void worker.terminate(); process.exit(5);', 5],
  ];
  for (const [how, code, expected] of mainEndings) {
    it(`does not disturb the end of the process: ${how}`, async () => {
      for (const of of ['', 'in a call of the device']) {
        const { status, stderr } = await main(of, `const { worker } = await start(); await sleep(20); ${code}`);
        assert.equal(status, expected, stderr);
      }
    });
  }

  it('does not fault what is left of its memory: escaped views, work in other threads', async () => {
    const source = `
      import { randomFill } from 'node:crypto';
      import { parentPort } from 'node:worker_threads';
      import { Eal, MiB } from ${INDEX};
      const eal = await Eal.start({ onForgotten: () => undefined });
      const pull = (controller) => controller.byobRequest?.respond(1);
      globalThis.kept = [];
      for (let i = 0; i < 4; i++) {
        const memory = eal.external.allocate(32 * MiB);
        const view = memory.bytes();
        if (i % 2 === 0) randomFill(view, () => undefined);
        else {
          const { value } = await new ReadableStream({ type: 'bytes', pull }).getReader({ mode: 'byob' }).read(view);
          kept.push(new Uint8Array(value.buffer));
        }
        if (i < 2) memory.unregister();
      }
      parentPort.postMessage('ready');
      setInterval(() => kept.forEach((view) => view.fill(1)), 1);`;
    const { status, stdout, stderr } = await main(
      '',
      `
      const source2 = ${JSON.stringify(source)};
      const one = async () => {
        const worker = new Worker(new URL('data:text/javascript,' + encodeURIComponent(source2)));
        await once(worker, 'message');
        await worker.terminate();
      };
      await one();
      const before = now();
      for (let i = 0; i < 2; i++) await one();
      console.log(JSON.stringify([before, now()]));`,
    );
    assert.deepEqual([status, stderr], [0, '']);
    const [first, last] = JSON.parse(stdout) as [Left, Left];
    assert.deepEqual(last, first);
  });

  it('does not take the memory of a pool from a thread that has attached to it', async () => {
    const maker = `
      import { parentPort } from 'node:worker_threads';
      import { Eal } from ${INDEX};
      const eal = await Eal.start({ memory: { onNotice: () => undefined } });
      parentPort.postMessage(eal.pools.create({ elements: 1000, elementSize: 2048, name: 'packets' }).share());
      setInterval(() => {}, 1000);`;
    const { status, stdout, stderr } = await main(
      '',
      `
      const { Eal, Pool } = await import(${INDEX});
      const { platform } = await Eal.start({ memory: { onNotice: () => undefined } });
      const worker = new Worker(new URL('data:text/javascript,' + encodeURIComponent(${JSON.stringify(maker)})));
      const [description] = await once(worker, 'message');
      const pool = Pool.attach(description, platform);
      const numbers = new Int32Array(2);
      pool.get(numbers, 2);
      const [element, other] = numbers;
      pool.bytes(element).fill(5);
      await worker.terminate();
      await sleep(50);
      pool.bytes(element).fill(6, 1);
      pool.bytes(other).fill(7);
      const read = [pool.bytes(element)[0], pool.bytes(element)[1], pool.bytes(other)[2047]];
      console.log(JSON.stringify(read));`,
    );
    assert.deepEqual([status, stdout.trim(), stderr], [0, '[5,6,7]', '']);
  });
});
