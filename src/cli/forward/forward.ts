/** `anydma forward`: moves packets between Ethernet ports, as DPDK's testpmd. */
import { constants, writeSync } from 'node:fs';
import { InvalidArgumentError, Option } from 'commander';
import { closeCapture, openCapture } from '../../drivers/ports/capture-files.js';
import { invalid } from '../../errors.js';
import { fromNode } from '../../platform/linux/node-errors.js';
import {
  CaptureWriter,
  captureKindOf,
  Forwarder,
  LINK_ETHERNET,
  MODE_NAMES,
  type Packets,
  TOPOLOGIES,
  writePacket,
  type ModeName,
  type PortStatistics,
  type StreamStatistics,
  type Topology,
} from '../../entry/net.js';
import { MODES } from '../../net/modes.js';
import { iommuOption } from '../iommu.js';
import { paragraphs, type CommandContext, type CommandSpec } from '../shared/command.js';
import { integerValue, sizeValue } from '../shared/values.js';
import { MEMORY_KIND_NAMES, MEMORY_KINDS } from './packet-memory.js';
import { openPlace, type PlaceOptions } from './place.js';
import { rateRow, RATE_COLUMNS, Rates } from './rates.js';

interface ForwardOptions extends PlaceOptions {
  readonly mode: ModeName;
  readonly topology: Topology;
  readonly burst: number;
  readonly rxd?: number;
  readonly txd?: number;
  readonly totalNumMbufs?: number;
  readonly txpkts: readonly number[];
  readonly maxPktLen: number;
  readonly ethPeer?: readonly (readonly [number, string])[];
  readonly flows: number;
  readonly drop?: boolean;
  readonly statsPeriod: number;
  readonly duration?: number;
  readonly capture?: string;
}

/** Bytes of the check sum of a frame, which testpmd's lengths include. */
const FCS = 4;
/** Elements for what is under way besides the queues: bursts, and the pool's cache. */
const SPARE = 1024;
const QUEUE = 512;

export const forward: CommandSpec<ForwardOptions> = {
  name: 'forward',
  summary: "move packets between Ethernet ports, as DPDK's testpmd",
  description: paragraphs(
    `Takes packets from ports and gives them to others: the first to the second and back, the third to the fourth, and so on; a last one
    without a partner to itself. Ports are Ethernet adapters (pci:...), and software: vdev:pcap0,rx=FILE,tx=FILE reads and writes
    captures, vdev:null0 throws away, vdev:tap0 is an interface of the kernel, vdev:ring0 is connected with another program: one is started with --name, the other one with
    --attach, and each has an end of vdev:ring0. Packets pass between them without a copy.`,
    `It ends when nothing more can come (all captures have ended), after --duration, or by Ctrl-C, and gives everything back.`,
    `Modes: ${MODE_NAMES.map((name) => `${name} ${MODES[name].about}`).join('; ')}.`,
    `Kinds of memory: ${MEMORY_KIND_NAMES.map((name) => `${name}: ${MEMORY_KINDS[name]}`).join('; ')}.`,
  ),
  options: (command) =>
    command
      .requiredOption(
        '--port <name>',
        'a port; give it again for each one',
        (text: string, before: readonly string[] | undefined) => [...(before ?? []), text],
      )
      .addOption(new Option('--mode <mode>', 'what is done with packets').choices(MODE_NAMES).default('io'))
      .addOption(new Option('--memory <kind>', 'where packets are').choices(MEMORY_KIND_NAMES).default('owned'))
      .addOption(new Option('--topology <kind>', 'who sends to whom').choices(TOPOLOGIES).default('paired'))
      .addOption(iommuOption())
      .option('--burst <n>', 'packets that are moved at once', integerValue(1, 512), 32)
      .option('--rxd <n>', 'descriptors of each receive queue', integerValue(1, 65_536))
      .option('--txd <n>', 'descriptors of each transmit queue', integerValue(1, 65_536))
      .option('--mbuf-size <bytes>', 'bytes of a segment, with 128 of headroom', sizeValue, 2176)
      .option('--total-num-mbufs <n>', 'segments of the pool', integerValue(2, 2 ** 24))
      .option('--txpkts <lengths>', 'bytes of the segments of packets that are made: 64, or 64,128', lengthsValue, [64])
      .option('--max-pkt-len <bytes>', 'bytes of the largest frame, with its check sum', integerValue(64, 65_535), 1518)
      .option('--eth-peer <port,address>', 'the station behind a port; can be given again', peerValue)
      .option('--flows <n>', 'flowgen: number of flows', integerValue(1, 65_536), 1024)
      .option('--drop', 'drop what a port does not take, as testpmd; default: wait for it')
      .option('--stats-period <seconds>', 'how often the live table is drawn', integerValue(1, 3600), 1)
      .option('--duration <seconds>', 'end after this time', integerValue(1, 86_400 * 365))
      .option('--name <name>', 'let other programs have packets and the other ends of ring ports, by --attach')
      .option('--attach <name>', 'use the packets of the program with this name')
      .option('--capture <path>', 'write what passes to a capture: .pcap, else pcapng'),
  examples: [
    ['anydma forward --port vdev:pcap0,rx=in.pcapng,tx=out.pcapng --mode macswap', 'a capture, changed; no hardware'],
    ['anydma forward --port pci:0000:03:00.0 --port pci:0000:03:00.1', 'two adapters, each to the other'],
    ['anydma forward --port pci:0000:03:00.0 --mode icmpecho', 'answers pings'],
    ['anydma forward --name left --port pci:0000:03:00.0 --port vdev:ring0', 'an adapter, for another program'],
    ['anydma forward --attach left --port vdev:ring0 --mode icmpecho', 'the other program'],
    ['anydma forward --port pci:0000:03:00.0 --mode txonly --memory xmem --duration 10 --json', 'for programs'],
  ],
  async run(options, context) {
    const { output, signal } = context;
    if (options.name !== undefined && options.attach !== undefined)
      context.usage('--name has memory of its own, --attach that of another program: give one of them');
    await using place = await openPlace(options, elementsOf(options), { output, signal });
    const { packets, ports } = place;
    using capture = new PassingCapture(options, packets);
    const forwarder = new Forwarder({
      packets,
      mode: options.mode,
      burst: options.burst,
      topology: options.topology,
      peers: peersOf(options),
      txPackets: options.txpkts,
      flows: options.flows,
      whenFull: options.drop === true ? 'drop' : 'wait',
      ...capture.option,
    });
    try {
      for (const port of ports) {
        place.map(port);
        // What is forwarded is for others.
        port.promiscuous = true;
        await port.start({
          packets,
          rxDescriptors: options.rxd,
          txDescriptors: options.txd,
          maxFrame: Math.min(port.limits.maxFrame, options.maxPktLen - FCS),
        });
        forwarder.add(port);
      }
      const seconds = await work(forwarder, options, { output, signal: place.signal });
      place.mustGoOn();
      // Packets that are still in queues are counted by those who have them.
      const statistics = ports.map((port) => port.statistics());
      for (const port of ports) await port.stop();
      report(context, options, forwarder, statistics, seconds);
    } catch (error) {
      place.mustGoOn();
      throw error;
    }
  },
};

/** Forwards until the end. @returns seconds that it took */
async function work(
  forwarder: Forwarder,
  options: ForwardOptions,
  { output, signal }: Pick<CommandContext, 'output' | 'signal'>,
): Promise<number> {
  const rates = new Rates(forwarder.ports);
  using live = output.liveLines();
  const timer = setInterval(() => live.show(output.tableLines(RATE_COLUMNS, rates.rows())), options.statsPeriod * 1000);
  const begun = performance.now();
  try {
    const durationMs = options.duration === undefined ? undefined : options.duration * 1000;
    await forwarder.run({ signal, ...(durationMs === undefined ? {} : { durationMs }) });
  } finally {
    clearInterval(timer);
  }
  return (performance.now() - begun) / 1000;
}

function report(
  { output }: CommandContext,
  { mode, memory, burst }: ForwardOptions,
  forwarder: Forwarder,
  statistics: readonly PortStatistics[],
  seconds: number,
): void {
  const { ports } = forwarder;
  output.text(`${output.strong(mode)}, ${memory} memory, bursts of ${burst}: ${seconds.toFixed(2)} s`);
  output.table(
    RATE_COLUMNS,
    ports.map((port, i) => rateRow(port.name, statistics[i] ?? port.statistics(), seconds)),
  );
  const streams = forwarder.statistics();
  const dropped = streams.reduce((sum, stream) => sum + stream.dropped, 0);
  if (dropped > 0) output.text(`${dropped} packets were dropped because a port did not take them`);
  output.document({
    ok: true,
    mode,
    memory,
    burst,
    seconds,
    ports: ports.map((port, i) => ({ port: port.name, mac: port.mac, ...statistics[i] })),
    streams: streams satisfies readonly StreamStatistics[],
  });
}

function elementsOf({
  totalNumMbufs,
  port,
  rxd = QUEUE,
  txd = QUEUE,
  burst,
  maxPktLen,
  mbufSize,
  txpkts,
}: ForwardOptions): number {
  if (totalNumMbufs !== undefined) return totalNumMbufs;
  const segments = Math.max(1, Math.ceil(maxPktLen / Math.max(1, mbufSize - 128)), txpkts.length);
  return port.length * (rxd + segments * (txd + 2 * burst)) + SPARE * segments;
}

function peersOf({ ethPeer = [], port }: ForwardOptions): string[] {
  const peers = port.map((_, i) => `02:00:00:00:00:${i.toString(16).padStart(2, '0')}`);
  for (const [i, address] of ethPeer) {
    if (i >= port.length)
      throw invalid('forward', `--eth-peer names port ${i}, and there are ${port.length}`, {
        hint: 'ports are numbered from 0, in the order of --port',
      });
    peers[i] = address;
  }
  return peers;
}

function lengthsValue(text: string): readonly number[] {
  const lengths = text.split(',').map((part) => (/^\d+$/.test(part) ? Number(part) : NaN));
  if (lengths.length <= 64 && lengths.every((length) => length >= 1 && length <= 65_535)) return lengths;
  throw new InvalidArgumentError('Lengths are numbers of bytes with commas between them: 64,128');
}

function peerValue(
  text: string,
  before: readonly (readonly [number, string])[] | undefined,
): readonly (readonly [number, string])[] {
  const [, port, address] = /^(\d{1,3}),([0-9a-f]{2}(?::[0-9a-f]{2}){5})$/i.exec(text) ?? [];
  if (port === undefined || address === undefined)
    throw new InvalidArgumentError('It is the number of a port and a station address: 0,02:00:00:00:00:01');
  return [...(before ?? []), [Number(port), address]];
}

/** What passes, as a capture. */
class PassingCapture implements Disposable {
  readonly #fd: number | undefined;
  readonly #writer: CaptureWriter | undefined;
  /** For the forwarder. */
  readonly option: { observe?: (what: 'received' | 'sent', burst: Int32Array, count: number) => void } = {};

  constructor({ capture: path, mode }: ForwardOptions, packets: Packets) {
    if (path === undefined) return;
    const fd = openCapture(path, constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC);
    this.#fd = fd;
    const writer = new CaptureWriter(captureKindOf(path), LINK_ETHERNET, (bytes) => {
      try {
        for (let at = 0; at < bytes.length;) at += writeSync(fd, bytes, at);
      } catch (error) {
        throw fromNode(error, path, { operation: 'forward' });
      }
    });
    this.#writer = writer;
    // What is answered is seen twice, as it came and as it went; else what is sent, or what is received if nothing is.
    const wanted = mode === 'icmpecho' ? ['received', 'sent'] : [MODES[mode].sends ? 'sent' : 'received'];
    this.option.observe = (what, burst, count) => {
      if (!wanted.includes(what)) return;
      for (let i = 0; i < count; i++) writePacket(writer, packets, burst[i] ?? -1);
    };
  }

  [Symbol.dispose](): void {
    try {
      this.#writer?.flush();
    } finally {
      if (this.#fd !== undefined) closeCapture(this.#fd);
    }
  }
}
