/**
 * The C programs that the library is measured against (`peers/`). They are compiled when they are needed, into a directory
 * that goes with the process, and then take orders: one line in, one line of numbers out. So their rounds can alternate
 * with those of the library.
 */
import { spawn, spawnSync, type ChildProcessWithoutNullStreams } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const SOURCES = new URL('../../bench/peers/', import.meta.url);

/** A running peer. */
export class Peer implements AsyncDisposable {
  readonly pid: number;
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #directory: string;
  readonly #lines: AsyncIterator<string>;

  private constructor(child: ChildProcessWithoutNullStreams, directory: string) {
    this.#child = child;
    this.#directory = directory;
    this.pid = child.pid ?? 0;
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    child.stdin.on('error', () => undefined); // the missing answer tells
  }

  /**
   * Compiles and starts `peers/NAME.c`.
   *
   * @param flags what the compiler needs to be told: directories and libraries
   * @returns the peer, which the caller closes; or the reason why there is none
   */
  static start(name: string, flags: readonly string[] = []): Peer | string {
    const { CC } = process.env;
    const compiler = [...(CC === undefined ? [] : [CC]), 'cc', 'gcc', 'clang'].find(
      (command) => spawnSync(command, ['--version']).status === 0,
    );
    if (compiler === undefined) return 'no C compiler';
    const directory = mkdtempSync(join(tmpdir(), 'anydma-bench-'));
    const program = join(directory, name);
    const source = fileURLToPath(new URL(`${name}.c`, SOURCES));
    const { status, stderr } = spawnSync(compiler, ['-O2', '-o', program, source, ...flags], { encoding: 'utf8' });
    if (status !== 0) {
      rmSync(directory, { recursive: true, force: true });
      return `${compiler} can not compile ${name}.c: ${stderr.split('\n')[0]}`;
    }
    return new Peer(spawn(program, { stdio: ['pipe', 'pipe', 'pipe'] }), directory);
  }

  /** Sends an order. @returns the numbers of the answer @throws Error when the peer has ended, with what it said last */
  async ask(order: string): Promise<number[]> {
    this.#child.stdin.write(`${order}\n`);
    const line = await this.#lines.next();
    if (line.done === true) {
      const said: unknown = this.#child.stderr.read();
      throw new Error(`the peer ended at "${order}": ${said instanceof Buffer ? said.toString().trim() : 'silently'}`);
    }
    return line.value.split(' ').map(Number);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = new Promise((resolve) => this.#child.once('close', resolve));
    this.#child.stdin.end();
    if (this.#child.exitCode === null && this.#child.signalCode === null) await ended;
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
