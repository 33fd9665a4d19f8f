/**
 * Processes that are killed in the middle: a primary and a secondary, before each of their system calls of attaching,
 * growing, mapping and detaching. Afterwards the other one goes on, and nothing is left. And one that sends nonsense.
 */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { ownPlaces } from '../test/shared/places.js';
import { SecondaryProcess } from '../test/shared/secondary-process.js';
import { until } from '../test/shared/until.js';
import { Eal, MiB } from './index.js';
import { openPlatform } from './platform/open.js';
import { answerMessage, PROTOCOL, questionMessage } from './share/wire.js';

const platform = openPlatform();
const folder = ownPlaces();
const skip = platform.limitation ?? false;

/** The ports whose calls are counted. */
const KILLERS = `
  const counting = (platform, at) => {
    let calls = 0;
    const wrap = (port) => new Proxy(port, {
      get(target, key) {
        const value = Reflect.get(target, key);
        if (typeof value !== 'function') return value;
        return (...args) => {
          if (++calls === at) process.kill(process.pid, 'SIGKILL');
          return Reflect.apply(value, target, args);
        };
      },
    });
    const ports = Object.entries(platform).map(([name, port]) => [name, ['memory', 'sockets', 'files'].includes(name) ? wrap(port) : port]);
    return { platform: Object.fromEntries(ports), calls: () => calls };
  };
`;

/** Runs a scenario in a process that is killed before its call `at`. @returns the number of its calls, if it was not */
async function killedAt(at: number, scenario: string): Promise<number | undefined> {
  await using child = await SecondaryProcess.start();
  try {
    return await child.run(
      async ({ anydma }, { at, scenario, killers }) => {
        const base = await anydma.Eal.start();
        const { platform } = base;
        const run = (0, eval)(`(async (anydma, base, at) => {
          ${killers}
          const { platform, calls } = counting(base, at);
          ${scenario}
          return calls();
        })`) as (anydma: unknown, base: unknown, at: number) => Promise<number>;
        const calls = await run(anydma, platform, at);
        await base.stop();
        return calls;
      },
      { at, scenario, killers: KILLERS },
    );
  } catch (error) {
    assert.match(String(error), /the process has ended/);
    return undefined;
  }
}

/** Some of the numbers from 1 to `most`: each run takes another part of a second. */
function* some(most: number, wanted: number): Iterable<number> {
  for (let n = 1; n <= most; n += Math.max(1, Math.ceil(most / wanted))) yield n;
}

describe('processes that are killed anywhere', { skip }, () => {
  it('a secondary: its primary goes on, and has everything back', async () => {
    await using eal = await Eal.start({ name: 'store', memory: { noHuge: true }, onForgotten: () => undefined });
    await eal.probe('vdev:edu0');
    eal.zones.reserve('zone', 4096);
    const memory = eal.external.allocate(65536, { label: 'frames' });
    const scenario = `
      const store = await anydma.Eal.attach('store', { platform });
      const zone = await store.zones.find('zone');
      zone.bytes()[0] = 1;
      const block = await store.malloc(${5 * MiB});
      const own = await store.external.allocate(65536);
      const device = await store.find('vdev:edu0');
      const mapping = await device.dmaMap(own);
      await mapping.unmap();
      await own.detach();
      const frames = await store.external.attach('frames');
      await frames.detach();
      await block.free();
      await zone.detach();
      await store.close();`;
    const all = await killedAt(Infinity, scenario);
    assert.ok(all !== undefined && all > 30, String(all));
    const descriptors = (): number => readdirSync('/proc/self/fd').length;
    const heap = eal.heaps.find('socket_0');
    const before = { blocks: heap?.statistics().allocatedBlocks, descriptors: descriptors() };
    for (const at of some(all, 16)) {
      // Some runs need a call less.
      assert.ok(((await killedAt(at, scenario)) ?? 0) < at);
      await until(() => eal.secondaries.length === 0 && [...eal.external].length === 1);
      await until(() => heap?.statistics().allocatedBlocks === before.blocks && descriptors() <= before.descriptors);
      assert.equal(memory.pinned, undefined);
      eal.malloc(MiB).free();
    }
    eal.zones.free('zone');
    memory.unregister();
  });

  it('a primary: its secondary keeps its memory, is told once, and the next primary starts', async () => {
    const scenario = `
      const eal = await anydma.Eal.start({ name: 'store', platform, memory: { noHuge: true }, onForgotten: () => undefined });
      eal.zones.reserve('zone', 4096).bytes()[0] = 7;
      for (const deadline = Date.now() + 60_000; eal.secondaries.length === 0 && Date.now() < deadline; )
        await new Promise((resolve) => setTimeout(resolve, 2));
      const block = eal.malloc(${70 * MiB});
      block.free();
      eal.memory.trim();
      eal.external.allocate(4096).unregister();
      await eal.stop();`;
    await using store = await SecondaryProcess.start();
    /** Attaches as soon as there is a primary, and uses it until it ends. */
    const follow = async (): Promise<{ first: number; ended: number }> =>
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
          if (store.live) await Promise.race([over, new Promise((resolve) => setTimeout(resolve, 20_000))]);
          const first = zone === undefined ? 7 : zone.bytes()[0];
          await store.close();
          return { first, ended };
        }
        return { first: 7, ended: 1 };
      });
    const [all] = await Promise.all([killedAt(Infinity, scenario), follow()]);
    assert.ok(all !== undefined && all > 30, String(all));
    for (const at of some(all, 8)) {
      const following = follow();
      await killedAt(at, scenario);
      assert.deepEqual(await following, { first: 7, ended: 1 });
      // The next one starts clean.
      const next = await Eal.start({ name: 'store', memory: { noHuge: true } });
      assert.deepEqual([...next.zones], []);
      await next.stop();
    }
  });

  it('a hostile process of the same user does not end the primary, and others go on', async () => {
    await using eal = await Eal.start({ name: 'store', memory: { noHuge: true }, onForgotten: () => undefined });
    eal.zones.reserve('zone', 4096);
    await using good = await SecondaryProcess.attach('store');
    const path = join(folder, 'anydma', 'store.sock');
    let seed = 12345;
    const random = (most: number): number => (seed = (Math.imul(seed, 1103515245) + 12345) >>> 0) % most;
    const names = ['attach', 'facts', 'release', 'cancel', 'malloc', 'zones.find', 'zones.reserve', 'zones.free'];
    names.push(
      'heaps.attachMemory',
      'external.attach',
      'external.allocate',
      'external.fromFd',
      'devices.map',
      'bye',
      'x',
    );
    const values = [null, -1, 0, 1, 4096, 2 ** 53, 1.5, 'zone', '', 'x'.repeat(5000), [], {}, true, { free: true }];
    const keys = [
      'id',
      'name',
      'length',
      'size',
      'va',
      'options',
      'operation',
      'work',
      'progress',
      'device',
      '__proto__',
    ];
    const event = platform.events.create();
    let sent = 0;
    for (let round = 0; round < 60; round++) {
      const fd = platform.sockets.connect(path);
      const hello = questionMessage(1, { ask: 'hello', with: { protocol: PROTOCOL, version: 'x' } }, 'x');
      if (random(8) > 0) platform.sockets.send(fd, hello, 0, []);
      for (let n = 0; n < 30; n++) {
        const fields = Object.fromEntries(
          Array.from({ length: random(6) }, () => [keys[random(keys.length)], values[random(values.length)]]),
        );
        const make = random(6) === 0 ? answerMessage : questionMessage;
        const bytes = make(random(65536), { ask: names[random(names.length)], with: fields }, 'x');
        if (random(10) === 0) bytes[random(bytes.length)] ^= 1 << random(8);
        try {
          const fds = random(5) === 0 ? [event] : [];
          if (platform.sockets.send(fd, bytes, 0, fds) < bytes.length) break;
          sent++;
        } catch {
          break;
        }
      }
      await new Promise((resolve) => setTimeout(resolve, 2));
      platform.files.close(fd);
    }
    platform.files.close(event);
    assert.ok(sent > 100, String(sent));
    assert.equal(await good.run(async ({ store }) => (await store.malloc(4096)).length), 4096);
    assert.ok(eal.secondaries.some(({ pid }) => pid === good.pid));
  });
});
