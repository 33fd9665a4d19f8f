/** Serves one emulated device over vfio-user, to one client at a time. */
import { mustBeMs, mustBeWhole, mustHave, optionsOf, type Shape } from '../check.js';
import { DmaError, invalid } from '../errors.js';
import type { Peer, Platform } from '../platform/ports.js';
import type { ModelFactory } from './devices/model.js';
import { HostedDevice } from './hosted-device.js';
import { hangUp } from './hang-up.js';
import { SocketListener } from './listener.js';
import { peerOf } from './server-at.js';
import { MAX_CLOSING, Session } from './session.js';

/** An event of a server, for logs and tests. */
export type ServerEvent =
  | { readonly kind: 'connected' }
  /**
   * A second client connected while another one was connected, and was disconnected; or a client of a user whose
   * earlier clients have left many descriptors that still have to be closed.
   */
  | { readonly kind: 'refused' }
  /** The client is gone, and its mappings and interrupts were removed; `error` is the reason. */
  | { readonly kind: 'disconnected'; readonly error: DmaError }
  /** A command without a reply was refused, such as a store to a register: only the first one of each client. */
  | { readonly kind: 'rejected'; readonly error: DmaError }
  /**
   * A client could not be accepted, or the device's model threw: then the client got EIO, and `error.cause` is the
   * exception.
   */
  | { readonly kind: 'failed'; readonly error: DmaError };

/** What to serve, and where. Times in milliseconds. */
export interface ServeOptions {
  /** The path of the socket. */
  readonly socketPath: string;
  readonly model: ModelFactory;
  /** The most DMA regions of a client, 1 to 65535; announced to it. Default 65535, the protocol's. */
  readonly maxDmaMaps?: number;
  /**
   * Trust no client, not even those of this user and of root: memory that a client can take away is never accessed
   * directly. Clients of other users are never trusted. Default false.
   */
  readonly untrusted?: boolean;
  /** End when the first client leaves. Default false. */
  readonly once?: boolean;
  /** Time for a new client to send VERSION. Default 5000. */
  readonly handshakeTimeoutMs?: number;
  /** Time for the client to answer a DMA access by message. Default 5000. */
  readonly dmaTimeoutMs?: number;
  /** Called when clients come, leave or are refused, and on failures. */
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

/** The options that a server keeps. */
type Settings = Pick<ServeOptions, 'socketPath' | 'once' | 'untrusted' | 'onEvent'> &
  Required<Pick<ServeOptions, 'handshakeTimeoutMs' | 'dmaTimeoutMs'>>;

/** A running server. */
export interface Server {
  /**
   * Disconnects the client, frees everything, and removes the socket, unless it belongs to another server by now.
   * Idempotent. Resolves when all is done.
   */
  close(): Promise<void>;
  /** Resolves when the server has ended, by `close` or because of `once`. */
  readonly closed: Promise<void>;
}

/** This end closed the connection. */
function ended(): DmaError {
  return new DmaError({ code: 'ECONNABORTED', operation: 'vfio-user serve', reason: 'the server ends' });
}

/**
 * Listens at `socketPath` and serves the device that `model` makes, until closed. While a client is connected, others
 * are accepted and closed at once, so that they fail instead of waiting. When the client leaves or dies, its mappings
 * and interrupts are removed and the device is reset; then the next one can connect.
 *
 * @param options copied: later changes have no effect
 * @throws DmaError EADDRINUSE (another server uses the path); EINVAL (invalid options, or not a possible device);
 *   errors of the system
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
    throw invalid(operation, 'the options must contain a socketPath and a model');
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

/** @throws DmaError EINVAL for a number of DMA regions that can not be announced */
export function checkMaxDmaMaps(maxDmaMaps: number, operation: string): void {
  mustBeWhole(maxDmaMaps, 1, 65535, 'maxDmaMaps', operation);
}

class DeviceServer implements Server {
  readonly closed: Promise<void>;
  readonly #listener: SocketListener;
  #session: Session | undefined;
  /** The last client's mappings and interrupts are being removed. */
  #releasing: Promise<void> | undefined;
  #closing = false;
  /** Users, by number, whose clients have left descriptors that can not be closed. */
  readonly #clinging = new Set<number>();
  #resolveClosed: () => void = () => undefined;

  constructor(
    private readonly platform: Platform,
    private readonly device: HostedDevice,
    private readonly options: Settings,
  ) {
    this.closed = new Promise((resolve) => (this.#resolveClosed = resolve));
    this.#listener = new SocketListener(platform, options.socketPath, {
      backlog: 8,
      keepAlive: true,
      admit: (fd) => this.#accepted(fd),
      failed: (error) => this.options.onEvent?.({ kind: 'failed', error }),
    });
  }

  close(): Promise<void> {
    if (this.#closing) return this.closed;
    this.#closing = true;
    this.#listener.close();
    this.#session?.close(ended());
    void Promise.resolve(this.#releasing).then(() => {
      this.device.close();
      this.#resolveClosed();
    });
    return this.closed;
  }

  /** The model threw. Without `onEvent` this is a process warning. */
  #fault(error: DmaError): void {
    const { onEvent } = this.options;
    if (onEvent === undefined) process.emitWarning(error.message, { code: 'ANYDMA_MODEL' });
    else onEvent({ kind: 'failed', error });
  }

  #accepted(fd: number): void {
    // The next client may arrive before the last one's disconnection is noticed.
    this.#session?.service();
    if (this.#releasing === undefined) this.#admit(fd);
    else void this.#releasing.then(() => this.#admit(fd)).catch((error: unknown) => this.#listener.failed(error));
  }

  /** @throws DmaError if there is not enough for another client */
  #admit(fd: number): void {
    const peer = peerOf(this.platform, fd);
    const trusted = this.options.untrusted !== true && peer?.trusted === true;
    if (this.#session !== undefined || this.#closing || (!trusted && this.#clings(peer))) {
      hangUp(this.platform, fd);
      if (!this.#closing) this.options.onEvent?.({ kind: 'refused' });
      return;
    }
    const { handshakeTimeoutMs, dmaTimeoutMs } = this.options;
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
      hangUp(this.platform, fd);
      throw error;
    }
    this.#session = new Session(this.platform, fd, this.device, options, (error) => this.#leave(error, peer));
    this.options.onEvent?.({ kind: 'connected' });
  }

  /** Would more of this user's descriptors use up those of this process? */
  #clings(peer: Peer | undefined): boolean {
    if (this.platform.files.closing() <= MAX_CLOSING) this.#clinging.clear();
    return this.#clinging.has(peer?.user ?? -1);
  }

  /** The client is gone. */
  #leave(error: DmaError, peer: Peer | undefined): void {
    const session = this.#session;
    if (session?.clings === true) this.#clinging.add(peer?.user ?? -1);
    const finish = (): void => {
      this.#session = undefined;
      this.#releasing = undefined;
      this.options.onEvent?.({ kind: 'disconnected', error });
      if (this.options.once === true) void this.close();
      else this.#listener.resume();
    };
    const release = (): Promise<void> | undefined => this.device.release();
    const running = session?.idle;
    const releasing = running === undefined ? release() : running.then(release);
    if (releasing === undefined) {
      finish();
      return;
    }
    // While a client is being cleaned up, nobody is accepted: new clients wait.
    this.#listener.pause();
    this.#releasing = releasing.then(finish);
  }
}
