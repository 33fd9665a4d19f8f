/**
 * A vendor of one's own: a bus, an address space and a driver for a device that the library knows nothing of. The device here
 * is a thread with registers like a card: it fills memory with a byte, and has a page table, beyond which it reaches nothing.
 * All that holds for every mapping (checks, reference counts, rollback, explanations) comes with the library.
 */
import assert from 'node:assert/strict';
import { writeSync } from 'node:fs';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { DmaError, Eal, isDmaError, KiB, Range, type Iova } from 'anydma';
import type { AddressSpace, Bus, Constraints, Driver, OpenedDevice, Segment } from 'anydma/driver';

/** An entry of the device's page table: a file's bytes, by which it reaches memory. */
type Entry = { iova: number; length: number; writable: boolean; fd: number; offset: number };

/** What the device is told to do. It answers with the bytes that it unmapped or filled; -1: it was blocked. */
type Command = (Entry & { op: 'map' }) | { op: 'unmap' | 'fill'; iova: number; length: number; value?: number };

// --- The device. It has nothing but its table. ---

function runDevice(answer: Int32Array): void {
  const table = new Map<number, Entry>();
  const execute = (command: Command): number => {
    const { op, iova, length } = command;
    if (op === 'map') return table.set(iova, command).size;
    if (op === 'unmap') return table.delete(iova) ? length : 0;
    const entry = [...table.values()].find((each) => iova >= each.iova && iova + length <= each.iova + each.length);
    if (entry?.writable !== true) return -1;
    return writeSync(entry.fd, Buffer.alloc(length, command.value), 0, length, entry.offset + iova - entry.iova);
  };
  parentPort?.on('message', (command: Command) => {
    Atomics.store(answer, 1, execute(command));
    Atomics.store(answer, 0, 1);
    Atomics.notify(answer, 0);
  });
}

// --- The program's side of it. ---

/** The wire to a device. */
class Card {
  readonly #answer = new Int32Array(new SharedArrayBuffer(8));
  readonly #worker = new Worker(new URL(import.meta.url), { workerData: this.#answer });
  readonly space = new CardSpace(this);

  /** Calls back when the device is gone, which it is not meant to be. */
  onLost(lost: (error: DmaError) => void): void {
    const reason = 'the thread has ended';
    this.#worker.once('exit', () => lost(new DmaError({ code: 'ENODEV', operation: 'card', reason })));
  }

  /** Has the device do something, and waits until it has. */
  call(command: Command): number {
    Atomics.store(this.#answer, 0, 0);
    this.#worker.postMessage(command);
    if (Atomics.wait(this.#answer, 0, 0, 30_000) === 'timed-out')
      throw new DmaError({ code: 'ETIMEDOUT', operation: 'card', reason: 'the device does not answer' });
    return Atomics.load(this.#answer, 1);
  }

  async close(): Promise<void> {
    this.#worker.removeAllListeners('exit');
    await this.#worker.terminate();
  }
}

/** The address space: what the device's page table can do, and the two calls that change it. */
class CardSpace implements AddressSpace {
  readonly kind = 'card';
  readonly constraints: Constraints = {
    granule: 4 * KiB,
    windows: [new Range(0 as Iova, 2 ** 32)], // addresses of 32 bits
    entryLimit: 16,
    iova: 'free',
    partialUnmap: false,
    pins: false,
  };

  constructor(private readonly card: Card) {}

  map({ iova, length, access, backing }: Segment): undefined {
    if (backing === undefined)
      throw new DmaError({ code: 'ENOTSUP', operation: 'card', reason: 'it reaches memory by its file only' });
    this.card.call({ op: 'map', iova, length, writable: access !== 'read', ...backing });
  }

  unmap({ iova, length }: Segment): number {
    return this.card.call({ op: 'unmap', iova, length });
  }

  close(): void {} // the table goes with the thread
}

/** The bus: what its devices are called, and how one is opened. */
const threadBus: Bus = {
  name: 'thread',
  keys: [],
  naming: 'card and a number, such as card0',
  parse: (name) => (/^card\d+$/.test(name) ? name : undefined),
  scan: () => Promise.resolve(['card0']),
  open: (): Promise<OpenedDevice> => {
    const card = new Card();
    return Promise.resolve({
      ids: undefined,
      access: undefined,
      handle: card,
      onLost: (lost) => card.onLost(lost),
      close: () => card.close(),
    });
  },
  spaceOf: ({ handle }) => (handle as Card).space,
};

/** The driver: what programs work the device with. */
const cardDriver: Driver<{ fill(iova: number, length: number, value: number): void }> = {
  name: 'card',
  buses: ['thread'],
  keys: [],
  probe: ({ name, handle }) => ({
    fill: (iova, length, value) => {
      if ((handle as Card).call({ op: 'fill', iova, length, value }) === length) return;
      const range = new Range(iova, length);
      throw new DmaError({ code: 'EFAULT', operation: 'fill', device: name, range, reason: 'the device was blocked' });
    },
  }),
};

// --- A program, as it is for every vendor. ---

async function runProgram(): Promise<void> {
  await using eal = await Eal.start({ buses: [threadBus], drivers: [cardDriver] });
  const device = await eal.probe('thread:card0');
  const card = device.use(cardDriver);
  using memory = eal.external.allocate(64 * KiB);
  const mapping = device.dmaMap(memory);
  const { iova } = mapping;

  card.fill(iova + 100, 8, 7);
  console.log(`the device wrote: ${memory.bytes(98, 12).join(' ')}`);
  assert.deepEqual([...memory.bytes(98, 12)], [0, 0, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0]);

  mapping.unmap();
  assert.throws(
    () => card.fill(iova, 8, 9),
    (error) => isDmaError(error, 'EFAULT'),
  );
  console.log(`after the unmap it was blocked: ${device.explain(iova).text}`);
  assert.ok(!memory.bytes().includes(9));
}

if (isMainThread) await runProgram();
else runDevice(workerData as Int32Array);
