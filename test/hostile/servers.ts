/**
 * What a hostile or broken server can do to our client: every answer torn, repeated, late, out of order and wrong, with every kind of
 * descriptor, and questions in between. The client's process must stay alive, be served by the next server, and have no more
 * descriptors and mappings than before.
 */
import assert from 'node:assert/strict';
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { isDmaError } from '../../src/errors.js';
import type { Platform } from '../../src/platform/ports.js';
import * as m from '../../src/vfio-user/messages.js';
import { serveScripted, type FakeServer } from '../fakes/vfio-user/server.js';
import type { Thoroughness } from './battery.js';
import { descriptorKinds } from './kinds.js';
import { asNobody, NOBODY } from './nobody.js';
import { Times } from './times.js';

/** Milliseconds within which the process that was attacked is as before, on a machine that is busy. {@link Times} tells what it took. */
const SOON = 5000;
/** Milliseconds that it waits for an answer. */
const PATIENCE = 300;

/** What a server does instead of a good answer. */
interface Attack {
  readonly name: string;
  /** The command that it answers so; the first of its kind. */
  readonly command: number;
  /** Only for servers of another user: this user's may make it wait. */
  readonly strangers?: boolean;
  readonly act: (server: FakeServer, message: m.Message, good: Uint8Array) => void;
}

const COMMANDS = Object.entries({
  VERSION: m.COMMAND.VERSION,
  GET_INFO: m.COMMAND.GET_INFO,
  GET_REGION_INFO: m.COMMAND.GET_REGION_INFO,
  GET_IRQ_INFO: m.COMMAND.GET_IRQ_INFO,
  REGION_READ: m.COMMAND.REGION_READ,
  REGION_WRITE: m.COMMAND.REGION_WRITE,
  DMA_MAP: m.COMMAND.DMA_MAP,
  DMA_UNMAP: m.COMMAND.DMA_UNMAP,
  SET_IRQS: m.COMMAND.SET_IRQS,
  RESET: m.COMMAND.RESET,
});

function changed(bytes: Uint8Array, change: (copy: Uint8Array) => void): Uint8Array {
  const copy = bytes.slice();
  change(copy);
  return copy;
}

/** A header that says `size`, and as much of an answer as there is. */
function padded(bytes: Uint8Array, size: number): Uint8Array {
  const longer = new Uint8Array(size);
  longer.set(bytes.subarray(0, size));
  m.put32(longer, 4, size);
  return longer;
}

/** What is sent instead of the answer. */
const ANSWERS: Readonly<Record<string, (good: Uint8Array) => Uint8Array>> = {
  'for another id': (good) => changed(good, (b) => (b[0] ^= 0xff)),
  'for another command': (good) => changed(good, (b) => (b[2] ^= 0x0c)),
  'for a command that there is not': (good) => changed(good, (b) => (b[3] = 0x7f)),
  'an error without a number': (good) => changed(good.subarray(0, 16), (b) => headed(b, 16, 0x21, 0)),
  'an error with a strange number': (good) => changed(good.subarray(0, 16), (b) => headed(b, 16, 0x21, 0xffffffff)),
  'an error that would be a signal to go on': (good) => changed(good.subarray(0, 16), (b) => headed(b, 16, 0x21, 11)),
  'an error that claims to be a command': (good) => changed(good.subarray(0, 16), (b) => headed(b, 16, 0x20, 22)),
  'an error with a payload': (good) => changed(good, (b) => headed(b, b.length, 0x21, 5)),
  'a command': (good) => changed(good, (b) => headed(b, b.length, 0, 0)),
  'neither command nor answer': (good) => changed(good, (b) => headed(b, b.length, 0xf, 0)),
  'that wants no answer': (good) => changed(good, (b) => headed(b, b.length, 0x11, 0)),
  'of size 0': (good) => changed(good, (b) => m.put32(b, 4, 0)),
  'of size 15': (good) => changed(good, (b) => m.put32(b, 4, 15)),
  'of 4 GiB': (good) => changed(good, (b) => m.put32(b, 4, 0xffffffff)),
  'of the largest size': (good) => padded(good, m.MAX_MESSAGE),
  'of more than that': (good) => changed(good, (b) => m.put32(b, 4, m.MAX_MESSAGE + 1)),
  'without a payload': (good) => padded(good, 16),
  'with half a payload': (good) => padded(good, 16 + Math.floor((good.length - 16) / 2)),
  'with a byte less': (good) => padded(good, Math.max(16, good.length - 1)),
  'with a byte more': (good) => padded(good, good.length + 1),
  'with 4 KiB more': (good) => padded(good, good.length + 4096),
  'all zeros': (good) => changed(good, (b) => b.fill(0, 16)),
  'all ones': (good) => changed(good, (b) => b.fill(0xff, 16)),
  'the largest signed numbers': (good) => changed(good, (b) => b.fill(0xff, 16).fill(0x7f, b.length - 1)),
  nonsense: () => new Uint8Array(64).fill(0xee),
};

/** Capabilities that VERSION is answered with. */
const TEXTS: Readonly<Record<string, string | Uint8Array>> = {
  'numbers that can not be': '{"capabilities":{"max_msg_fds":1e999,"max_data_xfer_size":-1,"pgsizes":1e-5}}\0',
  'numbers of 10,000 digits': `{"capabilities":{"pgsizes":${'9'.repeat(10_000)}}}\0`,
  'no transfers at all': '{"capabilities":{"max_data_xfer_size":1,"max_msg_fds":0,"max_dma_maps":1}}\0',
  'the same key twice': '{"capabilities":{},"capabilities":{"max_msg_fds":{}}}\0',
  prototypes:
    '{"__proto__":{"capabilities":{}},"constructor":1,"capabilities":{"__proto__":{"pgsizes":0},"toString":1}}\0',
  'a deep array': `${'['.repeat(8000)}${']'.repeat(8000)}\0`,
  'a deep object': `${'{"capabilities":'.repeat(1000)}1${'}'.repeat(1000)}\0`,
  'zeros in the middle': '{"capabilities"\0:{}}\0',
  'no end': '{"capabilities":{}}',
  'no UTF-8': Uint8Array.of(0x7b, 0x22, 0xff, 0xc0, 0x80, 0x22, 0x3a, 0x31, 0x7d, 0),
  'a megabyte': `{"x":"${'x'.repeat(2 ** 20 - 100)}"}\0`,
  'a version of the future': '{"capabilities":{}}\0',
};

/** An answer to VERSION with this text. */
function withText(good: Uint8Array, name: string, text: string | Uint8Array): Uint8Array {
  const bytes = typeof text === 'string' ? Buffer.from(text) : text;
  const answer = new Uint8Array(20 + bytes.length);
  answer.set(good.subarray(0, 16));
  m.put32(answer, 4, answer.length);
  m.put16(answer, 16, name.includes('future') ? 0xffff : 0);
  m.put16(answer, 18, 1);
  answer.set(bytes, 20);
  return answer;
}

/** One more capability of a region, that begins at `at` of the payload. */
const capability = (at: number, id: number, next: number): readonly [number, number][] => [
  [at, id | (1 << 16)],
  [at + 4, next],
];
const FLAGS_ALL = 0xf;
/** 64-bit words of the answer to GET_REGION_INFO, and then 32-bit words, by their offset in the payload; and how long it is. */
const REGION_LIES: Readonly<
  Record<
    string,
    {
      readonly longs?: readonly [number, bigint][];
      readonly words?: readonly (readonly [number, number])[];
      readonly length?: number;
    }
  >
> = {
  'of 2^63 bytes': { longs: [[16, 2n ** 63n]] },
  'of 2^53 bytes': { longs: [[16, 2n ** 53n]] },
  'of all but a page of 2^53 bytes': { longs: [[16, 2n ** 53n - 4096n]], words: [[4, 7]] },
  'at the end of all files': { longs: [[24, 2n ** 64n - 4096n]] },
  'at an odd place': { longs: [[24, 1n]], words: [[4, 7]] },
  'that is another one': { words: [[8, 5]] },
  'that needs 4 GiB to tell of': {
    words: [
      [0, 0xffffffff],
      [4, 7],
    ],
  },
  'that needs a megabyte to tell of': {
    words: [
      [0, 2 ** 20],
      [4, 7],
    ],
  },
  'with capabilities outside': {
    words: [
      [4, FLAGS_ALL],
      [12, 0x10000],
    ],
    length: 64,
  },
  'with capabilities in its head': {
    words: [
      [4, FLAGS_ALL],
      [12, 4],
    ],
    length: 64,
  },
  'with capabilities at an odd place': {
    words: [
      [4, FLAGS_ALL],
      [12, 33],
    ],
    length: 64,
  },
  'with capabilities in a circle': {
    words: [[4, FLAGS_ALL], [12, 32], ...capability(32, 7, 48), ...capability(48, 7, 32)],
    length: 96,
  },
  'with 2^32 areas': { words: [[4, FLAGS_ALL], [12, 32], ...capability(32, 1, 0), [40, 0xffffffff]], length: 96 },
  'with areas outside': {
    longs: [
      [48, 2n ** 40n],
      [56, 4096n],
    ],
    words: [[4, FLAGS_ALL], [12, 32], ...capability(32, 1, 0), [40, 1]],
    length: 64,
  },
  'with areas that pass 2^64': {
    longs: [
      [48, 2n ** 64n - 4096n],
      [56, 8192n],
    ],
    words: [[4, FLAGS_ALL], [12, 32], ...capability(32, 1, 0), [40, 1]],
    length: 64,
  },
  'with the same area 1024 times': {
    longs: Array.from({ length: 2048 }, (_, n): [number, bigint] => [48 + n * 8, n % 2 === 0 ? 0n : 4096n]),
    words: [[4, FLAGS_ALL], [12, 32], ...capability(32, 1, 0), [40, 1024]],
    length: 48 + 1024 * 16,
  },
};

function lying(good: Uint8Array, { longs = [], words = [], length = 0 }: (typeof REGION_LIES)[string]): Uint8Array {
  const answer = padded(good, Math.max(good.length, 16 + length));
  const view = new DataView(answer.buffer);
  for (const [at, value] of longs) view.setBigUint64(16 + at, value, true);
  for (const [at, value] of words) view.setUint32(16 + at, value, true);
  return answer;
}

function headed(bytes: Uint8Array, size: number, flags: number, errno: number): void {
  m.put32(bytes, 4, size);
  m.put32(bytes, 8, flags);
  m.put32(bytes, 12, errno);
}

/** Questions of the server, as many as it likes. */
function questions(): Uint8Array[] {
  const out = new Uint8Array(m.MAX_MESSAGE);
  const cut = (size: number): Uint8Array => out.slice(0, size);
  return [
    cut(m.encodeDmaRead(out, 1, 0, 0)),
    cut(m.encodeDmaRead(out, 2, 0, m.MAX_DATA)),
    cut(m.encodeDmaRead(out, 3, 2 ** 52, 65536)),
    cut(m.encodeDmaWrite(out, 4, 0, new Uint8Array(4096))),
    changed(cut(m.encodeDmaWrite(out, 5, 0, new Uint8Array(64))), (b) => m.put32(b, 24, 0xffffffff)),
    changed(cut(m.encodeDmaRead(out, 6, 0, 64)), (b) => b.fill(0xff, 16)),
    cut(m.putCommand(out, 7, m.COMMAND.DMA_READ, 0)),
    cut(m.putCommand(out, 8, m.COMMAND.RESET, 0)),
    cut(m.putCommand(out, 9, 4711, 64)),
  ];
}

/** All attacks. @param every answers are torn at every n-th byte. @param after gets what to do when the client is through */
function attacks(
  platform: Platform,
  kinds: ReturnType<typeof descriptorKinds>['kinds'],
  every: number,
  after: (() => void)[],
): Attack[] {
  const { sockets, files } = platform;
  /** Past what queues: these bytes, as they are, if there is room. */
  const raw = (server: FakeServer, bytes: Uint8Array): void => {
    if (server.channel.failure === undefined && bytes.length > 0) sockets.send(server.channel.fd, bytes, 0, []);
  };
  const list: Attack[] = [];
  for (const [name, command] of COMMANDS) {
    const add = (how: string, act: Attack['act'], strangers = false): void =>
      void list.push({ name: `${name}: ${how}`, command, act, strangers });
    for (const [how, answer] of Object.entries(ANSWERS))
      add(`an answer ${how}`, (server, _message, good) => void server.channel.send(answer(good)));
    for (let at = 0; at < 16 + 32; at += every)
      add(`torn at ${at}`, (server, _message, good) => {
        raw(server, good.subarray(0, at));
        server.close();
      });
    add('torn, and then nothing', (server, _message, good) => raw(server, good.subarray(0, good.length - 1)));
    add('no answer', () => undefined);
    add('late', (server, _message, good) => {
      setTimeout(() => server.channel.send(good), PATIENCE + 20);
    });
    add('repeated', (server, _message, good) => {
      for (let n = 0; n < 50; n++) server.channel.send(good);
    });
    add('the answer to the next one first', (server, _message, good) => {
      server.channel.send(changed(good, (b) => (b[0] += 1)));
      server.channel.send(good);
    });
    add('byte by byte', (server, _message, good) => {
      for (let at = 0; at < good.length; at++) raw(server, good.subarray(at, at + 1));
    });
    add('questions first', (server, _message, good) => {
      for (const question of questions()) server.channel.send(question);
      server.channel.send(good);
    });
    add('only questions', (server) => {
      for (let n = 0; n < 200; n++)
        for (const question of questions()) if (question.length < 256) server.channel.send(question);
    });
    if (command === m.COMMAND.VERSION)
      for (const [what, text] of Object.entries(TEXTS))
        add(`an answer with ${what}`, (server, _message, good) => void server.channel.send(withText(good, what, text)));
    if (command === m.COMMAND.GET_REGION_INFO)
      for (const [what, lie] of Object.entries(REGION_LIES))
        add(`a region ${what}`, (server, _message, good) => {
          const fd = platform.memory.memfd({ name: 'ok', length: 2 ** 22 });
          server.channel.send(lying(good, lie), [fd]);
          files.close(fd);
        });
    if (command === m.COMMAND.GET_INFO || command === m.COMMAND.GET_IRQ_INFO)
      for (const [what, value] of Object.entries({ '64': 64, '65': 65, '2^31': 2 ** 31, '2^32 - 1': 2 ** 32 - 1 }))
        add(
          `${what} of each`,
          (server, _message, good) =>
            void server.channel.send(
              changed(good, (b) => {
                if (command === m.COMMAND.GET_INFO) m.put32(b, 24, value);
                m.put32(b, 28, value);
              }),
            ),
        );
    add('twice, and different', (server, _message, good) => {
      server.channel.send(good);
      server.channel.send(changed(good, (b) => b.fill(0x11, 16)));
    });
    add('a stop of reading', (server, _message, good) => {
      server.channel.send(good);
      server.channel.pause();
    });
    for (const count of [1, 17, 253])
      add(`with ${count} descriptors that nobody asked for`, (server, _message, good) => {
        const fd = platform.events.create();
        sockets.send(server.channel.fd, good, 0, new Array<number>(count).fill(fd));
        files.close(fd);
      });
    for (const kind of kinds) {
      if (command === m.COMMAND.GET_INFO || command > m.COMMAND.REGION_READ) continue;
      const act: Attack['act'] = (server, message, good) => {
        const fd = kind.make();
        try {
          // Where the descriptor has a meaning: another socket, and memory to map.
          server.channel.send(meaningful(message, good), [fd]);
          kind.afterwards?.(fd);
        } finally {
          after.push(() => {
            kind.calm?.(fd);
            files.closeForeign(fd);
          });
        }
      };
      add(`with ${kind.name}`, act, kind.locks);
    }
  }
  return list;
}

/** The answer, changed so that a descriptor belongs to it, if one may. */
function meaningful(message: m.Message, good: Uint8Array): Uint8Array {
  const out = new Uint8Array(4096);
  if (message.command === m.COMMAND.VERSION) {
    const version = m.encodeVersion({
      ...m.PROTOCOL_VERSION,
      capabilities: { ...m.DEFAULT_CAPABILITIES, twinSocket: { fdIndex: 0 } },
    });
    out.set(version, m.HEADER_SIZE);
    return out.slice(0, m.putReply(out, message.id, message.command, version.length));
  }
  if (message.command !== m.COMMAND.GET_REGION_INFO) return good;
  const region = { index: 0, size: 65536, readable: true, writable: true, mappable: true, fdOffset: 0, argsz: 0 };
  const areas = [{ offset: 0, length: 65536 }];
  return out.slice(0, m.encodeRegionInfo(out, message.id, { ...region, areas }, 4096));
}

/** A process that uses devices, one after the other. */
class Victim {
  readonly #child: ChildProcess;

  constructor() {
    this.#child = fork(fileURLToPath(new URL('./client.js', import.meta.url)), [], {
      execArgv: ['--disable-warning=ANYDMA_NOT_MAPPED'],
    });
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** Uses the device of that name. Returns how each step ended: a code, or `ok`. */
  async use(device: string, what: string): Promise<readonly string[]> {
    const child = this.#child;
    assert.ok(child.exitCode === null && child.signalCode === null, `it died before ${what}`);
    const outcome = await new Promise<readonly string[]>((resolve, reject) => {
      const settle = (work: () => void): void => {
        clearTimeout(timer);
        child.off('exit', onExit).off('message', onMessage);
        work();
      };
      const timer = setTimeout(() => settle(() => reject(new Error(`it hangs after ${what}`))), 120_000);
      const onExit = (code: number | null, signal: string | null): void =>
        settle(() => reject(new Error(`it died of ${what}: ${code ?? signal}`)));
      const onMessage = (message: unknown): void => settle(() => resolve(message as readonly string[]));
      child.once('exit', onExit).once('message', onMessage);
      child.send(device);
    });
    for (const each of outcome) assert.match(each, /^[A-Za-z]+: (ok|E[A-Z0-9]+)$/, `${what}: ${each}`);
    return outcome;
  }

  /** What it has now. */
  has(): { readonly descriptors: number; readonly mappings: number } {
    const proc = `/proc/${this.#child.pid ?? 0}`;
    const maps = readFileSync(`${proc}/maps`, 'utf8').split('\n');
    return {
      descriptors: readdirSync(`${proc}/fd`).length,
      mappings: maps.filter((line) => line.includes('/memfd:') || line.includes('/plain')).length,
    };
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exited = once(this.#child, 'exit');
    this.#child.disconnect();
    await exited;
  }
}

/** All attacks on a client, by servers of this user, and as root of another one. */
export async function attackClient(
  platform: Platform,
  folder: string,
  { every, some, times = new Times() }: Thoroughness,
): Promise<number> {
  const descriptors = join(folder, 'descriptors');
  mkdirSync(descriptors);
  const { kinds, close } = descriptorKinds(platform, descriptors);
  // Anybody may make sockets here, so that a server of another user can.
  chmodSync(folder, 0o777);
  const victim = new Victim();
  const good = serveScripted(platform, join(folder, 'good'), () => undefined);
  /** The next server is one to rely on. */
  const isServed = async (what: string): Promise<void> => {
    const outcome = await times.noting('client: the next server', victim.pid, () =>
      victim.use(`${join(folder, 'good')},timeout=5000`, what),
    );
    assert.deepEqual(
      outcome.filter((each) => !each.endsWith(': ok')),
      [],
      what,
    );
  };
  try {
    // The first ones warm up: workers of libuv, the poll descriptors of the event loop.
    for (let n = 0; n < 3; n++) await isServed('nothing yet');
    const before = victim.has();
    let done = 0;
    const begin = some > 1 ? Math.floor(Math.random() * some) : 0;
    const after: (() => void)[] = [];
    const all = attacks(platform, kinds, every, after);
    for (let n = begin; n < all.length; n += some) {
      const { name, command, act, strangers = false } = all[n];
      if (strangers && process.getuid?.() !== 0) continue;
      const path = join(folder, `bad${n}`);
      let acted = false;
      const serving = (): (() => void) =>
        serveScripted(platform, path, (message, server) => {
          if (acted || message.command !== command || (message.flags & m.FLAG.NO_REPLY) !== 0) return undefined;
          acted = true;
          act(server, message, server.good(message));
          return 'nothing';
        });
      // Another user's server in every other round, with what is mapped by default; else one of this user's, that nothing is mapped of.
      const stranger = strangers || (process.getuid?.() === 0 && done % 2 === 1);
      const end = stranger ? asNobody(serving) : serving();
      try {
        const trust = stranger ? `user=${NOBODY}` : 'mmap=sealed';
        const kind = `client: ${name.replace(/^.*?: /, '').replace(/ \d+$/, '')}${stranger ? ' by another user' : ''}`;
        const [first] = await times.noting(kind, victim.pid, () =>
          victim.use(`${path},timeout=${PATIENCE},${trust}`, name),
        );
        // On a machine that is busy the server may have been too slow to get that far.
        assert.ok(acted || first === 'probe: ETIMEDOUT', `${name} never happened`);
      } catch (error) {
        throw isDmaError(error) ? error : new Error(`${name}${stranger ? ' of another user' : ''}`, { cause: error });
      } finally {
        for (const undo of after.splice(0)) undo();
        end();
        rmSync(path, { force: true });
      }
      if (done++ % 8 === 7) await isServed(name);
    }
    await isServed('all of it');
    let now = victim.has();
    for (let n = 0; n < SOON / 20 && (now.descriptors > before.descriptors || now.mappings > before.mappings); n++) {
      await delay(20);
      now = victim.has();
    }
    assert.ok(now.descriptors <= before.descriptors, `${now.descriptors} descriptors, ${before.descriptors} before`);
    assert.ok(now.mappings <= before.mappings, `${now.mappings} mappings, ${before.mappings} before`);
    return done;
  } finally {
    good();
    await victim.stop();
    close();
  }
}
