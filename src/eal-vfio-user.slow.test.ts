/** Devices in other processes, end to end: what a program does with them, and what it sees when they die. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { dmaError } from '../test/shared/errors.js';
import type { Device } from './bus/model.js';
import { copyEngineDriver } from './drivers/copy-engine-driver.js';
import type { CopyEngine } from './drivers/copy-engine.js';
import { eduDriver } from './drivers/edu-driver.js';
import { rawDriver } from './drivers/raw-driver.js';
import { Eal } from './eal.js';
import { DmaError, isDmaError, type ErrorCode } from './errors.js';
import type { ExternalMemory } from './memory/external.js';
import { openPlatform } from './platform/open.js';
import { until } from '../test/shared/until.js';
import { failingPlatform, trackingPlatform, type TrackingPlatform } from '../test/fakes/platform/platforms.js';
import { KiB, MiB, type Iova } from './units.js';
import { spawnDevice, type DeviceProcess } from './vfio-user/device-process.js';
import { deviceModel } from './vfio-user/devices/catalog.js';
import { serve } from './vfio-user/server.js';

const SKIP = { skip: openPlatform().limitation ?? false };

function fill(memory: ExternalMemory, seed: number): Uint8Array {
  const bytes = memory.bytes();
  for (let i = 0; i < bytes.length; i++) bytes[i] = (i * 7 + seed) % 253;
  return bytes.slice();
}

function descriptors(): number {
  return readdirSync('/proc/self/fd').length;
}

/** Waits until this process has no more descriptors than before: another thread closes the socket of a device that has died. */
const noMoreThan = (before: number): Promise<void> =>
  until(() => descriptors() <= before, 'all descriptors are closed');

describe('a device in another process', SKIP, () => {
  let copyProcess: DeviceProcess;
  let eduProcess: DeviceProcess;
  before(async () => {
    [copyProcess, eduProcess] = await Promise.all([
      spawnDevice('copy', { maxDmaMaps: 3 }),
      spawnDevice('edu', { device: { dmaDelayMs: 1 } }),
    ]);
  });
  after(async () => {
    await Promise.all([copyProcess.close(), eduProcess.close()]);
  });

  /** Runs `work` and looks whether anything is left afterwards. */
  async function tidy(work: (eal: Eal) => Promise<void>): Promise<void> {
    const platform = trackingPlatform(openPlatform());
    const forgotten: (readonly string[])[] = [];
    {
      await using eal = await Eal.start({ platform, onForgotten: (what) => void forgotten.push(what) });
      await work(eal);
    }
    assert.deepEqual(platform.leaks(), []);
    assert.deepEqual(forgotten, []);
  }

  it('copies between memories of this process', () =>
    tidy(async (eal) => {
      const device = await eal.probe(`vfio-user:${copyProcess.socketPath}`);
      assert.deepEqual([device.driver?.name, device.domain?.kind], ['copy', 'vfio-user']);
      assert.deepEqual(eal.devices('class=dma'), [device]);
      using from = eal.external.allocate(300 * KiB);
      using to = eal.external.allocate(300 * KiB);
      const expected = fill(from, 1);
      using read = device.dmaMap(from, { access: 'read' });
      await using write = await device.dmaMapAsync(to);
      await device.use(copyEngineDriver).copy(read.iova, write.iova, from.length);
      assert.deepEqual(to.bytes(), expected);
    }));

  it('reaches memory without a descriptor by messages, in both directions', () =>
    tidy(async (eal) => {
      const device = await eal.probe(copyProcess.socketPath);
      const engine = device.use(copyEngineDriver);
      using anonymous = eal.external.allocate(64 * KiB, { source: 'anonymous' });
      const whole = new Uint8Array(72 * KiB);
      const start = (4096 - (eal.platform.memory.addressOf(whole) % 4096)) % 4096;
      using buffer = eal.external.register(whole.subarray(start, start + 64 * KiB));
      using there = device.dmaMap(anonymous);
      using here = device.dmaMap(buffer);
      const first = fill(anonymous, 3);
      await engine.copy(there.iova, here.iova, 64 * KiB);
      assert.deepEqual(whole.slice(start, start + 64 * KiB), first);
      const second = fill(buffer, 5);
      await engine.copy(here.iova, there.iova, 64 * KiB);
      assert.deepEqual(anonymous.bytes(), second);
      here.unmap();
      await assert.rejects(engine.copy(there.iova, Number(here.range.start), 64), dmaError('EFAULT'));
    }));

  it('computes, interrupts, and moves memory both ways', () =>
    tidy(async (eal) => {
      const device = await eal.probe(`bus=vfio-user,name=${eduProcess.socketPath}/driver=edu`);
      const edu = device.use(eduDriver);
      const reasons: number[] = [];
      const interrupts = edu.enableInterrupt((reason) => reasons.push(reason));
      assert.equal(await edu.factorial(12), 479001600);
      using memory = eal.external.allocate(8192);
      using mapping = device.dmaMap(memory);
      assert.ok(mapping.iova + mapping.length <= 2 ** 28);
      const expected = fill(memory, 9);
      await edu.copyIn(mapping.iova, 0, 4000);
      await edu.copyOut(mapping.iova + 4096, 0, 4000);
      assert.deepEqual(memory.bytes(4096, 4000), expected.subarray(0, 4000));
      const all = (): number => reasons.reduce((or, reason) => or | reason, 0);
      // The driver looks at the registers as well, and may be done before the last interrupt is told.
      // 0x101: of the factorial and of the transfers.
      await until(() => all() === 0x101);
      interrupts.close();
      const before = reasons.length;
      await edu.factorial(3);
      assert.equal(reasons.length, before);
    }));

  it('what it may not reach is refused, and explained', () =>
    tidy(async (eal) => {
      const device = await eal.probe(copyProcess.socketPath);
      const engine = device.use(copyEngineDriver);
      using memory = eal.external.allocate(16 * KiB);
      const mapping = device.dmaMap(memory, { access: 'read' });
      const { iova } = mapping;
      await assert.rejects(engine.copy(iova, iova + 8192, 64), dmaError('EACCES'));
      assert.equal(device.explain((iova + 8192) as Iova, 64, 'write').kind, 'wrong-access');
      mapping.unmap();
      await assert.rejects(engine.copy(iova, iova + 8192, 64), (error) => {
        assert.ok(isDmaError(error, 'EFAULT'));
        assert.equal(error.range?.start, iova);
        return true;
      });
      const { kind, text } = device.explain(iova, 64);
      assert.equal(kind, 'unmapped');
      assert.match(text, /ago by vfio-user:.*eal-vfio-user\.(?:slow\.)?test/);
      assert.throws(() => device.dmaUnmap(memory), dmaError('EINVAL'));
      assert.throws(() => mapping.unmap(), dmaError('EINVAL'));
    }));

  it('says how many mappings it takes, so that it need not be asked', () =>
    tidy(async (eal) => {
      const device = await eal.probe(copyProcess.socketPath);
      // The rings of its driver are one.
      using a = eal.external.allocate(4096);
      using b = eal.external.allocate(4096);
      using c = eal.external.allocate(4096);
      using _a = device.dmaMap(a);
      using _b = device.dmaMap(b);
      assert.throws(() => device.dmaMap(c), dmaError('ENOSPC', /takes 3 mappings; 0 are left/));
      assert.equal(device.domain?.entries, 3);
      _a.unmap();
      using _c = device.dmaMap(c);
      assert.throws(() => device.dmaUnmap({ va: b.va, length: 2048 }), dmaError('EINVAL'));
    }));

  it('can not cut mappings', () =>
    tidy(async (eal) => {
      const device = await eal.probe(copyProcess.socketPath);
      using memory = eal.external.allocate(8192);
      using mapping = device.dmaMap(memory);
      assert.throws(() => device.dmaUnmap({ va: memory.va, length: 4096 }), dmaError('ENOTSUP'));
      assert.equal(mapping.live, true);
    }));

  it('serves one program at a time', () =>
    tidy(async (eal) => {
      const device = await eal.probe(copyProcess.socketPath);
      await assert.rejects(eal.probe(copyProcess.socketPath), dmaError('EEXIST'));
      await using other = await Eal.start();
      await assert.rejects(other.probe(copyProcess.socketPath), dmaError('ECONNRESET', /another client/));
      await eal.remove(device);
      await other.probe(copyProcess.socketPath);
    }));

  it('is mapped with others, all or nothing', () =>
    tidy(async (eal) => {
      const devices = [
        await eal.probe('vdev:copy0'),
        await eal.probe(copyProcess.socketPath),
        await eal.probe(eduProcess.socketPath),
      ];
      using memory = eal.external.allocate(4096);
      using all = eal.dmaMapAll(memory);
      assert.equal(all.mappings.length, 3);
      using more = eal.external.allocate(4096);
      using evenMore = eal.external.allocate(4096);
      using _more = devices[1].dmaMap(more);
      assert.throws(() => eal.dmaMapAll(evenMore, devices), dmaError('ENOSPC'));
      assert.deepEqual([...evenMore.area.holders.keys()], []);
    }));

  it('keys of its name', () =>
    tidy(async (eal) => {
      const path = eduProcess.socketPath;
      for (const args of [
        ...['timeout=0', 'timeout=x', 'timeout=Infinity', 'timeout=1e12', 'mmap=maybe', 'mmap=', 'dma-mask=3'],
        ...['share=maybe', 'share', 'stores=maybe', 'user=root', 'user=-1', 'trust=1', 'mmaps=never'],
      ])
        await assert.rejects(eal.probe(`${path},${args}`), dmaError('EINVAL'), args);
      const device = await eal.probe(`${path},timeout=900,mmap=trust,dma-mask=30`);
      assert.equal(device.domain?.constraints.windows.at(-1)?.end, 2 ** 30);
    }));

  it('that gets no descriptors asks for memory by message, and for what is mapped only', () =>
    tidy(async (eal) => {
      const device = await eal.probe(`${copyProcess.socketPath},share=never`);
      const engine = device.use(copyEngineDriver);
      const [source, target] = [eal.external.allocate(64 * KiB), eal.external.allocate(64 * KiB)];
      source.bytes().fill(7);
      const [from, to] = [device.dmaMap(source, { access: 'read' }), device.dmaMap(target)];
      await engine.copy(from.iova, to.iova, 64 * KiB);
      assert.ok(target.bytes().every((byte) => byte === 7));
      const maps = readFileSync(`/proc/${copyProcess.pid}/maps`, 'latin1').split('\n');
      const given = maps.filter((line) => line.includes('/memfd:anydma'));
      assert.deepEqual(given, [], 'the server has no file of this process');
      await assert.rejects(engine.copy(to.iova, from.iova, 64));
      from.unmap();
      to.unmap();
      source.unregister();
      target.unregister();
    }));

  for (const [what, make, why] of [
    ['a folder', (path: string) => mkdirSync(path), /is a directory: give the socket in it/],
    ['a plain file', (path: string) => writeFileSync(path, ''), /is a file, not a socket/],
    [
      'a socket that nobody listens at any more',
      (path: string) => {
        const { sockets, files } = openPlatform();
        files.close(sockets.listen(path, 1));
      },
      /no server listens there any more/,
    ],
  ] as const)
    it(`that is ${what} is ECONNREFUSED, and says so`, () =>
      tidy(async (eal) => {
        const folder = mkdtempSync(join(tmpdir(), 'anydma-refused-'));
        make(join(folder, 'x'));
        await assert.rejects(eal.probe(`vfio-user:${folder}/x`), (error) => {
          assert.ok(isDmaError(error, 'ECONNREFUSED'), String(error));
          assert.match(error.hint ?? '', why);
          return true;
        });
        rmSync(folder, { recursive: true });
      }));

  it('that is not there, or no such thing, says so and leaves nothing', () =>
    tidy(async (eal) => {
      await assert.rejects(eal.probe('vfio-user:/nonexistent/x.sock'), (error) => {
        assert.ok(isDmaError(error, 'ENOENT'));
        assert.equal(error.device, 'vfio-user:/nonexistent/x.sock');
        return true;
      });
      await assert.rejects(eal.probe('/dev/null'), (error) => isDmaError(error));
      await assert.rejects(eal.probe('vfio-user:relative'), dmaError('ENODEV'));
    }));

  it('the interrupts of the raw driver come and go', () =>
    tidy(async (eal) => {
      const device = await eal.probe(`bus=vfio-user,name=${eduProcess.socketPath}/driver=raw`);
      const access = device.use(rawDriver);
      const rung: string[] = [];
      const first = access.enableInterrupts('msi', [() => rung.push('first')]);
      access.registers(0).write32(0x60, 1);
      await until(() => rung.length === 1, 'the first handler');
      const second = access.enableInterrupts('intx', [() => rung.push('second')]);
      access.registers(0).write32(0x60, 2);
      await until(() => rung.length === 2, 'the second handler');
      assert.deepEqual(rung, ['first', 'second']);
      first.close();
      access.registers(0).write32(0x60, 4);
      await until(() => rung.length === 3, 'closing the first does not end the second');
      second.close();
      second.close();
      assert.throws(() => access.enableInterrupts('msix', [() => 0]), dmaError('EINVAL'));
      assert.throws(() => access.enableInterrupts('msi', [() => 0, () => 0]), dmaError('EINVAL'));
      access.reset();
      assert.throws(() => access.registers(3), dmaError('EINVAL'));
    }));
});

describe('a device process that is killed', SKIP, () => {
  interface Scene {
    readonly eal: Eal;
    readonly device: Device;
    readonly engine: CopyEngine;
    readonly platform: TrackingPlatform;
    /** What `lost` told. */
    readonly losses: DmaError[];
    readonly kill: () => void;
    readonly pid: number;
  }

  /** A call that was running when the device was lost says so; why, with this code, is its cause. */
  const lostBy =
    (code: ErrorCode) =>
    (error: unknown): boolean =>
      isDmaError(error, 'ENODEV') && isDmaError(error.cause, code);

  /** Plays `scene`, in which the device dies, and looks whether that was noticed and nothing is left. */
  async function play(work: (scene: Scene) => Promise<void>, code = 'ECONNRESET'): Promise<void> {
    const before = descriptors();
    await playWith(work, code);
    await noMoreThan(before);
  }

  async function playWith(work: (scene: Scene) => Promise<void>, code: string): Promise<void> {
    await using child = await spawnDevice('copy', { device: { maxTransfer: 4096 } });
    const platform = trackingPlatform(openPlatform());
    const losses: DmaError[] = [];
    {
      await using eal = await Eal.start({ platform });
      eal.events.on('lost', (_device, error) => losses.push(error));
      const device = await eal.probe(child.socketPath);
      const kill = (): void => void process.kill(child.pid, 'SIGKILL');
      const engine = device.use(copyEngineDriver);
      await work({ eal, device, engine, platform, losses, kill, pid: child.pid });
      await until(() => losses.length === 1, 'the device is lost');
      assert.equal(losses[0].code, code);
      assert.equal(device.state, 'gone');
      assert.deepEqual(eal.devices(), []);
      for (const memory of [...eal.external]) memory.unregister();
      assert.deepEqual(platform.leaks(), []);
      await assert.rejects(eal.probe(child.socketPath), (error) => isDmaError(error));
    }
  }

  it('while nothing happens', () =>
    play(async ({ eal, device, kill, losses }) => {
      const mapping = device.dmaMap(eal.external.allocate(4096));
      kill();
      await until(() => losses.length === 1, 'it is noticed');
      assert.equal(mapping.live, false);
      mapping.unmap();
      device.dmaUnmap(mapping);
      await eal.remove(device);
      const gone = (error: unknown): boolean => isDmaError(error, 'ENODEV') && error.cause === device.lost;
      assert.throws(() => device.dmaMap([...eal.external][0]), gone);
      assert.throws(() => device.use(copyEngineDriver), gone);
      assert.throws(() => device.access, gone);
      assert.deepEqual(device.explainFaults(), []);
    }));

  it('while a blocking map waits for its answer', () =>
    play(async ({ eal, device, pid }) => {
      const memory = eal.external.allocate(4096);
      process.kill(pid, 'SIGSTOP');
      spawn('sh', ['-c', `sleep 0.1; kill -9 ${pid}`], { stdio: 'ignore' });
      assert.throws(() => device.dmaMap(memory), lostBy('ECONNRESET'));
      memory.unregister();
    }));

  it('while a blocking unmap waits for its answer: nothing is mapped then', () =>
    play(async ({ eal, device, pid }) => {
      const memory = eal.external.allocate(4096);
      const mapping = device.dmaMap(memory);
      process.kill(pid, 'SIGSTOP');
      spawn('sh', ['-c', `sleep 0.1; kill -9 ${pid}`], { stdio: 'ignore' });
      try {
        mapping.unmap();
      } catch (error) {
        assert.ok(isDmaError(error, 'ECONNRESET'), String(error));
      }
      assert.equal(mapping.live, false);
      memory.unregister();
    }));

  it('while an asynchronous map runs', () =>
    play(async ({ eal, device, pid, kill }) => {
      const memory = eal.external.allocate(16 * 4096);
      process.kill(pid, 'SIGSTOP');
      const mapping = device.dmaMapAsync(memory, { chunkBytes: 4096 });
      setTimeout(kill, 20);
      await assert.rejects(mapping, lostBy('ECONNRESET'));
      memory.unregister();
    }));

  it('while a copy runs', () =>
    play(async ({ eal, device, engine, kill }) => {
      const memory = eal.external.allocate(32 * MiB);
      const mapping = device.dmaMap(memory);
      const half = memory.length / 2;
      const copy = engine.copy(mapping.iova, mapping.iova + half, half, { onProgress: kill });
      await assert.rejects(
        copy,
        (error) => error instanceof DmaError && /ECONNRESET|ENODEV|ECANCELED/.test(error.code),
      );
      await assert.rejects(engine.copy(0, 4096, 64), (error) => error instanceof DmaError);
    }));

  it('while interrupts are enabled', () =>
    play(async ({ device, kill, losses }) => {
      const interrupts = device.access.enableInterrupts('msi', [() => undefined]);
      kill();
      await until(() => losses.length === 1, 'it is noticed');
      interrupts.close();
    }));

  it('while a device in it does not answer: the call ends by its time', () =>
    play(async ({ eal, device, pid, kill }) => {
      await eal.remove(device);
      const again = await eal.probe(`${device.busName},timeout=1500`);
      const memory = eal.external.allocate(4096);
      process.kill(pid, 'SIGSTOP');
      assert.throws(() => again.dmaMap(memory), lostBy('ECONNABORTED'));
      memory.unregister();
      kill();
    }, 'ECONNABORTED'));

  it('before that is noticed: removing it, and stopping, go well', async () => {
    for (const end of ['remove', 'stop']) {
      await using child = await spawnDevice('copy');
      const platform = trackingPlatform(openPlatform());
      const eal = await Eal.start({ platform, onForgotten: () => undefined });
      const device = await eal.probe(child.socketPath);
      const memory = eal.external.allocate(4096);
      device.dmaMap(memory);
      process.kill(child.pid, 'SIGKILL');
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 50);
      if (end === 'remove') await eal.remove(device);
      await eal.stop();
      assert.deepEqual(platform.leaks(), []);
      assert.equal(memory.live, false);
    }
  });
});

describe('when the Nth system call fails', SKIP, () => {
  it('start, probe, allocate, map, copy, unmap, stop: an error or success, and nothing left', async () => {
    await using child = await spawnDevice('copy');
    const tracking = trackingPlatform(openPlatform());
    const platform = failingPlatform(tracking);
    const before = descriptors();
    const problems: string[] = [];
    let known = 0;
    let runs = 0;
    let outcome: unknown;
    /** The server may not have heard yet that the last run is over; then it sends who comes away. */
    const probeSoon = async (eal: Eal, unharmed: () => boolean): Promise<Device> => {
      for (let n = 0; ; n++) {
        try {
          return await eal.probe(child.socketPath);
        } catch (error) {
          if (n === 20 || !unharmed() || !isDmaError(error, 'ECONNRESET')) throw error;
          await new Promise((resolve) => setTimeout(resolve, 10));
        }
      }
    };
    do {
      platform.failCall(++runs, 'ENOMEM');
      let eal: Eal | undefined;
      const check = (error: unknown): void => {
        if (!(error instanceof DmaError)) problems.push(`${runs}, ${platform.failed()}: ${String(error)}`);
      };
      try {
        eal = await Eal.start({ platform, onForgotten: () => undefined });
        const device = await probeSoon(eal, () => platform.failed() === undefined);
        const memory = eal.external.allocate(8192);
        memory.bytes().fill(runs, 0, 4096);
        const mapping = device.dmaMap(memory);
        await device.use(copyEngineDriver).copy(mapping.iova, mapping.iova + 4096, 4096);
        assert.equal(memory.bytes()[4096 + 4095], runs % 256);
        mapping.unmap();
        memory.unregister();
        outcome = 'success';
      } catch (error) {
        outcome = error;
        check(error);
      }
      await eal?.stop().catch(check);
      const leaks = tracking.leaks();
      if (leaks.length > known) problems.push(`${runs}, ${platform.failed()}: ${leaks.slice(known).join(' ')}`);
      known = leaks.length;
      if ([...(eal?.external ?? [])].length > 0) problems.push(`${runs}, ${platform.failed()}: memory`);
    } while (platform.failed() !== undefined);
    assert.deepEqual(problems, []);
    assert.equal(outcome, 'success', `run ${runs}, without a failure`);
    assert.ok(runs > 50, String(runs));
    await noMoreThan(before);
  });
});

describe('a program that forgets to stop', SKIP, () => {
  let device: DeviceProcess;
  before(async () => {
    device = await spawnDevice('copy');
  });
  after(async () => {
    await device.close();
  });

  /** Runs a program that has probed the device. */
  const run = (code: string): { status: number | null; signal: string | null; stdout: string; stderr: string } => {
    const program = `
      import { Eal, copyEngineDriver, rawDriver } from ${JSON.stringify(new URL('./index.js', import.meta.url).href)};
      const eal = await Eal.start();
      const device = await eal.probe('vfio-user:${device.socketPath}');
      ${code}`;
    return spawnSync(process.execPath, ['--input-type=module', '-e', program], { encoding: 'utf8', timeout: 20_000 });
  };

  it('ends all the same when its device is idle, and says what was forgotten', () => {
    const { status, stderr } = run('');
    assert.equal(status, 0, stderr);
    assert.match(stderr, /^anydma: forgotten: device vfio-user:.*: eal.stop\(\) was not called, probed at .*\n$/);
  });

  it('goes on while an operation is pending, without and with a timer of its own', () => {
    const { status, stdout } = run(`
      const memory = eal.external.allocate(1 << 20), target = eal.external.allocate(1 << 20);
      memory.bytes().fill(3);
device.dmaMapAsync(memory).then(async (from) => {
        const to = await device.dmaMapAsync(target);
        await device.use(copyEngineDriver).copy(from.iova, to.iova, 1 << 20);
        console.log(target.bytes()[77]);
      });`);
    assert.deepEqual([status, stdout], [0, '3\n']);
  });

  it('goes on while handlers of interrupts are switched on', () => {
    const { stdout } = run(`
      await eal.remove(device);
      const raw = await eal.probe('bus=vfio-user,name=${device.socketPath}/driver=raw');
      const interrupts = raw.use(rawDriver).enableInterrupts('msi', [() => undefined]);
      let ticks = 0;
      const timer = setInterval(() => {
        if (++ticks < 5) return;
        console.log('still here');
        interrupts.close();
        clearInterval(timer);
      }, 50);
      timer.unref();`);
    assert.equal(stdout, 'still here\n');
  });
});

describe('a device that is served in the same thread', SKIP, () => {
  it('can be probed, mapped for and worked, and leaves no socket', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'anydma-test-'));
    const socketPath = join(folder, 'copy.sock');
    try {
      const server = serve(openPlatform(), { socketPath, model: deviceModel('copy') });
      {
        await using eal = await Eal.start();
        const device = await eal.probe(`vfio-user:${socketPath}`);
        using source = eal.external.allocate(MiB);
        using target = eal.external.allocate(MiB);
        using from = device.dmaMap(source);
        using to = await device.dmaMapAsync(target);
        const bytes = fill(source, 5);
        await device.use(copyEngineDriver).copy(from.iova, to.iova, MiB);
        assert.deepEqual(target.bytes().slice(), bytes);
      }
      await server.close();
      assert.deepEqual(readdirSync(folder), []);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  it('removes only its own socket', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'anydma-test-'));
    const socketPath = join(folder, 'edu.sock');
    try {
      const first = serve(openPlatform(), { socketPath, model: deviceModel('edu') });
      rmSync(socketPath);
      const second = serve(openPlatform(), { socketPath, model: deviceModel('edu') });
      await first.close();
      assert.deepEqual(readdirSync(folder), ['edu.sock']);
      await second.close();
      assert.deepEqual(readdirSync(folder), []);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
});

it('a signal to the group of a program with a device process leaves nothing', SKIP, async () => {
  const model = JSON.stringify(new URL('./entry/model.js', import.meta.url).href);
  const program = `
    import { spawnDevice } from ${model};
    console.log((await spawnDevice('edu')).socketPath);
    setInterval(() => {}, 1000);`;
  for (const signal of ['SIGTERM', 'SIGHUP', 'SIGINT'] as const) {
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
      detached: true,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const path = await new Promise<string>((resolve) => {
      child.stdout.setEncoding('utf8').once('data', (text: string) => resolve(text.trim()));
    });
    assert.ok(existsSync(path));
    process.kill(-(child.pid ?? 0), signal);
    await new Promise((resolve) => child.once('exit', resolve));
    await until(() => !existsSync(dirname(path)), `the folder of the device goes after ${signal}`);
  }
});

it('a relative path without a working directory is ENOENT and says so', SKIP, () => {
  const index = JSON.stringify(new URL('./index.js', import.meta.url).href);
  const program = `
    import { mkdtempSync, rmdirSync } from 'node:fs';
    import { tmpdir } from 'node:os';
    import { Eal } from ${index};
    const eal = await Eal.start();
    const folder = mkdtempSync(tmpdir() + '/anydma-');
    process.chdir(folder);
    rmdirSync(folder);
    await eal.probe('vfio-user:./device.sock').catch((error) => console.log(error.code, error.operation, error.reason));
    await Eal.start({ memory: { hugeDir: 'huge' } }).catch((error) => console.log(error.code, error.operation));
    await eal.stop();`;
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', program], { encoding: 'utf8' });
  assert.match(stdout, /^ENOENT probe .*working directory.*\nENOENT Eal.start\n$/, stderr);
});

it('any number of devices and Eals in one program leads to no warning', SKIP, () => {
  const index = JSON.stringify(new URL('./index.js', import.meta.url).href);
  const model = JSON.stringify(new URL('./entry/model.js', import.meta.url).href);
  const program = `
    import { Eal } from ${index};
    import { spawnDevice } from ${model};
    const all = [];
    for (let i = 0; i < 12; i++) {
      const [device, eal] = [await spawnDevice('copy'), await Eal.start()];
      await eal.probe('vfio-user:' + device.socketPath);
      all.push([device, eal]);
    }
    for (const [device, eal] of all) {
      await eal.stop();
      await device.close();
    }`;
  const { status, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', program], { encoding: 'utf8' });
  assert.deepEqual([status, stderr], [0, '']);
});
