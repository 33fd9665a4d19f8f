/** `anydma attach`: what is in an Eal of another process that other processes can attach to. */
import { DmaError } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import type { Platform } from '../platform/ports.js';
import { connectToPrimary } from '../share/connect.js';
import { folderFor, runningEals } from '../share/places.js';
import type { SharedFacts } from '../share/secondary.js';
import { libraryVersion } from '../share/version.js';
import type { JsonObject } from '../fields.js';
import { formatSize, hex } from '../units.js';
import { paragraphs, type CommandSpec } from './shared/command.js';
import type { Output } from './shared/output.js';

/** Milliseconds that a primary has to answer. */
const PATIENCE = 5000;

export const attach: CommandSpec<object> = {
  name: 'attach [name]',
  summary: 'show what is in the memory of a running program that others can attach to',
  description: paragraphs(
    `Shows heaps, memory, zones, pools, rings, external memory, devices and attached processes of a program that was started with
    Eal.start({ name }). Nothing is mapped, and nothing is changed. Without a name, the running programs of this user are listed.`,
  ),
  options: (command) => command,
  examples: [
    ['anydma attach', 'lists the programs that can be attached to'],
    ['anydma attach store', 'shows what is in the one with the name "store"'],
  ],
  async run(_options, { output, args }) {
    const platform = openPlatform();
    const [name] = args;
    if (name === undefined) return list(platform, output);
    const facts = await factsOf(platform, name);
    output.document({ ok: true, eal: facts });
    show(facts, output);
  },
};

function list(platform: Platform, output: Output): void {
  const running = runningEals(platform);
  output.document({ ok: true, running });
  if (running.length === 0)
    return output.text(`No program of this user was started with a name: there is none in ${folderFor(platform)}.`);
  output.table(
    [{ head: 'NAME' }, { head: 'PROCESS', align: 'right' }, { head: 'PROGRAM' }],
    running.map(({ name, pid, program }) => [name, String(pid), program]),
  );
}

/** Asks the primary, without attaching its memory. */
async function factsOf(platform: Platform, name: string): Promise<SharedFacts> {
  const { peer } = await connectToPrimary(
    platform,
    name,
    { answer: () => undefined, closed: () => undefined },
    { timeoutMs: PATIENCE, label: 'anydma attach', version: libraryVersion(), keepAlive: false },
  );
  try {
    const { fields } = await peer.ask('facts');
    // Both speak the same version of the protocol.
    const facts = fields.raw as JsonObject & SharedFacts;
    return { ...facts, secondaries: facts.secondaries.filter(({ pid }) => pid !== process.pid) };
  } finally {
    peer.tell('bye');
    peer.close(new DmaError({ code: 'ECANCELED', operation: 'attach', reason: 'it was shown' }));
  }
}

function show(facts: SharedFacts, output: Output): void {
  const { name, pid, version, window, iovaMode, heaps, memory, zones, pools, rings, external, devices, secondaries } =
    facts;
  output.text(`${output.strong(name)}: process ${pid}, anydma ${version}`);
  output.text(
    `addresses: ${formatSize(window.length)} from ${hex(window.va)} on; IOVA mode ${iovaMode ?? 'not decided'}`,
  );
  table(output, 'Heaps', ['NAME', 'TOTAL', 'FREE', 'BLOCKS'], heaps, (heap) => [
    heap.name,
    formatSize(heap.total),
    formatSize(heap.free),
    String(heap.allocatedBlocks),
  ]);
  table(output, 'Memory of heaps', ['HEAP', 'VA', 'LENGTH', 'PAGES', 'SHARED'], memory, (piece) => [
    piece.heap,
    hex(piece.va),
    formatSize(piece.length),
    formatSize(piece.pageSize),
    piece.shared ? 'yes' : 'no',
  ]);
  table(output, 'Zones', ['NAME', 'HEAP', 'VA', 'LENGTH'], zones, (zone) => [
    zone.name,
    zone.heap,
    hex(zone.va),
    formatSize(zone.length),
  ]);
  table(output, 'Pools', ['NAME', 'ELEMENTS', 'AVAILABLE', 'SIZE'], pools, (pool) => [
    pool.name,
    String(pool.elements),
    String(pool.available),
    formatSize(pool.elementSize),
  ]);
  table(output, 'Rings', ['NAME', 'SIZE', 'USED', 'PRODUCERS', 'CONSUMERS', 'POOL'], rings, (ring) => [
    ring.name,
    String(ring.size),
    String(ring.length),
    ring.producers,
    ring.consumers,
    ring.pool ?? '',
  ]);
  table(output, 'External memory', ['LABEL', 'VA', 'LENGTH', 'SHAREABLE'], external, (each) => [
    each.label,
    hex(each.va),
    formatSize(each.length),
    each.shareable ? 'yes' : 'no',
  ]);
  table(output, 'Devices', ['NAME', 'DRIVER', 'DOMAIN'], devices, (device) => [
    device.name,
    device.driver ?? '',
    device.domain ?? '',
  ]);
  table(output, 'Attached', ['PROCESS', 'HOLDS'], secondaries, ({ label, holds }) => [label, String(holds)]);
}

function table<T>(
  output: Output,
  title: string,
  heads: readonly string[],
  all: readonly T[],
  row: (each: T) => readonly string[],
): void {
  if (all.length === 0) return;
  output.text();
  output.text(`${title}:`);
  output.table(
    heads.map((head) => ({ head })),
    all.map(row),
  );
}
