/**
 * The C library, through koffi. Only this file uses koffi, and loads nothing before {@link loadLibc} is called.
 *
 * Addresses are plain Numbers. Every declaration has a fixed number of arguments, also for variadic functions: that is
 * correct on the architectures accepted here and halves the cost of a call. koffi does not check ranges (NaN becomes 0,
 * 2^40 as an int becomes 0), so the ports check their arguments, descriptors by {@link checkFd}.
 */
import { closeSync, openSync, readdirSync } from 'node:fs';
import { HERE } from '../../here.js';
import { createRequire } from 'node:module';
import { DmaError, ERRNO, errorCode, invalid } from '../../errors.js';
import type { DmaErrorDetails } from '../../errors.js';
import { errnoOf, isError } from '../../realms.js';
import { Background, type Outcome } from '../background.js';
import { RLIMIT, RLIMIT_AS, RLIMIT_DATA, RLIMIT_FSIZE, RLIMIT_NOFILE } from '../uapi/resource.js';
import { formatSize } from '../../units.js';
import { syscallNumbers } from '../uapi/unistd.js';

type Koffi = typeof import('koffi');

/** A pointer argument: an address, or an array, whose first byte is passed and which must not move during the call. */
export type Pointer = number | ArrayBufferView | null;

/**
 * The functions of the C library that the ports use. They return -1 on failure, as in C; see section 2 of the manual.
 */
export interface Libc {
  readonly getpagesize: () => number;
  /** A value that the kernel passed to the program when it started; 0 if there is none of that type. */
  readonly getauxval: (type: number) => number;
  readonly mmap: (va: number, length: number, prot: number, flags: number, fd: number, offset: number) => number;
  readonly munmap: (va: number, length: number) => number;
  readonly memfd_create: (name: string, flags: number) => number;
  readonly ftruncate: (fd: number, length: number) => number;
  readonly madvise: (va: number, length: number, advice: number) => number;
  readonly mlock: (va: number, length: number) => number;
  /** mbind(2) by syscall(2): the C library has no wrapper. */
  readonly mbind: (va: number, length: number, mode: number, nodes: Pointer, maxNode: number, flags: number) => number;
  /** move_pages(2) by syscall(2): the C library has no wrapper. */
  readonly move_pages: (
    pid: number,
    count: number,
    pages: Pointer,
    nodes: Pointer,
    status: Pointer,
    flags: number,
  ) => number;
  readonly process_vm_readv: (
    pid: number,
    into: Pointer,
    intoCount: number,
    from: Pointer,
    fromCount: number,
    flags: number,
  ) => number;

  readonly process_vm_writev: Libc['process_vm_readv'];
  /** pidfd_open(2) by syscall(2). */
  readonly pidfd_open: (pid: number, flags: number) => number;
  /** preadv2(2) by syscall(2), at the file's current position (offset -1). */
  readonly preadv2: (fd: number, vectors: Pointer, count: number, flags: number) => number;
  /** Asynchronous I/O, by syscall(2): `into` gets the context, a u64. */
  readonly io_setup: (operations: number, into: Pointer) => number;
  readonly io_submit: (context: number, count: number, operations: Pointer) => number;
  readonly io_destroy: (context: number) => number;
  /** Takes what has ended. Waits for the first `least` of it only if `patient`. */
  readonly io_getevents: (context: number, least: number, most: number, into: Pointer, patient?: boolean) => number;

  readonly open: (path: string, flags: number, mode: number) => number;
  readonly close: (fd: number) => number;
  readonly fcntl: (fd: number, command: number, argument: number) => number;
  readonly fstatfs: (fd: number, into: Pointer) => number;
  readonly statx: (dirFd: number, path: string, flags: number, mask: number, into: Pointer) => number;
  readonly pread: (fd: number, into: Pointer, length: number, offset: number) => number;
  readonly pwrite: (fd: number, from: Pointer, length: number, offset: number) => number;
  readonly read: (fd: number, into: Pointer, length: number) => number;
  readonly write: (fd: number, from: Pointer, length: number) => number;
  readonly link: (from: string, to: string) => number;
  readonly rename: (from: string, to: string) => number;
  readonly unlink: (path: string) => number;
  readonly fallocate: (fd: number, mode: number, offset: number, length: number) => number;
  readonly flock: (fd: number, operation: number) => number;
  readonly mount: (source: string, target: string, type: string, flags: number, options: string) => number;
  readonly umount2: (target: string, flags: number) => number;
  readonly klogctl: (action: number, into: Pointer, length: number) => number;

  readonly socket: (domain: number, type: number, protocol: number) => number;
  readonly socketpair: (domain: number, type: number, protocol: number, fds: Int32Array) => number;
  readonly connect: (fd: number, address: Pointer, length: number) => number;
  readonly bind: (fd: number, address: Pointer, length: number) => number;
  readonly listen: (fd: number, backlog: number) => number;
  readonly accept4: (fd: number, address: Pointer, length: Pointer, flags: number) => number;
  readonly send: (fd: number, from: Pointer, length: number, flags: number) => number;
  readonly sendmsg: (fd: number, message: Pointer, flags: number) => number;
  readonly recvmsg: (fd: number, message: Pointer, flags: number) => number;
  readonly shutdown: (fd: number, how: number) => number;
  readonly setsockopt: (fd: number, level: number, name: number, value: Pointer, length: number) => number;
  readonly getsockopt: (fd: number, level: number, name: number, into: Pointer, length: Pointer) => number;
  readonly geteuid: () => number;

  readonly eventfd: (count: number, flags: number) => number;
  readonly poll: (fds: Pointer, count: number, timeoutMs: number) => number;
  readonly epoll_create1: (flags: number) => number;
  readonly epoll_ctl: (epollFd: number, operation: number, fd: number, event: Pointer) => number;
  readonly epoll_wait: (epollFd: number, into: Pointer, count: number, timeoutMs: number) => number;
  readonly dup3: (fd: number, number: number, flags: number) => number;
  readonly ioctl: (fd: number, request: number, argument: Pointer) => number;
  /** ioctl(2) with an argument passed by value. */
  readonly ioctlValue: (fd: number, request: number, argument: number) => number;
  readonly getrlimit: (resource: number, into: Pointer) => number;
  /** Address of a `struct passwd`, 0 if the user does not exist; valid until the next call. */
  readonly getpwnam: (name: string) => number;
  /** Address of a `struct group`, 0 if the group does not exist; valid until the next call. */
  readonly getgrnam: (name: string) => number;

  /**
   * An ArrayBuffer over `length` bytes at `va`, which it does not own. Aborts the process if longer than V8's limit.
   */
  readonly view: (va: number, length: number) => ArrayBuffer;
  /** The address of the first byte of a non-empty `view`. */
  readonly addressOf: (view: ArrayBufferView) => number;
  /** Reads the 32 bits at `va`, which must be mapped. */
  readonly peek: (va: number) => number;
  /** Loads a shared library by its file name. Throws an Error with the loader's reason. */
  readonly library: (name: string) => SharedLibrary;
  /** Makes the C function of these types at an address callable. */
  readonly callable: (result: CType, ...args: readonly CType[]) => (va: number) => CFunction;
  /**
   * Starts libuv's uv_poll_t on `fd`; for worker threads see `worker-poll.ts`. Aborts the process if the descriptor can
   * not be polled or is already in this event loop.
   */
  readonly pollHandle: (fd: number, interest: PollInterest, onEvent: (status: number) => void) => PollHandle;
  /**
   * Takes ownership of a descriptor that none of these functions returned: one from a message or an ioctl. Returns the
   * number to use from now on, or -1 (EMFILE), and then the descriptor is closed.
   */
  readonly own: (fd: number) => number;
  /**
   * In a worker thread: objects that keep the memory at `va`, mapped by this thread, in place after the thread ends,
   * for as long as another thread holds them.
   */
  readonly keeper: (va: number) => readonly SharedArrayBuffer[] | undefined;
  /** The errno of this thread's last failed call. Valid only until the next call of any kind. */
  errno(): number;
  setErrno(errno: number): void;
  /** Some of these functions, run on other threads. */
  readonly later: LibcLater;
}

/**
 * Slow functions of the C library, run on other threads: see {@link Background}. Memory that is passed by address must
 * stay mapped until they are done; arrays are kept alive.
 */
export interface LibcLater {
  /** How many calls run at once. */
  readonly lanes: number;
  readonly ioctl: (fd: number, request: number, argument: Pointer) => Promise<Outcome>;
  readonly madvise: (va: number, length: number, advice: number) => Promise<Outcome>;
  readonly fallocate: (fd: number, mode: number, offset: number, length: number) => Promise<Outcome>;
  /**
   * This and `close` run one call at a time, in the order of the calls, apart from the other functions, because some
   * never end: see {@link FilesPort.closeForeign}.
   */
  readonly setsockopt: (fd: number, level: number, name: number, value: Pointer, length: number) => Promise<Outcome>;
  readonly close: (fd: number) => Promise<Outcome>;
}

/** The C types, by koffi's names, that the declarations here need. */
export type CType = 'void' | 'int' | 'uint' | 'uint8_t' | 'uint64_t' | 'size_t' | 'intptr_t' | 'void *';

/** A C function; the arguments must be in the ranges of their types. */
export type CFunction = (...args: readonly (Pointer | bigint)[]) => number;

/** A loaded shared library. It is never unloaded. */
export interface SharedLibrary {
  /** Its function of this name; throws an Error if it has none. */
  func(name: string, result: CType, ...args: readonly CType[]): CFunction;
  /** Like `func`, but runs on another thread: see {@link LibcLater}. */
  later(name: string, result: CType, ...args: readonly CType[]): CFunctionLater;
}

/** A {@link CFunction} on another thread. */
export type CFunctionLater = (...args: readonly (Pointer | bigint)[]) => Promise<Outcome>;

/** What a {@link PollHandle} waits for. */
export interface PollInterest {
  readonly readable: boolean;
  readonly writable: boolean;
}

/**
 * A running uv_poll_t. libuv stops it when it reports a negative status. Only `close` may be called after `close`:
 * anything else would crash the process.
 */
export interface PollHandle {
  ref(): void;
  unref(): void;
  close(): void;
}

/**
 * Architectures that the numbers and layouts in `uapi/` are right for: 64 bits, little-endian, the kernel's generic
 * headers.
 */
const ARCHITECTURES: readonly string[] = ['x64', 'arm64', 'riscv64', 'loong64'];

/** A `struct timespec` of 0. */
const NO_TIME = new Uint32Array(4);

let loaded: Libc | undefined;

/**
 * Returns the C library of this process, or why it is not available, as a clause. The first call in a thread loads it
 * (about 15 ms); after a failure the next call tries again.
 *
 * @throws DmaError EMFILE, ENFILE if no descriptor is left to load it with
 */
export function loadLibc(): Libc | string {
  if (loaded !== undefined) return loaded;
  const result = load();
  if (typeof result === 'string') needDescriptors('dlopen');
  else loaded = result;
  return result;
}

function load(): Libc | string {
  if (process.platform !== 'linux') return `the operating system is ${process.platform}, not Linux`;
  if (!ARCHITECTURES.includes(process.arch)) return `no system calls are known for the ${process.arch} architecture`;
  try {
    return declare(createRequire(HERE)('koffi') as Koffi);
  } catch (error) {
    return `koffi can not be loaded: ${isError(error) ? error.message.split('\n', 1)[0] : String(error)}`;
  }
}

function declare(koffi: Koffi): Libc {
  const c = koffi.load(null);
  const int = (name: string, ...args: string[]) => c.func(name, 'int', args);
  const long = (name: string, ...args: string[]) => c.func(name, 'intptr_t', args);

  // Each thread has its own errno and its own copy of this module.
  const location: unknown = c.func('__errno_location', 'void *', [])();
  const errno = new Int32Array(koffi.view(location, 4));
  const { mbind, move_pages, pidfd_open, preadv2, io_setup, io_destroy, io_submit, io_getevents } = syscallNumbers(
    process.arch,
  );
  const syscall = (...args: string[]) => c.func('syscall', 'long', ['long', ...args]);
  const background = new Background();
  const closing = new Background(1);
  const later =
    (called: { async(...args: unknown[]): void }, on = background) =>
    (...args: readonly (Pointer | bigint)[]): Promise<Outcome> =>
      on.run(
        () =>
          new Promise((resolve, reject) => {
            called.async(...args, (error: Error | null, result: unknown) => {
              // koffi keeps the errno of the thread that made the call for as long as this function runs.
              const number = errno[0];
              if (error === null) resolve({ result: Number(result), errno: number });
              else reject(error);
            });
          }),
      );
  const callMbind = syscall('intptr_t', 'ulong', 'long', 'void *', 'ulong', 'ulong');
  const callPidfdOpen = syscall('long', 'ulong');
  const callPreadv2 = syscall('long', 'void *', 'ulong', 'long', 'long', 'long');
  const callIoSetup = syscall('ulong', 'void *');
  const callIoDestroy = syscall('ulong');
  const callIoSubmit = syscall('ulong', 'long', 'void *');
  const callIoGetevents = syscall('ulong', 'long', 'long', 'void *', 'void *');
  const callMovePages = syscall('long', 'ulong', 'void *', 'void *', 'void *', 'long');

  return {
    getpagesize: int('getpagesize'),
    getauxval: long('getauxval', 'ulong'),
    mmap: long('mmap', 'intptr_t', 'size_t', 'int', 'int', 'int', 'int64_t'),
    munmap: int('munmap', 'intptr_t', 'size_t'),
    memfd_create: int('memfd_create', 'str', 'uint'),
    ftruncate: int('ftruncate', 'int', 'int64_t'),
    madvise: int('madvise', 'intptr_t', 'size_t', 'int'),
    mlock: int('mlock', 'intptr_t', 'size_t'),
    mbind: (...args) => Number(callMbind(mbind, ...args)),
    move_pages: (...args) => Number(callMovePages(move_pages, ...args)),
    process_vm_readv: long('process_vm_readv', 'int', 'void *', 'ulong', 'void *', 'ulong', 'ulong'),
    process_vm_writev: long('process_vm_writev', 'int', 'void *', 'ulong', 'void *', 'ulong', 'ulong'),
    pidfd_open: (...args) => Number(callPidfdOpen(pidfd_open, ...args)),
    preadv2: (fd, vectors, count, flags) => Number(callPreadv2(preadv2, fd, vectors, count, -1, -1, flags)),
    io_setup: (...args) => Number(callIoSetup(io_setup, ...args)),
    io_submit: (...args) => Number(callIoSubmit(io_submit, ...args)),
    io_destroy: (context) => Number(callIoDestroy(io_destroy, context)),
    io_getevents: (context, least, most, into, patient = false) =>
      Number(callIoGetevents(io_getevents, context, least, most, into, patient ? null : NO_TIME)),
    open: int('open', 'str', 'int', 'uint'),
    close: int('close', 'int'),
    fcntl: int('fcntl', 'int', 'int', 'long'),
    fstatfs: int('fstatfs', 'int', 'void *'),
    statx: int('statx', 'int', 'str', 'int', 'uint', 'void *'),
    pread: long('pread', 'int', 'void *', 'size_t', 'int64_t'),
    pwrite: long('pwrite', 'int', 'void *', 'size_t', 'int64_t'),
    read: long('read', 'int', 'void *', 'size_t'),
    write: long('write', 'int', 'void *', 'size_t'),
    link: int('link', 'str', 'str'),
    rename: int('rename', 'str', 'str'),
    unlink: int('unlink', 'str'),
    fallocate: int('fallocate', 'int', 'int', 'int64_t', 'int64_t'),
    flock: int('flock', 'int', 'int'),
    mount: int('mount', 'str', 'str', 'str', 'ulong', 'str'),
    umount2: int('umount2', 'str', 'int'),
    klogctl: int('klogctl', 'int', 'void *', 'int'),
    socket: int('socket', 'int', 'int', 'int'),
    socketpair: int('socketpair', 'int', 'int', 'int', 'void *'),
    connect: int('connect', 'int', 'void *', 'uint'),
    bind: int('bind', 'int', 'void *', 'uint'),
    listen: int('listen', 'int', 'int'),
    accept4: int('accept4', 'int', 'void *', 'void *', 'int'),
    send: long('send', 'int', 'void *', 'size_t', 'int'),
    sendmsg: long('sendmsg', 'int', 'void *', 'int'),
    recvmsg: long('recvmsg', 'int', 'void *', 'int'),
    shutdown: int('shutdown', 'int', 'int'),
    setsockopt: int('setsockopt', 'int', 'int', 'int', 'void *', 'uint'),
    getsockopt: int('getsockopt', 'int', 'int', 'int', 'void *', 'void *'),
    geteuid: int('geteuid'),
    eventfd: int('eventfd', 'uint', 'int'),
    poll: int('poll', 'void *', 'ulong', 'int'),
    epoll_create1: int('epoll_create1', 'int'),
    epoll_ctl: int('epoll_ctl', 'int', 'int', 'int', 'void *'),
    epoll_wait: int('epoll_wait', 'int', 'void *', 'int', 'int'),
    dup3: int('dup3', 'int', 'int', 'int'),
    ioctl: int('ioctl', 'int', 'ulong', 'void *'),
    ioctlValue: int('ioctl', 'int', 'ulong', 'intptr_t'),
    getrlimit: int('getrlimit', 'int', 'void *'),
    getpwnam: long('getpwnam', 'str'),
    getgrnam: long('getgrnam', 'str'),
    view: (va, length) => koffi.view(BigInt(va), length),
    addressOf: (view) => Number(koffi.address(view)),
    peek: (va) => koffi.decode.uint32(va),
    library(name) {
      const library = koffi.load(name);
      return {
        func: (symbol, result, ...args) => library.func(symbol, result, [...args]) as CFunction,
        later: (symbol, result, ...args) => later(library.func(symbol, result, [...args])),
      };
    },
    callable(result, ...args) {
      const prototype = koffi.proto(result, [...args]);
      return (va) => koffi.decode(BigInt(va), prototype) as CFunction;
    },
    // koffi's types omit the first argument of the callback, libuv's status.
    pollHandle: (fd, interest, onEvent) =>
      koffi.node.poll(fd, interest, (...args: unknown[]) => {
        onEvent(Number(args[0]));
      }),
    own: (fd) => fd,
    keeper: () => undefined,
    errno: () => errno[0],
    setErrno: (value) => void (errno[0] = value),
    later: {
      lanes: background.lanes,
      ioctl: later(int('ioctl', 'int', 'ulong', 'void *')),
      madvise: later(int('madvise', 'intptr_t', 'size_t', 'int')),
      fallocate: later(int('fallocate', 'int', 'int', 'int64_t', 'int64_t')),
      setsockopt: later(int('setsockopt', 'int', 'int', 'int', 'void *', 'uint'), closing),
      close: later(int('close', 'int'), closing),
    },
  };
}

/**
 * Returns `result` of a system call that has just returned; if it is -1, throws a DmaError of errno. Nothing may run
 * between the call and this function: errno would be lost.
 *
 * @param operation the name of the system call
 * @param subject the object of the call, for the reason: a path, `fd 7`
 */
export function check(libc: Libc, result: number, operation: string, subject?: string): number {
  return result === -1 ? fail(libc.errno(), operation, subject) : result;
}

/** Throws the DmaError of `errno`; see {@link check}. */
export function fail(errno: number, operation: string, subject?: string, more?: Partial<DmaErrorDetails>): never {
  throw systemFailure(errno, operation, subject, more);
}

/** The DmaError of `errno`; see {@link check}. */
export function systemFailure(
  errno: number,
  operation: string,
  subject?: string,
  more?: Partial<DmaErrorDetails>,
): DmaError {
  const text = systemErrors().get(-errno)?.[1] ?? `error ${errno}`;
  const reason = subject === undefined ? text : `${subject}: ${text}`;
  return new DmaError({ code: errorCode(errno), errno, operation, reason, hint: limitHint(errno), ...more });
}

let errorMap: ReadonlyMap<number, readonly [name: string, text: string]> | undefined;

/** What Node knows of the numbers of errors, which it is asked for once. */
function systemErrors(): NonNullable<typeof errorMap> {
  // Importing node:util reads all of its exports, and on Node 26 that opens standard input.
  errorMap ??= (createRequire(HERE)('node:util') as typeof import('node:util')).getSystemErrorMap();
  return errorMap;
}

/** The hint for an errno that a limit of this process or of the machine explains. */
function limitHint(errno: number): string | undefined {
  if (errno === ERRNO.ENFILE)
    return 'the machine has reached fs.file-max open files: see /proc/sys/fs/file-nr; raise the limit with "sysctl fs.file-max"';
  if (loaded === undefined) return undefined;
  if (errno === ERRNO.EFBIG) return sizeHint(loaded);
  if (errno === ERRNO.ENOMEM) return memoryHint(loaded);
  if (errno !== ERRNO.EMFILE) return undefined;
  const { limit, most, open } = descriptorFacts(loaded);
  return (
    `${open} descriptors are open, and RLIMIT_NOFILE is ${limit} (at most ${most}): close unused descriptors, or raise the limit with ` +
    '"ulimit -n" or LimitNOFILE= of the service'
  );
}

/** The hint for EFBIG: a memfd is a file as well. */
function sizeHint(libc: Libc): string | undefined {
  const [limit] = resourceLimit(libc, RLIMIT_FSIZE, 'RLIMIT_FSIZE');
  if (limit === Infinity) return undefined;
  return (
    `RLIMIT_FSIZE allows files of ${formatSize(limit)}, and memory that devices share is in files: raise the limit with "ulimit -f" ` +
    'or LimitFSIZE= of the service'
  );
}

/** The hint for ENOMEM where this process may not have more, however much the machine has. */
function memoryHint(libc: Libc): string | undefined {
  const limits = [
    { name: 'RLIMIT_AS', resource: RLIMIT_AS, option: '-v' },
    { name: 'RLIMIT_DATA', resource: RLIMIT_DATA, option: '-d' },
  ].flatMap(({ name, resource, option }) => {
    const [limit] = resourceLimit(libc, resource, name);
    return limit === Infinity ? [] : [`${name} is ${formatSize(limit)}; raise it with "ulimit ${option}"`];
  });
  return limits.length === 0 ? undefined : limits.join('; ');
}

/** The soft and hard limit of RLIMIT_NOFILE, and how many descriptors are open. */
export function descriptorFacts(libc: Libc): {
  readonly limit: number;
  readonly most: number;
  readonly open: number;
} {
  const [limit, most] = resourceLimit(libc, RLIMIT_NOFILE, 'RLIMIT_NOFILE');
  try {
    // Reading the directory itself takes one of them.
    return { limit, most, open: readdirSync('/proc/self/fd').length - 1 };
  } catch {
    // The call fails only when no number below the limit is free.
    return { limit, most, open: limit };
  }
}

/** The soft and hard limit of a resource; Infinity if unlimited. */
export function resourceLimit(libc: Libc, resource: number, name: string): [soft: number, hard: number] {
  const words = new Uint32Array(RLIMIT.sizeof / 4);
  check(libc, libc.getrlimit(resource, words), 'getrlimit', name);
  const at = (index: number): number =>
    words[index] === 0xffffffff && words[index + 1] === 0xffffffff
      ? Infinity
      : words[index] + words[index + 1] * 2 ** 32;
  return [at(RLIMIT.rlim_cur / 4), at(RLIMIT.rlim_max / 4)];
}

/**
 * Throws EMFILE or ENFILE if fewer than `count` descriptors are left. For calls into libraries that open files
 * themselves and report a different error.
 *
 * @param count descriptors that must be available
 */
export function needDescriptors(operation: string, count = 1): void {
  const fds: number[] = [];
  try {
    while (fds.length < count) fds.push(openSync('/', 'r'));
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === ERRNO.EMFILE || errno === ERRNO.ENFILE) fail(errno, operation, undefined, { cause: error });
  } finally {
    for (const fd of fds) closeSync(fd);
  }
}

/** Throws EBADF unless `fd` is a possible descriptor number; koffi would convert a wrong one to 0, standard input. */
export function checkFd(fd: number, operation: string): void {
  if ((fd | 0) !== fd || fd < 0)
    throw new DmaError({ code: 'EBADF', operation, reason: `${fd} is not a file descriptor` });
}

/**
 * Throws EINVAL if `text` contains NUL, which would end it early as a C string; ENOENT, as the kernel does, if it is
 * empty.
 */
export function checkPath(text: string, operation: string): void {
  if (text === '') throw new DmaError({ code: 'ENOENT', operation, reason: 'the path is empty' });
  if (text.includes('\0')) throw invalid(operation, `a path can not contain a NUL: ${JSON.stringify(text)}`);
}
