/** Descriptors of every kind, to be sent where memory, a socket or an eventfd is wanted. */
import assert from 'node:assert/strict';
import { constants, mkdirSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { loadLibc, type Libc } from '../../src/platform/linux/libc.js';
import type { Platform } from '../../src/platform/ports.js';
import { MissingPage } from './locks.js';

/** A descriptor to send, and what it is after all. */
export interface Kind {
  readonly name: string;
  /** A new descriptor; the caller's. */
  readonly make: () => number;
  /** Called when it has been sent, and makes it worse. */
  readonly afterwards?: (fd: number) => void;
  /** Called before it is closed here, so that this process does not suffer from it. */
  readonly calm?: (fd: number) => void;
  /** Can it make wait who adds a seal to it or reads it? Then it is for those who trust nobody, since others may do that. */
  readonly locks?: boolean;
}

/** Options of setsockopt(2), which the library does not need: include/uapi/asm-generic/socket.h. */
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const SO_RCVBUF = 8;
const SO_LINGER = 13;
const SO_RCVLOWAT = 18;
const SO_RCVTIMEO = 20;
const AF_INET = 2;
const SOCK_STREAM = 1;
const O_PATH = 0x200000;
const O_TMPFILE = 0x410000;
const SOCK_DGRAM = 2;
const AF_UNIX = 1;
const AF_NETLINK = 16;
/** From include/uapi/linux/fcntl.h. */
const F_SETPIPE_SZ = 1031;
const F_ADD_SEALS = 1033;
const F_SEAL_WRITE = 8;
const F_SEAL_FUTURE_WRITE = 16;
/** From include/uapi/linux/eventpoll.h. */
const EPOLL_CTL_ADD = 1;

/** All kinds that can be made here, and what gives back what they share. `folder` is empty, and may be written. */
export function descriptorKinds(platform: Platform, folder: string): { readonly kinds: Kind[]; close(): void } {
  const { files, memory, events, sockets } = platform;
  const libc = loadLibc();
  assert.ok(typeof libc !== 'string');
  const c = libc.library('libc.so.6');
  const setsockopt = c.func('setsockopt', 'int', 'int', 'int', 'int', 'void *', 'uint');
  const made = (fd: number): number => {
    assert.ok(fd >= 0, `errno ${libc.errno()}`);
    return fd;
  };
  const inherited: number[] = [];
  const withOption = (fd: number, option: number, ...words: number[]): number => {
    const value = new Int32Array(words);
    assert.equal(setsockopt(fd, SOL_SOCKET, option, value, value.byteLength), 0);
    return fd;
  };
  const pair = (): number => {
    const [keep, other] = sockets.pair();
    inherited.push(other);
    return keep;
  };
  const tcp = tcpPair(libc, inherited);
  const signals = new Uint8Array(128);
  const fifo = join(folder, 'fifo');
  const plain = join(folder, 'plain');
  writeFileSync(plain, new Uint8Array(65536));
  mkdirSync(join(folder, 'folder'));
  assert.equal(c.func('mkfifo', 'int', 'void *', 'uint')(text(fifo), 0o600), 0);
  const syscall = c.func('syscall', 'intptr_t', 'intptr_t', 'intptr_t', 'intptr_t', 'intptr_t', 'intptr_t', 'intptr_t');
  /** The descriptor that a system call gives, with this argument; no kind where it gives none. */
  const given = (name: string, x64: number, others: number, ...args: readonly number[]): Kind[] => {
    const call = (): number => syscall(process.arch === 'x64' ? x64 : others, ...[...args, 0, 0, 0, 0, 0].slice(0, 5));
    const fd = call();
    if (fd < 0) return [];
    libc.close(fd);
    return [{ name, make: () => made(call()) }];
  };
  const opened = (path: string): Kind[] => {
    try {
      files.close(files.open(path, 'read-write'));
    } catch {
      return [];
    }
    return [{ name: path, make: () => files.open(path, 'read-write') }];
  };
  /** A descriptor with a lock that is never given back. */
  const locked = (name: string, call: 'write' | 'recv', make: () => number): Kind[] => {
    let page = MissingPage.make(libc);
    if (page === undefined) return [];
    page.giveUp();
    return [
      {
        name,
        make: () => {
          const fd = make();
          page = MissingPage.make(libc);
          page?.use(call, fd);
          return fd;
        },
        calm: () => page?.giveUp(),
        locks: true,
      },
    ];
  };
  const sealed = (name: string, seals: number): Kind => ({
    name,
    make: () => {
      const fd = memory.memfd({ name: 'ok', length: 65536 });
      libc.fcntl(fd, F_ADD_SEALS, seals);
      return fd;
    },
  });
  const withBytes = (): number => {
    const [keep, other] = sockets.pair();
    sockets.send(other, new Uint8Array(64), 0, []);
    inherited.push(other);
    return keep;
  };
  const pipe = new Int32Array(2);
  let listening = 0;
  const timerfd = c.func('timerfd_create', 'int', 'int', 'int');
  const inotify = c.func('inotify_init1', 'int', 'int');
  const signalfd = c.func('signalfd', 'int', 'int', 'void *', 'int');
  const kinds: (Kind | undefined)[] = [
    { name: 'a memfd', make: () => memory.memfd({ name: 'ok', length: 65536 }) },
    { name: 'an eventfd', make: () => events.create() },
    { name: 'a blocking eventfd', make: () => made(libc.eventfd(0, 0)) },
    { name: 'a semaphore', make: () => made(libc.eventfd(1, 1)) },
    { name: 'an empty memfd', make: () => memory.memfd({ name: 'none', length: 0, sealed: false }) },
    { name: 'a memfd that takes no seals', make: () => sized(libc, made(libc.memfd_create('unsealed', 0))) },
    {
      name: 'a memfd that becomes shorter',
      make: () => memory.memfd({ name: 'shrinks', length: 65536, sealed: false }),
      afterwards: (fd) => void libc.ftruncate(fd, 0),
    },
    {
      name: 'a file that becomes shorter',
      make: () => openSync(plain, 'r+'),
      afterwards: (fd) => void libc.ftruncate(fd, 0),
    },
    { name: 'a file for reading', make: () => openSync(plain, 'r') },
    { name: 'a file for appending', make: () => openSync(plain, 'a') },
    { name: 'a path', make: () => openSync(plain, O_PATH) },
    { name: '/dev/null', make: () => files.open('/dev/null', 'read-write') },
    { name: '/dev/zero', make: () => files.open('/dev/zero', 'read-write') },
    { name: '/dev/random', make: () => files.open('/dev/random', 'read') },
    { name: 'a terminal', make: () => openSync('/dev/ptmx', constants.O_RDWR | constants.O_NOCTTY) },
    { name: '/proc/self/mem', make: () => files.open('/proc/self/mem', 'read-write') },
    { name: '/proc/self/maps', make: () => files.open('/proc/self/maps', 'read') },
    { name: 'a folder', make: () => files.open(folder, 'read') },
    { name: 'a FIFO', make: () => openSync(fifo, constants.O_RDWR) },
    { name: 'a UNIX socket', make: pair },
    { name: 'a UNIX socket with a low-water mark', make: () => withOption(pair(), SO_RCVLOWAT, 4096) },
    {
      name: 'a UNIX socket with small buffers',
      make: () => withOption(withOption(pair(), SO_SNDBUF, 1), SO_RCVBUF, 1),
    },
    { name: 'a UNIX socket that waits', make: () => withOption(pair(), SO_RCVTIMEO, 3600, 0, 0, 0) },
    {
      name: 'a TCP socket that lingers over what nobody reads',
      make: tcp.lingering,
      calm: (fd) => void withOption(fd, SO_LINGER, 0, 0),
    },
    { name: 'a TCP socket with a low-water mark', make: () => withOption(tcp.full(), SO_RCVLOWAT, 4096) },
    { name: 'an epoll', make: () => made(libc.epoll_create1(0)), afterwards: (fd) => nest(libc, fd, inherited) },
    { name: 'a timerfd', make: () => made(timerfd(1, 0)) },
    { name: 'an inotify', make: () => made(inotify(0)) },
    { name: 'a signalfd', make: () => made(signalfd(-1, signals, 0)) },
    { name: 'a pidfd', make: () => made(libc.pidfd_open(process.pid, 0)) },
    sealed('a memfd sealed against writing', F_SEAL_WRITE),
    sealed('a memfd sealed against writing from now on', F_SEAL_FUTURE_WRITE),
    {
      name: 'a memfd of 2^62 bytes',
      make: () => {
        const fd = memory.memfd({ name: 'ok', length: 0, sealed: false });
        assert.equal(libc.ftruncate(fd, 2 ** 62), 0);
        return fd;
      },
    },
    {
      name: 'a large pipe',
      make: () => {
        assert.equal(c.func('pipe', 'int', 'void *')(pipe), 0);
        inherited.push(pipe[0]);
        libc.fcntl(pipe[1], F_SETPIPE_SZ, 1 << 20);
        return pipe[1];
      },
    },
    { name: 'a listening socket', make: () => sockets.listen(join(folder, `listens${listening++}`), 1) },
    { name: 'a datagram socket', make: () => made(libc.socket(AF_UNIX, SOCK_DGRAM, 0)) },
    { name: 'a netlink socket', make: () => made(libc.socket(AF_NETLINK, SOCK_DGRAM, 0)) },
    {
      name: 'a socket that lies in its own queue',
      make: () => {
        const [keep, other] = sockets.pair();
        sockets.send(other, new Uint8Array(16), 0, [keep, other]);
        inherited.push(other);
        return keep;
      },
    },
    {
      name: 'a socket without another end',
      make: () => {
        const [keep, other] = sockets.pair();
        files.close(other);
        return keep;
      },
    },
    { name: 'a TCP socket that nobody connected', make: () => made(libc.socket(AF_INET, SOCK_STREAM, 0)) },
    { name: 'a file without a name', make: () => openSync(folder, constants.O_RDWR | O_TMPFILE, 0o600) },
    { name: 'a namespace', make: () => files.open('/proc/self/ns/net', 'read') },
    ...opened('/dev/mem'),
    ...opened('/dev/kvm'),
    ...opened('/dev/userfaultfd'),
    ...given('a userfaultfd', 323, 282, 1),
    ...given('secret memory', 447, 447, 0),
    ...given('a fanotify', 300, 262, 0, 0),
    ...locked('a memfd that is being written', 'write', () =>
      memory.memfd({ name: 'shrinks', length: 65536, sealed: false }),
    ),
    ...locked('a file that is being written', 'write', () => openSync(plain, 'r+')),
    ...locked('a UNIX socket that is being read', 'recv', withBytes),
    ...locked('a TCP socket that is being written', 'write', tcp.lingering),
    ...fuse(libc, c, join(folder, 'folder'), inherited),
  ];
  return {
    kinds: kinds.filter((kind) => kind !== undefined),
    close: () => inherited.splice(0).forEach((fd) => void libc.close(fd)),
  };
}

/** A string of C. */
function text(value: string): Uint8Array {
  return Buffer.from(`${value}\0`);
}

function sized(libc: Libc, fd: number): number {
  assert.equal(libc.ftruncate(fd, 65536), 0);
  return fd;
}

/** Puts an epoll into epolls, as deep as the kernel allows, and others into it: what looks at it then finds ELOOP. */
function nest(libc: Libc, fd: number, inherited: number[]): void {
  for (let inner = fd, depth = 0; depth < 6; depth++) {
    const outer = libc.epoll_create1(0);
    inherited.push(outer);
    libc.epoll_ctl(outer, EPOLL_CTL_ADD, inner, new Uint32Array([1, 0, 0, 0]));
    libc.epoll_ctl(inner, EPOLL_CTL_ADD, outer, new Uint32Array([1, 0, 0, 0]));
    inner = outer;
  }
}

type Library = ReturnType<Libc['library']>;

/**
 * Connected TCP sockets of which one end has sent until no more went, and the other never reads. `others` gets what has
 * to be closed after them.
 */
export function tcpPair(libc: Libc, others: number[]): { full(): number; lingering(): number } {
  const c = libc.library('libc.so.6');
  const made = (fd: number): number => {
    assert.ok(fd >= 0, `errno ${libc.errno()}`);
    return fd;
  };
  const [bind, connect] = ['bind', 'connect'].map((name) => c.func(name, 'int', 'int', 'void *', 'uint'));
  const [getsockname, accept] = ['getsockname', 'accept'].map((name) => c.func(name, 'int', 'int', 'void *', 'void *'));
  const address = new Uint8Array(16);
  address[0] = AF_INET;
  address.set([127, 0, 0, 1], 4);
  const listener = made(libc.socket(AF_INET, SOCK_STREAM, 0));
  assert.equal(bind(listener, address, 16), 0);
  assert.equal(libc.listen(listener, 8), 0);
  assert.equal(getsockname(listener, address, new Uint32Array([16])), 0);
  others.push(listener);
  const send = c.func('send', 'intptr_t', 'int', 'void *', 'size_t', 'int');
  const full = (): number => {
    const fd = made(libc.socket(AF_INET, SOCK_STREAM, 0));
    assert.equal(connect(fd, address, 16), 0);
    others.push(made(accept(listener, null, null)));
    const MSG_DONTWAIT = 0x40;
    while (send(fd, new Uint8Array(65536), 65536, MSG_DONTWAIT) > 0);
    return fd;
  };
  const lingering = (): number => {
    const fd = full();
    assert.equal(libc.setsockopt(fd, SOL_SOCKET, SO_LINGER, new Int32Array([1, 65535]), 8), 0);
    return fd;
  };
  return { full, lingering };
}

/** A file of a FUSE file system whose server never answers: whatever asks it for anything waits. None where that can not be mounted. */
function fuse(libc: Libc, c: Library, folder: string, inherited: number[]): Kind[] {
  const mount = c.func('mount', 'int', 'void *', 'void *', 'void *', 'uint64_t', 'void *');
  const umount2 = c.func('umount2', 'int', 'void *', 'int');
  let device: number;
  try {
    device = openSync('/dev/fuse', 'r+');
  } catch {
    return [];
  }
  const data = `fd=${device},rootmode=40000,user_id=0,group_id=0`;
  if (mount(text('hostile'), text(folder), text('fuse'), 0, text(data)) !== 0) {
    libc.close(device);
    return [];
  }
  // No look at it before it is out of the way: a lazy unmount leaves it to those who have a descriptor.
  const root = openSync(folder, O_PATH);
  const MNT_DETACH = 2;
  assert.equal(umount2(text(folder), MNT_DETACH), 0);
  inherited.push(root, device);
  return [{ name: 'a file of FUSE that never answers', make: () => libc.fcntl(root, 1030, 0) }];
}
