/** The socket that a server listens at: connections are accepted, and its file is removed at the end, however the program ends. */
import { statSync, unlinkSync, type Stats } from 'node:fs';
import { atExit } from '../at-exit.js';
import { isDmaError, NO_DESCRIPTORS, type DmaError } from '../errors.js';
import type { Platform, Watch } from '../platform/ports.js';
import { clearTimeout, setTimeout } from '../timers.js';

/** Connections that are accepted in one turn of the event loop. */
const ACCEPTS_A_TURN = 8;
/** Pause before listening again after a connection could not be accepted, in milliseconds. */
const RETRY_MS = 100;

/** What a listener needs. */
export interface ListenerOptions {
  /** Connections that wait to be accepted. */
  readonly backlog: number;
  /** Does it keep the process running? */
  readonly keepAlive: boolean;
  /** Gets each connection. What it throws counts as {@link SocketListener.failed}. */
  readonly admit: (fd: number) => void;
  /** Why a connection could not be accepted. Of several failures in a row it hears the first one. */
  readonly failed: (error: DmaError) => void;
}

/** Is it a shortage that may end soon? */
export function isShortage({ code }: DmaError): boolean {
  return NO_DESCRIPTORS.includes(code) || code === 'ENOMEM' || code === 'ENOBUFS';
}

/** Listens at a path. */
export class SocketListener {
  readonly #platform: Platform;
  readonly #path: string;
  readonly #options: ListenerOptions;
  readonly #fd: number;
  readonly #socket: Stats | undefined;
  /** A program that ends without `close` leaves no socket either. */
  readonly #forgetExit: () => void;
  #watch: Watch | undefined;
  /** Timer to listen again when there may be descriptors or memory for another connection. */
  #retry: NodeJS.Timeout | undefined;
  #hasFailed = false;
  #closed = false;

  /** @throws DmaError EADDRINUSE if another process listens there; errors of the system */
  constructor(platform: Platform, path: string, options: ListenerOptions) {
    this.#platform = platform;
    this.#path = path;
    this.#options = options;
    this.#fd = platform.sockets.listen(path, options.backlog);
    this.#socket = statSync(path, { throwIfNoEntry: false });
    this.#forgetExit = atExit(() => this.#removeSocket());
    try {
      this.#listen();
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Accepts nobody until {@link resume}: new connections wait. */
  pause(): void {
    this.#watch?.close();
    this.#watch = undefined;
    clearTimeout(this.#retry);
  }

  /** Accepts connections again, after a moment if the system can not now. */
  resume(): void {
    if (this.#watch !== undefined || this.#closed) return;
    clearTimeout(this.#retry);
    try {
      this.#listen();
    } catch (error) {
      this.failed(error);
    }
  }

  /** Tells that a connection could not be accepted, and accepts the next one after a moment. */
  failed(error: unknown): void {
    if (!isDmaError(error)) throw error;
    if (this.#closed) return;
    // A connection that waits would keep the event loop busy.
    this.pause();
    this.#retry = setTimeout(() => this.resume(), RETRY_MS);
    if (!this.#options.keepAlive) this.#retry.unref();
    if (this.#hasFailed) return;
    this.#hasFailed = true;
    this.#options.failed(error);
  }

  /** Ends it, and removes the socket, unless it belongs to another process by now. Called once. */
  close(): void {
    this.#closed = true;
    this.pause();
    this.#removeSocket();
    this.#platform.files.close(this.#fd);
  }

  #listen(): void {
    this.#watch = this.#platform.readiness.watch(this.#fd, { readable: true }, () => this.#accept());
    if (!this.#options.keepAlive) this.#watch.setRef(false);
  }

  #accept(): void {
    try {
      for (let n = 0; n < ACCEPTS_A_TURN && this.#watch !== undefined; n++) {
        const fd = this.#platform.sockets.accept(this.#fd);
        if (fd === undefined) return;
        this.#options.admit(fd);
        this.#hasFailed = false;
      }
    } catch (error) {
      this.failed(error);
    }
  }

  /** While this listens, another process can have the path only if somebody removed the socket. */
  #removeSocket(): void {
    this.#forgetExit();
    try {
      const now = statSync(this.#path, { throwIfNoEntry: false });
      if (now !== undefined && now.ino === this.#socket?.ino && now.dev === this.#socket.dev) unlinkSync(this.#path);
    } catch {
      // The folder is gone or not writable any more: the next one at this path replaces what is left.
    }
  }
}
