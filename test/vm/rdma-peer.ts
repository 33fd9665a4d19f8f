/** For suites in a guest: a process that lets whoever connects use its memory, and says what is in it. Ends with its input.
 * Arguments: its device, its address, the kind of its memory, and `cm` to have queue pairs connected by the connection manager. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { Eal, KiB, MiB, type Block, type ExternalMemory } from '../../src/index.js';
import { listenForPeers, verbsDriver } from '../../src/entry/rdma.js';

/** bytes that every kind of memory has here */
export const BYTES = 256 * KiB;

const [name, host, kind, manager] = process.argv.slice(2);
if (name !== undefined && host !== undefined && kind !== undefined) await main(name, host, kind);

async function main(name: string, host: string, kind: string): Promise<void> {
  // Its memory goes with it.
  await using eal = await Eal.start({ onForgotten: () => undefined });
  const device = await eal.probe(`rdma:${name}`);
  const rdma = device.use(verbsDriver);
  const memory = memoryOf(eal, kind);
  const bytes = memory.bytes();
  // What is mapped for every device has no rights for peers; they are given to a part of it.
  const open = (): { rkey: number; close: () => void } => {
    if (kind !== 'external') {
      const part = rdma.expose(memory, 'read-write');
      return { rkey: part.rkey, close: () => part.unregister() };
    }
    const mapping = device.dmaMap(memory, { remote: 'read-write' });
    return { rkey: mapping.rkey ?? assert.fail(), close: () => mapping.unmap() };
  };
  let opened = open();
  await using server = await listenForPeers({ host }, async (session) => {
    using pair = rdma.createQueuePair();
    session.explainFrom(rdma);
    session.answer('fill', (seed) => {
      fill(bytes, Number(seed));
    });
    session.answer('check', (seed) => wrongAt(bytes, Number(seed)));
    session.answer('word', () => String(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true)));
    session.answer('close', () => opened.close());
    session.answer('open', () => (opened = open()).rkey);
    session.answer('receive', async () => {
      const { length, immediate } = await pair.receive({ va: memory.va, length: memory.length });
      return { length, immediate };
    });
    session.greet({
      pairs: [pair.address],
      memory: [{ address: memory.va, length: memory.length, rkey: opened.rkey }],
    });
    let message: Promise<{ readonly length: number }> | undefined;
    session.answer('post', () => void (message = pair.receive({ va: memory.va, length: memory.length })));
    session.answer('received', async () => (await message)?.length);
    session.answer('leave', () => pair.close());
    await session.join(pair, undefined, manager === 'cm' ? { connectionManager: true } : {});
    await session.ended;
  });
  process.stdout.write(`${server.port}\n`);
  process.stdin.resume();
  await once(process.stdin, 'end');
  opened.close();
}

/** Memory of a kind: `external`, `heap` or `owned`. */
export function memoryOf(eal: Eal, kind: string): ExternalMemory | Block {
  if (kind === 'external') return eal.external.allocate(BYTES);
  if (kind === 'owned') return eal.malloc(BYTES);
  eal.heaps.create('mine');
  eal.heaps.addMemory('mine', eal.external.allocate(MiB));
  return eal.malloc(BYTES, { heap: 'mine' });
}

/** Bytes that nobody would have by chance. */
export function fill(bytes: Uint8Array, seed: number): void {
  for (let i = 0; i < bytes.length; i++) bytes[i] = pattern(i, seed);
}

/** The first byte that {@link fill} would have made otherwise; -1 when there is none. */
export function wrongAt(bytes: Uint8Array, seed: number): number {
  return bytes.findIndex((byte, i) => byte !== pattern(i, seed));
}

function pattern(index: number, seed: number): number {
  return (Math.imul(index + seed, 0x9e3779b1) >>> 16) & 0xff;
}
