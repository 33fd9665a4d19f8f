/** A worker thread that runs pieces of code one after the other, for tests of what threads share. */
import { Worker } from 'node:worker_threads';

const SOURCE = `
  import { parentPort, workerData } from 'node:worker_threads';
  // What pieces of code keep for later ones.
  const kept = {};
  const run = Object.getPrototypeOf(async () => undefined).constructor;
  parentPort.on('message', async ({ id, code, data }) => {
    let answer;
    try {
      answer = { id, value: await run('kept', 'data', 'load', code)(kept, data, (name) => import(new URL(name, workerData).href)) };
    } catch (error) {
      const { code, message } = error;
      answer = { id, error: { code, message } };
    }
    parentPort.postMessage(answer);
  });`;

/** The error of a piece of code. */
export interface ThreadError {
  readonly code: unknown;
  readonly message: string;
}

/** One thread. */
export class Thread {
  readonly #worker: Worker;
  readonly #exited: Promise<void>;
  #last = 0;

  constructor() {
    const options = { workerData: new URL('../../src/', import.meta.url).href };
    this.#worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(SOURCE)}`), options);
    this.#worker.setMaxListeners(0);
    this.#worker.on('error', () => undefined);
    this.#exited = new Promise((resolve) => this.#worker.once('exit', () => resolve()));
  }

  /**
   * Runs the body of an async function there. It has `kept`, an object for what later pieces need; `data`; and `load`, which imports
   * a module of `src`.
   *
   * @returns what it returns. Rejects with its error: see {@link ThreadError}; and when the thread ends
   */
  run<T>(code: string, data?: unknown): Promise<T> {
    const id = ++this.#last;
    const worker = this.#worker;
    return new Promise<T>((resolve, reject) => {
      const onMessage = (answer: { id: number; value: T; error?: ThreadError }): void => {
        if (answer.id !== id) return;
        worker.off('message', onMessage);
        if (answer.error === undefined) resolve(answer.value);
        else reject(Object.assign(new Error(answer.error.message), { code: answer.error.code }));
      };
      worker.on('message', onMessage);
      void this.#exited.then(() => reject(new Error('the thread has ended')));
      worker.postMessage({ id, code, data });
    });
  }

  /** Ends it, wherever it is. */
  async end(): Promise<void> {
    await this.#worker.terminate();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.end();
  }
}
