/** Serves one emulated device over vfio-user, to one client at a time. */
import { statSync, unlinkSync, type Stats } from 'node:fs';
import { mustBeMs, mustBeWhole, mustHave, optionsOf, type Shape } from '../check.js';
import { DmaError, invalid, isDmaError } from '../errors.js';
import { atExit } from '../at-exit.js';
import type { Platform, Watch } from '../platform/ports.js';
import type { ModelFactory } from './devices/model.js';
import { clearTimeout, setTimeout } from '../timers.js';
import { HostedDevice } from './hosted-device.js';
import { Session } from './session.js';

/** What happens at a server, for logs and tests. */
export type ServerEvent =
  | { readonly kind: 'connected' }
  /** Somebody came while a client was there, and was sent away. */
  | { readonly kind: 'refused' }
  /** The client is gone and all it had is taken back; why. */
  | { readonly kind: 'disconnected'; readonly error: DmaError }
  /** A command was refused that the client wants no answer to, such as a store to a register: the first of this client. */
  | { readonly kind: 'rejected'; readonly error: DmaError }
  /** A client could not be accepted, or the device's model threw: its client got EIO, `error.cause` is what it threw. */
  | { readonly kind: 'failed'; readonly error: DmaError };

/** What to serve, and where. Times in milliseconds. */
export interface ServeOptions {
  /** Where the socket appears. */
  readonly socketPath: string;
  readonly model: ModelFactory;
  /** DMA regions that the client may have at once, 1 to 65535; announced. Default 65535, which is the protocol's. */
  readonly maxDmaMaps?: number;
  /**
   * Trust no client, not even those of this user and of root: nothing that one can take away again is touched directly. Other
   * users' clients never are trusted. Default false.
   */
  readonly untrusted?: boolean;
  /** End when the first client leaves. Default false. */
  readonly once?: boolean;
  /** Until a new client has sent VERSION. Default 5000. */
  readonly handshakeTimeoutMs?: number;
  /** Until the client answers a DMA access by message. Default 5000. */
  readonly dmaTimeoutMs?: number;
  /** Told what happens: clients that come, go or are refused, and failures. */
  readonly onEvent?: (event: ServerEvent) => void;
}

const SERVE_OPTIONS: Shape<ServeOptions> = {
  socketPath: 'string',
  model: 'function',
  maxDmaMaps: 'number',
  once: 'boolean',
  untrusted: 'boolean',
  handshakeTimeoutMs: 'number',
  dmaTimeoutMs: 'number',
  onEvent: 'function',
};

/** What a server keeps of its options. */
type Settings = Pick<ServeOptions, 'socketPath' | 'once' | 'untrusted' | 'onEvent'> &
  Required<Pick<ServeOptions, 'handshakeTimeoutMs' | 'dmaTimeoutMs'>>;

/** A running server. */
export interface Server {
  /** Sends the client away, frees everything, and removes the socket, unless it is another server's by now. Idempotent. Resolves when all is done. */
  close(): Promise<void>;
  /** Resolves when the server has ended, by `close` or because it was to serve `once`. */
  readonly closed: Promise<void>;
}

/** The connection ended because this end wanted it. */
function ended(): DmaError {
  return new DmaError({ code: 'ECONNABORTED', operation: 'vfio-user serve', reason: 'the server ends' });
}

/**
 * Listens at `socketPath` and serves the device that `model` makes, until closed. A client that comes while another one is
 * there is accepted and closed at once, so that it fails instead of waiting. When the client leaves, or dies, all that it
 * mapped and connected is taken back, the device is reset, and the next one can come.
 *
 * @param options copied: what is changed later has no effect
 * @throws DmaError EADDRINUSE (somebody serves there), EINVAL (the options, or no possible device), what the system says
 */
export function serve(platform: Platform, options: ServeOptions): Server {
  const operation = 'vfio-user serve';
  mustHave(platform, ['sockets', 'files', 'memory', 'readiness'], 'platform', operation);
  const given = optionsOf(options, SERVE_OPTIONS, operation);
  const {
    socketPath,
    model,
    maxDmaMaps = 65535,
    handshakeTimeoutMs = 5000,
    dmaTimeoutMs = 5000,
    once,
    untrusted,
    onEvent,
  } = given;
  if (socketPath === undefined || model === undefined)
    throw invalid(operation, 'it takes at least a socketPath and a model');
  checkMaxDmaMaps(maxDmaMaps, operation);
  mustBeMs(handshakeTimeoutMs, 'handshakeTimeoutMs', operation);
  mustBeMs(dmaTimeoutMs, 'dmaTimeoutMs', operation);
  const device = new HostedDevice(platform, model, maxDmaMaps);
  try {
    return new DeviceServer(platform, device, {
      socketPath,
      handshakeTimeoutMs,
      dmaTimeoutMs,
      once,
      untrusted,
      onEvent,
    });
  } catch (error) {
    device.close();
    throw error;
  }
}

/** @throws DmaError EINVAL for a number of DMA regions that no server announces */
export function checkMaxDmaMaps(maxDmaMaps: number, operation: string): void {
  mustBeWhole(maxDmaMaps, 1, 65535, 'maxDmaMaps', operation);
}

/** Until a server that had no descriptor for a connection looks again, in milliseconds. */
const RETRY_MS = 100;

/** Is something missing that may be there again soon? */
function isShortage({ code }: DmaError): boolean {
  return code === 'EMFILE' || code === 'ENFILE' || code === 'ENOMEM' || code === 'ENOBUFS';
}

class DeviceServer implements Server {
  readonly closed: Promise<void>;
  readonly #listener: number;
  readonly #socket: Stats | undefined;
  /** A program that ends without `close` leaves no socket either. */
  readonly #forgetExit: () => void;
  #watch: Watch | undefined;
  #session: Session | undefined;
  /** The last client's things are being taken back. */
  #releasing: Promise<void> | undefined;
  #closing = false;
  /** Listens again when there may be descriptors or memory for another connection. */
  #retry: NodeJS.Timeout | undefined;
  #resolveClosed: () => void = () => undefined;

  constructor(
    private readonly platform: Platform,
    private readonly device: HostedDevice,
    private readonly options: Settings,
  ) {
    this.closed = new Promise((resolve) => (this.#resolveClosed = resolve));
    this.#listener = platform.sockets.listen(options.socketPath, 8);
    this.#socket = statSync(options.socketPath, { throwIfNoEntry: false });
    this.#forgetExit = atExit(() => this.#removeSocket());
    try {
      this.#listen();
    } catch (error) {
      this.#removeSocket();
      platform.files.close(this.#listener);
      throw error;
    }
  }

  close(): Promise<void> {
    if (this.#closing) return this.closed;
    this.#closing = true;
    this.#watch?.close();
    this.#watch = undefined;
    this.#removeSocket();
    clearTimeout(this.#retry);
    this.platform.files.close(this.#listener);
    this.#session?.close(ended());
    void Promise.resolve(this.#releasing).then(() => {
      this.device.close();
      this.#resolveClosed();
    });
    return this.closed;
  }

  /** The model threw. Without anybody who listens it is a process warning. */
  #fault(error: DmaError): void {
    const { onEvent } = this.options;
    if (onEvent === undefined) process.emitWarning(error.message, { code: 'ANYDMA_MODEL' });
    else onEvent({ kind: 'failed', error });
  }

  /** While this listens nobody else can have taken the path, unless somebody removed the socket. */
  #removeSocket(): void {
    this.#forgetExit();
    const { socketPath } = this.options;
    try {
      const now = statSync(socketPath, { throwIfNoEntry: false });
      if (now !== undefined && now.ino === this.#socket?.ino && now.dev === this.#socket.dev) unlinkSync(socketPath);
    } catch {
      // The folder is gone, or may not be written any more: the next server replaces what is left.
    }
  }

  #listen(): void {
    this.#watch = this.platform.readiness.watch(this.#listener, { readable: true }, () => {
      this.#accept();
    });
  }

  /** A server that can not watch its socket any more is no use: it ends. */
  #listenAgain(): void {
    try {
      this.#listen();
    } catch (error) {
      if (!isDmaError(error)) throw error;
      if (isShortage(error)) return this.#listenLater(error);
      this.options.onEvent?.({ kind: 'failed', error });
      void this.close();
    }
  }

  /** A connection that waits and can not be accepted would keep the event loop busy: look again in a while. Told once. */
  #listenLater(error: DmaError): void {
    this.#watch?.close();
    this.#watch = undefined;
    const isNews = this.#retry === undefined;
    this.#retry = setTimeout(() => {
      if (!this.#closing && this.#releasing === undefined) this.#listenAgain();
    }, RETRY_MS);
    if (isNews) this.options.onEvent?.({ kind: 'failed', error });
  }

  #accept(): void {
    try {
      // While things are taken back nobody is accepted: who comes waits, and is told nothing wrong.
      for (let n = 0; n < 8 && !this.#closing && this.#releasing === undefined; n++) {
        const fd = this.platform.sockets.accept(this.#listener);
        if (fd === undefined) return;
        this.#retry = undefined;
        // The next client may be faster than the news that the last one left.
        this.#session?.service();
        const releasing = this.#beingReleased();
        if (releasing === undefined) this.#admit(fd);
        else void releasing.then(() => this.#admit(fd));
      }
    } catch (error) {
      this.#notAccepted(error);
    }
  }

  #beingReleased(): Promise<void> | undefined {
    return this.#releasing;
  }

  #notAccepted(error: unknown): void {
    if (!isDmaError(error)) throw error;
    if (isShortage(error)) this.#listenLater(error);
    else this.options.onEvent?.({ kind: 'failed', error });
  }

  #admit(fd: number): void {
    if (this.#session !== undefined || this.#closing) {
      this.platform.files.closeForeign(fd);
      if (!this.#closing) this.options.onEvent?.({ kind: 'refused' });
      return;
    }
    const { handshakeTimeoutMs, dmaTimeoutMs } = this.options;
    const trusted = this.options.untrusted !== true && this.#isTrusted(fd);
    const options = {
      handshakeTimeoutMs,
      dmaTimeoutMs,
      trusted,
      onFault: (error: DmaError) => this.#fault(error),
      onRefused: (error: DmaError) => this.options.onEvent?.({ kind: 'rejected', error }),
    };
    try {
      this.device.admit(trusted);
    } catch (error) {
      this.platform.files.closeForeign(fd);
      return this.#notAccepted(error);
    }
    try {
      this.#session = new Session(this.platform, fd, this.device, options, (error) => this.#leave(error));
    } catch (error) {
      return this.#notAccepted(error);
    }
    this.options.onEvent?.({ kind: 'connected' });
  }

  #isTrusted(fd: number): boolean {
    try {
      return this.platform.sockets.peer(fd).trusted;
    } catch {
      return false;
    }
  }

  /** The client is gone. */
  #leave(error: DmaError): void {
    const session = this.#session;
    const finish = (): void => {
      this.#session = undefined;
      this.#releasing = undefined;
      this.options.onEvent?.({ kind: 'disconnected', error });
      if (this.options.once === true) void this.close();
      else if (!this.#closing && this.#watch === undefined) this.#listenAgain();
    };
    const release = (): Promise<void> | undefined => this.device.release();
    const running = session?.idle;
    const releasing = running === undefined ? release() : running.then(release);
    if (releasing === undefined) {
      finish();
      return;
    }
    this.#watch?.close();
    this.#watch = undefined;
    this.#releasing = releasing.then(finish);
  }
}
