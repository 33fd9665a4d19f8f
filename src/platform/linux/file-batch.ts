/** Many reads and writes in one system call: asynchronous I/O, which is done at once where pages are in memory. */
import { ERRNO } from '../../errors.js';
import { IO_EVENT, IOCB, IOCB_CMD_PREAD, IOCB_CMD_PWRITE } from '../uapi/aio.js';
import { RWF_NOWAIT } from '../uapi/fs.js';
import type { FileBatch } from '../ports.js';
import type { Libc } from './libc.js';

const CAPACITY = 128;
const OPERATION = IOCB.sizeof / 4;
const EVENT = IO_EVENT.sizeof / 4;

/** Transfers that the kernel gets together. The operations are laid out once, and nothing is allocated for a transfer. */
export class LinuxFileBatch implements FileBatch {
  readonly capacity = CAPACITY;
  readonly results = new Int32Array(CAPACITY);
  readonly #libc: Libc;
  readonly #context: number;
  readonly #operations = new Uint32Array(CAPACITY * OPERATION);
  /** The address of each operation. */
  readonly #list = new Uint32Array(2 * CAPACITY);
  readonly #ended = new Uint32Array(CAPACITY * EVENT);
  #count = 0;
  #isClosed = false;

  private constructor(libc: Libc, context: number) {
    this.#libc = libc;
    this.#context = context;
    const start = libc.addressOf(this.#operations);
    for (let n = 0; n < CAPACITY; n++) {
      this.#operations[n * OPERATION + IOCB.aio_data / 4] = n;
      const address = start + n * IOCB.sizeof;
      this.#list[2 * n] = address;
      this.#list[2 * n + 1] = address / 2 ** 32;
    }
  }

  /** `undefined` where there is no asynchronous I/O. */
  static make(libc: Libc): LinuxFileBatch | undefined {
    const context = new Uint32Array(2);
    if (libc.io_setup(CAPACITY, context) !== 0) return undefined;
    return new LinuxFileBatch(libc, context[0] + context[1] * 2 ** 32);
  }

  get count(): number {
    return this.#count;
  }

  read(fd: number, offset: number, va: number, length: number, cached: boolean): void {
    this.#add(IOCB_CMD_PREAD, fd, offset, va, length, cached ? RWF_NOWAIT : 0);
  }

  write(fd: number, offset: number, va: number, length: number): void {
    this.#add(IOCB_CMD_PWRITE, fd, offset, va, length, 0);
  }

  run(): void {
    const count = this.#count;
    this.#count = 0;
    if (count === 1 && this.#operations[IOCB.aio_rw_flags / 4] === 0) this.#runOne();
    else if (count > 0) this.#runAll(count);
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#libc.io_destroy(this.#context);
  }

  #add(opcode: number, fd: number, offset: number, va: number, length: number, flags: number): void {
    const words = this.#operations;
    const at = this.#count++ * OPERATION;
    words[at + IOCB.aio_rw_flags / 4] = flags;
    words[at + IOCB.aio_lio_opcode / 4] = opcode;
    words[at + IOCB.aio_fildes / 4] = fd;
    words[at + IOCB.aio_buf / 4] = va;
    words[at + IOCB.aio_buf / 4 + 1] = va / 2 ** 32;
    words[at + IOCB.aio_nbytes / 4] = length;
    words[at + IOCB.aio_offset / 4] = offset;
    words[at + IOCB.aio_offset / 4 + 1] = offset / 2 ** 32;
  }

  /** One call is cheaper than the two of a list. */
  #runOne(): void {
    const libc = this.#libc;
    const words = this.#operations;
    const va = words[IOCB.aio_buf / 4] + words[IOCB.aio_buf / 4 + 1] * 2 ** 32;
    const offset = words[IOCB.aio_offset / 4] + words[IOCB.aio_offset / 4 + 1] * 2 ** 32;
    const transfer = words[IOCB.aio_lio_opcode / 4] === IOCB_CMD_PREAD ? libc.pread : libc.pwrite;
    const moved = transfer(words[IOCB.aio_fildes / 4], va, words[IOCB.aio_nbytes / 4], offset);
    this.results[0] = moved === -1 ? -libc.errno() : moved;
  }

  #runAll(count: number): void {
    const libc = this.#libc;
    // The first one that the kernel does not take ends the list.
    const taken = libc.io_submit(this.#context, count, this.#list);
    const refusal = taken === count ? 0 : -(taken === -1 ? libc.errno() : ERRNO.EAGAIN);
    this.results.fill(refusal, 0, count);
    for (let left = taken; left > 0;) {
      // All have ended by now, unless the file system goes on by itself: then nobody may have the memory back yet.
      const found = libc.io_getevents(this.#context, left, left, this.#ended, true);
      if (found === -1 && libc.errno() !== ERRNO.EINTR) break;
      for (let n = 0; n < found; n++) {
        const at = n * EVENT;
        this.results[this.#ended[at + IO_EVENT.data / 4]] = this.#ended[at + IO_EVENT.res / 4];
      }
      left -= Math.max(0, found);
    }
  }
}
