/**
 * `node --expose-gc growth-child.js time NAME ORDER SIZES UNITS BATCHES` measures one operation of growth-cases.ts, and
 * `... memory NAME COUNT` how much memory its objects take. A process of its own bears the garbage that it makes, and no other's.
 */
import { workClock } from './harness/clock.js';
import { GROWTH, HELD, type Order } from './growth-cases.js';
import { randomNumbers } from './harness/areas.js';

/** What is printed of times: by phase and size, the nanoseconds a unit of each batch. */
export type Times = Record<string, Record<number, number[]>>;

/** Rounds that only warm up, of the smallest size. */
const WARM_UP = 5;
/** A batch ends after so many milliseconds, however little of it is done. */
const LONGEST_BATCH_MS = 5000;

const [what, name, ...rest] = process.argv.slice(2);
console.log(
  JSON.stringify(
    what === 'memory' ? await bytesEach(name, Number(rest[0])) : await times(rest[0] as Order, rest.slice(1)),
  ),
);
process.exit();

async function times(order: Order, [sizes, units, batches]: readonly string[]): Promise<Times> {
  const found: Times = {};
  const all = sizes.split(',').map(Number);
  const round = roundsOf(order);
  for (let i = 0; i < WARM_UP; i++) await round(all[0]);
  for (const n of all)
    for (let batch = 0; batch < Number(batches); batch++) {
      collect();
      const sums = new Map<string, { ms: number; units: number }>();
      const until = workClock() + LONGEST_BATCH_MS;
      for (let done = 0; done < Number(units) && workClock() < until; done += n)
        for (const [phase, { ms, units: count }] of await round(n)) {
          const sum = sums.get(phase) ?? { ms: 0, units: 0 };
          sums.set(phase, { ms: sum.ms + ms, units: sum.units + count });
        }
      for (const [phase, { ms, units: count }] of sums) ((found[phase] ??= {})[n] ??= []).push((ms / count) * 1e6);
    }
  return found;
}

/** Does the operation with `n` things once. @returns what each phase of it took */
function roundsOf(order: Order): (n: number) => Promise<Map<string, { ms: number; units: number }>> {
  const growth = GROWTH.get(name);
  if (growth === undefined) throw new Error(`there is no operation "${name}"`);
  const orders = new Map<number, Int32Array>();
  return async (n) => {
    let places = orders.get(n);
    if (places === undefined) orders.set(n, (places = order === 'in order' ? ascending(n) : shuffled(n)));
    const phases = new Map<string, { ms: number; units: number }>();
    const add = (phase: string, began: number, units: number): void => {
      const sum = phases.get(phase) ?? { ms: 0, units: 0 };
      phases.set(phase, { ms: sum.ms + workClock() - began, units: sum.units + units });
    };
    await growth.run({
      n,
      each: (phase, work) => {
        const began = workClock();
        for (let i = 0; i < n; i++) work(places[i]);
        add(phase, began, n);
      },
      eachAsync: async (phase, work) => {
        const began = workClock();
        for (let i = 0; i < n; i++) await work(places[i]);
        add(phase, began, n);
      },
      all: async (phase, work) => {
        const began = workClock();
        await work();
        add(phase, began, n);
      },
    });
    return phases;
  };
}

async function bytesEach(of: string, count: number): Promise<number> {
  const make = HELD.get(of)?.make;
  if (make === undefined) throw new Error(`there are no objects "${of}"`);
  // The first ones make what all share, and the machine code.
  const first = await make(count);
  await settled();
  const before = bytesInUse();
  const objects = await make(count);
  await settled();
  const bytes = bytesInUse() - before;
  if (first === objects) throw new Error('the objects are not kept');
  return bytes / count;
}

function bytesInUse(): number {
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

/** Collects garbage, and what is freed in later turns. */
async function settled(): Promise<void> {
  for (let i = 0; i < 3; i++) {
    collect();
    await new Promise((resolve) => setImmediate(resolve));
  }
}

function collect(): void {
  const gc: unknown = Reflect.get(globalThis, 'gc');
  if (typeof gc === 'function') Reflect.apply(gc, undefined, []);
}

function ascending(n: number): Int32Array {
  return Int32Array.from({ length: n }, (_, i) => i);
}

function shuffled(n: number): Int32Array {
  const places = ascending(n);
  const random = randomNumbers();
  for (let i = n - 1; i > 0; i--) {
    const other = random(i + 1);
    [places[i], places[other]] = [places[other], places[i]];
  }
  return places;
}
