import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { ftruncateSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { dmaError } from '../../test/shared/errors.js';
import { DmaError, isDmaError } from '../errors.js';
import type { ErrorCode } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import type { Platform } from '../platform/ports.js';
import { trackingPlatform } from '../../test/fakes/platform/platforms.js';
import type { TrackingPlatform } from '../../test/fakes/platform/platforms.js';
import { VfioUserClient } from './client.js';
import type { ClientOptions } from './client.js';
import { spawnDevice } from './device-process.js';
import type { DeviceProcess } from './device-process.js';
import { deviceModel } from './devices/catalog.js';
import {
  COMMAND,
  DEFAULT_CAPABILITIES,
  FLAG,
  encodeDmaRead,
  encodeDmaWrite,
  encodeVersion,
  get32,
  get64,
  putCommand,
  put32,
  put64,
} from './messages.js';
import { serve } from './server.js';
import type { Message } from './messages.js';
import { FakeServer, type Script } from '../../test/fakes/vfio-user/server.js';

const skip = openPlatform().limitation ?? false;

/** A client of a fake server, both in this thread. */
async function ofFakeServer(
  script: Script = () => undefined,
  options: ClientOptions = {},
  prepare: (server: FakeServer) => void = () => undefined,
  /** Does the server answer while a call blocks this thread? */
  served = false,
  base = openPlatform(),
): Promise<{ platform: TrackingPlatform; server: FakeServer; client: VfioUserClient; end: () => void }> {
  const platform = trackingPlatform(base);
  const [a, b] = platform.sockets.pair();
  const server = new FakeServer(platform, b, script, served);
  prepare(server);
  const end = (): void => {
    server.close();
    if (server.regionFd !== undefined) platform.files.close(server.regionFd);
    assert.deepEqual(platform.leaks(), []);
  };
  try {
    const client = await VfioUserClient.attach(platform, a, options);
    return {
      platform,
      server,
      client,
      end: () => {
        client.close();
        end();
      },
    };
  } catch (error) {
    end();
    throw error;
  }
}

/** The platform, where every server is another user's. */
function amongStrangers(): Platform {
  const base = openPlatform();
  const peer: typeof base.sockets.peer = (fd) => ({ ...base.sockets.peer(fd), user: 65534, trusted: false });
  return { ...base, sockets: { ...base.sockets, peer } };
}

/** Makes a file shorter, if that can still be done. */
function truncated(fd: number): void {
  try {
    ftruncateSync(fd, 0);
  } catch {
    // It is sealed.
  }
}

describe('handshake', { skip }, () => {
  test('offers what it can and takes what the server can', async () => {
    const { client, server, end } = await ofFakeServer(undefined, {}, (s) => {
      s.capabilities = { ...DEFAULT_CAPABILITIES, maxMsgFds: 3, maxDataXferSize: 8192, maxDmaMaps: 9, pgsizes: 65536 };
    });
    assert.deepEqual(client.capabilities, server.capabilities);
    assert.equal(client.regions.length, 9);
    assert.equal(client.regions[0].size, 2 ** 22);
    assert.equal(client.interrupts[2].count, 40);
    const offer = JSON.parse(Buffer.from(server.seen[0].payload.subarray(4, -1)).toString()) as unknown;
    assert.deepEqual(offer, {
      capabilities: { max_msg_fds: 16, max_data_xfer_size: 1048576, twin_socket: { supported: true } },
    });
    end();
  });

  test('a server that says nothing is fine with defaults', async () => {
    const { client, end } = await ofFakeServer((message, server) =>
      message.command === COMMAND.VERSION ? server.ok(message, new Uint8Array(4)) : undefined,
    );
    assert.deepEqual(client.capabilities, DEFAULT_CAPABILITIES);
    end();
  });

  test('regions and interrupts that the server refuses to describe are not there', async () => {
    const { client, end } = await ofFakeServer((message, server) =>
      message.command === COMMAND.GET_REGION_INFO || message.command === COMMAND.GET_IRQ_INFO
        ? server.error(message, 'EINVAL')
        : undefined,
    );
    assert.deepEqual([...new Set(client.regions.map(({ size }) => size))], [0]);
    assert.deepEqual([...new Set(client.interrupts.map(({ count }) => count))], [0]);
    assert.throws(() => client.registers(0), dmaError('EINVAL'));
    end();
  });

  const phases = [COMMAND.VERSION, COMMAND.GET_INFO, COMMAND.GET_REGION_INFO, COMMAND.GET_IRQ_INFO];
  for (const phase of phases) {
    test(`a server that dies, is silent or talks nonsense at command ${phase}`, async () => {
      const outcomes: [string, ErrorCode, Script][] = [
        ['death', 'ECONNRESET', (message, s) => (message.command === phase ? (s.close(), 'nothing') : undefined)],
        ['silence', 'ETIMEDOUT', (message) => (message.command === phase ? 'nothing' : undefined)],
        ['short', 'EPROTO', (message, s) => (message.command === phase ? s.ok(message, new Uint8Array(2)) : undefined)],
        [
          'wrong id',
          'EPROTO',
          (message, s) =>
            message.command === phase ? s.ok({ ...message, id: message.id ^ 1 }, message.payload) : undefined,
        ],
        [
          'wrong command',
          'EPROTO',
          (message, s) => (message.command === phase ? s.ok({ ...message, command: 13 }, message.payload) : undefined),
        ],
        ['garbage', 'EPROTO', (message) => (message.command === phase ? new Uint8Array(64).fill(0xee) : undefined)],
      ];
      for (const [what, wanted, script] of outcomes)
        await assert.rejects(
          ofFakeServer(script, { handshakeTimeoutMs: what === 'silence' ? 30 : 1000 }),
          dmaError(wanted),
          what,
        );
    });
  }

  test('a version of the future, and one that was refused', async () => {
    const answer = (major: number, minor: number) => (message: Message, s: FakeServer) =>
      message.command === COMMAND.VERSION
        ? s.ok(message, encodeVersion({ major, minor, capabilities: DEFAULT_CAPABILITIES }))
        : undefined;
    await assert.rejects(ofFakeServer(answer(1, 0)), dmaError('EPROTO'));
    await assert.rejects(ofFakeServer(answer(0, 2)), dmaError('EPROTO'));
    await assert.rejects(
      ofFakeServer((message, s) => s.error(message, 'EINVAL')),
      dmaError('EINVAL'),
    );
    const { end } = await ofFakeServer(answer(0, 0));
    end();
  });

  test('a twin socket without a descriptor, or with one that is no socket', async () => {
    const twin = { ...DEFAULT_CAPABILITIES, twinSocket: { fdIndex: 0 } };
    const script: Script = (message, s) => {
      if (message.command !== COMMAND.VERSION) return undefined;
      const fd = s.platform.memory.memfd({ name: 'test', length: 4096 });
      s.channel.send(s.ok(message, encodeVersion({ major: 0, minor: 1, capabilities: twin })), [fd]);
      s.platform.files.close(fd);
      return 'nothing';
    };
    await assert.rejects(ofFakeServer(script), dmaError('EPROTO'));
    await assert.rejects(
      ofFakeServer(
        () => undefined,
        {},
        (s) => (s.capabilities = twin),
      ),
      dmaError('EPROTO'),
    );
  });

  test('a server of another user is asked for no twin socket, and may give none', async () => {
    const { server, end } = await ofFakeServer(undefined, {}, undefined, false, amongStrangers());
    const offer = JSON.parse(Buffer.from(server.seen[0].payload.subarray(4, -1)).toString()) as unknown;
    assert.deepEqual(offer, { capabilities: { max_msg_fds: 16, max_data_xfer_size: 1048576 } });
    end();
    const twin = { ...DEFAULT_CAPABILITIES, twinSocket: { fdIndex: 0 } };
    const script: Script = (message, s) => {
      if (message.command !== COMMAND.VERSION) return undefined;
      const ends = s.platform.sockets.pair();
      s.channel.send(s.ok(message, encodeVersion({ major: 0, minor: 1, capabilities: twin })), [ends[0]]);
      ends.forEach(s.platform.files.close);
      return 'nothing';
    };
    await assert.rejects(ofFakeServer(script, {}, undefined, false, amongStrangers()), (error) => {
      assert.ok(isDmaError(error, 'EPROTO'), String(error));
      assert.match(error.reason, /not asked for/);
      return true;
    });
  });

  test('a twin socket that this process has no descriptors to watch for is its own limit', async () => {
    const base = openPlatform();
    const directory = mkdtempSync(join(tmpdir(), 'anydma-test-'));
    const server = serve(base, { socketPath: join(directory, 's'), model: deviceModel('edu') });
    let watches = 0;
    const watch: typeof base.readiness.watch = (...args) => {
      if (++watches === 2) throw new DmaError({ code: 'EMFILE', operation: 'epoll_create1', reason: 'too many' });
      return base.readiness.watch(...args);
    };
    const platform = trackingPlatform({ ...base, readiness: { ...base.readiness, watch } });
    try {
      await assert.rejects(VfioUserClient.connect(platform, join(directory, 's')), dmaError('EMFILE'));
      assert.deepEqual(platform.leaks(), []);
    } finally {
      await server.close();
      rmSync(directory, { recursive: true });
    }
  });

  test('nobody listens', async () => {
    await assert.rejects(VfioUserClient.connect(openPlatform(), '/nonexistent/socket'), dmaError('ENOENT'));
  });
});

describe('calls', { skip }, () => {
  test('the server’s error is the caller’s', async () => {
    const { client, end } = await ofFakeServer((message, s) =>
      message.command === COMMAND.DMA_MAP ? s.error(message, 'ENOMEM') : undefined,
    );
    await assert.rejects(client.dmaMapAsync({ iova: 4096, length: 4096, access: 'read' }), (error) => {
      assert.ok(isDmaError(error, 'ENOMEM'));
      assert.equal(error.operation, 'vfio-user DMA_MAP');
      assert.equal(error.range?.start, 4096);
      return true;
    });
    assert.equal(client.failure, undefined);
    end();
  });

  test('EINVAL after many maps hints at servers with few regions', async () => {
    let maps = 0;
    const { client, end } = await ofFakeServer((message, s) =>
      message.command === COMMAND.DMA_MAP && ++maps > 16 ? s.error(message, 'EINVAL') : undefined,
    );
    for (let n = 0; n < 16; n++) await client.dmaMapAsync({ iova: n * 4096, length: 4096, access: 'read' });
    await assert.rejects(
      client.dmaMapAsync({ iova: 2 ** 30, length: 4096, access: 'read' }),
      /map fewer, larger pieces/,
    );
    end();
  });

  test('long accesses are cut to what the server takes', async () => {
    const { client, server, end } = await ofFakeServer(undefined, {}, (s) => {
      s.capabilities = { ...DEFAULT_CAPABILITIES, maxDataXferSize: 100_000 };
    });
    const bytes = new Uint8Array(250_000);
    server.seen.length = 0;
    await client.regionReadAsync(0, 8, bytes);
    assert.ok(bytes.every((byte) => byte === 0x5a));
    await client.regionWriteAsync(0, 8, bytes);
    assert.deepEqual(
      server.seen.map(({ payload }) => [get64(payload, 0), get32(payload, 12)]),
      [
        [8, 100_000],
        [100_008, 100_000],
        [200_008, 50_000],
        [8, 65536],
        [8 + 65536, 65536],
        [8 + 2 * 65536, 65536],
        [8 + 3 * 65536, 250_000 - 3 * 65536],
      ],
    );
    end();
  });

  test('posted writes ask for no answer', async () => {
    const { client, server, end } = await ofFakeServer();
    client.regionWrite(0, 0, new Uint8Array(4), { posted: true });
    await client.regionReadAsync(0, 0, new Uint8Array(4));
    assert.deepEqual(
      server.seen.slice(-2).map(({ command, flags }) => [command, flags]),
      [
        [COMMAND.REGION_WRITE, FLAG.NO_REPLY],
        [COMMAND.REGION_READ, 0],
      ],
    );
    end();
  });

  test('descriptors of memory are not sent to who takes none, nor by who gives none', async () => {
    for (const [maxMsgFds, share, sent] of [
      [8, 'always', 1],
      [8, undefined, 1],
      [8, 'never', 0],
      [0, 'always', 0],
    ] as const) {
      const { client, server, platform, end } = await ofFakeServer(undefined, { share }, (s) => {
        s.capabilities = { ...DEFAULT_CAPABILITIES, maxMsgFds };
      });
      const fd = platform.memory.memfd({ name: 'given', length: 4096 });
      await client.dmaMapAsync({ iova: 0, length: 4096, access: 'read', backing: { fd, offset: 0 } });
      assert.equal(server.seen.at(-1)?.command, COMMAND.DMA_MAP);
      assert.equal(server.seen.at(-1)?.fds, sent);
      // Nothing that it does not have is out of use once it is lost.
      client.close();
      const over = client.lingering(new AbortController().signal);
      assert.equal(over, undefined);
      platform.files.close(fd);
      end();
    }
    const options: unknown = { share: 'sometimes' };
    await assert.rejects(
      VfioUserClient.connect(openPlatform(), '/nowhere', options as ClientOptions),
      dmaError('EINVAL'),
    );
  });

  test('what a server refuses of stores is thrown when they are answered, which posted ones are not', async () => {
    for (const [stores, code] of [
      ['answered', 'EACCES'],
      ['posted', undefined],
      [undefined, undefined],
    ] as const) {
      const script: Script = (message, s) =>
        message.command !== COMMAND.REGION_WRITE
          ? undefined
          : stores === 'answered'
            ? s.error(message, 'EACCES')
            : 'nothing';
      const { client, server, end } = await ofFakeServer(script, { stores }, undefined, true);
      const registers = client.registers(0);
      if (code === undefined) registers.write32(8, 1);
      else assert.throws(() => registers.write32(8, 1), dmaError(code));
      registers.flush(8);
      assert.equal(server.seen.filter(({ command }) => command === COMMAND.REGION_WRITE).length, 1);
      end();
    }
    const options: unknown = { stores: 'sometimes' };
    await assert.rejects(
      VfioUserClient.connect(openPlatform(), '/nowhere', options as ClientOptions),
      dmaError('EINVAL'),
    );
  });

  test('register stores by message are posted, and every so often one waits for the server', async () => {
    const { client, server, end } = await ofFakeServer(undefined, {}, () => undefined, true);
    const registers = client.registers(0);
    server.seen.length = 0;
    for (let n = 0; n < 200; n++) registers.write32(4 * n, n);
    registers.flush(0);
    assert.deepEqual(
      server.seen.map(({ command, payload }) => [command, get64(payload, 0)]),
      [...Array.from({ length: 200 }, (_, n) => [COMMAND.REGION_WRITE, 4 * n]), [COMMAND.REGION_READ, 0]],
    );
    const waited = server.seen.slice(0, 200).filter(({ flags }) => flags === 0);
    assert.equal(waited.length, 3);
    end();
  });

  test('a server that asks for memory on the same socket gets one command at a time', async () => {
    const lastFlags = ({ seen }: FakeServer): number | undefined => seen.at(-1)?.flags;
    for (const why of ['memory without a descriptor', 'it asks'] as const) {
      const { client, server, end } = await ofFakeServer(undefined, {}, () => undefined, true);
      const registers = client.registers(0);
      registers.write32(0, 1);
      registers.flush(0);
      assert.equal(server.seen.at(-2)?.flags, FLAG.NO_REPLY);
      if (why === 'it asks') {
        const out = new Uint8Array(64);
        server.channel.send(out.subarray(0, encodeDmaRead(out, 1, 0, 4)));
        while (server.replies.length === 0) await new Promise((resolve) => setImmediate(resolve));
      } else client.dmaMap({ iova: 0, length: 4096, access: 'read-write' });
      registers.write32(0, 1);
      assert.equal(lastFlags(server), 0, why);
      end();
    }
  });

  test('arguments are checked before anything is sent', async () => {
    const { client, server, end } = await ofFakeServer();
    server.seen.length = 0;
    const four = new Uint8Array(4);
    for (const bad of [
      () => client.regionRead(0, 2 ** 22 - 3, four),
      () => client.regionRead(0, -4, four),
      () => client.regionRead(1, 0, four),
      () => client.regionRead(-1, 0, four),
      () => client.regionRead(99, 0, four),
      () => client.regionWrite(0, 0.5, four),
      () => client.dmaMap({ iova: -1, length: 4096, access: 'read' }),
      () => client.dmaMap({ iova: 0, length: 0, access: 'read' }),
      () => client.dmaMap({ iova: 0, length: 4096, access: 'read', backing: { fd: 0, offset: -1 } }),
      () => client.dmaUnmap(0, 0),
      () => client.setInterrupts({ index: 5, action: 'trigger' }),
      () => client.setInterrupts({ index: 0, action: 'trigger', start: 40, eventfds: [0] }),
      () => client.setInterrupts({ index: 0, action: 'trigger', count: 2, eventfds: [0] }),
    ])
      assert.throws(bad, dmaError('EINVAL'), String(bad));
    await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual(server.seen, []);
    end();
  });

  test('many eventfds go in as many messages as the server’s limit needs', async () => {
    const { client, server, platform, end } = await ofFakeServer(undefined, {}, (s) => {
      s.capabilities = { ...DEFAULT_CAPABILITIES, maxMsgFds: 8 };
    });
    const fd = platform.events.create();
    server.seen.length = 0;
    await client.setInterruptsAsync({
      index: 2,
      action: 'trigger',
      start: 3,
      eventfds: new Array<number>(20).fill(fd),
    });
    assert.deepEqual(
      server.seen.map(({ payload, fds }) => [get32(payload, 12), get32(payload, 16), fds]),
      [
        [3, 8, 8],
        [11, 8, 8],
        [19, 4, 4],
      ],
    );
    platform.files.close(fd);
    end();
  });

  test('silence ends in ETIMEDOUT, and ends the connection', async () => {
    let lost: DmaError | undefined;
    const { client, end } = await ofFakeServer((message) => (message.command > 8 ? 'nothing' : undefined), {
      timeoutMs: 30,
      onDisconnect: (error) => (lost = error),
    });
    const first = client.regionReadAsync(0, 0, new Uint8Array(4));
    const second = client.resetAsync({ timeoutMs: 10_000 });
    await Promise.all([assert.rejects(first, dmaError('ETIMEDOUT')), assert.rejects(second, dmaError('ECONNABORTED'))]);
    assert.ok(isDmaError(lost, 'ECONNABORTED'));
    assert.throws(() => client.regionRead(0, 0, new Uint8Array(4)), dmaError('ECONNABORTED'));
    end();
  });

  test('death while calls run fails them all', async () => {
    const { client, server, end } = await ofFakeServer((message) => (message.command > 8 ? 'nothing' : undefined));
    const calls = [
      client.regionReadAsync(0, 0, new Uint8Array(4)),
      client.regionWriteAsync(0, 0, new Uint8Array(4)),
      client.resetAsync(),
    ];
    server.close();
    for (const call of calls) await assert.rejects(call, dmaError('ECONNRESET'));
    await assert.rejects(client.dmaMapAsync({ iova: 0, length: 1, access: 'read' }), dmaError('ECONNRESET'));
    end();
  });

  test('a reply without a whole head is nonsense', async () => {
    const { client, end } = await ofFakeServer((message, s) =>
      message.command === COMMAND.REGION_READ ? s.ok(message, new Uint8Array(15)) : undefined,
    );
    await assert.rejects(client.regionReadAsync(0, 0, new Uint8Array(4)), dmaError('EPROTO'));
    assert.ok(isDmaError(client.failure, 'EPROTO'));
    end();
  });

  test('a reply that is for less than was asked, or for something else, is EIO, and the connection goes on', async () => {
    const head = (offset: number, region: number, count: number, data: number): Uint8Array => {
      const payload = new Uint8Array(16 + data);
      put64(payload, 0, offset);
      put32(payload, 8, region);
      put32(payload, 12, count);
      return payload;
    };
    for (const answer of [head(0, 0, 0, 0), head(0, 0, 2, 2), head(8, 0, 4, 4), head(0, 1, 4, 4), head(0, 0, 4, 2)]) {
      let wrong = true;
      const { client, end } = await ofFakeServer((message, s) =>
        wrong && (message.command === COMMAND.REGION_READ || message.command === COMMAND.REGION_WRITE)
          ? s.ok(message, answer)
          : undefined,
      );
      await assert.rejects(client.regionReadAsync(0, 0, new Uint8Array(4)), dmaError('EIO'));
      if (answer.length !== 18 || answer[12] !== 4)
        await assert.rejects(client.regionWriteAsync(0, 0, new Uint8Array(answer[12] === 4 ? 4 : 8)), dmaError('EIO'));
      wrong = false;
      await client.regionReadAsync(0, 0, new Uint8Array(4));
      assert.equal(client.failure, undefined);
      end();
    }
  });

  test('an error that claims to be a command is nonsense at once', async () => {
    const { client, end } = await ofFakeServer((message, s) => {
      if (message.command !== COMMAND.RESET) return undefined;
      const reply = s.error(message, 'EIO');
      reply[8] = 0x20;
      return reply;
    });
    await assert.rejects(client.resetAsync(), dmaError('EPROTO'));
    end();
  });

  test('descriptors with a reply that has none are nonsense, and are closed', async () => {
    const { client, end } = await ofFakeServer((message, s) => {
      if (message.command !== COMMAND.RESET) return undefined;
      const fd = s.platform.events.create();
      s.channel.send(s.ok(message, new Uint8Array()), [fd]);
      s.platform.files.close(fd);
      return 'nothing';
    });
    await assert.rejects(client.resetAsync(), dmaError('EPROTO'));
    end();
  });

  test('an unmap that is answered by a header alone has unmapped what was asked', async () => {
    const { client, end } = await ofFakeServer((message, s) =>
      message.command === COMMAND.DMA_UNMAP ? s.ok(message, new Uint8Array()) : undefined,
    );
    assert.equal(await client.dmaUnmapAsync(4096, 8192), 8192);
    end();
  });
});

describe('what the device asks', { skip }, () => {
  const memory = new Uint8Array(4096).map((_, i) => i);
  const target: ClientOptions['dmaTarget'] = (iova, length, access) => {
    if (iova < 0x1000 || iova + length > 0x2000) return 'EFAULT';
    if (access === 'write' && iova < 0x1800) return 'EACCES';
    if (iova === 0x1ff0) throw new Error('made to fail');
    if (iova === 0x1fe0) return memory.subarray(0, 1);
    return memory.subarray(iova - 0x1000, iova - 0x1000 + length);
  };

  test('is answered, within bounds and permissions', async () => {
    const { server, end } = await ofFakeServer(undefined, { dmaTarget: target });
    const out = new Uint8Array(4096);
    const ask = async (size: number): Promise<Message> => {
      const before = server.replies.length;
      server.channel.send(out.subarray(0, size));
      while (server.replies.length === before) await new Promise((resolve) => setImmediate(resolve));
      return server.replies[before];
    };
    const read = await ask(encodeDmaRead(out, 1, 0x1010, 4));
    assert.deepEqual([...read.payload], [0x10, 0x10, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 16, 17, 18, 19]);
    const write = await ask(encodeDmaWrite(out, 2, 0x1801, new Uint8Array([9, 8, 7])));
    assert.deepEqual([...write.payload], [1, 0x18, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    assert.deepEqual([...memory.subarray(0x800, 0x805)], [0, 9, 8, 7, 4]);
    for (const [size, errno] of [
      [() => encodeDmaRead(out, 3, 0, 4), 14],
      [() => encodeDmaRead(out, 3, 0x1ffe, 4), 14],
      [() => encodeDmaRead(out, 3, 2 ** 52, 4), 14],
      [() => encodeDmaWrite(out, 3, 0x1000, new Uint8Array(4)), 13],
      [() => encodeDmaRead(out, 3, 0x1ff0, 4), 14],
      [() => encodeDmaRead(out, 3, 0x1fe0, 4), 14],
      [() => encodeDmaRead(out, 3, 0x1000, 0), 22],
      [() => encodeDmaRead(out, 3, 0x1000, 2 ** 21), 22],
      [() => putCommand(out, 3, COMMAND.DMA_READ, 4), 22],
      [() => putCommand(out, 3, COMMAND.RESET, 0), 22],
      [() => putCommand(out, 3, 77, 0), 22],
    ] as const) {
      const reply = await ask(size());
      assert.equal(reply.flags, FLAG.REPLY | FLAG.ERROR);
      assert.equal(reply.errno, errno, String(size));
      assert.equal(reply.payload.length, 0);
    }
    end();
  });

  test('a blocking call from within a DMA callback is EBUSY, and the connection lives', async () => {
    const connected: { client?: VfioUserClient } = {};
    let outcome: unknown;
    const made = await ofFakeServer(undefined, {
      dmaTarget: () => {
        try {
          connected.client?.regionRead(0, 0, new Uint8Array(4));
        } catch (error) {
          outcome = error;
        }
        return 'EFAULT';
      },
    });
    connected.client = made.client;
    const out = new Uint8Array(64);
    made.server.channel.send(out.subarray(0, encodeDmaRead(out, 1, 0, 4)));
    while (made.server.replies.length === 0) await new Promise((resolve) => setImmediate(resolve));
    assert.ok(isDmaError(outcome, 'EBUSY'));
    await made.client.regionReadAsync(0, 0, new Uint8Array(4));
    made.end();
  });
});

describe('mapped regions', { skip }, () => {
  for (const [sealed, mmap, mapped] of [
    [true, 'sealed', true],
    [false, 'trust', true],
    [false, 'sealed', true], // the seal can still be added to a memfd that allows it
  ] as const) {
    test(`sealed: ${sealed}, mmap: ${mmap}`, async () => {
      const { client, server, platform, end } = await ofFakeServer(undefined, { mmap }, (s) => {
        s.regionFd = s.platform.memory.memfd({ name: 'test', length: 16384, sealed });
        s.region = { size: 16384, mappable: true, areas: [{ offset: 4096, length: 4096 }] };
      });
      const registers = client.registers(0);
      assert.equal(client.registers(0), registers);
      server.seen.length = 0;
      registers.write32(4096 + 8, 0x12345678);
      registers.write64(4096 + 16, 2 ** 52 + 1);
      assert.equal(registers.read32(4096 + 8), 0x12345678);
      assert.equal(registers.read64(4096 + 16), 2 ** 52 + 1);
      registers.flush(4096);
      assert.equal(server.seen.length === 0, mapped);
      const there = new Uint8Array(4);
      platform.files.readAt(server.regionFd ?? -1, 4096 + 8, there);
      assert.deepEqual([...there], [0x78, 0x56, 0x34, 0x12]);
      for (const offset of [-4, 2, 16384]) assert.throws(() => registers.read32(offset), dmaError('EINVAL'));
      client.close();
      assert.throws(() => registers.read32(4096), dmaError('ENOTCONN'));
      end();
    });
  }

  test('a file of another user’s server is not sealed, since that could wait for ever', async () => {
    for (const mmap of ['auto', 'sealed'] as const)
      for (const sealed of [false, true]) {
        const prepare = (s: FakeServer): void => {
          s.regionFd = s.platform.memory.memfd({ name: 'test', length: 8192, sealed });
          s.region = { size: 8192, mappable: true, areas: [{ offset: 0, length: 8192 }] };
        };
        const { client, platform, server, end } = await ofFakeServer(
          undefined,
          { mmap },
          prepare,
          false,
          amongStrangers(),
        );
        client.registers(0);
        assert.equal(client.notMapped(0), sealed ? undefined : 'the server could truncate its file');
        assert.equal(platform.files.sealedAgainstShrinking(server.regionFd ?? -1, false), sealed);
        end();
      }
  });

  test('the size of a file is read once it is sealed: one that shrinks meanwhile is not mapped', async () => {
    const { client, platform, end } = await ofFakeServer(
      undefined,
      { mmap: 'sealed' },
      (s) => {
        s.regionFd = s.platform.memory.memfd({ name: 'race', length: 8192, sealed: false });
        s.region = { size: 8192, mappable: true, areas: [{ offset: 0, length: 8192 }] };
      },
      true,
    );
    const { status } = platform.files;
    platform.files.status = (fd) => {
      const seen = status(fd);
      // The other side, which is faster.
      truncated(fd);
      return seen;
    };
    const registers = client.registers(0);
    registers.write32(4096, 7);
    assert.equal(registers.read32(4096), 7);
    end();
  });

  test('what is not a choice of mmap is refused before anything is sent', async () => {
    const options: unknown = { mmap: 'trusted' };
    await assert.rejects(
      VfioUserClient.connect(openPlatform(), '/nowhere', options as ClientOptions),
      dmaError('EINVAL'),
    );
  });

  test('nothing is mapped with mmap: never, and the reason is told', async () => {
    for (const [mmap, why] of [
      ['never', 'mmap=never is set'],
      ['auto', undefined],
    ] as const) {
      const { client, end } = await ofFakeServer(undefined, { mmap }, (s) => {
        s.regionFd = s.platform.memory.memfd({ name: 'test', length: 16384 });
        s.region = { size: 16384, mappable: true, areas: [{ offset: 4096, length: 4096 }] };
      });
      assert.equal(client.notMapped(0), why);
      end();
    }
  });

  test('a file that can be made shorter is not mapped unless the server is trusted', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'anydma-test-'));
    const path = join(directory, 'region');
    writeFileSync(path, new Uint8Array(4096));
    for (const mmap of ['sealed', 'trust'] as const) {
      const { client, server, end } = await ofFakeServer(undefined, { mmap, timeoutMs: 250 }, (s) => {
        s.regionFd = s.platform.files.open(path, 'read-write');
        s.region = { size: 4096, mappable: true, areas: [{ offset: 0, length: 4096 }] };
      });
      server.seen.length = 0;
      // By message it takes too long here, because the server needs this thread to answer.
      if (mmap === 'trust') assert.equal(client.registers(0).read32(0), 0);
      else assert.throws(() => client.registers(0).read32(0), dmaError('ETIMEDOUT'));
      end();
    }
    rmSync(directory, { recursive: true });
  });

  test('areas outside the file, or off a page, are not mapped', async () => {
    const { client, platform, end } = await ofFakeServer(undefined, {}, (s) => {
      s.regionFd = s.platform.memory.memfd({ name: 'test', length: 8192 });
      s.region = {
        size: 65536,
        mappable: true,
        areas: [
          { offset: 8192, length: 4096 },
          { offset: 100, length: 4096 },
          { offset: 0, length: 100 },
        ],
      };
    });
    const before = platform.leaks().length;
    client.registers(0);
    assert.equal(platform.leaks().length, before);
    end();
  });
});

describe('against a device in another process', { skip }, () => {
  let device: DeviceProcess;
  before(async () => {
    device = await spawnDevice('edu');
  });
  after(async () => {
    await device.close();
  });

  test('blocking and other calls, DMA by mapping and by message', async () => {
    const platform = trackingPlatform(openPlatform());
    const bytes = new Uint8Array(4096).fill(3);
    const client = await VfioUserClient.connect(platform, device.socketPath, {
      dmaTarget: (iova, length) =>
        iova >= 0x20000 ? bytes.subarray(iova - 0x20000, iova - 0x20000 + length) : 'EFAULT',
    });
    const registers = client.registers(0);
    assert.equal(registers.read32(0), 0x010000ed);
    const fd = platform.memory.memfd({ name: 'test', length: 8192 });
    const direct = { iova: 0x10000, length: 8192, access: 'read-write', backing: { fd, offset: 0 } } as const;
    client.dmaMap(direct);
    assert.throws(() => client.dmaMap(direct), dmaError('EEXIST'));
    await client.dmaMapAsync({ iova: 0x20000, length: 4096, access: 'read-write' });
    platform.files.writeAt(fd, 0, new TextEncoder().encode('there and back'));
    const transfer = async (from: number, to: number, command: number): Promise<void> => {
      registers.write64(0x80, from);
      registers.write64(0x88, to);
      registers.write64(0x90, 14);
      registers.write64(0x98, command);
      // Reading in place would do as well; here the event loop answers what the device asks.
      while ((registers.read32(0x98) & 1) !== 0) await new Promise((resolve) => setImmediate(resolve));
    };
    await transfer(0x10000, 0x40000, 1);
    await transfer(0x40000, 0x20000 + 100, 3);
    assert.equal(new TextDecoder().decode(bytes.subarray(100, 114)), 'there and back');
    bytes.set(new TextEncoder().encode('and now direct'), 100);
    await transfer(0x20000 + 100, 0x40000, 1);
    await transfer(0x40000, 0x10000 + 4096, 3);
    const back = new Uint8Array(14);
    platform.files.readAt(fd, 4096, back);
    assert.equal(new TextDecoder().decode(back), 'and now direct');
    assert.throws(() => client.dmaUnmap(0x10000, 4096), dmaError('ENOENT'));
    assert.equal(client.dmaUnmap(0x10000, 8192), 8192);
    assert.equal(await client.dmaUnmapAsync(0x20000, 4096), 4096);
    assert.throws(() => client.dmaUnmap(0x20000, 4096), dmaError('ENOENT'));
    client.close();
    platform.files.close(fd);
    assert.deepEqual(platform.leaks(), []);
  });

  test('a blocking call while the device waits for our memory does not deadlock', async () => {
    const platform = openPlatform();
    const bytes = new Uint8Array(4096).fill(0x11);
    const client = await VfioUserClient.connect(platform, device.socketPath, {
      dmaTarget: (iova, length) => bytes.subarray(iova - 0x20000, iova - 0x20000 + length),
    });
    client.dmaMap({ iova: 0x20000, length: 4096, access: 'read-write' });
    const registers = client.registers(0);
    for (let n = 0; n < 50; n++) {
      registers.write64(0x80, 0x20000);
      registers.write64(0x88, 0x40000);
      registers.write64(0x90, 4096);
      registers.write64(0x98, 1);
      for (let spin = 0; (registers.read32(0x98) & 1) !== 0; spin++) assert.ok(spin < 10_000);
    }
    // An unmap waits until the transfer is through, and that needs answers meanwhile.
    registers.write64(0x98, 1);
    assert.equal(client.dmaUnmap(0x20000, 4096), 4096);
    client.close();
  });

  test('more reads at once than may wait in a queue are all answered', async () => {
    const client = await VfioUserClient.connect(openPlatform(), device.socketPath);
    const { size } = client.regions[0];
    const reads = Array.from({ length: 20 }, () => new Uint8Array(size));
    await Promise.all(reads.map((into) => client.regionReadAsync(0, 0, into)));
    assert.ok(size >= 1024 * 1024 && client.failure === undefined);
    const id = new Uint8Array(4);
    await client.regionReadAsync(0, 0, id);
    assert.deepEqual([...id], [0xed, 0, 0, 1]);
    client.close();
  });

  test('a second client is sent away, and the next one is served when the first has left', async () => {
    const platform = trackingPlatform(openPlatform());
    const first = await VfioUserClient.connect(platform, device.socketPath);
    await assert.rejects(VfioUserClient.connect(platform, device.socketPath), /ECONNRESET|one at a time/);
    first.close();
    for (let n = 0; n < 20; n++) {
      const next = await VfioUserClient.connect(platform, device.socketPath);
      assert.equal(next.registers(0).read32(0), 0x010000ed);
      next.close();
    }
    assert.deepEqual(platform.leaks(), []);
  });

  test('interrupts arrive', async () => {
    const platform = openPlatform();
    const client = await VfioUserClient.connect(platform, device.socketPath);
    const fd = platform.events.create();
    client.setInterrupts({ index: 1, action: 'trigger', eventfds: [fd] });
    const registers = client.registers(0);
    registers.write32(0x60, 1);
    assert.ok(platform.readiness.wait([{ fd, readable: true, writable: false }], 1000));
    assert.equal(platform.events.take(fd), 1);
    client.setInterrupts({ index: 1, action: 'trigger' });
    registers.write32(0x64, 1);
    registers.write32(0x60, 1);
    registers.flush(0);
    assert.equal(platform.events.take(fd), 0);
    client.close();
    platform.files.close(fd);
  });

  test('a blocking call fails when the device process is killed', async () => {
    const other = await spawnDevice('edu');
    const platform = trackingPlatform(openPlatform());
    const client = await VfioUserClient.connect(platform, other.socketPath);
    const registers = client.registers(0);
    // The process is stopped, so that it does not answer, and dies while this thread is blocked, by the hand of a shell.
    const killer = spawn('sh', ['-c', `sleep 0.2; kill -9 ${other.pid}`]);
    const gone = new Promise((resolve) => killer.once('exit', resolve));
    await new Promise((resolve) => killer.once('spawn', resolve));
    process.kill(other.pid, 'SIGSTOP');
    assert.throws(() => client.dmaMap({ iova: 0, length: 4096, access: 'read' }), dmaError('ECONNRESET'));
    assert.throws(() => registers.read32(0), dmaError('ECONNRESET'));
    client.close();
    await gone;
    await other.close();
    assert.deepEqual(platform.leaks(), []);
  });

  test('20000 regions', async () => {
    const platform = openPlatform();
    const client = await VfioUserClient.connect(platform, device.socketPath);
    const fd = platform.memory.memfd({ name: 'test', length: 4096 });
    const region = (n: number) =>
      ({ iova: n * 4096, length: 4096, access: 'read', backing: { fd, offset: 0 } }) as const;
    for (let at = 0; at < 20_000; at += 2000)
      await Promise.all(Array.from({ length: 2000 }, (_, n) => client.dmaMapAsync(region(at + n))));
    assert.throws(() => client.dmaMap(region(12_345)), dmaError('EEXIST'));
    for (let at = 0; at < 20_000; at += 2000)
      await Promise.all(Array.from({ length: 2000 }, (_, n) => client.dmaUnmapAsync((at + n) * 4096, 4096)));
    client.close();
    platform.files.close(fd);
  });
});
