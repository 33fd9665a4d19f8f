/** The samples of libvfio-user, which are not ours: its servers with our client, and its client at our server. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { basename, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { isDmaError } from '../../src/errors.js';
import { openPlatform } from '../../src/platform/open.js';
import { KiB } from '../../src/units.js';
import { VfioUserClient } from '../../src/vfio-user/client.js';
import type { ClientOptions } from '../../src/vfio-user/client.js';
import type { DeviceModel, ModelHost } from '../../src/vfio-user/devices/model.js';
import { IRQ } from '../../src/vfio-user/messages.js';
import { serve } from '../../src/vfio-user/server.js';
import { SAMPLES } from './machine.js';
import { spawnTied } from '../shared/tied.js';
import { until } from '../shared/until.js';

const root = process.env.ANYDMA_PEERS_ROOT ?? '';
const platform = openPlatform();

/** A sample that runs. */
class Sample implements AsyncDisposable {
  /** All that it has printed. */
  printed = '';
  readonly #child: ReturnType<typeof spawnTied>;
  readonly #exit: Promise<unknown>;

  constructor(name: string, ...args: readonly string[]) {
    this.#child = spawnTied('chroot', [root, join(SAMPLES, name), ...args]);
    this.#exit = once(this.#child, 'close');
    for (const stream of [this.#child.stdout, this.#child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => (this.printed += text));
  }

  /** Resolves with the exit status when the sample has ended by itself. */
  async ended(): Promise<number | null> {
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 10_000);
    await this.#exit;
    clearTimeout(timer);
    return this.#child.exitCode;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#exit;
  }
}

/** Memory that our client gives to a server. */
class Memory implements Disposable {
  readonly fd: number;
  readonly bytes: Uint8Array;
  readonly #release: () => void;

  constructor(length: number) {
    const { files, memory } = platform;
    this.fd = memory.memfd({ name: 'peers', length });
    const va = memory.map({ fd: this.fd, length });
    const buffer = memory.view(va, length);
    this.bytes = new Uint8Array(buffer);
    this.#release = () => {
      memory.detach(buffer);
      memory.unmap(va, length);
      files.close(this.fd);
    };
  }

  [Symbol.dispose](): void {
    this.#release();
  }
}

/** A directory inside the machine's root. */
let directory = '';
before(() => {
  directory = mkdtempSync(join(root, 'run', 'anydma-'));
});
after(() => rmSync(directory, { recursive: true, force: true }));

const inside = (socket: string): string => join('/run', basename(directory), socket);

/** Connects as soon as the sample listens. */
async function connect(socket: string, options: ClientOptions = {}): Promise<VfioUserClient> {
  const path = join(directory, socket);
  let client: VfioUserClient | undefined;
  await until(async () => {
    if (!existsSync(path)) return false;
    try {
      client = await VfioUserClient.connect(platform, path, options);
      return true;
    } catch (error) {
      // It is there, but nobody listens yet.
      if (isDmaError(error, 'ECONNREFUSED')) return false;
      throw error;
    }
  }, `${socket} listens`);
  return client ?? assert.fail();
}

const PAGE = 4096;

describe('libvfio-user as the server', () => {
  for (const mapped of [false, true]) {
    it(`works the sample server, region 1 ${mapped ? 'mapped' : 'by messages'}`, async () => {
      const socket = `server-${mapped ? 'mapped' : 'messages'}.sock`;
      await using sample = new Sample('server', inside(socket));
      using memory = new Memory(64 * PAGE);
      const asked: string[] = [];
      const client = await connect(socket, {
        mmap: mapped ? 'trust' : 'sealed',
        dmaTarget: (iova, length, access) => {
          asked.push(`${access} ${iova} ${length}`);
          return memory.bytes.subarray(iova, iova + length);
        },
      });
      assert.deepEqual(client.info, { resettable: true, pci: true, regionCount: 10, interruptKinds: 5 });
      assert.deepEqual(
        client.regions.map(({ size }) => size),
        [8, 0x3000, 0, 0, 0, 0, 0, 256, 0, 0x5000],
      );
      assert.deepEqual(client.regions[1].areas, [
        { offset: 0, length: PAGE },
        { offset: 2 * PAGE, length: PAGE },
      ]);
      assert.deepEqual(
        client.interrupts.map(({ count }) => count),
        [1, 0, 0, 1, 1],
      );
      const config = new Uint8Array(64);
      client.regionRead(7, 0, config);
      assert.deepEqual([...config.subarray(0, 4)], [0xad, 0xde, 0xef, 0xbe]);
      assert.deepEqual([...config.subarray(0x2c, 0x30)], [0xfe, 0xca, 0xbe, 0xba]);
      client.reset();

      // It takes 16 regions, but announces 65535.
      for (let i = 0; i < 16; i++)
        client.dmaMap({
          iova: i * PAGE,
          length: PAGE,
          access: 'read-write',
          backing: { fd: memory.fd, offset: i * PAGE },
        });
      const one = { length: PAGE, access: 'read-write', backing: { fd: memory.fd, offset: 0 } } as const;
      assert.throws(
        () => client.dmaMap({ iova: 16 * PAGE, ...one }),
        (error) => isDmaError(error, 'EINVAL') && /16 regions are mapped/.test(error.hint ?? ''),
      );
      // Only what was mapped can be unmapped.
      assert.throws(() => client.dmaUnmap(0, 2 * PAGE), isDmaError);
      assert.equal(client.dmaUnmap(15 * PAGE, PAGE), PAGE);

      const event = platform.events.create();
      client.setInterrupts({ index: IRQ.INTX, action: 'trigger', eventfds: [event] });
      // Region 0 is a clock: at the time that is stored there the device interrupts, and writes and reads 4 KiB.
      const time = new Uint8Array(8);
      new DataView(time.buffer).setBigUint64(0, BigInt(Math.floor(Date.now() / 1000) + 1), true);
      client.regionWrite(0, 0, time);
      await until(() => platform.events.take(event) > 0, 'the interrupt');
      await until(() => asked.length === 2, 'the accesses');
      assert.deepEqual(asked, ['write 0 4096', 'read 0 4096']);
      assert.ok(memory.bytes.subarray(0, PAGE).every((byte) => byte === 0x41));
      assert.ok(memory.bytes.subarray(PAGE).every((byte) => byte === 0));
      client.setInterrupts({ index: IRQ.INTX, action: 'trigger' });
      platform.files.close(event);
      assert.throws(() => client.regionWrite(0, 0, new Uint8Array(4)), isDmaError, 'the clock has 8 bytes');

      // What is stored in one way is there in the other. (By message it always reads from the region's beginning.)
      const registers = client.registers(1);
      registers.write32(0, 0x12345678);
      const back = new Uint8Array(4);
      client.regionRead(1, 0, back);
      assert.deepEqual([...back], [0x78, 0x56, 0x34, 0x12]);
      client.regionWrite(1, 0, Uint8Array.of(1, 2, 3, 4));
      assert.equal(registers.read32(0), 0x04030201);
      client.regionWrite(1, 0, Uint8Array.of(5), { posted: true });
      // A command that is answered stands behind the posted one.
      client.regionRead(1, 0, back);
      assert.equal(back[0], 5);
      await client.regionWriteAsync(1, 0x2000, new Uint8Array(PAGE).fill(9));
      if (mapped) assert.equal(registers.read32(0x2ffc), 0x09090909);

      for (let i = 0; i < 15; i++) assert.equal(client.dmaUnmap(i * PAGE, PAGE), PAGE);
      assert.equal(client.failure, undefined);
      client.close();
      assert.equal(await sample.ended(), 0, sample.printed);
    });
  }

  for (const mmap of ['auto', 'never'] as const)
    it(`rings the doorbells of a stand-in for an NVMe target, ${mmap === 'auto' ? 'mapped' : 'by messages'}`, async (t) => {
      // It looks at its socket as often as SPDK's does.
      await using sample = new Sample('doorbells', inside(`doorbells-${mmap}.sock`), '1000');
      using memory = new Memory(PAGE);
      const client = await connect(`doorbells-${mmap}.sock`, { mmap });
      assert.equal(client.notMapped(0) === undefined, mmap === 'auto');
      client.dmaMap({ iova: 0, length: PAGE, access: 'read-write', backing: { fd: memory.fd, offset: 0 } });
      const registers = client.registers(0);
      const completed = new Int32Array(memory.bytes.buffer, memory.bytes.byteOffset, 1);
      let tail = 0;
      for (const depth of [1, 8]) {
        const count = mmap === 'auto' ? 4000 : 200;
        const began = performance.now();
        for (let n = 0; n < count; n += depth) {
          for (let i = 0; i < depth; i++) registers.write32(PAGE, ++tail);
          const deadline = performance.now() + 10_000;
          while (Atomics.load(completed, 0) !== tail) {
            assert.ok(performance.now() < deadline, `no completion of ${tail}`);
            await turn();
          }
        }
        const ms = performance.now() - began;
        t.diagnostic(`depth ${depth}: ${Math.round((count / ms) * 1000)} I/Os a second`);
      }
      assert.equal(registers.read32(PAGE), tail);
      assert.equal(client.dmaUnmap(0, PAGE), PAGE);
      client.close();
      assert.equal(await sample.ended(), 0, sample.printed);
    });

  it('maps and unmaps thousands of times, many at once', async () => {
    await using sample = new Sample('gpio-pci-idio-16', inside('gpio.sock'));
    using memory = new Memory(16 * 64 * KiB);
    const client = await connect('gpio.sock');
    const pieces = Array.from({ length: 16 }, (_, i) => i * 64 * KiB);
    for (let round = 0; round < 100; round++) {
      await Promise.all(
        pieces.map((at) =>
          client.dmaMapAsync({
            iova: at,
            length: 64 * KiB,
            access: 'read-write',
            backing: { fd: memory.fd, offset: at },
          }),
        ),
      );
      const bytes = await Promise.all(pieces.map((at) => client.dmaUnmapAsync(at, 64 * KiB)));
      assert.ok(bytes.every((length) => length === 64 * KiB));
    }
    client.close();
    assert.equal(sample.printed, '');
  });

  it('comes and goes, and is told when another client is there', async () => {
    await using sample = new Sample('gpio-pci-idio-16', inside('again.sock'));
    for (let round = 0; round < 3; round++) {
      const client = await connect('again.sock');
      const pins = new Uint8Array(1);
      const seen = [];
      for (let i = 0; i < 3; i++) {
        client.regionRead(2, 0, pins);
        seen.push(pins[0]);
      }
      assert.deepEqual(seen, [round, round, round], 'three reads of each number');
      if (round === 2) {
        // The sample takes no second client, but lets it wait. (Once that one has given up, the sample ends in an error.)
        await assert.rejects(
          connect('again.sock', { handshakeTimeoutMs: 200 }),
          (error) => isDmaError(error, 'ETIMEDOUT') && /another client/.test(error.hint ?? ''),
        );
        client.regionRead(2, 0, pins);
      }
      assert.equal(sample.printed, '');
      client.close();
    }
  });
});

/** The device that libvfio-user's sample client wants. */
class SampleDevice implements DeviceModel {
  readonly name = 'sample';
  readonly identity = {
    vendor: 0xdead,
    device: 0xbeef,
    subsystemVendor: 0xcafe,
    subsystem: 0xbabe,
    revision: 0,
    classCode: 0,
  };
  readonly regions = [
    { index: 0, size: 16 },
    { index: 1, size: 4 * PAGE, memory: [0, 2 * PAGE].map((offset) => ({ offset, length: PAGE })) },
  ];
  readonly interrupts = { intx: 1, msi: 0, msix: 0 };
  resets = 0;

  read(_region: number, _offset: number, into: Uint8Array): void {
    into.fill(0);
  }

  write(): void {
    // It has no registers.
  }

  reset(): void {
    this.resets++;
  }

  quiesce(): undefined {
    return undefined;
  }

  resume(): void {
    // It never works.
  }
}

describe('libvfio-user as the client', () => {
  it('learns, maps, resets and connects interrupts, up to the old dirty page log that nobody has any more', async () => {
    const device = new SampleDevice();
    let host: ModelHost | undefined;
    const events: string[] = [];
    const server = serve(platform, {
      socketPath: join(directory, 'ours.sock'),
      model: (given) => {
        host = given;
        return device;
      },
      onEvent: ({ kind }) => events.push(kind),
    });
    try {
      const resets = device.resets;
      await using sample = new Sample('client', inside('ours.sock'));
      assert.equal(await sample.ended(), 1);
      const { printed } = sample;
      assert.match(printed, /failed to start dirty page logging: Invalid argument/);
      assert.match(printed, /devinfo: flags 0x3, num_regions 9, num_irqs 5/);
      assert.match(printed, /region_info\[0\] offset 0 flags 0x3 size 16 cap_sz 0 #FDs 0/);
      assert.match(printed, /Sparse cap nr_mmap_areas 2/);
      assert.match(printed, /area 1 offset 0x2000 size 4096/);
      assert.match(printed, /region_info\[1\] offset 0 flags 0xf size 16384 cap_sz 48 #FDs 1/);
      assert.match(printed, /region_info\[7\] offset 0 flags 0x3 size 256/);
      assert.match(printed, /IRQ INTx: count=1/);
      await until(() => events.includes('disconnected'), 'the server knows');
      assert.deepEqual(events, ['connected', 'disconnected']);
      assert.ok(device.resets > resets + 1, 'by the client, and when it was gone');
      assert.throws(() => host?.dma.direct(0, PAGE, 'read'), isDmaError);
    } finally {
      await server.close();
    }
  });
});
