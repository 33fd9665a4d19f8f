/** QEMU's vfio-user-pci, a client that is not ours, at our server: what a guest's driver would do, by QEMU's test protocol. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, before, describe, it } from 'node:test';
import { MiB } from '../../src/units.js';
import {
  COMPLETION,
  COPY_CODE,
  COPY_CONTROL,
  COPY_ENTRY,
  COPY_FLAG,
  COPY_ID,
  COPY_INTERRUPT,
  COPY_REGISTER,
  COPY_STATUS,
  COPY_VERSION,
  DESCRIPTOR,
  completionPhase,
} from '../../src/vfio-user/devices/copy-engine-layout.js';
import {
  EDU_BUFFER,
  EDU_COMMAND,
  EDU_IDENTIFICATION,
  EDU_REGISTER,
  EDU_STATUS,
} from '../../src/vfio-user/devices/edu-layout.js';
import { GUEST_MEMORY, Qemu, QemuFailure } from './qemu.js';
import type { MemoryKind } from './qemu.js';
import { SAID, ServedDevice } from './served.js';
import { until } from '../shared/until.js';

const root = process.env.ANYDMA_PEERS_ROOT ?? '';

const EDU_SLOT = 5;
const COPY_SLOT = 6;
/** Where the devices' registers are put: above guest memory, below the firmware. */
const EDU_BAR = 0xe0000000;
const COPY_BAR = 0xe0200000;
/** No memory is here, and every device reaches it. */
const NOWHERE = GUEST_MEMORY + 16 * MiB;
/** The firmware, which is ROM and the same in every session. */
const FIRMWARE = 0xf0000;

/** Bytes that differ from their neighbours, and by `seed`. */
function pattern(length: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = seed >>> 0;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}

function same(actual: Uint8Array, expected: Uint8Array, what: string): void {
  assert.equal(Buffer.compare(actual, expected), 0, `${what}: other bytes than expected`);
}

/** Gives the device's registers an address, and lets it be reached and reach memory. */
async function enable(qemu: Qemu, slot: number, bar: number): Promise<void> {
  await qemu.writeConfig(slot, 0x10, bar);
  await qemu.writeConfig(slot, 0x04, 0x6);
}

/** The offset of a capability in configuration space. */
async function capability(qemu: Qemu, slot: number, id: number): Promise<number> {
  let at = (await qemu.readConfig(slot, 0x34)) & 0xfc;
  for (let left = 48; at !== 0 && left > 0; left--) {
    const word = await qemu.readConfig(slot, at);
    if ((word & 0xff) === id) return at;
    at = (word >>> 8) & 0xfc;
  }
  throw new Error(`no capability ${id}`);
}

/** Makes the device store `data` at `address` when it interrupts, which is all that MSI is. */
async function enableMsi(qemu: Qemu, slot: number, address: number, data: number): Promise<() => Promise<void>> {
  const at = await capability(qemu, slot, 5);
  const head = await qemu.readConfig(slot, at);
  await qemu.writeConfig(slot, at + 4, address);
  await qemu.writeConfig(slot, at + 8, 0);
  await qemu.writeConfig(slot, at + 12, data);
  await qemu.writeConfig(slot, at, head | 0x10000);
  return () => qemu.writeConfig(slot, at, head & ~0x10000);
}

/** Has edu move bytes, and waits until it has. */
async function eduTransfer(
  qemu: Qemu,
  source: number,
  destination: number,
  count: number,
  command: number,
): Promise<void> {
  await qemu.write64(EDU_BAR + EDU_REGISTER.DMA_SOURCE, BigInt(source));
  await qemu.write64(EDU_BAR + EDU_REGISTER.DMA_DESTINATION, BigInt(destination));
  await qemu.write64(EDU_BAR + EDU_REGISTER.DMA_COUNT, BigInt(count));
  await qemu.write32(EDU_BAR + EDU_REGISTER.DMA_COMMAND, EDU_COMMAND.RUN | command);
  await until(async () => {
    return ((await qemu.read32(EDU_BAR + EDU_REGISTER.DMA_COMMAND)) & EDU_COMMAND.RUN) === 0;
  }, 'the transfer');
}

const toDevice = (qemu: Qemu, address: number, offset: number, count: number, more = 0): Promise<void> =>
  eduTransfer(qemu, address, EDU_BUFFER.ADDRESS + offset, count, more);
const toMemory = (qemu: Qemu, address: number, offset: number, count: number, more = 0): Promise<void> =>
  eduTransfer(qemu, EDU_BUFFER.ADDRESS + offset, address, count, EDU_COMMAND.TO_MEMORY | more);

/** One copy for the engine. */
interface Job {
  readonly source: number;
  readonly destination: number;
  readonly length: number;
}

/** What the engine said about it. */
interface Outcome {
  readonly code: number;
  readonly bytes: number;
  readonly fault: number;
}

/** Drives the copy engine with rings in guest memory. */
class Copier {
  static readonly RINGS = 1 * MiB;
  static readonly #ENTRIES = 1024;
  #producer = 0;

  constructor(private readonly qemu: Qemu) {}

  get #completions(): number {
    return Copier.RINGS + Copier.#ENTRIES * COPY_ENTRY.BYTES;
  }

  register(offset: number): Promise<number> {
    return this.qemu.read32(COPY_BAR + offset);
  }

  store(offset: number, value: number): Promise<void> {
    return this.qemu.write32(COPY_BAR + offset, value);
  }

  async start(interrupts = 0): Promise<void> {
    await this.store(COPY_REGISTER.CONTROL, COPY_CONTROL.RESET);
    await until(async () => ((await this.register(COPY_REGISTER.CONTROL)) & COPY_CONTROL.RESET) === 0, 'the reset');
    await this.qemu.fill(Copier.RINGS, 2 * Copier.#ENTRIES * COPY_ENTRY.BYTES, 0);
    await this.store(COPY_REGISTER.RING_LOW, Copier.RINGS);
    await this.store(COPY_REGISTER.DONE_LOW, this.#completions);
    await this.store(COPY_REGISTER.RING_SIZE, Copier.#ENTRIES);
    await this.store(COPY_REGISTER.INTERRUPT_ENABLE, interrupts);
    await this.store(COPY_REGISTER.CONTROL, COPY_CONTROL.ENABLE);
    this.#producer = 0;
  }

  /** Hands jobs over; at most as many as the ring has entries. */
  async submit(jobs: readonly Job[]): Promise<void> {
    const words = new Uint32Array(jobs.length * COPY_ENTRY.WORDS);
    for (const [i, { source, destination, length }] of jobs.entries()) {
      const at = i * COPY_ENTRY.WORDS;
      words[at + DESCRIPTOR.SOURCE_LOW] = source;
      words[at + DESCRIPTOR.SOURCE_HIGH] = source / 2 ** 32;
      words[at + DESCRIPTOR.DESTINATION_LOW] = destination;
      words[at + DESCRIPTOR.DESTINATION_HIGH] = destination / 2 ** 32;
      words[at + DESCRIPTOR.LENGTH] = length;
      words[at + DESCRIPTOR.FLAGS] = COPY_FLAG.INTERRUPT;
      words[at + DESCRIPTOR.COOKIE] = this.#producer + i;
    }
    const first = this.#producer % Copier.#ENTRIES;
    const before = Math.min(jobs.length, Copier.#ENTRIES - first) * COPY_ENTRY.BYTES;
    const bytes = new Uint8Array(words.buffer);
    await this.qemu.write(Copier.RINGS + first * COPY_ENTRY.BYTES, bytes.subarray(0, before));
    if (before < bytes.length) await this.qemu.write(Copier.RINGS, bytes.subarray(before));
    this.#producer += jobs.length;
    await this.store(COPY_REGISTER.PRODUCER, this.#producer);
  }

  /** Does the jobs and tells how each ended. */
  async run(jobs: readonly Job[]): Promise<Outcome[]> {
    const first = this.#producer;
    await this.submit(jobs);
    await until(async () => (await this.register(COPY_REGISTER.CONSUMER)) === this.#producer, 'the copies');
    const ring = await this.qemu.read(this.#completions, Copier.#ENTRIES * COPY_ENTRY.BYTES);
    const words = new Uint32Array(new Uint8Array(ring).buffer);
    return jobs.map((_, i) => {
      const index = first + i;
      const at = (index % Copier.#ENTRIES) * COPY_ENTRY.WORDS;
      assert.equal(words[at + COMPLETION.COOKIE], index, 'completions in order');
      assert.equal(words[at + COMPLETION.CODE] >>> 31, completionPhase(index, Copier.#ENTRIES));
      return {
        code: words[at + COMPLETION.CODE] & 0xff,
        bytes: words[at + COMPLETION.BYTES],
        fault: words[at + COMPLETION.FAULT_HIGH] * 2 ** 32 + words[at + COMPLETION.FAULT_LOW],
      };
    });
  }
}

/** A directory inside QEMU's root, so that both sides reach the sockets in it. */
function sharedDirectory(): { readonly outside: string; readonly inside: string } {
  const outside = mkdtempSync(join(root, 'run', 'anydma-'));
  return { outside, inside: outside.slice(root.length) };
}

const KINDS: readonly MemoryKind[] = ['memfd', 'file', 'private'];
const HOW: { readonly [K in MemoryKind]: string } = {
  memfd: 'guest memory that the server maps',
  file: 'guest memory that the server maps and copies by system calls, because the file is not sealed',
  private: 'guest memory that the server reaches by messages only',
};

for (const memory of KINDS) {
  describe(`QEMU as the client, ${HOW[memory]}`, () => {
    const directory = sharedDirectory();
    const servers: ServedDevice[] = [];
    let machine: Qemu | undefined;
    const qemu = (): Qemu => machine ?? assert.fail('QEMU has not started');

    const start = async (): Promise<Qemu> => {
      const devices = [
        { slot: EDU_SLOT, socket: join(directory.inside, 'edu.sock') },
        { slot: COPY_SLOT, socket: join(directory.inside, 'copy.sock') },
      ];
      machine = await Qemu.start({ root, memory, directory: directory.inside, devices });
      await enable(machine, EDU_SLOT, EDU_BAR);
      await enable(machine, COPY_SLOT, COPY_BAR);
      return machine;
    };

    before(async () => {
      for (const device of ['edu', 'copy'])
        servers.push(await ServedDevice.start(device, join(directory.outside, `${device}.sock`)));
      await start();
    });
    after(async () => {
      await machine?.kill();
      for (const server of servers) await server[Symbol.asyncDispose]();
      rmSync(directory.outside, { recursive: true, force: true });
    });

    // QEMU goes on after many errors of a device, but not in silence.
    afterEach(() => assert.deepEqual(qemu().said, []));

    it('sees both devices in configuration space', async () => {
      assert.equal(await qemu().readConfig(EDU_SLOT, 0x00), 0x11e81234);
      assert.equal(await qemu().readConfig(EDU_SLOT, 0x08), 0x00ff0010);
      assert.equal(await qemu().readConfig(EDU_SLOT, 0x2c), 0x11001af4);
      assert.equal((await qemu().readConfig(EDU_SLOT, 0x3c)) & 0xff00, 0x0100, 'interrupt pin A');
      assert.equal(await qemu().readConfig(COPY_SLOT, 0x00), 0xc0e11234);
      assert.equal(await qemu().readConfig(COPY_SLOT, 0x08), 0x08800001);
      assert.ok(((await qemu().readConfig(EDU_SLOT, 0x04)) & 0x100000) !== 0, 'it has capabilities');
    });

    it('sizes and moves base address registers', async () => {
      for (const [slot, size, bar] of [
        [EDU_SLOT, 1 * MiB, EDU_BAR],
        [COPY_SLOT, 4096, COPY_BAR],
      ]) {
        await qemu().writeConfig(slot, 0x10, 0xffffffff);
        assert.equal(await qemu().readConfig(slot, 0x10), 2 ** 32 - size);
        for (const offset of [0x14, 0x18, 0x1c, 0x20, 0x24, 0x30]) {
          await qemu().writeConfig(slot, offset, 0xffffffff);
          assert.equal(await qemu().readConfig(slot, offset), 0, 'no other base address registers');
        }
        await qemu().writeConfig(slot, 0x10, bar + 64 * MiB);
        const id = await qemu().read32(bar + 64 * MiB);
        await qemu().writeConfig(slot, 0x10, bar);
        assert.equal(id, slot === EDU_SLOT ? EDU_IDENTIFICATION : COPY_ID);
        assert.equal(await qemu().read32(bar), id);
      }
    });

    it('works the registers of edu', async () => {
      assert.equal(await qemu().read32(EDU_BAR + EDU_REGISTER.IDENTIFICATION), EDU_IDENTIFICATION);
      for (const value of [0, 0x12345678, 0xffffffff]) {
        await qemu().write32(EDU_BAR + EDU_REGISTER.LIVENESS, value);
        assert.equal(await qemu().read32(EDU_BAR + EDU_REGISTER.LIVENESS), ~value >>> 0);
      }
      for (const [n, product] of [
        [0, 1],
        [5, 120],
        [12, 479001600],
        [13, 1932053504],
      ]) {
        await qemu().write32(EDU_BAR + EDU_REGISTER.FACTORIAL, n);
        await until(async () => {
          return ((await qemu().read32(EDU_BAR + EDU_REGISTER.STATUS)) & EDU_STATUS.COMPUTING) === 0;
        }, 'the factorial');
        assert.equal(await qemu().read32(EDU_BAR + EDU_REGISTER.FACTORIAL), product);
      }
      await qemu().write64(EDU_BAR + EDU_REGISTER.DMA_SOURCE, 0xfedcba9876543210n);
      assert.equal(await qemu().read64(EDU_BAR + EDU_REGISTER.DMA_SOURCE), 0xfedcba9876543210n);
    });

    it('moves guest memory to edu and back', async () => {
      for (const [at, count] of [
        [0x10000, 4096],
        [0x20123, 4095],
        [0x2fffd, 7],
        [GUEST_MEMORY - 2048, 2048],
      ]) {
        const bytes = pattern(count, at);
        await qemu().write(at, bytes);
        await qemu().fill(0x40000, 8192, 0xee);
        await toDevice(qemu(), at, 0, count);
        await toMemory(qemu(), 0x40005, 0, count);
        const seen = await qemu().read(0x40000, 8192);
        same(seen.subarray(5, 5 + count), bytes, `${count} bytes from ${at}`);
        assert.ok(
          seen.subarray(0, 5).every((byte) => byte === 0xee),
          'nothing in front',
        );
        assert.ok(
          seen.subarray(5 + count).every((byte) => byte === 0xee),
          'nothing behind',
        );
      }
    });

    it('moves nothing where no memory is', async () => {
      const bytes = pattern(256, 7);
      await qemu().write(0x10000, bytes);
      await toDevice(qemu(), 0x10000, 0, 256);
      await toDevice(qemu(), NOWHERE, 0, 256);
      await toMemory(qemu(), NOWHERE, 0, 256);
      // Half in memory: all or nothing.
      await qemu().fill(GUEST_MEMORY - 128, 128, 0x55);
      await toMemory(qemu(), GUEST_MEMORY - 128, 0, 256);
      assert.ok((await qemu().read(GUEST_MEMORY - 128, 128)).every((byte) => byte === 0x55));
      await toDevice(qemu(), GUEST_MEMORY - 128, 0, 256);
      await toMemory(qemu(), 0x50000, 0, 256);
      same(await qemu().read(0x50000, 256), bytes, 'what the device kept');
    });

    it('reads the firmware by messages, and does not write it', async () => {
      const firmware = await qemu().read(FIRMWARE, 4096);
      assert.ok(new Set(firmware).size > 16, 'the firmware is there');
      await toDevice(qemu(), FIRMWARE, 0, 4096);
      await toMemory(qemu(), 0x60000, 0, 4096);
      same(await qemu().read(0x60000, 4096), firmware, 'the firmware, as the device read it');
      await qemu().write(0x10000, pattern(4096, 9));
      await toDevice(qemu(), 0x10000, 0, 4096);
      await toMemory(qemu(), FIRMWARE, 0, 4096);
      same(await qemu().read(FIRMWARE, 4096), firmware, 'the firmware');
    });

    it('follows guest memory that comes and goes', async () => {
      // The chipset's PAM registers put memory where the firmware is and back: QEMU unmaps, maps and splits regions.
      const firmware = await qemu().read(FIRMWARE, 4096);
      for (let round = 0; round < 20; round++) {
        await qemu().writeConfigByte(0, 0x90, 0x30);
        for (let pam = 0x91; pam <= 0x96; pam++) await qemu().writeConfigByte(0, pam, round % 2 === 0 ? 0x33 : 0x13);
        const bytes = pattern(4096, round);
        await qemu().write(0x10000, bytes);
        await toDevice(qemu(), 0x10000, 0, 4096);
        await toMemory(qemu(), FIRMWARE, 0, 4096);
        same(await qemu().read(FIRMWARE, 4096), bytes, 'memory in the place of the firmware');
        await qemu().writeConfigByte(0, 0x90, 0x00);
        await toMemory(qemu(), FIRMWARE, 0, 4096);
        same(await qemu().read(FIRMWARE, 4096), firmware, 'the firmware');
        await toDevice(qemu(), FIRMWARE, 0, 4096);
        await toMemory(qemu(), 0x60000, 0, 4096);
        same(await qemu().read(0x60000, 4096), firmware, 'the firmware, as the device read it');
      }
    });

    it('gets the interrupts of edu by its pin', async () => {
      await qemu().interceptInterrupts();
      const { raised } = qemu();
      for (let round = 1; round <= 3; round++) {
        await qemu().write32(EDU_BAR + EDU_REGISTER.INTERRUPT_RAISE, round);
        await until(() => raised.length >= round, 'the interrupt');
        assert.equal(await qemu().read32(EDU_BAR + EDU_REGISTER.INTERRUPT_STATUS), round);
        await qemu().write32(EDU_BAR + EDU_REGISTER.INTERRUPT_ACKNOWLEDGE, round);
        assert.equal(await qemu().read32(EDU_BAR + EDU_REGISTER.INTERRUPT_STATUS), 0);
      }
      assert.equal(raised.length, 3);
      assert.equal(new Set(raised).size, 1, 'always the same line');
    });

    it('gets the interrupts of both devices by message', async () => {
      const word = 0x70000;
      const arrived = (value: number): Promise<void> =>
        until(async () => (await qemu().read32(word)) === value, 'the interrupt');
      await qemu().write32(word, 0);
      const disableEdu = await enableMsi(qemu(), EDU_SLOT, word, 0xed0);
      await qemu().write32(EDU_BAR + EDU_REGISTER.INTERRUPT_RAISE, 1);
      await arrived(0xed0);
      await qemu().write32(EDU_BAR + EDU_REGISTER.INTERRUPT_ACKNOWLEDGE, 1);
      await qemu().write32(word, 0);
      await toDevice(qemu(), 0x10000, 0, 16, EDU_COMMAND.INTERRUPT);
      await arrived(0xed0);
      await qemu().write32(EDU_BAR + EDU_REGISTER.INTERRUPT_ACKNOWLEDGE, 0x100);

      const disableCopy = await enableMsi(qemu(), COPY_SLOT, word, 0xc0);
      const copier = new Copier(qemu());
      await copier.start(COPY_INTERRUPT.COMPLETION | COPY_INTERRUPT.ERROR);
      for (let round = 0; round < 3; round++) {
        await qemu().write32(word, 0);
        await copier.run([{ source: 0x10000, destination: 0x20000, length: 4096 }]);
        await arrived(0xc0);
        await copier.store(COPY_REGISTER.INTERRUPT_ACK, COPY_INTERRUPT.COMPLETION);
      }
      await disableCopy();
      await disableEdu();
      await qemu().write32(word, 0);
      const before = qemu().raised.length;
      await qemu().write32(EDU_BAR + EDU_REGISTER.INTERRUPT_RAISE, 1);
      await until(() => qemu().raised.length > before, 'the pin again');
      await qemu().write32(EDU_BAR + EDU_REGISTER.INTERRUPT_ACKNOWLEDGE, 1);
      assert.equal(await qemu().read32(word), 0, 'no message any more');
    });

    it('has the copy engine do thousands of descriptors', async () => {
      const SOURCE = 16 * MiB;
      const DESTINATION = 32 * MiB;
      const LENGTH = 4 * MiB;
      const copier = new Copier(qemu());
      await copier.start();
      assert.equal(await copier.register(COPY_REGISTER.ID), COPY_ID);
      assert.equal(await copier.register(COPY_REGISTER.VERSION), COPY_VERSION);
      const bytes = pattern(LENGTH, 42);
      await qemu().write(SOURCE, bytes);
      await qemu().fill(DESTINATION, LENGTH, 0);
      // Pieces of all sizes and alignments that together are the whole.
      const jobs: Job[] = [];
      for (let at = 0; at < LENGTH;) {
        const length = Math.min(LENGTH - at, 1 + ((jobs.length * 613) % 2600));
        jobs.push({ source: SOURCE + at, destination: DESTINATION + at, length });
        at += length;
      }
      assert.ok(jobs.length > 3000);
      for (let at = 0; at < jobs.length; at += 700) {
        const batch = jobs.slice(at, at + 700);
        const outcomes = await copier.run(batch);
        for (const [i, { code, bytes: moved }] of outcomes.entries()) {
          assert.equal(code, COPY_CODE.OK);
          assert.equal(moved, batch[i].length);
        }
      }
      same(await qemu().read(DESTINATION, LENGTH), bytes, 'the copy');
      // And in one piece, larger than a message may be.
      await qemu().fill(DESTINATION, LENGTH, 0);
      const [whole] = await copier.run([{ source: SOURCE, destination: DESTINATION, length: LENGTH }]);
      assert.deepEqual(whole, { code: COPY_CODE.OK, bytes: LENGTH, fault: 0 });
      same(await qemu().read(DESTINATION, LENGTH), bytes, 'the copy in one piece');
    });

    it('hears from the copy engine what it can not reach', async () => {
      const copier = new Copier(qemu());
      await copier.start();
      const good = { source: 0x10000, destination: 0x20000, length: 64 };
      const end = GUEST_MEMORY;
      const outcomes = await copier.run([
        good,
        { ...good, source: NOWHERE },
        { ...good, destination: NOWHERE },
        { ...good, source: end - 16 },
        { ...good, destination: FIRMWARE },
        { ...good, source: EDU_BAR },
        { ...good, source: 2 ** 40 },
        { ...good, length: 0 },
        good,
      ]);
      const codes = outcomes.map(({ code }) => code);
      assert.deepEqual(codes, [
        COPY_CODE.OK,
        COPY_CODE.READ_UNMAPPED,
        COPY_CODE.WRITE_UNMAPPED,
        COPY_CODE.READ_UNMAPPED,
        COPY_CODE.WRITE_DENIED,
        COPY_CODE.READ_UNMAPPED,
        COPY_CODE.READ_UNMAPPED,
        COPY_CODE.BAD_DESCRIPTOR,
        COPY_CODE.OK,
      ]);
      assert.deepEqual(
        outcomes.slice(1, 7).map(({ fault }) => fault),
        [NOWHERE, NOWHERE, end, FIRMWARE, EDU_BAR, 2 ** 40],
      );
      await copier.store(COPY_REGISTER.CONTROL, 0);
      await copier.store(COPY_REGISTER.RING_LOW, NOWHERE);
      await copier.store(COPY_REGISTER.CONTROL, COPY_CONTROL.ENABLE);
      await copier.store(COPY_REGISTER.PRODUCER, 1);
      await until(async () => {
        return ((await copier.register(COPY_REGISTER.STATUS)) & COPY_STATUS.HALTED) !== 0;
      }, 'the halt');
      assert.equal(await copier.register(COPY_REGISTER.ERROR_KIND), COPY_CODE.READ_UNMAPPED);
    });

    it('resets the devices', async () => {
      await qemu().write32(EDU_BAR + EDU_REGISTER.LIVENESS, 1);
      await qemu().outb(0xcf9, 0x06);
      await until(async () => (await qemu().readConfig(EDU_SLOT, 0x10)) === 0, 'the reset');
      assert.equal((await qemu().readConfig(EDU_SLOT, 0x04)) & 0xffff, 0);
      await enable(qemu(), EDU_SLOT, EDU_BAR);
      await enable(qemu(), COPY_SLOT, COPY_BAR);
      assert.equal(await qemu().read32(EDU_BAR + EDU_REGISTER.LIVENESS), 0);
      assert.equal(await qemu().read32(COPY_BAR + COPY_REGISTER.STATUS), 0);
      assert.equal(await qemu().read32(COPY_BAR + COPY_REGISTER.ERROR_KIND), 0);
      await qemu().write(0x10000, pattern(100, 3));
      await toDevice(qemu(), 0x10000, 0, 100);
      await toMemory(qemu(), 0x20000, 0, 100);
      same(await qemu().read(0x20000, 100), pattern(100, 3), 'memory stays reachable');
    });

    it('is alone at the devices', async () => {
      await assert.rejects(async () => {
        const devices = [{ slot: EDU_SLOT, socket: join(directory.inside, 'edu.sock') }];
        const second = await Qemu.start({ root, memory: 'private', directory: directory.inside, devices });
        await second.kill();
      }, QemuFailure);
      assert.equal(servers[0].times(SAID.REFUSED), 1);
      assert.equal(await qemu().read32(EDU_BAR), EDU_IDENTIFICATION);
    });

    it('quits or is killed, and the next one is served', async () => {
      let first: readonly number[] | undefined;
      for (const server of servers)
        assert.equal(server.holds().mappings > 0, memory !== 'private', 'guest memory with a descriptor is mapped');
      for (const way of ['quit', 'kill', 'quit', 'kill'] as const) {
        const gone = servers.map((server) => server.times(SAID.GONE));
        const copier = new Copier(qemu());
        await copier.start();
        // In the middle of work.
        const job = { source: 16 * MiB, destination: 48 * MiB, length: 4 * MiB };
        await copier.submit(Array.from({ length: 512 }, () => job));
        await qemu()[way]();
        await until(
          () => servers.every((server, i) => server.alive && server.times(SAID.GONE) === gone[i] + 1),
          'the servers know',
        );
        // What the peer sent is closed on another thread.
        const most = (first ??= servers.map((server) => server.holds().descriptors));
        await until(
          () =>
            servers.map((server) => server.holds()).every((now, i) => now.mappings === 0 && now.descriptors <= most[i]),
          'nothing stays behind',
        );
        await start();
        await qemu().write(0x10000, pattern(100, 5));
        await toDevice(qemu(), 0x10000, 0, 100);
        await toMemory(qemu(), 0x20000, 0, 100);
        same(await qemu().read(0x20000, 100), pattern(100, 5), 'the next client');
        await new Copier(qemu()).start();
      }
    });
  });
}
