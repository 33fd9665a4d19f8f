/** The process that serves a device: until it has ended, it can access all memory that it got a descriptor of. */
import { isDmaError } from '../errors.js';
import type { Platform, Watch } from '../platform/ports.js';
import { setImmediate } from '../timers.js';

/** A process, watched until it ends. */
export class ServerProcess {
  readonly #platform: Platform;
  /** A pidfd; `undefined` for a process that is not visible from here, whose end can therefore not be known. */
  #fd: number | undefined;
  #watch: Watch | undefined;
  #ended = false;
  #whenEnded: Promise<void> | undefined;
  /** How many calls wait for its end. */
  #waiting = 0;

  /** @param fd the connection to it */
  constructor(platform: Platform, fd: number) {
    this.#platform = platform;
    try {
      // If client and server are one process, no other process has the memory.
      if (platform.sockets.peer(fd).pid === process.pid) {
        this.#ended = true;
        return;
      }
      const found = platform.sockets.peerProcess(fd);
      if (found === 'ended') this.#ended = true;
      else this.#fd = found;
    } catch (error) {
      if (!isDmaError(error)) throw error;
    }
  }

  /**
   * Whether it has ended; false if that can not be found out.
   *
   * @param waitMs how long to wait for its end, in milliseconds
   */
  ended(waitMs = 0): boolean {
    if (this.#fd === undefined) return this.#ended;
    try {
      if (this.#platform.readiness.wait([{ fd: this.#fd, readable: true, writable: false }], waitMs)) this.#end();
    } catch (error) {
      if (!isDmaError(error)) throw error;
    }
    return this.#ended;
  }

  /**
   * Resolves when it has ended; never resolves for a process that is not visible from here or can not be watched. Does
   * not keep this process alive.
   *
   * @param unneeded aborted when the caller no longer needs the result; after all callers have aborted, the process is
   *   no longer watched
   */
  whenEnded(unneeded: AbortSignal): Promise<void> {
    if (this.#ended) return Promise.resolve();
    const promise = (this.#whenEnded ??= new Promise((resolve) => this.#startWatch(resolve)));
    this.#waiting++;
    unneeded.addEventListener(
      'abort',
      () => {
        if (--this.#waiting === 0) this.#release();
      },
      { once: true },
    );
    return promise;
  }

  /** Stops watching it, unless a call waits for its end. */
  close(): void {
    if (this.#watch === undefined) this.#release();
  }

  #startWatch(resolve: () => void): void {
    if (this.#fd === undefined) return;
    try {
      this.#watch = this.#platform.readiness.watch(this.#fd, { readable: true }, () => {
        this.#end();
        resolve();
      });
      this.#watch.setRef(false);
    } catch (error) {
      this.#release();
      if (!isDmaError(error)) throw error;
    }
  }

  #end(): void {
    this.#ended = true;
    // Callers are notified in the event loop; the descriptor is closed after that.
    if (this.#watch === undefined) this.#release();
    else setImmediate(() => this.#release());
  }

  #release(): void {
    this.#watch?.close();
    this.#watch = undefined;
    if (this.#fd !== undefined) this.#platform.files.close(this.#fd);
    this.#fd = undefined;
  }
}
