/** Peers of the RDMA exchange that mean no good. After each of them a good one is served. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDmaError } from '../../../src/errors.js';
import { connectToPeer, listenForPeers } from '../../../src/rdma/exchange.js';
import type { Storm, Weather } from '../storm.js';

const HELLO = '{"anydma-rdma":1,"pairs":[],"memory":[]}\n';
const NOTHING = { pairs: [], memory: [] };
/** What is said after a hello. */
const LIES = [
  '{"id":1,"error":"__proto__"}\n',
  '{"id":-1,"call":"echo"}\n',
  `{"id":1,"call":"echo","with":${'['.repeat(5000)}${']'.repeat(5000)}}\n`,
  'GET / HTTP/1.1\r\n\r\n',
  '\0\xff\n',
  'x'.repeat(70_000),
];
/** How long a peer may take for anything. milliseconds */
const PATIENCE = 60;

export async function begin({ random }: Weather): Promise<Storm> {
  const seen = { lies: 0, floods: 0, silent: 0, halves: 0, resets: 0, 'good peers': 0 };
  const server = await listenForPeers({ host: '127.0.0.1', timeoutMs: PATIENCE, maxLine: 65536 }, (session) => {
    session.answer('echo', (question) => question);
    session.answer('big', () => 'x'.repeat(60_000));
    session.greet(NOTHING);
  });
  const open = async (): Promise<Socket> => {
    const socket = connect({ host: '127.0.0.1', port: server.port, allowHalfOpen: true });
    socket.on('error', () => undefined);
    socket.pause();
    await once(socket, 'connect');
    return socket;
  };
  const served = async (): Promise<void> => {
    const session = await connectToPeer({ host: '127.0.0.1', port: server.port, hello: NOTHING });
    try {
      assert.equal(await session.ask('echo', 7), 7);
    } finally {
      session.close();
      await session.ended;
    }
  };
  const good = async (): Promise<void> => {
    for (let tries = 1; ; tries++) {
      try {
        await served();
        break;
      } catch (error) {
        // On a busy machine a good peer, too, takes longer than it may.
        if (!isDmaError(error) || tries === 200) throw error;
        await sleep(5);
      }
    }
    seen['good peers']++;
  };
  const attacks: (() => Promise<void>)[] = [
    async () => {
      const socket = await open();
      socket.write(HELLO + (LIES[random.below(LIES.length)] ?? ''));
      await good();
      socket.destroy();
      seen.lies++;
    },
    async () => {
      const socket = await open();
      socket.write(HELLO);
      await sleep(5);
      socket.write(Array.from({ length: 150 }, (_, id) => `{"id":${id},"call":"big"}\n`).join(''));
      await good();
      socket.destroy();
      seen.floods++;
    },
    async () => {
      const all = await Promise.all(Array.from({ length: 70 }, open));
      for (const socket of all) socket.write(HELLO.slice(0, random.below(HELLO.length)));
      await good();
      for (const socket of all) socket.destroy();
      seen.silent++;
    },
    async () => {
      const socket = await open();
      socket.end(HELLO.slice(0, random.below(HELLO.length + 1)));
      await good();
      socket.destroy();
      seen.halves++;
    },
    async () => {
      const socket = await open();
      socket.write(HELLO.slice(0, random.below(HELLO.length + 1)));
      socket.resetAndDestroy();
      await good();
      seen.resets++;
    },
  ];
  return {
    seen,
    async round(number) {
      await attacks[number % attacks.length]?.();
    },
    async calm() {
      for (let n = 0; n < 100 && server.sessions > 0; n++) await sleep(20);
      assert.equal(server.sessions, 0);
    },
    async close() {
      await server.close();
    },
  };
}
