import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { DmaError, isDmaError } from '../../errors.js';
import { MiB } from '../../units.js';
import {
  COPY_CODE as CODE,
  COPY_CONTROL,
  COPY_ID,
  COPY_INTERRUPT,
  COPY_REGISTER as REG,
  COPY_STATUS,
  COPY_VERSION,
} from './copy-engine-layout.js';
import type { CopyEngineModelOptions } from './copy-engine.js';
import { copyEngineModel } from './copy-engine.js';
import type { Reach } from '../../../test/fakes/vfio-user/model-host.js';
import { pattern, FakeModelHost, FakeDma, turn } from '../../../test/fakes/vfio-user/model-host.js';

const RING = 0x10000000;
const DONE = 0x20000000;

interface Descriptor {
  source: number;
  destination: number;
  length: number;
  flags?: number;
  reserved?: number;
}

interface Completion {
  cookie: number;
  bytes: number;
  fault: number;
  code: number;
}

/** A copy engine with rings, and a naive driver of it. */
class Bench {
  readonly host: FakeModelHost;
  readonly memory: FakeDma;
  readonly ring: Uint32Array;
  readonly done: Uint32Array;
  produced = 0;
  seen = 0;

  constructor(
    readonly size = 64,
    reach: Reach = 'direct',
    options?: CopyEngineModelOptions,
  ) {
    this.memory = new FakeDma(reach);
    this.host = new FakeModelHost(copyEngineModel(options), this.memory);
    this.ring = new Uint32Array(size * 8);
    this.done = new Uint32Array(size * 8);
    this.memory.map(RING, new Uint8Array(this.ring.buffer), 'read');
    this.memory.map(DONE, new Uint8Array(this.done.buffer), 'write');
  }

  enable(size = this.size, ring = RING, done = DONE): this {
    const { host } = this;
    host.write64(REG.RING_LOW, BigInt(ring));
    host.write64(REG.DONE_LOW, BigInt(done));
    host.write32(REG.RING_SIZE, size);
    host.write32(REG.CONTROL, COPY_CONTROL.ENABLE);
    this.done.fill(0);
    this.produced = 0;
    this.seen = 0;
    return this;
  }

  put({ source, destination, length, flags = 0, reserved = 0 }: Descriptor): void {
    const cookie = (this.produced ^ 0xc0000000) >>> 0;
    const words = [source, source / 2 ** 32, destination, destination / 2 ** 32, length, flags, cookie, reserved];
    for (const [at, word] of words.entries()) this.ring[(this.produced % this.size) * 8 + at] = word;
    this.produced++;
  }

  bell(): void {
    this.host.write32(REG.PRODUCER, this.produced);
  }

  /** New completions, by the phase. */
  take(): Completion[] {
    const taken: Completion[] = [];
    for (;;) {
      const at = (this.seen % this.size) * 8;
      const phase = Math.floor(this.seen / this.size) % 2 === 0 ? 1 : 0;
      if (this.done[at + 7] >>> 31 !== phase || this.seen === this.produced) return taken;
      assert.deepEqual([...this.done.subarray(at + 4, at + 7)], [0, 0, 0]);
      taken.push({
        cookie: (this.done[at] ^ 0xc0000000) >>> 0,
        bytes: this.done[at + 1],
        fault: this.done[at + 3] * 2 ** 32 + this.done[at + 2],
        code: this.done[at + 7] & 0x7fffffff,
      });
      this.seen++;
    }
  }

  /** Rings the bell and waits until all is done or the engine halts. */
  async run(): Promise<Completion[]> {
    this.bell();
    for (let turns = 0; (this.host.read32(REG.STATUS) & COPY_STATUS.BUSY) !== 0; turns++) {
      assert.ok(turns < 10000, 'the engine does not finish');
      await turn();
    }
    await turn();
    return this.take();
  }

  get error(): { kind: number; iova: number } {
    const { host } = this;
    return { kind: host.read32(REG.ERROR_KIND), iova: Number(host.read64(REG.ERROR_LOW)) };
  }
}

const ok = (cookie: number, bytes: number): Completion => ({ cookie, bytes, fault: 0, code: CODE.OK });

describe('copy engine model: registers', () => {
  it('tells what it is and what it can', () => {
    const { host } = new Bench();
    assert.equal(host.read32(REG.ID), COPY_ID);
    assert.equal(host.read32(REG.VERSION), COPY_VERSION);
    assert.equal(host.read32(REG.MAX_RING), 65536);
    assert.equal(host.read32(REG.MAX_TRANSFER), 32 * MiB);
    assert.equal(host.model.name, 'copy');
    assert.equal(host.model.regions[0].size, 4096);
    for (const offset of [
      REG.ID,
      REG.VERSION,
      REG.MAX_RING,
      REG.MAX_TRANSFER,
      REG.STATUS,
      REG.CONSUMER,
      REG.ERROR_KIND,
    ]) {
      const before = host.read32(offset);
      host.write32(offset, ~before);
      assert.equal(host.read32(offset), before);
    }
  });

  it('takes aligned words only', () => {
    const { host } = new Bench();
    host.write32(REG.RING_LOW, 0x12345678);
    for (const [offset, length] of [
      [REG.RING_LOW, 1],
      [REG.RING_LOW, 2],
      [REG.RING_LOW + 2, 4],
      [REG.RING_LOW, 6],
    ]) {
      host.store(offset, new Uint8Array(length));
      assert.ok(host.load(offset, length).every((byte) => byte === 0xff));
    }
    assert.equal(host.read32(REG.RING_LOW), 0x12345678);
    host.write64(REG.RING_LOW, 0x1122334455667788n);
    assert.equal(host.read32(REG.RING_LOW), 0x55667788);
    assert.equal(host.read32(REG.RING_HIGH), 0x11223344);
    assert.equal(host.load(0, 4096).length, 4096);
    assert.equal(host.read32(0x80), 0);
  });

  it('never throws, whatever is stored', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.tuple(
            fc.constantFrom(...Object.values(REG), 0x81, 0xffc),
            fc.oneof(fc.nat(64), fc.nat()),
            fc.constantFrom(4, 4, 4, 8, 3),
          ),
          {
            maxLength: 30,
          },
        ),
        async (stores) => {
          const bench = new Bench(8);
          bench.enable();
          for (const [offset, value, length] of stores) {
            const bytes = new Uint8Array(length);
            bytes.set(new Uint8Array(new Uint32Array([value]).buffer).subarray(0, Math.min(4, length)));
            bench.host.store(offset, bytes);
          }
          await turn(2);
          bench.host.write32(REG.CONTROL, COPY_CONTROL.RESET);
          assert.equal(bench.host.read32(REG.STATUS), 0);
        },
      ),
      { numRuns: 60 },
    );
  });

  it('refuses impossible options', () => {
    for (const options of [
      { maxRing: 1 },
      { maxRing: 3 },
      { maxRing: 2 ** 21 },
      { maxTransfer: 0 },
      { maxTransfer: 2 ** 30 },
    ])
      assert.throws(
        () => copyEngineModel(options),
        (error) => isDmaError(error, 'EINVAL'),
      );
  });
});

describe('copy engine model: copying', () => {
  for (const reach of ['direct', 'copied', 'messages'] as const) {
    it(`copies and reports (${reach})`, async () => {
      const bench = new Bench(8, reach).enable();
      const source = bench.memory.map(0x100000, pattern(100000), 'read');
      const target = bench.memory.map(2 ** 45, new Uint8Array(100000), 'write');
      bench.put({ source: 0x100000, destination: 2 ** 45 + 7, length: 1 });
      bench.put({ source: 0x100003, destination: 2 ** 45 + 100, length: 99900 });
      assert.deepEqual(await bench.run(), [ok(0, 1), ok(1, 99900)]);
      assert.equal(target[7], source[0]);
      assert.deepEqual(target.subarray(100), source.subarray(3, 99903));
      assert.equal(bench.host.read32(REG.CONSUMER), 2);
      assert.equal(bench.host.interrupts, 0);
    });
  }

  it('does thousands of descriptors, many times around the ring', async () => {
    for (const reach of ['direct', 'messages'] as const) {
      const bench = new Bench(1024, reach).enable();
      const source = bench.memory.map(0x100000, pattern(4096));
      const target = bench.memory.map(0x200000, new Uint8Array(4096));
      const rounds = reach === 'direct' ? 11 : 3;
      let seen = 0;
      for (let round = 0; round < rounds; round++) {
        target.fill(0);
        // Not a multiple of the ring, so that batches are cut by its end.
        for (let n = 0; n < 1000; n++)
          bench.put({ source: 0x100000 + n * 4, destination: 0x200000 + n * 4, length: 4 });
        const taken = await bench.run();
        assert.equal(taken.length, 1000);
        for (const completion of taken) assert.deepEqual(completion, ok(seen++, 4));
        assert.deepEqual(target.subarray(0, 4000), source.subarray(0, 4000));
      }
      assert.equal(bench.host.read32(REG.CONSUMER), rounds * 1000);
    }
  });

  it('gives the host turns between slices', async () => {
    const bench = new Bench(1024).enable();
    bench.memory.map(0x100000, pattern(64));
    for (let n = 0; n < 1000; n++) bench.put({ source: 0x100000, destination: 0x100020, length: 32 });
    bench.bell();
    const seen: number[] = [];
    while (bench.seen < 1000) {
      await turn();
      bench.take();
      seen.push(bench.seen);
    }
    assert.ok(seen.length >= 4);
    for (let n = 1; n < seen.length; n++) assert.ok(seen[n] - seen[n - 1] <= 256);
  });

  it('bounds a slice by its bytes too', async () => {
    const bench = new Bench(16).enable();
    bench.memory.map(2 ** 32, new Uint8Array(20 * MiB));
    bench.memory.map(2 ** 33, new Uint8Array(20 * MiB));
    for (let n = 0; n < 3; n++) bench.put({ source: 2 ** 32, destination: 2 ** 33, length: 20 * MiB });
    bench.bell();
    await turn();
    assert.equal(bench.take().length, 1);
    assert.deepEqual(await bench.run(), [ok(1, 20 * MiB), ok(2, 20 * MiB)]);
  });

  it('copies across the seams of mappings, in pieces', async () => {
    for (const reach of ['direct', 'copied', 'messages'] as const) {
      const bench = new Bench(8, reach).enable();
      const length = 2 * MiB + 12345;
      const source = pattern(length);
      for (let at = 0; at < length; at += 300000) bench.memory.map(2 ** 32 + at, source.subarray(at, at + 300000));
      const target = new Uint8Array(length);
      bench.memory.map(2 ** 33, target.subarray(0, 1234567));
      bench.memory.map(2 ** 33 + 1234567, target.subarray(1234567));
      bench.put({ source: 2 ** 32, destination: 2 ** 33, length });
      assert.deepEqual(await bench.run(), [ok(0, length)]);
      assert.ok(Buffer.compare(source, target) === 0);
    }
  });

  it('takes more while it works', async () => {
    const bench = new Bench(64, 'messages').enable();
    const memory = bench.memory.map(0, pattern(8192));
    for (let n = 0; n < 60; n++) {
      bench.put({ source: n * 64, destination: 4096 + n * 64, length: 64 });
      bench.bell();
      await turn(1 + (n % 3));
    }
    assert.equal(bench.take().length + (await bench.run()).length, 60);
    assert.deepEqual(memory.subarray(4096, 4096 + 60 * 64), memory.subarray(0, 60 * 64));
    // Descriptors and completions in few batches, but each copy once: a read and a write.
    assert.ok(bench.memory.calls < 60 * 4);
  });

  it('refuses bad descriptors and goes on', async () => {
    const bench = new Bench(16, 'direct', { maxTransfer: 1000 }).enable();
    const memory = bench.memory.map(0x100000, pattern(4096));
    const before = memory.slice();
    const good = { source: 0x100000, destination: 0x100800, length: 16 };
    const bad: Descriptor[] = [
      { ...good, length: 0 },
      { ...good, length: 1001 },
      { ...good, length: 0xffffffff },
      { ...good, flags: 2 },
      { ...good, reserved: 1 },
      { ...good, destination: good.source },
      { ...good, destination: good.source + 15 },
      { ...good, destination: good.source - 15 },
      { ...good, source: 2 ** 53 },
      { ...good, destination: 2 ** 53 - 8 },
      { ...good, source: 2 ** 63 },
    ];
    for (const descriptor of bad) bench.put(descriptor);
    bench.put({ ...good, destination: 0x100010 });
    const taken = await bench.run();
    assert.equal(taken.length, bad.length + 1);
    for (const { code, bytes } of taken.slice(0, -1)) assert.deepEqual([code, bytes], [CODE.BAD_DESCRIPTOR, 0]);
    assert.deepEqual(taken.at(-1), ok(bad.length, 16));
    before.copyWithin(16, 0, 16);
    assert.deepEqual(memory, before);
    assert.equal(bench.host.read32(REG.STATUS), COPY_STATUS.ENABLED);
  });
});

describe('copy engine model: failures', () => {
  const P = 0x1000;
  // 0x1 readable and writable, 0x2 read only, 0x3 write only, 0x4 nothing, 0x5 readable and writable
  function prepared(reach: Reach): { bench: Bench; pages: Uint8Array[] } {
    const bench = new Bench(16, reach).enable();
    const access = ['read-write', 'read', 'write', undefined, 'read-write'] as const;
    const pages = access.map((grant, n) => {
      const page = pattern(P, n);
      if (grant !== undefined) bench.memory.map((n + 1) * P, page, grant);
      return page;
    });
    return { bench, pages };
  }

  const cases: [string, number, number, number, { bytes: number; fault: number; code: number }][] = [
    ['source not mapped', 4 * P, 1 * P, 16, { bytes: 0, fault: 4 * P, code: CODE.READ_UNMAPPED }],
    ['source not readable', 3 * P, 1 * P, 16, { bytes: 0, fault: 3 * P, code: CODE.READ_DENIED }],
    ['target not mapped', 1 * P, 4 * P, 16, { bytes: 0, fault: 4 * P, code: CODE.WRITE_UNMAPPED }],
    ['target not writable', 1 * P, 2 * P, 16, { bytes: 0, fault: 2 * P, code: CODE.WRITE_DENIED }],
    ['source ends', 6 * P - 100, 1 * P, 300, { bytes: 100, fault: 6 * P, code: CODE.READ_UNMAPPED }],
    ['source turns unreadable', 3 * P - 1, 5 * P, 4, { bytes: 1, fault: 3 * P, code: CODE.READ_DENIED }],
    ['target ends', 1 * P, 4 * P - 5, 50, { bytes: 5, fault: 4 * P, code: CODE.WRITE_UNMAPPED }],
    ['target turns unwritable', 5 * P, 2 * P - 77, 99, { bytes: 77, fault: 2 * P, code: CODE.WRITE_DENIED }],
    ['both: the earlier counts', 3 * P - 20, 4 * P - 10, 64, { bytes: 10, fault: 4 * P, code: CODE.WRITE_UNMAPPED }],
    ['both at once: the read counts', 3 * P - 10, 4 * P - 10, 64, { bytes: 10, fault: 3 * P, code: CODE.READ_DENIED }],
  ];
  for (const reach of ['direct', 'copied', 'messages'] as const) {
    for (const [name, source, destination, length, expected] of cases) {
      it(`${name} (${reach})`, async () => {
        const { bench, pages } = prepared(reach);
        const flat = (all: Uint8Array[]): Uint8Array => Buffer.concat(all);
        const wanted = flat(pages);
        wanted.copyWithin(destination - P, source - P, source - P + expected.bytes);
        bench.put({ source, destination, length });
        bench.put({ source: 0x5000, destination: 0x1000 + 0x400, length: 8 });
        const [failed, next] = await bench.run();
        assert.deepEqual(failed, { cookie: 0, ...expected });
        assert.deepEqual(bench.error, { kind: expected.code, iova: expected.fault });
        assert.deepEqual(next, ok(1, 8));
        wanted.copyWithin(0x400, 0x4000, 0x4008);
        assert.deepEqual(flat(pages), wanted);
      });
    }
  }

  it('reports what fails although it was granted', async () => {
    const bench = new Bench(8, 'messages').enable();
    bench.memory.map(0, new Uint8Array(8192));
    for (const [code, kind] of [
      ['EIO', CODE.READ_FAILED],
      ['EACCES', CODE.READ_DENIED],
      ['EFAULT', CODE.READ_UNMAPPED],
    ] as const) {
      bench.put({ source: 0, destination: 4096, length: 16 });
      bench.bell();
      await turn(2); // the descriptor is loaded, the copy is under way
      bench.memory.failure = new DmaError({ code, operation: 'test', reason: 'made to fail' });
      await turn();
      bench.memory.failure = undefined;
      const [completion] = await bench.run();
      assert.deepEqual([completion.code, completion.bytes, completion.fault], [kind, 0, 0]);
    }
  });

  it('halts on rings that are impossible', () => {
    for (const [size, ring, done, iova] of [
      [0, RING, DONE, 0],
      [1, RING, DONE, 0],
      [48, RING, DONE, 0],
      [131072, RING, DONE, 0],
      [64, RING + 16, DONE, RING + 16],
      [64, RING, DONE + 4, DONE + 4],
      [64, 2 ** 53 - 32, DONE, 2 ** 53 - 32],
    ]) {
      const bench = new Bench();
      bench.host.write32(REG.INTERRUPT_ENABLE, COPY_INTERRUPT.ERROR);
      bench.enable(size, ring, done);
      assert.equal(bench.host.read32(REG.STATUS), COPY_STATUS.ENABLED | COPY_STATUS.HALTED);
      assert.deepEqual(bench.error, { kind: CODE.BAD_RING, iova });
      assert.equal(bench.host.interrupts, 1);
      bench.host.write32(REG.PRODUCER, 1);
      assert.equal(bench.host.read32(REG.PRODUCER), 0);
    }
  });

  it('halts on rings that it can not reach, and starts again', async () => {
    for (const reach of ['direct', 'messages'] as const) {
      const bench = new Bench(64, reach);
      const memory = bench.memory.map(0, pattern(8192));
      const wrong: [number, number, number, number][] = [
        [0x90000000, DONE, CODE.READ_UNMAPPED, 0x90000000],
        [DONE, DONE, CODE.READ_DENIED, DONE],
        [RING, 0x90000000, CODE.WRITE_UNMAPPED, 0x90000000],
        [RING, RING, CODE.WRITE_DENIED, RING],
      ];
      for (const [ring, done, kind, iova] of wrong) {
        bench.enable(64, ring, done);
        bench.put({ source: 0, destination: 4096, length: 1 });
        assert.deepEqual(await bench.run(), []);
        assert.equal(bench.host.read32(REG.STATUS), COPY_STATUS.ENABLED | COPY_STATUS.HALTED);
        assert.deepEqual(bench.error, { kind, iova });
        assert.equal(bench.host.read32(REG.INTERRUPT_STATUS), COPY_INTERRUPT.ERROR);
        bench.host.write32(REG.CONTROL, COPY_CONTROL.RESET);
        assert.equal(bench.host.read32(REG.INTERRUPT_STATUS), 0);
      }
      bench.enable();
      bench.put({ source: 0, destination: 4096, length: 4096 });
      assert.deepEqual(await bench.run(), [ok(0, 4096)]);
      assert.deepEqual(memory.subarray(4096), memory.subarray(0, 4096));
    }
  });

  it('halts on doorbells that are impossible', async () => {
    for (const producer of [65, 0xffffffff, 0x80000000]) {
      const bench = new Bench().enable();
      bench.host.write32(REG.PRODUCER, producer);
      await turn();
      assert.deepEqual(bench.error, { kind: CODE.BAD_DOORBELL, iova: 0 });
      assert.equal(bench.host.read32(REG.STATUS), COPY_STATUS.ENABLED | COPY_STATUS.HALTED);
    }
  });
});

describe('copy engine model: control', () => {
  it('keeps its rings while it is enabled, starts over when it is enabled again', async () => {
    const bench = new Bench(4).enable();
    bench.memory.map(0, new Uint8Array(64));
    bench.host.write32(REG.RING_SIZE, 8);
    bench.host.write32(REG.RING_LOW, 0);
    assert.equal(bench.host.read32(REG.RING_SIZE), 4);
    assert.equal(bench.host.read32(REG.RING_LOW), RING);
    for (let n = 0; n < 3; n++) bench.put({ source: 0, destination: 32, length: 32 });
    assert.equal((await bench.run()).length, 3);
    bench.host.write32(REG.CONTROL, 0);
    assert.equal(bench.host.read32(REG.STATUS), 0);
    assert.equal(bench.host.read32(REG.CONSUMER), 0);
    bench.enable();
    for (let n = 0; n < 2; n++) bench.put({ source: 0, destination: 32, length: 32 });
    assert.deepEqual(await bench.run(), [ok(0, 32), ok(1, 32)]);
  });

  it('abandons transfers on reset, and says when they are over', async () => {
    const bench = new Bench(64, 'messages').enable();
    const memory = bench.memory.map(0, pattern(8192));
    const before = memory.slice();
    for (let n = 0; n < 32; n++) bench.put({ source: 0, destination: 4096, length: 64 });
    bench.bell();
    await turn(2); // the first read is under way
    bench.host.write32(REG.CONTROL, COPY_CONTROL.RESET);
    assert.equal(bench.host.read32(REG.CONTROL), COPY_CONTROL.RESET);
    assert.equal(bench.host.read32(REG.STATUS), 0);
    // What begins now has to wait for the old access, and gets nothing of it.
    bench.enable();
    bench.put({ source: 0, destination: 4096 + 1000, length: 10 });
    assert.deepEqual(await bench.run(), [ok(0, 10)]);
    assert.equal(bench.host.read32(REG.CONTROL), COPY_CONTROL.ENABLE);
    assert.ok(bench.done.subarray(8).every((word) => word === 0));
    before.copyWithin(4096 + 1000, 0, 10);
    assert.deepEqual(memory, before);
    assert.equal(bench.host.interrupts, 0);
  });

  it('resets to the power-on state', async () => {
    const bench = new Bench(4).enable();
    const fresh = new Bench(4).host.load(0, 4096);
    bench.host.write32(REG.COALESCE, 4);
    bench.host.write32(REG.INTERRUPT_ENABLE, 3);
    bench.put({ source: 0, destination: 32, length: 32 });
    await bench.run();
    assert.equal(bench.host.interrupts, 1);
    bench.put({ source: 0, destination: 32, length: 32 });
    bench.bell();
    bench.host.model.reset();
    await turn(2);
    assert.deepEqual(bench.host.load(0, 4096), fresh);
    assert.equal(bench.host.interrupts, 1);
  });

  it('quiesces between slices', async () => {
    const bench = new Bench(1024).enable();
    bench.memory.map(0, new Uint8Array(64));
    for (let n = 0; n < 1000; n++) bench.put({ source: 0, destination: 32, length: 32 });
    bench.bell();
    await turn();
    assert.equal(bench.host.model.quiesce(), undefined);
    const { length } = bench.take();
    assert.ok(length > 0 && length < 1000);
    const { calls } = bench.memory;
    await turn(5);
    assert.equal(bench.memory.calls, calls);
    bench.host.model.resume();
    assert.equal((await bench.run()).length, 1000 - length);
  });

  it('quiesces: a slice that waits for memory is waited for, and cut short', async () => {
    const bench = new Bench(1024, 'messages').enable();
    bench.memory.map(0, new Uint8Array(64));
    for (let n = 0; n < 1000; n++) bench.put({ source: 0, destination: 32, length: 32 });
    bench.bell();
    await turn(10);
    const quiet = bench.host.model.quiesce();
    assert.ok(quiet instanceof Promise);
    await quiet;
    const { calls } = bench.memory;
    const { length } = bench.take();
    assert.ok(length > 0 && length < 100, `${length} completed`);
    await turn(5);
    assert.equal(bench.memory.calls, calls);
    bench.host.model.resume();
    assert.equal((await bench.run()).length, 1000 - length);
  });
});

describe('copy engine model: interrupts', () => {
  function ready(size = 64): Bench {
    const bench = new Bench(size);
    bench.memory.map(0, new Uint8Array(64));
    bench.host.write32(REG.INTERRUPT_ENABLE, COPY_INTERRUPT.COMPLETION | COPY_INTERRUPT.ERROR);
    return bench.enable();
  }
  const copy = { source: 0, destination: 32, length: 32 };

  it('signals flagged completions once until they are acknowledged', async () => {
    const bench = ready();
    bench.put(copy);
    await bench.run();
    assert.equal(bench.host.interrupts, 0);
    for (let n = 0; n < 3; n++) {
      bench.put({ ...copy, flags: 1 });
      await bench.run();
      assert.equal(bench.host.interrupts, 1);
    }
    assert.equal(bench.host.read32(REG.INTERRUPT_STATUS), COPY_INTERRUPT.COMPLETION);
    bench.host.write32(REG.INTERRUPT_ACK, COPY_INTERRUPT.ERROR);
    assert.equal(bench.host.read32(REG.INTERRUPT_STATUS), COPY_INTERRUPT.COMPLETION);
    bench.host.write32(REG.INTERRUPT_ACK, COPY_INTERRUPT.COMPLETION);
    assert.equal(bench.host.read32(REG.INTERRUPT_STATUS), 0);
    bench.put({ ...copy, flags: 1 });
    await bench.run();
    assert.equal(bench.host.interrupts, 2);
  });

  it('signals what happened before it was enabled', async () => {
    const bench = ready();
    bench.host.write32(REG.INTERRUPT_ENABLE, 0);
    bench.put({ ...copy, flags: 1 });
    await bench.run();
    assert.equal(bench.host.interrupts, 0);
    bench.host.write32(REG.INTERRUPT_ENABLE, 0xffffffff);
    assert.equal(bench.host.interrupts, 1);
    assert.equal(bench.host.read32(REG.INTERRUPT_ENABLE), 3);
  });

  it('signals failures, flagged or not', async () => {
    const bench = ready();
    bench.put({ ...copy, source: 0x500000 });
    await bench.run();
    assert.equal(bench.host.interrupts, 1);
  });

  it('signals failures at once, however much is to be coalesced', async () => {
    const bench = ready(1024);
    bench.host.write32(REG.COALESCE, 5000);
    bench.put({ ...copy, source: 0x500000 });
    for (let n = 0; n < 999; n++) bench.put(copy);
    bench.bell();
    await turn();
    assert.equal(bench.host.interrupts, 1);
    assert.ok(bench.take().length < 1000);
    await bench.run();
    assert.equal(bench.host.interrupts, 1);
  });

  it('coalesces', async () => {
    const bench = ready(2048);
    bench.host.write32(REG.COALESCE, 512);
    bench.host.onInterrupt = () => bench.host.write32(REG.INTERRUPT_ACK, 3);
    for (let n = 0; n < 2000; n++) bench.put({ ...copy, flags: 1 });
    assert.equal((await bench.run()).length, 2000);
    assert.equal(bench.host.interrupts, 4); // at 512, 1024, 1536 and when nothing is left
    bench.host.write32(REG.COALESCE, 0);
    bench.put({ ...copy, flags: 1 });
    await bench.run();
    assert.equal(bench.host.interrupts, 5);
  });
});

describe('copy engine model: against a naive model', () => {
  it('leaves memory as byte-by-byte copying would', async () => {
    const SIZE = 1 << 14;
    const grant = fc.constantFrom('read-write', 'read-write', 'read-write', 'read', 'write', undefined);
    const descriptor = fc.record({
      source: fc.nat({ max: SIZE + 100 }),
      destination: fc.nat({ max: SIZE + 100 }),
      length: fc.oneof(fc.nat({ max: 64 }), fc.nat({ max: SIZE })),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom<Reach>('direct', 'copied', 'messages'),
        fc.array(grant, { minLength: 4, maxLength: 4 }),
        fc.array(descriptor, { minLength: 1, maxLength: 20 }),
        async (reach, grants, descriptors) => {
          const bench = new Bench(8, reach).enable();
          const memory = pattern(SIZE);
          const expected = memory.slice();
          const PAGE = SIZE / grants.length;
          for (const [n, access] of grants.entries())
            if (access !== undefined) bench.memory.map(n * PAGE, memory.subarray(n * PAGE, (n + 1) * PAGE), access);
          const may = (address: number, access: 'read' | 'write'): boolean =>
            address < SIZE && (grants[Math.floor(address / PAGE)]?.includes(access) ?? false);

          for (const [n, { source, destination, length }] of descriptors.entries()) {
            bench.put({ source, destination, length });
            const [completion] = await bench.run();
            if (length === 0 || Math.abs(source - destination) < length) {
              assert.deepEqual(completion, { cookie: n, bytes: 0, fault: 0, code: CODE.BAD_DESCRIPTOR });
              continue;
            }
            let bytes = 0;
            while (bytes < length && may(source + bytes, 'read') && may(destination + bytes, 'write')) {
              expected[destination + bytes] = expected[source + bytes];
              bytes++;
            }
            const fault = bytes === length ? 0 : (may(source + bytes, 'read') ? destination : source) + bytes;
            assert.deepEqual([completion.bytes, completion.fault], [bytes, fault]);
            assert.equal(completion.code === CODE.OK, bytes === length);
          }
          assert.ok(Buffer.compare(memory, expected) === 0);
        },
      ),
      { numRuns: 60 },
    );
  });
});
