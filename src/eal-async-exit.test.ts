/** A process or worker thread that ends, in every way, while calls of this library are running on other threads. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { describe, it } from 'node:test';
import { openPlatform } from './platform/open.js';

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
        eal.external.allocateAsync(512 * MiB, { onProgress }).then(() => reject(new Error('too early')), () => undefined);
      });
    },
    async grow(eal) {
      await new Promise((resolve) => {
        eal.mallocAsync(512 * MiB, { onProgress: () => resolve() }).catch(() => undefined);
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
    const worker = new Worker(new URL('data:text/javascript,' + encodeURIComponent(source)), {
      workerData: { source, work, end, where },
      stderr: true,
    });
    worker.on('error', () => undefined);
    worker.on('message', () => {
      if (end === 'worker.terminate') void worker.terminate();
      if (end === 'process.exit of the main thread') process.exit(9);
    });
    worker.on('exit', (status) => {
      console.log('the worker ended with', status);
      // Whatever is still coming comes before this.
      setTimeout(() => console.log('the process lives'), 50);
    });
  } else {
    const eal = await Eal.start({ memory: { noHuge: true }, onForgotten: () => undefined });
    const device = await eal.probe('vdev:copy0');
    await begin[work](eal, device);
    parentPort?.postMessage('begun');
    ends[end]?.();
  }
`;

interface Ended {
  readonly status: unknown;
  readonly stdout: string;
  readonly stderr: string;
}

async function run(work: string, end: string, where: string): Promise<Ended> {
  const child = spawn(process.execPath, ['--input-type=module', '-e', PROGRAM], {
    env: { ...process.env, TEST_ARGUMENTS: JSON.stringify({ source: PROGRAM, work, end, where }) },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 120_000,
    killSignal: 'SIGKILL',
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  const status = await new Promise((resolve) => child.on('close', (code, signal) => resolve(signal ?? code)));
  return { status, stdout, stderr };
}

describe('the end, while other threads work for this library', SKIP, () => {
  for (const work of ['populate', 'grow', 'map', 'unmap']) {
    it(`${work}: process.exit and uncaught errors end the process as ever`, async () => {
      const left = await run(work, 'process.exit', 'the main thread');
      assert.deepEqual(left, { status: 7, stdout: '', stderr: '' });
      const { status, stderr } = await run(work, 'an uncaught error', 'the main thread');
      assert.equal(status, 1, stderr);
      assert.match(stderr, /not caught/);
    });

    it(`${work}: a worker ends in every way, and the process lives`, async () => {
      for (const [end, status] of [
        ['process.exit', 7],
        ['an uncaught error', 1],
        ['worker.terminate', 1],
      ] as const) {
        const { stdout, ...others } = await run(work, end, 'a worker');
        assert.deepEqual(others, { status: 0, stderr: '' }, end);
        assert.equal(stdout, `the worker ended with ${status}\nthe process lives\n`, end);
      }
      const ended = await run(work, 'process.exit of the main thread', 'a worker');
      assert.deepEqual(ended, { status: 9, stdout: '', stderr: '' });
    });
  }
});
