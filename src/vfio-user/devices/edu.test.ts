import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { isDmaError } from '../../errors.js';
import { EDU_COMMAND, EDU_REGISTER as REG } from './edu-layout.js';
import type { EduModelOptions } from './edu.js';
import { eduModel } from './edu.js';
import { pattern, FakeModelHost, FakeDma, turn } from '../../../test/fakes/vfio-user/model-host.js';

const BUFFER = 0x40000;

function edu(options?: EduModelOptions, memory = new FakeDma()): FakeModelHost {
  return new FakeModelHost(eduModel(options), memory);
}

function transfer(host: FakeModelHost, source: bigint, destination: bigint, count: bigint, command: number): void {
  host.write64(REG.DMA_SOURCE, source);
  host.write64(REG.DMA_DESTINATION, destination);
  host.write64(REG.DMA_COUNT, count);
  host.write32(REG.DMA_COMMAND, command);
}

const toDevice = (host: FakeModelHost, iova: number, offset: number, count: number, more = 0): void =>
  transfer(host, BigInt(iova), BigInt(BUFFER + offset), BigInt(count), EDU_COMMAND.RUN | more);
const toMemory = (host: FakeModelHost, iova: number, offset: number, count: number, more = 0): void =>
  transfer(host, BigInt(BUFFER + offset), BigInt(iova), BigInt(count), EDU_COMMAND.RUN | EDU_COMMAND.TO_MEMORY | more);

describe('edu model: registers', () => {
  it('says who it is', () => {
    const { model } = edu();
    assert.equal(model.name, 'edu');
    assert.deepEqual(model.identity, {
      vendor: 0x1234,
      device: 0x11e8,
      subsystemVendor: 0x1af4,
      subsystem: 0x1100,
      revision: 0x10,
      classCode: 0x00ff00,
    });
    assert.deepEqual(model.regions, [{ index: 0, size: 1048576 }]);
    assert.deepEqual(model.interrupts, { intx: 1, msi: 1, msix: 0 });
  });

  it('identifies itself, read only', () => {
    const host = edu();
    assert.equal(host.read32(0), 0x010000ed);
    host.write32(0, 5);
    assert.equal(host.read32(0), 0x010000ed);
  });

  it('inverts the liveness register', () => {
    const host = edu();
    for (const value of [0, 1, 0x12345678, 0x80000000, 0xffffffff]) {
      host.write32(REG.LIVENESS, value);
      assert.equal(host.read32(REG.LIVENESS), ~value >>> 0);
    }
  });

  it('computes factorials modulo 2^32, later', async () => {
    const host = edu();
    for (const n of [0, 1, 2, 5, 12, 13, 20, 33, 34, 35, 1000, 0xffffffff]) {
      host.write32(REG.FACTORIAL, n);
      assert.equal(host.read32(REG.STATUS), 1);
      assert.equal(host.read32(REG.FACTORIAL), n);
      host.write32(REG.FACTORIAL, 3); // dropped while computing
      await turn();
      assert.equal(host.read32(REG.STATUS), 0);
      let expected = 1n;
      for (let factor = 2n; factor <= BigInt(Math.min(n, 40)); factor++) expected = (expected * factor) % 2n ** 32n;
      assert.equal(host.read32(REG.FACTORIAL), Number(expected), `${n}!`);
    }
    assert.equal(host.interrupts, 0);
  });

  it('interrupts after a factorial when asked to', async () => {
    const host = edu();
    host.write32(REG.STATUS, 0xffffffff);
    assert.equal(host.read32(REG.STATUS), 0x80);
    host.write32(REG.FACTORIAL, 4);
    assert.equal(host.read32(REG.STATUS), 0x81);
    await turn();
    assert.equal(host.read32(REG.STATUS), 0x80);
    assert.equal(host.read32(REG.INTERRUPT_STATUS), 1);
    assert.equal(host.interrupts, 1);
    host.write32(REG.STATUS, 0);
    assert.equal(host.read32(REG.STATUS), 0);
  });

  it('raises and acknowledges interrupts', () => {
    const host = edu();
    host.write32(REG.INTERRUPT_RAISE, 0);
    assert.equal(host.interrupts, 0);
    host.write32(REG.INTERRUPT_RAISE, 0x80000006);
    host.write32(REG.INTERRUPT_RAISE, 0x8);
    assert.equal(host.interrupts, 2);
    assert.equal(host.read32(REG.INTERRUPT_STATUS), 0x8000000e);
    host.write32(REG.INTERRUPT_ACKNOWLEDGE, 0x80000002);
    assert.equal(host.read32(REG.INTERRUPT_STATUS), 0xc);
    host.write32(REG.INTERRUPT_STATUS, 0xff); // read only
    assert.equal(host.read32(REG.INTERRUPT_STATUS), 0xc);
    assert.equal(host.interrupts, 2);
  });

  it('reads all ones where there is no register', () => {
    const host = edu();
    for (const offset of [
      0x0c,
      0x28,
      REG.INTERRUPT_RAISE,
      REG.INTERRUPT_ACKNOWLEDGE,
      0x84,
      0x9c,
      0xa0,
      BUFFER,
      0xffffc,
    ]) {
      host.write32(offset, 0);
      assert.equal(host.read32(offset), 0xffffffff, offset.toString(16));
    }
    assert.equal(host.read64(BUFFER), 2n ** 64n - 1n);
  });

  it('takes 32-bit accesses below 0x80 and 32 or 64 bits from there', () => {
    const host = edu();
    host.write32(REG.LIVENESS, ~0xcafe);
    for (const offset of [0, REG.LIVENESS]) {
      for (const width of [1, 2, 3, 12, 16]) assert.ok(host.load(offset, width).every((byte) => byte === 0));
    }
    assert.ok(host.load(0, 8).every((byte) => byte === 0xff));
    assert.ok(host.load(2, 4).every((byte) => byte === 0));
    assert.ok(host.load(REG.DMA_SOURCE + 4, 8).every((byte) => byte === 0));
    for (const width of [1, 2, 3, 8, 12, 16]) host.store(REG.LIVENESS, new Uint8Array(width));
    host.store(REG.LIVENESS + 2, new Uint8Array(4));
    assert.equal(host.read32(REG.LIVENESS), 0xcafe);
    host.store(0, new Uint8Array(8).fill(1)); // would reach LIVENESS if it were two accesses
    assert.equal(host.read32(REG.LIVENESS), 0xcafe);
  });

  it('keeps 64 bits of the DMA registers; a 32-bit store clears the upper half', () => {
    const host = edu();
    for (const offset of [REG.DMA_SOURCE, REG.DMA_DESTINATION, REG.DMA_COUNT]) {
      host.write64(offset, 0xfedcba9876543210n);
      assert.equal(host.read64(offset), 0xfedcba9876543210n);
      assert.equal(host.read32(offset), 0x76543210);
      assert.equal(host.read32(offset + 4), 0xffffffff);
      host.write32(offset + 4, 1);
      assert.equal(host.read64(offset), 0xfedcba9876543210n);
      host.write32(offset, 0x89abcdef);
      assert.equal(host.read64(offset), 0x89abcdefn);
    }
    host.write64(REG.DMA_COMMAND, 0xfffffff6n); // does not start, so it is not stored
    assert.equal(host.read64(REG.DMA_COMMAND), 0n);
  });

  it('never throws, whatever is accessed', () => {
    const host = edu();
    fc.assert(
      fc.property(fc.nat({ max: 0xfffff }), fc.uint8Array({ maxLength: 16 }), (offset, bytes) => {
        host.store(offset, bytes);
        assert.equal(host.load(offset, bytes.length).length, bytes.length);
      }),
    );
  });

  it('refuses impossible options', () => {
    for (const options of [
      { dmaMaskBits: 0 },
      { dmaMaskBits: 54 },
      { dmaMaskBits: 1.5 },
      { dmaDelayMs: -1 },
      { dmaDelayMs: NaN },
    ])
      assert.throws(
        () => eduModel(options),
        (error) => isDmaError(error, 'EINVAL'),
      );
  });
});

describe('edu model: transfers', () => {
  for (const reach of ['direct', 'copied', 'messages'] as const) {
    it(`moves memory in and out (${reach})`, async () => {
      const host = edu({}, new FakeDma(reach));
      const source = host.dma.map(0x1000, pattern(4096), 'read');
      const target = host.dma.map(0x9000, new Uint8Array(4096), 'write');
      toDevice(host, 0x1000, 0, 4096);
      assert.equal(host.read32(REG.DMA_COMMAND), EDU_COMMAND.RUN);
      await turn(3);
      assert.equal(host.read32(REG.DMA_COMMAND), 0);
      toMemory(host, 0x9064, 200, 300);
      await turn(3);
      assert.deepEqual(target.subarray(100, 400), source.subarray(200, 500));
      assert.ok(target.subarray(0, 100).every((byte) => byte === 0));
      assert.ok(target.subarray(400).every((byte) => byte === 0));
      assert.equal(host.interrupts, 0);
    });
  }

  it('interrupts when done, if asked to', async () => {
    const host = edu();
    host.dma.map(0, new Uint8Array(64));
    toDevice(host, 0, 0, 64, EDU_COMMAND.INTERRUPT);
    assert.equal(host.interrupts, 0);
    await turn();
    assert.equal(host.interrupts, 1);
    assert.equal(host.read32(REG.INTERRUPT_STATUS), 0x100);
    assert.equal(host.read32(REG.DMA_COMMAND), EDU_COMMAND.INTERRUPT);
  });

  it('drops stores to its DMA registers while a transfer runs', async () => {
    const host = edu();
    const memory = host.dma.map(0x1000, pattern(64));
    toDevice(host, 0x1000, 0, 64);
    host.write32(REG.DMA_SOURCE, 0xdead0);
    host.write32(REG.DMA_DESTINATION, 0);
    host.write32(REG.DMA_COUNT, 1);
    host.write32(REG.DMA_COMMAND, 7);
    assert.equal(host.read32(REG.DMA_SOURCE), 0x1000);
    await turn();
    const target = host.dma.map(0x2000, new Uint8Array(64));
    toMemory(host, 0x2000, 0, 64);
    await turn();
    assert.deepEqual(target, memory);
    assert.equal(host.interrupts, 0);
  });

  it('masks IOVAs, and only IOVAs', async () => {
    const cases = [
      [28, 0xf_ffff_f000n],
      [32, 0x7_f000_1000n],
      [40, 0xffff_ff00_1234_5000n],
      [53, 0xfff7_ff00_1234_5000n],
    ] as const;
    for (const [dmaMaskBits, address] of cases) {
      const host = edu({ dmaMaskBits });
      const seen = Number(BigInt.asUintN(dmaMaskBits, address));
      const memory = host.dma.map(seen, pattern(32));
      transfer(host, address, BigInt(BUFFER), 32n, EDU_COMMAND.RUN);
      await turn();
      memory.fill(0);
      transfer(host, BigInt(BUFFER), address, 32n, EDU_COMMAND.RUN | EDU_COMMAND.TO_MEMORY);
      await turn();
      assert.deepEqual(memory, pattern(32), `${dmaMaskBits} bits`);
    }
  });

  it('moves nothing and completes when memory is not mapped or not granted', async () => {
    for (const reach of ['direct', 'messages'] as const) {
      const host = edu({}, new FakeDma(reach));
      const kept = host.dma.map(0x1000, pattern(4096));
      host.dma.map(0x3000, pattern(4096, 2), 'write');
      const readOnly = host.dma.map(0x5000, pattern(4096, 3), 'read');
      toDevice(host, 0x1000, 0, 4096);
      await turn(3);
      for (const iova of [0x8000, 0x3000, 0x1fff]) {
        toDevice(host, iova, 0, 4096, EDU_COMMAND.INTERRUPT);
        await turn(3);
        assert.equal(host.read32(REG.DMA_COMMAND) & EDU_COMMAND.RUN, 0);
      }
      for (const iova of [0x8000, 0x5000, 0x1fff]) {
        toMemory(host, iova, 0, 4096, EDU_COMMAND.INTERRUPT);
        await turn(3);
      }
      assert.equal(host.interrupts, 6);
      assert.deepEqual(readOnly, pattern(4096, 3));
      kept.fill(0);
      toMemory(host, 0x1000, 0, 4096);
      await turn(3);
      assert.deepEqual(kept, pattern(4096)); // the buffer never changed
    }
  });

  it('moves nothing and completes when the buffer would be left', async () => {
    const host = edu();
    const memory = host.dma.map(0, pattern(16384));
    for (const [buffer, count] of [
      [BUFFER - 1, 2],
      [BUFFER, 4097],
      [BUFFER + 4095, 2],
      [BUFFER + 4096, 1],
      [0, 16],
      [2 ** 40 + BUFFER, 16],
      [BUFFER, 2 ** 32 + 16],
      [BUFFER, 0],
    ]) {
      for (const [source, destination, command] of [
        [0, buffer, EDU_COMMAND.RUN | EDU_COMMAND.INTERRUPT],
        [buffer, 0, EDU_COMMAND.RUN | EDU_COMMAND.TO_MEMORY | EDU_COMMAND.INTERRUPT],
      ]) {
        const before = host.interrupts;
        transfer(host, BigInt(source), BigInt(destination), BigInt(count), command);
        await turn();
        assert.equal(host.interrupts, before + 1, `${buffer} ${count}`);
      }
    }
    assert.equal(host.dma.calls, 0);
    assert.deepEqual(memory, pattern(16384));
  });

  it('takes as long as it was told', async () => {
    const slow = edu({ dmaDelayMs: 60_000 });
    slow.dma.map(0, new Uint8Array(64));
    toDevice(slow, 0, 0, 64, EDU_COMMAND.INTERRUPT);
    await turn(3);
    assert.equal(slow.read32(REG.DMA_COMMAND) & EDU_COMMAND.RUN, EDU_COMMAND.RUN);
    slow.model.reset();
    const host = edu({ dmaDelayMs: 5 });
    host.dma.map(0, new Uint8Array(64));
    toDevice(host, 0, 0, 64, EDU_COMMAND.INTERRUPT);
    assert.equal(host.read32(REG.DMA_COMMAND) & EDU_COMMAND.RUN, EDU_COMMAND.RUN);
    await new Promise<void>((resolve) => (host.onInterrupt = () => resolve()));
    assert.equal(host.read32(REG.DMA_COMMAND) & EDU_COMMAND.RUN, 0);
  });

  it('forgets everything on reset, running work included', async () => {
    for (const reach of ['direct', 'messages'] as const) {
      const host = edu({}, new FakeDma(reach));
      host.dma.map(0, pattern(64));
      const target = host.dma.map(0x1000, pattern(64, 9));
      host.write32(REG.LIVENESS, 1);
      host.write32(REG.STATUS, 0x80);
      host.write32(REG.FACTORIAL, 5);
      host.write32(REG.INTERRUPT_RAISE, 1);
      toDevice(host, 0, 0, 64, EDU_COMMAND.INTERRUPT);
      if (reach === 'messages') await turn(); // so that the message is under way
      const { interrupts } = host;
      host.model.reset();
      for (const offset of [REG.LIVENESS, REG.FACTORIAL, REG.STATUS, REG.INTERRUPT_STATUS])
        assert.equal(host.read32(offset), 0);
      for (const offset of [REG.DMA_SOURCE, REG.DMA_DESTINATION, REG.DMA_COUNT, REG.DMA_COMMAND])
        assert.equal(host.read64(offset), 0n);
      await turn(3);
      assert.equal(host.interrupts, interrupts);
      toMemory(host, 0x1000, 0, 64);
      await turn(3);
      assert.deepEqual(target, new Uint8Array(64)); // what was read before the reset is not in the buffer
    }
  });

  it('does not let a delay that was abandoned begin a later transfer', async () => {
    const host = edu({ dmaDelayMs: 5 });
    host.dma.map(0, new Uint8Array(64));
    toDevice(host, 0, 0, 64, EDU_COMMAND.INTERRUPT);
    host.model.reset();
    toDevice(host, 0, 0, 64, EDU_COMMAND.INTERRUPT);
    await new Promise<void>((resolve) => (host.onInterrupt = () => resolve()));
    // Timers end in their order, so that both delays are over after this.
    await new Promise((resolve) => setTimeout(resolve, 10));
    await turn(3);
    assert.equal(host.dma.calls, 1);
    assert.equal(host.interrupts, 1);
  });

  it('quiesces with a transfer behind one that was abandoned', async () => {
    for (let turns = 0; turns < 5; turns++) {
      const host = edu({}, new FakeDma('messages'));
      host.dma.map(0, pattern(64));
      toDevice(host, 0, 0, 64);
      await turn();
      host.model.reset();
      toMemory(host, 0, 0, 64, EDU_COMMAND.INTERRUPT);
      await turn(turns);
      await host.model.quiesce();
      const memory = host.dma.map(4096, new Uint8Array(64));
      const { calls } = host.dma;
      const { interrupts } = host;
      await turn(4);
      assert.deepEqual([host.dma.calls, host.interrupts], [calls, interrupts], `after ${turns} turns`);
      host.model.resume();
      await turn(4);
      assert.equal(host.interrupts, 1);
      assert.ok(memory.every((byte) => byte === 0));
    }
  });

  it('starts a transfer only when one that was abandoned has let go', async () => {
    const host = edu();
    const target = host.dma.map(0x1000, pattern(64, 9));
    let release = (): void => {};
    host.dma.read = () => new Promise<void>((resolve) => (release = resolve));
    toDevice(host, 0, 0, 64);
    await turn();
    host.model.reset();
    toMemory(host, 0x1000, 0, 64, EDU_COMMAND.INTERRUPT);
    await turn(3);
    assert.equal(host.dma.calls, 0);
    assert.ok(host.model.quiesce() instanceof Promise);
    host.model.resume();
    release();
    await turn(3);
    assert.deepEqual(target, new Uint8Array(64));
    assert.equal(host.interrupts, 1);
  });

  it('quiesces: nothing begins until it may again', async () => {
    const host = edu();
    host.dma.map(0, pattern(64));
    assert.equal(host.model.quiesce(), undefined);
    toDevice(host, 0, 0, 64, EDU_COMMAND.INTERRUPT);
    await turn(3);
    assert.equal(host.dma.calls, 0);
    assert.equal(host.read32(REG.DMA_COMMAND) & EDU_COMMAND.RUN, EDU_COMMAND.RUN);
    host.model.resume();
    await turn(3);
    assert.equal(host.dma.calls, 1);
    assert.equal(host.interrupts, 1);
  });

  it('quiesces: a transfer that has begun is waited for', async () => {
    const host = edu({}, new FakeDma('messages'));
    host.dma.map(0, pattern(64));
    toDevice(host, 0, 0, 64, EDU_COMMAND.INTERRUPT);
    await turn();
    assert.equal(host.dma.calls, 1);
    const quiet = host.model.quiesce();
    assert.ok(quiet instanceof Promise);
    await quiet;
    assert.equal(host.interrupts, 1);
    host.model.resume();
  });
});
