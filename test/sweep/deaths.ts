/**
 * Processes that are killed at every step: a secondary and a primary, before each of their system calls, and inside of `get` and `put` of
 * a pool, at each of their atomic operations. Afterwards the other one goes on, nothing is left, and no element is lost or doubled.
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { Eal, MiB } from '../../src/index.js';
import { SecondaryProcess } from '../shared/secondary-process.js';
import { until } from '../shared/until.js';

/** Who is killed, and where. */
export const SIDES = ['secondary', 'primary', 'pool'] as const;
export type Side = (typeof SIDES)[number];

/** What a sweep did. */
export interface SweepReport {
  /** Steps that a whole run has. */
  steps: number;
  /** Runs that were killed. */
  killed: number;
  /** The longest time from a death until everything was given back, in milliseconds. */
  longestMs: number;
}

/** Which steps. */
export interface SweepOptions {
  /** The first step, and how many there are from one to the next. */
  readonly from?: number;
  readonly every: number;
  readonly onRun?: (at: number, report: SweepReport) => void;
}

const ELEMENTS = 48;

/** What counts in the process that is killed: system calls, or atomic operations. */
const COUNTING = `
  let calls = 0;
  const step = (at) => { if (++calls === at) process.kill(process.pid, 'SIGKILL'); };
  const countingCalls = (platform, at) => {
    const wrap = (port) => new Proxy(port, {
      get(target, key) {
        const value = Reflect.get(target, key);
        if (typeof value !== 'function') return value;
        return (...args) => { step(at); return Reflect.apply(value, target, args); };
      },
    });
    return Object.fromEntries(Object.entries(platform).map(([name, port]) => [name, typeof port === 'object' && port !== null ? wrap(port) : port]));
  };
  const countingAtomics = (at) => {
    const before = new Map();
    for (const key of ['load', 'store', 'compareExchange', 'or', 'and', 'add']) {
      const value = Atomics[key];
      before.set(key, value);
      Atomics[key] = (...args) => { step(at); return value(...args); };
    }
    return () => { for (const [key, value] of before) Atomics[key] = value; };
  };
`;

/** A secondary that does everything once. */
const SECONDARY = `
  const store = await anydma.Eal.attach('store', { platform: countingCalls(base, at) });
  const zone = await store.zones.find('zone');
  zone.bytes()[0] = 1;
  const block = await store.malloc(${5 * MiB});
  const own = await store.external.allocate(65536);
  const device = await store.find('vdev:edu0');
  const mapping = await device.dmaMap(own);
  const pool = await store.pools.find('packets');
  const burst = new Int32Array(20);
  if (!pool.get(burst, 20)) throw new Error('elements are missing');
  pool.put(burst, 10);
  const made = await store.zones.reserve('made', 4096);
  await made.free();
  await mapping.unmap();
  await own.detach();
  const frames = await store.external.attach('frames');
  await frames.detach();
  pool.put(burst, 10, 10);
  pool.free();
  await block.free();
  await zone.detach();
  await store.close();`;

/** A secondary that is killed inside of get and put, with and without the pool's lock. */
const POOL = `
  const store = await anydma.Eal.attach('store');
  const pool = await store.pools.find('packets');
  const burst = new Int32Array(${ELEMENTS});
  const end = countingAtomics(at);
  for (const count of [3, 20, 1, 12, 40, 5]) {
    if (!pool.get(burst, count)) throw new Error('elements are missing');
    pool.put(burst, count);
  }
  if (!pool.get(burst, 30)) throw new Error('elements are missing');
  pool.put(burst, 30);
  pool.recover();
  pool.free();
  end();
  await store.close();`;

/** A primary with a secondary. */
const PRIMARY = `
  const eal = await anydma.Eal.start({ name: 'store', platform: countingCalls(base, at), memory: { noHuge: true, onNotice: () => undefined }, onForgotten: () => undefined });
  eal.zones.reserve('zone', 4096).bytes()[0] = 7;
  const pool = eal.pools.create({ name: 'packets', elements: ${ELEMENTS}, elementSize: 64, cache: 8 });
  const burst = new Int32Array(20);
  pool.share();
  pool.get(burst, 20);
  const arrived = () => new Promise((resolve) => setTimeout(resolve, 2));
  for (const deadline = Date.now() + 60_000; eal.secondaries.length === 0 && Date.now() < deadline; ) await arrived();
  const device = await eal.probe('vdev:edu0');
  const memory = eal.external.allocate(65536);
  const mapping = device.dmaMap(memory);
  const block = eal.malloc(${70 * MiB});
  pool.put(burst, 10);
  mapping.unmap();
  block.free();
  eal.memory.trim();
  memory.unregister();
  pool.put(burst, 10, 10);
  await eal.stop();`;

/** Runs a scenario in a process that is killed at step `at`. @returns the number of its steps, if it was not */
async function killedAt(at: number, scenario: string): Promise<number | undefined> {
  await using child = await SecondaryProcess.start();
  try {
    return await child.run(
      async ({ anydma }, { at, scenario, counting }) => {
        const base = await anydma.Eal.start();
        const { platform } = base;
        const run = (0, eval)(`(async (anydma, base, at) => {
          ${counting}
          ${scenario}
          return calls;
        })`) as (anydma: unknown, base: unknown, at: number) => Promise<number>;
        const calls = await run(anydma, platform, at);
        await base.stop();
        return calls;
      },
      { at, scenario, counting: COUNTING },
    );
  } catch (error) {
    assert.match(String(error), /the process has ended/);
    return undefined;
  }
}

/** Kills the process of one side at the steps that are wanted. @throws Error that names the step that left something */
export async function sweep(side: Side, options: SweepOptions): Promise<SweepReport> {
  return side === 'primary' ? sweepPrimary(options) : sweepSecondary(side === 'pool' ? POOL : SECONDARY, options);
}

async function sweepSecondary(scenario: string, options: SweepOptions): Promise<SweepReport> {
  await using eal = await Eal.start({
    name: 'store',
    memory: { noHuge: true, onNotice: () => undefined },
    onForgotten: () => undefined,
  });
  const device = await eal.probe('vdev:edu0');
  eal.zones.reserve('zone', 4096);
  const pool = eal.pools.create({ name: 'packets', elements: ELEMENTS, elementSize: 64, cache: 8 });
  const memory = eal.external.allocate(65536, { label: 'frames' });
  const report = await begin(scenario, () => Promise.resolve());
  const heap = eal.heaps.find('socket_0');
  const figures = (): Record<string, number> => ({
    secondaries: eal.secondaries.length,
    external: [...eal.external].length,
    zones: [...eal.zones].length - (eal.zones.find('made') === undefined ? 0 : 1),
    mapped: [...(device.domain?.mappings() ?? [])].filter(({ length }) => length === 65536).length,
    blocks: (heap?.statistics().allocatedBlocks ?? 0) - (eal.zones.find('made') === undefined ? 0 : 1),
    descriptors: readdirSync('/proc/self/fd').length,
    sockets: readFileSync('/proc/self/net/unix', 'utf8').split('store.sock').length,
    memfds: readFileSync('/proc/self/maps', 'utf8').split('memfd:anydma').length,
  });
  const before = figures();
  const all = new Int32Array(ELEMENTS);
  const isWhole = (): boolean => {
    const now = figures();
    if (!Object.entries(before).every(([what, count]) => now[what] <= count)) return false;
    if (!pool.get(all, ELEMENTS)) return false;
    assert.equal(new Set(all).size, ELEMENTS, 'an element is doubled');
    pool.put(all, ELEMENTS);
    return memory.pinned === undefined;
  };
  await each(options, report, async (at) => {
    const steps = await killedAt(at, scenario);
    if (steps === undefined) report.killed++;
    // Some runs need a step less.
    assert.ok((steps ?? 0) < at, `the process was not killed, of ${steps} steps`);
    const died = performance.now();
    await until(isWhole, 'nothing is left').catch(() => assert.deepEqual(figures(), before));
    report.longestMs = Math.max(report.longestMs, Math.round(performance.now() - died));
    // What has a name stays: the secondary made it for all.
    if (eal.zones.find('made') !== undefined) await until(() => tried(() => eal.zones.free('made')));
    eal.malloc(MiB).free();
  });
  pool.free();
  eal.zones.free('zone');
  memory.unregister();
  return report;
}

async function sweepPrimary(options: SweepOptions): Promise<SweepReport> {
  await using store = await SecondaryProcess.start();
  /** Attaches as soon as there is a primary, uses it until it ends, and sees what is left. */
  const follow = async (): Promise<{ first: number; ended: number; lost: number }> =>
    store.run(async ({ anydma }) => {
      for (let tries = 0; tries < 400; tries++) {
        const store = await anydma.Eal.attach('store').catch(() => undefined);
        if (store === undefined) {
          await new Promise((resolve) => setTimeout(resolve, 5));
          continue;
        }
        let ended = 0;
        const over = new Promise<void>((resolve) =>
          store.events.on('ended', () => {
            ended++;
            resolve();
          }),
        );
        const zone = await store.zones.find('zone').catch(() => undefined);
        const pool = await store.pools.find('packets').catch(() => undefined);
        if (store.live) await Promise.race([over, new Promise((resolve) => setTimeout(resolve, 20_000))]);
        const first = zone === undefined ? 7 : zone.bytes()[0];
        let lost = 0;
        if (pool !== undefined) {
          // What the primary had comes back here.
          const all = new Int32Array(pool.elements);
          const deadline = Date.now() + 20_000;
          while (!pool.get(all, all.length) && Date.now() < deadline) await new Promise((r) => setTimeout(r, 5));
          lost = all.length - new Set(all).size;
          if (lost === 0) pool.put(all, all.length);
        }
        await store.close();
        return { first, ended, lost };
      }
      return { first: 7, ended: 1, lost: 0 };
    });
  const report = await begin(PRIMARY, follow);
  await each(options, report, async (at) => {
    const following = follow();
    const steps = await killedAt(at, PRIMARY);
    if (steps === undefined) report.killed++;
    const died = performance.now();
    assert.deepEqual(await following, { first: 7, ended: 1, lost: 0 });
    // The next one starts clean.
    const next = await Eal.start({ name: 'store', memory: { noHuge: true, onNotice: () => undefined } });
    assert.deepEqual([[...next.zones], [...next.pools], next.secondaries], [[], [], []]);
    await next.stop();
    report.longestMs = Math.max(report.longestMs, Math.round(performance.now() - died));
  });
  const mapped = readFileSync(`/proc/${store.pid}/maps`, 'utf8').split('memfd:anydma').length - 1;
  assert.equal(mapped, 0, 'the secondary still has memory of dead primaries');
  return report;
}

async function begin(scenario: string, beside: () => Promise<unknown>): Promise<SweepReport> {
  const [steps] = await Promise.all([killedAt(Infinity, scenario), beside()]);
  assert.ok(steps !== undefined && steps > 15, String(steps));
  return { steps, killed: 0, longestMs: 0 };
}

async function each(
  { from = 1, every, onRun }: SweepOptions,
  report: SweepReport,
  run: (at: number) => Promise<void>,
): Promise<void> {
  for (let at = from; at <= report.steps; at += every) {
    try {
      await run(at);
    } catch (cause) {
      throw new Error(`something is wrong after the death at step ${at}`, { cause });
    }
    onRun?.(at, report);
  }
}

function tried(work: () => void): boolean {
  try {
    work();
    return true;
  } catch {
    return false;
  }
}
