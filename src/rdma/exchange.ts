/**
 * How two sides of an RDMA connection find each other: they tell each other their queue pairs and memory over TCP, as lines
 * of JSON, and keep that connection for questions, such as why an access was refused.
 *
 * Each side first sends a hello: `{"anydma-rdma": 1, "pairs": [...], "memory": [...], "data": ...}`; the one that connected
 * begins. Queue pairs that only the connection manager connects (iWARP) are then connected by that: the side that was connected
 * to listens, and asks `{"call": "rdma-cm", "with": {"pair": 17, "to": 18, "port": 4711, "token": "..."}}` for each of them, with
 * both numbers and what the request has to carry. When its queue pairs are connected a side sends `{"ready": true}`. From then on either side can ask:
 * `{"id": 1, "call": "explain", "with": ...}`, and is answered `{"id": 1, "result": ...}` or
 * `{"id": 1, "error": "EINVAL", "reason": "..."}`. Nothing that comes is trusted: lines, lists and questions are limited,
 * what is not as it should be ends the session, and a peer that is silent is not waited for.
 */
import { randomBytes } from 'node:crypto';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import type { DmaAccess } from '../dma/backend.js';
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
import { DmaError, ERRNO, errorCode, invalid, isDmaError, type ErrorCode } from '../errors.js';
import { isAddress } from '../units.js';
import { connectByManager, RdmaListener } from './connect-cm.js';
import {
  checkAddress,
  isKey,
  type PeerExplainer,
  QueuePair,
  type QueuePairAddress,
  type RemoteMemory,
} from './queue-pair.js';
import { thrown } from '../show.js';
import { clearTimeout, now, setTimeout } from '../timers.js';

/** The version of the protocol that is spoken here. */
export const EXCHANGE_VERSION = 1;

/** Memory that a side tells the other about. */
export interface AnnouncedMemory extends RemoteMemory {
  /** bytes */
  readonly length: number;
}

/** What a side tells of itself. */
export interface Hello {
  readonly pairs: readonly QueuePairAddress[];
  readonly memory: readonly AnnouncedMemory[];
  /** Whatever else the programs have to say to each other, as JSON; nobody has checked what came from the peer. */
  readonly data?: unknown;
}

/** Limits of a session. */
export interface ExchangeOptions {
  /** How long the peer may take for its hello, for getting ready, and for an answer; milliseconds. Default 10,000. */
  readonly timeoutMs?: number;
  /** bytes of a line at most. Default 1 MiB. */
  readonly maxLine?: number;
}

const EXCHANGE_OPTIONS: Shape<ExchangeOptions> = { timeoutMs: 'number', maxLine: 'number' };
const CONNECT_OPTIONS = { ...EXCHANGE_OPTIONS, host: 'string', port: 'number', hello: 'object' } as const;
const LISTEN_OPTIONS = { ...EXCHANGE_OPTIONS, host: 'string', port: 'number', maxSessions: 'number' } as const;
const JOIN_OPTIONS = { connectionManager: 'boolean' } as const;

/** @throws DmaError EINVAL for limits that can not be */
function checkLimits({ timeoutMs = 0, maxLine = 64 }: ExchangeOptions, operation: string): void {
  mustBeMs(timeoutMs, 'timeoutMs', operation);
  mustBeWhole(maxLine, 64, 2 ** 28, 'maxLine', operation);
}

/** Answers a question of the peer. What it throws is told to the peer. */
export type Answer = (question: unknown) => unknown;

/** Entries of the lists of a hello, questions under way in one direction, characters of a text of the peer; at most. */
const MOST = { entries: 65536, pairs: 1024, questions: 256, text: 2000 };

/** One side of a session. Made by {@link connectToPeer} and {@link listenForPeers}. */
export class PeerSession implements Disposable {
  /** Who the peer is: `address:port`. */
  readonly peer: string;
  readonly #socket: Socket;
  readonly #timeoutMs: number;
  readonly #maxLine: number;
  readonly #answers = new Map<string, Answer>();
  readonly #asked = new Map<number, { resolve: (value: unknown) => void; reject: (error: DmaError) => void }>();
  readonly #ended: Promise<DmaError>;
  #end: (error: DmaError) => void = () => undefined;
  #hello: Hello | undefined;
  #isReady = false;
  /** What is woken when something comes, or the end. */
  readonly #waiting = new Set<() => void>();
  /** Where queue pairs of the peer wait for those of this side, by the numbers of both. */
  readonly #offers = new Map<string, { readonly port: number; readonly token: Buffer }>();
  readonly #listens: boolean;
  #chunks: Buffer[] = [];
  #buffered = 0;
  #next = 1;
  #answering = 0;
  #failure: DmaError | undefined;

  /** @internal */
  constructor(socket: Socket, { timeoutMs = 10_000, maxLine = 2 ** 20 }: ExchangeOptions, listens: boolean) {
    this.#listens = listens;
    this.#socket = socket;
    this.#timeoutMs = timeoutMs;
    this.#maxLine = maxLine;
    this.peer = `${socket.remoteAddress ?? '?'}:${socket.remotePort ?? 0}`;
    this.#ended = new Promise((resolve) => (this.#end = resolve));
    this.#answers.set('rdma-cm', (question) => this.#offered(question));
    socket.setNoDelay(true);
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
    socket.on('error', (cause: NodeJS.ErrnoException) =>
      this.#finish(
        new DmaError({ code: codeOf(cause), operation: 'exchange', reason: `${this.peer}: ${cause.message}`, cause }),
      ),
    );
    socket.on('close', () => this.#finish(this.#error('ECONNRESET', 'the peer closed the connection')));
  }

  /** What the peer told of itself. @throws DmaError EINVAL before it did */
  get hello(): Hello {
    if (this.#hello !== undefined) return this.#hello;
    throw this.#error('EINVAL', 'the peer has not said hello yet');
  }

  /** Resolves, with the reason, when the session has ended, however that came about. */
  get ended(): Promise<DmaError> {
    return this.#ended;
  }

  /** Is it still there? */
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

  /** Tells the peer of this side: what the one that was connected to does, once. */
  greet(hello: Hello): void {
    this.#write({ 'anydma-rdma': EXCHANGE_VERSION, ...checkedHello(hello, 'greet') });
  }

  /**
   * Tells the peer that this side's queue pairs are connected, and waits until its are.
   *
   * @throws DmaError ETIMEDOUT; what ended the session
   */
  async ready(): Promise<void> {
    this.#write({ ready: true });
    await this.#until(() => this.#isReady, 'get ready');
  }

  /**
   * Connects a queue pair with one of the peer's, and waits until both sides are ready. From then on the errors of the queue
   * pair have the peer's explanations.
   *
   * @param peer Default: the peer's first.
   * @param options.connectionManager connect them by the RDMA connection manager? Then the addresses of this session must be of
   *   the network of their devices, and the peer must want it as well. Default: for iWARP, where nothing else works.
   * @throws DmaError as {@link QueuePair.connect}, or `RdmaDevice.connect` and `RdmaDevice.listen`; as {@link PeerSession.ready}
   */
  async join(
    pair: QueuePair,
    peer: QueuePairAddress | undefined = this.hello.pairs[0],
    options?: { readonly connectionManager?: boolean },
  ): Promise<void> {
    mustBe(pair, QueuePair, 'the queue pair', 'join');
    const { connectionManager = pair.rdma.isIwarp } = optionsOf(options, JOIN_OPTIONS, 'join');
    if (peer === undefined) throw this.#error('EPROTO', 'the peer has told of no queue pair');
    checkAddress(peer);
    if (!connectionManager) pair.connect(peer);
    else if (this.#listens) await this.#offerTo(pair, peer);
    else await this.#takeOffer(pair, peer);
    pair.explainPeer = this.explain;
    await this.ready();
  }

  /** Lets `answer` answer the peer's questions of this name. */
  answer(name: string, answer: Answer): void {
    mustBeString(name, 'the name of a question', 'answer');
    mustBeFunction(answer, 'an answer', 'answer');
    this.#answers.set(name, answer);
  }

  /** Lets a device answer the peer's questions about memory that it was refused. */
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
   * Asks the peer.
   *
   * @param question anything that JSON has
   * @returns the answer; nobody has checked it
   * @throws DmaError of the code that the peer answers with; EBUSY when too many questions are under way; ETIMEDOUT; what ended
   *   the session
   */
  async ask(name: string, question: unknown): Promise<unknown> {
    mustBeString(name, 'the name of a question', 'ask');
    if (this.#asked.size >= MOST.questions) throw this.#error('EBUSY', `${MOST.questions} questions are under way`);
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

  [Symbol.dispose](): void {
    this.close();
  }

  /** @internal Waits for the peer's hello. */
  async begin(): Promise<void> {
    await this.#until(() => this.#hello !== undefined, 'say hello');
  }

  /** Listens for the peer's queue pair, and tells the peer where. */
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

  /** Waits for the peer to listen, and connects to that. */
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
    if (!isWhole(pair) || !isWhole(to) || !isWhole(port) || typeof token !== 'string' || !/^[0-9a-f]{32}$/.test(token))
      throw invalid('rdma-cm', 'it takes pair, to, port and token');
    if (this.#offers.size >= MOST.pairs) throw this.#error('EBUSY', `${MOST.pairs} queue pairs wait already`);
    this.#offers.set(`${pair} ${to}`, { port, token: Buffer.from(token, 'hex') });
    this.#news();
    return true;
  }

  #news(): void {
    for (const wake of [...this.#waiting]) wake();
  }

  #take(chunk: Buffer): void {
    let start = 0;
    for (let end = chunk.indexOf(10); end >= 0 && this.live; end = chunk.indexOf(10, start)) {
      const line = Buffer.concat([...this.#chunks, chunk.subarray(start, end)]);
      this.#chunks = [];
      this.#buffered = 0;
      start = end + 1;
      if (line.length > this.#maxLine) break;
      this.#line(line);
    }
    if (!this.live) return;
    const rest = chunk.subarray(start);
    this.#buffered += rest.length;
    if (rest.length > 0) this.#chunks.push(rest);
    if (this.#buffered > this.#maxLine) this.#refuse(`sent a line of more than ${this.#maxLine} bytes`);
  }

  #line(line: Buffer): void {
    try {
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
    } else if (!isWhole(message.id)) throw new Error('a message of no known kind');
    else if (typeof message.call === 'string') void this.#reply(message.id, message.call, message.with);
    else this.#answered(message.id, message);
  }

  async #reply(id: number, name: string, question: unknown): Promise<void> {
    if (++this.#answering > MOST.questions) return this.#refuse(`asked more than ${MOST.questions} questions at once`);
    try {
      const answer = this.#answers.get(name);
      if (answer === undefined)
        throw new DmaError({ code: 'ENOTSUP', operation: 'exchange', reason: `nobody answers ${printable(name)}` });
      const result: unknown = await answer(question);
      this.#write({ id, result: result ?? null });
    } catch (error) {
      const reason = thrown(error);
      if (this.live) this.#write({ id, error: isDmaError(error) ? error.code : 'EIO', reason });
    } finally {
      this.#answering--;
    }
  }

  #answered(id: number, { result, error, reason }: Record<string, unknown>): void {
    const asked = this.#asked.get(id);
    // It may have been too late.
    if (asked === undefined) return;
    if (error === undefined) asked.resolve(result);
    else {
      const code: ErrorCode = typeof error === 'string' && error in ERRNO ? (error as ErrorCode) : 'EIO';
      asked.reject(this.#error(code, `the peer says: ${typeof reason === 'string' ? printable(reason) : 'no'}`));
    }
  }

  #write(message: Record<string, unknown>): void {
    if (this.#failure !== undefined) throw this.#failure;
    const line = `${JSON.stringify(message)}\n`;
    if (line.length > this.#maxLine) throw this.#error('E2BIG', `a message of ${line.length} bytes is too long`);
    // A peer that asks and does not read would fill the memory.
    if (this.#socket.writableLength > 4 * this.#maxLine) return this.#refuse('does not read what it asked for');
    this.#socket.write(line);
  }

  async #until(condition: () => boolean, what: string): Promise<void> {
    const deadline = now() + this.#timeoutMs;
    while (!condition()) {
      if (this.#failure !== undefined) throw this.#failure;
      const left = deadline - now();
      if (left <= 0) {
        const error = this.#slow(what);
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
    this.#socket.destroySoon();
    for (const { reject } of this.#asked.values()) reject(error);
    this.#end(error);
    this.#news();
  }

  #slow(what: string): DmaError {
    return this.#error('ETIMEDOUT', `the peer took longer than ${this.#timeoutMs} ms to ${what}`);
  }

  #error(code: ErrorCode, reason: string): DmaError {
    return new DmaError({ code, operation: 'exchange', reason: `${this.peer}: ${reason}` });
  }
}

/**
 * Connects to a side that listens, tells it of this one, and waits for its hello.
 *
 * @throws DmaError ECONNREFUSED, ETIMEDOUT and what else keeps it from being reached; EPROTO when something else listens there
 */
export async function connectToPeer(
  asked: ExchangeOptions & { readonly host: string; readonly port: number; readonly hello: Hello },
): Promise<PeerSession> {
  const operation = 'connectToPeer';
  const options = optionsOf(asked, CONNECT_OPTIONS, operation);
  checkLimits(options, operation);
  const { host, port, timeoutMs = 10_000 } = options;
  mustBeString(host, 'host', operation);
  if (host === '') throw invalid(operation, 'the name of the host is empty');
  mustBeWhole(port, 1, 65535, 'port', operation);
  const hello = checkedHello(options.hello, operation);
  const socket = await connected(host, port, timeoutMs);
  const session = new PeerSession(socket, options, false);
  try {
    session.greet(hello);
    await session.begin();
    return session;
  } catch (error) {
    session.close();
    throw error;
  }
}

/** Listens for peers. Close it when no more should come; sessions that there are go on. */
export class PeerServer implements AsyncDisposable {
  readonly #server: Server;

  /** @internal */
  constructor(server: Server) {
    this.#server = server;
  }

  /** The TCP port. */
  get port(): number {
    const address = this.#server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  }

  async close(): Promise<void> {
    if (!this.#server.listening) return;
    this.#server.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/**
 * Listens for peers on TCP.
 *
 * @param options.host Default: all addresses of this machine. @param options.port Default 0: any that is free.
 * @param options.maxSessions who comes when there are so many is sent away. Default 64.
 * @param serve called with each session once the peer has said hello; it is to {@link PeerSession.greet} in turn. When what it
 *   returns rejects, the session is closed.
 * @throws DmaError EADDRINUSE, EACCES
 */
export async function listenForPeers(
  asked: ExchangeOptions & { readonly host?: string; readonly port?: number; readonly maxSessions?: number },
  serve: (session: PeerSession) => Promise<void> | void,
): Promise<PeerServer> {
  const operation = 'listenForPeers';
  const options = optionsOf(asked, LISTEN_OPTIONS, operation);
  checkLimits(options, operation);
  const { host, port = 0, maxSessions = 64 } = options;
  if (host === '') throw invalid(operation, 'the name of the host is empty');
  mustBeWhole(port, 0, 65535, 'port', operation);
  mustBeWhole(maxSessions, 1, Number.MAX_SAFE_INTEGER, 'maxSessions', operation);
  mustBeFunction(serve, 'what serves peers', operation);
  let sessions = 0;
  const server = createServer((socket) => {
    if (sessions >= maxSessions) {
      socket.on('error', () => undefined);
      socket.destroy();
      return;
    }
    sessions++;
    const session = new PeerSession(socket, options, true);
    void session.ended.then(() => sessions--);
    void (async () => {
      try {
        await session.begin();
        await serve(session);
      } catch {
        session.close();
      }
    })();
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) =>
      reject(new DmaError({ code: codeOf(cause), operation: 'listen', reason: cause.message, cause })),
    );
    server.listen(port, host, resolve);
  });
  return new PeerServer(server);
}

/** What a side tells of itself, as the peer will take it. @throws DmaError EINVAL for what it would refuse, or JSON has not */
function checkedHello(hello: Hello | undefined, operation: string): Hello {
  mustBeObject(hello, 'what is told of this side', operation);
  return reading(operation, 'what is told of this side', () => {
    const { pairs, memory, data } = hello;
    const line = JSON.stringify({ data });
    return {
      ...readHello({ 'anydma-rdma': EXCHANGE_VERSION, pairs, memory }),
      ...(JSON.parse(line) as { data?: unknown }),
    };
  });
}

function connected(host: string, port: number, timeoutMs: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const fail = (code: ErrorCode, reason: string, cause?: unknown): void => {
      clearTimeout(timer);
      socket.destroy();
      reject(new DmaError({ code, operation: 'connect', reason, cause, hint: 'is the other side serving there?' }));
    };
    const timer = setTimeout(
      () => fail('ETIMEDOUT', `${host}:${port} did not answer within ${timeoutMs} ms`),
      timeoutMs,
    );
    const socket = createConnection({ host, port });
    const failed = (cause: NodeJS.ErrnoException): void =>
      fail(codeOf(cause), cause.message || `${host}:${port} can not be reached`, cause);
    socket.once('error', failed);
    socket.once('connect', () => {
      clearTimeout(timer);
      socket.off('error', failed);
      resolve(socket);
    });
  });
}

function readHello(message: Record<string, unknown>): Hello {
  const { 'anydma-rdma': version, pairs, memory, data } = message;
  if (version !== EXCHANGE_VERSION) throw new Error(`its first line is no hello of version ${EXCHANGE_VERSION}`);
  if (!Array.isArray(pairs) || !Array.isArray(memory) || pairs.length > MOST.pairs || memory.length > MOST.entries)
    throw new Error('its hello has no lists of queue pairs and memory, or too long ones');
  return { pairs: pairs.map(readPair), memory: memory.map(readMemory), data };
}

function readPair(value: unknown): QueuePairAddress {
  const { number, psn, gid, lid, mtu, reads, qkey } = asObject(value);
  // checkAddress looks at the types as well.
  const pair = { number, psn, gid, lid, mtu, reads, qkey } as QueuePairAddress;
  checkAddress(pair);
  return pair;
}

function readMemory(value: unknown): AnnouncedMemory {
  const { address, length, rkey } = asObject(value);
  if (!isWhole(address) || !isWhole(length) || !isAddress(address + length) || !isWhole(rkey) || !isKey(rkey))
    throw new Error('its hello tells of memory that can not be');
  return { address, length, rkey };
}

/** An address of a socket for IPv6 that also takes IPv4, as what it is. */
function plain(address: string): string {
  return address.replace(/^::ffff:(?=[\d.]+$)/i, '');
}

function asObject(value: unknown): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new Error('a message that is no object');
  return value as Record<string, unknown>;
}

function isWhole(value: unknown): value is number {
  return typeof value === 'number' && isAddress(value);
}

function isAccess(value: unknown): value is DmaAccess {
  return value === 'read' || value === 'write' || value === 'read-write';
}

/** A text of the peer that may be printed: terminals obey control characters. */
function printable(text: string): string {
  return text.slice(0, MOST.text).replace(/\p{C}/gu, ' ');
}

function codeOf({ code, errno }: NodeJS.ErrnoException): ErrorCode {
  if (code !== undefined && code in ERRNO) return code as ErrorCode;
  return errorCode(Math.abs(errno ?? 0));
}
