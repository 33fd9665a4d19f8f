/** A server of vfio-user that means no good, in a worker thread: each client meets one of its kinds. */
import { closeSync, ftruncateSync, unlinkSync } from 'node:fs';
import { isMainThread, parentPort, workerData } from 'node:worker_threads';
import { isDmaError } from '../../src/errors.js';
import { openPlatform } from '../../src/platform/open.js';
import { isCommand, Framer } from '../../src/vfio-user/framing.js';
import * as m from '../../src/vfio-user/messages.js';
import { mutate, serverReply } from '../fuzz/vfio-user-fuzzer.js';
import { Random } from '../shared/random.js';
import { shrinkable } from './shrinkable.js';

/** Its kinds, in the order in which clients meet them. */
export const KINDS = ['polite', 'silent', 'reset', 'flood', 'lies', 'shrinks', 'asks'] as const;

export interface HostileServerOptions {
  readonly socketPath: string;
  readonly seed: number;
}

const REGION = 65536;

if (!isMainThread && parentPort !== null) run(workerData as HostileServerOptions);

function run({ socketPath, seed }: HostileServerOptions): void {
  const platform = openPlatform();
  const { sockets, files, readiness } = platform;
  const random = new Random(seed);
  const out = new Uint8Array(m.MAX_MESSAGE);
  const version = m.encodeVersion({ ...m.PROTOCOL_VERSION, capabilities: m.DEFAULT_CAPABILITIES });
  let clients = 0;
  const listener = sockets.listen(socketPath, 8);
  const watch = readiness.watch(listener, { readable: true }, () => {
    const fd = sockets.accept(listener);
    if (fd !== undefined) serveOne(fd, KINDS[clients++ % KINDS.length]);
  });
  parentPort?.on('message', () => {
    watch.close();
    files.close(listener);
    unlinkSync(socketPath);
    parentPort?.close();
  });
  parentPort?.postMessage('ready');

  function serveOne(fd: number, kind: (typeof KINDS)[number]): void {
    const framer = new Framer(m.MAX_MESSAGE);
    const file = shrinkable(REGION);
    // It turns bad with this message: in the handshake, or later.
    const turnsAt = random.below(60);
    let messages = 0;
    let open = true;
    const close = (): void => {
      if (!open) return;
      open = false;
      client.close();
      for (const each of framer.takeFds()) files.close(each);
      files.close(fd);
      closeSync(file);
    };
    const send = (bytes: Uint8Array, fds: readonly number[] = []): void => {
      try {
        sockets.send(fd, bytes, 0, fds);
      } catch (error) {
        if (!isDmaError(error)) throw error;
        close();
      }
    };
    const answer = (message: m.Message): void => {
      const bad = messages++ >= turnsAt;
      if (!isCommand(message)) return;
      if (bad && kind === 'silent') return;
      if (bad && kind === 'shrinks') ftruncateSync(file, 0);
      if (bad && kind === 'flood') {
        // Answers to what nobody asked.
        const size = m.putReply(out, message.id + 1, m.COMMAND.DMA_MAP, 0);
        const flood = Buffer.concat(Array.from({ length: 500 }, () => out.slice(0, size)));
        for (let n = 0; n < 20 && open; n++) send(flood);
      }
      if (bad && kind === 'asks' && open) {
        const iova = random.below(2 ** 31) * 4096;
        for (let n = 0; n < 50 && open; n++) {
          const size = random.oneIn(2)
            ? m.encodeDmaRead(out, n, iova, random.below(65536))
            : m.encodeDmaWrite(out, n, iova, random.bytes(random.below(200)));
          send(out.slice(0, size));
        }
      }
      if (!open) return;
      const size = serverReply(random, message, out, version);
      if (size === 0) return;
      const reply = out.slice(0, size);
      const withFile = kind === 'shrinks' && message.command === m.COMMAND.GET_REGION_INFO;
      if (bad && kind === 'lies') send(mutate(random, reply), random.oneIn(4) ? [file, fd] : []);
      else if (bad && kind === 'reset') {
        send(reply.subarray(0, random.below(reply.length)));
        close();
      } else send(reply, withFile ? [file] : []);
    };
    const client = readiness.watch(fd, { readable: true }, () => {
      while (open) {
        try {
          const received = sockets.receive(fd, framer.space(), 16);
          if (received === undefined) return;
          if (received.bytes === 0) {
            close();
            return;
          }
          framer.received(received.bytes, received.fds);
          for (let message = framer.next(); message !== undefined && open; message = framer.next()) {
            answer(message);
            for (const each of message.fds) files.close(each);
          }
        } catch (error) {
          if (!isDmaError(error)) throw error;
          close();
        }
      }
    });
  }
}
