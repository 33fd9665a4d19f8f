import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import type { ErrorCode } from '../errors.js';
import { DmaError, isDmaError } from '../errors.js';
import { Range } from '../ranges.js';
import { MiB } from '../units.js';
import { COPY_CODE, COPY_CONTROL, COPY_REGISTER as REG } from '../vfio-user/devices/copy-engine-layout.js';
import type { CopyEngineModelOptions } from '../vfio-user/devices/copy-engine.js';
import { copyEngineModel } from '../vfio-user/devices/copy-engine.js';
import { eduModel } from '../vfio-user/devices/edu.js';
import type { Reach } from '../../test/fakes/vfio-user/model-host.js';
import { pattern, FakeModelHost, FakeDma, turn } from '../../test/fakes/vfio-user/model-host.js';
import type { CopyEngineOptions, CopyEngineRings } from './copy-engine.js';
import { copyError, CopyEngine } from './copy-engine.js';
import { FakeAccess } from '../../test/fakes/drivers/device-access.js';

const RING = 0x10000000;
const DONE = 0x2_20000000;
const SOURCE = 0x1_00000000;
const TARGET = 0x2_00000000;

const code = (name: ErrorCode, start?: number) => (error: unknown) =>
  isDmaError(error, name) && (start === undefined || error.range?.start === start);

interface Setup extends CopyEngineOptions {
  entries?: number;
  reach?: Reach;
  model?: CopyEngineModelOptions;
}

function prepare({ entries = 64, reach, model }: Setup): {
  host: FakeModelHost;
  access: FakeAccess;
  rings: CopyEngineRings;
} {
  const host = new FakeModelHost(copyEngineModel(model), new FakeDma(reach));
  const descriptors = host.dma.map(RING, new Uint8Array(entries * 32), 'read');
  const completions = host.dma.map(DONE, new Uint8Array(entries * 32).fill(0xff), 'write');
  const rings = { descriptors: { bytes: descriptors, iova: RING }, completions: { bytes: completions, iova: DONE } };
  return { host, access: new FakeAccess(host), rings };
}

async function open(
  setup: Setup = {},
): Promise<{ host: FakeModelHost; access: FakeAccess; engine: CopyEngine; memory: FakeDma }> {
  const { host, access, rings } = prepare(setup);
  const { entries: _e, model: _m, reach: _r, ...options } = setup;
  return { host, access, memory: host.dma, engine: await CopyEngine.open(access, rings, options) };
}

/** Polls until `count` completions were found; their cookies, codes, byte counts and faults. */
async function collect(engine: CopyEngine, count: number): Promise<[number, number, number, number][]> {
  const found: [number, number, number, number][] = [];
  for (let turns = 0; found.length < count; turns++) {
    assert.ok(turns < 10000, 'not all completes');
    await turn();
    const polled = engine.poll();
    for (let n = 0; n < polled; n++)
      found.push([engine.cookies[n], engine.codes[n], engine.bytes[n], engine.faults[n]]);
  }
  return found;
}

describe('copy engine driver: opening', () => {
  it('is for copy engines', async () => {
    assert.deepEqual(CopyEngine.matches, { vendor: 0x1234, device: 0xc0e1 });
    const { rings } = prepare({});
    await assert.rejects(CopyEngine.open(new FakeAccess(new FakeModelHost(eduModel())), rings), code('ENODEV'));
  });

  it('uses the largest power of two that fits', async () => {
    for (const [entries, maxRing, capacity] of [
      [64, 65536, 64],
      [100, 65536, 64],
      [3, 65536, 2],
      [300, 128, 128],
    ]) {
      const { engine } = await open({ entries, model: { maxRing } });
      assert.equal(engine.capacity, capacity);
      assert.equal(engine.maxTransfer, 32 * MiB);
      await engine.close();
    }
  });

  it('refuses memory that can not be a ring', async () => {
    const { access, rings } = prepare({});
    const { descriptors, completions } = rings;
    const odd = new Uint8Array(new ArrayBuffer(4096), 2, 2048);
    for (const wrong of [
      { descriptors: { ...descriptors, iova: RING + 16 }, completions },
      { descriptors, completions: { ...completions, iova: -32 } },
      { descriptors, completions: { ...completions, iova: 2 ** 53 - 32 } },
      { descriptors: { ...descriptors, bytes: odd }, completions },
      { descriptors: { ...descriptors, bytes: new Uint8Array(63) }, completions },
    ])
      await assert.rejects(CopyEngine.open(access, wrong), code('EINVAL'));
    assert.equal(access.registers(0).read32(REG.CONTROL), 0);
  });

  it('waits for what an earlier driver left running', async () => {
    const { host, access, rings } = prepare({ reach: 'messages' });
    host.dma.map(SOURCE, pattern(64));
    const target = host.dma.map(TARGET, new Uint8Array(64));
    const earlier = await CopyEngine.open(access, rings);
    earlier.submit(SOURCE, TARGET, 64);
    earlier.ring();
    await turn(2);
    const engine = await CopyEngine.open(access, rings);
    await engine.copy(SOURCE, TARGET + 32, 8);
    assert.ok(target.subarray(0, 32).every((byte) => byte === 0));
    assert.deepEqual(target.subarray(32, 40), pattern(64).subarray(0, 8));
    await engine.close();
  });
});

describe('copy engine driver: submit, ring, poll', () => {
  for (const reach of ['direct', 'messages'] as const) {
    it(`has thousands of copies under way (${reach})`, async () => {
      const { engine, memory } = await open({ entries: 4096, reach });
      const source = memory.map(SOURCE, pattern(4096 * 16));
      const target = memory.map(TARGET, new Uint8Array(4096 * 16));
      for (let round = 0; round < (reach === 'direct' ? 3 : 1); round++) {
        target.fill(0);
        const cookies: number[] = [];
        for (let n = 0; n < 4096; n++) cookies.push(engine.submit(SOURCE + n * 16, TARGET + n * 16, 16));
        assert.equal(engine.submit(SOURCE, TARGET, 16), -1);
        assert.equal(new Set(cookies.map((cookie) => cookie % engine.capacity)).size, 4096);
        engine.ring();
        const found = await collect(engine, 4096);
        assert.deepEqual(
          found,
          cookies.map((cookie) => [cookie, COPY_CODE.OK, 16, 0]),
        );
        assert.deepEqual(target, source);
      }
      await engine.close();
    });
  }

  it('goes around a small ring for long', async () => {
    const { engine, memory } = await open({ entries: 4 });
    memory.map(SOURCE, pattern(64));
    memory.map(TARGET, new Uint8Array(64));
    let next = 0;
    for (let round = 0; round < 300; round++) {
      const count = (round % 4) + 1;
      for (let n = 0; n < count; n++) assert.equal(engine.submit(SOURCE, TARGET, 64), next + n);
      engine.ring();
      for (const [cookie] of await collect(engine, count)) assert.equal(cookie, next++);
    }
    assert.equal(engine.poll(), 0);
    await engine.close();
  });

  it('tells what failed, and where', async () => {
    const { engine, memory } = await open();
    memory.map(SOURCE, pattern(100), 'read');
    memory.map(TARGET, new Uint8Array(100), 'write');
    const cookies = [
      engine.submit(SOURCE + 90, TARGET, 20),
      engine.submit(SOURCE, SOURCE + 50, 10),
      engine.submit(SOURCE, TARGET, 100),
      engine.submit(SOURCE, 2 ** 52, 5),
      engine.submit(2 ** 53, TARGET, 5),
    ];
    engine.ring();
    assert.deepEqual(await collect(engine, 5), [
      [cookies[0], COPY_CODE.READ_UNMAPPED, 10, SOURCE + 100],
      [cookies[1], COPY_CODE.WRITE_DENIED, 0, SOURCE + 50],
      [cookies[2], COPY_CODE.OK, 100, 0],
      [cookies[3], COPY_CODE.WRITE_UNMAPPED, 0, 2 ** 52],
      [cookies[4], COPY_CODE.BAD_DESCRIPTOR, 0, 0],
    ]);
    for (const name of Object.keys(COPY_CODE) as (keyof typeof COPY_CODE)[]) {
      if (name === 'OK') continue;
      assert.doesNotMatch(copyError(COPY_CODE[name], new Range(0, 1), 'test').reason, /unknown/);
    }
    assert.equal(copyError(200, new Range(0, 1), 'test').code, 'EPROTO');
    await engine.close();
  });

  it('refuses lengths and addresses that can not be', async () => {
    const { engine } = await open({ model: { maxTransfer: 1000 } });
    for (const length of [0, -1, NaN, 1001]) assert.throws(() => engine.submit(0, 4096, length), code('EINVAL'));
    assert.throws(() => engine.submit(-1, 4096, 1), code('EINVAL'));
    assert.throws(() => engine.submit(0, NaN, 1), code('EINVAL'));
    await engine.close();
  });

  it('tells why nothing comes when the rings are lost', async () => {
    const { engine, memory } = await open();
    memory.map(SOURCE, new Uint8Array(64));
    engine.check();
    memory.unmap(DONE);
    engine.submit(SOURCE, SOURCE + 32, 32);
    engine.ring();
    await turn(3);
    assert.equal(engine.poll(), 0);
    assert.throws(() => engine.check(), code('EFAULT', DONE));
    await engine.close();
  });

  it('does not take memory that was taken away for completions', async () => {
    const { access, rings } = prepare({});
    const engine = await CopyEngine.open(access, rings);
    engine.submit(SOURCE, TARGET, 32);
    structuredClone(rings.completions.bytes.buffer, { transfer: [rings.completions.bytes.buffer as ArrayBuffer] });
    assert.throws(() => engine.poll(), code('EBADF'));
    await engine.close();
  });
});

describe('copy engine driver: copy', () => {
  for (const reach of ['direct', 'copied', 'messages'] as const) {
    for (const interrupts of [true, false]) {
      it(`copies any length (${reach}, ${interrupts ? 'interrupts' : 'polling'})`, async () => {
        const { engine, memory } = await open({ reach, interrupts, entries: 8, model: { maxTransfer: 65536 } });
        for (const length of [1, 65536, 65537, 3 * MiB + 17]) {
          const source = memory.map(SOURCE, pattern(length, length));
          const target = memory.map(TARGET, new Uint8Array(length));
          const progress: number[] = [];
          await engine.copy(SOURCE, TARGET, length, {
            onProgress: ({ doneBytes, totalBytes }) => {
              assert.equal(totalBytes, length);
              progress.push(doneBytes);
            },
          });
          assert.ok(Buffer.compare(source, target) === 0);
          assert.equal(progress.at(-1), length);
          assert.equal(progress.length, Math.ceil(length / 65536));
          memory.unmap(SOURCE);
          memory.unmap(TARGET);
        }
        await engine.close();
      });
    }
  }

  it('runs many copies at once, beside submitted ones', async () => {
    const { engine, memory } = await open({ entries: 16, model: { maxTransfer: 100 } });
    const source = memory.map(SOURCE, pattern(50000));
    const target = memory.map(TARGET, new Uint8Array(50000));
    const copies = Array.from({ length: 40 }, (_, n) => engine.copy(SOURCE + n * 1000, TARGET + n * 1000, 1000));
    await turn(); // let them have filled the ring
    let submitted = 0;
    const found: number[] = [];
    while (found.length < 100) {
      if (submitted < 100) {
        const cookie = engine.submit(SOURCE + 40000 + submitted * 100, TARGET + 40000 + submitted * 100, 100);
        if (cookie >= 0) submitted++;
        engine.ring();
      }
      await turn();
      const count = engine.poll();
      for (let n = 0; n < count; n++) {
        assert.equal(engine.codes[n], COPY_CODE.OK);
        found.push(engine.cookies[n]);
      }
    }
    await Promise.all(copies);
    assert.deepEqual(target, source);
    assert.equal(new Set(found).size, 100);
    await engine.close();
  });

  it('rejects with the address that can not be reached', async () => {
    for (const reach of ['direct', 'messages'] as const) {
      const { engine, memory } = await open({ reach, entries: 8, model: { maxTransfer: 4096 } });
      const length = 100_000;
      memory.map(SOURCE, pattern(length), 'read');
      memory.map(SOURCE + length + 4096, pattern(length), 'write');
      const target = memory.map(TARGET, new Uint8Array(length), 'write');
      const cases: [number, number, number, ErrorCode, number][] = [
        [0x900000, TARGET, 10, 'EFAULT', 0x900000],
        [SOURCE + 50000, TARGET, 60000, 'EFAULT', SOURCE + length],
        [SOURCE, TARGET + 12345, length, 'EFAULT', TARGET + length],
        [TARGET, SOURCE, 10, 'EACCES', TARGET],
        [SOURCE, SOURCE + 50000, 10, 'EACCES', SOURCE + 50000],
      ];
      for (const [from, to, bytes, name, start] of cases) {
        await assert.rejects(engine.copy(from, to, bytes), (error) => {
          assert.ok(isDmaError(error, name), String(error));
          assert.equal(error.range?.start, start);
          assert.equal(error.range.end, (from <= start && start < from + bytes ? from : to) + bytes);
          return true;
        });
      }
      await engine.copy(SOURCE, TARGET, 10);
      assert.deepEqual(target.subarray(0, 10), pattern(length).subarray(0, 10));
      await engine.close();
    }
  });

  it('refuses impossible and overlapping ranges before anything happens', async () => {
    const { engine, memory } = await open();
    memory.map(0, new Uint8Array(4096));
    const { calls } = memory;
    await assert.rejects(engine.copy(0, 100, 101), code('EINVAL'));
    await assert.rejects(engine.copy(0, 0, 1), code('EINVAL'));
    await assert.rejects(engine.copy(0, 100, 0), code('EINVAL'));
    await assert.rejects(engine.copy(-1, 100, 1), code('EINVAL'));
    await assert.rejects(engine.copy(2 ** 53 - 1, 100, 2), code('EINVAL'));
    await turn();
    assert.equal(memory.calls, calls);
    await engine.copy(0, 100, 100);
    await engine.close();
  });

  it('ends early when it is aborted, and touches nothing afterwards', async () => {
    for (const reach of ['direct', 'messages'] as const) {
      const { engine, memory } = await open({ reach, entries: 8, model: { maxTransfer: 1024 } });
      memory.map(SOURCE, pattern(MiB));
      const target = memory.map(TARGET, new Uint8Array(MiB));
      const controller = new AbortController();
      const reason = new Error('enough');
      let last = 0;
      const copy = engine.copy(SOURCE, TARGET, MiB, {
        signal: controller.signal,
        onProgress: ({ doneBytes }) => {
          last = doneBytes;
          if (doneBytes >= 100 * 1024) controller.abort(reason);
        },
      });
      await assert.rejects(copy, (error) => isDmaError(error, 'ECANCELED') && error.cause === reason);
      assert.equal(last, 100 * 1024);
      const rest = target.slice(last + 8 * 1024);
      assert.ok(rest.every((byte) => byte === 0));
      target.fill(0);
      await turn(20);
      assert.ok(target.every((byte) => byte === 0));
      await assert.rejects(engine.copy(SOURCE, TARGET, 1, { signal: controller.signal }), code('ECANCELED'));
      await engine.copy(SOURCE, TARGET, MiB);
      assert.ok(Buffer.compare(target, pattern(MiB)) === 0);
      await engine.close();
    }
  });

  it('rejects an aborted copy only when the device is done with what it has', async () => {
    const { engine, memory } = await open({ reach: 'messages', model: { maxTransfer: 1024 } });
    memory.map(SOURCE, pattern(MiB));
    const target = memory.map(TARGET, new Uint8Array(MiB));
    const controller = new AbortController();
    const copy = engine.copy(SOURCE, TARGET, MiB, { signal: controller.signal });
    await turn(10);
    controller.abort();
    await assert.rejects(copy, code('ECANCELED'));
    assert.notEqual(target[1024], 0);
    target.fill(0);
    await turn(20);
    assert.ok(target.every((byte) => byte === 0));
    await engine.close();
  });

  it('has a bounded part of one copy under way', async () => {
    const { host, engine, memory } = await open({ entries: 1024, model: { maxTransfer: 16 } });
    memory.map(SOURCE, new Uint8Array(65536));
    void host.model.quiesce();
    const copy = engine.copy(SOURCE, SOURCE + 32768, 32768);
    await turn(5);
    assert.equal(host.read32(REG.PRODUCER), 64);
    host.model.resume();
    await copy;
    assert.equal(host.read32(REG.CONSUMER), 2048);
    await engine.close();
  });

  it('aborts one that waits for room, too', async () => {
    const { engine, memory } = await open({ entries: 2 });
    memory.map(SOURCE, new Uint8Array(64));
    engine.submit(SOURCE, SOURCE + 32, 32);
    engine.submit(SOURCE, SOURCE + 32, 32);
    engine.ring();
    const controller = new AbortController();
    const copy = engine.copy(SOURCE, SOURCE + 32, 32, { signal: controller.signal });
    await turn(60);
    controller.abort();
    await assert.rejects(copy, code('ECANCELED'));
    assert.equal(engine.poll(), 2);
    await engine.copy(SOURCE, SOURCE + 32, 32);
    await engine.close();
  });

  it('is cancelled by what onProgress throws', async () => {
    const { engine, memory } = await open({ model: { maxTransfer: 16 } });
    memory.map(SOURCE, new Uint8Array(64));
    const wrong = new Error('wrong');
    const copy = engine.copy(SOURCE, SOURCE + 32, 32, {
      onProgress: () => {
        throw wrong;
      },
    });
    await assert.rejects(
      copy,
      (error) => isDmaError(error, 'ECANCELED') && error.operation === 'copy' && error.cause === wrong,
    );
    await engine.copy(SOURCE, SOURCE + 32, 32);
    await engine.close();
  });

  it('sleeps until it is interrupted, by MSI', async () => {
    const { host, access, engine, memory } = await open();
    assert.equal(access.enabled, 'msi');
    memory.map(SOURCE, new Uint8Array(64));
    void host.model.quiesce();
    const copy = engine.copy(SOURCE, SOURCE + 32, 32);
    await turn(100); // more than it spins
    host.model.resume();
    await copy;
    assert.equal(host.interrupts, 1);
    assert.equal(host.read32(REG.INTERRUPT_STATUS), 0);
    await engine.close();
    assert.equal(access.enabled, undefined);
  });
});

describe('copy engine driver: ends', () => {
  it('rejects what runs when it is closed; the device is still then', async () => {
    for (const reach of ['direct', 'messages'] as const) {
      const { access, engine, memory } = await open({ reach, entries: 8, model: { maxTransfer: 1024 } });
      memory.map(SOURCE, pattern(MiB));
      const target = memory.map(TARGET, new Uint8Array(MiB));
      const copies = [engine.copy(SOURCE, TARGET, MiB), engine.copy(SOURCE, TARGET, MiB)];
      const rejected = copies.map((copy) => assert.rejects(copy, code('ECANCELED')));
      await turn(4);
      const closing = engine.close();
      await Promise.all([...rejected, closing, engine[Symbol.asyncDispose]()]);
      target.fill(0);
      await turn(20);
      assert.ok(target.every((byte) => byte === 0));
      assert.equal(access.registers(0).read32(REG.CONTROL), 0);
      assert.equal(access.enabled, undefined);
      await assert.rejects(engine.copy(SOURCE, TARGET, 1), code('ECANCELED'));
      assert.throws(() => engine.submit(SOURCE, TARGET, 1), code('ECANCELED'));
      assert.throws(() => engine.poll(), code('ECANCELED'));
    }
  });

  it('dies when the device halts', async () => {
    const { access, engine, memory } = await open();
    memory.map(SOURCE, new Uint8Array(64));
    memory.unmap(RING);
    const copies = [engine.copy(SOURCE, SOURCE + 32, 32), engine.copy(SOURCE, SOURCE + 32, 32)];
    for (const copy of copies) await assert.rejects(copy, code('EFAULT', RING));
    await assert.rejects(engine.copy(SOURCE, SOURCE + 32, 32), code('EFAULT', RING));
    assert.equal(access.registers(0).read32(REG.CONTROL), 0);
    await engine.close();
  });

  it('dies when the device does nothing for too long', async () => {
    const { host, engine, memory } = await open({ timeoutMs: 30 });
    memory.map(SOURCE, new Uint8Array(64));
    void host.model.quiesce();
    await assert.rejects(engine.copy(SOURCE, SOURCE + 32, 32), code('ETIMEDOUT'));
    assert.throws(() => engine.poll(), code('ETIMEDOUT'));
    await engine.close();
  });

  it('dies when the device goes', async () => {
    const { access, engine, memory } = await open();
    memory.map(SOURCE, new Uint8Array(64));
    access.gone = true;
    await assert.rejects(engine.copy(SOURCE, SOURCE + 32, 32), code('ENODEV'));
    await engine.close();
    assert.equal(access.enabled, undefined);
  });

  it('is not led astray by a device that says nonsense', async () => {
    const nonsense: [number, number, ErrorCode][] = [
      [COPY_CODE.OK, 31, 'EPROTO'],
      [COPY_CODE.READ_UNMAPPED, 0xffffffff, 'EFAULT'],
      [200, 0, 'EPROTO'],
    ];
    for (const [kind, bytes, name] of nonsense) {
      const { host, access, rings } = prepare({});
      const engine = await CopyEngine.open(access, rings);
      void host.model.quiesce();
      const copy = engine.copy(SOURCE, TARGET, 32);
      const words = new Uint32Array(rings.completions.bytes.buffer);
      words.set([0, bytes, 0xffffffff, 0xffffffff]);
      words[7] = (kind | 0x80000000) >>> 0;
      await assert.rejects(copy, code(name));
      await engine.close();
    }
  });

  it('leaves nothing behind when opening fails', async () => {
    const { access, rings } = prepare({});
    const refuse = new DmaError({ code: 'EMFILE', operation: 'test', reason: 'no more descriptors' });
    access.enableInterrupts = () => {
      throw refuse;
    };
    await assert.rejects(CopyEngine.open(access, rings), code('EMFILE'));
    assert.equal(access.registers(0).read32(REG.CONTROL) & COPY_CONTROL.ENABLE, 0);
    const engine = await CopyEngine.open(access, rings, { interrupts: false });
    await engine.close();
  });
});

describe('copy engine driver: against a naive model', () => {
  it('leaves memory as copying one after the other would', async () => {
    const SIZE = 1 << 15;
    const step = fc.record({
      source: fc.nat({ max: SIZE - 1 }),
      destination: fc.nat({ max: SIZE - 1 }),
      length: fc.integer({ min: 1, max: SIZE / 2 }),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom<Reach>('direct', 'copied', 'messages'),
        fc.integer({ min: 1, max: 4096 }),
        fc.integer({ min: 2, max: 40 }),
        fc.array(step, { minLength: 1, maxLength: 12 }),
        async (reach, maxTransfer, entries, steps) => {
          const { engine, memory } = await open({ reach, entries, model: { maxTransfer: Math.max(256, maxTransfer) } });
          const bytes = memory.map(SOURCE, pattern(SIZE));
          const expected = bytes.slice();
          for (const { source, destination, length } of steps) {
            const copy = engine.copy(SOURCE + source, SOURCE + destination, length);
            if (Math.abs(source - destination) < length) {
              await assert.rejects(copy, code('EINVAL'));
            } else if (Math.max(source, destination) + length > SIZE) {
              await assert.rejects(copy, code('EFAULT', SOURCE + SIZE));
              const done = SIZE - Math.max(source, destination);
              expected.copyWithin(destination, source, source + done);
              // Descriptors behind the fault reach nothing: memory ends there.
            } else {
              await copy;
              expected.copyWithin(destination, source, source + length);
            }
            assert.ok(Buffer.compare(bytes, expected) === 0);
          }
          await engine.close();
        },
      ),
      { numRuns: 40 },
    );
  });
});
