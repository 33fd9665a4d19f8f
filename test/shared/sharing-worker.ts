/** A worker thread that attaches to what it is sent, and does what it is told, for tests. */
import { Worker } from 'node:worker_threads';
import type { PoolDescription } from '../../src/memory/pool/pool.js';
import type { RingDescription } from '../../src/memory/pool/ring.js';
import type { Shared } from '../../src/memory/shared/shared.js';

/**
 * What is told is the body of an async function: `anydma` is what was loaded, `held` has what was attached, `args` what was given, and
 * `state` is an object for whatever it wants to keep.
 */
const sourceFor = (file: string): string => `
  import { parentPort } from 'node:worker_threads';
  import * as anydma from ${JSON.stringify(new URL(`../../src/${file}`, import.meta.url).href)};
  const AsyncFunction = Object.getPrototypeOf(async () => undefined).constructor;
  const held = [];
  const state = {};
  parentPort.on('message', async ({ code, args }) => {
    try {
      const value = await new AsyncFunction('anydma', 'held', 'args', 'state', code)(anydma, held, args, state);
      parentPort.postMessage({ value });
    } catch (error) {
      parentPort.postMessage({ failed: { message: String(error?.message ?? error), code: error?.code } });
    }
  });
`;

/** How a thread can end without saying so. */
export const ENDINGS = [
  'terminate()',
  'process.exit()',
  'an uncaught error',
  'no heap left',
  'nothing left to do',
] as const;

/** What went wrong in the worker. */
export class WorkerFailure extends Error {
  constructor(
    message: string,
    readonly code: string | undefined,
  ) {
    super(message);
  }
}

/** The worker. Disposing it terminates it. */
export class SharingWorker implements AsyncDisposable {
  readonly #worker: Worker;
  readonly #exited: Promise<unknown>;

  /** @param loads only what attaches, which takes half the time, or all that the package exports */
  constructor(loads: 'attach' | 'package' = 'attach') {
    const source = sourceFor(loads === 'attach' ? 'share/attach.js' : 'index.js');
    const options = { stderr: true, resourceLimits: { maxOldGenerationSizeMb: 24, maxYoungGenerationSizeMb: 2 } };
    this.#worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), options);
    this.#worker.on('error', () => undefined);
    // `once` of node:events rejects when the worker has an error.
    this.#exited = new Promise((resolve) => this.#worker.once('exit', resolve));
  }

  /** Node's number of the thread. */
  get threadId(): number {
    return this.#worker.threadId;
  }

  /** Attaches to these. @returns their places in `held` */
  async attach(
    ...shared: readonly (Shared<unknown> | PoolDescription | RingDescription)[]
  ): Promise<readonly number[]> {
    const code = 'return args.map((shared) => held.push(anydma.attach(shared)) - 1);';
    return (await this.run(code, ...shared)) as number[];
  }

  /** Does what `code` says. @throws WorkerFailure when that throws */
  async run(code: string, ...args: readonly unknown[]): Promise<unknown> {
    const answer = new Promise<unknown>((resolve) => this.#worker.once('message', resolve));
    this.#worker.postMessage({ code, args });
    const said = (await Promise.race([answer, this.#exited.then(() => undefined)])) as
      { value?: unknown; failed?: { message: string; code?: string } } | undefined;
    if (said === undefined) throw new Error('the worker has ended');
    const { value, failed } = said;
    if (failed !== undefined) throw new WorkerFailure(failed.message, failed.code);
    return value;
  }

  /** Tells it something that it will not answer. */
  tell(code: string, ...args: readonly unknown[]): void {
    this.#worker.postMessage({ code, args });
  }

  /** Ends it in this way, and waits until it has. */
  async end(how: (typeof ENDINGS)[number] = 'terminate()'): Promise<void> {
    switch (how) {
      case 'terminate()':
        await this.#worker.terminate();
        break;
      case 'process.exit()':
        this.tell('process.exit(3);');
        break;
      case 'an uncaught error':
        this.tell("setImmediate(() => { throw new Error('mine'); });");
        break;
      case 'no heap left':
        this.tell('for (const all = []; ; ) all.push({ list: [all.length] });');
        break;
      case 'nothing left to do':
        this.tell("(await import('node:worker_threads')).parentPort.close();");
        break;
    }
    await this.#exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end();
  }
}
