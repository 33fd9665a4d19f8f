/**
 * Stores to registers of a served device from another thread than the one that is connected to it: messages over the same socket, for
 * which nobody waits. Every server takes them that takes posted stores at all; ioeventfds would need servers that offer them, which
 * QEMU and SPDK do not, and have no room for a value.
 *
 * The kernel puts a short message into a stream socket as a whole or not at all, so that two threads can send at once. Only behind a
 * part of a long one must nobody send: those are sent under a lock, and short ones from other threads as well.
 */
import { DmaError } from '../errors.js';
import type { Holders } from '../memory/shared/holders.js';
import { RobustLock } from '../memory/shared/robust-lock.js';
import { wordsIn, type WordMemory } from '../memory/shared/words.js';
import type { Platform } from '../platform/ports.js';
import { now } from '../timers.js';
import { encodeRegionWrite, HEADER_SIZE, REGION_ACCESS_SIZE } from './messages.js';

/** Words of {@link PostedLoan.words}. The lock has a cache line of its own. */
const WORD = { LOCK: 0, REFUSED: 16, COUNT: 32 } as const;

/** How long a store waits for room in the socket, milliseconds. */
const ROOM_MS = 5000;

/** Registers that another thread stores to by message. Plain data. */
export interface PostedRegisters {
  readonly kind: 'posted';
  /** The socket: a descriptor that stays open as long as the registers are lent. */
  readonly fd: number;
  readonly region: number;
}

/** The loan of registers that other threads store to by message. */
export interface PostedLoan extends Disposable {
  readonly stores: PostedRegisters;
  /** What the threads that send share. */
  readonly words: SharedArrayBuffer;
}

/** What the threads that send over one socket share, in the thread that is connected. */
export class SharedSocket {
  /** Held while a long message is being sent. */
  readonly lock: RobustLock;
  readonly #buffer = new SharedArrayBuffer(WORD.COUNT * 4);
  readonly #words = new Int32Array(this.#buffer);

  constructor(holders: Holders) {
    this.lock = lockOf(this.#words, holders);
  }

  /** Lends a region. @param fd the socket, of which the loan keeps a duplicate */
  lend({ files }: Platform, fd: number, region: number): PostedLoan {
    const own = files.duplicate(fd);
    let isOpen = true;
    return {
      stores: { kind: 'posted', fd: own, region },
      words: this.#buffer,
      [Symbol.dispose]: () => {
        if (isOpen) files.close(own);
        isOpen = false;
      },
    };
  }

  /** From now on no stores may be posted. */
  refuse(): void {
    Atomics.store(this.#words, WORD.REFUSED, 1);
  }
}

/** Stores of this thread, by the socket of another one. */
export class PostedStores implements Disposable {
  readonly #platform: Platform;
  readonly #fd: number;
  readonly #region: number;
  readonly #words: Int32Array;
  readonly #lock: RobustLock;
  readonly #value = new Uint32Array(1);
  readonly #bytes = new Uint8Array(this.#value.buffer);
  readonly #message = new Uint8Array(HEADER_SIZE + REGION_ACCESS_SIZE + 4);

  constructor(platform: Platform, { fd, region }: PostedRegisters, words: WordMemory, holders: Holders) {
    this.#platform = platform;
    this.#fd = fd;
    this.#region = region;
    this.#words = wordsIn(words, 'the words of a socket', 'attach');
    this.#lock = lockOf(this.#words, holders);
  }

  /**
   * Sends one store. Waits only for room in the socket.
   *
   * @throws DmaError ENOTSUP, ETIMEDOUT; EPIPE, ECONNRESET when the server is gone
   */
  write32(offset: number, value: number): void {
    const operation = 'posted store';
    if (Atomics.load(this.#words, WORD.REFUSED) !== 0) throw mayNotPost(operation);
    const { sockets, readiness } = this.#platform;
    this.#value[0] = value;
    // Nobody waits for the answer, so any id will do.
    encodeRegionWrite(this.#message, 0, this.#region, offset, this.#bytes, true);
    for (const end = now() + ROOM_MS; ;) {
      // The message of a thread that died with the lock was sent or not: there is nothing to repair.
      this.#lock.lock(operation);
      try {
        if (sockets.send(this.#fd, this.#message, 0, NO_FDS) > 0) return;
      } finally {
        this.#lock.unlock();
      }
      const left = Math.ceil(end - now());
      if (left <= 0 || !readiness.wait([{ fd: this.#fd, readable: false, writable: true }], left))
        throw new DmaError({ code: 'ETIMEDOUT', operation, reason: `the server has read nothing for ${ROOM_MS} ms` });
    }
  }

  /** The descriptor is the other thread's. */
  [Symbol.dispose](): void {
    return undefined;
  }
}

const NO_FDS: readonly number[] = [];

/** The error where a server would take a store for the answer to a request of its own. */
export function mayNotPost(operation: string): DmaError {
  return new DmaError({
    code: 'ENOTSUP',
    operation,
    reason: 'the server asks for memory by messages on the same socket, so that only one command can be outstanding',
    hint: 'share=always, and memory with a descriptor, let the server reach memory without asking',
  });
}

function lockOf(words: Int32Array, holders: Holders): RobustLock {
  return new RobustLock(
    words,
    WORD.LOCK,
    holders,
    'the socket',
    'it is in the middle of a message that the server does not read',
  );
}
