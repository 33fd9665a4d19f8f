/** The client commands `anydma rdma write`, `read` and `send`. */
import { randomInt } from 'node:crypto';
import { DmaError, Eal, formatSize, hex, isDmaError, type Device } from '../../index.js';
import type { Platform } from '../../entry/driver.js';
import { connectToPeer, type AnnouncedMemory, type PeerSession, type QueuePair } from '../../entry/rdma.js';
import { KiB } from '../../units.js';
import type { CommandContext } from '../shared/command.js';
import { takeMemory, type Mode, type Reached } from '../demo/modes.js';
import type { Output } from '../shared/output.js';
import { openRdmaDevice } from './device.js';
import { fillPattern, wrongAt } from './pattern.js';
import { MOST, PATIENCE, refusalOf, type Verb } from './protocol.js';
import { LOCAL_ACCESS, Pump } from './pump.js';
import { formatTime } from '../shared/format-time.js';

/** The address of a server. */
export interface Place {
  readonly host: string;
  readonly port: number;
}

export interface RdmaMoveOptions {
  readonly to: Place;
  readonly device?: string;
  readonly gidIndex?: number;
  readonly mode: Mode;
  /** Bytes of memory. */
  readonly size: number;
  /** Bytes of a request. */
  readonly block: number;
  readonly depth: number;
  readonly iterations: number;
  readonly afterUnmap?: boolean;
}

/** Times of single requests, as in the document; in microseconds. */
interface Latency {
  readonly requests: number;
  readonly least: number;
  readonly median: number;
  readonly average: number;
  readonly percentile99: number;
}

/** The result of one more access after the server had unmapped its memory. */
interface AfterUnmap {
  readonly refused: boolean;
  readonly code?: string;
  readonly reason?: string;
  readonly explain?: string;
}

/** Latency is measured for blocks up to this size, in bytes. */
const SMALL = 64 * KiB;
/** The number of requests for a latency measurement. */
const SAMPLES = 1000;
/** Most bytes of the access that must be refused. */
const LATE_ACCESS = 4 * KiB;

/** How much later the end of a server's session can arrive than the end of its queue pair, in milliseconds. */
const PARTING = 500;

/** What each command does, for people. */
const DID: Readonly<Record<Verb, string>> = { write: 'written to', read: 'read from', send: 'sent to' };

/** Moves data between memory of this process and memory of the server, verifies it, and prints the speed. */
export async function moveRdma(
  verb: Verb,
  options: RdmaMoveOptions,
  context: CommandContext,
  platform: Platform,
): Promise<void> {
  const { output, signal } = context;
  const { size, depth, iterations, mode, gidIndex } = options;
  const plan: Plan = { verb, size, block: Math.min(options.block, size, MOST.block), depth, iterations };
  const onNotice = (text: string): void => output.text(`Note: ${text}.`);
  await using eal = await Eal.start({ platform, origins: false, onForgotten: () => undefined, memory: { onNotice } });
  const { device, rdma } = await openRdmaDevice(eal, options.device);
  const label = `${formatSize(size)} of memory`;
  await using memory = await takeMemory(mode, { eal, device, signal }, size, { label, access: LOCAL_ACCESS[verb] });
  // The server needs no access to memory here.
  using pair = rdma.createQueuePair({ sends: depth, receives: 1, gidIndex, remote: 'none' });
  using session = await connectToPeer({
    ...options.to,
    timeoutMs: PATIENCE,
    hello: { pairs: [pair.address], memory: [], data: { verb, size, block: plan.block, depth } },
  });
  const refused = refusalOf(session.hello.data, session.peer);
  if (refused !== undefined) throw refused;
  const remote = remoteMemory(verb, session, size);
  await session.join(pair);
  output.text(`${output.strong(device.name)} (${pair.address.gid}) is connected with ${session.peer}.`);

  const means: Means = { device, memory, pair, remote, session };
  const transfer = new Transfer(plan, means, { ...context, signal: endOf(session, signal) });
  const result = await transfer.run();
  const after = options.afterUnmap === true ? await transfer.tryAfterUnmap() : undefined;
  signal.throwIfAborted();

  output.text();
  printResult(output, { ...plan, mode }, result);
  if (after !== undefined) printAfter(output, after);
  output.document(documentOf({ ...plan, mode }, rdma.name, means, result, after));
  if (!result.verified) output.complain(notVerified(verb, device, result.wrongAt));
  if (after?.refused === false) output.complain(notRefused(device));
}

/** Aborted when the command is, and when the server leaves. */
function endOf(session: PeerSession, signal: AbortSignal): AbortSignal {
  const stop = new AbortController();
  signal.addEventListener('abort', () => stop.abort(signal.reason), { once: true });
  void session.ended.then((error) => stop.abort(error));
  return stop.signal;
}

/** The address of the server's memory. @throws DmaError EPROTO if the server sends none, or it is too small */
function remoteMemory(verb: Verb, { hello, peer }: PeerSession, size: number): AnnouncedMemory | undefined {
  const [memory] = hello.memory;
  if (verb === 'send') return undefined;
  if (memory !== undefined && memory.length >= size) return memory;
  throw new DmaError({
    code: 'EPROTO',
    operation: 'rdma',
    reason: `${peer} did not offer memory of ${formatSize(size)}`,
  });
}

/** The result of a transfer. */
interface Result {
  readonly verified: boolean;
  /** The first wrong byte; -1 if there is none. */
  readonly wrongAt: number;
  readonly seconds: number;
  /** 10^9 bytes per second. */
  readonly gigabytesPerSecond: number;
  readonly requestsPerSecond: number;
  /** Only for small requests. */
  readonly latency: Latency | undefined;
}

/** The parameters of a transfer. */
interface Plan {
  readonly verb: Verb;
  readonly size: number;
  readonly block: number;
  readonly depth: number;
  readonly iterations: number;
}

/** What a transfer needs. */
interface Means {
  readonly device: Device;
  readonly memory: Reached;
  readonly pair: QueuePair;
  readonly remote: AnnouncedMemory | undefined;
  readonly session: PeerSession;
}

/** One transfer over a connected queue pair. */
class Transfer {
  readonly #plan: Plan;
  readonly #means: Means;
  readonly #context: CommandContext;
  readonly #pump: Pump;
  readonly #seed = randomInt(2 ** 32);

  /** @param context its signal is also aborted when the server leaves */
  constructor(plan: Plan, means: Means, context: CommandContext) {
    this.#plan = plan;
    this.#means = means;
    this.#context = context;
    const { memory, pair, remote } = means;
    this.#pump = new Pump(pair, { ...plan, local: { va: memory.va, length: plan.size }, remote });
  }

  async run(): Promise<Result> {
    const { verb, size, block, iterations } = this.#plan;
    const { output, signal } = this.#context;
    const isRead = verb === 'read';
    if (isRead) await this.#pieces('filling', (offset, length) => this.#ask('fill', offset, length));
    else
      await this.#pieces('filling', (offset, length) => fillPattern(this.#bytes(offset, length), this.#seed, offset));

    const before = this.#pump.requests;
    let milliseconds: number;
    {
      using progress = output.progress(verb, size * iterations);
      const started = performance.now();
      await this.#explained(
        this.#pump.run(iterations, { onProgress: ({ doneBytes }) => progress.update(doneBytes), signal }),
      );
      milliseconds = performance.now() - started;
    }
    const requests = this.#pump.requests - before;

    let wrong = -1;
    await this.#pieces('checking', async (offset, length) => {
      if (wrong >= 0) return;
      wrong = isRead
        ? wrongAt(this.#bytes(offset, length), this.#seed, offset)
        : Number(await this.#ask('check', offset, length));
    });
    const latency =
      block <= SMALL ? latencyOf(await this.#explained(this.#pump.latencies(SAMPLES, { signal }))) : undefined;
    return {
      verified: wrong === -1,
      wrongAt: wrong,
      seconds: Number((milliseconds / 1000).toPrecision(4)),
      gigabytesPerSecond: Number(((size * iterations) / milliseconds / 1e6).toPrecision(4)),
      requestsPerSecond: Math.round((requests / milliseconds) * 1000),
      latency,
    };
  }

  /** Lets the server unmap its memory, and accesses it once more. */
  async tryAfterUnmap(): Promise<AfterUnmap> {
    const { verb, size } = this.#plan;
    const { memory, remote, pair, session } = this.#means;
    if (remote === undefined) return { refused: false };
    await session.ask('withdraw', {});
    const local = { va: memory.va, length: Math.min(size, LATE_ACCESS) };
    try {
      if (verb === 'read') await pair.read({ local, remote });
      else await pair.write({ local, remote });
      return { refused: false };
    } catch (error) {
      if (!isDmaError(error, 'EACCES')) throw error;
      return { refused: true, code: error.code, reason: error.reason, explain: error.hint };
    }
  }

  #bytes(offset: number, length: number): Uint8Array {
    return this.#means.memory.bytes(offset, length);
  }

  #ask(name: 'fill' | 'check', offset: number, length: number): Promise<unknown> {
    const messages = this.#plan.verb === 'send' ? this.#pump.requests : 0;
    return this.#means.session.ask(name, { seed: this.#seed, offset, length, messages });
  }

  /** Processes the memory piece by piece, so that signals are handled and progress is shown. */
  async #pieces(what: string, work: (offset: number, length: number) => unknown): Promise<void> {
    const { size } = this.#plan;
    const { output, signal } = this.#context;
    using progress = output.progress(what, size);
    for (let offset = 0; offset < size; offset += MOST.piece) {
      await new Promise((resolve) => setImmediate(resolve));
      signal.throwIfAborted();
      const length = Math.min(MOST.piece, size - offset);
      await work(offset, length);
      progress.update(offset + length);
    }
  }

  /** Adds to a request's error what the server knows about the memory, if the server refused it. */
  async #explained<T>(work: Promise<T>): Promise<T> {
    try {
      return await work;
    } catch (error) {
      const { failed } = this.#pump;
      if (failed === undefined || !isDmaError(error)) throw error;
      const { device, memory, remote, session } = this.#means;
      const { offset, length, isByPeer } = failed;
      const named = error.with({ device: device.name });
      if (error.code === 'ETIMEDOUT') {
        // If the server left, its session ends a little later.
        const late = new Promise<undefined>((resolve) => setTimeout(resolve, PARTING, undefined));
        const gone = await Promise.race([session.ended, late]);
        if (gone !== undefined) throw gone.with({ cause: named });
      }
      if (!isByPeer || remote === undefined) {
        if (error.code !== 'EACCES') throw named;
        throw named.with({ hint: device.explain(memory.iova + offset, length).text });
      }
      const access = this.#plan.verb === 'read' ? 'read' : 'write';
      const part = { address: remote.address + offset, length, rkey: remote.rkey };
      const text = await session.explain(part, access).catch(() => undefined);
      throw text === undefined ? named : named.with({ hint: `the server says: ${text}` });
    }
  }
}

/** The command's document. */
function documentOf(
  { verb, mode, size, block, depth, iterations }: Plan & { readonly mode: Mode },
  device: string,
  { memory, pair, remote, session }: Means,
  { verified, seconds, gigabytesPerSecond, requestsPerSecond, latency }: Result,
  after: AfterUnmap | undefined,
): Parameters<Output['document']>[0] {
  return {
    ok: verified && after?.refused !== false,
    verb,
    device,
    gid: pair.address.gid,
    peer: session.peer,
    ...{ mode, size, block, depth, iterations },
    local: {
      va: hex(memory.va),
      length: memory.length,
      source: memory.source,
      mapMicroseconds: memory.mapMicroseconds,
    },
    remote: remote && { address: hex(remote.address), length: remote.length, rkey: hex(remote.rkey) },
    bytesMoved: size * iterations,
    ...{ seconds, gigabytesPerSecond, requestsPerSecond, latency, verified },
    afterUnmap: after,
  };
}

function latencyOf(times: Float64Array): Latency {
  const sorted = times.slice().sort();
  const at = (part: number): number => tenths(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))]);
  const average = sorted.reduce((sum, each) => sum + each, 0) / sorted.length;
  return { requests: sorted.length, least: at(0), median: at(0.5), average: tenths(average), percentile99: at(0.99) };
}

function tenths(value: number): number {
  return Math.round(value * 10) / 10;
}

function printResult(output: Output, plan: Plan & { readonly mode: Mode }, result: Result): void {
  const { verb, mode, size, block, depth, iterations } = plan;
  const { gigabytesPerSecond, requestsPerSecond, verified, latency, seconds } = result;
  output.table(
    [
      { head: 'VERB' },
      { head: 'MODE' },
      { head: 'MEMORY', align: 'right' },
      { head: 'BLOCK', align: 'right' },
      { head: 'AT ONCE', align: 'right' },
      { head: 'BYTES MOVED', align: 'right' },
      { head: 'SECONDS', align: 'right' },
      { head: 'GB/s', align: 'right' },
      { head: 'REQUESTS/s', align: 'right' },
      { head: 'VERIFIED' },
    ],
    [
      [
        verb,
        mode,
        formatSize(size),
        formatSize(block),
        String(depth),
        String(size * iterations),
        String(seconds),
        gigabytesPerSecond >= 0.1 ? gigabytesPerSecond.toFixed(2) : String(Number(gigabytesPerSecond.toPrecision(2))),
        String(requestsPerSecond),
        verified ? output.good('yes') : output.bad('NO'),
      ],
    ],
  );
  output.text();
  if (verified)
    output.text(
      verb === 'read'
        ? 'The data that was read is the data that the server had written.'
        : `The server has verified all data that was ${DID[verb]} it.`,
    );
  if (latency === undefined) return;
  const { requests, least, median, average, percentile99 } = latency;
  const [a, b, c, d] = [least, median, average, percentile99].map(formatTime);
  output.text(`Latency of ${requests} single requests: least ${a}, median ${b}, average ${c}, 99% within ${d}.`);
}

function printAfter(output: Output, { refused, reason, explain }: AfterUnmap): void {
  const verdict = refused ? output.good('was refused') : output.bad('was NOT refused');
  output.text();
  output.text(
    `After the server had unmapped its memory, the next access ${verdict}${reason === undefined ? '' : `: ${reason}`}`,
  );
  if (explain !== undefined) output.text(`  ${explain}`);
}

function notVerified(verb: Verb, device: Device, at: number): DmaError {
  return new DmaError({
    code: 'EIO',
    operation: verb,
    device: device.name,
    reason: `byte ${at} of the received data is wrong`,
    hint: 'all requests were acknowledged, so a device, or the path to memory on one side, is broken',
  });
}

function notRefused(device: Device): DmaError {
  const reason = "the server's memory can still be used after it was unmapped";
  return new DmaError({ code: 'EIO', operation: 'rdma', device: device.name, reason });
}
