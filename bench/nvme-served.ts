/**
 * The NVMe driver with the served controller over vfio-user: two processes, which share the cores of the machine. The image is random
 * bytes on tmpfs, so that what is measured is the two of them and the copy.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, existsSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { nvmeDriver } from '../src/drivers/nvme/nvme-driver.js';
import type { Nvme } from '../src/entry/nvme.js';
import { Eal, KiB, MiB, type Block, type Device } from '../src/index.js';
import type { ServedCost } from './nvme-served-child.js';
import { measure, summary, type Case, type Effort, type Result } from './harness/harness.js';
import { Peer } from './harness/peer.js';

const IMAGE = 256 * MiB;
const BLOCK = 512;
/** Milliseconds between two turns of the event loop. */
const TURN_MS = 0.2;
const MEMCPY_BYTES = 64 * MiB;
const MEMCPY = 'memcpy in C, 64 MiB';
/** How many times the time of memcpy a transfer may take: 0.7 of its bandwidth. */
const GOAL = 1 / 0.7;

interface Load {
  readonly kind: 'reads' | 'writes';
  readonly bytes: number;
  readonly depth: number;
  /** Commands of a round. */
  readonly count: number;
}

interface Setup {
  readonly device: Device;
  readonly ssd: Nvme;
  readonly memory: Block;
  readonly server: ChildProcess;
}

/** What a round of a load cost besides its time: of both sides, CPU time in ms, and the longest delay of the event loop. */
interface Cost {
  readonly driver: ServedCost;
  readonly server: ServedCost;
}

/** Measures commands a second, bandwidth, CPU time and the longest delay of both event loops. */
export async function benchNvmeServed({ quick, progress }: Effort): Promise<Result[]> {
  progress(`nvme-served: driver and server on ${cpus().length} cores`);
  await using eal = await Eal.start({ origins: false, memory: { onNotice: () => undefined } });
  if (eal.platform.limitation !== undefined) {
    progress(`nvme-served: left out, ${eal.platform.limitation}`);
    return [];
  }
  const directory = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'anydma-bench-'));
  const server = startServer(directory);
  const peer = Peer.start('memcpy');
  await using _closed = typeof peer === 'string' ? undefined : peer;
  try {
    await once(server, 'message');
    const device = await eal.probe(`vfio-user:${join(directory, 'nvme.sock')}`);
    using memory = eal.malloc(8 * MiB, { align: 4 * KiB, contiguous: true });
    memory.bytes().fill(7);
    return await measureLoads({ device, ssd: device.use(nvmeDriver), memory, server }, peer, quick);
  } finally {
    server.kill();
    rmSync(directory, { recursive: true, force: true });
  }
}

function startServer(directory: string): ChildProcess {
  const file = join(directory, 'disk.img');
  const fd = openSync(file, 'w');
  const bytes = new Uint8Array(MiB);
  for (let at = 0; at < IMAGE; at += bytes.length) {
    randomFillSync(bytes);
    writeSync(fd, bytes);
  }
  closeSync(fd);
  const program = fileURLToPath(new URL('nvme-served-child.js', import.meta.url));
  return fork(program, [join(directory, 'nvme.sock'), file], {
    execArgv: [],
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  });
}

async function measureLoads(setup: Setup, peer: Peer | string, quick: boolean): Promise<Result[]> {
  const small = quick ? 20_000 : 100_000;
  const large = quick ? 200 : 1000;
  const loads: Load[] = (['reads', 'writes'] as const).flatMap((kind) => [
    { kind, bytes: 4 * KiB, depth: 1, count: small / 4 },
    { kind, bytes: 4 * KiB, depth: 32, count: small },
    { kind, bytes: 4 * KiB, depth: 128, count: small },
    { kind, bytes: MiB, depth: 8, count: large },
  ]);
  const costs = new Map<string, Cost[]>();
  const cases = loads.map((load): Case => {
    const { bytes, count } = load;
    const name = nameOf(load);
    const told: Cost[] = [];
    costs.set(name, told);
    const round = async (): Promise<number> => {
      const { ms, cost } = await run(setup, load);
      told.push(cost);
      return ms;
    };
    if (bytes < MiB) return { name, unit: '/s', count, round };
    const against = typeof peer === 'string' ? { note: peer } : { to: MEMCPY, goal: GOAL };
    return { name, unit: 'GB/s', count: count * bytes, round, ...against };
  });
  if (typeof peer !== 'string') {
    const round = async (): Promise<number> => (await peer.ask(String(MEMCPY_BYTES)))[0] / 1e6;
    cases.push({ name: MEMCPY, unit: 'GB/s', count: MEMCPY_BYTES, round });
  }
  const rounds = quick ? { warmUp: 2, measured: 5 } : { warmUp: 3, measured: 15 };
  const results = await measure(cases, rounds);
  for (const load of loads) {
    const name = nameOf(load);
    const told = (costs.get(name) ?? []).slice(rounds.warmUp);
    for (const side of ['driver', 'server'] as const) {
      const cpu = told.map((cost) => cost[side].cpu / load.count);
      results.push(summary({ name: `${name}: CPU of the ${side} for each`, unit: 'us' }, cpu));
      if (load.depth < 128) continue;
      const delay = told.map((cost) => cost[side].delay);
      results.push(summary({ name: `${name}: longest delay of the ${side}'s event loop`, unit: 'us' }, delay));
    }
  }
  return results;
}

function nameOf({ kind, bytes, depth }: Load): string {
  return `${bytes < MiB ? '4 KiB' : '1 MiB'} random ${kind} at depth ${depth}`;
}

/** What the server has used since the last call. */
async function costOf(server: ChildProcess): Promise<ServedCost> {
  const answer = once(server, 'message');
  server.send('cost');
  return ((await answer) as [ServedCost])[0];
}

/** Keeps a queue full until `count` commands have completed. */
async function run({ device, ssd, memory, server }: Setup, load: Load): Promise<{ ms: number; cost: Cost }> {
  const { kind, bytes, depth, count } = load;
  const [disk] = ssd.namespaces;
  const iova = device.iovaOf(memory);
  const blocks = bytes / BLOCK;
  const units = Math.floor(disk.blocks / blocks);
  const queue = await ssd.openQueue({ entries: depth + 1, interrupts: false });
  let [sent, back, random] = [0, 0, 1];
  const submit = (slot: number): void => {
    random = (Math.imul(random, 1664525) + 1013904223) >>> 0;
    const lba = Math.floor((random / 2 ** 32) * units) * blocks;
    if (kind === 'reads') queue.read(slot, disk.id, lba, blocks, iova + slot * bytes);
    else queue.write(slot, disk.id, lba, blocks, iova + slot * bytes);
    sent++;
  };
  await costOf(server);
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  const cpu = process.cpuUsage();
  const start = performance.now();
  while (sent < depth) submit(sent);
  queue.ring();
  while (back < count) {
    for (let end = performance.now() + TURN_MS; back < count && performance.now() < end;) {
      const found = queue.poll();
      for (let n = 0; n < found; n++) {
        if (queue.statuses[n] !== 0) throw new Error('a command failed');
        back++;
        if (sent < count) submit(queue.slots[n]);
      }
      queue.ring();
    }
    await new Promise((resolve) => setImmediate(resolve));
  }
  const ms = performance.now() - start;
  const { user, system } = process.cpuUsage(cpu);
  delay.disable();
  const cost = { driver: { cpu: (user + system) / 1000, delay: delay.max / 1e6 }, server: await costOf(server) };
  await ssd.closeQueue(queue);
  return { ms, cost };
}
