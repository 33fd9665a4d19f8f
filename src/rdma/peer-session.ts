/**
 * One side of a session of the exchange; `exchange.ts` describes the protocol. The peer can not make a session use
 * unlimited time or memory: lines have a maximum length and time, unread answers stop the reading of further questions,
 * and the end of a session closes its connection, whether the peer has read everything or not.
 */
import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import type { DmaAccess } from '../dma/address-space.js';
import {
  mustBe,
  mustBeFunction,
  mustBeMs,
  mustBeObject,
  mustBeString,
  mustBeWhole,
  mustHave,
  optionsOf,
  reading,
  type Shape,
} from '../check.js';
import { DmaError, errorCode, invalid, isDmaError, isErrorCode, type ErrorCode } from '../errors.js';
import { isAddress } from '../units.js';
import { connectByManager, RdmaListener } from './connect-cm.js';
import { Lines } from './lines.js';
import { checkAddress, type QueuePairAddress } from './queue-pair-options.js';
import { isKey, type PeerExplainer, type RemoteMemory } from './queue-pair-requests.js';
import { QueuePair } from './queue-pair.js';
import { thrown } from '../show.js';
import { clearTimeout, now, setImmediate, setTimeout } from '../timers.js';
import { STAYS } from '../stays.js';

/** The protocol version. */
export const EXCHANGE_VERSION = 1;

/** Memory that a side announces to the other. */
export interface AnnouncedMemory extends RemoteMemory {
  /** bytes */
  readonly length: number;
}

/** What a side announces of itself. */
export interface Hello {
  readonly pairs: readonly QueuePairAddress[];
  readonly memory: readonly AnnouncedMemory[];
  /** Any other data for the peer's program, as JSON; data from the peer is not checked. */
  readonly data?: unknown;
}

/** Limits of a session. */
export interface ExchangeOptions {
  /**
   * Time limit in milliseconds for each step of the peer: its hello, completing a line, connecting, getting ready,
   * answering, and reading an answer. Default 10,000.
   */
  readonly timeoutMs?: number;
  /** most bytes of a line. Default 1 MiB. */
  readonly maxLine?: number;
}

export const EXCHANGE_OPTIONS: Shape<ExchangeOptions> = { timeoutMs: 'number', maxLine: 'number' };
const JOIN_OPTIONS = { connectionManager: 'boolean' } as const;

/** @throws DmaError EINVAL for invalid limits */
export function checkLimits({ timeoutMs = 0, maxLine = 64 }: ExchangeOptions, operation: string): void {
  mustBeMs(timeoutMs, 'timeoutMs', operation);
  mustBeWhole(maxLine, 64, 2 ** 28, 'maxLine', operation);
}

/** Answers a question of the peer. An exception is sent to the peer as the answer. */
export type Answer = (question: unknown) => unknown;

/**
 * Upper limits: entries of each list of a hello, queue pairs waiting, questions pending in one direction, characters of
 * a text from the peer, arrays and objects inside of each other.
 */
const MOST = { entries: 65536, pairs: 1024, questions: 256, text: 2000, depth: 256 };

/** Milliseconds that the peer gets to read the last messages when this side ends a session. */
const FAREWELL = 500;
/** Milliseconds of silence after which TCP keep-alive probes the peer. */
const KEEP_ALIVE = 30_000;

/** One side of a session. Made by {@link connectToPeer} and {@link listenForPeers}. */
export class PeerSession implements Disposable {
  /** @internal */
  readonly stays = STAYS;
  /** The peer's `address:port`. */
  readonly peer: string;
  readonly #socket: Socket;
  /** The peer's address. */
  readonly #host: string;
  readonly #timeoutMs: number;
  readonly #maxLine: number;
  readonly #answers = new Map<string, Answer>();
  readonly #asked = new Map<number, { resolve: (value: unknown) => void; reject: (error: DmaError) => void }>();
  readonly #ended: Promise<DmaError>;
  #end: (error: DmaError) => void = () => undefined;
  #hello: Hello | undefined;
  #isReady = false;
  /** Callbacks for a new message, or the end. */
  readonly #waiting = new Set<() => void>();
  /** Ports where queue pairs of the peer listen for those of this side, by the numbers of both. */
  readonly #offers = new Map<string, { readonly port: number; readonly token: Buffer }>();
  readonly #listens: boolean;
  readonly #lines: Lines;
  /** Aborted when the session ends. */
  readonly #over = new AbortController();
  /** Runs while a line is incomplete. */
  #lineTimer: NodeJS.Timeout | undefined;
  /** Answers that the peer has not read: a promise for when it has, and the time limit. */
  #unread: { readonly read: Promise<void>; drained(): void; readonly timer: NodeJS.Timeout } | undefined;
  #next = 1;
  #answering = 0;
  /** When the last question that waits may be answered. */
  #lastTurn: Promise<void> = Promise.resolve();
  #failure: DmaError | undefined;

  /** @internal */
  constructor(socket: Socket, { timeoutMs = 10_000, maxLine = 2 ** 20 }: ExchangeOptions, listens: boolean) {
    this.#listens = listens;
    this.#socket = socket;
    this.#timeoutMs = timeoutMs;
    this.#maxLine = maxLine;
    this.#lines = new Lines(maxLine);
    this.#host = plain(socket.remoteAddress ?? '?');
    this.peer = `${socket.remoteAddress ?? '?'}:${socket.remotePort ?? 0}`;
    this.#ended = new Promise((resolve) => (this.#end = resolve));
    this.#answers.set('rdma-cm', (question) => this.#offered(question));
    socket.setNoDelay(true);
    socket.setKeepAlive(true, KEEP_ALIVE);
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
    socket.on('error', (cause: NodeJS.ErrnoException) =>
      this.#finish(
        new DmaError({ code: codeOf(cause), operation: 'exchange', reason: `${this.peer}: ${cause.message}`, cause }),
      ),
    );
    socket.on('drain', () => this.#drained());
    for (const end of ['end', 'close'])
      socket.on(end, () => this.#finish(this.#error('ECONNRESET', 'the peer closed the connection')));
  }

  /** The peer's hello. @throws DmaError EINVAL before it arrived */
  get hello(): Hello {
    if (this.#hello !== undefined) return this.#hello;
    throw this.#error('EINVAL', 'the peer has not said hello yet');
  }

  /** Resolves with the reason when the session has ended, in whatever way. */
  get ended(): Promise<DmaError> {
    return this.#ended;
  }

  /** Is the session open? */
  get live(): boolean {
    return this.#failure === undefined;
  }

  /** Asks the peer about its memory; for `QueuePair.explainPeer`. */
  get explain(): PeerExplainer {
    return async ({ address, length, rkey }, access) => {
      const text = await this.ask('explain', { address, length, rkey, access });
      return typeof text === 'string' ? printable(text) : undefined;
    };
  }

  /** Sends this side's hello. The side that listens calls it once per session. */
  greet(hello: Hello): void {
    this.#write({ 'anydma-rdma': EXCHANGE_VERSION, ...checkedHello(hello, 'greet') });
  }

  /**
   * Tells the peer that this side's queue pairs are connected, and waits until the peer's are.
   *
   * @throws DmaError ETIMEDOUT; the error that ended the session
   */
  async ready(): Promise<void> {
    this.#write({ ready: true });
    await this.#until(() => this.#isReady, 'get ready');
  }

  /**
   * Connects a queue pair to one of the peer's, and waits until both sides are ready. From then on, errors of the queue
   * pair include the peer's explanations.
   *
   * @param peer Default: the peer's first.
   * @param options.connectionManager connect by the RDMA connection manager? Then the addresses of this session must be
   * in the network of the RDMA devices, and both sides must set it. Default: only for iWARP, which requires it.
   * @throws DmaError as {@link QueuePair.connect}, or `RdmaDevice.connect` and `RdmaDevice.listen`; as {@link
   * PeerSession.ready}
   */
  async join(
    pair: QueuePair,
    peer: QueuePairAddress | undefined = this.hello.pairs[0],
    options?: { readonly connectionManager?: boolean },
  ): Promise<void> {
    mustBe(pair, QueuePair, 'the queue pair', 'join');
    const { connectionManager = pair.rdma.isIwarp } = optionsOf(options, JOIN_OPTIONS, 'join');
    if (peer === undefined) throw this.#error('EPROTO', 'the peer announced no queue pair');
    checkAddress(peer);
    if (!connectionManager) await this.#connect(pair, peer);
    else if (this.#listens) await this.#offerTo(pair, peer);
    else await this.#takeOffer(pair, peer);
    pair.explainPeer = this.explain;
    await this.ready();
  }

  /** Sets the function that answers the peer's questions of this name. */
  answer(name: string, answer: Answer): void {
    mustBeString(name, 'the name of a question', 'answer');
    mustBeFunction(answer, 'an answer', 'answer');
    this.#answers.set(name, answer);
  }

  /** Lets a device answer the peer's questions about refused accesses to memory. */
  explainFrom(device: { explainPeer(memory: AnnouncedMemory, access: DmaAccess): string }): void {
    mustHave(device, ['explainPeer'], 'RDMA device', 'explainFrom');
    this.answer('explain', (question) => {
      const { address, length, rkey, access } = asObject(question);
      if (!isWhole(address) || !isWhole(length) || !isWhole(rkey) || !isAccess(access))
        throw invalid('explain', 'it takes address, length, rkey and access');
      return device.explainPeer({ address, length, rkey }, access);
    });
  }

  /**
   * Asks the peer a question.
   *
   * @param question any JSON value
   * @returns the answer, which is not checked
   * @throws DmaError with the code of the peer's answer; EBUSY if too many questions are pending; ETIMEDOUT; the error
   * that ended the session
   */
  async ask(name: string, question: unknown): Promise<unknown> {
    mustBeString(name, 'the name of a question', 'ask');
    if (this.#asked.size >= MOST.questions) throw this.#error('EBUSY', `${MOST.questions} questions are pending`);
    if (this.#socket.writableLength > 4 * this.#maxLine)
      throw this.#error('EBUSY', `${this.#socket.writableLength} bytes of questions wait for the peer to read them`);
    const id = this.#next++;
    const answer = new Promise((resolve, reject) => this.#asked.set(id, { resolve, reject }));
    const timer = setTimeout(() => this.#asked.get(id)?.reject(this.#slow(`answer ${name}`)), this.#timeoutMs);
    try {
      this.#write({ id, call: name, with: question });
      return await answer;
    } finally {
      clearTimeout(timer);
      this.#asked.delete(id);
    }
  }

  /** Ends the session. Idempotent. */
  close(): void {
    this.#finish(this.#error('ECANCELED', 'the session was closed'));
  }

  /** Calls {@link close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** @internal Waits for the peer's hello. @param timeoutMs Default: the session's. */
  async begin(timeoutMs = this.#timeoutMs): Promise<void> {
    await this.#until(() => this.#hello !== undefined, 'say hello', timeoutMs);
  }

  /** Connects by addresses, asynchronously: resolving the address of one peer must not delay the others. */
  async #connect(pair: QueuePair, peer: QueuePairAddress): Promise<void> {
    const timer = setTimeout(() => this.#finish(this.#slow('be found')), this.#timeoutMs);
    try {
      await pair.connectFor(this.#host, peer, undefined, this.#over.signal);
    } catch (error) {
      throw this.#failure ?? error;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Listens for the peer's queue pair, and tells the peer the port. */
  async #offerTo(pair: QueuePair, peer: QueuePairAddress): Promise<void> {
    const token = randomBytes(16);
    let end: (error?: Error) => void = () => undefined;
    const connected = new Promise<void>((resolve, reject) => {
      end = (error) => (error === undefined ? resolve() : reject(error));
    });
    const host = plain(this.#socket.localAddress ?? '');
    using listener = new RdmaListener(pair.rdma, { host }, async (request) => {
      if (!token.equals(request.data.subarray(0, token.length))) return;
      await request.accept(pair, { timeoutMs: this.#timeoutMs }).then(() => end(), end);
    });
    const timer = setTimeout(() => end(this.#slow('connect its queue pair')), this.#timeoutMs);
    try {
      const { port } = listener.address;
      const asked = { pair: pair.number, to: peer.number, port, token: token.toString('hex') };
      void this.ask('rdma-cm', asked).catch(end);
      void this.#ended.then(end);
      await connected;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Waits until the peer listens, and connects to it. */
  async #takeOffer(pair: QueuePair, peer: QueuePairAddress): Promise<void> {
    const key = `${peer.number} ${pair.number}`;
    await this.#until(() => this.#offers.has(key), 'listen for the queue pair');
    const { port, token } = this.#offers.get(key) ?? { port: 0, token: Buffer.alloc(0) };
    this.#offers.delete(key);
    const host = plain(this.#socket.remoteAddress ?? '');
    await connectByManager(pair.rdma, pair, { host, port, data: token, timeoutMs: this.#timeoutMs });
  }

  #offered(question: unknown): boolean {
    const { pair, to, port, token } = asObject(question);
    if (!isWhole(pair) || !isWhole(to) || !isPort(port) || typeof token !== 'string' || !/^[0-9a-f]{32}$/.test(token))
      throw invalid('rdma-cm', 'it takes pair, to, port and token');
    if (this.#offers.size >= MOST.pairs) throw this.#error('EBUSY', `${MOST.pairs} queue pairs are waiting already`);
    this.#offers.set(`${pair} ${to}`, { port, token: Buffer.from(token, 'hex') });
    this.#news();
    return true;
  }

  #news(): void {
    for (const wake of [...this.#waiting]) wake();
  }

  #take(chunk: Buffer): void {
    if (!this.live) return;
    let ended = 0;
    const result = this.#lines.take(chunk, (line) => {
      ended++;
      this.#line(line);
      return this.live;
    });
    if (!this.live) return;
    if (result === 'too long') return this.#refuse(`sent a line of more than ${this.#maxLine} bytes`);
    if (ended > 0 || !this.#lines.isOpen) {
      clearTimeout(this.#lineTimer);
      this.#lineTimer = undefined;
    }
    if (this.#lines.isOpen)
      this.#lineTimer ??= setTimeout(() => this.#finish(this.#slow('end a line')), this.#timeoutMs);
  }

  #line(line: Buffer): void {
    try {
      // Parsing deep arrays takes some 300 ns a byte, thirty times as long as others.
      if (isDeeper(line, MOST.depth))
        throw new Error(`a message of more than ${MOST.depth} arrays inside of each other`);
      this.#understand(asObject(JSON.parse(line.toString('utf8'))));
    } catch (error) {
      this.#refuse(thrown(error));
    }
  }

  #understand(message: Record<string, unknown>): void {
    if (this.#hello === undefined) {
      this.#hello = readHello(message);
      this.#news();
    } else if (message.ready === true) {
      this.#isReady = true;
      this.#news();
    } else if (!isWhole(message.id)) throw new Error('a message of unknown kind');
    else if (typeof message.call === 'string') void this.#reply(message.id, message.call, message.with);
    else this.#answered(message.id, message);
  }

  async #reply(id: number, name: string, question: unknown): Promise<void> {
    if (++this.#answering > MOST.questions) return this.#refuse(`asked more than ${MOST.questions} questions at once`);
    try {
      await this.#turn();
      if (!this.live) return;
      const answer = this.#answers.get(name);
      if (answer === undefined)
        throw new DmaError({
          code: 'ENOTSUP',
          operation: 'exchange',
          reason: `there is no answer to ${printable(name)}`,
        });
      const result: unknown = await answer(question);
      while (this.#unread !== undefined) await this.#unread.read;
      this.#write({ id, result: result ?? null });
    } catch (error) {
      const reason = thrown(error);
      if (this.live) this.#write({ id, error: isDmaError(error) ? error.code : 'EIO', reason });
    } finally {
      this.#answering--;
      this.#hold();
    }
  }

  /**
   * Resolves when the next question may be answered: at once if it is alone; else one is in each turn of the event loop,
   * so that other peers get theirs, and none while answers are not read.
   */
  async #turn(): Promise<void> {
    if (this.#answering === 1 && this.#unread === undefined) return;
    const before = this.#lastTurn;
    const turn = async (): Promise<void> => {
      await before;
      await new Promise(setImmediate);
      while (this.#unread !== undefined) await this.#unread.read;
    };
    await (this.#lastTurn = turn());
  }

  #answered(id: number, { result, error, reason }: Record<string, unknown>): void {
    const asked = this.#asked.get(id);
    // The question may have timed out.
    if (asked === undefined) return;
    if (error === undefined) asked.resolve(result);
    else {
      const code = isErrorCode(error) ? error : 'EIO';
      asked.reject(this.#error(code, `the peer says: ${typeof reason === 'string' ? printable(reason) : 'no'}`));
    }
  }

  #write(message: Record<string, unknown>): void {
    if (this.#failure !== undefined) throw this.#failure;
    const line = `${JSON.stringify(message)}\n`;
    if (line.length > this.#maxLine) throw this.#error('E2BIG', `a message of ${line.length} bytes is too long`);
    this.#socket.write(line);
  }

  /**
   * Reads no more questions while the peer does not read the answers to earlier ones, which would fill the memory.
   * Answers from the peer wait too meanwhile.
   */
  #hold(): void {
    if (!this.live || this.#unread !== undefined || this.#socket.writableLength <= this.#maxLine) return;
    this.#socket.pause();
    let drained: () => void = () => undefined;
    const read = new Promise<void>((resolve) => (drained = resolve));
    const timer = setTimeout(() => this.#finish(this.#slow('read what it asked for')), this.#timeoutMs);
    this.#unread = { read, drained, timer };
  }

  #drained(): void {
    if (this.#unread === undefined) return;
    const { drained, timer } = this.#unread;
    clearTimeout(timer);
    this.#unread = undefined;
    drained();
    if (this.live) this.#socket.resume();
  }

  async #until(condition: () => boolean, what: string, timeoutMs = this.#timeoutMs): Promise<void> {
    const deadline = now() + timeoutMs;
    while (!condition()) {
      if (this.#failure !== undefined) throw this.#failure;
      const left = deadline - now();
      if (left <= 0) {
        const error = this.#slow(what, timeoutMs);
        this.#finish(error);
        throw error;
      }
      let timer: NodeJS.Timeout | undefined;
      let wake: () => void = () => undefined;
      await new Promise<void>((resolve) => {
        wake = resolve;
        this.#waiting.add(resolve);
        timer = setTimeout(resolve, left);
      });
      clearTimeout(timer);
      this.#waiting.delete(wake);
    }
  }

  #refuse(what: string): void {
    this.#finish(this.#error('EPROTO', `the peer does not speak the protocol: ${printable(what)}`));
  }

  #finish(error: DmaError): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    clearTimeout(this.#lineTimer);
    this.#drained();
    this.#lines.clear();
    this.#offers.clear();
    this.#leave(error.code === 'ECANCELED');
    for (const { reject } of this.#asked.values()) reject(error);
    this.#over.abort(error);
    this.#end(error);
    this.#news();
  }

  /** @param says may the peer still read the last messages? */
  #leave(says: boolean): void {
    const socket = this.#socket;
    if (!says || socket.destroyed) {
      socket.destroy();
      return;
    }
    const timer = setTimeout(() => socket.destroy(), FAREWELL);
    socket.once('close', () => clearTimeout(timer));
    socket.resume();
    socket.destroySoon();
  }

  #slow(what: string, timeoutMs = this.#timeoutMs): DmaError {
    return this.#error('ETIMEDOUT', `the peer took longer than ${timeoutMs} ms to ${what}`);
  }

  #error(code: ErrorCode, reason: string): DmaError {
    return new DmaError({ code, operation: 'exchange', reason: `${this.peer}: ${reason}` });
  }
}

/**
 * This side's hello in the form that the peer accepts. @throws DmaError EINVAL for values that the peer would refuse,
 * or that are not JSON
 */
export function checkedHello(hello: Hello | undefined, operation: string): Hello {
  mustBeObject(hello, 'the hello of this side', operation);
  return reading(operation, 'the hello of this side', () => {
    const { pairs, memory, data } = hello;
    const line = JSON.stringify({ data });
    return {
      ...readHello({ 'anydma-rdma': EXCHANGE_VERSION, pairs, memory }),
      ...(JSON.parse(line) as { data?: unknown }),
    };
  });
}

function readHello(message: Record<string, unknown>): Hello {
  const { 'anydma-rdma': version, pairs, memory, data } = message;
  if (version !== EXCHANGE_VERSION) throw new Error(`its first line is not a hello of version ${EXCHANGE_VERSION}`);
  if (!Array.isArray(pairs) || !Array.isArray(memory) || pairs.length > MOST.pairs || memory.length > MOST.entries)
    throw new Error('its hello has no lists of queue pairs and memory, or too long ones');
  return { pairs: pairs.map(readPair), memory: memory.map(readMemory), data };
}

function readPair(value: unknown): QueuePairAddress {
  const { number, psn, gid, lid, mtu, reads, qkey } = asObject(value);
  // checkAddress also checks the types.
  const pair = { number, psn, gid, lid, mtu, reads, qkey } as QueuePairAddress;
  checkAddress(pair);
  return pair;
}

function readMemory(value: unknown): AnnouncedMemory {
  const { address, length, rkey } = asObject(value);
  if (!isWhole(address) || !isWhole(length) || !isAddress(address + length) || !isWhole(rkey) || !isKey(rkey))
    throw new Error('its hello has an invalid memory range');
  return { address, length, rkey };
}

/** @internal Converts an IPv4 address mapped to IPv6, from a socket for both, to plain IPv4. */
export function plain(address: string): string {
  return address.replace(/^::ffff:(?=[\d.]+$)/i, '');
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
/** Of `[` and `{`, and of `]` and `}`, which differ in one bit. */
const OPENS = 0x5b;
const CLOSES = 0x5d;
const CURLY = 0x20;

/** Are more than `most` arrays and objects inside of each other in this JSON? */
function isDeeper(json: Uint8Array, most: number): boolean {
  let depth = 0;
  let isText = false;
  for (let at = 0; at < json.length; at++) {
    const byte = json[at];
    if (byte === QUOTE) isText = !isText;
    else if (isText) {
      if (byte === BACKSLASH) at++;
    } else if ((byte & ~CURLY) === OPENS) {
      if (++depth > most) return true;
    } else if ((byte & ~CURLY) === CLOSES) depth--;
  }
  return false;
}

function asObject(value: unknown): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new Error('a message that is not an object');
  return value as Record<string, unknown>;
}

function isWhole(value: unknown): value is number {
  return typeof value === 'number' && isAddress(value);
}

function isPort(value: unknown): value is number {
  return isWhole(value) && value >= 1 && value <= 65535;
}

function isAccess(value: unknown): value is DmaAccess {
  return value === 'read' || value === 'write' || value === 'read-write';
}

/** A text of the peer that is safe to print: terminals obey control characters. */
function printable(text: string): string {
  return text.slice(0, MOST.text).replace(/\p{C}/gu, ' ');
}

/** The error code of a socket error. */
export function codeOf({ code, errno }: NodeJS.ErrnoException): ErrorCode {
  if (isErrorCode(code)) return code;
  return errorCode(Math.abs(errno ?? 0));
}
