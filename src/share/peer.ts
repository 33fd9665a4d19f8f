/**
 * One end of the connection between a primary and a secondary. Both ends ask and answer: questions are a name and an
 * object, answers an object or an error, and either can have descriptors.
 *
 * Input is not trusted: messages, questions in progress and waiting answers are limited, what makes no sense ends the
 * connection, and all descriptors that nobody took are closed.
 */
import { DmaError, isDmaError } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { clearTimeout, now, queueMicrotask, setTimeout } from '../timers.js';
import { Channel } from '../vfio-user/channel.js';
import { isCommand } from '../vfio-user/framing.js';
import type { Message } from '../vfio-user/messages.js';
import { field, Fields, isJsonObject, nonsense, type JsonObject } from '../fields.js';
import { answerMessage, documentIn, errorFromWire, errorToWire, questionMessage } from './wire.js';

/** The most descriptors that one message carries. */
export const MAX_MESSAGE_FDS = 16;

/** Questions of the other side that are answered at the same time; more of them wait in its socket. */
const MAX_RUNNING = 64;

/** Questions of this side that wait for their answers. */
const MAX_PENDING = 4096;

/** The longest time of a timer, in milliseconds. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** What is answered: an object, and descriptors, which stay the caller's until they are sent. */
export interface Answer {
  readonly result?: JsonObject;
  /** Descriptors that go with it; `sent` closes those that were opened for it. */
  readonly fds?: readonly number[];
  /** Called once the answer is on its way, or can not be sent. */
  readonly sent?: () => void;
}

/** Copies of descriptors for an answer: their files can be closed before it is sent, and others have their numbers. */
export function copiesOf({ files }: Pick<Platform, 'files'>, fds: readonly number[]): Pick<Answer, 'fds' | 'sent'> {
  const copies: number[] = [];
  const sent = (): void => copies.splice(0).forEach((fd) => files.close(fd));
  try {
    for (const fd of fds) copies.push(files.duplicate(fd));
    return { fds: [...copies], sent };
  } catch (error) {
    sent();
    throw error;
  }
}

/** A question of the other side. */
export interface Question {
  readonly name: string;
  readonly fields: Fields;
  /** Its descriptors. What is left in the array when the answer is there is closed. */
  readonly fds: number[];
}

/** An answer of the other side. */
export interface Reply {
  readonly fields: Fields;
  /** Its descriptors; the caller owns them. */
  readonly fds: readonly number[];
}

/** What a peer tells its owner. */
export interface PeerOwner {
  /** Answers a question. An error is sent to the other side. */
  answer(question: Question): Answer | undefined | Promise<Answer | undefined>;
  /** The connection has ended. Called once, after all calls have failed with `error`. */
  closed(error: DmaError): void;
}

/** A question of this side, and its answer. */
class Pending {
  done = false;
  error: DmaError | undefined;
  reply: Reply | undefined;
  onDone: (() => void) | undefined;

  settle(outcome: Reply | DmaError): void {
    if (this.done) return;
    this.done = true;
    if (outcome instanceof DmaError) this.error = outcome;
    else this.reply = outcome;
    this.onDone?.();
  }
}

/** One end of a connection. Owns its socket. */
export class Peer {
  readonly #platform: Platform;
  readonly #owner: PeerOwner;
  readonly #operation: string;
  readonly #timeoutMs: number;
  readonly #takesFds: boolean;
  readonly #channel: Channel;
  readonly #pending = new Map<number, Pending>();
  #nextId = 0;
  #running = 0;
  #failure: DmaError | undefined;

  /**
   * @param fd a connected socket, which it owns from now on
   * @param options.operation names the connection in errors
   * @param options.timeoutMs how long {@link ask} waits for an answer; Infinity for ever
   * @param options.keepAlive does the connection keep the process alive?
   * @param options.takesFds does who asks take the descriptors of answers? Otherwise they are closed
   */
  constructor(
    platform: Platform,
    fd: number,
    owner: PeerOwner,
    options: {
      readonly operation: string;
      readonly timeoutMs: number;
      readonly keepAlive: boolean;
      readonly takesFds: boolean;
    },
  ) {
    this.#platform = platform;
    this.#owner = owner;
    this.#operation = options.operation;
    this.#timeoutMs = options.timeoutMs;
    this.#takesFds = options.takesFds;
    this.#channel = new Channel(
      platform,
      fd,
      { onMessage: (message) => this.#arrived(message), onClose: (error) => this.#ended(error) },
      { keepAlive: options.keepAlive },
    );
  }

  /** Why the connection has ended; `undefined` while it is open. */
  get failure(): DmaError | undefined {
    return this.#failure;
  }

  /** The socket. */
  get fd(): number {
    return this.#channel.fd;
  }

  /**
   * Asks the other side.
   *
   * @param fds descriptors to pass on; they stay the caller's, and can be closed once this returns
   * @param timeoutMs Default: that of the connection
   * @throws DmaError of the other side; ETIMEDOUT; why the connection ended
   */
  async ask(name: string, question: JsonObject = {}, fds: readonly number[] = [], timeoutMs?: number): Promise<Reply> {
    const [id, pending] = this.#send(name, question, fds);
    const limit = timeoutMs ?? this.#timeoutMs;
    if (!pending.done)
      await new Promise<void>((resolve) => {
        // A question that waits for ever keeps the process alive, too.
        const timer = setTimeout(
          () => {
            if (limit !== Infinity) this.#expire(id, pending, limit);
          },
          Math.min(limit, LONGEST_TIMER),
        );
        pending.onDone = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    return this.#outcome(pending);
  }

  /** Tells the other side something, and does not wait for an answer. What it answers is dropped. */
  tell(name: string, what: JsonObject = {}): void {
    try {
      this.#send(name, what, []);
    } catch (error) {
      if (!isDmaError(error)) throw error;
    }
  }

  /** As {@link ask}, but returns at once: {@link waitForAll} waits for it without the event loop. */
  begin(name: string, question: JsonObject, fds: readonly number[]): Begun {
    const [, pending] = this.#send(name, question, fds);
    return new Begun(this.#channel, pending, () => this.#outcome(pending));
  }

  /** Ends the connection. Idempotent. */
  close(error: DmaError): void {
    this.#channel.close(error);
  }

  /** Handles what has arrived. Called to see at once that the other side is gone. */
  service(): void {
    this.#channel.service();
  }

  #send(name: string, question: JsonObject, fds: readonly number[]): [number, Pending] {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#pending.size >= MAX_PENDING) throw this.#full();
    do this.#nextId = (this.#nextId + 1) & 0xffff;
    while (this.#pending.has(this.#nextId));
    const id = this.#nextId;
    const bytes = questionMessage(id, { ask: name, with: question }, this.#operation);
    const pending = new Pending();
    this.#pending.set(id, pending);
    if (!this.#channel.send(bytes, fds)) {
      this.#pending.delete(id);
      throw this.#full();
    }
    return [id, pending];
  }

  #full(): DmaError {
    const reason = 'too much is waiting for the other process already';
    return new DmaError({ code: 'EAGAIN', operation: this.#operation, reason, hint: 'await earlier calls first' });
  }

  #outcome(pending: Pending): Reply {
    if (pending.error !== undefined) throw pending.error;
    if (pending.reply === undefined) throw nonsense(this.#operation, 'no answer');
    return pending.reply;
  }

  #expire(id: number, pending: Pending, limit: number): void {
    // It may have arrived, while this thread was busy.
    this.#channel.service();
    if (pending.done) return;
    this.#pending.delete(id);
    const reason = `the other process did not answer within ${Math.round(limit)} ms`;
    pending.settle(new DmaError({ code: 'ETIMEDOUT', operation: this.#operation, reason }));
  }

  #arrived(message: Message): void {
    const document = documentIn(message.payload, this.#operation);
    if (isCommand(message)) this.#asked(message.id, document, message.fds.splice(0));
    else this.#answered(message.id, document, message.fds);
  }

  #answered(id: number, document: JsonObject, fds: number[]): void {
    const pending = this.#pending.get(id);
    // The answer to a question that was given up.
    if (pending === undefined) return;
    const error = field(document, 'error');
    const result = field(document, 'result') ?? {};
    if (error === undefined && !isJsonObject(result)) throw nonsense(this.#operation, 'an answer that is no object');
    this.#pending.delete(id);
    if (error !== undefined) pending.settle(errorFromWire(error, this.#operation));
    else if (isJsonObject(result))
      pending.settle({ fields: new Fields(result, this.#operation), fds: this.#takesFds ? fds.splice(0) : [] });
  }

  /** Answers after what runs now, because this side may be in the middle of a change. */
  #asked(id: number, document: JsonObject, fds: number[]): void {
    const name = field(document, 'ask');
    const what = field(document, 'with') ?? {};
    if (typeof name !== 'string' || !isJsonObject(what)) {
      this.#closeForeign(fds);
      throw nonsense(this.#operation, 'a question without a name');
    }
    if (++this.#running >= MAX_RUNNING) this.#channel.pause();
    const question: Question = { name, fields: new Fields(what, this.#operation), fds };
    queueMicrotask(() => void this.#answer(id, question));
  }

  async #answer(id: number, question: Question): Promise<void> {
    let answer: Answer | undefined;
    let document: JsonObject;
    try {
      if (this.#failure !== undefined) throw this.#failure;
      answer = await this.#owner.answer(question);
      document = { result: answer?.result ?? {} };
    } catch (error) {
      document = { error: errorToWire(error) };
    }
    this.#closeForeign(question.fds);
    this.#reply(id, document, answer?.fds ?? []);
    answer?.sent?.();
    if (this.#running-- >= MAX_RUNNING) this.#channel.resume();
  }

  #reply(id: number, document: JsonObject, fds: readonly number[]): void {
    if (this.#failure !== undefined) return;
    let bytes: Uint8Array;
    try {
      bytes = answerMessage(id, document, this.#operation);
    } catch (error) {
      bytes = answerMessage(id, { error: errorToWire(error) }, this.#operation);
    }
    // It does not read its answers.
    if (!this.#channel.send(bytes, fds)) this.#channel.close(this.#full());
  }

  #ended(error: DmaError): void {
    const failure = error.operation === 'vfio-user' ? error.with({ operation: this.#operation }) : error;
    this.#failure = failure;
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const each of pending) each.settle(failure);
    this.#owner.closed(failure);
  }

  #closeForeign(fds: number[]): void {
    for (const fd of fds.splice(0)) this.#platform.files.closeForeign(fd);
  }
}

/** A question that was sent. */
export class Begun {
  /** @internal */
  constructor(
    readonly channel: Channel,
    private readonly pending: Pending,
    /** The answer, once it is there. @throws DmaError of the other side; why the connection ended */
    readonly outcome: () => Reply,
  ) {}

  get done(): boolean {
    return this.pending.done;
  }

  /** Resolves when it is answered, or can not be any more. */
  async settled(): Promise<void> {
    if (!this.pending.done) await new Promise<void>((resolve) => (this.pending.onDone = resolve));
  }
}

/**
 * Waits, without the event loop, until all of these are answered. Questions that arrive meanwhile are answered later.
 *
 * @param timeoutMs milliseconds
 * @returns whether all were answered in time
 */
export function waitForAll({ readiness }: Platform, begun: readonly Begun[], timeoutMs: number): boolean {
  const deadline = now() + timeoutMs;
  for (;;) {
    // A connection that ends settles its questions.
    const open = begun.filter(({ done }) => !done);
    if (open.length === 0) return true;
    const left = deadline - now();
    const interests = open.map(({ channel }) => channel.interest);
    if (left <= 0 || !readiness.wait(interests, Math.ceil(left))) return open.every(({ done }) => done);
    for (const { channel } of open) if (channel.interest.ready !== false) channel.service();
  }
}
