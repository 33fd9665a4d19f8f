/**
 * What a hostile peer can do to a server of the RDMA exchange: everything that is not the protocol, at every point of a session,
 * whole, torn, a byte at a time, from peers that stay, leave by halves, leave or reset, and in crowds. The server's process must stay
 * alive, serve the next peer soon, and have no more sessions, descriptors and memory than before.
 */
import assert from 'node:assert/strict';
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { connectToPeer } from '../../src/rdma/exchange.js';
import type { VictimFacts } from './exchange-victim.js';
import { Times } from './times.js';

/** What the process may have grown by, with all its garbage. bytes */
const GROWTH = 200 * 2 ** 20;
/**
 * The server gives up peers after 1.5 s, and looks for a port for one second, on a machine that is busy. {@link Times} tells what it
 * took. milliseconds
 */
const PATIENCE = 6000;

const PAIR = { number: 17, psn: 5, lid: 0, mtu: 1024, reads: 16, qkey: 0 };
/** An address that nobody has. */
const NOWHERE = (last: number): string => `0000:0000:0000:0000:0000:ffff:0a63:${last.toString(16).padStart(4, '0')}`;
const HELLO = { 'anydma-rdma': 1, pairs: [], memory: [] };

const line = (message: unknown): string => `${JSON.stringify(message)}\n`;
const hello = (more: object = {}): string => line({ ...HELLO, ...more });
const ask = (id: unknown, call: unknown, more: object = {}): string => line({ id, call, ...more });
const many = (count: number, make: (n: number) => string): string =>
  Array.from({ length: count }, (_, n) => make(n)).join('');
const NUMBERS = [-1, 0.5, 1e308, -1e308, 2 ** 53, 2 ** 64, 2 ** 32, null, true, '1', [], {}, '__proto__'];
const NAMES = ['__proto__', 'constructor', 'toString', 'hasOwnProperty', '', '\0', 'x'.repeat(10_000)];

/** What can be said instead of a hello, or after one: by what it is. */
const SAYINGS: Readonly<Record<string, string | Buffer>> = {
  nothing: '',
  'an empty line': '\n\n\n',
  'a TLS hello': Buffer.from('16030100c8010000c40303', 'hex'),
  'an HTTP request': 'GET / HTTP/1.1\r\nHost: x\r\n\r\n',
  'bytes that are no text': Buffer.from(Array.from({ length: 1024 }, (_, n) => n & 0xff)),
  'bytes that are no UTF-8': Buffer.from([0x22, 0xff, 0xfe, 0xc0, 0x80, 0x22, 10]),
  zeros: Buffer.alloc(65536),
  'a line without an end': 'x'.repeat(2 ** 20),
  'other JSON': '[]\n',
  'no object': many(4, (n) => `${['null', '1', '"x"', 'true'][n] ?? ''}\n`),
  'a deep array': `${'['.repeat(100_000)}${']'.repeat(100_000)}\n`,
  'a deep object': `${'{"a":'.repeat(40_000)}1${'}'.repeat(40_000)}\n`,
  'a wide array': `{"id":1,"call":"echo","with":[${'[],'.repeat(60_000)}1]}\n`,
  'a megabyte in a line': `{"anydma-rdma":1,"pairs":[],"memory":[],"data":"${'z'.repeat(2 ** 20)}"}\n`,
  'a line of the longest kind': `{"id":1,"call":"echo","with":"${'z'.repeat(2 ** 18 - 40)}"}\n`,
  'numbers of 100,000 digits': `{"anydma-rdma":1,"pairs":[],"memory":[{"address":${'9'.repeat(100_000)},"length":1e999,"rkey":-0}]}\n`,
  'zeros in a line': '{"anydma-rdma":1,\0"pairs":[],"memory":[]}\n{"id":1,"call":"ec\0ho"}\n',
  'half of a surrogate':
    '{"id":1,"call":"echo","with":"\\ud800"}\n{"id":2,"error":"\\udfff","reason":"\\ud800\\u0000"}\n',
  'another version': `{"anydma-rdma":2,"pairs":[],"memory":[]}\n{"anydma-rdma":"1","pairs":[],"memory":[]}\n`,
  'lists that are objects': '{"anydma-rdma":1,"pairs":{"length":3},"memory":{"length":1e9}}\n',
  'addresses at the limits': hello({
    memory: [0, 2 ** 53 - 1].flatMap((address) =>
      [0, 1, 2 ** 53 - 1].map((length) => ({ address, length, rkey: 0xffffffff })),
    ),
  }),
  'pairs at the limits': hello({
    pairs: [
      { number: 2 ** 24 },
      { psn: 2 ** 24 },
      { lid: 65536 },
      { mtu: 1 },
      { reads: 1e9 },
      { qkey: 2 ** 32 },
      { gid: 'x' },
    ].map((wrong) => ({ ...PAIR, gid: NOWHERE(1), ...wrong })),
  }),
  'the same id again and again': many(300, () => ask(1, 'never')),
  'a key twice': '{"anydma-rdma":1,"anydma-rdma":2,"pairs":[],"pairs":5,"memory":[],"id":1,"id":{}}\n',
  prototypes:
    '{"__proto__":{"live":false},"constructor":{"prototype":{"x":1}},"anydma-rdma":1,"pairs":[],"memory":[]}\n',
  'a second hello': hello(),
  'it is ready, many times': many(500, () => line({ ready: true })),
  'a number that can not be': many(NUMBERS.length, (n) => ask(NUMBERS[n], 'echo')),
  'pairs that can not be': hello({ pairs: NUMBERS.map((number) => ({ ...PAIR, gid: NOWHERE(1), number })) }),
  'memory that can not be': hello({ memory: NUMBERS.map((address) => ({ address, length: 1, rkey: 1 })) }),
  'too many pairs': hello({ pairs: new Array<object>(1025).fill({ ...PAIR, gid: NOWHERE(1) }) }),
  'calls of names': many(NAMES.length, (n) => ask(n, NAMES[n])),
  'errors of names': many(NAMES.length, (n) => line({ id: n + 1, error: NAMES[n], reason: NAMES[n] })),
  'answers that nobody asked': many(300, (id) => line({ id, result: { id } })),
  'too many questions': many(1000, (id) => ask(id, 'never')),
  'large questions': many(20, (id) => ask(id, 'echo', { with: 'y'.repeat(100_000) })),
  'questions of explain': many(NUMBERS.length, (n) =>
    ask(n, 'explain', { with: { address: NUMBERS[n], length: NUMBERS[n], rkey: NUMBERS[n], access: NAMES[n] } }),
  ),
  'offers that lead nowhere': many(200, (id) =>
    ask(id, 'rdma-cm', { with: { pair: id, to: id, port: id, token: '0'.repeat(32) } }),
  ),
};

const LEAVES = ['end', 'destroy', 'resetAndDestroy'] as const;

/** The server, and what is known of it. */
class Victim {
  private constructor(
    readonly child: ChildProcess,
    readonly port: number,
    readonly gid: string,
  ) {}

  static async start(): Promise<Victim> {
    const child = fork(fileURLToPath(new URL('./exchange-victim.js', import.meta.url)), [], {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
    const [{ port, gid }] = (await once(child, 'message')) as [VictimFacts];
    return new Victim(child, port, gid);
  }

  async facts(): Promise<VictimFacts & { readonly descriptors: number }> {
    const answer = once(this.child, 'message');
    this.child.send('facts');
    const [facts] = (await answer) as [VictimFacts];
    return { ...facts, descriptors: readdirSync(`/proc/${this.child.pid ?? 0}/fd`).length };
  }

  /** Somebody who means well is served to the end, his queue pair connected, while the others still do what they do. */
  async serves(after: string): Promise<void> {
    assert.ok(this.child.exitCode === null && this.child.signalCode === null, `it died of ${after}`);
    const pairs = [{ ...PAIR, gid: this.gid }];
    const options = { host: '127.0.0.1', port: this.port, timeoutMs: PATIENCE };
    const session = await connectToPeer({ ...options, hello: { pairs, memory: [] } }).catch((cause: unknown) => {
      throw new Error(`nobody is served after ${after}`, { cause });
    });
    await session.ready();
    assert.deepEqual(await session.ask('echo', after), after);
    session.close();
    await session.ended;
  }

  /** It has nothing more than before, soon. */
  async settles(before: VictimFacts & { readonly descriptors: number }, after: string): Promise<void> {
    let now = await this.facts();
    for (let n = 0; n < PATIENCE / 50 && (now.sessions > 0 || now.descriptors > before.descriptors); n++) {
      await delay(50);
      now = await this.facts();
    }
    assert.equal(now.sessions, 0, `sessions after ${after}`);
    assert.ok(
      now.descriptors <= before.descriptors,
      `${now.descriptors} descriptors, ${before.descriptors} before ${after}`,
    );
    assert.ok(now.rss < before.rss + GROWTH, `${now.rss} bytes, ${before.rss} before ${after}`);
  }

  /** Lets go of it: it ends by itself. */
  async ends(): Promise<void> {
    const exited = once(this.child, 'exit');
    this.child.disconnect();
    const killer = setTimeout(() => this.child.kill('SIGKILL'), PATIENCE);
    const [code] = (await exited) as [number | null];
    clearTimeout(killer);
    assert.equal(code, 0, 'it did not end by itself');
  }
}

async function open(port: number): Promise<Socket> {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  socket.on('error', () => undefined);
  // Nothing is read: what is answered stays where it is.
  socket.pause();
  await new Promise<void>((resolve) => {
    socket.once('connect', resolve);
    socket.once('close', () => resolve());
  });
  return socket;
}

async function write(socket: Socket, bytes: string | Buffer): Promise<void> {
  if (bytes.length === 0 || socket.destroyed) return;
  // It may never be taken: nobody waits longer than a turn.
  socket.write(bytes);
  await new Promise(setImmediate);
}

/**
 * All attacks on a server.
 *
 * @param every tear what is said at every n-th part of a hundred
 */
export async function attackExchange(every: number, times = new Times()): Promise<void> {
  const victim = await Victim.start();
  try {
    const { port } = victim;
    await victim.serves('nothing yet');
    const before = await victim.facts();
    for (const [name, saying] of Object.entries(SAYINGS)) {
      const bytes = Buffer.from(saying);
      const staying: Socket[] = [];
      for (const begin of ['', hello()])
        for (const leave of LEAVES) {
          const socket = await open(port);
          await write(socket, begin);
          await write(socket, bytes);
          socket[leave]();
          staying.push(socket);
        }
      for (const begin of ['', hello()]) {
        const socket = await open(port);
        await write(socket, begin);
        await write(socket, bytes);
        staying.push(socket);
      }
      for (let part = every; part < 100; part += every) {
        const at = Math.floor((bytes.length * part) / 100);
        const socket = await open(port);
        await write(socket, hello());
        await write(socket, bytes.subarray(0, at));
        await write(socket, bytes.subarray(at));
        socket[LEAVES[part % LEAVES.length]]();
        staying.push(socket);
      }
      await times.noting(`exchange: ${name}`, victim.child.pid, () => victim.serves(name));
      for (const socket of staying) socket.destroy();
    }
    await times.noting('exchange: nothing left', victim.child.pid, () =>
      victim.settles(before, 'all that can be said'),
    );
    await crowds(victim, before, times);
    await victim.ends();
  } finally {
    victim.child.kill('SIGKILL');
  }
}

/** Peers that are many, slow, deaf or nowhere, at once; and who means well in between. */
async function crowds(victim: Victim, before: Awaited<ReturnType<Victim['facts']>>, times: Times): Promise<void> {
  const { port } = victim;
  const crowd = async (
    name: string,
    count: number,
    each: (socket: Socket, n: number) => Promise<void>,
  ): Promise<void> => {
    const sockets = await Promise.all(Array.from({ length: count }, () => open(port)));
    await Promise.all(sockets.map(each));
    await times.noting(`exchange: ${name}`, victim.child.pid, () => victim.serves(name));
    for (const socket of sockets) socket.destroy();
    await times.noting(`exchange: nothing left of ${name}`, victim.child.pid, () => victim.settles(before, name));
  };
  await crowd('silent peers', 100, async () => undefined);
  await crowd('peers that begin a line', 100, (socket) => write(socket, '{"anydma'));
  await crowd('addresses of nobody', 20, (socket, n) =>
    write(socket, hello({ pairs: [{ ...PAIR, gid: NOWHERE(n) }] })),
  );
  await crowd('peers that do not read', 10, async (socket) => {
    await write(socket, hello());
    await delay(100);
    await write(
      socket,
      many(200, (id) => ask(id, 'big')),
    );
  });
  await crowd('peers that reset', 100, async (socket, n) => {
    await write(socket, hello().slice(0, n));
    socket.resetAndDestroy();
  });
  await crowd('bytes one by one', 10, async (socket) => {
    socket.setNoDelay(true);
    await write(socket, hello());
    for (let n = 0; n < 500 && !socket.destroyed; n++) await write(socket, 'x');
  });
}
