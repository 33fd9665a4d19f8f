/**
 * The vfio-user client against a client in C: the same messages to the same server, the embedded edu device in a process of
 * its own. The server takes one client at a time, so each round connects anew, which is not measured.
 */
import { Eal, KiB, type ExternalMemory } from '../src/index.js';
import { spawnDevice, type DeviceProcess } from '../src/entry/model.js';
import { VfioUserClient } from '../src/entry/vfio-user.js';
import { measure, time, timeAsync, type Case, type Effort, type Result } from './harness/harness.js';
import { Peer } from './harness/peer.js';
import { onOneCpu } from './harness/placement.js';

const PAGE = 4 * KiB;
/** Requests under way at once, where many are. */
const DEPTH = 64;
/** How many times the time of C a pair through `device.dmaMap` may take. */
const GOAL = 1.2;
/** What is done in each connection before the clock starts. */
const SETTLE = 20;

/** The parts of one benchmark. */
interface Setup {
  readonly eal: Eal;
  readonly server: DeviceProcess;
  readonly memory: ExternalMemory;
  readonly peer: Peer | string;
  /** How many of each a round does. */
  readonly counts: { readonly reads: number; readonly live: number; readonly pairs: number };
}

/** Measures register reads and mapping. */
export async function benchVfioUser({ quick, progress }: Effort): Promise<Result[]> {
  await using eal = await Eal.start();
  if (eal.platform.limitation !== undefined) {
    progress(`vfio-user: left out, ${eal.platform.limitation}`);
    return [];
  }
  await using server = await spawnDevice('edu');
  const counts = quick ? { reads: 200, live: 256, pairs: 128 } : { reads: 500, live: 2000, pairs: 512 };
  using memory = eal.external.allocate(counts.live * PAGE);
  const peer = Peer.start('vfio-user-client');
  await using _closed = typeof peer === 'string' ? undefined : peer;
  const setup: Setup = { eal, server, memory, peer, counts };
  const rounds = quick ? { warmUp: 3, measured: 7 } : { warmUp: 15, measured: 31 };

  const results: Result[] = [];
  {
    const pinned = onOneCpu(typeof peer === 'string' ? [server.pid] : [server.pid, peer.pid]);
    using _back = typeof pinned === 'string' ? undefined : pinned;
    if (typeof pinned === 'string') {
      progress(`vfio-user: not on one CPU, ${pinned}; wherever the scheduler likes`);
    } else {
      progress('vfio-user: client and server on one CPU');
      results.push(...(await measure([...reads(setup, 'one CPU'), ...maps(setup, 'one CPU')], rounds)));
    }
  }
  progress('vfio-user: client and server on any CPU');
  results.push(...(await measure([...reads(setup, 'any CPU'), ...maps(setup, 'any CPU')], rounds)));
  return results;
}

/** Loads of 4 bytes, one after the other. */
function reads(setup: Setup, where: string): Case[] {
  const { reads: count } = setup.counts;
  const c = `REGION_READ, C, ${where}`;
  return [
    ...peerCase(setup, { name: c, unit: 'us', count }, `read ${count}`),
    {
      ...against(setup, c),
      name: `REGION_READ, sync, ${where}`,
      unit: 'us',
      count,
      round: () =>
        connected(setup, async (client) => {
          const registers = client.registers(0);
          const read = (count: number): void => {
            for (let i = 0; i < count; i++) registers.read32(0);
          };
          read(SETTLE);
          return time(() => read(count));
        }),
    },
    {
      ...against(setup, c),
      name: `REGION_READ, async, ${where}`,
      unit: 'us',
      count,
      round: () =>
        connected(setup, async (client) => {
          const bytes = new Uint8Array(4);
          const read = async (count: number): Promise<void> => {
            for (let i = 0; i < count; i++) await client.regionReadAsync(0, 0, bytes);
          };
          await read(SETTLE);
          return timeAsync(() => read(count));
        }),
    },
  ];
}

/** Mapping of single pages, with the descriptor. */
function maps(setup: Setup, where: string): Case[] {
  const { memory, counts } = setup;
  const cases: Case[] = [];
  const add = (what: string, order: string, count: number, unmap: boolean): void => {
    const one = `${what}, C, ${where}`;
    const many = `${what}, ${DEPTH} at once, C, ${where}`;
    const common = { unit: '/s', count } as const;
    cases.push(
      ...peerCase(setup, { ...common, name: one }, `${order} ${count} 1`),
      {
        ...common,
        ...against(setup, one),
        name: `${what}, sync, ${where}`,
        round: () =>
          connected(setup, async (client) =>
            time(() => {
              for (let page = 0; page < count; page++) {
                client.dmaMap(regionOf(memory, page));
                if (unmap) client.dmaUnmap(page * PAGE, PAGE);
              }
            }),
          ),
      },
      ...peerCase(setup, { ...common, name: many }, `${order} ${count} ${DEPTH}`),
      {
        ...common,
        ...against(setup, many),
        name: `${what}, ${DEPTH} at once, async, ${where}`,
        round: () =>
          connected(setup, (client) =>
            timeAsync(async () => {
              for (let first = 0; first < count; first += DEPTH) {
                const pages = Array.from({ length: Math.min(DEPTH, count - first) }, (_, i) => first + i);
                await Promise.all(pages.map((page) => client.dmaMapAsync(regionOf(memory, page))));
                if (unmap) await Promise.all(pages.map((page) => client.dmaUnmapAsync(page * PAGE, PAGE)));
              }
            }),
          ),
      },
    );
  };
  add(`DMA_MAP, up to ${counts.live.toLocaleString('en')} live`, 'map', counts.live, false);
  const pair = 'DMA_MAP + DMA_UNMAP';
  add(pair, 'pairs', counts.pairs, true);
  cases.push(wholeStack(setup, pair, where));
  return cases;
}

/** The pairs through `device.dmaMap`, with all the checks and books above the client. */
function wholeStack(setup: Setup, pair: string, where: string): Case {
  const { eal, server, memory, counts } = setup;
  return {
    ...against(setup, `${pair}, C, ${where}`, GOAL),
    name: `${pair}, device.dmaMap, ${where}`,
    unit: '/s',
    count: counts.pairs,
    round: async () => {
      const device = await eal.probe(`bus=vfio-user,name=${server.socketPath}/driver=raw`);
      const ms = time(() => {
        for (let page = 0; page < counts.pairs; page++)
          device.dmaMap({ va: memory.va + page * PAGE, length: PAGE }).unmap();
      });
      await eal.remove(device);
      return ms;
    },
  };
}

/** The peer's case, if there is a peer. */
function peerCase(
  { peer, server }: Setup,
  one: { readonly name: string; readonly unit: Case['unit']; readonly count: number },
  order: string,
): Case[] {
  if (typeof peer === 'string') return [];
  const round = async (): Promise<number> => {
    await peer.ask(`connect ${server.socketPath}`);
    if (order.startsWith('read')) await peer.ask(`read ${SETTLE}`);
    const [ns] = await peer.ask(order);
    await peer.ask('close');
    return ns / 1e6;
  };
  return [{ ...one, round }];
}

function against({ peer }: Setup, name: string, goal?: number): Pick<Case, 'to' | 'goal' | 'note'> {
  return typeof peer === 'string' ? { note: peer } : { to: name, goal };
}

/** Connects for one round. */
async function connected({ eal, server }: Setup, round: (client: VfioUserClient) => Promise<number>): Promise<number> {
  using client = await VfioUserClient.connect(eal.platform, server.socketPath);
  return await round(client);
}

function regionOf({ fd = -1 }: ExternalMemory, page: number): Parameters<VfioUserClient['dmaMap']>[0] {
  return { iova: page * PAGE, length: PAGE, access: 'read-write', backing: { fd, offset: page * PAGE } };
}
