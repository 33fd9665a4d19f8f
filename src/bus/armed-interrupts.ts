/** Interrupts of a device that signals eventfds: they call handlers, and can be lent to threads and handed to another process. */
import { undoAll } from '../errors.js';
import type { EventsPort, Platform, Watch } from '../platform/ports.js';
import type { InterruptLoan, Interrupts } from './device-access.js';

/** What the interrupts of one kind need. */
export interface ArmedParts {
  readonly handlers: readonly (() => void)[];
  /** Called after each handler, even if it throws. */
  readonly afterwards: (() => void) | undefined;
  /** The eventfds that the device signals already, one for each handler. Absent: new ones are made. */
  readonly fds?: readonly number[];
  /** Disables them in the device. */
  readonly disable: () => void;
  /** They were closed. */
  readonly closed: () => void;
}

/** Enabled interrupts of one kind. Owns their eventfds. */
export class ArmedInterrupts implements Interrupts {
  /** One that is masked by each signal is unmasked by this thread. */
  readonly lend?: (vector: number) => InterruptLoan;
  readonly #platform: Platform;
  readonly #parts: ArmedParts;
  readonly #vectors: Vector[] = [];
  #isArmed = false;
  #isClosed = false;

  /** Makes the eventfds; {@link listen} follows. */
  constructor(platform: Platform, parts: ArmedParts) {
    this.#platform = platform;
    this.#parts = parts;
    const { handlers, afterwards, fds } = parts;
    try {
      for (const [i, handler] of handlers.entries()) {
        const fd = fds === undefined ? platform.events.create() : fds[i];
        this.#vectors.push(new Vector(platform, fd, handler, afterwards));
      }
    } catch (error) {
      this.#closeFds();
      throw error;
    }
    if (afterwards === undefined) this.lend = (vector) => this.#vectors[vector].lend();
  }

  /** The eventfds, one for each vector. */
  get fds(): number[] {
    return this.#vectors.map(({ fd }) => fd);
  }

  /** Calls the handlers from now on: also for signals that nobody took before. */
  listen(): void {
    try {
      for (const vector of this.#vectors) vector.start();
    } catch (error) {
      this.pause();
      throw error;
    }
  }

  /** The device signals the eventfds: closing disables them there. */
  armed(): void {
    this.#isArmed = true;
  }

  /** Takes no signals until {@link listen}: they stay in the eventfds. */
  pause(): void {
    for (const vector of this.#vectors) vector.stop();
  }

  setRef(keepAlive: boolean): void {
    for (const vector of this.#vectors) vector.setRef(keepAlive);
  }

  close(): void {
    this.#close(() => {
      if (this.#isArmed) this.#parts.disable();
    });
  }

  /** Another process has the eventfds: closes this process's descriptors, and leaves the device as it is. */
  abandon(): void {
    this.#close(() => undefined);
  }

  #close(disable: () => void): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    const errors = undoAll([disable, ...this.#vectors.map((vector) => () => vector.close())]);
    errors.push(...this.#closeFds());
    this.#parts.closed();
    if (errors.length > 0) throw errors[0];
  }

  #closeFds(): unknown[] {
    return undoAll(
      this.#vectors.splice(0).map(
        ({ fd }) =>
          () =>
            this.#platform.files.close(fd),
      ),
    );
  }
}

/** One vector: its eventfd, which this thread waits for, unless another one does. */
class Vector {
  readonly fd: number;
  readonly #platform: Platform;
  readonly #handler: () => void;
  readonly #afterwards: (() => void) | undefined;
  #watch: Watch | undefined;
  #keepAlive = true;
  #isLent = false;
  #closed = false;

  constructor(platform: Platform, fd: number, handler: () => void, afterwards: (() => void) | undefined) {
    this.#platform = platform;
    this.fd = fd;
    this.#handler = handler;
    this.#afterwards = afterwards;
  }

  start(): void {
    if (this.#isLent) return;
    const { events, readiness } = this.#platform;
    this.#watch = readiness.watch(this.fd, { readable: true }, () => {
      if (signalled(events, this.fd)) this.#signalled();
    });
    if (!this.#keepAlive) this.#watch.setRef(false);
  }

  stop(): void {
    this.#watch?.close();
    this.#watch = undefined;
  }

  setRef(keepAlive: boolean): void {
    this.#keepAlive = keepAlive;
    this.#watch?.setRef(keepAlive);
  }

  lend(): InterruptLoan {
    const { files } = this.#platform;
    const fd = files.duplicate(this.fd);
    this.stop();
    this.#isLent = true;
    let isLent = true;
    return {
      fd,
      signal: () => this.#platform.events.signal(fd),
      [Symbol.dispose]: () => {
        if (!isLent) return;
        isLent = false;
        this.#isLent = false;
        files.close(fd);
        if (this.#closed) return;
        this.start();
        this.#signalled();
      },
    };
  }

  close(): void {
    this.#closed = true;
    this.stop();
  }

  #signalled(): void {
    try {
      this.#handler();
    } finally {
      this.#afterwards?.();
    }
  }
}

/**
 * Whether it was signalled. If reading the eventfd fails: true, because a missed interrupt does more harm than a
 * spurious one.
 */
function signalled(events: EventsPort, fd: number): boolean {
  try {
    return events.take(fd) > 0;
  } catch {
    return true;
  }
}
