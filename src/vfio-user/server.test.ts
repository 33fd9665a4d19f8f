import assert from 'node:assert/strict';
import { ftruncateSync } from 'node:fs';
import { test } from 'node:test';
import { DmaError, isDmaError } from '../errors.js';
import type { ErrorCode } from '../errors.js';
import { loadLibc } from '../platform/linux/libc.js';
import { openPlatform } from '../platform/open.js';
import { F_GETFL, O_NONBLOCK } from '../platform/uapi/fcntl.js';
import { until } from '../../test/shared/until.js';
import { trackingPlatform } from '../../test/fakes/platform/platforms.js';
import type { TrackingPlatform } from '../../test/fakes/platform/platforms.js';
import { Channel } from './channel.js';
import { isCommand } from './framing.js';
import type { DeviceModel, ModelHost } from './devices/model.js';
import * as m from './messages.js';
import { hugePagesForTest } from '../../test/shared/real-hugepages.js';
import { DmaTable } from './dma-table.js';
import { serve } from './server.js';
import type { Server, ServeOptions } from './server.js';
import { inMemoryPlatform } from '../../test/fakes/vfio-user/sockets.js';
import type { InMemoryPlatform } from '../../test/fakes/vfio-user/sockets.js';

const skip = openPlatform().limitation ?? false;

/** A device whose every move is a test's. */
class TestModel implements DeviceModel {
  readonly name = 'test';
  readonly identity = { vendor: 1, device: 2, subsystemVendor: 3, subsystem: 4, revision: 5, classCode: 0x060708 };
  readonly regions = [
    { index: 0, size: 4096 },
    { index: 2, size: 16384, memory: [{ offset: 4096, length: 8192 }] },
  ];
  interrupts = { intx: 1, msi: 4, msix: 20 };
  log: string[] = [];
  bytes = new Uint8Array(16384);
  running: Promise<void> | undefined;

  constructor(readonly host: ModelHost) {}

  read(region: number, offset: number, into: Uint8Array): void {
    this.log.push(`read ${region} ${offset} ${into.length}`);
    into.set(this.bytes.subarray(offset, offset + into.length));
  }

  write(region: number, offset: number, from: Uint8Array): void {
    this.log.push(`write ${region} ${offset} ${from.length}`);
    this.bytes.set(from, offset);
    if (region === 0 && offset === 100) throw new Error('a model with a bug');
  }

  reset(): void {
    this.log.push('reset');
  }

  quiesce(): Promise<void> | undefined {
    this.log.push('quiesce');
    return this.running;
  }

  resume(): void {
    this.log.push('resume');
  }
}

interface Reply {
  readonly command: number;
  /** the name of the error, or undefined */
  readonly error: ErrorCode | undefined;
  readonly payload: Uint8Array;
  readonly fds: number[];
}

/** A client that sends what a test wants. */
class RawClient {
  readonly channel: Channel;
  readonly replies: Reply[] = [];
  /** What the device asked for. */
  readonly asked: m.Message[] = [];
  twin: Channel | undefined;
  closed: DmaError | undefined;
  readonly out = new Uint8Array(2 ** 21);

  constructor(
    readonly platform: InMemoryPlatform & TrackingPlatform,
    fd: number,
  ) {
    this.channel = this.#open(fd);
  }

  #open(fd: number): Channel {
    return new Channel(this.platform, fd, {
      onMessage: (message) => {
        if (isCommand(message)) {
          this.asked.push({ ...message, payload: message.payload.slice() });
          return;
        }
        this.replies.push({
          command: message.command,
          error: m.errorOfReply(message)?.code,
          payload: message.payload.slice(),
          fds: message.fds.splice(0),
        });
      },
      onClose: (error) => (this.closed = error),
    });
  }

  /** Sends `size` bytes of `out`. */
  post(size: number, fds: readonly number[] = []): void {
    assert.ok(this.channel.send(this.out.subarray(0, size), fds));
    this.platform.run();
  }

  /** As `post`, and returns the one reply. */
  ask(size: number, fds: readonly number[] = []): Reply {
    this.replies.length = 0;
    this.post(size, fds);
    assert.equal(this.replies.length, 1, `one reply; closed: ${String(this.closed)}`);
    return this.replies[0];
  }

  version(capabilities: Partial<m.Capabilities> = {}, minor = 1): m.Version {
    const payload = m.encodeVersion({ major: 0, minor, capabilities: { ...m.DEFAULT_CAPABILITIES, ...capabilities } });
    this.out.set(payload, 16);
    const reply = this.ask(m.putCommand(this.out, 1, m.COMMAND.VERSION, payload.length));
    assert.equal(reply.error, undefined);
    assert.ok(reply.payload.length + m.HEADER_SIZE <= 214);
    if (reply.fds.length > 0) this.twin = this.#open(reply.fds.splice(0)[0]);
    return m.decodeVersion({ id: 0, flags: 1, errno: 0, ...reply });
  }

  map(
    iova: number,
    length: number,
    access: 'read' | 'write' | 'read-write',
    fd?: number,
    offset = 0,
  ): ErrorCode | undefined {
    return this.ask(m.encodeDmaMap(this.out, 2, iova, length, access, offset), fd === undefined ? [] : [fd]).error;
  }

  unmap(iova: number, length: number): Reply {
    return this.ask(m.encodeDmaUnmap(this.out, 3, iova, length));
  }

  close(): void {
    const reason = new DmaError({ code: 'ECONNABORTED', operation: 'test', reason: 'the test ends' });
    this.channel.close(reason);
    this.twin?.close(reason);
    for (const { fds } of this.replies) for (const fd of fds) this.platform.files.close(fd);
  }
}

interface World {
  readonly platform: InMemoryPlatform & TrackingPlatform;
  readonly server: Server;
  readonly model: TestModel;
  readonly events: string[];
  connect(): RawClient;
  memfd(length: number, sealed?: boolean): number;
}

/** Runs `story` with a server, and checks that nothing is left behind. */
async function withServer(
  options: Partial<ServeOptions>,
  story: (world: World) => void | Promise<void>,
): Promise<void> {
  const memory = inMemoryPlatform(openPlatform());
  const platform = { ...trackingPlatform(memory), run: memory.run };
  let model: TestModel | undefined;
  const events: string[] = [];
  const server = serve(platform, {
    socketPath: '/test',
    model: (host) => (model = new TestModel(host)),
    onEvent: (event) => events.push(event.kind === 'disconnected' ? `disconnected ${event.error.code}` : event.kind),
    ...options,
  });
  assert.ok(model !== undefined);
  const fds: number[] = [];
  const clients: RawClient[] = [];
  await story({
    platform,
    server,
    model,
    events,
    connect: () => {
      const client = new RawClient(platform, platform.sockets.connect('/test'));
      clients.push(client);
      platform.run();
      return client;
    },
    memfd: (length, sealed) => {
      const fd = platform.memory.memfd({ name: 'test', length, sealed });
      fds.push(fd);
      return fd;
    },
  });
  for (const client of clients) client.close();
  for (const fd of fds) platform.files.close(fd);
  platform.run();
  await server.close();
  await server.closed;
  assert.deepEqual(platform.leaks(), []);
}

const options = { skip };

/** Makes a file shorter, if that can still be done. */
function truncated(fd: number): void {
  try {
    ftruncateSync(fd, 0);
  } catch {
    // It is sealed.
  }
}

test('VERSION: the smaller minor, few capabilities, a twin socket when it is wanted', options, () =>
  withServer({ maxDmaMaps: 7 }, ({ connect }) => {
    let client = connect();
    let version = client.version({ maxMsgFds: 8, twinSocket: { fdIndex: undefined } }, 5);
    assert.equal(version.minor, 1);
    assert.deepEqual(version.capabilities, {
      maxMsgFds: 16,
      maxDataXferSize: 2 ** 20,
      maxDmaMaps: 7,
      pgsizes: 4096,
      twinSocket: { fdIndex: 0 },
    });
    assert.ok(client.twin !== undefined);
    // A second one is refused, and changes nothing.
    client.out.set(m.encodeVersion({ major: 0, minor: 1, capabilities: m.DEFAULT_CAPABILITIES }), 16);
    assert.equal(client.ask(m.putCommand(client.out, 1, 1, 4)).error, 'EINVAL');
    assert.equal(client.ask(m.encodeDeviceInfoRequest(client.out, 9)).error, undefined);
    client.close();
    client = connect();
    version = client.version({ maxMsgFds: 0, twinSocket: { fdIndex: undefined } }, 0);
    assert.equal(version.minor, 0);
    assert.equal(version.capabilities.twinSocket, undefined);
  }),
);

test('without a version there is an error, and then the end', options, () =>
  withServer({}, ({ connect, events }) => {
    for (const prepare of [
      (out: Uint8Array) => m.encodeDeviceInfoRequest(out, 1),
      (out: Uint8Array) => m.putCommand(out, 1, m.COMMAND.RESET, 0),
      (out: Uint8Array) => {
        out.set([1, 0, 0, 0], 16);
        return m.putCommand(out, 1, m.COMMAND.VERSION, 4);
      },
      (out: Uint8Array) => {
        out.set([0, 0, 1, 0, 0x7b], 16);
        return m.putCommand(out, 1, m.COMMAND.VERSION, 5);
      },
    ]) {
      const client = connect();
      assert.equal(client.ask(prepare(client.out)).error, 'EINVAL');
      assert.ok(isDmaError(client.closed, 'ECONNRESET'));
    }
    assert.equal(events.filter((event) => event === 'connected').length, 4);
  }),
);

test('a client that never speaks has to go', options, () =>
  withServer({ handshakeTimeoutMs: 20 }, async ({ connect, platform, events }) => {
    const silent = connect();
    await new Promise((resolve) => setTimeout(resolve, 60));
    platform.run();
    assert.ok(silent.closed !== undefined);
    assert.ok(events.includes('disconnected ETIMEDOUT'));
    connect().version();
  }),
);

test('one client at a time', options, () =>
  withServer({}, ({ connect, events }) => {
    const first = connect();
    first.version();
    const second = connect();
    assert.ok(isDmaError(second.closed, 'ECONNRESET'));
    assert.deepEqual(events, ['connected', 'refused']);
    first.close();
    connect().version();
  }),
);

test('information', options, () =>
  withServer({}, ({ connect, platform }) => {
    const client = connect();
    client.version();
    const decode = (reply: Reply): m.Message => ({ id: 0, flags: 1, errno: 0, ...reply });
    assert.deepEqual(m.decodeDeviceInfo(decode(client.ask(m.encodeDeviceInfoRequest(client.out, 1)))), {
      resettable: true,
      pci: true,
      regionCount: 9,
      interruptKinds: 5,
    });
    const region = (index: number, argsz = 4096): m.RegionDescription & { fds: number } => {
      const reply = client.ask(m.encodeRegionInfoRequest(client.out, 1, index, argsz));
      for (const fd of reply.fds) platform.files.close(fd);
      return { ...m.decodeRegionInfo(decode(reply)), fds: reply.fds.splice(0).length };
    };
    assert.equal(region(0).size, 4096);
    assert.equal(region(0).mappable, false);
    assert.equal(region(1).size, 0);
    assert.deepEqual(region(2).areas, [{ offset: 4096, length: 8192 }]);
    assert.equal(region(2).fds, 1);
    assert.deepEqual([region(2, 32).fds, region(2, 32).argsz], [0, 64]);
    assert.equal(region(5).size, 4096, 'the MSI-X table');
    assert.equal(region(7).size, 256);
    assert.equal(client.ask(m.encodeRegionInfoRequest(client.out, 1, 9, 4096)).error, 'EINVAL');
    const irqs = [0, 1, 2, 3, 4].map((i) =>
      m.decodeIrqInfo(decode(client.ask(m.encodeIrqInfoRequest(client.out, 1, i)))),
    );
    assert.deepEqual(
      irqs.map(({ count, eventfd }) => [count, eventfd]),
      [
        [1, true],
        [4, true],
        [20, true],
        [1, true],
        [1, true],
      ],
    );
    assert.equal(client.ask(m.encodeIrqInfoRequest(client.out, 1, 5)).error, 'EINVAL');
    client.out.fill(0, 16, 32);
    client.out[16] = 16;
    assert.equal(
      m.get32(client.ask(m.putCommand(client.out, 1, 6, 16)).payload, 12),
      0,
      'no descriptors for registers',
    );
  }),
);

test('regions: the model, plain memory and the border between them', options, () =>
  withServer({}, ({ connect, model, platform }) => {
    const client = connect();
    client.version();
    const write = (region: number, offset: number, bytes: number[]): ErrorCode | undefined =>
      client.ask(m.encodeRegionWrite(client.out, 1, region, offset, Uint8Array.from(bytes), false)).error;
    const read = (region: number, offset: number, count: number): number[] => [
      ...client.ask(m.encodeRegionRead(client.out, 1, region, offset, count)).payload.subarray(16),
    ];
    model.log = [];
    assert.equal(write(2, 4094, [1, 2, 3, 4]), undefined);
    assert.equal(write(2, 12286, [5, 6, 7, 8]), undefined);
    assert.deepEqual(read(2, 4094, 4), [1, 2, 3, 4]);
    assert.deepEqual(read(2, 12286, 4), [5, 6, 7, 8]);
    assert.deepEqual(model.log, ['write 2 4094 2', 'write 2 12288 2', 'read 2 4094 2', 'read 2 12288 2']);
    assert.deepEqual([...model.host.regionMemory(2, 4096).subarray(0, 2)], [3, 4]);
    const { fds } = client.ask(m.encodeRegionInfoRequest(client.out, 1, 2, 4096));
    const there = new Uint8Array(2);
    platform.files.readAt(fds[0], 4096, there);
    assert.deepEqual([...there], [3, 4]);
    platform.files.close(fds.splice(0)[0]);
    assert.deepEqual(read(0, 0, 0), []);
    for (const [region, offset, count] of [
      [0, 4093, 4],
      [0, 4096, 1],
      [1, 0, 1],
      [9, 0, 1],
      [0, 2 ** 53, 1],
    ])
      assert.equal(client.ask(m.encodeRegionRead(client.out, 1, region, offset, count)).error, 'EINVAL');
    assert.equal(write(0, 100, [1]), 'EIO', 'a model that throws');
    // Posted: carried out, never answered, not even when it is wrong.
    client.replies.length = 0;
    client.post(m.encodeRegionWrite(client.out, 1, 0, 8, new Uint8Array([9]), true));
    client.post(m.encodeRegionWrite(client.out, 1, 0, 4096, new Uint8Array([9]), true));
    assert.equal(client.replies.length, 0);
    assert.deepEqual(read(0, 8, 1), [9]);
    assert.equal(write(5, 0, [1, 2]), undefined);
    assert.deepEqual(read(5, 0, 2), [1, 2]);
    const other = client.ask(m.putCommand(client.out, 1, 14, 0));
    assert.equal(other.error, 'EINVAL');
    assert.equal(client.ask(m.putCommand(client.out, 1, m.COMMAND.REGION_READ, 4)).error, 'EINVAL');
  }),
);

test('DMA regions: limits, overlaps, files', options, () =>
  withServer({ maxDmaMaps: 3 }, ({ connect, memfd, platform, model }) => {
    const client = connect();
    client.version();
    const fd = memfd(8192);
    assert.equal(client.map(0x1000, 0x2000, 'read-write', fd), undefined);
    assert.equal(client.map(0x2000, 0x2000, 'read-write', fd), 'EEXIST');
    assert.equal(client.map(0x1000, 0x2000, 'read-write', fd), 'EEXIST');
    assert.equal(client.map(0x3000, 0x3000, 'read-write', fd), 'EINVAL', 'past the end of the file');
    assert.equal(client.map(0x3000, 0x1000, 'read-write', fd, 8192), 'EINVAL');
    const [socket, peer] = platform.sockets.pair();
    const event = platform.events.create();
    assert.equal(client.map(0x3000, 0x1000, 'read', socket), 'EINVAL');
    assert.equal(client.map(0x3000, 0x1000, 'read', event), 'EINVAL');
    for (const each of [socket, peer, event]) platform.files.close(each);
    const self = platform.files.open(process.execPath, 'read');
    assert.equal(client.map(0x3000, 0x1000, 'read-write', self), 'EACCES');
    assert.equal(client.map(0x3000, 0x1000, 'read', self), undefined, 'a file that can only be read');
    platform.files.close(self);
    assert.equal(client.map(0x10000, 0x1000, 'write'), undefined);
    assert.equal(client.map(0x20000, 0x1000, 'write'), 'ENOSPC');
    const elf = new Uint8Array(4);
    assert.equal(model.host.dma.read(0x3000, elf), undefined);
    assert.deepEqual([...elf], [0x7f, 0x45, 0x4c, 0x46]);
    assert.equal(model.host.dma.direct(0x3000, 4, 'read'), undefined, 'it could be truncated');
    assert.equal(client.unmap(0x1000, 0x1000).error, 'ENOENT');
    assert.equal(client.unmap(0x2000, 0x1000).error, 'ENOENT');
    const echo = client.unmap(0x1000, 0x2000);
    assert.deepEqual([m.get64(echo.payload, 8), m.get64(echo.payload, 16)], [0x1000, 0x2000]);
    assert.equal(client.unmap(0x1000, 0x2000).error, 'ENOENT');
    m.encodeDmaUnmap(client.out, 3, 0, 0);
    m.put32(client.out, 20, 2);
    assert.equal(client.ask(40).error, undefined, 'all');
    assert.throws(
      () => model.host.dma.read(0x3000, elf),
      (error) => isDmaError(error, 'EFAULT'),
    );
  }),
);

test('the size of a client’s file is read once it is sealed', options, () =>
  withServer({}, ({ platform, connect, memfd, model }) => {
    const client = connect();
    client.version();
    const { status } = platform.files;
    platform.files.status = (fd) => {
      const seen = status(fd);
      // The client, which is faster.
      truncated(fd);
      return seen;
    };
    assert.equal(client.map(0, 8192, 'read-write', memfd(8192, false)), undefined);
    const there = model.host.dma.direct(4096, 4096, 'write');
    assert.ok(there !== undefined);
    there.fill(1);
    platform.files.status = status;
  }),
);

test('memory of a client that is not trusted is copied by calls, never sealed', options, () =>
  withServer({ untrusted: true }, ({ platform, connect, memfd, model }) => {
    const client = connect();
    client.version();
    const { dma } = model.host;
    const open = memfd(8192, false);
    const sealed = memfd(8192);
    assert.equal(client.map(0, 8192, 'read-write', open), undefined);
    assert.equal(client.map(8192, 8192, 'read-write', sealed), undefined);
    // Adding a seal waits for the lock of the inode, which the client can hold for ever.
    assert.equal(platform.files.sealedAgainstShrinking(open, false), false);
    assert.equal(dma.direct(0, 4096, 'write'), undefined);
    assert.ok(dma.direct(8192, 4096, 'write') !== undefined);
    const data = Uint8Array.from({ length: 8192 }, (_, i) => i * 3);
    assert.equal(dma.write(4096, data), undefined, 'into both');
    const back = new Uint8Array(8192);
    assert.equal(dma.read(4096, back), undefined);
    assert.deepEqual(back, data);
    platform.files.truncate(open, 4096);
    for (const access of [() => dma.read(4096, back), () => dma.write(4096, data)])
      assert.throws(access, (error) => isDmaError(error, 'EFAULT') && /taken pages out/.test(error.reason));
    assert.equal(dma.read(0, back.subarray(0, 4096)), undefined, 'the rest is there');
  }),
);

test('at the limit of descriptors it says so once, waits, and goes on', options, async () => {
  const memory = inMemoryPlatform(openPlatform());
  let left = 3;
  const accept = (fd: number): number | undefined => {
    if (left-- <= 0) return memory.sockets.accept(fd);
    throw new DmaError({ code: 'EMFILE', operation: 'accept4', reason: 'made to fail' });
  };
  const platform = { ...memory, sockets: { ...memory.sockets, accept } };
  const events: string[] = [];
  const server = serve(platform, {
    socketPath: '/full',
    model: (host) => new TestModel(host),
    onEvent: (event) => events.push(event.kind === 'failed' ? event.error.code : event.kind),
  });
  const fd = platform.sockets.connect('/full');
  // It would be called as often as the event loop turns, if it still listened.
  memory.run(100);
  assert.equal(left, 2);
  while (!events.includes('connected')) await new Promise((resolve) => setTimeout(resolve, 20));
  assert.deepEqual(events, ['EMFILE', 'connected']);
  platform.files.close(fd);
  await server.close();
});

test('hugepages of a client that is not trusted are copied, and EFAULT once it has taken them back', options, (t) => {
  const platform = openPlatform();
  const huge = hugePagesForTest(platform, 1);
  if (typeof huge === 'string') return t.skip(huge);
  const { memory, files } = platform;
  const { pageSize } = huge;
  const taken: number[] = [];
  try {
    const table = new DmaTable(platform, 8);
    const request = { iova: 0, length: pageSize, offset: 0, readable: true, writable: true };
    const fd = memory.memfd({ name: 'huge', length: pageSize, hugePageSize: pageSize });
    table.map(request, files.duplicate(fd));
    assert.equal(table.direct(0, 4096, 'write'), undefined);
    const bytes = new Uint8Array(64);
    assert.equal(table.write(8, bytes.fill(5)), undefined);
    assert.equal(table.read(8, bytes.fill(0)), undefined);
    assert.ok(bytes.every((byte) => byte === 5));
    files.punch(fd, 0, pageSize);
    // The last ones that are free, as long as they last.
    for (let isLast = false; !isLast;) {
      const other = memory.memfd({ name: 'taken', length: pageSize, hugePageSize: pageSize });
      taken.push(other);
      try {
        const va = memory.map({ fd: other, length: pageSize });
        try {
          memory.populate(va, pageSize);
        } finally {
          memory.unmap(va, pageSize);
        }
      } catch (error) {
        assert.ok(isDmaError(error, 'ENOMEM'), String(error));
        isLast = true;
      }
    }
    for (const access of [() => table.read(8, bytes), () => table.write(8, bytes)])
      assert.throws(access, (error) => isDmaError(error, 'EFAULT') && /taken pages out/.test(error.reason));
    table.clear();
    files.close(fd);
  } finally {
    for (const other of taken) files.close(other);
    huge.giveBack();
  }
});

test('the device’s accesses: whole ranges, permissions, borders, views that die', options, () =>
  withServer({}, ({ connect, memfd, model, platform }) => {
    const client = connect();
    client.version();
    const { dma } = model.host;
    const first = memfd(8192);
    const second = memfd(8192, false);
    assert.equal(client.map(0x1000, 0x1800, 'read-write', first, 0x200), undefined);
    assert.equal(client.map(0x2800, 0x1000, 'read-write', second, 0x1000), undefined);
    assert.equal(client.map(0x3800, 0x800, 'read', first), undefined);
    const fails = (code: ErrorCode) => (error: unknown) => isDmaError(error, code);
    const data = Uint8Array.from({ length: 0x1000 }, (_, i) => i * 7);
    assert.equal(dma.write(0x2000, data), undefined, 'across two regions');
    const back = new Uint8Array(0x1000);
    assert.equal(dma.read(0x2000, back), undefined);
    assert.deepEqual(back, data);
    platform.files.readAt(first, 0x1200, back.subarray(0, 0x800));
    assert.deepEqual(back.subarray(0, 0x800), data.subarray(0, 0x800));
    assert.equal(dma.direct(0x2000, 0x1000, 'read'), undefined);
    const view = dma.direct(0x2000, 0x100, 'write');
    assert.deepEqual(view, data.subarray(0, 0x100));
    for (const [at, length] of [
      [0xfff, 1],
      [0xfff, 2],
      [0x3fff, 2],
      [0x4000, 1],
      [2 ** 53 - 1, 1],
    ])
      assert.throws(() => dma.read(at, new Uint8Array(length)), fails('EFAULT'));
    const before = new Uint8Array(16);
    platform.files.readAt(second, 0x1ff0, before);
    assert.throws(() => dma.write(0x37f0, data.subarray(0, 0x20)), fails('EACCES'), 'not a byte was moved');
    const now = new Uint8Array(16);
    platform.files.readAt(second, 0x1ff0, now);
    assert.deepEqual(now, before);
    assert.equal(client.unmap(0x1000, 0x1800).error, undefined);
    assert.equal(view?.length, 0, 'the view is gone with the region');
  }),
);

test('by message: in pieces of the client’s size, on the twin socket, errors as they come', options, () =>
  withServer({}, async ({ connect, model, platform, memfd }) => {
    for (const twin of [true, false]) {
      const client = connect();
      client.version({ maxMsgFds: 1, maxDataXferSize: 1000, twinSocket: twin ? { fdIndex: undefined } : undefined });
      assert.equal(client.twin !== undefined, twin);
      const channel = client.twin ?? client.channel;
      const answer = (size: number): void => {
        channel.send(client.out.subarray(0, size));
        platform.run();
      };
      assert.equal(client.map(0x1000, 0x1000, 'read-write'), undefined);
      assert.equal(client.map(0x2000, 0x1000, 'read-write', memfd(4096)), undefined);
      const into = new Uint8Array(1500);
      const reading = model.host.dma.read(0x1000, into);
      assert.ok(reading !== undefined);
      platform.run();
      assert.deepEqual(m.decodeDmaAccess(client.asked[0]), { iova: 0x1000, count: 1000 });
      // Commands are served meanwhile.
      assert.equal(client.ask(m.encodeDeviceInfoRequest(client.out, 9)).error, undefined);
      answer(m.encodeDmaReadReply(client.out, client.asked[0], 0x1000, new Uint8Array(1000).fill(1)));
      await new Promise((resolve) => setImmediate(resolve));
      assert.deepEqual(m.decodeDmaAccess(client.asked[1]), { iova: 0x1000 + 1000, count: 500 });
      answer(m.encodeDmaReadReply(client.out, client.asked[1], 0x1000, new Uint8Array(500).fill(2)));
      await reading;
      assert.deepEqual([into[0], into[999], into[1000], into[1499]], [1, 1, 2, 2]);
      // A write that begins in messages and ends in a mapped region; the reply's count has 4 bytes, as in the specification.
      const writing = model.host.dma.write(0x1ff0, new Uint8Array(32).fill(5));
      platform.run();
      const asked = client.asked[2];
      assert.deepEqual([...asked.payload.subarray(16)], new Array<number>(16).fill(5));
      m.put64(client.out, 16, 0x1ff0);
      m.put32(client.out, 24, 16);
      answer(m.putReply(client.out, asked.id, asked.command, 12));
      await writing;
      assert.equal(model.host.dma.direct(0x2000, 16, 'read')?.[15], 5);
      const refused = model.host.dma.read(0x1000, new Uint8Array(4));
      platform.run();
      answer(m.putErrorReply(client.out, client.asked[3].id, m.COMMAND.DMA_READ, 'EFAULT'));
      await assert.rejects(refused ?? Promise.resolve(), (error) => isDmaError(error, 'EFAULT'));
      const lost = model.host.dma.read(0x1000, new Uint8Array(4));
      client.close();
      platform.run();
      await assert.rejects(lost ?? Promise.resolve(), (error) => isDmaError(error, 'ECONNRESET'));
      assert.throws(
        () => model.host.dma.read(0x1000, into),
        (error) => isDmaError(error, 'EFAULT'),
      );
    }
  }),
);

test('by message: in pieces that peers can send at once, whatever they announce', options, () =>
  withServer({}, async ({ connect, model, platform }) => {
    const client = connect();
    client.version({ maxMsgFds: 1, maxDataXferSize: 2 ** 20, twinSocket: undefined });
    assert.equal(client.map(0x100000, 2 ** 18, 'read'), undefined);
    const reading = model.host.dma.read(0x100000, new Uint8Array(2 ** 18));
    platform.run();
    assert.deepEqual(m.decodeDmaAccess(client.asked[0]), { iova: 0x100000, count: m.SAFE_TRANSFER });
    client.close();
    platform.run();
    await assert.rejects(reading ?? Promise.resolve(), (error) => isDmaError(error, 'ECONNRESET'));
  }),
);

test('an answer that was not asked for ends the connection', options, () =>
  withServer({}, async ({ connect, model, platform }) => {
    for (const wrong of ['not asked', 'command'] as const) {
      const client = connect();
      client.version();
      client.map(0, 4096, 'read-write');
      const reading = model.host.dma.read(0, new Uint8Array(8));
      platform.run();
      const { id } = client.asked[0];
      client.post(m.putReply(client.out, wrong === 'not asked' ? id + 1 : id, wrong === 'command' ? 12 : 11, 24));
      assert.ok(client.closed !== undefined, wrong);
      await assert.rejects(reading ?? Promise.resolve());
    }
  }),
);

test('an answer that is for less than the device asked for fails the access with EIO', options, () =>
  withServer({}, async ({ connect, model, platform }) => {
    const client = connect();
    client.version();
    client.map(0, 4096, 'read-write');
    for (const write of [true, false])
      for (const [count, size] of [
        [0, 16],
        [4, 16],
        [4, 20],
        [8, 20],
        [4, 24],
      ]) {
        if (write && count === 8) continue;
        const { dma } = model.host;
        const access = write ? dma.write(0, new Uint8Array(8)) : dma.read(0, new Uint8Array(8));
        platform.run();
        const asked = client.asked.at(-1);
        assert.ok(asked !== undefined && access !== undefined);
        const reply = m.putReply(client.out, asked.id, asked.command, size);
        m.put64(client.out, 16, 0);
        m.put64(client.out, 24, count);
        client.post(reply);
        await assert.rejects(access, (error) => isDmaError(error, 'EIO'));
      }
    assert.equal(client.closed, undefined);
  }),
);

test('what is refused of stores that are not answered is told to who serves, once a client', options, () =>
  withServer({}, ({ connect, events }) => {
    const client = connect();
    client.version();
    for (let n = 0; n < 3; n++) client.post(m.encodeRegionWrite(client.out, 4, 0, 4096, new Uint8Array(4), true));
    assert.deepEqual(client.replies.length, 1, 'only that to VERSION');
    assert.deepEqual(events, ['connected', 'rejected']);
  }),
);

test('who does not answer the device has to go', options, () =>
  withServer({ dmaTimeoutMs: 20 }, async ({ connect, model, events }) => {
    const client = connect();
    client.version();
    client.map(0, 4096, 'read-write');
    await assert.rejects(model.host.dma.read(0, new Uint8Array(8)) ?? Promise.resolve(), (error) =>
      isDmaError(error, 'ETIMEDOUT'),
    );
    assert.ok(events.includes('disconnected ETIMEDOUT'));
  }),
);

for (const twin of [true, false])
  test(`unmap and reset wait for the device, and what comes after waits for them (twin socket: ${twin})`, options, () =>
    withServer({}, async ({ connect, model, platform, memfd }) => {
      const client = connect();
      client.version({ twinSocket: twin ? { fdIndex: undefined } : undefined });
      client.map(0x1000, 0x1000, 'read-write', memfd(4096));
      client.map(0x2000, 0x1000, 'read-write');
      const into = new Uint8Array(4);
      model.running = model.host.dma.read(0x2000, into);
      client.replies.length = 0;
      client.post(m.encodeDmaUnmap(client.out, 5, 0x1000, 0x1000));
      client.post(m.encodeDmaMap(client.out, 6, 0x1000, 0x1000, 'read', 0), [memfd(4096)]);
      client.post(m.putCommand(client.out, 7, m.COMMAND.RESET, 0));
      client.post(m.encodeDeviceInfoRequest(client.out, 8));
      assert.equal(client.replies.length, 0);
      assert.ok(model.host.dma.direct(0x1000, 4, 'read') !== undefined, 'still mapped');
      (client.twin ?? client.channel).send(
        client.out.subarray(0, m.encodeDmaReadReply(client.out, client.asked[0], 0x2000, new Uint8Array(4).fill(8))),
      );
      platform.run();
      while (client.replies.length < 4) await new Promise((resolve) => setImmediate(resolve));
      assert.deepEqual(
        client.replies.map(({ command, error }) => [command, error]),
        [
          [m.COMMAND.DMA_UNMAP, undefined],
          [m.COMMAND.DMA_MAP, undefined],
          [m.COMMAND.RESET, undefined],
          [m.COMMAND.GET_INFO, undefined],
        ],
      );
      assert.deepEqual([...into], [8, 8, 8, 8]);
      assert.equal(
        model.log.filter((line) => line === 'quiesce').length,
        model.log.filter((line) => line === 'resume').length,
      );
    }),
  );

test('a flood of commands behind one that waits is refused', options, () =>
  withServer({}, ({ connect, model, memfd }) => {
    const client = connect();
    client.version();
    client.map(0x1000, 0x1000, 'read-write');
    let finish = (): void => undefined;
    model.running = new Promise((resolve) => (finish = resolve));
    client.post(m.encodeDmaUnmap(client.out, 5, 0x1000, 0x1000));
    const fd = memfd(4096);
    for (let n = 0; n < 300 && client.closed === undefined; n++)
      client.post(m.encodeDmaMap(client.out, 6, 0x4000, 0x1000, 'read', 0), [fd]);
    assert.ok(client.closed !== undefined);
    finish();
  }),
);

test('interrupts: by kind, masked, triggered, and gone with the client', options, () =>
  withServer({}, async ({ connect, model, platform }) => {
    const client = connect();
    client.version();
    const fds = Array.from({ length: 4 }, () => platform.events.create());
    const set = (irqs: Partial<m.SetIrqs>, descriptors: readonly number[] = []): ErrorCode | undefined =>
      client.ask(
        m.encodeSetIrqs(client.out, 1, { index: 1, start: 0, count: 0, action: 'trigger', data: 'none', ...irqs }),
        descriptors,
      ).error;
    const counts = (): number[] => fds.map((fd) => platform.events.take(fd));
    model.host.interrupt(0);
    assert.equal(set({ index: 0, count: 1, data: 'eventfd' }, [fds[3]]), undefined);
    model.host.interrupt(2);
    assert.deepEqual(counts(), [0, 0, 0, 1], 'INTx is one pin');
    assert.equal(set({ start: 1, count: 3, data: 'eventfd' }, fds.slice(0, 3)), undefined);
    for (const vector of [0, 1, 2, 2, 3, 4, -1]) model.host.interrupt(vector);
    assert.deepEqual(counts(), [1, 2, 1, 0], 'MSI goes before INTx');
    assert.equal(set({ start: 1, count: 1, action: 'mask' }), undefined);
    model.host.interrupt(1);
    assert.deepEqual(counts(), [0, 0, 0, 0]);
    assert.equal(set({ start: 1, count: 1, action: 'unmask' }), undefined);
    assert.deepEqual(counts(), [1, 0, 0, 0], 'pending until then');
    assert.equal(set({ start: 0, count: 4, data: new Uint8Array([1, 0, 1, 1]) }), undefined);
    assert.deepEqual(counts(), [0, 1, 1, 0], 'triggered by the client');
    assert.equal(set({ start: 2, count: 1, data: 'eventfd' }), undefined, 'detached');
    model.host.interrupt(2);
    assert.deepEqual(counts(), [0, 0, 0, 0]);
    assert.equal(set({ start: 0 }), undefined, 'all off');
    model.host.interrupt(1);
    assert.deepEqual(counts(), [0, 0, 0, 1], 'back to INTx');
    // A second descriptor unmasks without a message.
    const unmask = platform.events.create();
    assert.equal(set({ index: 0, count: 1, action: 'unmask', data: 'eventfd' }, [unmask]), undefined);
    assert.equal(set({ index: 0, count: 1, action: 'mask' }), undefined);
    model.host.interrupt(0);
    assert.deepEqual(counts(), [0, 0, 0, 0]);
    platform.events.signal(unmask);
    let arrived = 0;
    await until(() => (arrived += counts()[3]) > 0);
    assert.equal(arrived, 1);
    platform.files.close(unmask);
    for (const [irqs, descriptors] of [
      [{ index: 5, count: 1 }, []],
      [{ start: 4, count: 1 }, []],
      [{ start: 0xffffffff, count: 1 }, []],
      [{ start: 0, count: 2, data: 'eventfd' as const }, [fds[0]]],
      [{ start: 0, count: 1 }, [fds[0]]],
      [{ start: 0, count: 1, action: 'mask' as const, data: 'eventfd' as const }, [fds[0]]],
    ] as const)
      assert.equal(set(irqs, descriptors), 'EINVAL', JSON.stringify(irqs));
    const memfd = platform.memory.memfd({ name: 'test', length: 4096 });
    assert.equal(set({ count: 1, data: 'eventfd' }, [memfd]), 'EINVAL');
    platform.files.close(memfd);
    // One that is full would block who writes to it; it is passed over.
    const full = platform.events.create();
    assert.equal(set({ count: 1, data: 'eventfd' }, [full]), undefined);
    model.host.interrupt(0);
    client.close();
    platform.run();
    model.host.interrupt(0);
    assert.equal(platform.events.take(full), 1);
    for (const fd of [...fds, full]) platform.files.close(fd);
  }),
);

test('eventfds of a client that is not trusted are not written to, which they could make wait', options, () => {
  const libc = loadLibc();
  assert.ok(typeof libc !== 'string');
  return withServer({ untrusted: true }, ({ connect, model, platform }) => {
    const client = connect();
    client.version();
    const fd = libc.eventfd(0, 0);
    const irqs = { index: 1, start: 0, count: 1, action: 'trigger', data: 'eventfd' } as const;
    assert.equal(client.ask(m.encodeSetIrqs(client.out, 1, irqs), [fd]).error, undefined);
    for (let n = 0; n < 100; n++) model.host.interrupt(0);
    assert.equal(platform.events.take(fd), 100);
    assert.equal(libc.fcntl(fd, F_GETFL, 0) & O_NONBLOCK, 0, 'it still waits for its own writers');
    platform.files.close(fd);
  });
});

test('who leaves descriptors that can not be closed is not served until they are', options, () =>
  withServer({ untrusted: true }, ({ connect, platform, events }) => {
    const memfd = platform.memory.memfd({ name: 'test', length: 4096 });
    let closing = 0;
    platform.files.closing = () => closing;
    const client = connect();
    client.version();
    closing = 64;
    assert.equal(client.map(0, 4096, 'read', memfd), undefined);
    closing = 65;
    client.post(m.encodeDmaMap(client.out, 1, 8192, 4096, 'read', 0), [memfd]);
    assert.ok(client.closed !== undefined);
    assert.ok(connect().closed !== undefined);
    assert.deepEqual(events, ['connected', 'disconnected EPROTO', 'refused']);
    closing = 0;
    connect().version();
    platform.files.close(memfd);
  }),
);

test('descriptors where none belong end the connection', options, () =>
  withServer({}, ({ connect, memfd }) => {
    const fd = memfd(4096);
    for (const [prepare, fds] of [
      [(out: Uint8Array) => m.encodeDeviceInfoRequest(out, 1), [fd]],
      [(out: Uint8Array) => m.encodeDmaMap(out, 1, 0, 4096, 'read', 0), [fd, fd]],
      [(out: Uint8Array) => m.encodeRegionRead(out, 1, 0, 0, 4), [fd]],
    ] as const) {
      const client = connect();
      client.version();
      client.post(prepare(client.out), fds);
      assert.ok(client.closed !== undefined);
    }
  }),
);

test('when the client dies, everything is taken back and the next one finds a new device', options, () =>
  withServer({}, async ({ connect, model, memfd, platform, events }) => {
    const client = connect();
    client.version();
    const event = platform.events.create();
    for (let n = 0; n < 50; n++)
      assert.equal(client.map(n * 4096, 4096, 'read-write', memfd(4096, n % 2 === 0)), undefined);
    client.ask(m.encodeSetIrqs(client.out, 1, { index: 2, start: 7, count: 1, action: 'trigger', data: 'eventfd' }), [
      event,
    ]);
    client.ask(m.encodeRegionWrite(client.out, 1, 2, 4096, new Uint8Array([1, 2, 3]), false));
    client.ask(m.encodeRegionWrite(client.out, 1, 7, 4, new Uint8Array([6]), false));
    // A transfer is running while it dies: the device is quiet before memory goes, and nobody is served until then.
    let finish = (): void => undefined;
    model.running = new Promise((resolve) => (finish = resolve));
    model.log = [];
    client.close();
    platform.run();
    const waiting = connect();
    assert.equal(waiting.closed, undefined, 'it waits');
    assert.deepEqual(model.log, ['quiesce']);
    assert.ok(model.host.dma.direct(0, 4, 'read') !== undefined);
    finish();
    await new Promise((resolve) => setImmediate(resolve));
    platform.run();
    assert.deepEqual(model.log, ['quiesce', 'reset', 'resume']);
    assert.deepEqual(events.slice(0, 2), ['connected', 'disconnected ECONNRESET']);
    model.running = undefined;
    waiting.version();
    assert.throws(
      () => model.host.dma.direct(0, 4, 'read'),
      (error) => isDmaError(error, 'EFAULT'),
    );
    assert.equal(model.host.regionMemory(2, 4096)[0], 0);
    assert.equal(waiting.ask(m.encodeRegionRead(waiting.out, 1, 7, 4, 1)).payload[16], 0);
    platform.files.close(event);
  }),
);

test('once: it ends with its first client', options, () =>
  withServer({ once: true }, async ({ connect, server }) => {
    const client = connect();
    client.version();
    client.close();
    await server.closed;
  }),
);

test('impossible servers are refused, and leave nothing', options, () => {
  const platform = trackingPlatform(inMemoryPlatform(openPlatform()));
  const model = (changes: Partial<DeviceModel>) => (host: ModelHost) => Object.assign(new TestModel(host), changes);
  for (const changes of [
    { regions: [{ index: 6, size: 4096 }] },
    { regions: [{ index: 0, size: 5000 }] },
    { regions: [{ index: 0, size: 4096, memory: [{ offset: 100, length: 4096 }] }] },
    {
      regions: [
        {
          index: 0,
          size: 8192,
          memory: [
            { offset: 0, length: 4096 },
            { offset: 8192, length: 4096 },
          ],
        },
      ],
    },
    { interrupts: { intx: 0, msi: 0, msix: 5000 } },
    { regions: [0, 1, 2, 3, 4, 5].map((index) => ({ index, size: 4096 })) },
  ])
    assert.throws(
      () => serve(platform, { socketPath: '/x', model: model(changes) }),
      (error) => isDmaError(error, 'EINVAL'),
      JSON.stringify(changes),
    );
  for (const maxDmaMaps of [0, 65536, 1.5])
    assert.throws(
      () => serve(platform, { socketPath: '/x', model: model({}), maxDmaMaps }),
      (e) => isDmaError(e, 'EINVAL'),
    );
  assert.deepEqual(platform.leaks(), []);
});

test('configuration space: identity, sizing, capabilities', options, () =>
  withServer({}, ({ connect }) => {
    const client = connect();
    client.version();
    const read = (offset: number, count: number): number => {
      const { payload } = client.ask(m.encodeRegionRead(client.out, 1, 7, offset, count));
      return count === 1 ? payload[16] : count === 2 ? m.get16(payload, 16) : m.get32(payload, 16);
    };
    const write = (offset: number, value: number): void => {
      const bytes = new Uint8Array(4);
      m.put32(bytes, 0, value);
      client.ask(m.encodeRegionWrite(client.out, 1, 7, offset, bytes, false));
    };
    assert.equal(read(0, 4), 0x00020001);
    assert.equal(read(8, 4), 0x06070805);
    assert.equal(read(0x2c, 4), 0x00040003);
    assert.equal(read(0x3d, 1), 1);
    for (let bar = 0; bar < 6; bar++) write(0x10 + bar * 4, 0xffffffff);
    assert.deepEqual(
      [0, 1, 2, 3, 4, 5].map((bar) => read(0x10 + bar * 4, 4)),
      [0xfffff000, 0, 0xffffc000, 0, 0, 0xfffff000],
    );
    write(4, 0xffffffff);
    assert.equal(read(4, 4), 0x00100547);
    write(0, 0);
    assert.equal(read(0, 4), 0x00020001);
    const seen: number[] = [];
    for (let at = read(0x34, 1); at !== 0; at = read(at + 1, 1)) seen.push(read(at, 1));
    assert.deepEqual(seen, [5, 0x11]);
    const msix = read(read(0x34, 1) + 1, 1);
    assert.equal(read(msix + 2, 2), 19);
    assert.equal(read(msix + 4, 4), 5);
    assert.equal(read(msix + 8, 4), 320 | 5);
    assert.equal(client.ask(m.putCommand(client.out, 1, m.COMMAND.RESET, 0)).error, undefined);
    assert.equal(read(4, 4), 0x00100000);
  }),
);
