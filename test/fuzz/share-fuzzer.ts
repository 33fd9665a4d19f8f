/**
 * Hostile processes of the same user at the channel of a primary: see share-attacker.ts. After each batch the attacker is killed at any
 * moment; then the primary must have no more than before, and a secondary that behaves has been served all the time.
 */
import assert from 'node:assert/strict';
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { isDmaError } from '../../src/errors.js';
import { Eal, KiB, MiB, type Pool } from '../../src/index.js';
import { NOISE, openDescriptors } from '../storm/figures.js';
import { Random } from '../shared/random.js';
import { SecondaryProcess } from '../shared/secondary-process.js';
import { until } from '../shared/until.js';
import { collect } from '../shared/garbage.js';
import { NOBODY, whyNotAsNobody } from '../shared/users.js';
import type { AttackReport } from './share-attacker.js';

/** What a run did. */
export interface ShareFuzzReport extends AttackReport {
  batches: number;
  /** Attackers that were killed in the middle. */
  killed: number;
  /** Calls of the secondary that behaves, and the longest one, in milliseconds. */
  served: number;
  longestMs: number;
  /** Inputs of another user. */
  ofOthers: number;
}

/** How much, from which seed. */
export interface ShareFuzzOptions {
  readonly inputs: number;
  readonly seed: number;
  /** Called after each batch. */
  readonly onBatch?: (report: ShareFuzzReport) => void;
}

const BATCH = 25_000;
/** No call of a secondary that behaves takes longer, whatever others do. */
const HANG_MS = 30_000;
/** What attackers map on. */
const DEVICE = 'vdev:edu0';
const ATTACKER = fileURLToPath(new URL('share-attacker.js', import.meta.url));

/**
 * Gives `inputs` inputs to a primary, in batches. A failing batch can be repeated alone: the error tells its seed.
 *
 * @throws Error that names the seed of the batch that found something
 */
export async function fuzzShare({ inputs, seed, onBatch }: ShareFuzzOptions): Promise<ShareFuzzReport> {
  const report: ShareFuzzReport = {
    ...{ inputs: 0, connections: 0, descriptors: 0, answered: 0, batches: 0, killed: 0 },
    ...{ served: 0, longestMs: 0, ofOthers: 0 },
  };
  const folder = mkdtempSync(join(tmpdir(), 'share-fuzz-'));
  const before = process.env['XDG_RUNTIME_DIR'];
  process.env['XDG_RUNTIME_DIR'] = folder;
  const target = await Target.start(folder);
  try {
    for (let n = 0; report.inputs < inputs; n++) {
      const count = Math.min(BATCH, inputs - report.inputs);
      try {
        await target.batch(new Random(seed + n), seed + n, count, report);
      } catch (cause) {
        throw new Error(`batch failed; repeat it with --seed ${seed + n} --inputs ${BATCH}`, { cause });
      }
      report.batches++;
      onBatch?.(report);
    }
    await target.asAnotherUser(seed, Math.min(BATCH, inputs), report);
    await target.close();
    return report;
  } finally {
    // After a failure, which says more than that it can not be stopped.
    await target.close().catch(() => undefined);
    if (before === undefined) delete process.env['XDG_RUNTIME_DIR'];
    else process.env['XDG_RUNTIME_DIR'] = before;
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The primary, in this process, and a secondary that behaves. */
class Target {
  readonly #path: string;
  #attacker: ChildProcess | undefined;

  private constructor(
    readonly folder: string,
    readonly eal: Eal,
    readonly good: SecondaryProcess,
  ) {
    this.#path = join(folder, 'anydma', 'target.sock');
  }

  static async start(folder: string): Promise<Target> {
    const eal = await Eal.start({
      name: 'target',
      memory: { noHuge: true, onNotice: () => undefined },
      onForgotten: () => undefined,
      // A secondary that behaves answers in time on a busy machine, too.
      secondaryTimeoutMs: 5000,
    });
    await eal.probe(DEVICE);
    eal.zones.reserve('keep', 4 * KiB);
    eal.external.allocate(64 * KiB, { label: 'frames' });
    eal.heaps.create('named');
    eal.heaps.addMemory('named', eal.external.allocate(MiB));
    // The first growth stays.
    eal.malloc(8 * MiB).free();
    const good = await SecondaryProcess.attach('target', 'good');
    await good.run(async ({ store, kept }) => {
      const pool = await store.pools.create({ name: 'own', elements: 64, elementSize: 64 });
      Object.assign(kept, { zone: await store.zones.find('keep'), pool });
    });
    return new Target(folder, eal, good);
  }

  /** One attacker, until it has given its inputs or is killed. */
  async batch(random: Random, seed: number, inputs: number, report: ShareFuzzReport): Promise<void> {
    await this.#tidy();
    await until(() => this.eal.secondaries.length === 1);
    const before = this.#figures();
    const child = fork(ATTACKER, [this.#path, String(seed), String(inputs)]);
    this.#attacker = child;
    let last: AttackReport = { inputs: 0, connections: 0, descriptors: 0, answered: 0 };
    child.on('message', (message) => (last = message as AttackReport));
    const ended = once(child, 'exit') as Promise<[number | null, string | null]>;
    let over = false;
    void ended.then(() => (over = true));
    let killAt = random.oneIn(2) ? (0.3 + random.below(60) / 100) * inputs : Infinity;
    while (!over) {
      await this.#serve(report);
      // Killed in the middle, with whatever is in flight.
      if (last.inputs > killAt && child.kill('SIGKILL')) {
        report.killed++;
        killAt = Infinity;
      }
      await Promise.race([ended, sleep(20)]);
    }
    const [status, signal] = await ended;
    this.#attacker = undefined;
    assert.ok(signal === 'SIGKILL' || status === 0, `the attacker itself ended with ${status ?? signal}`);
    assert.ok(last.inputs > 0, 'the attacker has done nothing');
    report.inputs += last.inputs;
    report.connections += last.connections;
    report.descriptors += last.descriptors;
    report.answered += last.answered;
    await until(() => this.eal.secondaries.length === 1);
    await this.#tidy();
    // One after the other, on another thread: thousands take a while on a busy machine.
    await until(() => this.eal.platform.files.closing() === 0, 'descriptors of the attacker are closed', 10 * 60_000);
    await until(() => {
      // Addresses wait until views of them are collected.
      collect();
      const after = this.#figures();
      return Object.entries(before).every(
        ([what, count]) => after[what] <= count + (what === 'mappings' ? NOISE.mappings : 0),
      );
    }).catch(() => {
      console.error(openDescriptors().join('\n'));
      assert.deepEqual(this.#figures(), before, 'something was left behind');
    });
    await this.#serve(report);
  }

  /** A user without rights, who can reach the socket, is told nothing. */
  async asAnotherUser(seed: number, inputs: number, report: ShareFuzzReport): Promise<void> {
    if (whyNotAsNobody() !== undefined) return;
    const gates = [this.folder, join(this.folder, 'anydma'), this.#path];
    for (const path of gates) chmodSync(path, 0o777);
    const child = fork(ATTACKER, [this.#path, String(seed), String(inputs)], {
      uid: NOBODY,
      gid: NOBODY,
      cwd: '/',
      env: { ...process.env, TMPDIR: '/tmp' },
    } as Parameters<typeof fork>[2]);
    let last: AttackReport | undefined;
    child.on('message', (message) => (last = message as AttackReport));
    const [status] = (await once(child, 'exit')) as [number | null];
    for (const path of gates) chmodSync(path, 0o700);
    assert.equal(status, 0);
    assert.ok(last !== undefined && last.inputs >= inputs);
    assert.equal(last.answered, 0, 'another user was told something');
    report.ofOthers = last.inputs;
    await this.#serve(report);
  }

  /** The secondary that behaves uses everything. */
  async #serve(report: ShareFuzzReport): Promise<void> {
    const begin = performance.now();
    const work = this.good.run(async ({ store, kept }) => {
      const block = await store.malloc(4096);
      block.bytes().fill(3);
      await block.free();
      const zone = Reflect.get(kept, 'zone') as { bytes(): Uint8Array };
      const pool = Reflect.get(kept, 'pool') as Pool;
      zone.bytes()[0]++;
      const burst = new Int32Array(32);
      if (!pool.get(burst, 32)) throw new Error('elements of its pool are missing');
      pool.put(burst, 32);
      return true;
    });
    const timer = sleep(HANG_MS, false, { ref: false });
    assert.ok(await Promise.race([work, timer]), `the primary did not answer for ${HANG_MS} ms`);
    report.served++;
    report.longestMs = Math.max(report.longestMs, Math.round(performance.now() - begin));
  }

  /** Makes named things and devices what they were: they stay when who made them ends. Waits until nobody holds them. */
  async #tidy(): Promise<void> {
    const { eal } = this;
    await until(async () => {
      try {
        for (const zone of [...eal.zones]) if (zone.name !== 'keep') zone.free();
        for (const ring of [...eal.rings]) ring.free();
        for (const pool of [...eal.pools]) if (pool.name !== 'own') pool.free();
        // Any process may remove a device and probe another one; they are nobody's.
        for (const device of eal.devices()) if (device.name !== DEVICE) await eal.remove(device);
        if (eal.find(DEVICE) === undefined) await eal.probe(DEVICE);
        return true;
      } catch (error) {
        if (isDmaError(error, 'EBUSY')) return false;
        throw error;
      }
    }, 'what has a name can be freed, and devices can be removed');
    eal.memory.trim();
  }

  #figures(): Record<string, number> {
    const { eal } = this;
    return {
      descriptors: openDescriptors().length,
      mappings: readFileSync('/proc/self/maps', 'utf8').split('\n').length,
      external: [...eal.external].length,
      zones: [...eal.zones].length,
      pools: [...eal.pools].length,
      rings: [...eal.rings].length,
      devices: eal.devices().length,
      blocks: [...eal.heaps].reduce((sum, heap) => sum + heap.statistics().allocatedBlocks, 0),
      'mapped for devices': eal.devices().reduce((sum, { domain }) => sum + [...(domain?.mappings() ?? [])].length, 0),
    };
  }

  async close(): Promise<void> {
    this.#attacker?.kill('SIGKILL');
    await this.good[Symbol.asyncDispose]();
    await this.eal.stop();
  }
}
