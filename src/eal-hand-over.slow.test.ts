/** Handing over: a new program continues with the memory, the mappings and the devices of the running one. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { after, afterEach, before, describe, it } from 'node:test';
import { failingPlatform, trackingPlatform } from '../test/fakes/platform/platforms.js';
import { codeOf, dmaError } from '../test/shared/errors.js';
import { ownPlaces } from '../test/shared/places.js';
import { SecondaryProcess } from '../test/shared/secondary-process.js';
import { until } from '../test/shared/until.js';
import type { Device, Driver } from './bus/model.js';
import { copyEngineDriver } from './drivers/copy-engine-driver.js';
import type { CopyEngine } from './drivers/copy-engine.js';
import { eduDriver } from './drivers/edu-driver.js';
import type { Edu } from './drivers/edu.js';
import { Eal } from './eal.js';
import { isDmaError } from './errors.js';
import type { ExternalMemory } from './memory/external.js';
import { openPlatform } from './platform/open.js';
import { KiB, TiB, type Iova } from './units.js';
import { spawnDevice, type DeviceProcess } from './vfio-user/device-process.js';
import { EDU_REGISTER } from './vfio-user/devices/edu-layout.js';

const platform = openPlatform();
ownPlaces();
const QUIET = { onForgotten: (): void => undefined };
const HALF = 64 * KiB;

let places = 0;
/** Addresses for the memory of a running program: its successors in this process need them free, and views stay a while. */
function place(): number {
  return 65 * TiB + (places++ % 40) * (TiB / 2);
}

/** What the running program has, in its process. */
interface Running {
  readonly eal: Eal;
  readonly device: Device;
  readonly memory: ExternalMemory;
  readonly iova: Iova;
  /** Each failed attempt; the last is what `handOver` resolved to. */
  readonly attempts: Promise<unknown[]>;
}

/** The running program: it hands over as often as it is needed, and copies. */
class Old implements AsyncDisposable {
  private constructor(readonly process: SecondaryProcess) {}

  static async start({ socketPath }: DeviceProcess): Promise<Old> {
    const process = await SecondaryProcess.start();
    await process.run(
      async ({ anydma, kept }, { path, baseAddress }) => {
        const options = { name: 'store', memory: { baseAddress }, onForgotten: () => undefined };
        const eal = await anydma.Eal.start(options);
        const memory = eal.external.allocate(131072, { label: 'data' });
        memory.bytes().fill(7, 0, 65536);
        const device = await eal.probe(`vfio-user:${path}`);
        const { iova } = device.dmaMap(memory);
        const again = async (): Promise<unknown[]> => {
          const attempts: unknown[] = [];
          for (;;)
            try {
              attempts.push(await eal.handOver());
              return attempts;
            } catch (error) {
              attempts.push(String(error));
            }
        };
        Object.assign(kept, { eal, device, memory, iova, attempts: again() });
      },
      { path: socketPath, baseAddress: place() },
    );
    return new Old(process);
  }

  /** Copies there, and looks at the bytes. */
  async copies(): Promise<boolean> {
    return this.process.run(async ({ kept }) => {
      const { eal, device, memory, iova } = kept as Running;
      const engine = device.use(eal.drivers.find(({ name }) => name === 'copy') as Driver<CopyEngine>);
      const bytes = memory.bytes();
      bytes.fill(0, 65536);
      await engine.copy(iova, iova + 65536, 65536);
      return bytes.subarray(65536).every((byte) => byte === 7);
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.process[Symbol.asyncDispose]();
  }
}

/** Looks whether what was taken over works. */
async function continues(eal: Eal): Promise<void> {
  const [device] = eal.devices();
  const [memory] = eal.external;
  const [mapping] = device.domain?.mappingsFor(device.name).filter(({ va }) => va === memory.va) ?? [];
  const bytes = memory.bytes();
  bytes.fill(0, HALF);
  await device.use(copyEngineDriver).copy(mapping.iova, mapping.iova + HALF, HALF);
  assert.ok(bytes.subarray(HALF).every((byte) => byte === 7));
  // And what is new.
  const more = eal.external.allocate(HALF);
  const other = device.dmaMap(more);
  await device.use(copyEngineDriver).copy(mapping.iova, other.iova, HALF);
  assert.equal(more.bytes()[HALF - 1], 7);
  other.unmap();
  more.unregister();
}

describe('handing over', { skip: platform.limitation ?? false }, () => {
  let copying: DeviceProcess;
  let teaching: DeviceProcess;
  const more: AsyncDisposable[] = [];

  before(async () => {
    [copying, teaching] = await Promise.all([spawnDevice('copy'), spawnDevice('edu', { device: { dmaDelayMs: 2 } })]);
  });
  after(() => Promise.all([copying.close(), teaching.close()]));
  afterEach(async () => {
    for (const each of more.splice(0).reverse()) await each[Symbol.asyncDispose]();
  });

  const old = async (): Promise<Old> => {
    const started = await Old.start(copying);
    more.push(started);
    return started;
  };

  it('continues memory, mappings and a copy engine with what it was given to do', async () => {
    const running = await old();
    const cookie = await running.process.run(async ({ kept }) => {
      const { eal, device, iova } = kept as Running;
      const engine = device.use(eal.drivers.find(({ name }) => name === 'copy') as Driver<CopyEngine>);
      const cookie = engine.submit(iova, iova + 65536, 4096);
      engine.ring();
      return cookie;
    });
    await using eal = await Eal.takeOver('store', QUIET);
    const [device] = eal.devices();
    const [memory] = eal.external;
    assert.equal(device.name, `vfio-user:${copying.socketPath}`);
    assert.equal(memory.area.label, 'data');
    const engine = device.use(copyEngineDriver);
    await until(() => engine.poll() === 1);
    assert.equal(engine.cookies[0], cookie);
    assert.deepEqual([memory.bytes()[HALF], memory.bytes()[HALF + 4095], memory.bytes()[HALF + 4096]], [7, 7, 0]);

    const told = await running.process.run(async ({ kept }) => {
      const { eal, device, memory, iova, attempts } = kept as Running;
      const engine = eal.drivers.find(({ name }) => name === 'copy') as Driver<CopyEngine>;
      const errors: unknown[] = [];
      for (const call of [
        () => eal.malloc(64),
        () => eal.external.allocate(4096),
        () => device.dmaMap({ va: memory.va, length: 4096 }),
        () => device.access,
        () => device.use(engine).submit(iova, iova + 65536, 64),
      ])
        try {
          errors.push(call());
        } catch (error) {
          const { code, message } = error as { code: string; message: string };
          errors.push(`${code} ${message.includes('handed over to process ')}`);
        }
      const views = memory.bytes()[65536];
      await eal.stop();
      return { attempts: await attempts, errors, views };
    });
    assert.deepEqual(told.attempts.length, 1);
    assert.equal((told.attempts[0] as { pid: number }).pid, process.pid);
    assert.deepEqual(told.errors, Array<string>(5).fill('ECANCELED true'));
    assert.equal(told.views, 7);
    await running.process.kill();
    await continues(eal);
  });

  it('leaves nothing behind in the new program', async () => {
    await old();
    const tracked = trackingPlatform(openPlatform());
    const descriptors = readdirSync('/proc/self/fd').length;
    {
      await using eal = await Eal.takeOver('store', { ...QUIET, platform: tracked });
      const [device] = eal.devices();
      const { iova } = [...(device.domain?.mappings() ?? [])].find(({ length }) => length === 2 * HALF) ?? { iova: 0 };
      await device.use(copyEngineDriver).copy(iova, iova + HALF, HALF);
      await eal.remove(device);
    }
    // Addresses wait until views are collected.
    assert.deepEqual(
      tracked.leaks().filter((line) => !line.startsWith('mapping')),
      [],
    );
    assert.equal(readdirSync('/proc/self/fd').length, descriptors);
  });

  it('can be repeated, and the name goes along', async () => {
    await old();
    const eal = await Eal.takeOver('store', QUIET);
    more.push(eal);
    await using third = await SecondaryProcess.start();
    const offered = eal.handOver();
    const seen = await third.run(async ({ anydma, kept }) => {
      const eal = await anydma.Eal.takeOver('store', { onForgotten: () => undefined });
      const [memory] = [...eal.external];
      const [device] = eal.devices();
      const [mapping] = device.domain?.mappingsFor(device.name) ?? [];
      Object.assign(kept, { eal, device, memory, iova: mapping.iova });
      return {
        labels: [...eal.external].map(({ area }) => area.label),
        devices: eal.devices().map(({ name }) => name),
      };
    });
    assert.equal((await offered).pid, third.pid);
    assert.deepEqual(seen, { labels: ['data'], devices: [`vfio-user:${copying.socketPath}`] });
    await assert.rejects(eal.handOver(), dmaError('ECANCELED'));
    await eal.stop();
    await using fourth = await SecondaryProcess.attach('store');
    assert.equal(await fourth.run(({ store }) => store.pid), third.pid);
  });

  it('loses no transfer and no interrupt of edu, which copies in a loop', async () => {
    const running = await SecondaryProcess.start();
    more.push(running);
    await running.run(
      async ({ anydma, kept }, { path, baseAddress }) => {
        const eal = await anydma.Eal.start({ name: 'store', memory: { baseAddress }, onForgotten: () => undefined });
        const memory = eal.external.allocate(65536, { label: 'slots' });
        const device = await eal.probe(`vfio-user:${path}`);
        const { iova } = device.dmaMap(memory, { iova: 0x100000 });
        const edu = device.use(eal.drivers.find(({ name }) => name === 'edu') as Driver<Edu>);
        const bytes = memory.bytes();
        bytes.fill(9, 0, 64);
        await edu.copyIn(iova, 0, 64);
        let interrupts = 0;
        edu.enableInterrupt(() => interrupts++);
        // Slot after slot, until this program may not any more.
        const loop = async (): Promise<unknown> => {
          for (let done = 1; ; done++) {
            try {
              await edu.copyOut(iova + 64 * done, 0, 64);
            } catch (error) {
              return { done, interrupts, code: (error as { code: string }).code };
            }
          }
        };
        Object.assign(kept, { loop: loop(), handed: eal.handOver({ prepare: () => edu.raiseInterrupt(0x40) }) });
        while (bytes[64 * 5] !== 9) await new Promise((resolve) => setTimeout(resolve, 1));
      },
      { path: teaching.socketPath, baseAddress: place() },
    );

    await using eal = await Eal.takeOver('store', QUIET);
    const { done, code } = (await running.run(async ({ kept }) => {
      const { loop, handed } = kept as { loop: Promise<unknown>; handed: Promise<unknown> };
      await handed;
      return loop;
    })) as { done: number; code: string };
    await running.kill();
    assert.equal(code, 'ECANCELED');
    const [device] = eal.devices();
    const [memory] = eal.external;
    const edu = device.use(eduDriver);
    const slot = (n: number): number[] => [...memory.bytes(64 * n, 64)];
    for (let n = 1; n < done; n++) assert.deepEqual(slot(n), Array<number>(64).fill(9), `slot ${n} of ${done}`);
    assert.deepEqual(slot(done), Array<number>(64).fill(0));
    const reasons: number[] = [];
    edu.enableInterrupt((reason) => reasons.push(reason));
    for (let n = done; n < done + 5; n++) await edu.copyOut(0x100000 + 64 * n, 0, 64);
    assert.deepEqual(slot(done + 4), Array<number>(64).fill(9));
    assert.ok(reasons.length > 0);
  });

  it('drivers of programs can be handed over, and a signal before there is a handler is not lost', async () => {
    const running = await SecondaryProcess.start();
    more.push(running);
    await running.run(
      async ({ anydma, kept }, { path, baseAddress }) => {
        const eal = await anydma.Eal.start({
          name: 'store',
          memory: { baseAddress },
          drivers: [
            {
              name: 'mine',
              deviceClass: 'raw',
              buses: ['vfio-user'],
              keys: [],
              probe: (device) => device.access,
              handOver: () => ({ state: { secret: 17 }, fds: [], resume: () => undefined, end: () => undefined }),
              takeOver: () => ({ instance: undefined }),
            },
          ],
          onForgotten: () => undefined,
        });
        const device = await eal.probe(`vfio-user:${path}`);
        let taken = 0;
        device.access.enableInterrupts('msi', [() => taken++]);
        Object.assign(kept, { handed: eal.handOver(), taken: () => taken });
      },
      { path: teaching.socketPath, baseAddress: place() },
    );
    const started: number[] = [];
    const mine: Driver<{ secret: number }> = {
      name: 'mine',
      deviceClass: 'raw',
      buses: ['vfio-user'],
      keys: [],
      probe: () => assert.fail('it is taken over'),
      handOver: () => assert.fail('it is kept'),
      takeOver: (device, _context, state) => ({
        instance: { secret: state.number('secret') },
        start: () => {
          started.push(state.number('secret'));
          device.access.registers(0).write32(EDU_REGISTER.INTERRUPT_RAISE, 1);
        },
      }),
    };
    await using eal = await Eal.takeOver('store', { ...QUIET, drivers: [mine] });
    assert.deepEqual(started, [17]);
    assert.deepEqual(eal.devices()[0].use(mine), { secret: 17 });
    let taken = 0;
    eal.devices()[0].access.enableInterrupts('msi', [() => taken++]);
    await until(() => taken === 1);
  });

  it('what is mapped for every device stays so, and comes to later devices', async () => {
    const running = await SecondaryProcess.start();
    more.push(running);
    await running.run(
      async ({ anydma, kept }, { path, baseAddress }) => {
        const eal = await anydma.Eal.start({ name: 'store', memory: { baseAddress }, onForgotten: () => undefined });
        const memory = eal.external.allocate(65536, { label: 'for all' });
        await eal.probe(`vfio-user:${path}`);
        eal.dmaMapAll(memory);
        Object.assign(kept, { handed: eal.handOver() });
      },
      { path: copying.socketPath, baseAddress: place() },
    );
    await using eal = await Eal.takeOver('store', QUIET);
    const [memory] = eal.external;
    const [device] = eal.devices();
    assert.equal(typeof device.iovaOf(memory), 'number');
    const later = await eal.probe(`vfio-user:${teaching.socketPath}`);
    assert.equal(typeof later.iovaOf(memory), 'number');
    assert.throws(() => memory.unregister(), dmaError('EBUSY'));
  });

  it('is refused with what keeps it, and can be tried again', async () => {
    await using plain = await Eal.start(QUIET);
    await assert.rejects(plain.handOver(), dmaError('EINVAL', /no name/));
    const eal = await Eal.start({ ...QUIET, name: 'store', memory: { noHuge: true } });
    more.push(eal);
    await using other = await SecondaryProcess.start();
    const taking = async (): Promise<string> =>
      other.run(async ({ anydma }) =>
        anydma.Eal.takeOver('store').then(
          () => 'taken',
          (error: unknown) => {
            const { code, operation, reason } = error as { code: string; operation: string; reason: string };
            return `${code} ${operation}: ${reason}`;
          },
        ),
      );
    assert.match(await taking(), /^EBUSY Eal.takeOver: the running program does not hand over/);
    /** Both sides get the same error. */
    const refused = async (pattern: RegExp, options = {}): Promise<void> => {
      const [here, there] = await Promise.all([
        eal.handOver(options).then(
          () => 'handed over',
          (error: unknown) => (isDmaError(error) ? `${error.code} ${error.operation}: ${error.reason}` : String(error)),
        ),
        taking(),
      ]);
      assert.match(there, pattern);
      assert.match(here, pattern);
      eal.external.allocate(4096).unregister();
    };
    const { memory: bytes } = eal.external.registerPagesOf(new Uint8Array(64 * KiB), { label: 'from V8' });
    await refused(/^ENOTSUP handOver: .*from V8 has no descriptor/);
    bytes.unregister();
    const anonymous = eal.external.allocate(4096, { source: 'anonymous', label: 'without a file' });
    await refused(/^ENOTSUP handOver: .*without a file has no descriptor/);
    anonymous.unregister();
    const memory = eal.external.allocate(4096, { label: 'pinned' });
    const pin = memory.pin('a transfer');
    await refused(/^EBUSY handOver: pinned is pinned: a transfer/);
    pin[Symbol.dispose]();
    const edu = await eal.probe('vdev:edu0');
    await refused(/^ENOTSUP handOver: vdev:edu0 is on the bus vdev/);
    await eal.remove(edu);
    const secondary = await SecondaryProcess.attach('store', 'worker');
    await refused(/^EBUSY handOver: .*worker.* is attached/);
    await secondary.kill();
    await until(() => eal.secondaries.length === 0);
    await refused(/not now/, {
      prepare: () => {
        throw new TypeError('not now');
      },
    });
    const stop = new AbortController();
    const waiting = eal.handOver({ signal: stop.signal });
    await assert.rejects(eal.handOver(), dmaError('EBUSY', /already/));
    stop.abort();
    await assert.rejects(waiting, dmaError('ECANCELED'));
    eal.malloc(64);
    await refused(/^ENOTSUP handOver: the heap socket_\w+ has .*heaps stay/);
  });

  it('times out if the new program does not commit, and goes on', async () => {
    const eal = await Eal.start({ ...QUIET, name: 'store' });
    more.push(eal);
    const memory = eal.external.allocate(HALF);
    const device = await eal.probe(`vfio-user:${copying.socketPath}`);
    const { iova } = device.dmaMap(memory);
    await using other = await SecondaryProcess.start();
    const handed = eal.handOver({ timeoutMs: 50, prepare: () => other.kill('SIGSTOP') });
    const refused = assert.rejects(handed, dmaError('ETIMEDOUT', /did not take over within 50 ms/));
    const taking = other.run(async ({ anydma }) =>
      anydma.Eal.takeOver('store').catch((error: unknown) => (error as { code: string }).code),
    );
    await refused;
    await device.use(copyEngineDriver).copy(iova, iova + 4096, 4096);
    await other.kill('SIGCONT');
    assert.equal(await taking, 'ETIMEDOUT');
  });

  it('calls that change something wait for nobody while a program takes over', async () => {
    const eal = await Eal.start({ ...QUIET, name: 'store' });
    more.push(eal);
    const memory = eal.external.allocate(HALF);
    const device = await eal.probe(`vfio-user:${copying.socketPath}`);
    const mapping = device.dmaMap(memory);
    await using other = await SecondaryProcess.start();
    const handed = eal.handOver();
    const failed = assert.rejects(
      handed,
      (error: unknown) => isDmaError(error, 'ESRCH') || isDmaError(error, 'ECONNRESET'),
    );
    // It stops once it has asked for the description.
    const taking = other.run(async ({ anydma }) => {
      const { platform } = await anydma.Eal.start();
      const { reserveAt } = platform.memory;
      const memory = {
        ...platform.memory,
        reserveAt: (...args: Parameters<typeof reserveAt>) => {
          process.kill(process.pid, 'SIGSTOP');
          reserveAt(...args);
        },
      };
      await anydma.Eal.takeOver('store', { platform: { ...platform, memory } });
    });
    const ended = assert.rejects(taking);
    await until(() => codeOf(() => eal.external.allocate(4096).unregister()) === 'EBUSY');
    for (const call of [
      () => eal.malloc(64),
      () => device.dmaMap({ va: memory.va, length: 4096 }),
      () => mapping.unmap(),
      () => device.use(copyEngineDriver).submit(0, 4096, 64),
      () => device.access.registers(0).read32(0),
    ])
      assert.equal(codeOf(call), 'EBUSY', String(call));
    await assert.rejects(eal.remove(device), dmaError('EBUSY'));
    const waiting = device.use(copyEngineDriver).copy(mapping.iova, mapping.iova + 4096, 4096);
    await other.kill();
    await ended;
    await failed;
    await waiting;
    mapping.unmap();
  });

  it('goes on if any system call of the new program fails', async () => {
    const running = await old();
    const failing = failingPlatform(openPlatform());
    for (let n = 1; ; n += 5) {
      failing.failCall(n, 'EIO');
      const tracked = trackingPlatform(failing);
      const eal = await Eal.takeOver('store', { ...QUIET, platform: tracked }).catch((error: unknown) => {
        assert.ok(isDmaError(error), String(error));
        return undefined;
      });
      if (eal !== undefined) {
        // Nothing failed, or only what follows the commit.
        more.push(eal);
        assert.ok(n > 20);
        return;
      }
      assert.ok(await running.copies(), `after call ${n}, ${failing.failed()}`);
      await until(() => tracked.leaks().length === 0);
    }
  });

  it('goes on if the new program is killed at any system call before it commits', async () => {
    const running = await old();
    for (let at = 1; ; at += 11) {
      await using child = await SecondaryProcess.start();
      const outcome = await child
        .run(async ({ anydma }, at) => {
          const base = await anydma.Eal.start();
          const { platform } = base;
          await base.stop();
          let calls = 0;
          const counted = <T extends object>(port: T): T =>
            new Proxy(port, {
              get(target, key) {
                const value: unknown = Reflect.get(target, key);
                if (typeof value !== 'function') return value;
                return (...args: unknown[]): unknown => {
                  if (++calls === at) process.kill(process.pid, 'SIGKILL');
                  return Reflect.apply(value, target, args);
                };
              },
            });
          const { memory, files, sockets, events } = platform;
          const ports = { memory: counted(memory), files: counted(files), sockets: counted(sockets) };
          await anydma.Eal.takeOver('store', {
            platform: { ...platform, ...ports, events: counted(events) },
            onForgotten: () => undefined,
          });
          return calls;
        }, at)
        .catch((error: unknown) => String(error));
      if (typeof outcome === 'number') break;
      assert.match(outcome, /has ended/);
      // Killed after the commit: the device has been let go of.
      const handed = await running.process.run(async ({ kept }) => {
        const { eal } = kept as Running;
        try {
          eal.external.allocate(4096).unregister();
          return false;
        } catch (error) {
          return (error as { code: string }).code === 'ECANCELED';
        }
      });
      if (handed) return;
      await until(async () => running.copies().catch(() => false));
    }
  });

  it('the new program goes on alone if the running one is killed meanwhile', async () => {
    const running = await old();
    const { memory } = platform;
    let killed: Promise<void> | undefined;
    const reserveAt: typeof memory.reserveAt = (...args) => {
      killed ??= running.process.kill();
      memory.reserveAt(...args);
    };
    await using eal = await Eal.takeOver('store', {
      ...QUIET,
      platform: { ...platform, memory: { ...memory, reserveAt } },
    });
    await killed;
    await continues(eal);
  });

  it('goes on if any system call fails while it stops', async () => {
    const failing = failingPlatform(openPlatform());
    const eal = await Eal.start({ ...QUIET, name: 'store', platform: failing });
    more.push(eal);
    const memory = eal.external.allocate(2 * HALF, { label: 'data' });
    memory.bytes().fill(7, 0, HALF);
    let device = await eal.probe(`vfio-user:${copying.socketPath}`);
    let { iova } = device.dmaMap(memory);
    await using other = await SecondaryProcess.start();
    for (let n = 1; ; n++) {
      const handed = eal.handOver({ prepare: () => failing.failCall(n, 'EIO') }).then(
        () => true,
        () => false,
      );
      const taken = await other.run(async ({ anydma, kept }) =>
        anydma.Eal.takeOver('store', { onForgotten: () => undefined }).then(
          (eal) => {
            Object.assign(kept, { eal });
            return true;
          },
          () => false,
        ),
      );
      assert.equal(await handed, taken, `call ${n}, ${failing.failed()}`);
      if (taken) break;
      assert.notEqual(failing.failed(), undefined);
      if (device.lost !== undefined) {
        // A connection whose socket fails ends, whoever uses it.
        assert.match(failing.failed() ?? '', /^sockets\./);
        await until(() => eal.devices().length === 0);
        device = await eal.probe(`vfio-user:${copying.socketPath}`);
        ({ iova } = device.dmaMap(memory));
      }
      memory.bytes().fill(0, HALF);
      await device.use(copyEngineDriver).copy(iova, iova + HALF, HALF);
      assert.ok(
        memory
          .bytes()
          .subarray(HALF)
          .every((byte) => byte === 7),
      );
    }
  });
});
