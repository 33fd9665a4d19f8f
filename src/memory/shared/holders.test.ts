import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { isMainThread, parentPort, threadId, Worker, workerData } from 'node:worker_threads';
import { until } from '../../../test/shared/until.js';
import { isDmaError } from '../../errors.js';
import { openPlatform } from '../../platform/open.js';
import { portablePlatform } from '../../platform/portable.js';
import { Holders, NOBODY } from './holders.js';

const { kernel, memory, files, limitation } = openPlatform();
const SKIP = { skip: limitation ?? false };

/** The words of a table for 7 holders, as tests write into them: 16 words an entry, entry 0 is the header. */
function smallTable(): { holders: Holders; words: Int32Array } {
  const buffer = new SharedArrayBuffer(Holders.bytesFor(7));
  return { holders: Holders.create(kernel, buffer), words: new Int32Array(buffer) };
}

function enterInWorker(buffer: SharedArrayBuffer, name = ''): Worker {
  return new Worker(new URL(import.meta.url), { workerData: { buffer, name } });
}

/** A process that enters the table in the memfd `fd`, tells its number, and waits. */
function enterInProcess(fd: number): ChildProcess {
  const file = fileURLToPath(import.meta.url);
  return spawn(process.execPath, [file, 'enter'], { stdio: ['pipe', 'pipe', 'inherit', fd] });
}

async function idFrom(child: ChildProcess): Promise<number> {
  const [text] = (await once(child.stdout ?? child, 'data')) as [Buffer];
  return Number(text.toString());
}

function tests(): void {
  void describe('Holders', () => {
    void it('gives a thread one number, by any object over the same words', () => {
      const { holders } = smallTable();
      assert.equal(holders.mine, NOBODY);
      const id = holders.enter('store');
      assert.ok(id >= 1 && id <= 7);
      assert.deepEqual([holders.enter(), holders.mine], [id, id]);
      assert.equal(Holders.attach(kernel, holders.buffer).enter(), id);
      assert.ok(holders.isAlive(id));
      assert.deepEqual([...holders.living()], [id]);
      assert.equal(holders.describe(id), `process ${process.pid} (store)`);
    });

    void it('gives a number out again only after it was released', () => {
      const { holders } = smallTable();
      const ids: number[] = [];
      for (let i = 0; i < 7; i++) {
        ids.push(holders.enter());
        holders.leave(holders.mine);
        assert.equal(holders.mine, NOBODY);
      }
      assert.deepEqual(ids, [1, 2, 3, 4, 5, 6, 7]);
      assert.deepEqual([[...holders.living()], [...holders.gone()]], [[], ids]);
      const full = (error: unknown): boolean => isDmaError(error, 'EAGAIN');
      assert.throws(() => holders.enter(), full);
      holders.release(3);
      holders.release(3);
      assert.deepEqual([...holders.gone()], [1, 2, 4, 5, 6, 7]);
      assert.equal(holders.enter(), 3);
      const busy = (error: unknown): boolean => isDmaError(error, 'EBUSY') && error.reason.includes(`${process.pid}`);
      assert.throws(() => holders.release(3), busy);
      assert.ok(holders.isAlive(3));
    });

    void it('knows no numbers that were not given out', () => {
      const { holders } = smallTable();
      for (const id of [0, -1, 1, 8, 1.5, NaN, 2 ** 31]) {
        assert.equal(holders.isAlive(id), false);
        assert.match(holders.describe(id), /nobody|not there/);
        holders.leave(id);
        holders.release(id);
      }
      assert.equal(holders.enter(), 1);
    });

    void it('shows names as they are, cut, and without control characters', () => {
      for (const [name, shown] of [
        ['wörker 1', 'wörker 1'],
        ['a\u001b[31mb\n', 'a?[31mb?'],
        ['é'.repeat(20), 'é'.repeat(16)],
      ]) {
        const { holders } = smallTable();
        assert.equal(holders.describe(holders.enter(name)), `process ${process.pid} (${shown})`);
      }
    });

    void it('refuses what is no table', () => {
      const { holders, words } = smallTable();
      const einval = (error: unknown): boolean => isDmaError(error, 'EINVAL');
      assert.throws(() => Holders.create(kernel, new SharedArrayBuffer(64)), einval);
      assert.throws(() => Holders.create(kernel, new Uint8Array(new ArrayBuffer(1000), 2)), einval);
      for (const none of [new SharedArrayBuffer(0), new SharedArrayBuffer(4096), new ArrayBuffer(63), {}, undefined])
        assert.throws(() => Holders.attach(kernel, none as SharedArrayBuffer), einval);
      for (const capacity of [0, -1, 8, 2 ** 31 - 1]) {
        words[1] = capacity;
        assert.throws(() => Holders.attach(kernel, holders.buffer), einval);
      }
    });

    void it('goes on whatever others write into its words', () => {
      let state = 7;
      const random = (): number => (state = (Math.imul(state, 1664525) + 1013904223) | 0);
      const nonsense = [0, -1, 1, 2, 7, 2 ** 31 - 1, -(2 ** 31), process.pid];
      for (let round = 0; round < 300; round++) {
        const { holders, words } = smallTable();
        const mine = holders.enter('mine');
        for (let i = 0; i < 40; i++)
          words[2 + ((random() >>> 8) % (words.length - 2))] = nonsense[(random() >>> 8) % 8];
        for (const id of [...holders.living(), ...holders.gone(), mine]) {
          assert.equal(typeof holders.describe(id), 'string');
          holders.isAlive(id);
          if (id !== mine) holders.leave(id);
        }
        for (const id of holders.gone()) holders.release(id);
        assert.equal(holders.enter(), mine);
        try {
          Holders.attach(kernel, holders.buffer).enter();
        } catch (error) {
          assert.ok(isDmaError(error, 'EAGAIN') || isDmaError(error, 'EINVAL'), String(error));
        }
      }
    });

    void it('without /proc: threads of this process, until they leave', () => {
      const portable = portablePlatform('a test').kernel;
      const holders = Holders.create(portable);
      const id = holders.enter();
      assert.ok(Holders.attach(portable, holders.buffer).isAlive(id));
      holders.leave(id);
      assert.ok(!holders.isAlive(id));
    });
  });

  void describe('Holders of several threads and processes', SKIP, () => {
    void it('gives many that enter at once different numbers', async () => {
      const holders = Holders.create(kernel);
      const workers = Array.from({ length: 4 }, (_, i) => enterInWorker(holders.buffer as SharedArrayBuffer, `w${i}`));
      const ids = await Promise.all(workers.map(async (worker) => ((await once(worker, 'message')) as [number])[0]));
      assert.equal(new Set([...ids, holders.enter()]).size, 5);
      assert.deepEqual([...holders.living()], [1, 2, 3, 4, 5]);
      const [id] = ids;
      assert.match(holders.describe(id), new RegExp(`^worker thread \\d+ of process ${process.pid} \\(w0\\)$`));
      for (const worker of workers) await worker.terminate();
      assert.deepEqual([...holders.living()], [holders.mine]);
      assert.deepEqual([...holders.gone()].length, 4);
    });

    void it('knows that a worker was terminated, and names it by its thread', async () => {
      const { holders } = smallTable();
      const worker = enterInWorker(holders.buffer as SharedArrayBuffer);
      const [id] = (await once(worker, 'message')) as [number];
      assert.match(
        holders.describe(id),
        new RegExp(`^worker thread ${worker.threadId} of process ${process.pid} \\(tid`),
      );
      assert.ok(holders.isAlive(id));
      await worker.terminate();
      await until(() => !holders.isAlive(id));
      assert.deepEqual([...holders.gone()], [id]);
    });

    void it('knows that a process was killed, also while nobody has waited for it', async () => {
      const length = 64 * 1024;
      const fd = memory.memfd({ name: 'holders', length });
      const va = memory.map({ length, fd });
      const buffer = memory.view(va, length);
      const holders = Holders.create(kernel, buffer);
      const child = enterInProcess(fd);
      const id = await idFrom(child);
      assert.equal(holders.describe(id), `process ${child.pid} (child)`);
      assert.ok(holders.isAlive(id));
      child.kill('SIGKILL');
      // Without a turn of the event loop it stays a zombie.
      const nap = new Int32Array(new SharedArrayBuffer(4));
      while (!(kernel.readText(`/proc/${child.pid}/stat`) ?? ' Z ').includes(' Z ')) Atomics.wait(nap, 0, 0, 5);
      assert.ok(!holders.isAlive(id));
      await once(child, 'exit');
      assert.ok(!holders.isAlive(id));
      memory.detach(buffer);
      memory.unmap(va, length);
      files.close(fd);
    });

    void it('is not deceived by a number that another thread has now', () => {
      const { holders, words } = smallTable();
      const id = holders.enter();
      // This very thread, had it started at another time.
      words[id * 16 + 2]++;
      assert.ok(!Holders.attach(kernel, holders.buffer).isAlive(id));
    });

    void it('takes the place of one that was killed while it entered', () => {
      const { holders, words } = smallTable();
      for (let id = 1; id <= 7; id++) words[id * 16] = 2 ** 30 + id;
      assert.equal(holders.enter(), 1);
      // One that is entering at this moment keeps its place.
      const { holders: others, words: more } = smallTable();
      for (let id = 1; id <= 7; id++) more[id * 16] = process.pid;
      assert.throws(
        () => others.enter(),
        (error) => isDmaError(error, 'EAGAIN'),
      );
    });
  });
}

if (process.argv[2] === 'enter') {
  const buffer = memory.view(memory.map({ length: 64 * 1024, fd: 3 }), 64 * 1024);
  process.stdout.write(String(Holders.attach(kernel, buffer).enter('child')));
  process.stdin.resume();
} else if (isMainThread || threadId === 0) tests();
else {
  const { buffer, name } = workerData as { buffer: SharedArrayBuffer; name: string };
  parentPort?.postMessage(Holders.attach(kernel, buffer).enter(name));
  parentPort?.on('message', () => undefined);
}
