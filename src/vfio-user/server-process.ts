/** The process that serves a device: what it was given by descriptor it may reach until it has ended. */
import { isDmaError } from '../errors.js';
import type { Platform, Watch } from '../platform/ports.js';
import { setImmediate } from '../timers.js';

/** The 256 bytes and their writable bits. */
export class ServerProcess {
  readonly #platform: Platform;
  /** A pidfd; `undefined` for one that is not seen from here, and so never known to have ended. */
  #fd: number | undefined;
  #watch: Watch | undefined;
  #ended = false;
  #whenEnded: Promise<void> | undefined;
  /** How many wait for its end. */
  #waiting = 0;

  /** @param fd the connection */
  constructor(platform: Platform, fd: number) {
    this.#platform = platform;
    try {
      // Who serves itself knows what it has given back.
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

  /** Has it ended? Where that can not be found out, it has not. @param waitMs milliseconds to wait for that, if need be */
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
   * Resolves when it has ended; never, for one that is not seen from here or can not be watched. Does not keep this process
   * alive.
   *
   * @param unneeded aborted when nobody has to know any more: once all who asked have said so, it is forgotten
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

  /** Forgets it, unless somebody waits for its end. */
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
    // Who waits hears of it from the event loop, and then the descriptor goes.
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
