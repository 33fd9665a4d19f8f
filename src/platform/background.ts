/**
 * System calls on other threads, so that the event loop is not blocked. koffi runs them on libuv's pool, which Node's
 * own `fs`, `dns` and `crypto` use too: all threads of JavaScript together use at most half of it, and further calls
 * wait here. A thread that ends, or a process that exits, waits for the calls that have begun and drops the others.
 */

/** The result of a call. */
export interface Outcome {
  /** What the function returned; a failure is -1, or 0 for functions that return addresses. */
  readonly result: number;
  /** The errno after the call, of the thread that made it. */
  readonly errno: number;
}

/** Default size of libuv's pool, in threads. */
const DEFAULT_POOL = 4;
/** libuv's limit for the size of its pool. */
const LARGEST_POOL = 1024;

/** How many calls may run on other threads at once: half of the pool, at least one. */
export function lanesOf(environment: Readonly<Record<string, string | undefined>>): number {
  const size = Number.parseInt(environment['UV_THREADPOOL_SIZE'] ?? '', 10);
  const pool = size > 0 ? Math.min(size, LARGEST_POOL) : DEFAULT_POOL;
  return Math.max(1, Math.floor(pool / 2));
}

/** Limits the calls of one JavaScript thread that run on other threads. */
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
