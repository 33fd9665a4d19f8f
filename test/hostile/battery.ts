/**
 * What a hostile client can do to a served device: send every kind of descriptor where memory or an eventfd is wanted, take away what it
 * gave, and send every message torn, repeated, late, out of order, too early and with wrong numbers. The server's process must stay
 * alive, serve the next client within a second, and have no more descriptors and mappings than before.
 */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { chmodSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { isDmaError } from '../../src/errors.js';
import type { Platform } from '../../src/platform/ports.js';
import { loadLibc } from '../../src/platform/linux/libc.js';
import { hugePagesForTest } from '../shared/real-hugepages.js';
import type { Va } from '../../src/units.js';
import { VfioUserClient } from '../../src/vfio-user/client.js';
import { EDU_BUFFER, EDU_REGISTER } from '../../src/vfio-user/devices/edu-layout.js';
import * as m from '../../src/vfio-user/messages.js';
import { descriptorKinds, tcpPair, type Kind } from './kinds.js';
import { asNobody } from './nobody.js';
import { Times } from './times.js';

/** Milliseconds within which the next client is served, on a machine that is busy with other tests. {@link Times} tells what it took. */
const SOON = 5000;

/** A served device in a process of its own. */
export class Victim {
  private constructor(
    readonly child: ChildProcess,
    readonly path: string,
    private readonly platform: Platform,
  ) {}

  /** @param trusting does it trust clients of this user and of root? */
  static async start(platform: Platform, path: string, trusting: boolean): Promise<Victim> {
    const main = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
    const command = [main, 'serve', 'edu', '--socket', path, ...(trusting ? [] : ['--untrusted'])];
    const child = spawn(process.execPath, command, { stdio: ['ignore', 'pipe', 'ignore'] });
    for await (const line of createInterface({ input: child.stdout })) if (line.includes('served by')) break;
    // For clients of other users.
    chmodSync(path, 0o777);
    const victim = new Victim(child, path, platform);
    await victim.serves('nothing yet');
    return victim;
  }

  get descriptors(): number {
    return readdirSync(`/proc/${this.child.pid ?? 0}/fd`).length;
  }

  /** Of files that clients gave. */
  get mappings(): number {
    const maps = readFileSync(`/proc/${this.child.pid ?? 0}/maps`, 'utf8').split('\n');
    return maps.filter((line) => /memfd:(ok|none|unsealed|shrinks|huge|race)|plain/.test(line)).length;
  }

  /** The next client is served, soon. */
  async serves(after: string): Promise<void> {
    assert.ok(this.child.exitCode === null && this.child.signalCode === null, `it died of ${after}`);
    const deadline = performance.now() + SOON;
    for (;;) {
      try {
        const client = await VfioUserClient.connect(this.platform, this.path, {
          mmap: 'never',
          handshakeTimeoutMs: SOON,
        });
        const id = new Uint8Array(4);
        await client.regionReadAsync(0, 0, id);
        client.close();
        return assert.deepEqual([...id], [0xed, 0, 0, 1], after);
      } catch (error) {
        // It may not have noticed yet that the one before has left.
        if (performance.now() > deadline) throw new Error(`nobody is served after ${after}`, { cause: error });
        await delay(5);
      }
    }
  }

  /** It has no more descriptors than before, and nothing of its clients', soon. */
  async settles(before: number, after: string): Promise<void> {
    for (let n = 0; n < SOON / 10 && (this.descriptors > before || this.mappings > 0); n++) await delay(10);
    assert.ok(this.descriptors <= before, `${this.descriptors} descriptors, ${before} before ${after}`);
    assert.equal(this.mappings, 0, after);
  }

  async stop(): Promise<void> {
    const exited = new Promise((resolve) => this.child.once('exit', resolve));
    this.child.kill('SIGTERM');
    await exited;
  }
}

/** The messages of a conversation, each made anew. */
function messages(): { readonly name: string; readonly bytes: Uint8Array }[] {
  const out = new Uint8Array(4096);
  const cut = (size: number): Uint8Array => out.slice(0, size);
  const version = m.encodeVersion({ ...m.PROTOCOL_VERSION, capabilities: m.DEFAULT_CAPABILITIES });
  out.set(version, m.HEADER_SIZE);
  const irqs = { index: 1, start: 0, count: 1, data: 'eventfd' } as const;
  return [
    { name: 'VERSION', bytes: cut(m.putCommand(out, 1, m.COMMAND.VERSION, version.length)) },
    { name: 'GET_INFO', bytes: cut(m.encodeDeviceInfoRequest(out, 2)) },
    { name: 'GET_REGION_INFO', bytes: cut(m.encodeRegionInfoRequest(out, 3, 0, 4096)) },
    { name: 'DMA_MAP', bytes: cut(m.encodeDmaMap(out, 4, 0x10000, 4096, 'read-write', 0)) },
    { name: 'SET_IRQS', bytes: cut(m.encodeSetIrqs(out, 5, { ...irqs, action: 'trigger' })) },
    { name: 'SET_IRQS unmask', bytes: cut(m.encodeSetIrqs(out, 6, { ...irqs, action: 'unmask' })) },
    { name: 'REGION_READ', bytes: cut(m.encodeRegionRead(out, 7, 0, 0, 4)) },
    { name: 'REGION_WRITE', bytes: cut(m.encodeRegionWrite(out, 8, 0, 4, new Uint8Array(4), false)) },
    { name: 'DMA_UNMAP', bytes: cut(m.encodeDmaUnmap(out, 9, 0x10000, 4096)) },
    { name: 'RESET', bytes: cut(m.putCommand(out, 10, m.COMMAND.RESET, 0)) },
  ];
}

/** What a client does: sends this, with these descriptors, and then does that. */
interface Step {
  readonly bytes: Uint8Array;
  readonly fds?: readonly number[];
  readonly then?: () => void | Promise<void>;
}

/** One attack on the server: connects, does the steps, leaves. */
async function attack(platform: Platform, connect: () => Promise<number>, steps: readonly Step[]): Promise<void> {
  const { sockets, files, readiness } = platform;
  const fd = await connect();
  const into = new Uint8Array(65536);
  const drain = (): void => {
    while (readiness.wait([{ fd, readable: true, writable: false }], 0)) {
      const received = sockets.receive(fd, into, 253);
      received?.fds.forEach(files.close);
      if (received === undefined || received.bytes === 0) break;
    }
  };
  try {
    for (const { bytes, fds = [], then } of steps) {
      if (bytes.length > 0) sockets.send(fd, bytes, 0, fds);
      if (then === undefined) continue;
      // Once the server has had time for it.
      await delay(2);
      await then();
      drain();
    }
    await delay(2);
    drain();
  } catch (error) {
    // Sent away in the middle, which is right.
    if (!isDmaError(error)) throw error;
  } finally {
    files.close(fd);
  }
}

/** The device reads, and then writes, `length` bytes of what was mapped at 0x10000. */
function touching(length = 4096): Step[] {
  const out = new Uint8Array(64);
  const store = (offset: number, value: number): Step => {
    const bytes = new Uint8Array(8);
    m.put64(bytes, 0, value);
    return { bytes: out.slice(0, m.encodeRegionWrite(out, 20, 0, offset, bytes, false)) };
  };
  const { DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND } = EDU_REGISTER;
  const move = (source: number, destination: number, command: number): Step[] => [
    store(DMA_SOURCE, source),
    store(DMA_DESTINATION, destination),
    store(DMA_COUNT, length),
    store(DMA_COMMAND, command),
  ];
  return [...move(0x10000, EDU_BUFFER.ADDRESS, 1), ...move(EDU_BUFFER.ADDRESS, 0x10000, 3)];
}

/** Every message, changed in one place. */
function wrong(bytes: Uint8Array): Uint8Array[] {
  const copies: Uint8Array[] = [];
  const change = (act: (copy: Uint8Array) => void): void => {
    const copy = bytes.slice();
    act(copy);
    copies.push(copy);
  };
  for (const size of [0, 15, bytes.length - 1, bytes.length + 1, m.MAX_MESSAGE, m.MAX_MESSAGE + 1, 0xffffffff])
    change((copy) => m.put32(copy, 4, size));
  for (const flags of [0x1, 0x2, 0xf, 0x10, 0x20, 0x21, 0x30, 0xffffffff]) change((copy) => m.put32(copy, 8, flags));
  for (let at = m.HEADER_SIZE; at + 4 <= bytes.length; at += 4)
    for (const value of [0, 1, 0x7fffffff, 0xffffffff]) change((copy) => m.put32(copy, at, value));
  for (let at = m.HEADER_SIZE; at + 8 <= bytes.length; at += 8)
    for (const value of [2n ** 53n - 1n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 4096n, 2n ** 64n - 1n])
      change((copy) => new DataView(copy.buffer).setBigUint64(at, value, true));
  return copies;
}

/** The last hugepages of the machine. */
class Taken {
  readonly #pages: { readonly fd: number; readonly va: Va }[] = [];

  constructor(
    private readonly platform: Platform,
    private readonly pageSize: number,
  ) {}

  /** Takes the page out of `fd`, and all that are free then. */
  take(fd: number): void {
    const { memory, files } = this.platform;
    files.punch(fd, 0, this.pageSize);
    for (;;) {
      const own = memory.memfd({ name: 'taken', length: this.pageSize, hugePageSize: this.pageSize });
      try {
        const va = memory.map({ fd: own, length: this.pageSize });
        this.#pages.push({ fd: own, va });
        memory.populate(va, this.pageSize);
      } catch (error) {
        if (!isDmaError(error, 'ENOMEM')) throw error;
        if (this.#pages.at(-1)?.fd !== own) files.close(own);
        return;
      }
    }
  }

  giveBack(): void {
    const { memory, files } = this.platform;
    for (const { fd, va } of this.#pages.splice(0)) {
      memory.unmap(va, this.pageSize);
      files.close(fd);
    }
  }
}

/** Changes the size of files between 4096 and 0, as fast as it can, in another thread. */
class Toggler {
  readonly #cell = new Int32Array(new SharedArrayBuffer(8)).fill(-1);
  readonly #worker = new Worker(new URL('./toggler.js', import.meta.url), { workerData: this.#cell });

  toggle(fd: number): void {
    Atomics.store(this.#cell, 0, fd);
  }

  /** It does not touch the file any more. */
  async rest(): Promise<void> {
    Atomics.store(this.#cell, 0, -1);
    const seen = Atomics.load(this.#cell, 1);
    while (Atomics.load(this.#cell, 1) === seen) await delay(1);
  }

  async stop(): Promise<void> {
    await this.#worker.terminate();
  }
}

/** How thorough it is: `every` n-th byte is where messages are torn, and `some` n-th of the other attacks are made. */
export interface Thoroughness {
  readonly every: number;
  readonly some: number;
  /** Told how long each took. */
  readonly times?: Times;
}

/** All attacks on a served device: on one that trusts nobody, and as root on one of this user by clients of another. */
export async function attackServer(platform: Platform, folder: string, thorough: Thoroughness): Promise<number> {
  const descriptors = join(folder, 'given');
  mkdirSync(descriptors);
  const made = descriptorKinds(platform, descriptors);
  const isRoot = process.getuid?.() === 0;
  // The socket of another user's client has to be found.
  chmodSync(folder, 0o777);
  try {
    let done = await attackAs(platform, `${folder}/victim`, made.kinds, thorough, false);
    if (isRoot) done += await attackAs(platform, `${folder}/other`, made.kinds, thorough, true);
    return done;
  } finally {
    made.close();
  }
}

async function attackAs(
  platform: Platform,
  path: string,
  kinds: readonly Kind[],
  { every, some, times = new Times() }: Thoroughness,
  stranger: boolean,
): Promise<number> {
  const { files, memory, sockets } = platform;
  const victim = await Victim.start(platform, path, stranger);
  const toggler = new Toggler();
  /** The other ends of sockets, closed when all is over. */
  const others: number[] = [];
  const connect = async (): Promise<number> => {
    for (;;) {
      try {
        return stranger ? asNobody(() => sockets.connect(path)) : sockets.connect(path);
      } catch (error) {
        // More wait already than the server lets.
        if (!isDmaError(error, 'EAGAIN')) throw error;
        await delay(1);
      }
    }
  };
  let done = 0;
  const whose = stranger ? ' of another user' : '';
  const tryIt = async (name: string, steps: readonly Step[], kind = name): Promise<void> => {
    done++;
    await attack(platform, connect, steps);
    await times.noting(`server: ${kind}${whose}`, victim.child.pid, () => victim.serves(`${name}${whose}`));
  };
  let turn = Math.floor(Math.random() * some);
  /** One of several is enough in the short form. */
  const skips = (): boolean => turn++ % some !== 0;
  try {
    const all = messages();
    const [version] = all;
    const map = all.find(({ name }) => name === 'DMA_MAP') ?? assert.fail();
    await victim.serves('nothing yet');
    const before = victim.descriptors;
    for (const kind of kinds)
      for (const { name, bytes } of all) {
        const isMeant = name === 'DMA_MAP' || name.startsWith('SET_IRQS');
        if (!isMeant && skips()) continue;
        const fd = kind.make();
        const then = (): void => kind.afterwards?.(fd);
        try {
          await tryIt(`${kind.name} with ${name}`, [version, { bytes, fds: [fd], then }, ...touching()], kind.name);
        } finally {
          kind.calm?.(fd);
          files.closeForeign(fd);
        }
      }
    for (const { name, bytes } of all) {
      await tryIt(`${name} first`, [{ bytes }], 'first');
      await tryIt(`${name} repeated`, [version, ...Array.from({ length: 50 }, () => ({ bytes }))], 'repeated');
      const parts = [{ bytes: bytes.slice(0, 9), then: () => delay(20) }, { bytes: bytes.slice(9) }];
      await tryIt(`${name} late`, [version, ...parts], 'late');
      for (let at = 1; at < bytes.length; at += every)
        await tryIt(`${name} torn at ${at}`, [version, { bytes: bytes.slice(0, at) }], 'torn');
      for (const [n, copy] of wrong(bytes).entries())
        if (!skips()) await tryIt(`${name} wrong in way ${n}`, [version, { bytes: copy }, { bytes }], 'wrong');
    }
    await tryIt('all in reverse', [version, ...all.slice(1).reverse()]);
    const event = platform.events.create();
    for (const count of [2, 16, 17, 253])
      await tryIt(`${count} descriptors`, [
        version,
        ...[map, ...all].map(({ bytes }) => ({ bytes, fds: new Array<number>(count).fill(event) })),
      ]);
    await tryIt('descriptors with every part of a message', [
      version,
      ...[...map.bytes].map((byte) => ({ bytes: Uint8Array.of(byte), fds: [event] })),
    ]);
    files.close(event);
    const read = all.find(({ name }) => name === 'REGION_READ') ?? assert.fail();
    await tryIt('a flood', [version, ...new Array<Step>(5000).fill(read)]);
    for (let n = 0; n < 2000 / some; n++) files.close(await connect());
    await tryIt('many connections', [version]);
    await tryLingering(platform, connect, victim, [version, map], others);
    await times.noting(`server: sockets that linger${whose}`, victim.child.pid, () =>
      victim.serves('sockets that linger'),
    );
    for (let n = 0; n < Math.max(3, 60 / some); n++) {
      const fd = memory.memfd({ name: 'race', length: 4096, sealed: false });
      toggler.toggle(fd);
      await tryIt('a file that changes its size', [version, { ...map, fds: [fd] }, ...touching()]);
      await toggler.rest();
      files.close(fd);
    }
    await tryHugepages(platform, async (huge, pageSize, take) => {
      const out = new Uint8Array(64);
      const bytes = out.slice(0, m.encodeDmaMap(out, 4, 0, pageSize, 'read-write', 0));
      await tryIt('hugepages that are taken away', [version, { bytes, fds: [huge], then: take }, ...touching()]);
    });
    await times.noting(`server: nothing left${whose}`, victim.child.pid, () => victim.settles(before, 'all of it'));
    return done;
  } finally {
    others.forEach(files.close);
    await toggler.stop();
    await victim.stop();
  }
}

/** Sockets that linger for hours, and that nobody has but the server, which is stopped until that is so. */
async function tryLingering(
  { sockets, files }: Platform,
  connect: () => Promise<number>,
  { child }: Victim,
  [version, map]: readonly { readonly bytes: Uint8Array }[],
  others: number[],
): Promise<void> {
  const libc = loadLibc();
  assert.ok(typeof libc !== 'string');
  const tcp = tcpPair(libc, others);
  const fd = await connect();
  child.kill('SIGSTOP');
  sockets.send(fd, version.bytes, 0, []);
  // The second one ends the connection: the others stay in its queue.
  for (const count of [1, 2, 1, 1, 2]) {
    const lingering = Array.from({ length: count }, tcp.lingering);
    sockets.send(fd, map.bytes, 0, lingering);
    lingering.forEach((each) => void libc.close(each));
  }
  child.kill('SIGCONT');
  files.close(fd);
}

/** With a hugepage, where one can be had, and what takes it away and all others too until `attack` has ended. */
async function tryHugepages(
  platform: Platform,
  attackWith: (fd: number, pageSize: number, take: () => void) => Promise<void>,
): Promise<void> {
  const huge = hugePagesForTest(platform, 1);
  if (typeof huge === 'string') return;
  const { memory, files } = platform;
  const { pageSize } = huge;
  try {
    const fd = memory.memfd({ name: 'huge', length: pageSize, hugePageSize: pageSize });
    const taken = new Taken(platform, pageSize);
    try {
      await attackWith(fd, pageSize, () => taken.take(fd));
    } finally {
      taken.giveBack();
      files.close(fd);
    }
  } finally {
    huge.giveBack();
  }
}
