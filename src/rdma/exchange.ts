/**
 * How two sides of an RDMA connection find each other: over TCP they exchange their queue pairs and memory as lines of
 * JSON, and keep the connection for questions, such as why an access was refused.
 *
 * Each side first sends a hello, the connecting side begins: `{"anydma-rdma": 1, "pairs": [...], "memory": [...],
 * "data": ...}`. Queue pairs that need the connection manager (iWARP) are then connected by it: the TCP server listens,
 * and for each of them sends `{"call": "rdma-cm", "with": {"pair": 17, "to": 18, "port": 4711, "token": "..."}}` with
 * both numbers and the token that the request must carry. When its queue pairs are connected a side sends `{"ready":
 * true}`. From then on either side can ask `{"id": 1, "call": "explain", "with": ...}`, and gets `{"id": 1, "result":
 * ...}` or `{"id": 1, "error": "EINVAL", "reason": "..."}`. Input is not trusted: lines, lists and questions are
 * limited, invalid input ends the session, and all waiting has a time limit.
 */
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { mustBeFunction, mustBeString, mustBeWhole, optionsOf } from '../check.js';
import { DmaError, invalid, type ErrorCode } from '../errors.js';
import {
  checkedHello,
  checkLimits,
  codeOf,
  EXCHANGE_OPTIONS,
  PeerSession,
  plain,
  type ExchangeOptions,
  type Hello,
} from './peer-session.js';
import { clearTimeout, setTimeout } from '../timers.js';
import { Visitors } from './visitors.js';
import { STAYS } from '../stays.js';

export {
  EXCHANGE_VERSION,
  type AnnouncedMemory,
  type Answer,
  type ExchangeOptions,
  type Hello,
  PeerSession,
} from './peer-session.js';

const CONNECT_OPTIONS = { ...EXCHANGE_OPTIONS, host: 'string', port: 'number', hello: 'object' } as const;
const LISTEN_OPTIONS = {
  ...EXCHANGE_OPTIONS,
  host: 'string',
  port: 'number',
  maxSessions: 'number',
  maxPerAddress: 'number',
} as const;

/** Milliseconds that a new client has for its hello, even if sessions have longer times: it sends it at once. */
const HELLO = 5000;

/**
 * Connects to a listening peer, sends this side's hello, and waits for the peer's.
 *
 * @throws DmaError ECONNREFUSED, ETIMEDOUT and other errors of connecting; EPROTO if another kind of server listens
 * there
 */
export async function connectToPeer(
  options: ExchangeOptions & { readonly host: string; readonly port: number; readonly hello: Hello },
): Promise<PeerSession> {
  const operation = 'connectToPeer';
  const checked = optionsOf(options, CONNECT_OPTIONS, operation);
  checkLimits(checked, operation);
  const { host, port, timeoutMs = 10_000 } = checked;
  mustBeString(host, 'host', operation);
  if (host === '') throw invalid(operation, 'the name of the host is empty');
  mustBeWhole(port, 1, 65535, 'port', operation);
  const hello = checkedHello(checked.hello, operation);
  const socket = await connected(host, port, timeoutMs);
  const session = new PeerSession(socket, checked, false);
  try {
    session.greet(hello);
    await session.begin();
    return session;
  } catch (error) {
    session.close();
    throw error;
  }
}

/** Listens for peers. Close it when it should accept no more; existing sessions stay open. */
export class PeerServer implements AsyncDisposable {
  /** @internal */
  readonly stays = STAYS;
  readonly #server: Server;
  readonly #visitors: Visitors;

  /** @internal */
  constructor(server: Server, visitors: Visitors) {
    this.#server = server;
    this.#visitors = visitors;
  }

  /** The TCP port. */
  get port(): number {
    const address = this.#server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  }

  /** Number of sessions: from the peer's hello until its connection is closed. */
  get sessions(): number {
    return this.#visitors.guests;
  }

  /** Stops listening, and ends connections whose peer has not said hello. Sessions go on. Calling it again does nothing. */
  async close(): Promise<void> {
    if (!this.#server.listening) return;
    this.#server.close();
    this.#visitors.sendStrangersAway();
  }

  /** Calls {@link close}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/**
 * Listens for peers on TCP.
 *
 * @param options.host Default: all addresses of this machine.
 * @param options.port Default 0: any free port.
 * @param options.maxSessions limit of sessions; further clients are rejected. Default 64.
 * @param options.maxPerAddress limit of sessions from one address (for IPv6: from one /64 network), so that one peer can not
 *   keep out all others. Default: three quarters of `maxSessions`.
 * @param serve called with each session once the peer's hello has arrived, within 5 seconds; it must
 *   {@link PeerSession.greet} the peer. If its promise rejects, the session is closed.
 * @throws DmaError EADDRINUSE, EACCES
 */
export async function listenForPeers(
  options: ExchangeOptions & {
    readonly host?: string;
    readonly port?: number;
    readonly maxSessions?: number;
    readonly maxPerAddress?: number;
  },
  serve: (session: PeerSession) => Promise<void> | void,
): Promise<PeerServer> {
  const operation = 'listenForPeers';
  const checked = optionsOf(options, LISTEN_OPTIONS, operation);
  checkLimits(checked, operation);
  const { host, port = 0, maxSessions = 64, timeoutMs = 10_000 } = checked;
  const { maxPerAddress = Math.ceil((maxSessions * 3) / 4) } = checked;
  if (host === '') throw invalid(operation, 'the name of the host is empty');
  mustBeWhole(port, 0, 65535, 'port', operation);
  mustBeWhole(maxSessions, 1, Number.MAX_SAFE_INTEGER, 'maxSessions', operation);
  mustBeWhole(maxPerAddress, 1, Number.MAX_SAFE_INTEGER, 'maxPerAddress', operation);
  mustBeFunction(serve, 'what serves peers', operation);
  const visitors = new Visitors(maxSessions, maxPerAddress);
  const server = createServer((socket) => {
    const visitor = visitors.arrives(socket, plain(socket.remoteAddress ?? ''));
    if (visitor === undefined) return;
    const session = new PeerSession(socket, checked, true);
    void (async () => {
      try {
        await session.begin(Math.min(timeoutMs, HELLO));
        if (!visitor.stays()) throw new DmaError({ code: 'EBUSY', operation: 'exchange', reason: 'too many sessions' });
        await serve(session);
      } catch {
        session.close();
      }
    })();
  });
  await new Promise<void>((resolve, reject) => {
    const failed = (cause: NodeJS.ErrnoException): void =>
      reject(new DmaError({ code: codeOf(cause), operation: 'listen', reason: cause.message, cause }));
    server.once('error', failed);
    server.listen(port, host, () => {
      server.off('error', failed);
      // A client could not be accepted for lack of a descriptor: close one that has sent no hello.
      server.on('error', () => visitors.makeRoom());
      resolve();
    });
  });
  return new PeerServer(server, visitors);
}

function connected(host: string, port: number, timeoutMs: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const fail = (code: ErrorCode, reason: string, cause?: unknown): void => {
      clearTimeout(timer);
      socket.destroy();
      reject(new DmaError({ code, operation: 'connect', reason, cause, hint: 'is the peer serving there?' }));
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
