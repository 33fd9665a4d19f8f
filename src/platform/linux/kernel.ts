/** The kernel's settings and mounts on Linux. */
import {
  accessSync,
  chownSync,
  closeSync,
  constants,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readlinkSync,
  realpathSync,
  statSync,
  writeSync,
  type Stats,
} from 'node:fs';
import { dirname } from 'node:path';
import { absolutePath } from '../../check.js';
import { DmaError, ERRNO, invalid, isDmaError, unlessFails } from '../../errors.js';
import { bound } from './bound.js';
import { check, checkPath, fail, needDescriptors } from './libc.js';
import type { Libc } from './libc.js';
import { readKernelText } from './proc.js';
import { readRoutes } from './routes.js';
import { callNode, ifPresent } from './node-errors.js';
import type { DeviceNode, KernelPort, KernelRoute, MountOptions } from '../ports.js';
import { SYSLOG_ACTION_READ_ALL, SYSLOG_ACTION_SIZE_BUFFER } from '../uapi/syslog.js';

/** The {@link KernelPort} of a Linux kernel. */
export function linuxKernel(libc: Libc): KernelPort {
  return bound(new LinuxKernel(libc));
}

class LinuxKernel implements KernelPort {
  readonly #libc: Libc;

  constructor(libc: Libc) {
    this.#libc = libc;
  }

  readText(path: string): string | undefined {
    return readKernelText(path);
  }

  writeText(path: string, text: string): void {
    checkPath(path, 'write');
    const subject = `${JSON.stringify(text)} into ${path}`;
    const fd = callNode(path, () => openSync(path, constants.O_WRONLY | constants.O_TRUNC));
    try {
      callNode(subject, () => writeSync(fd, text));
    } finally {
      closeSync(fd);
    }
  }

  list(directory: string): string[] {
    return ifPresent(directory, () => readdirSync(directory).sort()) ?? [];
  }

  readLink(path: string): string | undefined {
    // EINVAL: not a symbolic link.
    return unlessFails(['EINVAL'], () => ifPresent(path, () => readlinkSync(path)));
  }

  realPath(path: string): string | undefined {
    checkPath(path, 'realpath');
    return ifPresent(path, () => realpathSync.native(path));
  }

  mayOpen(path: string): ReturnType<KernelPort['mayOpen']> {
    try {
      const call = (): 'yes' => {
        accessSync(path, constants.R_OK | constants.W_OK);
        return 'yes';
      };
      return ifPresent(path, call) ?? 'no-such-file';
    } catch (error) {
      if (['EACCES', 'EPERM', 'EROFS'].some((code) => isDmaError(error) && error.code === code)) return 'no-permission';
      throw error;
    }
  }

  log(): string | undefined {
    const room = this.#libc.klogctl(SYSLOG_ACTION_SIZE_BUFFER, null, 0);
    if (room < 0) return unlessShown(this.#libc);
    if (room === 0) return undefined;
    const bytes = Buffer.alloc(room);
    const length = this.#libc.klogctl(SYSLOG_ACTION_READ_ALL, bytes, room);
    return length < 0 ? unlessShown(this.#libc) : bytes.toString('latin1', 0, length);
  }

  changeOwner(path: string, user: number, group: number): void {
    checkPath(path, 'chown');
    callNode(path, () => chownSync(path, user, group));
  }

  makeDirectory(path: string, mode?: number): void {
    checkPath(path, 'mkdir');
    makeAll(absolutePath(path, 'mkdir'), mode);
  }

  mount({ source, target, type, options }: MountOptions): void {
    checkPath(target, 'mount');
    for (const text of [source, type, options])
      if (text.includes('\0')) throw invalid('mount', `a mount option can not contain NUL: ${JSON.stringify(text)}`);
    check(this.#libc, this.#libc.mount(source, target, type, 0, options), 'mount', `${type} at ${target} (${options})`);
  }

  unmount(target: string): void {
    checkPath(target, 'umount2');
    check(this.#libc, this.#libc.umount2(target, 0), 'umount2', target);
  }

  nodeAt(path: string): DeviceNode | undefined {
    const stats = ifPresent(path, () => statSync(path));
    return stats && nodeOf(stats);
  }

  claim(path: string, { kind, number }: DeviceNode): Disposable {
    const isIt = (found: DeviceNode | undefined): boolean => found?.kind === kind && found.number === number;
    const absent = (): DmaError =>
      new DmaError({ code: 'ENOENT', operation: 'open', reason: `${path} is not ${kind} device ${number}` });
    // Checked before opening: opening some other device may have side effects.
    if (!isIt(this.nodeAt(path))) throw absent();
    // Without O_NONBLOCK a drive would wait for its medium.
    const flags = kind === 'block' ? constants.O_RDONLY | constants.O_EXCL : constants.O_RDWR;
    let fd: number | undefined = callNode(path, () => openSync(path, flags | constants.O_NONBLOCK));
    const release = (): void => {
      if (fd !== undefined) closeSync(fd);
      fd = undefined;
    };
    if (isIt(nodeOf(fstatSync(fd)))) return { [Symbol.dispose]: release };
    release();
    throw absent();
  }

  routes(): KernelRoute[] {
    return readRoutes(this.#libc);
  }

  idOf(kind: 'user' | 'group', name: string): number | undefined {
    checkPath(name, kind === 'user' ? 'getpwnam' : 'getgrnam');
    // The C library reads files for this, and reports a failed open as "no such name".
    needDescriptors(kind === 'user' ? 'getpwnam' : 'getgrnam', 2);
    const va = kind === 'user' ? this.#libc.getpwnam(name) : this.#libc.getgrnam(name);
    // In both structs the number follows two pointers.
    return va === 0 ? undefined : this.#libc.peek(va + 16);
  }
}

/** The kernel hides its log, from this user or from everyone. @throws DmaError for every other reason */
function unlessShown(libc: Libc): undefined {
  const errno = libc.errno();
  if (errno === ERRNO.EPERM || errno === ERRNO.EACCES || errno === ERRNO.ENOSYS) return undefined;
  return fail(errno, 'syslog', "the kernel's log");
}

/** Returns `undefined` for a file that is not a device node. */
function nodeOf(stats: Stats): DeviceNode | undefined {
  if (!stats.isBlockDevice() && !stats.isCharacterDevice()) return undefined;
  const device = BigInt(stats.rdev);
  // Split as in glibc's makedev(3).
  const major = ((device >> 8n) & 0xfffn) | ((device >> 32n) & ~0xfffn);
  const minor = (device & 0xffn) | ((device >> 12n) & 0xffffff00n);
  return { kind: stats.isBlockDevice() ? 'block' : 'character', number: `${major}:${minor}` };
}

/**
 * Creates the directory `path` and its parents. (mkdirSync with `recursive` never returns where the system call fails
 * with ENOENT, as in /proc.)
 */
function makeAll(path: string, mode: number | undefined): void {
  const missing: string[] = [];
  const statusOf = (at: string): Stats | undefined =>
    callNode(path, () => statSync(at, { throwIfNoEntry: false }), { operation: 'mkdir' });
  for (let at = path; statusOf(at) === undefined && at !== dirname(at); at = dirname(at)) missing.unshift(at);
  for (const each of missing)
    try {
      callNode(each, () => mkdirSync(each, { mode }));
    } catch (error) {
      // Another process may have created it meanwhile.
      if (!isDmaError(error, 'EEXIST')) throw error;
    }
  if (statusOf(path)?.isDirectory() !== true) fail(ERRNO.ENOTDIR, 'mkdir', path);
}
