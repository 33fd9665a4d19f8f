/**
 * `anydma rdma serve`: memory that clients write to, read from or send messages to. Each client has its own memory and
 * queue pair. However the client leaves, first the queue pair is closed, then the peer's right ends, then the memory is
 * freed.
 */
import { invalid } from '../../errors.js';
import { DmaError, Eal, formatSize, isDmaError } from '../../index.js';
import type { Platform } from '../../entry/driver.js';
import { listenForPeers, type PeerSession, type QueuePair } from '../../entry/rdma.js';
import { IBV_WC_SUCCESS } from '../../platform/rdma/abi/requests.js';
import type { CommandContext } from '../shared/command.js';
import { takeMemory, type Mode, type Reached } from '../demo/modes.js';
import { openRdmaDevice, type OpenRdma } from './device.js';
import { shareMemory, type Shared } from './memory.js';
import { fillPattern, wrongAt } from './pattern.js';
import { PATIENCE, readPiece, readWish, refusal, type Piece, type Wish } from './protocol.js';

export interface RdmaServeOptions {
  readonly device?: string;
  readonly gidIndex?: number;
  readonly mode: Mode;
  readonly host?: string;
  readonly port: number;
  /** Most bytes of all clients together. */
  readonly memory: number;
}

/** How long to wait for messages that the client says it has sent, in milliseconds. */
const LATE = 5000;

/** What a client does with its memory here. */
const DOES = { write: 'writes to', read: 'reads from', send: 'sends to' } as const;

/** Serves until it is interrupted, or the device is gone. */
export async function serveRdma(options: RdmaServeOptions, context: CommandContext, platform: Platform): Promise<void> {
  const { output, signal } = context;
  const onNotice = (text: string): void => output.text(`Note: ${text}.`);
  await using eal = await Eal.start({ platform, origins: false, onForgotten: () => undefined, memory: { onNotice } });
  const opened = await openRdmaDevice(eal, options.device);
  const { device, rdma } = opened;
  const host = new Host(eal, opened, options, (line) => output.note(line));
  // Fails before the first client if there is no such address.
  const { gid } = probeAddress(opened, options);

  const { promise: ended, resolve: end } = settled();
  let failure: DmaError | undefined;
  eal.events.on('failed', (_device, error) => output.note(error.message));
  eal.events.on('lost', (_device, error) => {
    failure = error;
    end();
  });
  signal.addEventListener('abort', end, { once: true });
  if (signal.aborted) end();
  const server = await listenForPeers({ host: options.host, port: options.port, timeoutMs: PATIENCE }, (session) =>
    host.serve(session),
  );
  try {
    const where = options.host === undefined ? `port ${server.port}` : `${options.host}, port ${server.port}`;
    const process_ = `served by process ${process.pid} until it is interrupted (Ctrl-C)`;
    output.text(`${device.name} is at ${where}, ${process_}`);
    output.line({ ready: true, device: rdma.name, gid, host: options.host, port: server.port, pid: process.pid });
    await ended;
  } finally {
    await server.close();
    await host.close();
  }
  if (failure !== undefined) throw failure;
}

/** The address of this device's queue pairs. */
function probeAddress({ rdma }: OpenRdma, { gidIndex }: RdmaServeOptions): QueuePair['address'] {
  using pair = rdma.createQueuePair({ sends: 1, receives: 1, gidIndex });
  return pair.address;
}

function settled(): { readonly promise: Promise<void>; readonly resolve: () => void } {
  let resolve = (): void => undefined;
  const promise = new Promise<void>((done) => (resolve = done));
  return { promise, resolve };
}

/** Serves the clients. */
class Host {
  readonly #eal: Eal;
  readonly #opened: OpenRdma;
  readonly #options: RdmaServeOptions;
  readonly #tell: (line: string) => void;
  readonly #sessions = new Map<PeerSession, Promise<void>>();
  /** Bytes in use by clients. */
  #given = 0;

  constructor(eal: Eal, opened: OpenRdma, options: RdmaServeOptions, tell: (line: string) => void) {
    this.#eal = eal;
    this.#opened = opened;
    this.#options = options;
    this.#tell = tell;
  }

  /** Serves one client until it leaves. Never rejects. */
  serve(session: PeerSession): Promise<void> {
    const served = this.#serve(session).finally(() => this.#sessions.delete(session));
    this.#sessions.set(session, served);
    return served;
  }

  /** Ends all sessions; everything that clients had is then freed. */
  async close(): Promise<void> {
    const all = [...this.#sessions];
    for (const [session] of all) session.close();
    await Promise.all(all.map(([, served]) => served));
  }

  async #serve(session: PeerSession): Promise<void> {
    let size = 0;
    try {
      const wish = this.#checked(session.hello.data);
      size = wish.size;
      this.#given += size;
      const { reason } = await this.#attend(session, wish);
      this.#tell(`${reason}; all its resources are released`);
    } catch (error) {
      const told = isDmaError(error)
        ? error
        : new DmaError({ code: 'EIO', operation: 'serve', reason: String(error), cause: error });
      this.#tell(`${session.peer}: ${told.message}`);
      refuse(session, told);
    } finally {
      session.close();
      this.#given -= size;
    }
  }

  /** Gives the client what it asks for, until it leaves. @returns why it left */
  async #attend(session: PeerSession, wish: Wish): Promise<DmaError> {
    await using memory = await memoryFor({ eal: this.#eal, ...this.#opened }, this.#options.mode, wish, session);
    using client = new Client(this.#opened, this.#options, memory, wish, session);
    await client.join();
    const { verb, size, block } = wish;
    this.#tell(`${session.peer} ${DOES[verb]} ${formatSize(size)}, ${formatSize(block)} at a time`);
    // Awaited here, because the client's resources are released when this returns.
    return await session.ended;
  }

  #checked(data: unknown): Wish {
    const wish = readWish(data);
    const { memory } = this.#options;
    const left = memory - this.#given;
    if (wish.size > left) {
      const reason = `the client asks for ${formatSize(wish.size)}, and ${formatSize(left)} of ${formatSize(memory)} are left for clients`;
      throw new DmaError({
        code: 'ENOSPC',
        operation: 'serve',
        reason,
        hint: 'the option --memory of "anydma rdma serve" sets the limit',
      });
    }
    const { maxRequests } = this.#opened.rdma.attributes;
    if (wish.depth > maxRequests)
      throw invalid(
        'serve',
        `the client asks for ${wish.depth} requests in progress; the device supports ${maxRequests}`,
      );
    return wish;
  }
}

/** Sends the client the reason, if it is still connected. */
function refuse(session: PeerSession, error: DmaError): void {
  try {
    session.greet({ pairs: [], memory: [], data: refusal(error) });
  } catch {
    // The client is gone.
  }
}

/** The memory of a client: memory that it can access remotely, or the receive buffers for its messages. */
async function memoryFor(
  reacher: OpenRdma & { readonly eal: Eal },
  mode: Mode,
  { verb, size }: Wish,
  { peer }: PeerSession,
): Promise<Reached | Shared> {
  const label = `memory for ${peer}`;
  if (verb === 'send') return takeMemory(mode, reacher, size, { label, access: 'write' });
  return shareMemory(mode, reacher, size, { label, remote: verb });
}

/** One client, and its resources. */
class Client implements Disposable {
  readonly #session: PeerSession;
  readonly #wish: Wish;
  readonly #memory: Reached;
  /** The memory that the client can access remotely; none for messages. */
  readonly #shared: Shared | undefined;
  readonly #pair: QueuePair;
  #isLive = true;
  #isBusy = false;
  /** The number of messages received. */
  #received = 0;

  constructor(
    { rdma }: OpenRdma,
    { gidIndex }: RdmaServeOptions,
    memory: Reached | Shared,
    wish: Wish,
    session: PeerSession,
  ) {
    const { verb, depth } = wish;
    this.#session = session;
    this.#wish = wish;
    this.#shared = 'memory' in memory ? memory : undefined;
    this.#memory = 'memory' in memory ? memory.memory : memory;
    const remote = verb === 'send' ? 'none' : verb;
    this.#pair = rdma.createQueuePair({ sends: 1, receives: verb === 'send' ? depth : 1, gidIndex, remote });
    session.explainFrom(rdma);
    session.answer('fill', (question) =>
      this.#piece(question, ({ seed, offset, length }) => fillPattern(this.#bytes(offset, length), seed, offset)),
    );
    session.answer('check', (question) =>
      this.#piece(question, ({ seed, offset, length }) => wrongAt(this.#bytes(offset, length), seed, offset)),
    );
    session.answer('withdraw', () => this.#withdraw());
  }

  /** Sends the client the address of its memory, and waits until both sides are connected. */
  async join(): Promise<void> {
    const { verb, size } = this.#wish;
    const { va, mode } = this.#memory;
    if (verb === 'send') this.#receiveAll();
    const memory = this.#shared === undefined ? [] : [{ address: va, length: size, rkey: this.#shared.rkey }];
    this.#session.greet({ pairs: [this.#pair.address], memory, data: { mode } });
    await this.#session.join(this.#pair);
  }

  [Symbol.dispose](): void {
    this.#isLive = false;
    this.#pair.close();
  }

  #bytes(offset: number, length: number): Uint8Array {
    return this.#memory.bytes(offset, length);
  }

  /** Processes a piece in its own turn of the event loop, so that one client can not block the others. */
  async #piece<T>(question: unknown, work: (piece: Piece) => T): Promise<T> {
    const piece = readPiece(question, this.#wish.size);
    if (this.#isBusy) throw new DmaError({ code: 'EBUSY', operation: 'serve', reason: 'one piece at a time' });
    this.#isBusy = true;
    try {
      const deadline = performance.now() + LATE;
      while (this.#received < piece.messages && performance.now() < deadline && this.#isLive)
        await new Promise((resolve) => setTimeout(resolve, 1));
      await new Promise((resolve) => setImmediate(resolve));
      if (!this.#isLive) throw new DmaError({ code: 'ECANCELED', operation: 'serve', reason: 'the session is over' });
      if (this.#received < piece.messages)
        throw new DmaError({
          code: 'EIO',
          operation: 'serve',
          reason: `${this.#received} of ${piece.messages} messages have arrived`,
        });
      return work(piece);
    } finally {
      this.#isBusy = false;
    }
  }

  async #withdraw(): Promise<void> {
    if (this.#shared === undefined) throw invalid('withdraw', 'the client has no memory for remote access');
    this.#isLive = false;
    await this.#shared.withdraw();
  }

  /** Posts receives for the blocks of the memory, in order and cyclically, as they are used up. */
  #receiveAll(): void {
    const { depth, block, size } = this.#wish;
    const pair = this.#pair;
    const requests = pair.receiveRequests(depth, 1);
    const blocks = Math.ceil(size / block);
    const { va } = this.#memory;
    const lkey = pair.keys.keyOf(va, size);
    let posted = 0;
    const post = (count: number): void => {
      for (let number = posted; number < posted + count; number++) {
        const offset = (number % blocks) * block;
        requests.setLocal(number % depth, va + offset, Math.min(block, size - offset), lkey);
      }
      for (const end = posted + count; posted < end;)
        posted += pair.postReceives(requests, posted % depth, end - posted);
    };
    post(depth);
    pair.receiveCompletions.onCompletions((completions, count) => {
      try {
        for (let index = 0; index < count; index++) {
          const status = completions.status(index);
          if (status === IBV_WC_SUCCESS) continue;
          this.#session.close();
          return;
        }
        this.#received += count;
        post(count);
      } catch {
        // The device or the queue pair is gone; that is reported elsewhere.
        this.#session.close();
      }
    });
  }
}
