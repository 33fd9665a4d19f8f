/**
 * A hostile process at the socket of a primary: `share-attacker.js SOCKET SEED INPUTS`. It says each second, and at its end, how much it has
 * sent and got. It runs until it has given all its inputs, or is killed.
 */
import { execFileSync } from 'node:child_process';
import { constants, mkdtempSync, openSync, rmSync, truncateSync, unlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises';
import { isDmaError } from '../../src/errors.js';
import { openPlatform } from '../../src/platform/open.js';
import type { Json, JsonObject } from '../../src/fields.js';
import { answerMessage, PROTOCOL, questionMessage } from '../../src/share/wire.js';
import { HEADER_SIZE } from '../../src/vfio-user/messages.js';
import { Random } from '../shared/random.js';

/** What the attacker has done. */
export interface AttackReport {
  inputs: number;
  connections: number;
  /** Descriptors that were sent. */
  descriptors: number;
  /** Bytes that the primary answered. */
  answered: number;
}

const { sockets, files, memory, events } = openPlatform();
const OP = 'fuzz';

const NAMES = [
  'hello attach bye facts release cancel malloc zones.list zones.find zones.reserve zones.free pools.list pools.find pools.create',
  'pools.free heaps.list heaps.attachMemory heaps.detachMemory external.list external.attach external.detach external.allocate',
  'external.fromFd devices.list devices.probe devices.remove devices.map devices.iovaOf window memory.add memory.remove progress ended',
  'rings.list rings.find rings.create rings.free x constructor __proto__',
].flatMap((line) => line.split(' '));
const KEYS = [
  'id name length size va options operation work progress device protocol version label pool words elements elementSize cache heap',
  'node align zero free wipe force access iova label __proto__ constructor toString',
].flatMap((line) => line.split(' '));
const SIZES = [0, 1, 63, 64, 4095, 4096, 8192, 65536, 2 ** 20, 2 ** 50, 2 ** 53 - 1, 2 ** 53, -1, 1.5, 1e308];

/** Descriptors of odd kinds, and how to spoil some of them later. */
class OddFiles {
  readonly fds: number[] = [];
  readonly #spoil: (() => void)[] = [];
  readonly #folder = mkdtempSync(join(tmpdir(), 'odd-'));

  constructor() {
    const { O_RDWR, O_NONBLOCK, O_DIRECTORY } = constants;
    const file = join(this.#folder, 'file');
    writeFileSync(file, Buffer.alloc(65536));
    const deleted = join(this.#folder, 'deleted');
    writeFileSync(deleted, Buffer.alloc(65536));
    const fifo = join(this.#folder, 'fifo');
    execFileSync('mkfifo', [fifo]);
    for (const [path, flags] of [
      [file, 'r'],
      [file, 'r+'],
      [file, 'a'],
      [deleted, 'r+'],
      [fifo, O_RDWR | O_NONBLOCK],
      [this.#folder, O_DIRECTORY],
      ['/', O_DIRECTORY],
      ['/dev/null', 'r+'],
      ['/dev/zero', 'r+'],
      ['/dev/full', 'r+'],
      ['/dev/urandom', 'r'],
      ['/proc/self/maps', 'r'],
      ['/proc/self/mem', 'r'],
      ['/proc/self/ns/pid', 'r'],
    ] as const)
      try {
        this.fds.push(openSync(path, flags));
      } catch {
        // Another user may not open it.
      }
    unlinkSync(deleted);
    this.#spoil.push(
      () => truncateSync(file, 0),
      () => truncateSync(file, 65536),
    );
    for (const sealed of [true, false])
      for (const length of [4096, 65536, 2 ** 20]) {
        const fd = memory.memfd({ name: 'fuzz', length, sealed });
        this.fds.push(fd);
        if (sealed) continue;
        for (const to of [0, 4096, length]) this.#spoil.push(() => truncateSync(`/proc/self/fd/${fd}`, to));
      }
    this.fds.push(events.create());
  }

  spoil(random: Random): void {
    random.pick(this.#spoil)();
  }

  close(): void {
    for (const fd of this.fds) files.closeForeign(fd);
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

/** One connection, with a manner. */
class Connection {
  readonly #into = new Uint8Array(64 * 1024);
  #left = new Uint8Array(0);
  /** Messages that were sent, to be repeated. */
  readonly #sent: Uint8Array[] = [];
  /** Numbers that the primary gave. */
  readonly #ids: number[] = [];
  readonly #places: { readonly va: number; readonly length: number }[] = [];
  #nextId = 1;
  open = true;
  /** Questions that were not answered yet. */
  waiting = 0;

  constructor(
    readonly fd: number,
    readonly answers: 'honest' | 'nonsense' | 'none',
    readonly odd: OddFiles,
    readonly random: Random,
    readonly report: AttackReport,
  ) {}

  send(bytes: Uint8Array, fds: readonly number[] = []): void {
    if (!this.open) return;
    this.report.inputs++;
    this.report.descriptors += fds.length;
    try {
      // What does not go in is left out: then it is half a frame.
      sockets.send(this.fd, bytes, 0, fds);
    } catch (error) {
      if (!isDmaError(error)) throw error;
      this.close();
    }
  }

  ask(name: string, fields: JsonObject, fds: readonly number[] = []): void {
    let bytes: Uint8Array;
    try {
      bytes = questionMessage(this.#nextId++ & 0xffff, { ask: name, with: fields }, OP);
    } catch {
      return; // too long
    }
    this.waiting++;
    this.#sent.push(bytes);
    if (this.#sent.length > 32) this.#sent.shift();
    this.send(bytes, fds);
  }

  /** Reads what is there, and answers in its manner. */
  read(): void {
    for (let n = 0; this.open && n < 64; n++) {
      let got;
      try {
        got = sockets.receive(this.fd, this.#into, 16);
      } catch (error) {
        if (!isDmaError(error)) throw error;
        this.close();
        return;
      }
      if (got === undefined) return;
      for (const fd of got.fds) files.closeForeign(fd);
      if (got.bytes === 0) {
        this.close();
        return;
      }
      this.report.answered += got.bytes;
      const bytes = new Uint8Array(this.#left.length + got.bytes);
      bytes.set(this.#left);
      bytes.set(this.#into.subarray(0, got.bytes), this.#left.length);
      this.#left = this.#messages(bytes);
    }
  }

  #messages(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
    let at = 0;
    const view = new DataView(bytes.buffer);
    while (bytes.length - at >= HEADER_SIZE) {
      const size = view.getUint32(at + 4, true);
      if (size < HEADER_SIZE || bytes.length - at < size) break;
      const text = new TextDecoder().decode(bytes.subarray(at + HEADER_SIZE, at + size));
      if ((view.getUint32(at + 8, true) & 0xf) === 0) this.#answer(view.getUint16(at, true));
      else {
        this.waiting--;
        this.#learn(text);
      }
      at += size;
    }
    return bytes.slice(at);
  }

  #answer(id: number): void {
    if (this.answers === 'honest') this.send(answerMessage(id, { result: {} }, OP));
    else if (this.answers === 'nonsense')
      this.send(
        answerMessage(
          this.random.oneIn(3) ? this.random.below(65536) : id,
          this.random.pick<JsonObject>([
            {},
            { result: 7 },
            { result: [] },
            { error: null },
            { error: { code: 'EEXIST', reason: 'x'.repeat(100), cause: { cause: { cause: {} } }, undo: [1, 2] } },
            { error: 'no', result: {} },
          ]),
          OP,
        ),
      );
  }

  /** Takes numbers and addresses from answers, so that later questions are about what there is. */
  #learn(text: string): void {
    for (const [, id] of text.matchAll(/"id":(\d+)/g)) this.#ids.push(Number(id));
    for (const [, va, length] of text.matchAll(/"va":(\d+),"length":(\d+)/g))
      this.#places.push({ va: Number(va), length: Number(length) });
    this.#ids.splice(0, this.#ids.length - 16);
    this.#places.splice(0, this.#places.length - 16);
  }

  #place(): JsonObject {
    const { random } = this;
    const known = this.#places.length > 0 && !random.oneIn(4) ? random.pick(this.#places) : { va: 0, length: 4096 };
    const va = random.oneIn(4) ? random.pick([0, known.va + 4096, known.va - 1, 2 ** 47, 2 ** 53]) : known.va;
    return { va, length: random.oneIn(3) ? random.pick(SIZES) : known.length };
  }

  #value(depth = 0): Json {
    const { random } = this;
    return random.pick<() => Json>([
      () => null,
      () => random.pick(SIZES),
      () => random.below(64),
      () => (this.#ids.length > 0 ? random.pick(this.#ids) : 1),
      () =>
        random.pick([
          'zone',
          'mine',
          'packets',
          'frames',
          'socket_0',
          'vdev:edu0',
          '',
          'x'.repeat(300),
          '\u0000',
          '../x',
        ]),
      () => random.oneIn(2),
      () => (depth > 2 ? [] : [this.#value(depth + 1), this.#value(depth + 1)]),
      () => (depth > 2 ? {} : this.#object(depth + 1)),
    ])();
  }

  #object(depth: number): JsonObject {
    const { random } = this;
    return Object.fromEntries(Array.from({ length: random.below(5) }, () => [random.pick(KEYS), this.#value(depth)]));
  }

  #someFds(): number[] {
    const { random, odd } = this;
    if (!random.oneIn(6)) return [];
    return Array.from({ length: random.oneIn(50) ? random.pick([17, 40]) : random.pick([1, 1, 2, 16]) }, () =>
      random.pick(odd.fds),
    );
  }

  /** Does one hostile thing. */
  act(): void {
    const { random, odd } = this;
    const size = (): number => random.pick(SIZES.filter((each) => each < 2 ** 21 || each >= 2 ** 50));
    switch (random.below(22)) {
      case 0:
        this.ask('malloc', { size: size(), options: random.oneIn(3) ? this.#object(0) : {}, work: random.below(8) });
        break;
      case 1:
        this.ask('release', {
          id: this.#ids.length > 0 && !random.oneIn(4) ? random.pick(this.#ids) : this.#value(),
          operation: 'free',
          options: random.oneIn(2) ? {} : this.#object(1),
        });
        break;
      case 2:
        this.ask('zones.reserve', { name: random.pick(['mine', 'zone', 'x']), length: size(), options: {} });
        break;
      case 3:
        this.ask(random.pick(['zones.find', 'zones.free']), { name: random.pick(['mine', 'zone', 'x', 'keep']) });
        break;
      case 4:
        this.ask('external.allocate', { length: size(), options: random.oneIn(3) ? this.#object(0) : {} });
        break;
      case 5:
      case 6:
        this.ask('external.fromFd', { options: random.oneIn(3) ? this.#object(0) : {} }, [random.pick(odd.fds)]);
        if (random.oneIn(3)) odd.spoil(random);
        break;
      case 7:
        this.ask(
          random.pick(['external.attach', 'external.detach']),
          random.oneIn(2) ? { name: 'frames' } : this.#place(),
        );
        break;
      case 8:
        this.ask('devices.map', {
          device: 'vdev:edu0',
          ...this.#place(),
          options: random.oneIn(4) ? this.#object(0) : {},
        });
        break;
      case 9:
        this.ask('devices.iovaOf', { device: 'vdev:edu0', ...this.#place() });
        break;
      case 10: {
        const options = { name: random.pick(['mine', 'packets', 'y']), elements: random.below(200), elementSize: 64 };
        this.ask('pools.create', { options: random.oneIn(4) ? this.#object(0) : options });
        break;
      }
      case 11:
        this.ask(random.pick(['pools.find', 'pools.free']), { name: random.pick(['mine', 'packets', 'y']) });
        break;
      case 12:
        if (random.oneIn(2)) {
          const options = { size: random.pick([0, 1, 7, 64, 2 ** 40]), pool: random.pick(['packets', 'mine', 'y']) };
          this.ask('rings.create', {
            name: random.pick(['r', 's']),
            options: random.oneIn(2) ? options : { size: 16 },
          });
          this.ask(random.pick(['rings.find', 'rings.free']), { name: random.pick(['r', 's']) });
        }
        this.ask(random.pick(['heaps.attachMemory', 'heaps.detachMemory']), { name: 'named', ...this.#place() });
        break;
      case 13:
        this.ask(random.pick(['devices.probe', 'devices.remove']), {
          name: random.pick(['vdev:edu0', 'vdev:edu1', 'vdev:none0', 'pci:0000:ff:1f.7', '', ':', 'vdev:edu0,x=y']),
          device: random.oneIn(8) ? 'vdev:edu0' : random.pick(['vdev:edu1', 'vdev:none0']),
        });
        break;
      case 14: {
        // Random bytes of a message that made sense.
        if (this.#sent.length === 0) break;
        const bytes = random.pick(this.#sent).slice();
        for (let n = random.below(4); n >= 0; n--) bytes[random.below(bytes.length)] ^= 1 << random.below(8);
        if (random.oneIn(16)) this.send(bytes, this.#someFds());
        break;
      }
      case 15:
        // Again, word for word.
        if (this.#sent.length > 0) this.send(random.pick(this.#sent), this.#someFds());
        break;
      case 16:
        // A lie about the size, half a frame, or noise: the end of the connection, sooner or later.
        if (random.oneIn(16)) this.#lie();
        break;
      case 17:
        this.send(answerMessage(random.below(65536), { result: this.#object(0) }, OP), this.#someFds());
        break;
      default: {
        const name = random.pick(NAMES);
        if (['bye', 'hello'].includes(name) && !random.oneIn(10)) break;
        this.ask(name, random.oneIn(2) ? { ...this.#place(), ...this.#object(0) } : this.#object(0), this.#someFds());
      }
    }
  }

  #lie(): void {
    const { random } = this;
    const bytes = questionMessage(1, { ask: 'facts', with: {} }, OP);
    switch (random.below(4)) {
      case 0:
        new DataView(bytes.buffer).setUint32(4, random.pick([0, 1, 15, 16, 2 ** 20, 2 ** 31, 2 ** 32 - 1]), true);
        this.send(bytes);
        break;
      case 1:
        this.send(bytes.subarray(0, 1 + random.below(bytes.length - 1)), this.#someFds());
        break;
      case 2:
        this.send(random.bytes(1 + random.below(200)), this.#someFds());
        break;
      default:
        new DataView(bytes.buffer).setUint32(8, random.below(2 ** 32), true);
        this.send(bytes);
    }
  }

  close(): void {
    if (!this.open) return;
    this.open = false;
    files.close(this.fd);
  }
}

/** Attacks until all inputs are given. */
async function attack(path: string, seed: number, inputs: number): Promise<void> {
  const random = new Random(seed);
  const report: AttackReport = { inputs: 0, connections: 0, descriptors: 0, answered: 0 };
  const odd = new OddFiles();
  const tell = (): void => void process.send?.(report);
  const ticker = setInterval(tell, 500);
  const silent: Connection[] = [];
  const connect = (answers: Connection['answers']): Connection | undefined => {
    try {
      const fd = sockets.connect(path);
      report.connections++;
      report.inputs++;
      return new Connection(fd, answers, odd, random, report);
    } catch (error) {
      if (!isDmaError(error)) throw error;
      report.inputs++;
      return undefined;
    }
  };
  while (report.inputs < inputs) {
    if (random.oneIn(20)) {
      // Many that say nothing, and leave.
      const many = Array.from({ length: 100 }, () => connect('none'));
      await turn();
      for (const each of many) each?.close();
      continue;
    }
    const connection = connect(
      random.pick(['honest', 'honest', 'honest', 'honest', 'honest', 'nonsense', 'nonsense', 'none']),
    );
    if (connection === undefined) {
      await sleep(1);
      continue;
    }
    const reads = !random.oneIn(10);
    if (!random.oneIn(12))
      connection.ask('hello', { protocol: PROTOCOL, version: 'x', label: random.pick(['', 'a', '\u001b[31m']) });
    if (!random.oneIn(12)) connection.ask('attach', {});
    for (let n = 20 + random.below(400); n > 0 && connection.open && report.inputs < inputs; n--) {
      connection.act();
      if (n % 8 === 0) await turn();
      if (!reads) continue;
      connection.read();
      // It is as fast as the primary, so that most questions are carried out, and some are in flight when it is killed.
      for (let naps = 0; connection.open && connection.waiting > 24 && naps < 20; naps++) {
        await sleep(1);
        connection.read();
      }
      if (connection.waiting > 24) connection.waiting = 0;
    }
    if (random.oneIn(30)) silent.push(connection);
    else connection.close();
    if (silent.length > 8) silent.shift()?.close();
  }
  clearInterval(ticker);
  tell();
  for (const each of silent) each.close();
  odd.close();
}

const [path, seed, inputs] = process.argv.slice(2);
await attack(path, Number(seed), Number(inputs));
process.disconnect?.();
