/**
 * What a packet costs the processor, from port to port, with nothing to wait for: between null ports, beside DPDK's, and between adapters
 * whose descriptors a model completes as soon as it is told of them. And how long the event loop waits while packets are forwarded.
 */
import { DESCRIPTOR_BYTES, RX_QUEUE, TX_QUEUE } from '../src/drivers/e1000e/registers.js';
import { Eal } from '../src/index.js';
import { Forwarder, Packets, portOf, type ModeName, type Port } from '../src/entry/net.js';
import type { ModelHost } from '../src/vfio-user/devices/model.js';
import { storeWord } from '../src/vfio-user/devices/words.js';
import { measure, timeWork, type Case, type Effort, type Goal, type Result } from './harness/harness.js';
import { longestDelay } from './harness/longest-delay.js';
import { Peer } from './harness/peer.js';
import { InstantAdapter } from './net-adapter.js';

/** Those of `peers/dpdk-net.c`. */
const POOL = { elements: 4096, elementSize: 2176, cache: 256 };
const SIZE = 64;
const BURST = 32;
/** Packets in a round. */
const ROUND = 32_000;
/** Descriptors of a ring. */
const RING = 512;
/** What a packet of `mac` may take: ns. */
const GOAL: Goal = { most: 60 };
/** How long the loop is looked at, in milliseconds. */
const DELAY_MS = 500;

const MODES = ['mac', 'rxonly', 'txonly'] as const satisfies readonly ModeName[];

/** Measures packets. */
export async function benchNet({ quick, progress }: Effort): Promise<Result[]> {
  progress(`packets of ${SIZE} bytes, bursts of ${BURST}`);
  await using eal = await Eal.start({ memory: { noHuge: true }, origins: false, onForgotten: () => undefined });
  const peer = Peer.start('dpdk-net');
  await using _closed = typeof peer === 'string' ? undefined : peer;
  using pool = eal.pools.create(POOL);
  const packets = new Packets(pool);
  eal.vdev.define('instant', (host) => new InstantAdapter(host, SIZE));
  const nulls = await started(eal, packets, [`vdev:null0,size=${SIZE}`, 'vdev:null1']);
  // Without system calls there is no memory for devices.
  const adapters =
    eal.platform.limitation === undefined ? await started(eal, packets, ['vdev:instant0', 'vdev:instant1']) : [];
  try {
    const cases = MODES.flatMap((mode) => [
      ...nullCases(peer, mode, forwarderOf(packets, nulls, mode)),
      ...(adapters.length === 0 ? [] : [adapterCase(mode, forwarderOf(packets, adapters, mode))]),
    ]);
    if (adapters.length > 0) cases.push(modelCase());
    const results = await measure(cases, quick ? { warmUp: 50, measured: 51 } : { warmUp: 200, measured: 1001 });
    progress('the longest delay of the event loop while packets are forwarded');
    const delays = [delayCase('null ports', forwarderOf(packets, nulls, 'mac'))];
    if (adapters.length > 0) delays.push(delayCase('adapters', forwarderOf(packets, adapters, 'mac')));
    return [...results, ...(await measure(delays, { warmUp: 1, measured: quick ? 1 : 9 }))];
  } finally {
    for (const port of [...nulls, ...adapters]) await port.stop();
  }
}

async function started(eal: Eal, packets: Packets, names: readonly string[]): Promise<Port[]> {
  const ports: Port[] = [];
  for (const name of names) {
    const port = portOf(await eal.probe(name));
    await port.start({ packets });
    ports.push(port);
  }
  return ports;
}

function forwarderOf(packets: Packets, ports: readonly Port[], mode: ModeName): Forwarder {
  const forwarder = new Forwarder({ packets, mode, burst: BURST });
  for (const port of ports) forwarder.add(port);
  return forwarder;
}

const WHAT: Readonly<Record<(typeof MODES)[number], string>> = {
  mac: 'received, readdressed, sent',
  rxonly: 'received, released',
  txonly: 'made, sent',
};

const COMMON = { unit: 'ns', count: ROUND } as const;

function nullCases(peer: Peer | string, mode: (typeof MODES)[number], forwarder: Forwarder): Case[] {
  const c = `DPDK: ${WHAT[mode]} (${mode}), null ports`;
  const own: Case = {
    ...COMMON,
    name: `${WHAT[mode]} (${mode}), null ports`,
    ...(mode === 'mac' ? { goal: GOAL } : {}),
    ...(typeof peer === 'string' ? { note: peer } : { to: c }),
    round: () => timeWork(() => forward(forwarder)),
  };
  if (typeof peer === 'string') return [own];
  const order = `${mode} ${ROUND / BURST} ${BURST}`;
  return [own, { ...COMMON, name: c, round: async () => mustBeAll(await peer.ask(order)) / 1e6 }];
}

/** @returns the first number, nanoseconds @throws Error unless the second one, of packets, is that of a round */
function mustBeAll([nanoseconds, count]: readonly number[]): number {
  if (count !== ROUND) throw new Error(`${count} packets instead of ${ROUND}`);
  return nanoseconds;
}

function adapterCase(mode: (typeof MODES)[number], forwarder: Forwarder): Case {
  return {
    ...COMMON,
    name: `${WHAT[mode]} (${mode}), e1000e, with what its model does`,
    ...(mode === 'mac' ? { goal: GOAL } : {}),
    round: () => timeWork(() => forward(forwarder)),
  };
}

/** Moves the packets of one round. A queue of an adapter may give fewer than a burst. */
function forward(forwarder: Forwarder): void {
  for (let left = ROUND; left > 0;) {
    const moved = forwarder.turn();
    if (moved === 0) throw new Error('no packet came');
    left -= moved;
  }
}

function delayCase(what: string, forwarder: Forwarder): Case {
  return {
    name: `longest delay of the event loop in ${DELAY_MS} ms of forwarding, ${what}`,
    unit: 'us',
    count: 1,
    round: () => longestDelay(() => forwarder.run({ durationMs: DELAY_MS })),
  };
}

/** What the model of the adapter does for each packet that is received and sent. */
function modelCase(): Case {
  const memory = new Uint8Array(2 * RING * DESCRIPTOR_BYTES);
  const half = memory.length / 2;
  const host: ModelHost = {
    dma: {
      direct: (iova, length) => memory.subarray(iova, iova + length),
      read: () => undefined,
      write: () => undefined,
    },
    interrupt: () => undefined,
    regionMemory: () => memory,
  };
  const adapter = new InstantAdapter(host, SIZE);
  const store = (offset: number, value: number): void => {
    storeWord(word, 0, value);
    adapter.write(0, offset, word);
  };
  const word = new Uint8Array(4);
  for (const [queue, at] of [
    [RX_QUEUE, 0],
    [TX_QUEUE, half],
  ] as const)
    for (const [offset, value] of [
      [queue.BAL, at],
      [queue.BAH, 0],
      [queue.LEN, half],
      [queue.HEAD, 0],
    ])
      store(offset, value);
  let tail = 0;
  const round = (): void => {
    for (let moved = 0; moved < ROUND; moved += BURST) {
      tail = (tail + BURST) % RING;
      store(RX_QUEUE.TAIL, tail);
      store(TX_QUEUE.TAIL, tail);
    }
  };
  return { ...COMMON, name: 'what the model of the e1000e does of it', round: () => timeWork(round) };
}
