/**
 * What a hostile client can send to a served device: every kind of descriptor where memory or an eventfd is wanted, and every
 * message torn, repeated, too early and without its descriptors. The server's process must stay alive, serve the next client
 * within a second, and have no more descriptors than before.
 */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { loadLibc, type Libc } from '../../src/platform/libc.js';
import type { Platform } from '../../src/platform/ports.js';
import { VfioUserClient } from '../../src/vfio-user/client.js';
import * as m from '../../src/vfio-user/messages.js';

/** Milliseconds within which the next client is served. */
const SOON = 1000;

/** A descriptor to send, and whether it is memory or an eventfd after all. */
export interface Kind {
  readonly name: string;
  readonly make: () => number;
  readonly is?: 'memory' | 'eventfd';
}

/** Options of setsockopt(2), which the library does not need: include/uapi/asm-generic/socket.h. */
const SOL_SOCKET = 1;
const SO_LINGER = 13;
const SO_RCVLOWAT = 18;

/** All kinds that can be made here. */
export function kinds({ files, memory, events, sockets }: Platform, folder: string): Kind[] {
  const libc = loadLibc();
  assert.ok(typeof libc !== 'string');
  const c = libc.library('libc.so.6');
  const setsockopt = c.func('setsockopt', 'int', 'int', 'int', 'int', 'void *', 'uint');
  const timerfd = c.func('timerfd_create', 'int', 'int', 'int');
  const inotify = c.func('inotify_init1', 'int', 'int');
  const made = (fd: number): number => {
    assert.ok(fd >= 0);
    return fd;
  };
  const socket = (option: number, value: Int32Array): number => {
    const fd = made(libc.socket(2, 1, 0));
    assert.equal(setsockopt(fd, SOL_SOCKET, option, value, value.byteLength), 0);
    return fd;
  };
  return [
    { name: 'a memfd', make: () => memory.memfd({ name: 'ok', length: 65536 }), is: 'memory' },
    { name: 'an eventfd', make: () => events.create(), is: 'eventfd' },
    { name: 'a blocking eventfd', make: () => made(libc.eventfd(0, 0)), is: 'eventfd' },
    { name: 'an empty memfd', make: () => memory.memfd({ name: 'none', length: 0, sealed: false }) },
    { name: 'a memfd without seals', make: () => unsealable(libc), is: 'memory' },
    { name: '/dev/null', make: () => files.open('/dev/null', 'read-write') },
    { name: '/dev/zero', make: () => files.open('/dev/zero', 'read-write') },
    { name: '/proc/self/mem', make: () => files.open('/proc/self/mem', 'read-write') },
    { name: 'a folder', make: () => files.open(folder, 'read') },
    { name: 'a UNIX socket', make: () => one(sockets.pair(), files.close) },
    { name: 'a TCP socket that lingers', make: () => socket(SO_LINGER, new Int32Array([1, 30])) },
    { name: 'a TCP socket with a low-water mark', make: () => socket(SO_RCVLOWAT, new Int32Array([4096])) },
    { name: 'an epoll', make: () => nested(libc) },
    { name: 'a timerfd', make: () => made(timerfd(1, 0)) },
    { name: 'an inotify', make: () => made(inotify(0)) },
    { name: 'a pidfd', make: () => made(libc.pidfd_open(process.pid, 0)) },
  ];
}

function unsealable(libc: Libc): number {
  const fd = libc.memfd_create('unsealed', 0);
  assert.ok(fd >= 0 && libc.ftruncate(fd, 65536) === 0);
  return fd;
}

function one([keep, drop]: readonly [number, number], close: (fd: number) => void): number {
  close(drop);
  return keep;
}

/** An epoll that has another one in it, which has it in turn when the kernel allows. */
function nested(libc: Libc): number {
  const outer = libc.epoll_create1(0);
  const inner = libc.epoll_create1(0);
  assert.ok(outer >= 0 && inner >= 0);
  libc.epoll_ctl(outer, 1, inner, new Uint32Array([1, 0, 0, 0]));
  libc.close(inner);
  return outer;
}

/** A served device in a process of its own. */
export class Victim {
  private constructor(
    readonly child: ChildProcess,
    readonly path: string,
    private readonly platform: Platform,
  ) {}

  static async start(platform: Platform, path: string): Promise<Victim> {
    const main = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
    const child = spawn(process.execPath, [main, 'serve', 'edu', '--socket', path, '--untrusted'], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    for await (const line of createInterface({ input: child.stdout })) if (line.includes('served by')) break;
    const victim = new Victim(child, path, platform);
    await victim.serves('nothing yet');
    return victim;
  }

  get descriptors(): number {
    return readdirSync(`/proc/${this.child.pid ?? 0}/fd`).length;
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

  /** It has no more descriptors than before, soon. */
  async settles(before: number, after: string): Promise<void> {
    for (let n = 0; n < SOON / 10 && this.descriptors > before; n++) await delay(10);
    assert.ok(this.descriptors <= before, `${this.descriptors} descriptors, ${before} before ${after}`);
  }

  async stop(): Promise<void> {
    const exited = new Promise((resolve) => this.child.once('exit', resolve));
    this.child.kill('SIGTERM');
    await exited;
  }
}

/** The messages of a conversation, each made anew. */
function messages(): {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly takes: 'memory' | 'eventfd' | undefined;
}[] {
  const out = new Uint8Array(4096);
  const cut = (size: number): Uint8Array => out.slice(0, size);
  const version = m.encodeVersion({ ...m.PROTOCOL_VERSION, capabilities: m.DEFAULT_CAPABILITIES });
  out.set(version, m.HEADER_SIZE);
  const irqs = { index: 1, start: 0, count: 1, data: 'eventfd' } as const;
  return [
    { name: 'VERSION', bytes: cut(m.putCommand(out, 1, m.COMMAND.VERSION, version.length)), takes: undefined },
    { name: 'GET_INFO', bytes: cut(m.encodeDeviceInfoRequest(out, 2)), takes: undefined },
    { name: 'GET_REGION_INFO', bytes: cut(m.encodeRegionInfoRequest(out, 3, 0, 4096)), takes: undefined },
    { name: 'DMA_MAP', bytes: cut(m.encodeDmaMap(out, 4, 0x10000, 4096, 'read-write', 0)), takes: 'memory' },
    { name: 'SET_IRQS', bytes: cut(m.encodeSetIrqs(out, 5, { ...irqs, action: 'trigger' })), takes: 'eventfd' },
    { name: 'SET_IRQS unmask', bytes: cut(m.encodeSetIrqs(out, 6, { ...irqs, action: 'unmask' })), takes: 'eventfd' },
    { name: 'REGION_READ', bytes: cut(m.encodeRegionRead(out, 7, 0, 0, 4)), takes: undefined },
    { name: 'REGION_WRITE', bytes: cut(m.encodeRegionWrite(out, 8, 0, 4, new Uint8Array(4), false)), takes: undefined },
    { name: 'DMA_UNMAP', bytes: cut(m.encodeDmaUnmap(out, 9, 0x10000, 4096)), takes: undefined },
    { name: 'RESET', bytes: cut(m.putCommand(out, 10, m.COMMAND.RESET, 0)), takes: undefined },
  ];
}

/** One attack on the server: connects, sends, leaves. */
async function attack(
  platform: Platform,
  path: string,
  steps: readonly (readonly [Uint8Array, readonly number[]])[],
): Promise<void> {
  const { sockets, files, readiness } = platform;
  const fd = sockets.connect(path);
  try {
    for (const [bytes, fds] of steps) if (bytes.length > 0) sockets.send(fd, bytes, 0, fds);
    await delay(2);
    while (readiness.wait([{ fd, readable: true, writable: false }], 0)) {
      const received = sockets.receive(fd, new Uint8Array(65536), 253);
      received?.fds.forEach(files.close);
      if (received === undefined || received.bytes === 0) break;
    }
  } catch {
    // It was sent away in the middle, which is right.
  } finally {
    files.close(fd);
  }
}

/**
 * All attacks on a served device.
 *
 * @param every tear messages at every n-th byte
 */
export async function attackServer(platform: Platform, folder: string, every: number): Promise<void> {
  const victim = await Victim.start(platform, `${folder}/victim`);
  try {
    const all = messages();
    const [version] = all;
    const before = victim.descriptors;
    const tryIt = async (name: string, steps: readonly (readonly [Uint8Array, readonly number[]])[]): Promise<void> => {
      await attack(platform, victim.path, steps);
      await victim.serves(name);
    };
    for (const kind of kinds(platform, folder))
      for (const { name, bytes } of all) {
        const fd = kind.make();
        await tryIt(`${kind.name} with ${name}`, [
          [version.bytes, []],
          [bytes, [fd]],
        ]).finally(() => platform.files.close(fd));
      }
    for (const { name, bytes } of all) {
      await tryIt(`${name} first`, [[bytes, []]]);
      await tryIt(`${name} repeated`, [[version.bytes, []], ...Array.from({ length: 50 }, () => [bytes, []] as const)]);
      for (let at = 1; at < bytes.length; at += every)
        await tryIt(`${name} torn at ${at}`, [
          [version.bytes, []],
          [bytes.slice(0, at), []],
        ]);
    }
    await victim.settles(before, 'all of it');
  } finally {
    await victim.stop();
  }
}
