/**
 * `anydma rdma serve`: memory that clients write to, read from or send messages to. Each client has memory and a queue pair of
 * its own, which go when it leaves, however it leaves: first the queue pair, then the peers' right, then the memory.
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
  /** bytes that all clients together may have */
  readonly memory: number;
}

/** How long messages that the client says it has sent may take to be seen, in milliseconds. */
const LATE = 5000;

/** What a client does to its memory here. */
const DOES = { write: 'writes to', read: 'reads from', send: 'sends to' } as const;

/** Serves until it is interrupted, or the device is gone. */
export async function serveRdma(options: RdmaServeOptions, context: CommandContext, platform: Platform): Promise<void> {
  const { output, signal } = context;
  const onNotice = (text: string): void => output.text(`Note: ${text}.`);
  await using eal = await Eal.start({ platform, origins: false, onForgotten: () => undefined, memory: { onNotice } });
  const opened = await openRdmaDevice(eal, options.device);
  const { device, rdma } = opened;
  const host = new Host(eal, opened, options, (line) => output.note(line));
  // Makes sure, before anybody comes, that there is such an address.
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

/** What a queue pair of this device is reached at. */
function probeAddress({ rdma }: OpenRdma, { gidIndex }: RdmaServeOptions): QueuePair['address'] {
  using pair = rdma.createQueuePair({ sends: 1, receives: 1, gidIndex });
  return pair.address;
}

function settled(): { readonly promise: Promise<void>; readonly resolve: () => void } {
  let resolve = (): void => undefined;
  const promise = new Promise<void>((done) => (resolve = done));
  return { promise, resolve };
}

/** Who serves the clients. */
class Host {
  readonly #eal: Eal;
  readonly #opened: OpenRdma;
  readonly #options: RdmaServeOptions;
  readonly #tell: (line: string) => void;
  readonly #sessions = new Map<PeerSession, Promise<void>>();
  /** bytes that clients have */
  #given = 0;

  constructor(eal: Eal, opened: OpenRdma, options: RdmaServeOptions, tell: (line: string) => void) {
    this.#eal = eal;
    this.#opened = opened;
    this.#options = options;
    this.#tell = tell;
  }

  /** Serves one client to its end. Never rejects. */
  serve(session: PeerSession): Promise<void> {
    const served = this.#serve(session).finally(() => this.#sessions.delete(session));
    this.#sessions.set(session, served);
    return served;
  }

  /** Sends all clients away; all that they had is given back then. */
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
      this.#tell(`${reason}; all that it had is taken back`);
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

  /** Gives the client what it wants, until it leaves. @returns why it left */
  async #attend(session: PeerSession, wish: Wish): Promise<DmaError> {
    await using memory = await memoryFor({ eal: this.#eal, ...this.#opened }, this.#options.mode, wish, session);
    using client = new Client(this.#opened, this.#options, memory, wish, session);
    await client.join();
    const { verb, size, block } = wish;
    this.#tell(`${session.peer} ${DOES[verb]} ${formatSize(size)}, ${formatSize(block)} at a time`);
    // Awaited here: what the client has goes when this returns.
    return await session.ended;
  }

  #checked(data: unknown): Wish {
    const wish = readWish(data);
    const { memory } = this.#options;
    const left = memory - this.#given;
    if (wish.size > left) {
      const reason = `it asks for ${formatSize(wish.size)}, and ${formatSize(left)} of ${formatSize(memory)} are left for clients`;
      throw new DmaError({
        code: 'ENOSPC',
        operation: 'serve',
        reason,
        hint: '--memory of "anydma rdma serve" says how much there is',
      });
    }
    const { maxRequests } = this.#opened.rdma.attributes;
    if (wish.depth > maxRequests)
      throw invalid('serve', `it wants ${wish.depth} requests under way; the device has ${maxRequests}`);
    return wish;
  }
}

/** Tells the client why, if it is still there to hear it. */
function refuse(session: PeerSession, error: DmaError): void {
  try {
    session.greet({ pairs: [], memory: [], data: refusal(error) });
  } catch {
    // It is gone.
  }
}

/** What a client works on: memory that it may reach by itself, or of messages what they are put into. */
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

/** One client, and what it has. */
class Client implements Disposable {
  readonly #session: PeerSession;
  readonly #wish: Wish;
  readonly #memory: Reached;
  /** What the client may reach by itself; of messages nothing. */
  readonly #shared: Shared | undefined;
  readonly #pair: QueuePair;
  #isLive = true;
  #isBusy = false;
  /** Messages that have come. */
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

  /** Tells the client where its memory is, and waits until both sides are connected. */
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

  /** Works on a piece, in a turn of its own: one client can not have this process to itself. */
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
          reason: `${this.#received} of ${piece.messages} messages have come`,
        });
      return work(piece);
    } finally {
      this.#isBusy = false;
    }
  }

  async #withdraw(): Promise<void> {
    if (this.#shared === undefined) throw invalid('withdraw', 'it has no memory of its own to reach');
    this.#isLive = false;
    await this.#shared.withdraw();
  }

  /** Posts receives for the blocks of the memory, one after the other and from the first again, as they are used up. */
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
        // The device, or the queue pair, is gone; what comes of that is told elsewhere.
        this.#session.close();
      }
    });
  }
}
