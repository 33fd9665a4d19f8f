/**
 * Adds to eventfds of other processes without waiting. write(2) to an eventfd that is full waits unless O_NONBLOCK is
 * set, which the other process can clear, and fill the eventfd, between any check and the write. The kernel itself
 * never waits: with IOCB_FLAG_RESFD it adds 1 when an operation of asynchronous I/O ends.
 */
import { ERRNO } from '../../errors.js';
import { IO_EVENT, IOCB, IOCB_CMD_PREAD, IOCB_FLAG_RESFD } from '../uapi/aio.js';
import { MFD_CLOEXEC } from '../uapi/memfd.js';
import type { Libc } from './libc.js';

/** Operations that may have ended before the kernel is told that this was seen. */
const ENDED = 32;

/** Keeps one descriptor and one mapping for the rest of the process. */
export class EventAdder {
  readonly #libc: Libc;
  readonly #context: number;
  readonly #operation = new Uint32Array(IOCB.sizeof / 4);
  /** The address of `#operation`. */
  readonly #list = new Uint32Array(2);
  readonly #ended = new Uint32Array((ENDED * IO_EVENT.sizeof) / 4);

  private constructor(libc: Libc, context: number, nothing: number) {
    this.#libc = libc;
    this.#context = context;
    const address = libc.addressOf(this.#operation);
    this.#list.set([address >>> 0, Math.floor(address / 2 ** 32)]);
    const operation = new DataView(this.#operation.buffer);
    operation.setUint16(IOCB.aio_lio_opcode, IOCB_CMD_PREAD, true);
    // Reads nothing of an empty file, which ends at once.
    operation.setUint32(IOCB.aio_fildes, nothing, true);
    operation.setUint32(IOCB.aio_flags, IOCB_FLAG_RESFD, true);
  }

  /** `undefined` where the kernel has no asynchronous I/O, a sandbox forbids it, or a limit is reached. */
  static make(libc: Libc): EventAdder | undefined {
    const context = new Uint32Array(2);
    const nothing = libc.memfd_create('nothing', MFD_CLOEXEC);
    if (nothing === -1) return undefined;
    if (libc.io_setup(ENDED, context) === 0) return new EventAdder(libc, context[0] + context[1] * 2 ** 32, nothing);
    libc.close(nothing);
    return undefined;
  }

  /** Adds 1. @returns 0, or the errno: EINVAL for what is no eventfd */
  add(fd: number): number {
    const libc = this.#libc;
    this.#operation[IOCB.aio_resfd / 4] = fd;
    for (;;) {
      if (libc.io_submit(this.#context, 1, this.#list) === 1) return 0;
      const errno = libc.errno();
      // Full: by operations that have all ended.
      if (errno !== ERRNO.EAGAIN || libc.io_getevents(this.#context, 0, ENDED, this.#ended) <= 0) return errno;
    }
  }
}
