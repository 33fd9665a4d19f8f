/**
 * `node --expose-gc growth-child.js time NAME ORDER SIZES BATCHES` measures one operation of growth-cases.ts, and `... memory NAME
 * COUNT` how much memory its objects take. A process of its own bears the garbage that it makes, and no other's.
 *
 * Every size has as many things in all: as many sets of books as there is room for. So memory caches and garbage collection have the
 * same work at each, in the time and outside of it, and what differs is how large the books are.
 */
import { workClock } from './harness/clock.js';
import { GROWTH, HELD, type Order, type Round } from './growth-cases.js';
import { randomNumbers } from './harness/areas.js';

/** What is printed of times: by phase and size, the nanoseconds a unit of each batch. */
export type Times = Record<string, Record<number, number[]>>;

const [what, name, ...rest] = process.argv.slice(2);

/** The sizes take turns; the first turn of each only warms up. */
async function times(order: Order, [sizes, batches]: readonly string[]): Promise<Times> {
  const growth = GROWTH.get(name);
  if (growth === undefined) throw new Error(`there is no operation "${name}"`);
  const found: Times = {};
  const all = sizes.split(',').map(Number);
  const things = Math.max(...all);
  const places = new Map(all.map((n) => [n, order === 'in order' ? ascending(n) : shuffled(n)]));
  for (let batch = 0; batch <= Number(batches); batch++)
    for (const n of batch % 2 === 0 ? all : all.toReversed()) {
      const together = new Together(Math.floor(things / n), places.get(n) ?? new Int32Array(0));
      const phases = await together.run(growth.run);
      if (batch > 0) for (const [phase, ns] of phases) ((found[phase] ??= {})[n] ??= []).push(ns);
    }
  return found;
}

/** Equal sets of books that go through the phases of an operation together, one after the other in each phase. */
class Together {
  /** What the sets do next, as far as they have come. */
  #next: { readonly work: () => unknown; readonly done: () => void; readonly failed: (why: unknown) => void }[] = [];
  readonly #phases = new Map<string, number>();

  constructor(
    readonly sets: number,
    readonly places: Int32Array,
  ) {}

  /** @returns the nanoseconds a thing of each phase */
  async run(operation: (round: Round) => Promise<void>): Promise<ReadonlyMap<string, number>> {
    const { places } = this;
    const n = places.length;
    const round: Round = {
      n,
      each: async (phase, work) =>
        this.#phase(phase, () => {
          for (let i = 0; i < n; i++) work(places[i]);
        }),
      eachAsync: async (phase, work) =>
        this.#phase(phase, async () => {
          for (let i = 0; i < n; i++) await work(places[i]);
        }),
      all: async (phase, work) => this.#phase(phase, work),
    };
    await Promise.all(Array.from({ length: this.sets }, async () => operation(round)));
    return this.#phases;
  }

  async #phase(phase: string, work: () => unknown): Promise<void> {
    return new Promise((done, failed) => {
      this.#next.push({ work, done, failed });
      if (this.#next.length === this.sets) void this.#measure(phase);
    });
  }

  async #measure(phase: string): Promise<void> {
    const sets = this.#next;
    this.#next = [];
    // What was made outside of a phase is no work of it.
    collect();
    try {
      const began = workClock();
      for (const { work } of sets) {
        const result = work();
        if (result instanceof Promise) await result;
      }
      this.#phases.set(phase, ((workClock() - began) / (sets.length * this.places.length)) * 1e6);
      for (const { done } of sets) done();
    } catch (error) {
      for (const { failed } of sets) failed(error);
    }
  }
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

console.log(
  JSON.stringify(
    what === 'memory' ? await bytesEach(name, Number(rest[0])) : await times(rest[0] as Order, rest.slice(1)),
  ),
);
process.exit();
