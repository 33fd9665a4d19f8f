/**
 * Descriptors that end with their worker thread. When a worker ends, in whatever way, Node closes the descriptors that
 * `fs.openSync` opened in it (the worker's option `trackUnmanagedFds`, on by default). So Node opens a placeholder, and
 * ours replaces it under the same number, which Node will close.
 */
import { closeSync, openSync } from 'node:fs';
import { ERRNO } from '../../errors.js';
import { errnoOf } from '../../realms.js';
import type { Libc } from './libc.js';
import { F_DUPFD_CLOEXEC, O_CLOEXEC } from '../uapi/fcntl.js';
import { IOCTL as IOMMUFD, IOMMU_FAULT_ALLOC } from '../uapi/iommufd.js';
import { IOCTL as VFIO } from '../uapi/vfio.js';

/** The functions of {@link Libc} that create or close descriptors. */
type Descriptors = Pick<
  Libc,
  | 'open'
  | 'memfd_create'
  | 'socket'
  | 'accept4'
  | 'eventfd'
  | 'epoll_create1'
  | 'fcntl'
  | 'socketpair'
  | 'ioctl'
  | 'pidfd_open'
  | 'close'
  | 'own'
>;

/** Makes the descriptors of this worker thread end with it. */
export function descriptorsOfWorker(libc: Libc): Descriptors {
  const owned = new OwnedDescriptors(libc);
  const own = (fd: number): number => owned.own(fd);
  return {
    own,
    open: (path, flags, mode) => own(libc.open(path, flags, mode)),
    memfd_create: (name, flags) => own(libc.memfd_create(name, flags)),
    socket: (domain, type, protocol) => own(libc.socket(domain, type, protocol)),
    accept4: (fd, address, length, flags) => own(libc.accept4(fd, address, length, flags)),
    pidfd_open: (pid, flags) => own(libc.pidfd_open(pid, flags)),
    eventfd: (count, flags) => own(libc.eventfd(count, flags)),
    epoll_create1: (flags) => own(libc.epoll_create1(flags)),
    fcntl: (fd, command, argument) => {
      const result = libc.fcntl(fd, command, argument);
      return command === F_DUPFD_CLOEXEC ? own(result) : result;
    },
    socketpair: (domain, type, protocol, fds) => {
      if (libc.socketpair(domain, type, protocol, fds) === -1) return -1;
      const first = own(fds[0]);
      const second = own(fds[1]);
      if (first !== -1 && second !== -1) {
        fds.set([first, second]);
        return 0;
      }
      for (const fd of [first, second]) if (fd !== -1) owned.close(fd);
      libc.setErrno(ERRNO.EMFILE);
      return -1;
    },
    ioctl: (fd, request, argument) => {
      const result = libc.ioctl(fd, request, argument);
      if (request === VFIO.VFIO_GROUP_GET_DEVICE_FD) return own(result);
      if (request !== IOMMUFD.IOMMU_FAULT_QUEUE_ALLOC || result === -1 || !ArrayBuffer.isView(argument)) return result;
      const view = new DataView(argument.buffer, argument.byteOffset, argument.byteLength);
      const queue = own(view.getUint32(IOMMU_FAULT_ALLOC.out_fault_fd, true));
      view.setUint32(IOMMU_FAULT_ALLOC.out_fault_fd, queue, true);
      return queue === -1 ? -1 : result;
    },
    close: (fd) => owned.close(fd),
  };
}

/** The descriptors that Node closes when this worker thread ends. */
class OwnedDescriptors {
  readonly #libc: Libc;
  readonly #owned = new Set<number>();

  constructor(libc: Libc) {
    this.#libc = libc;
  }

  /** Gives `fd` a number that Node closes. @returns it; -1, with errno, if there is none */
  own(fd: number): number {
    if (fd === -1) return -1;
    let number: number;
    try {
      number = openSync('/dev/null', 'r');
    } catch (error) {
      const errno = errnoOf(error);
      // Where Node's permission model forbids opening files, the descriptor is used as it is.
      if (errno !== ERRNO.EMFILE && errno !== ERRNO.ENFILE) return fd;
      this.#libc.close(fd);
      this.#libc.setErrno(errno);
      return -1;
    }
    if (this.#libc.dup3(fd, number, O_CLOEXEC) === -1) {
      closeSync(number);
      return fd;
    }
    this.#libc.close(fd);
    this.#owned.add(number);
    return number;
  }

  close(fd: number): number {
    if (!this.#owned.delete(fd)) return this.#libc.close(fd);
    try {
      closeSync(fd);
      return 0;
    } catch (error) {
      this.#libc.setErrno(errnoOf(error) ?? ERRNO.EIO);
      return -1;
    }
  }
}
