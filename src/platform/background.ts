/**
 * System calls on other threads, so that the event loop goes on meanwhile. koffi makes them on libuv's pool, which Node's own
 * `fs`, `dns` and `crypto` use too: at most half of its threads are taken at a time, whoever asks, and the rest waits its turn
 * here. A thread that ends, or a process that exits, waits for the calls that have begun; those that have not are dropped.
 */

/** What a call came to. */
export interface Outcome {
  /** What the function returned; a failure is -1, or 0 where it returns addresses. */
  readonly result: number;
  /** The error number after the call, of the thread that made it. */
  readonly errno: number;
}

/** Threads of libuv's pool, as Node was started with. */
const DEFAULT_POOL = 4;
/** libuv's own limit of that. */
const LARGEST_POOL = 1024;

/** How many calls may be on other threads at once: half of the pool, and one at least. */
export function lanesOf(environment: Readonly<Record<string, string | undefined>>): number {
  const size = Number.parseInt(environment['UV_THREADPOOL_SIZE'] ?? '', 10);
  const pool = size > 0 ? Math.min(size, LARGEST_POOL) : DEFAULT_POOL;
  return Math.max(1, Math.floor(pool / 2));
}

/** See the head of the file. One for each thread of JavaScript. */
export class Background {
  /** How many calls may run at once. */
  readonly lanes: number;
  readonly #waiting: (() => void)[] = [];
  #running = 0;

  constructor(lanes = lanesOf(process.env)) {
    this.lanes = lanes;
  }

  /** Runs `work` when its turn comes, in the order of the calls. */
  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#running >= this.lanes) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    else this.#running++;
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#running--;
      else next();
    }
  }
}
