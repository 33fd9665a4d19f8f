import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { describe, it } from 'node:test';
import { dmaError } from '../test/shared/errors.js';
import { gate, Script, FakeBus, fakeDriver, fakeSpaces } from '../test/fakes/bus/bus.js';
import { copyEngineDriver } from './drivers/copy-engine-driver.js';
import { Eal, type EalOptions } from './eal.js';
import { isDmaError } from './errors.js';
import type { ExternalMemory } from './memory/external.js';
import { openPlatform } from './platform/open.js';
import { portablePlatform } from './platform/portable.js';
import { failingPlatform, trackingPlatform } from '../test/fakes/platform/platforms.js';

/** An Eal with a fake bus and driver. */
async function withFakeBus(options: EalOptions = {}): Promise<{ eal: Eal; script: Script; bus: FakeBus }> {
  const script = new Script();
  const bus = new FakeBus(script, { spaceOf: fakeSpaces(script).spaceOf });
  const eal = await Eal.start({ buses: [bus], drivers: [fakeDriver(script, 'one')], ...options });
  return { eal, script, bus };
}

const PACKAGE = JSON.stringify(new URL('./index.js', import.meta.url).href);

/** Runs a program in a process of its own. */
function runAlone(program: string): { status: number | null; out: string; err: string } {
  const result = spawnSync(process.execPath, ['--input-type=module', '-e', program], { encoding: 'utf8' });
  return { status: result.status, out: result.stdout, err: result.stderr };
}

/** As `runAlone`, with the package as `anydma`. */
function run(program: string): { status: number | null; out: string; err: string } {
  return runAlone(`import * as anydma from ${PACKAGE};\n${program}`);
}

describe('starting and stopping', () => {
  it('goes once, however often it is asked for', async () => {
    const { eal, script } = await withFakeBus();
    await eal.probe('fake:a');
    await eal.probe('fake:b');
    script.take();
    await Promise.all([eal.stop(), eal.stop()]);
    await eal[Symbol.asyncDispose]();
    assert.deepEqual(
      script.take().filter((step) => step.startsWith('close ')),
      ['close b', 'close a'],
    );
    await assert.rejects(eal.probe('fake:a'), dmaError('ECANCELED', /stopped/));
    assert.throws(() => eal.dmaMapAll({ va: 0, length: 1 }), dmaError('ECANCELED', /stopped/));
    assert.deepEqual(eal.devices(), []);
  });

  it('leaves no listener behind, also when it can not start', async () => {
    const before = process.listenerCount('exit');
    const { eal } = await withFakeBus();
    await assert.rejects(withFakeBus({ buses: [eal.vdev] }), dmaError('EEXIST', /bus vdev/));
    await assert.rejects(Eal.start({ drivers: [copyEngineDriver] }), dmaError('EEXIST', /driver copy/));
    await eal.stop();
    assert.equal(process.listenerCount('exit'), before);
  });

  it(
    'names the place where lists of devices were mapped for',
    { skip: openPlatform().limitation ?? false },
    async () => {
      const forgotten: string[] = [];
      const eal = await Eal.start({ onForgotten: (what) => forgotten.push(...what) });
      const devices = [await eal.probe('vdev:copy0'), await eal.probe('vdev:edu0')];
      eal.dmaMapAll(eal.external.allocate(4096), devices);
      await eal.dmaMapAllAsync(eal.external.allocate(4096), devices);
      await eal.stop();
      assert.equal(
        forgotten.filter((each) => /^2 mappings, 8 KiB, made at .*eal\.test/.test(each)).length,
        2,
        forgotten.join(),
      );
    },
  );

  it('with everything still mapped leaves nothing', { skip: openPlatform().limitation ?? false }, async () => {
    const platform = trackingPlatform(openPlatform());
    const forgotten: string[] = [];
    const eal = await Eal.start({ platform, onForgotten: (what) => forgotten.push(...what) });
    const devices = [await eal.probe('vdev:copy0'), await eal.probe('vdev:edu0'), await eal.probe('vdev:edu1')];
    const memories: ExternalMemory[] = [eal.external.allocate(4096), eal.external.allocate(8192)];
    const mappings = memories.flatMap((memory) => devices.map((device) => device.dmaMap(memory)));
    const bytes = memories[0].bytes();
    const all = eal.dmaMapAll(eal.external.allocate(4096));
    await eal.stop();
    assert.deepEqual(platform.leaks(), []);
    assert.equal(bytes.length, 0, 'views die with the memory');
    assert.ok(mappings.every((mapping) => !mapping.live));
    assert.deepEqual(all.mappings, []);
    assert.equal(forgotten.length, 1 + 3, 'one line a place');
    assert.match(forgotten[0], /^6 mappings, 36 KiB, made at /);
    assert.ok(
      forgotten.every((each) => /eal\.test/.test(each)),
      forgotten.join('\n'),
    );
  });

  it('two of them share nothing', async () => {
    const first = await withFakeBus();
    const second = await withFakeBus();
    await using _first = first.eal;
    await first.eal.probe('fake:a');
    await second.eal.probe('fake:a');
    using memory = first.eal.external.allocate(4096);
    const there = second.eal.devices()[0];
    assert.throws(() => there.dmaMap(memory), dmaError('EINVAL'), 'that memory is of the other one');
    using own = first.eal.devices()[0].dmaMap(memory);
    await second.eal.stop();
    assert.equal(own.live, true);
    assert.equal(first.eal.devices().length, 1);
  });

  it('waits for what is being probed, and takes it away', async () => {
    const wait = gate();
    const script = new Script();
    const slow = fakeDriver(script, 'slow', { probe: () => wait.opened });
    const eal = await Eal.start({ buses: [new FakeBus(script)], drivers: [slow] });
    const probing = eal.probe('fake:a');
    const stopping = eal.stop();
    const rejected = assert.rejects(probing, dmaError('ECANCELED'));
    wait.open();
    await rejected;
    await stopping;
    assert.deepEqual(script.take(), ['open a', 'slow.probe a', 'slow.remove a', 'close a']);
  });

  it('tries everything, and tells what failed first', async () => {
    const { eal, script } = await withFakeBus({ onForgotten: () => undefined });
    const a = await eal.probe('fake:a');
    await eal.probe('fake:b');
    const memory = eal.external.allocate(4096);
    a.dmaMap(memory);
    script.failing.set('one.remove b', 'EIO');
    script.failing.set('close a', 'EBADF');
    await assert.rejects(eal.stop(), (error) => {
      assert.ok(isDmaError(error, 'EIO'));
      assert.deepEqual(
        error.undo.map((each) => isDmaError(each) && each.code),
        ['EBADF'],
      );
      return true;
    });
    assert.equal(memory.live, false);
    assert.deepEqual(eal.devices(), []);
  });

  it('a report that throws keeps nothing from being given back', async () => {
    const { eal } = await withFakeBus({
      onForgotten: () => {
        throw new TypeError('oops');
      },
    });
    const memory = eal.external.allocate(4096);
    await eal.probe('fake:a');
    await assert.rejects(eal.stop(), dmaError('EIO', /oops/));
    assert.equal(memory.live, false);
    assert.deepEqual(eal.devices(), []);
  });

  it('pinned memory stays, and that is told', async () => {
    const { eal } = await withFakeBus({ onForgotten: () => undefined });
    const memory = eal.external.allocate(4096);
    const pin = memory.pin('a transfer of the test');
    await assert.rejects(eal.stop(), dmaError('EBUSY', /a transfer of the test/));
    pin[Symbol.dispose]();
    memory.unregister();
  });

  it('memory that a driver forgot goes too', { skip: openPlatform().limitation ?? false }, async () => {
    const platform = trackingPlatform(openPlatform());
    const forgotten: string[] = [];
    const script = new Script();
    const careless = fakeDriver(script, 'careless', {
      probe: (_device, { external }) => external.allocate(4096),
    });
    const eal = await Eal.start({
      platform,
      buses: [new FakeBus(script)],
      drivers: [careless],
      onForgotten: (what) => forgotten.push(...what),
    });
    await eal.probe('fake:a');
    await eal.stop();
    assert.deepEqual(platform.leaks(), []);
    assert.deepEqual(forgotten, [], 'it is nothing that the program forgot');
  });

  it('reporting needs no system call', { skip: openPlatform().limitation ?? false }, async () => {
    const platform = failingPlatform(openPlatform());
    const { eal } = await withFakeBus({ platform, onForgotten: () => undefined });
    const a = await eal.probe('fake:a');
    a.dmaMap(eal.external.allocate(4096));
    platform.failCall(1, 'ENOMEM', 'memory.view');
    await eal.stop();
    assert.equal(platform.failed(), undefined);
  });
});

describe('what was forgotten', () => {
  it('is a process warning with the place', async () => {
    const { eal } = await withFakeBus();
    const device = await eal.probe('fake:a');
    const memory = eal.external.allocate(4096);
    device.dmaMap(memory);
    const warnings: (Error & { code?: string })[] = [];
    const listen = (warning: Error): void => void warnings.push(warning);
    process.on('warning', listen);
    await eal.stop();
    await new Promise(setImmediate);
    process.off('warning', listen);
    assert.equal(warnings.length, 2);
    for (const warning of warnings) {
      assert.equal(warning.code, 'ANYDMA_FORGOTTEN');
      assert.match(warning.message, /^forgotten: .* at .*eal\.test/);
    }
    assert.match(warnings[0].message, /mapping .* on fake:a/);
  });

  it('is a few lines, whatever there is of it', async () => {
    const forgotten: string[] = [];
    const { eal } = await withFakeBus({ onForgotten: (what) => void forgotten.push(...what) });
    const device = await eal.probe('fake:a');
    const memory = eal.external.allocate(1004 * 4096);
    for (let i = 0; i < 1004; i++) device.dmaMap({ va: memory.va + i * 4096, length: 4096 });
    await eal.stop();
    assert.equal(forgotten.length, 3, forgotten.join('\n'));
    assert.match(forgotten[0], /^1000 mappings, 3.9 MiB, made at .*eal\.test/);
  });

  it('is told of more than ten Eals at exit, and Node has nothing to warn of', () => {
    const { status, err } = run(`
      for (let i = 0; i < 12; i++) (await anydma.Eal.start()).external.allocate(4096);`);
    assert.equal(status, 0);
    const lines = err.trim().split('\n');
    assert.equal(lines.length, 12, err);
    assert.ok(
      lines.every((line) => line.startsWith('anydma: forgotten: ')),
      err,
    );
  });

  it('is nothing when all was given back', async () => {
    const forgotten: unknown[] = [];
    const { eal } = await withFakeBus({ onForgotten: (what) => forgotten.push(what) });
    const device = await eal.probe('fake:a');
    {
      using memory = eal.external.allocate(4096);
      using mapping = device.dmaMap(memory, { iova: 0x1000 });
      assert.ok(mapping.live);
    }
    await eal.stop();
    assert.deepEqual(forgotten, []);
  });

  it('is told at exit, too, when nobody stopped it', { skip: openPlatform().limitation ?? false }, () => {
    const { status, out, err } = run(`
      const eal = await anydma.Eal.start();
      const device = await eal.probe('vdev:copy0');
      function somewhere() { return device.dmaMap(eal.external.allocate(4096)); }
      somewhere();
      process.exitCode = 7;`);
    assert.equal(status, 7);
    assert.equal(out, '');
    const lines = err.trim().split('\n');
    assert.equal(lines.length, 2, err);
    assert.match(lines[0], /^anydma: forgotten: mapping .* on vdev:copy0, made at somewhere /);
    assert.match(lines[1], /^anydma: forgotten: memfd memory .*registered at somewhere /);
  });

  it('at exit goes to the callback of the program', () => {
    const { status, out, err } = run(`
      const eal = await anydma.Eal.start({ onForgotten: (what) => console.log(what.length) });
      eal.external.allocate(4096);`);
    assert.deepEqual([status, out, err], [0, '1\n', '']);
  });

  it('is nothing at exit when it was stopped, or nothing held', () => {
    const { status, out, err } = run(`
      const first = await anydma.Eal.start();
      await first.probe('vdev:copy0');
      const second = await anydma.Eal.start({ onForgotten: () => {} });
      second.external.allocate(4096);
      await second.stop();`);
    assert.deepEqual([status, out, err], [0, '', '']);
  });
});

describe('events', () => {
  it('tell what happened, in order', async () => {
    const { eal, bus } = await withFakeBus();
    const events: string[] = [];
    eal.events.on('probed', (device) => events.push(`probed ${device.name} ${device.state}`));
    eal.events.on('removed', (device) => events.push(`removed ${device.name} ${device.state}`));
    eal.events.on('lost', (device, error) => events.push(`lost ${device.name} ${error.code}`));
    eal.events.on('registered', (memory) => events.push(`registered ${memory.live}`));
    eal.events.on('unregistered', (memory) => events.push(`unregistered ${memory.live}`));
    eal.events.once('probed', () => events.push('once'));
    const a = await eal.probe('fake:a');
    eal.external.allocate(4096).unregister();
    await eal.remove(a);
    await eal.probe('fake:b');
    bus.lose('b');
    await new Promise(setImmediate);
    await eal.probe('fake:c');
    await eal.stop();
    assert.deepEqual(events, [
      'probed fake:a probed',
      'once',
      'registered true',
      'unregistered false',
      'removed fake:a gone',
      'probed fake:b probed',
      'lost fake:b ECONNRESET',
      'probed fake:c probed',
      'removed fake:c gone',
    ]);
  });

  it('a listener that throws is an uncaught exception, and disturbs nothing', () => {
    const { status, out } = run(`
      process.on('uncaughtException', (error) => console.log('uncaught', error.message));
      const eal = await anydma.Eal.start();
      eal.events.on('probed', () => { throw new Error('oops'); });
      eal.events.on('probed', () => console.log('next'));
      const device = await eal.probe('vdev:edu0');
      console.log(device.state);
      await eal.stop();`);
    assert.equal(status, 0);
    assert.deepEqual(out.trim().split('\n').sort(), ['next', 'probed', 'uncaught oops']);
  });
});

describe('where no system call can be made', () => {
  const platform = portablePlatform('this is a test');

  it('it starts, and says why the rest does not work', async () => {
    await using eal = await Eal.start({ platform });
    assert.equal(eal.platform.limitation, 'this is a test');
    await assert.rejects(eal.probe('vfio-user:/run/x.sock'), dmaError('ENOTSUP', /this is a test on vfio-user:/));
    assert.throws(() => eal.external.allocate(4096, { source: 'memfd' }), dmaError('ENOTSUP', /this is a test/));
    await eal.probe('vdev:copy0');
    using memory = eal.external.allocate(4096);
    using all = eal.dmaMapAll(memory);
    assert.equal(all.mappings.length, 1);
  });
});

describe('importing the package', () => {
  it(
    'writes nothing, opens nothing, listens to nothing, and ends',
    { skip: openPlatform().limitation ?? false },
    () => {
      const { status, out, err } = runAlone(`
      import { readdirSync } from 'node:fs';
      const now = () => [
        readdirSync('/proc/self/fd').length,
        process.eventNames().map((name) => [name, process.listenerCount(name)]),
      ];
      const before = now();
      const { Eal } = await import(${PACKAGE});
      // The loader is closing the last file it has read.
      await new Promise(setImmediate);
      const after = now();
      console.log(JSON.stringify(before) === JSON.stringify(after), typeof Eal);
      if (JSON.stringify(before) !== JSON.stringify(after)) console.log(before, after);`);
      assert.deepEqual([status, out, err], [0, 'true function\n', '']);
    },
  );
});
