/** One vfio-user socket: sends and receives whole messages, never blocks, and uses bounded memory. */
import { DmaError, isDmaError } from '../errors.js';
import type { RobustLock } from '../memory/shared/robust-lock.js';
import type { Platform, ReceivedBytes, Watch } from '../platform/ports.js';
import { Framer, protocolError } from './framing.js';
import { hangUp } from './hang-up.js';
import { ALL_FDS, FLAG, MAX_FDS, MAX_MESSAGE } from './messages.js';
import type { Message } from './messages.js';
import { SHORT_MESSAGE } from './short-message.js';
import { now } from '../timers.js';

/** Bytes that may wait for a peer that does not read: a few of the largest messages. */
const MAX_QUEUED = 8 * MAX_MESSAGE;

const NONE: readonly Channel[] = [];

/** While more bytes of replies than this wait, nothing is read from the peer, because it could ask for more. */
const MAX_REPLIES = MAX_MESSAGE;

/** Receive calls in one turn of the event loop, so that many messages leave time for other work. */
const RECEIVES_A_TURN = 4;

/** If this process can open no more descriptors, the kernel delivers fewer than were sent. */
function noDescriptors(): DmaError {
  const reason = 'this process can not open the descriptor that came with a message';
  const hint =
    'close descriptors that are not needed, or raise RLIMIT_NOFILE with "ulimit -n" or LimitNOFILE= of the service';
  return new DmaError({ code: 'EMFILE', operation: 'recvmsg', reason, hint });
}

/** What a channel reports to its owner. */
export interface ChannelOwner {
  /**
   * A whole message. Its payload is valid until this returns. Descriptors that are still in it are closed then. An
   * exception closes the channel.
   */
  onMessage(message: Message): void;
  /** The channel has closed for this reason. Called once. */
  onClose(error: DmaError): void;
}

/** The servers' ends of channels in this thread. */
const servedHere = new Set<Channel>();

/** Whether this thread serves a client now. */
export function servesHere(): boolean {
  return servedHere.size > 0;
}

interface Waiting {
  readonly bytes: Uint8Array;
  readonly isReply: boolean;
  offset: number;
  /** Descriptors of our own, closed after they are sent. */
  fds: number[];
}

/** One connected socket. Owns it. */
export class Channel {
  /** The events that {@link pump} waits for. */
  readonly interest: { readonly fd: number; readable: boolean; writable: boolean; ready?: boolean };
  readonly #served: boolean;
  readonly #framer = new Framer(MAX_MESSAGE);
  #queue: Waiting[] = [];
  #queued = 0;
  #queuedReplies = 0;
  #watch: Watch | undefined;
  readonly #keepAlive: boolean;
  #locked = false;
  #paused = false;
  #dispatching = false;
  #failure: DmaError | undefined;

  /**
   * @param fd a connected socket; the channel owns it from now on
   * @param options.keepAlive whether the open channel keeps the process alive. Default true
   * @param options.served whether this is a server's end, which continues while a client of this thread waits: see
   *   {@link pump} closed on another thread. Default false
   * @param options.paused whether it handles nothing before {@link resume}. Default false
   */
  constructor(
    private readonly platform: Platform,
    readonly fd: number,
    private readonly owner: ChannelOwner,
    {
      keepAlive = true,
      served = false,
      paused = false,
    }: { readonly keepAlive?: boolean; readonly served?: boolean; readonly paused?: boolean } = {},
  ) {
    this.#paused = paused;
    this.#served = served;
    this.#keepAlive = keepAlive;
    this.interest = { fd, readable: true, writable: false };
    try {
      this.#rewatch();
    } catch (error) {
      this.#watch?.close();
      platform.files.close(fd);
      throw error;
    }
    if (served) servedHere.add(this);
  }

  /** What a long message needs while it is being sent, once other threads send short ones. */
  lock: RobustLock | undefined;

  /** Why the channel is closed; `undefined` while it is open. */
  get failure(): DmaError | undefined {
    return this.#failure;
  }

  /** Whether a message is being handled. Then no call can wait for another one. */
  get dispatching(): boolean {
    return this.#dispatching;
  }

  /**
   * Sends one message, or queues the part that the socket does not take now. `bytes` can be reused at once. `fds` stay
   * the caller's, and can be closed at once.
   *
   * @returns false if too much is queued already: nothing was sent. On a closed channel it does nothing and returns
   *   true.
   */
  send(bytes: Uint8Array, fds: readonly number[] = []): boolean {
    if (this.#failure !== undefined) return true;
    if (this.#queued + bytes.length > MAX_QUEUED) return false;
    try {
      const sent = this.#queue.length === 0 ? this.#sendPart(bytes, 0, fds) : 0;
      const isReply = (bytes[8] & FLAG.TYPE) === FLAG.REPLY;
      if (sent < bytes.length) this.#enqueue(bytes.slice(sent), isReply, sent === 0 ? fds : []);
    } catch (error) {
      this.#sendFailed(error);
    }
    return true;
  }

  /** Whether it would handle a message now. */
  get receives(): boolean {
    return this.#failure === undefined && !this.#paused && !this.#dispatching;
  }

  /** Stops handling messages, also those that were received already, until {@link resume}. */
  pause(): void {
    this.#paused = true;
    this.#tryRewatch();
  }

  /** Handles the messages that were received already, and then receives again. */
  resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    this.#tryRewatch();
    if (!this.#dispatching) this.#dispatch();
  }

  /** Sends what can be sent, and handles what has arrived. Called when the socket is ready; harmless at any time. */
  service(): void {
    if (this.interest.writable) this.#flush();
    for (let i = 0; i < RECEIVES_A_TURN && this.#receive(); i++);
  }

  /** Is everything sent that was to be sent? */
  get isSent(): boolean {
    return this.#queue.length === 0;
  }

  /**
   * Takes what was received and not handled, while it is paused: another process, which has the socket too, handles it.
   *
   * @throws DmaError EBUSY if descriptors came with it
   */
  takeRest(): Uint8Array {
    if (this.#framer.hasFds) {
      const reason = 'a message of the other side is not handled yet';
      throw new DmaError({ code: 'EBUSY', operation: 'handOver', reason, hint: 'hand over again' });
    }
    return this.#framer.takeRest();
  }

  /** Puts back what {@link takeRest} took, here or in the process that has the socket now. */
  restore(rest: Uint8Array): void {
    if (rest.length > 0) this.#framer.restore(rest);
  }

  /** Closes this process's descriptor of the socket. The connection goes on in the process that has another one. */
  abandon(error: DmaError): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    this.#watch?.close();
    this.#watch = undefined;
    this.platform.files.close(this.fd);
    this.owner.onClose(error);
  }

  /** Closes the socket and all descriptors that are queued or unused. Idempotent; only the first error counts. */
  close(error: DmaError): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    if (this.#served) servedHere.delete(this);
    this.#watch?.close();
    this.#watch = undefined;
    hangUp(this.platform, this.fd);
    this.#unlock();
    this.#closeAll(this.#framer.takeFds());
    for (const { fds } of this.#queue) this.#closeOwn(fds);
    this.#queue = [];
    this.#queued = this.#queuedReplies = 0;
    this.owner.onClose(error);
  }

  #enqueue(bytes: Uint8Array, isReply: boolean, fds: readonly number[]): void {
    const waiting: Waiting = { bytes, isReply, offset: 0, fds: [] };
    this.#queue.push(waiting);
    this.#queued += bytes.length;
    if (isReply) this.#queuedReplies += bytes.length;
    for (const fd of fds) waiting.fds.push(this.platform.files.duplicate(fd));
    this.#rewatchIfChanged();
  }

  /** Whether it receives nothing at the moment. */
  get #holds(): boolean {
    return this.#paused || this.#queuedReplies > MAX_REPLIES;
  }

  #flush(): void {
    try {
      for (let first = this.#queue.at(0); first !== undefined; first = this.#queue.at(0)) {
        const sent = this.#sendPart(first.bytes, first.offset, first.fds);
        if (sent === 0) break;
        this.#closeOwn(first.fds);
        first.fds = [];
        first.offset += sent;
        if (first.offset === first.bytes.length) {
          this.#queue.shift();
          this.#queued -= first.bytes.length;
          if (first.isReply) this.#queuedReplies -= first.bytes.length;
        }
      }
      this.#rewatchIfChanged();
    } catch (error) {
      this.#sendFailed(error);
    }
    // Messages that were received while too many replies were queued.
    if (!this.#dispatching && !this.#holds) this.#dispatch();
  }

  /** Sends as much as the socket takes; behind a part of a message no other thread sends. @returns bytes */
  #sendPart(bytes: Uint8Array, offset: number, fds: readonly number[]): number {
    const { lock } = this;
    const isLong = lock !== undefined && bytes.length > SHORT_MESSAGE;
    if (isLong && !this.#locked) {
      lock.lock('vfio-user');
      this.#locked = true;
    }
    let sent = 0;
    try {
      return (sent = this.platform.sockets.send(this.fd, bytes, offset, fds));
    } finally {
      if (isLong && (offset + sent === 0 || offset + sent === bytes.length)) this.#unlock();
    }
  }

  #unlock(): void {
    if (!this.#locked) return;
    this.#locked = false;
    this.lock?.unlock();
  }

  /** The other side may have sent the reason before it closed: receive first. */
  #sendFailed(error: unknown): void {
    if (!this.#dispatching) while (this.#failure === undefined && this.#receive());
    this.#lost(error);
  }

  /** Receives once. Returns whether there may be more. */
  #receive(): boolean {
    if (this.#failure !== undefined || this.#holds || this.#dispatching) return false;
    let received: ReceivedBytes | undefined;
    const space = this.#framer.space();
    try {
      received = this.platform.sockets.receive(this.fd, space, ALL_FDS);
    } catch (error) {
      this.#lost(error);
      return false;
    }
    if (received === undefined) return false;
    const { bytes, fds, truncated } = received;
    if (bytes === 0 || truncated) {
      this.#closeAll(fds);
      if (truncated) this.close(noDescriptors());
      else this.#lost(undefined);
      return false;
    }
    try {
      this.#framer.received(bytes, fds);
    } catch (error) {
      this.#broken(error);
      return false;
    }
    this.#dispatch();
    return bytes === space.length || fds.length > 0;
  }

  /** Handles the whole messages that have arrived. */
  #dispatch(): void {
    this.#dispatching = true;
    try {
      while (this.#failure === undefined && !this.#holds) {
        const message = this.#framer.next();
        if (message === undefined) break;
        try {
          if (message.fds.length > MAX_FDS) throw protocolError(`more than ${MAX_FDS} descriptors with a message`);
          this.owner.onMessage(message);
        } finally {
          if (message.fds.length > 0) this.#closeAll(message.fds);
        }
      }
    } catch (error) {
      this.#broken(error);
    } finally {
      this.#dispatching = false;
    }
  }

  #broken(error: unknown): void {
    this.close(isDmaError(error) ? error : protocolError('a message that could not be handled', error));
  }

  #lost(cause: unknown): void {
    const reason = 'the other side has closed the connection';
    this.close(new DmaError({ code: 'ECONNRESET', operation: 'vfio-user', reason, cause }));
  }

  #rewatchIfChanged(): void {
    const { readable, writable } = this.interest;
    if (readable === this.#holds || writable === (this.#queue.length === 0)) this.#rewatch();
  }

  #tryRewatch(): void {
    try {
      this.#rewatch();
    } catch (error) {
      this.#broken(error);
    }
  }

  #rewatch(): void {
    if (this.#failure !== undefined) return;
    this.#watch?.close();
    this.#watch = undefined;
    const readable = (this.interest.readable = !this.#holds);
    const writable = (this.interest.writable = this.#queue.length > 0);
    if (!readable && !writable) return;
    this.#watch = this.platform.readiness.watch(this.fd, { readable, writable }, () => {
      this.service();
    });
    if (!this.#keepAlive) this.#watch.setRef(false);
  }

  /** Descriptors of the other side. */
  #closeAll(fds: readonly number[]): void {
    for (const fd of fds) this.platform.files.closeForeign(fd);
  }

  #closeOwn(fds: readonly number[]): void {
    for (const fd of fds) {
      try {
        this.platform.files.close(fd);
      } catch {
        // A descriptor whose close fails is closed all the same.
      }
    }
  }
}

/**
 * Waits, without the event loop, until `call.done`. Meanwhile it serves the channels in both directions, so that the
 * other side can access memory before it answers. Not allowed while one of them handles a message. Clients of servers
 * in this thread are served too, because the call may be waiting for one of these servers.
 *
 * @param timeoutMs in milliseconds
 * @returns false on timeout
 */
export function pump(
  platform: Platform,
  channels: readonly Channel[],
  call: { readonly done: boolean },
  timeoutMs: number,
): boolean {
  const deadline = now() + timeoutMs;
  const own = channels.map((channel) => channel.interest);
  for (;;) {
    if (call.done) return true;
    const left = deadline - now();
    // Looked up each time, because a server's end may have closed. A channel that handles a message can not continue
    // before this returns.
    const served = servedHere.size === 0 ? NONE : [...servedHere].filter((channel) => channel.receives);
    const interests = served === NONE ? own : [...own, ...served.map((channel) => channel.interest)];
    if (left <= 0 || !platform.readiness.wait(interests, Math.ceil(left))) return call.done;
    for (const channel of channels) if (channel.interest.ready !== false) channel.service();
    for (const channel of served) if (channel.interest.ready !== false) channel.service();
  }
}
