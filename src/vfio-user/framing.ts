/**
 * From received bytes to whole messages. A stream socket keeps no message boundaries; the header's size field makes them.
 *
 * Descriptors are attached to the first byte of the message that was sent with them, and one recvmsg(2) never reads past
 * the bytes that carried descriptors. So those that a chunk brought belong to the last message that begins in it.
 */
import { DmaError } from '../errors.js';
import { FLAG, get16, get32, HEADER_SIZE, operationOf } from './messages.js';
import type { Message } from './messages.js';

/** What is read ahead, in bytes: enough for many small messages a system call. */
const READ_AHEAD = 65536;

const NO_FDS: number[] = [];

/** The other side broke the protocol: code EPROTO. */
export function protocolError(reason: string, cause?: unknown): DmaError {
  return new DmaError({
    code: 'EPROTO',
    operation: 'vfio-user',
    reason: `the other side sent nonsense: ${reason}`,
    cause,
  });
}

/** Is the message a command (and not a reply)? @throws DmaError EPROTO when its flags say neither */
export function isCommand({ command, flags }: Message): boolean {
  const type = flags & FLAG.TYPE;
  if (type === FLAG.REPLY) return false;
  if (type === FLAG.COMMAND && (flags & FLAG.ERROR) === 0) return true;
  throw protocolError(`${operationOf(command)} with flags 0x${flags.toString(16)}, neither a command nor a reply`);
}

/**
 * The receive buffer of one connection. It begins small, grows only as bytes really arrive, and never past the largest
 * message allowed: a header that announces more is refused at once.
 */
export class Framer {
  #buffer = new Uint8Array(READ_AHEAD);
  /** The first byte of `#buffer` that is in no message taken yet, and one past the last received. */
  #start = 0;
  #end = 0;
  /** Position in the stream of `#buffer[0]`. */
  #base = 0;
  /** Descriptors of messages not taken yet, in order, by the position where their message begins. */
  #fds: { readonly at: number; readonly fds: number[] }[] = [];

  /** @param maxMessage the largest message accepted, in bytes */
  constructor(private readonly maxMessage: number) {}

  /** Where to receive into; never empty. Ends the life of all payloads given out before. */
  space(): Uint8Array {
    if (this.#start === this.#end) {
      this.#base += this.#start;
      this.#start = this.#end = 0;
      return this.#buffer;
    }
    if (this.#end === this.#buffer.length) {
      const length = this.#end - this.#start;
      const target =
        this.#start > 0 && length <= this.#buffer.length / 2
          ? this.#buffer
          : new Uint8Array(Math.max(READ_AHEAD, Math.min(this.#buffer.length * 2, this.maxMessage + READ_AHEAD)));
      if (target === this.#buffer) target.copyWithin(0, this.#start, this.#end);
      else target.set(this.#buffer.subarray(this.#start, this.#end));
      this.#buffer = target;
      this.#base += this.#start;
      this.#start = 0;
      this.#end = length;
    }
    return this.#buffer.subarray(this.#end);
  }

  /**
   * `bytes` bytes have been put into {@link space}, and `fds` came with them. The framer owns the descriptors from here,
   * error or not.
   *
   * @throws DmaError EPROTO when a message's size is impossible, or no message begins in a chunk with descriptors
   */
  received(bytes: number, fds: readonly number[]): void {
    const chunk = this.#end;
    this.#end += bytes;
    if (fds.length === 0) return;
    // Where the last message begins; its header may not be complete yet.
    let last = this.#start;
    const entry = { at: -1, fds: [...fds] };
    this.#fds.push(entry);
    for (let size = this.#sizeAt(last); size !== undefined && last + size < this.#end; size = this.#sizeAt(last))
      last += size;
    if (last < chunk) throw protocolError('descriptors in the middle of a message');
    this.#fds[this.#fds.length - 1] = { at: this.#base + last, fds: entry.fds };
  }

  /**
   * The next whole message; `undefined` when more bytes are needed first.
   *
   * @throws DmaError EPROTO when its size is impossible
   */
  next(): Message | undefined {
    const at = this.#start;
    const size = this.#sizeAt(at);
    if (size === undefined || size > this.#end - at) return undefined;
    const buffer = this.#buffer;
    this.#start = at + size;
    return {
      id: get16(buffer, at),
      command: get16(buffer, at + 2),
      flags: get32(buffer, at + 8),
      errno: get32(buffer, at + 12),
      payload: buffer.subarray(at + HEADER_SIZE, at + size),
      fds: this.#fds.length > 0 && this.#fds[0].at === this.#base + at ? (this.#fds.shift()?.fds ?? NO_FDS) : NO_FDS,
    };
  }

  /** All descriptors of messages that have not been taken; they are the caller's now. */
  takeFds(): number[] {
    const fds = this.#fds.flatMap((entry) => entry.fds);
    this.#fds = [];
    return fds;
  }

  /** The size of the message that begins at `at` of the buffer; `undefined` when its header is not complete. */
  #sizeAt(at: number): number | undefined {
    if (this.#end - at < HEADER_SIZE) return undefined;
    const size = get32(this.#buffer, at + 4);
    if (size < HEADER_SIZE || size > this.maxMessage)
      throw protocolError(`a message of ${size} bytes (${HEADER_SIZE} to ${this.maxMessage} are possible)`);
    return size;
  }
}
