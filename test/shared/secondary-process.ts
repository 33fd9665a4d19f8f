/** Processes that are attached to a primary, for tests: they run functions of the test, and can be killed. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { DmaError, ERRNO, type ErrorCode } from '../../src/errors.js';
import type * as Anydma from '../../src/index.js';
import type { Secondary } from '../../src/share/secondary.js';

const PACKAGE = fileURLToPath(new URL('../../src/index.js', import.meta.url));

/** What functions get: the library, the connection, and an object that stays from call to call. */
export interface Inside {
  readonly anydma: typeof Anydma;
  /** Connected by {@link SecondaryProcess.attach}. */
  store: Secondary;
  readonly kept: object;
}

const PROGRAM = `
import * as anydma from ${JSON.stringify(PACKAGE)};
const inside = { anydma, kept: {} };
process.on('message', async ({ id, code, argument }) => {
  try {
    const result = await (0, eval)('(' + code + ')')(inside, argument);
    process.send({ id, result });
  } catch (error) {
    const { message, code, operation, reason, hint, stack } = error;
    process.send({ id, error: { message, code, operation, reason, hint, stack } });
  }
});
process.send({ id: 0 });
`;

interface Answer {
  readonly id: number;
  readonly result?: unknown;
  readonly error?: {
    readonly message: string;
    readonly code?: ErrorCode;
    readonly operation?: string;
    readonly reason?: string;
    readonly hint?: string;
    readonly stack?: string;
  };
}

/** A process of the library. It is killed when it is disposed. */
export class SecondaryProcess implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, (answer: Answer) => void>();
  #next = 1;

  private constructor(child: ChildProcess) {
    this.#child = child;
    child.on('message', (answer: Answer) => {
      this.#waiting.get(answer.id)?.(answer);
      this.#waiting.delete(answer.id);
    });
    child.on('exit', () => {
      for (const settle of this.#waiting.values()) settle({ id: 0, error: { message: 'the process has ended' } });
      this.#waiting.clear();
    });
  }

  static async start(
    options: { readonly uid?: number; readonly env?: Record<string, string> } = {},
  ): Promise<SecondaryProcess> {
    const { uid, env } = options;
    const child = spawn(process.execPath, ['--input-type=module', '-e', PROGRAM], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      ...(uid === undefined ? {} : { uid, gid: uid, cwd: '/' }),
      env: { ...process.env, ...env },
    });
    await once(child, 'message');
    return new SecondaryProcess(child);
  }

  /** Starts one and attaches it. */
  static async attach(name: string, label?: string): Promise<SecondaryProcess> {
    const made = await SecondaryProcess.start();
    try {
      await made.run(
        async (inside, { name, label }) => {
          inside.store = await inside.anydma.Eal.attach(name, { label });
        },
        { name, label },
      );
      return made;
    } catch (error) {
      await made[Symbol.asyncDispose]();
      throw error;
    }
  }

  get pid(): number {
    return this.#child.pid ?? -1;
  }

  /** Runs a function there, which sees nothing of the test but its arguments. @throws DmaError as it does */
  async run<T, A>(work: (inside: Inside, argument: A) => T | Promise<T>, argument?: A): Promise<T> {
    const id = this.#next++;
    const answer = new Promise<Answer>((resolve) => this.#waiting.set(id, resolve));
    this.#child.send({ id, code: String(work), argument });
    const { result, error } = await answer;
    if (error === undefined) return result as T;
    const { code, operation = '', reason = error.message, hint } = error;
    if (code === undefined || !(code in ERRNO)) throw new Error(error.stack ?? error.message);
    throw new DmaError({ code, operation, reason, hint });
  }

  /** Sends a signal, and waits until the process has ended if it ends it. */
  async kill(signal: 'SIGKILL' | 'SIGSTOP' | 'SIGCONT' = 'SIGKILL'): Promise<void> {
    this.#child.kill(signal);
    if (signal === 'SIGKILL' && this.#child.exitCode === null && this.#child.signalCode === null)
      await once(this.#child, 'exit');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}
