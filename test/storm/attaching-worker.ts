/** What runs in a worker of the storm `attached-workers`: it attaches, looks addresses up, takes and returns elements, until it ends. */
import { isMainThread, workerData } from 'node:worker_threads';
import { attach } from '../../src/share/attach.js';
import type { AttachedDevice } from '../../src/bus/attached-device.js';
import type { AttachedMemory } from '../../src/memory/attached-memory.js';
import type { PoolDescription } from '../../src/memory/pool/pool.js';
import type { Shared } from '../../src/memory/shared/shared.js';

/** How a worker ends; `terminated` is done to it, at any moment. */
export const ENDINGS = ['terminated', 'process.exit()', 'throws', 'returns'] as const;

export interface Attaching {
  readonly pool: PoolDescription;
  readonly memory: Shared<AttachedMemory>;
  readonly device: Shared<AttachedDevice>;
  readonly ending: (typeof ENDINGS)[number];
  /** How often it does everything before it ends. */
  readonly turns: number;
  /** Counts what all workers do: turns, and addresses that were there and not there. */
  readonly counts: Int32Array;
}

if (!isMainThread) work(workerData as Attaching);

function work({ pool: description, memory, device, ending, turns, counts }: Attaching): void {
  const burst = new Int32Array(12);
  const pool = attach(description);
  for (let turn = 0; ending === 'terminated' || turn < turns; turn++) {
    const bytes = attach(memory);
    const edu = attach(device);
    const count = 1 + (turn % 12);
    if (pool.get(burst, count)) {
      for (let i = 0; i < count; i++) pool.bytes(burst[i]).fill(turn);
      // In the middle, with elements in its hand and in its cache.
      if (turn === turns - 1 && ending === 'process.exit()') process.exit(7);
      if (turn === turns - 1 && ending === 'throws') throw new Error('mine');
      pool.put(burst, count);
    }
    bytes.bytes()[turn % bytes.length]++;
    const { table } = edu.domain ?? {};
    Atomics.add(counts, 1 + ((table?.iovaOfRange(bytes.va, 4096) ?? -1) < 0 ? 1 : 0), 1);
    Atomics.add(counts, 0, 1);
    bytes[Symbol.dispose]();
    edu[Symbol.dispose]();
  }
  pool.free();
}
