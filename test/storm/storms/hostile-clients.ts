/** Clients of a served device that mean no good. After each of them a good one is served. */
import assert from 'node:assert/strict';
import { closeSync, ftruncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises';
import { isDmaError, type DmaError } from '../../../src/errors.js';
import { openPlatform } from '../../../src/platform/open.js';
import { VfioUserClient } from '../../../src/vfio-user/client.js';
import { deviceModel } from '../../../src/vfio-user/devices/catalog.js';
import { EDU_BUFFER, EDU_COMMAND, EDU_REGISTER } from '../../../src/vfio-user/devices/edu-layout.js';
import * as m from '../../../src/vfio-user/messages.js';
import { serve } from '../../../src/vfio-user/server.js';
import { fuzz } from '../../fuzz/vfio-user-fuzzer.js';
import { shrinkable } from '../shrinkable.js';
import type { Storm, Weather } from '../storm.js';

const SIZE = 65536;

export async function begin({ random }: Weather): Promise<Storm> {
  const platform = openPlatform();
  const { sockets, files, memory } = platform;
  const socketPath = join(tmpdir(), 'device');
  const seen = { lies: 0, floods: 0, silent: 0, resets: 0, shrunk: 0, crowds: 0, 'good clients': 0 };
  const failures: DmaError[] = [];
  const server = serve(platform, {
    socketPath,
    model: deviceModel('edu'),
    handshakeTimeoutMs: 30,
    dmaTimeoutMs: 30,
    onEvent: (event) => {
      if (event.kind === 'failed') failures.push(event.error);
    },
  });
  const out = new Uint8Array(m.MAX_MESSAGE);

  /** Sends what the socket takes. Is the server still there? */
  const send = (fd: number, bytes: Uint8Array, fds: readonly number[] = []): boolean => {
    try {
      sockets.send(fd, bytes, 0, fds);
      return true;
    } catch (error) {
      assert.ok(isDmaError(error), String(error));
      return false;
    }
  };
  const version = (): Uint8Array => {
    const payload = m.encodeVersion({ ...m.PROTOCOL_VERSION, capabilities: m.DEFAULT_CAPABILITIES });
    out.set(payload, m.HEADER_SIZE);
    return out.slice(0, m.putCommand(out, 1, m.COMMAND.VERSION, payload.length));
  };
  const raw = async (attack: (fd: number) => void | Promise<void>): Promise<void> => {
    const fd = sockets.connect(socketPath);
    try {
      await attack(fd);
    } finally {
      files.close(fd);
    }
  };
  const good = async (): Promise<VfioUserClient> => {
    for (let tries = 1; ; tries++) {
      try {
        return await VfioUserClient.connect(platform, socketPath, { handshakeTimeoutMs: 2000, timeoutMs: 2000 });
      } catch (error) {
        if (!isDmaError(error) || tries === 200) throw error;
        await sleep(5);
      }
    }
  };
  const put64 = async (client: VfioUserClient, register: number, value: number): Promise<void> => {
    const bytes = new Uint8Array(8);
    m.put64(bytes, 0, value);
    await client.regionWriteAsync(0, register, bytes);
  };

  const attacks: readonly (() => Promise<void>)[] = [
    async () => {
      const messages = 200;
      await fuzz({ messages, batch: messages, seed: random.below(2 ** 31) });
      seen.lies++;
    },
    // Commands without end, whose answers it does not read.
    () =>
      raw(async (fd) => {
        send(fd, version());
        const size = m.encodeRegionRead(out, 2, 7, 0, 64);
        const flood = Buffer.concat(Array.from({ length: 500 }, () => out.slice(0, size)));
        for (let n = 0; n < 100 && send(fd, flood); n++) await turn();
        seen.floods++;
      }),
    // Nothing, or a part of something, for longer than the handshake may take.
    () =>
      raw(async (fd) => {
        if (random.oneIn(2)) send(fd, version().subarray(0, random.below(20)));
        await sleep(random.below(50));
        seen.silent++;
      }),
    // It goes in the middle of a message, perhaps with descriptors under way.
    () =>
      raw(async (fd) => {
        if (random.oneIn(2)) send(fd, version());
        await turn();
        const size = m.encodeDmaMap(out, 2, 0, SIZE, 'read-write', 0);
        const file = memory.memfd({ name: 'storm', length: SIZE });
        send(fd, out.subarray(0, 1 + random.below(size - 1)), random.oneIn(2) ? [file] : []);
        files.close(file);
        if (random.oneIn(2)) sockets.shutdown(fd);
        seen.resets++;
      }),
    // Its memory is a file that it makes shorter while the device is to work on it.
    async () => {
      const client = await good();
      // A memfd is sealed by the server where that is possible, an ordinary file can not be.
      const file = shrinkable(SIZE);
      try {
        await client.dmaMapAsync({ iova: 0, length: SIZE, access: 'read-write', backing: { fd: file, offset: 0 } });
        const toMemory = random.oneIn(2);
        const [from, to] = toMemory ? [EDU_BUFFER.ADDRESS, 0] : [0, EDU_BUFFER.ADDRESS];
        await put64(client, EDU_REGISTER.DMA_SOURCE, from);
        await put64(client, EDU_REGISTER.DMA_DESTINATION, to);
        await put64(client, EDU_REGISTER.DMA_COUNT, EDU_BUFFER.LENGTH);
        const early = random.oneIn(2);
        if (early) ftruncateSync(file, random.below(8192));
        await put64(client, EDU_REGISTER.DMA_COMMAND, EDU_COMMAND.RUN | (toMemory ? EDU_COMMAND.TO_MEMORY : 0));
        if (!early) ftruncateSync(file, 0);
        await sleep(random.below(4));
        await client.dmaUnmapAsync(0, SIZE);
        seen.shrunk++;
      } finally {
        client.close();
        closeSync(file);
      }
    },
    // Many come at once.
    async () => {
      const fds: number[] = [];
      try {
        for (let n = 0; n < 8; n++) fds.push(sockets.connect(socketPath));
      } catch (error) {
        assert.ok(isDmaError(error), String(error));
      }
      for (const fd of fds) if (random.oneIn(2)) send(fd, version());
      await turn();
      for (const fd of fds) files.close(fd);
      seen.crowds++;
    },
  ];

  return {
    seen,
    async round(number) {
      await attacks[number % attacks.length]();
      const client = await good();
      const identification = new Uint8Array(4);
      await client.regionReadAsync(0, EDU_REGISTER.IDENTIFICATION, identification);
      assert.equal(identification[0], 0xed);
      client.close();
      seen['good clients']++;
      assert.deepEqual(failures, [], 'the server says that it failed');
    },
    async close() {
      await server.close();
    },
  };
}
