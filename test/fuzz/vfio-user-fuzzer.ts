/**
 * Adversaries for both ends of vfio-user: peers that send valid conversations with random changes, random bytes and random
 * descriptors, cut anywhere, and leave when they like. After each batch the ends must still work, and nothing may be left.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DmaError, isDmaError } from '../../src/errors.js';
import { openPlatform } from '../../src/platform/open.js';
import type { Platform } from '../../src/platform/ports.js';
import { trackingPlatform } from '../fakes/platform/platforms.js';
import { VfioUserClient } from '../../src/vfio-user/client.js';
import { deviceModel } from '../../src/vfio-user/devices/catalog.js';
import type { DeviceModel, ModelFactory, ModelHost } from '../../src/vfio-user/devices/model.js';
import { delay } from '../../src/timers.js';
import { Framer, isCommand } from '../../src/vfio-user/framing.js';
import * as m from '../../src/vfio-user/messages.js';
import { serve } from '../../src/vfio-user/server.js';
import { inMemoryPlatform } from '../fakes/vfio-user/sockets.js';
import { Random } from '../shared/random.js';

/** What a run did. */
export interface FuzzReport {
  messages: number;
  conversations: number;
  batches: number;
  /** Batches that went over the kernel's sockets. */
  real: number;
  /** Good and error replies that came back. */
  answered: number;
  refused: number;
  /** DMA that the attacked device did, in place and by message, before anybody refused. */
  moved: number;
  asked: number;
  /** Calls of the client under attack: those that succeeded, and that failed with a typed error. */
  callsDone: number;
  callsFailed: number;
}

/** How much, from which seed. */
export interface FuzzOptions {
  readonly messages: number;
  readonly seed: number;
  /** Messages of one batch. Default 2000. */
  readonly batch?: number;
  /** Called after each batch. */
  readonly onBatch?: (report: FuzzReport) => void;
}

/**
 * Sends `messages` messages to both ends in batches. A failing batch can be repeated alone: the error tells its seed.
 *
 * @throws Error that names the seed of the batch that found something
 */
export async function fuzz(options: FuzzOptions): Promise<FuzzReport> {
  const { messages, seed, batch = 2000, onBatch } = options;
  const report: FuzzReport = {
    messages: 0,
    conversations: 0,
    batches: 0,
    real: 0,
    answered: 0,
    refused: 0,
    moved: 0,
    asked: 0,
    callsDone: 0,
    callsFailed: 0,
  };
  for (let n = 0; report.messages < messages; n++) {
    try {
      await oneBatch(seed + n, Math.min(batch, messages - report.messages), report);
    } catch (cause) {
      throw new Error(`batch failed; repeat it with --seed ${seed + n} --messages ${batch}`, { cause });
    }
    report.batches++;
    onBatch?.(report);
  }
  return report;
}

async function oneBatch(seed: number, messages: number, report: FuzzReport): Promise<void> {
  const random = new Random(seed);
  const real = random.oneIn(8);
  if (real) report.real++;
  const directory = mkdtempSync(join(tmpdir(), 'anydma-fuzz-'));
  const before = openFds();
  const platform = trackingPlatform(real ? openPlatform() : inMemoryPlatform(openPlatform()));
  const until = report.messages + messages;
  try {
    const arsenal = new Arsenal(platform, random, join(directory, 'file'));
    try {
      if (random.oneIn(2)) await attackServer(platform, random, arsenal, join(directory, 's'), until, report);
      else while (report.messages < until) await attackClient(platform, random, arsenal, report);
    } finally {
      arsenal.close();
    }
    assert.deepEqual(platform.leaks(), [], 'something was left behind');
    // Some are closed on another thread.
    for (let n = 0; n < 200 && openFds() > before; n++) await (n < 100 ? turn() : delay(10));
    assert.ok(openFds() <= before, `${openFds()} descriptors, ${before} before`);
    const { rss } = process.memoryUsage();
    assert.ok(rss < 1.5e9, `${rss} bytes resident`);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function openFds(): number {
  return readdirSync('/proc/self/fd').length;
}

async function turn(): Promise<void> {
  await new Promise<void>((resolve) => setImmediate(resolve));
}

/** Descriptors of all kinds, to send along. */
class Arsenal {
  readonly #fds: number[] = [];

  constructor(
    private readonly platform: Platform,
    private readonly random: Random,
    private readonly path: string,
  ) {
    const { memory, events, sockets, files } = platform;
    this.#fds.push(
      memory.memfd({ name: 'fuzz', length: 65536 }),
      memory.memfd({ name: 'fuzz', length: 1 << 22 }),
      memory.memfd({ name: 'fuzz', length: 65536, sealed: false }),
      memory.memfd({ name: 'fuzz', length: 100, sealed: false }),
      events.create(),
      events.create(),
      ...sockets.pair(),
      files.open('/dev/null', 'read-write'),
      files.open('/proc/self/exe', 'read'),
      files.open('/', 'read'),
    );
  }

  /** A sealed file to map. */
  get memory(): number {
    return this.#fds[this.random.below(2)];
  }

  get event(): number {
    return this.#fds[4 + this.random.below(2)];
  }

  /** Anything, any number of times. */
  some(most: number): number[] {
    return Array.from({ length: this.random.below(most + 1) }, () => this.random.pick(this.#fds));
  }

  close(): void {
    for (const fd of this.#fds.splice(0)) this.platform.files.close(fd);
    rmSync(this.path, { force: true });
  }
}

const NUMBERS = [
  0,
  1,
  2,
  3,
  4,
  5,
  7,
  8,
  9,
  15,
  16,
  31,
  32,
  255,
  4095,
  4096,
  4097,
  65536,
  2 ** 20,
  2 ** 31,
  2 ** 32 - 1,
];
const ADDRESSES = [...NUMBERS, 2 ** 32, 2 ** 40, 2 ** 52, 2 ** 53 - 4096, 2 ** 53 - 1];

/** Changes a message at random: fields, bytes, length, the header's size. */
export function mutate(random: Random, message: Uint8Array): Uint8Array {
  let bytes = message.slice();
  for (let n = 1 + random.below(3); n > 0; n--) {
    switch (random.below(7)) {
      case 0:
        bytes[random.below(bytes.length)] = random.below(256);
        break;
      case 1:
        if (bytes.length >= 8) m.put32(bytes, random.below(bytes.length >> 2) * 4, random.pick(NUMBERS));
        break;
      case 2:
        bytes = bytes.slice(0, 1 + random.below(bytes.length));
        break;
      case 3:
        bytes = Buffer.concat([bytes, random.bytes(1 + random.below(64))]);
        break;
      case 4:
        // The size fits what is there, so that the payload is what is wrong.
        if (bytes.length >= m.HEADER_SIZE) m.put32(bytes, 4, bytes.length);
        break;
      case 5:
        if (bytes.length >= m.HEADER_SIZE)
          m.put32(bytes, 8, random.pick([0, 1, 0x10, 0x20, 0x21, 2, 15, random.below(64)]));
        break;
      default:
        if (bytes.length >= m.HEADER_SIZE) m.put16(bytes, 2, random.below(20));
    }
  }
  return bytes;
}

/** One end of a connection, in the hands of an adversary. */
class Adversary {
  alive = true;
  readonly framer = new Framer(m.MAX_MESSAGE);
  readonly #into: (message: m.Message) => void;

  constructor(
    private readonly platform: Platform,
    private readonly random: Random,
    private readonly fd: number,
    onMessage: (message: m.Message) => void,
  ) {
    this.#into = onMessage;
  }

  /** Sends, at times in pieces. What the socket does not take is lost: then the rest is out of step, which is welcome. */
  send(bytes: Uint8Array, fds: readonly number[]): void {
    try {
      const cut = this.random.oneIn(8) ? this.random.below(bytes.length) : 0;
      if (cut > 0) this.platform.sockets.send(this.fd, bytes.subarray(0, cut), 0, fds);
      this.platform.sockets.send(this.fd, bytes, cut, cut > 0 && !this.random.oneIn(4) ? [] : fds);
    } catch (error) {
      if (!isDmaError(error)) throw error;
      this.alive = false;
    }
  }

  /** Takes what came. What the other side says must be well-formed, whatever it was told. */
  listen(): void {
    for (;;) {
      try {
        const received = this.platform.sockets.receive(this.fd, this.framer.space(), 253);
        if (received === undefined) return;
        if (received.bytes === 0) {
          this.alive = false;
          return;
        }
        this.framer.received(received.bytes, received.fds);
      } catch (error) {
        if (!isDmaError(error) || error.code === 'EPROTO') throw error;
        this.alive = false;
        return;
      }
      for (let message = this.framer.next(); message !== undefined; message = this.framer.next()) {
        this.#into(message);
        for (const fd of message.fds) this.platform.files.close(fd);
      }
    }
  }

  close(): void {
    for (const fd of this.framer.takeFds()) this.platform.files.close(fd);
    this.platform.files.close(this.fd);
  }
}

/** Plain memory, many interrupts and DMA on every store, for what the real devices do not have. */
class BusyModel implements DeviceModel {
  readonly name = 'busy';
  readonly identity = { vendor: 1, device: 2, subsystemVendor: 3, subsystem: 4, revision: 5, classCode: 6 };
  readonly regions = [
    {
      index: 0,
      size: 65536,
      memory: [
        { offset: 4096, length: 4096 },
        { offset: 16384, length: 8192 },
      ],
    },
    { index: 1, size: 16 },
  ];
  readonly interrupts = { intx: 1, msi: 3, msix: 9 };
  readonly #running = new Set<Promise<void>>();
  #quiet = 0;

  constructor(
    private readonly host: ModelHost,
    private readonly report: FuzzReport,
  ) {}

  read(region: number, offset: number, into: Uint8Array): void {
    into.fill(region + offset);
  }

  write(_region: number, offset: number, from: Uint8Array): void {
    this.host.interrupt(offset % 11);
    if (this.#quiet > 0) return;
    try {
      const iova = from.length * 512;
      const bytes = new Uint8Array(offset % 5000);
      if (offset % 3 === 0 && bytes.length > 0) this.host.dma.direct(iova, bytes.length, 'write')?.fill(1);
      const wait = offset % 2 === 0 ? this.host.dma.read(iova, bytes) : this.host.dma.write(iova, bytes);
      if (bytes.length > 0) this.report[wait === undefined ? 'moved' : 'asked']++;
      if (wait === undefined) return;
      const done = wait.then(
        () => undefined,
        (error: unknown) => assert.ok(isDmaError(error)),
      );
      this.#running.add(done);
      void done.then(() => this.#running.delete(done));
    } catch (error) {
      assert.ok(isDmaError(error), String(error));
    }
  }

  reset(): void {
    return;
  }

  quiesce(): Promise<void> | undefined {
    this.#quiet++;
    return this.#running.size === 0 ? undefined : Promise.all(this.#running).then(() => undefined);
  }

  resume(): void {
    this.#quiet--;
  }
}

async function attackServer(
  platform: Platform,
  random: Random,
  arsenal: Arsenal,
  socketPath: string,
  until: number,
  report: FuzzReport,
): Promise<void> {
  const model: ModelFactory = random.pick([
    (host: ModelHost) => new BusyModel(host, report),
    (host: ModelHost) => new BusyModel(host, report),
    deviceModel('edu'),
    deviceModel('copy'),
    deviceModel('nvme', { size: 2 ** 20 }),
  ]);
  let failed: DmaError | undefined;
  const server = serve(platform, {
    socketPath,
    model,
    maxDmaMaps: random.pick([3, 100, 65535]),
    handshakeTimeoutMs: 200,
    dmaTimeoutMs: 50,
    onEvent: (event) => {
      if (event.kind === 'failed') failed = event.error;
    },
  });
  try {
    while (report.messages < until) {
      await talkToServer(platform, random, arsenal, socketPath, report);
      report.conversations++;
    }
    await probe(platform, socketPath);
    assert.equal(failed, undefined);
  } finally {
    await server.close();
  }
}

/** A well-behaved client gets in and is answered. */
async function probe(platform: Platform, socketPath: string): Promise<void> {
  let last: unknown;
  // The adversary's end may still be on its way out.
  for (let n = 0; n < 200; n++) {
    try {
      const client = await VfioUserClient.connect(platform, socketPath, { handshakeTimeoutMs: 2000 });
      const header = new Uint8Array(4);
      await client.regionReadAsync(7, 0, header);
      assert.notEqual(m.get32(header, 0), 0);
      client.close();
      await turn();
      return;
    } catch (error) {
      last = error;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
  throw new Error('the server does not answer any more', { cause: last });
}

async function talkToServer(
  platform: Platform,
  random: Random,
  arsenal: Arsenal,
  socketPath: string,
  report: FuzzReport,
): Promise<void> {
  const out = new Uint8Array(2 ** 17);
  const changes = random.pick([5, 50, 1000]);
  const quietly = random.oneIn(10);
  const adversary = new Adversary(platform, random, platform.sockets.connect(socketPath), (message) => {
    if (!isCommand(message)) {
      if ((message.flags & m.FLAG.ERROR) === 0) report.answered++;
      else report.refused++;
      return;
    }
    if (quietly) return;
    // The device asks for memory.
    const { iova, count } = m.decodeDmaAccess(message);
    const size =
      message.command === m.COMMAND.DMA_READ && count < 65536
        ? m.encodeDmaReadReply(out, message, iova, new Uint8Array(count))
        : m.encodeDmaWriteReply(out, message, { iova, count });
    send(out.slice(0, size), []);
  });
  const send = (bytes: Uint8Array, fds: readonly number[]): void => {
    report.messages++;
    adversary.send(
      random.oneIn(changes) ? mutate(random, bytes) : bytes,
      random.oneIn(changes * 4) ? arsenal.some(20) : fds,
    );
  };
  try {
    if (!random.oneIn(20)) {
      const twinSocket = random.oneIn(2) ? { fdIndex: undefined } : undefined;
      const capabilities = {
        ...m.DEFAULT_CAPABILITIES,
        maxMsgFds: random.pick([0, 1, 8]),
        maxDataXferSize: random.pick([1, 100, 4096, 2 ** 20]),
        twinSocket,
      };
      const payload = m.encodeVersion({ major: 0, minor: random.below(3), capabilities });
      out.set(payload, m.HEADER_SIZE);
      send(out.slice(0, m.putCommand(out, 1, m.COMMAND.VERSION, payload.length)), []);
    }
    // Some begin with all the memory that a device needs to get going.
    const start = random.below(4);
    if (start > 1)
      send(out.slice(0, m.encodeDmaMap(out, 2, 0, 65536, 'read-write', 0)), start === 2 ? [] : [arsenal.memory]);
    for (let left = random.below(200); left > 0 && adversary.alive; left--) {
      if (random.oneIn(300)) {
        report.messages++;
        adversary.send(random.bytes(1 + random.below(200)), arsenal.some(3));
      } else {
        const { size, fds } = clientMessage(random, arsenal, out);
        send(out.slice(0, size), fds);
      }
      if (random.oneIn(4)) {
        await turn();
        if (!quietly) adversary.listen();
      }
    }
    await turn();
    adversary.listen();
  } finally {
    adversary.close();
  }
  await turn();
}

/** A valid command with arguments that are likely to hurt. */
function clientMessage(random: Random, arsenal: Arsenal, out: Uint8Array): { size: number; fds: readonly number[] } {
  const id = random.below(65536);
  const iova = (): number => (random.oneIn(4) ? random.pick(ADDRESSES) : random.below(9) * 4096);
  const length = (): number => (random.oneIn(4) ? random.pick(NUMBERS) : random.pick([4096, 8192, 32768]));
  switch (random.below(12)) {
    case 0:
      return { size: m.encodeDmaUnmap(out, id, iova(), length()), fds: [] };
    case 1: {
      const size = m.encodeDmaUnmap(out, id, 0, 0);
      m.put32(out, 20, random.below(4));
      return { size, fds: [] };
    }
    case 2:
      return { size: m.encodeDeviceInfoRequest(out, id), fds: [] };
    case 3:
      return {
        size: m.encodeRegionInfoRequest(out, id, random.below(11), random.pick([0, 32, 64, 4096, 2 ** 32 - 1])),
        fds: [],
      };
    case 4: {
      out.fill(0, 16, 32);
      m.put32(out, 16, 16);
      m.put32(out, 24, random.below(12));
      return {
        size: m.putCommand(out, id, random.pick([m.COMMAND.GET_REGION_IO_FDS, m.COMMAND.GET_IRQ_INFO]), 16),
        fds: [],
      };
    }
    case 5: {
      const count = random.below(6);
      const data = random.pick(['none', 'eventfd', random.bytes(count)] as const);
      const action = random.pick(['mask', 'unmask', 'trigger', 'trigger'] as const);
      const irqs = { index: random.below(6), start: random.pick([0, 0, 0, 1, 5, 2 ** 32 - 1]), count, action, data };
      const fds = data === 'eventfd' && !random.oneIn(4) ? Array.from({ length: count }, () => arsenal.event) : [];
      return { size: m.encodeSetIrqs(out, id, irqs), fds };
    }
    case 6:
      return {
        size: m.encodeRegionRead(
          out,
          id,
          random.pick([0, 0, 7, random.below(10)]),
          random.pick(ADDRESSES),
          random.pick(NUMBERS),
        ),
        fds: [],
      };
    case 7:
    case 8: {
      const bytes = random.bytes(random.pick([0, 1, 4, 8, 8, 8, 64, 300]));
      const offset = random.oneIn(8)
        ? random.pick(ADDRESSES)
        : random.oneIn(2)
          ? random.below(32) * 8
          : random.below(65536);
      return {
        size: m.encodeRegionWrite(out, id, random.pick([0, 0, 0, 7, random.below(10)]), offset, bytes, random.oneIn(8)),
        fds: [],
      };
    }
    case 9:
      return { size: m.putCommand(out, id, random.oneIn(2) ? m.COMMAND.RESET : random.below(30), 0), fds: [] };
    default: {
      const access = random.pick(['read', 'write', 'read-write', 'read-write'] as const);
      const size = m.encodeDmaMap(
        out,
        id,
        iova(),
        length(),
        access,
        random.oneIn(4) ? random.pick(NUMBERS) : random.below(4) * 4096,
      );
      return { size, fds: random.oneIn(3) ? [] : random.oneIn(12) ? arsenal.some(2) : [arsenal.memory] };
    }
  }
}

async function attackClient(platform: Platform, random: Random, arsenal: Arsenal, report: FuzzReport): Promise<void> {
  report.conversations++;
  const out = new Uint8Array(2 ** 21);
  const [ours, theirs] = platform.sockets.pair();
  // Some adversaries wait with their tricks until the client trusts them.
  let politeFor = random.pick([0, 3, 16, 20, 40]);
  const changes = random.pick([2, 8, 40, 1000]);
  const version = m.encodeVersion({
    major: 0,
    minor: random.below(2),
    capabilities: {
      ...m.DEFAULT_CAPABILITIES,
      maxMsgFds: random.pick([0, 1, 8]),
      maxDataXferSize: random.pick([1, 64, 4096, 2 ** 20]),
      twinSocket: random.oneIn(6) ? { fdIndex: random.below(2) } : undefined,
    },
  });
  const twin = random.oneIn(6);
  const adversary = new Adversary(platform, random, theirs, (message) => {
    if (!isCommand(message)) {
      if ((message.flags & m.FLAG.ERROR) === 0) report.answered++;
      else report.refused++;
      return;
    }
    const polite = politeFor-- > 0;
    if (!polite && random.oneIn(changes * 2)) return;
    if (!polite && random.oneIn(6)) {
      // It asks for memory before it answers, in ways good and bad.
      const iova = random.pick(ADDRESSES);
      const size = random.oneIn(2)
        ? m.encodeDmaRead(out, random.below(4), iova, random.pick(NUMBERS))
        : m.encodeDmaWrite(out, random.below(4), iova, random.bytes(random.below(100)));
      send(polite, out.slice(0, size), []);
    }
    const size = serverReply(random, message, out, version);
    if (size === 0) return;
    const withFd = message.command === m.COMMAND.GET_REGION_INFO && random.oneIn(3);
    send(
      polite,
      out.slice(0, size),
      message.command === m.COMMAND.VERSION && twin ? arsenal.some(2) : withFd ? [arsenal.memory] : [],
    );
  });
  const send = (polite: boolean, bytes: Uint8Array, fds: readonly number[]): void => {
    report.messages++;
    adversary.send(
      !polite && random.oneIn(changes) ? mutate(random, bytes) : bytes,
      !polite && random.oneIn(changes * 4) ? arsenal.some(20) : fds,
    );
  };
  const watch = platform.readiness.watch(theirs, { readable: true }, () => {
    if (adversary.alive) adversary.listen();
    if (!adversary.alive) watch.close();
  });
  let client: VfioUserClient | undefined;
  try {
    client = await VfioUserClient.attach(platform, ours, {
      handshakeTimeoutMs: 8,
      timeoutMs: 5,
      dmaTarget: (_iova, length) => (random.oneIn(2) ? new Uint8Array(length) : 'EFAULT'),
    });
    for (let left = random.below(60); left > 0; left--) {
      const call = clientCall(random, arsenal, client, platform.name === 'in memory');
      try {
        await call();
        report.callsDone++;
      } catch (error) {
        assert.ok(error instanceof DmaError, String(error));
        report.callsFailed++;
        if (client.failure !== undefined && random.oneIn(3)) break;
      }
      if (random.oneIn(200)) adversary.send(random.bytes(1 + random.below(100)), arsenal.some(3));
    }
  } catch (error) {
    assert.ok(error instanceof DmaError, String(error));
    report.callsFailed++;
  } finally {
    client?.close();
    watch.close();
    adversary.close();
  }
  await turn();
}

/** A good reply to the client's command; 0 when it wants none. */
export function serverReply(random: Random, message: m.Message, out: Uint8Array, version: Uint8Array): number {
  const { id, command, payload } = message;
  if (random.oneIn(20) && command > m.COMMAND.GET_INFO) return m.putErrorReply(out, id, command, 'EINVAL');
  switch (command) {
    case m.COMMAND.VERSION:
      out.set(version, m.HEADER_SIZE);
      return m.putReply(out, id, command, version.length);
    case m.COMMAND.GET_INFO:
      return m.encodeDeviceInfo(out, id, { resettable: true, pci: true, regionCount: 9, interruptKinds: 5 });
    case m.COMMAND.GET_REGION_INFO:
      return m.encodeRegionInfo(
        out,
        id,
        {
          index: m.get32(payload, 8),
          size: 65536,
          readable: true,
          writable: true,
          mappable: random.oneIn(2),
          fdOffset: random.pick([0, 0, 4096, ...ADDRESSES.filter((address) => address < 2 ** 52)]),
          areas: Array.from({ length: random.below(4) }, () => ({ offset: random.below(16) * 4096, length: 4096 })),
          argsz: 0,
        },
        m.get32(payload, 0),
      );
    case m.COMMAND.GET_IRQ_INFO:
      return m.encodeIrqInfo(out, id, {
        index: 0,
        count: random.below(9),
        eventfd: true,
        maskable: false,
        automasked: false,
      });
    case m.COMMAND.REGION_READ:
    case m.COMMAND.REGION_WRITE:
      return (message.flags & m.FLAG.NO_REPLY) !== 0
        ? 0
        : m.encodeRegionReply(out, message, m.decodeRegionAccess(message));
    case m.COMMAND.DMA_UNMAP:
      out.set(payload.subarray(0, m.DMA_UNMAP_SIZE), m.HEADER_SIZE);
      return m.putReply(out, id, command, m.DMA_UNMAP_SIZE);
    default:
      return m.putReply(out, id, command, 0);
  }
}

/** A call of the client's user. Blocking calls need the adversary in another thread, or both ends in memory. */
function clientCall(random: Random, arsenal: Arsenal, client: VfioUserClient, mayBlock: boolean): () => unknown {
  const region = random.pick([0, 0, 3, 7, 12]);
  const offset = random.below(70_000);
  const bytes = new Uint8Array(random.pick([1, 4, 8, 100]));
  const blocking = mayBlock && random.oneIn(2);
  const iova = random.pick(ADDRESSES);
  const length = random.pick([4096, 65536]);
  switch (random.below(8)) {
    case 0:
      return blocking
        ? () => client.regionRead(region, offset, bytes)
        : () => client.regionReadAsync(region, offset, bytes);
    case 1:
      return blocking
        ? () => client.regionWrite(region, offset, bytes)
        : () => client.regionWriteAsync(region, offset, bytes);
    case 2: {
      const backing = random.oneIn(3) ? undefined : { fd: arsenal.memory, offset: 0 };
      const request = { iova, length, access: 'read-write', backing } as const;
      return blocking ? () => client.dmaMap(request) : () => client.dmaMapAsync(request);
    }
    case 3:
      return blocking ? () => client.dmaUnmap(iova, length) : () => client.dmaUnmapAsync(iova, length);
    case 4: {
      const eventfds = Array.from({ length: random.below(10) }, () => arsenal.event);
      const request = { index: random.below(6), action: 'trigger', eventfds } as const;
      return blocking ? () => client.setInterrupts(request) : () => client.setInterruptsAsync(request);
    }
    case 5:
      return blocking ? () => client.reset() : () => client.resetAsync();
    case 6:
      return () => client.regionWrite(region, offset, bytes, { posted: true });
    default:
      // Where it is not mapped this blocks.
      return mayBlock
        ? () => client.registers(region).read32(random.below(20_000) * 4)
        : () => Promise.all([client.regionReadAsync(region, offset, bytes), client.resetAsync()]);
  }
}
