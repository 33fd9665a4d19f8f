/**
 * Splits received bytes into messages. A stream socket keeps no message boundaries; the size in each header defines
 * them.
 *
 * Descriptors are attached to the first byte of their message, and one recvmsg(2) never reads beyond the bytes that
 * carried descriptors. So the descriptors of a chunk belong to the last message that begins in it.
 */
import { DmaError } from '../errors.js';
import { FLAG, get16, get32, HEADER_SIZE, operationOf } from './messages.js';
import type { Message } from './messages.js';

/** How many bytes are received at once: enough for many small messages per system call. */
const READ_AHEAD = 65536;

const NO_FDS: number[] = [];

/** The other side violated the protocol: code EPROTO. */
export function protocolError(reason: string, cause?: unknown): DmaError {
  return new DmaError({
    code: 'EPROTO',
    operation: 'vfio-user',
    reason: `the other side sent nonsense: ${reason}`,
    cause,
  });
}

/** Whether the message is a command (not a reply). @throws DmaError EPROTO if its flags say neither */
export function isCommand({ command, flags }: Message): boolean {
  const type = flags & FLAG.TYPE;
  if (type === FLAG.REPLY) return false;
  if (type === FLAG.COMMAND && (flags & FLAG.ERROR) === 0) return true;
  throw protocolError(`${operationOf(command)} with flags 0x${flags.toString(16)}, neither a command nor a reply`);
}

/**
 * The receive buffer of one connection. It starts small, grows only when bytes arrive, and never beyond the largest
 * allowed message: a header that announces more is refused at once.
 */
export class Framer {
  #buffer = new Uint8Array(READ_AHEAD);
  /** The first byte in `#buffer` of the messages that are not taken yet, and the end of the received bytes. */
  #start = 0;
  #end = 0;
  /** Position of `#buffer[0]` in the stream. */
  #base = 0;
  /** Descriptors of messages that are not taken yet, in order, by the position where their message begins. */
  #fds: { readonly at: number; readonly fds: number[] }[] = [];

  /** @param maxMessage the largest message accepted, in bytes */
  constructor(private readonly maxMessage: number) {}

  /** Where to receive into; never empty. It makes all payloads returned before invalid. */
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
   * Tells the framer that {@link space} received `bytes` bytes and `fds` with them. The framer owns the descriptors
   * from now on, also if it throws.
   *
   * @throws DmaError EPROTO if a message's size is impossible, or no message begins in a chunk with descriptors
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
   * The next whole message; `undefined` if more bytes are needed first.
   *
   * @throws DmaError EPROTO if its size is impossible
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

  /** Takes the bytes of messages that are not taken, which another process continues with; see {@link restore}. */
  takeRest(): Uint8Array {
    const rest = this.#buffer.slice(this.#start, this.#end);
    this.#base += this.#end;
    this.#start = this.#end = 0;
    return rest;
  }

  /** Puts bytes of {@link takeRest} before all others. Only before anything was received. */
  restore(rest: Uint8Array): void {
    this.#buffer = new Uint8Array(rest.length + READ_AHEAD);
    this.#buffer.set(rest);
    this.#end = rest.length;
  }

  /** Are there descriptors of messages that are not taken? */
  get hasFds(): boolean {
    return this.#fds.length > 0;
  }

  /** All descriptors of messages that are not taken. The caller owns them from now on. */
  takeFds(): number[] {
    const fds = this.#fds.flatMap((entry) => entry.fds);
    this.#fds = [];
    return fds;
  }

  /** The size of the message that begins at `at` in the buffer; `undefined` if its header is not complete. */
  #sizeAt(at: number): number | undefined {
    if (this.#end - at < HEADER_SIZE) return undefined;
    const size = get32(this.#buffer, at + 4);
    if (size < HEADER_SIZE || size > this.maxMessage)
      throw protocolError(`a message of ${size} bytes (${HEADER_SIZE} to ${this.maxMessage} are possible)`);
    return size;
  }
}
