/** Moves packets between ports: the engine of `anydma forward`, after testpmd's. */
import { mustBe, mustBeMs, mustBeOneOf, mustBeWhole, optionsOf } from '../check.js';
import { DmaError, invalid } from '../errors.js';
import { now, setImmediate } from '../timers.js';
import { Generator } from './generator.js';
import { macBytes } from './mac-address.js';
import { MODE_NAMES, MODES, type Mode, type ModeContext, type ModeName } from './modes.js';
import { Packets } from './packets.js';
import type { Port } from './port.js';
import { STAYS } from '../stays.js';

/** Packets of a burst, unless the program says otherwise: as testpmd. */
export const BURST = 32;
const MOST_BURST = 512;
/** Turns without a packet after which the forwarder waits for one. */
const IDLE_TURNS = 64;
/** How long it polls before timers and sockets get their turn, in milliseconds. */
const SLICE_MS = 0.5;
/** How long it waits for a packet before it looks at everything again, in milliseconds. */
const WAIT_MS = 100;

/** How ports are put together: 0 with 1 and 2 with 3; each to the next; each to itself. */
export const TOPOLOGIES = ['paired', 'chained', 'loop'] as const;
/** The name of a way to put them together. */
export type Topology = (typeof TOPOLOGIES)[number];

/** What a forwarder does. */
export interface ForwarderOptions {
  /** Where packets are made, and what the ports were started with. */
  readonly packets: Packets;
  /** Default `io`. */
  readonly mode?: ModeName;
  /** Packets that are moved at once, 1 to 512. Default 32. */
  readonly burst?: number;
  /** Default `paired`; a last port without a partner sends to itself. */
  readonly topology?: Topology;
  /** By port: the station address behind it, for `mac`, `txonly` and `flowgen`. Default `02:00:00:00:00:` and the port's number. */
  readonly peers?: readonly string[];
  /** Bytes of each segment of the packets that it makes itself. Default one of 64. */
  readonly txPackets?: readonly number[];
  /** Different destinations of `flowgen`. Default 1,024. */
  readonly flows?: number;
  /** What happens to packets that a port does not take: `wait` keeps them, and receives no more from there; `drop`, as testpmd. Default `wait`. */
  readonly whenFull?: 'wait' | 'drop';
  /** Sees the first `count` packets of each burst, as they were received, and before they are sent; it must not keep or release them. */
  readonly observe?: (what: 'received' | 'sent', burst: Int32Array, count: number) => void;
}

const OPTIONS = {
  packets: 'object',
  mode: 'string',
  burst: 'number',
  topology: 'string',
  peers: 'list',
  txPackets: 'list',
  flows: 'number',
  whenFull: 'string',
  observe: 'function',
} as const;

/** What went through one stream. */
export interface StreamStatistics {
  /** Names of the ports. */
  readonly from: string;
  readonly to: string;
  readonly received: number;
  readonly sent: number;
  /** Packets that the sending port did not take. */
  readonly dropped: number;
}

/** Moves packets between ports, until it is told to end or nothing more can come. */
export class Forwarder {
  /** @internal */
  readonly stays = STAYS;
  readonly mode: ModeName;
  readonly #options: StreamOptions;
  #ports: Port[] = [];
  #streams: Stream[] = [];
  readonly #past: StreamStatistics[] = [];

  /** @throws DmaError EINVAL for options that can not be */
  constructor(options: ForwarderOptions) {
    const operation = 'forwarder';
    const given = optionsOf(options, OPTIONS, operation);
    const { packets, mode = 'io', burst = BURST, topology = 'paired', peers = [], flows = 1024 } = given;
    const { txPackets = [64], whenFull = 'wait', observe } = given;
    mustBe(packets, Packets, 'packets', operation);
    mustBeOneOf(mode, MODE_NAMES, 'mode', operation);
    mustBeOneOf(topology, TOPOLOGIES, 'topology', operation);
    mustBeOneOf(whenFull, ['wait', 'drop'], 'whenFull', operation);
    mustBeWhole(burst, 1, MOST_BURST, 'burst', operation);
    mustBeWhole(flows, 1, 65_536, 'flows', operation);
    for (const peer of peers) macBytes(peer, operation);
    this.mode = mode;
    this.#options = { packets, mode, burst, topology, peers, flows, txPackets, whenFull, observe };
  }

  /** The ports, in their order. */
  get ports(): readonly Port[] {
    return this.#ports;
  }

  /** Adds a port that was started; streams are put together anew. It may be called while it runs. @throws DmaError EINVAL */
  add(port: Port): void {
    const operation = 'forwarder.add';
    if (!port.started) throw invalid(operation, `the port is not started`, { device: port.name });
    if (this.#ports.includes(port)) throw invalid(operation, 'the port was added before', { device: port.name });
    this.#arrange([...this.#ports, port]);
  }

  /** Takes a port away: stop it afterwards. Does nothing if it is not there. */
  remove(port: Port): void {
    if (this.#ports.includes(port)) this.#arrange(this.#ports.filter((other) => other !== port));
  }

  #arrange(ports: Port[]): void {
    const partner = partners(ports.length, this.#options.topology);
    const streams = ports.map((from, i) => {
      const to = ports[partner[i] ?? i] ?? from;
      const kept = this.#streams.find((stream) => stream.from === from && stream.to === to);
      return kept ?? new Stream(this.#options, from, to, this.#peerOf(ports.indexOf(to)));
    });
    for (const stream of this.#streams)
      if (!streams.includes(stream)) {
        stream.end();
        const had = stream.statistics();
        if (had.received + had.sent + had.dropped > 0) this.#past.push(had);
      }
    this.#ports = ports;
    this.#streams = streams;
  }

  #peerOf(port: number): Uint8Array {
    const text = this.#options.peers[port];
    return text === undefined ? Uint8Array.of(2, 0, 0, 0, 0, port & 0xff) : macBytes(text);
  }

  /**
   * One burst of every stream.
   *
   * @returns how many packets were moved
   * @throws DmaError as `tx` and `rx` of the ports
   */
  turn(): number {
    let moved = 0;
    const streams = this.#streams;
    for (let i = 0; i < streams.length; i++) moved += streams[i]?.turn() ?? 0;
    return moved;
  }

  /**
   * Works until `signal` is aborted, the time is over, or no port can receive anything more. Timers and sockets go on
   * meanwhile. Packets that are kept for a port that was full are released at the end.
   *
   * @throws DmaError as `tx` and `rx` of the ports; ENODEV when all ports are lost
   */
  async run(options: { readonly signal?: AbortSignal; readonly durationMs?: number } = {}): Promise<void> {
    const operation = 'forwarder.run';
    const { signal, durationMs = Infinity } = optionsOf(options, { signal: 'signal', durationMs: 'number' }, operation);
    if (durationMs !== Infinity) mustBeMs(durationMs, 'durationMs', operation);
    const until = now() + durationMs;
    let idle = 0;
    try {
      while (signal?.aborted !== true && now() < until && !this.#isDone) {
        const slice = now() + SLICE_MS;
        do idle = this.turn() > 0 ? 0 : idle + 1;
        while (idle < IDLE_TURNS && now() < slice);
        if (idle < IDLE_TURNS || MODES[this.mode].generates) await new Promise((resolve) => setImmediate(resolve));
        else {
          await this.#wait(signal, Math.min(WAIT_MS, until - now()));
          idle = 0;
        }
      }
    } finally {
      for (const stream of this.#streams) stream.end();
    }
  }

  get #isDone(): boolean {
    const ports = this.#ports;
    const lost = ports.find((port) => port.lost !== undefined)?.lost;
    if (lost !== undefined && ports.every((port) => port.lost !== undefined))
      throw new DmaError({ code: 'ENODEV', operation: 'forwarder.run', reason: 'all ports are lost', cause: lost });
    return !MODES[this.mode].generates && this.#streams.every((stream) => stream.isDone);
  }

  /** Until a port may have packets. */
  async #wait(signal: AbortSignal | undefined, timeoutMs: number): Promise<void> {
    const over = new AbortController();
    const either = signal === undefined ? over.signal : AbortSignal.any([signal, over.signal]);
    const waits = this.#ports
      .filter((port) => !port.ended)
      .map((port) => port.readable(0, { signal: either, timeoutMs: Math.max(0, timeoutMs) }).catch(() => undefined));
    await Promise.race([...waits, ...(waits.length === 0 ? [new Promise((resolve) => setImmediate(resolve))] : [])]);
    over.abort();
    await Promise.all(waits);
  }

  /** What went through each stream; also of those that are no more. */
  statistics(): readonly StreamStatistics[] {
    return [...this.#past, ...this.#streams.map((stream) => stream.statistics())];
  }
}

/** By port: the one that it sends to. */
function partners(ports: number, topology: Topology): number[] {
  return Array.from({ length: ports }, (_, port) => {
    if (topology === 'loop') return port;
    if (topology === 'chained') return (port + 1) % ports;
    const other = port ^ 1;
    return other < ports ? other : port;
  });
}

/** Every choice made. */
type StreamOptions = Required<Omit<ForwarderOptions, 'observe'>> & Pick<ForwarderOptions, 'observe'>;

/** From one port to another. */
class Stream {
  readonly from: Port;
  readonly to: Port;
  readonly #packets: Packets;
  readonly #mode: Mode;
  readonly #context: ModeContext;
  readonly #generator: Generator | undefined;
  readonly #burst: Int32Array;
  readonly #waits: boolean;
  readonly #observe: ForwarderOptions['observe'];
  /** Packets in `burst` that the port did not take yet. */
  #kept = 0;
  #received = 0;
  #sent = 0;
  #dropped = 0;

  constructor(options: StreamOptions, from: Port, to: Port, peer: Uint8Array) {
    const { packets, mode, burst, txPackets, flows, whenFull } = options;
    this.from = from;
    this.to = to;
    this.#packets = packets;
    this.#mode = MODES[mode];
    this.#context = { packets, from: macBytes(to.mac), to: peer, offloads: to.limits.offloads };
    this.#burst = new Int32Array(burst);
    this.#waits = whenFull === 'wait';
    this.#observe = options.observe;
    if (this.#mode.generates)
      this.#generator = new Generator(packets, {
        segments: txPackets,
        flows: mode === 'flowgen' ? flows : 1,
        from: this.#context.from,
        to: peer,
      });
  }

  /** Nothing more will come, and nothing is kept. */
  get isDone(): boolean {
    return this.#kept === 0 && this.from.ended;
  }

  turn(): number {
    if (this.#kept > 0) {
      const sent = this.#send(this.#kept);
      if (this.#kept > 0) return sent;
    }
    const burst = this.#burst;
    let moved = 0;
    let count = 0;
    if (this.#mode.receives) {
      moved = this.from.rx(0, burst);
      this.#received += moved;
      if (moved > 0) {
        this.#observe?.('received', burst, moved);
        count = this.#mode.change(this.#context, burst, moved);
      }
    }
    if (this.#generator !== undefined) count = this.#generator.make(burst, burst.length);
    if (count === 0) return moved;
    this.#observe?.('sent', burst, count);
    return Math.max(moved, this.#send(count));
  }

  /** Sends the first `count` packets of the burst; those that are not taken are kept, or dropped. */
  #send(count: number): number {
    const burst = this.#burst;
    // If the port throws, they are released at the end.
    this.#kept = count;
    const sent = this.to.tx(0, burst, count);
    this.#sent += sent;
    this.#kept = count - sent;
    if (sent === count) return sent;
    burst.copyWithin(0, sent, count);
    // A port that is lost never takes them.
    if (!this.#waits || this.to.lost !== undefined) this.#drop();
    return sent;
  }

  #drop(): void {
    this.#packets.release(this.#burst, this.#kept);
    this.#dropped += this.#kept;
    this.#kept = 0;
  }

  /** Releases what it kept. */
  end(): void {
    if (this.#kept > 0) this.#drop();
  }

  statistics(): StreamStatistics {
    return {
      from: this.from.name,
      to: this.to.name,
      received: this.#received,
      sent: this.#sent,
      dropped: this.#dropped,
    };
  }
}
