/** A process or worker thread that ends, in every way, while calls of this library are running on other threads. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { openPlatform } from './platform/open.js';
import { runModule, type Ended } from '../test/shared/programs.js';

const SKIP = { skip: openPlatform().limitation ?? false, concurrency: 2 };

/** Begins some long work, says so, and ends in the wished way; by itself, or in a worker of its own. */
const PROGRAM = `
  import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';
  import { Eal, MiB } from ${JSON.stringify(new URL('./index.js', import.meta.url).href)};
  const { source, work, end, where } = workerData ?? JSON.parse(process.env.TEST_ARGUMENTS);

  const begin = {
    async populate(eal) {
      await new Promise((resolve, reject) => {
        const onProgress = () => resolve();
        eal.external.allocateAsync(256 * MiB, { onProgress }).then(() => reject(new Error('too early')), () => undefined);
      });
    },
    async grow(eal) {
      await new Promise((resolve) => {
        eal.mallocAsync(256 * MiB, { onProgress: () => resolve() }).catch(() => undefined);
      });
    },
    async map(eal, device) {
      const memory = eal.external.allocate(256 * MiB, { populate: false });
      await new Promise((resolve) => {
        const options = { chunkBytes: MiB, onProgress: () => resolve() };
        device.dmaMapAsync(memory, options).catch(() => undefined);
      });
    },
    async unmap(eal) {
      const block = await eal.mallocAsync(256 * MiB);
      void block.freeAsync().catch(() => undefined);
      await new Promise((resolve) => setImmediate(resolve));
    },
  };
  const ends = {
    'process.exit': () => process.exit(7),
    'an uncaught error': () => { throw new Error('not caught'); },
  };
  if (isMainThread && where === 'a worker') {
    for (const each of end.split(', ')) {
      const worker = new Worker(new URL('data:text/javascript,' + encodeURIComponent(source)), {
        workerData: { source, work, end: each, where },
        stderr: true,
      });
      worker.on('error', () => undefined);
      worker.on('message', () => {
        if (each === 'worker.terminate') void worker.terminate();
        if (each === 'process.exit of the main thread') process.exit(9);
      });
      const status = await new Promise((resolve) => worker.on('exit', resolve));
      console.log(each + ': the worker ended with', status);
      // Whatever is still coming comes before this.
      await new Promise((resolve) => setTimeout(resolve, 50));
      console.log('the process lives');
    }
  } else {
    const eal = await Eal.start({ memory: { noHuge: true }, onForgotten: () => undefined });
    const device = await eal.probe('vdev:copy0');
    await begin[work](eal, device);
    parentPort?.postMessage('begun');
    ends[end]?.();
  }
`;

const run = (work: string, end: string, where: string): Promise<Ended> =>
  runModule(PROGRAM, { source: PROGRAM, work, end, where });

describe('the end, while other threads work for this library', SKIP, () => {
  for (const work of ['populate', 'grow', 'map', 'unmap']) {
    it(`${work}: process.exit and uncaught errors end the process as ever`, async () => {
      const left = await run(work, 'process.exit', 'the main thread');
      assert.deepEqual(left, { status: 7, stdout: '', stderr: '' });
      const { status, stderr } = await run(work, 'an uncaught error', 'the main thread');
      assert.equal(status, 1, stderr);
      assert.match(stderr, /not caught/);
    });

    it(`${work}: a worker ends in every way, and the process lives until it ends itself`, async () => {
      const end = 'process.exit, an uncaught error, worker.terminate, process.exit of the main thread';
      const { stdout, ...others } = await run(work, end, 'a worker');
      assert.deepEqual(others, { status: 9, stderr: '' });
      const lines = [];
      for (const ending of ['process.exit: the worker ended with 7', 'an uncaught error: the worker ended with 1'])
        lines.push(ending, 'the process lives');
      lines.push('worker.terminate: the worker ended with 1', 'the process lives', '');
      assert.equal(stdout, lines.join('\n'));
    });
  }
});
