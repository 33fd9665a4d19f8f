/**
 * What an operation costs when there is much already: for everything that keeps books, the time of one thing where there are
 * 1,000, 10,000 and 100,000 of them in the books, visited in order and at random. The time may grow by {@link GOALS} from one size
 * to the next, which leaves room for the memory caches of the machine and for the steps of a tree, and for no walk over all there
 * is. And what one of 100,000 objects takes of the JavaScript heap and of ArrayBuffers.
 */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { GROWTH, HELD, type Order } from './growth-cases.js';
import type { Times } from './growth-child.js';
import { summary, type Effort, type Result } from './harness/harness.js';

/** How many times as long it may take with ten times as many things. */
const GOALS: Readonly<Record<Order, number>> = { 'in order': 1.5, 'at random': 2 };
const CHILD = fileURLToPath(new URL('./growth-child.js', import.meta.url));

/** Measures times, and then memory. */
export async function benchGrowth({ quick, progress }: Effort): Promise<Result[]> {
  const results: Result[] = [];
  for (const [name, { orders, sizes }] of GROWTH)
    // The short form is there to see that each case works: one order, one counted round, two sizes.
    for (const order of quick ? orders.slice(0, 1) : orders) {
      progress(`growth: ${name}, ${order}`);
      const all = quick ? sizes.slice(0, 2) : sizes;
      const times = (await child('time', name, order, all.join(), quick ? '1' : '3')) as Times;
      for (const [phase, bySize] of Object.entries(times))
        results.push(...resultsOf(`${name}: ${phase}, ${order}`, all, bySize, GOALS[order]));
    }
  // Of fewer, what is there once counts.
  const count = quick ? 30_000 : 100_000;
  for (const [name, { goal }] of HELD) {
    progress(`growth: memory, ${name}`);
    const bytes = (await child('memory', name, String(count))) as number;
    const title = `memory of ${name}, each of ${count.toLocaleString('en')}`;
    results.push({
      name: title,
      unit: 'B',
      median: bytes,
      min: bytes,
      max: bytes,
      goal: { value: goal, met: bytes <= goal },
    });
  }
  return results;
}

/** One result a size, each compared with the size before; of the fastest batch, which other programs disturbed least. */
function resultsOf(name: string, sizes: readonly number[], bySize: Times[string], goal: number): Result[] {
  const title = (n: number): string => `${name}, of ${n.toLocaleString('en')}`;
  const fastest = (n: number): number[] => [Math.min(...bySize[n]) / 1e6];
  return sizes.map((n, i) => {
    if (i === 0) return summary({ name: title(n), unit: 'ns' }, fastest(n));
    const before = sizes[i - 1];
    return summary({ name: title(n), unit: 'ns', to: title(before), goal }, fastest(n), fastest(before));
  });
}

async function child(...args: readonly string[]): Promise<unknown> {
  const { stdout } = await promisify(execFile)(process.execPath, ['--expose-gc', CHILD, ...args], {
    maxBuffer: 2 ** 26,
  });
  return JSON.parse(stdout) as unknown;
}
