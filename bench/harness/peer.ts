/**
 * The C programs that the library is measured against (`peers/`). They are compiled when they are needed, into a directory
 * that goes with the process, and then take orders: one line in, one line of numbers out. So their rounds can alternate
 * with those of the library.
 */
import { spawn, spawnSync, type ChildProcessWithoutNullStreams } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { flagsOf } from './peer-flags.js';

const SOURCES = new URL('../../../bench/peers/', import.meta.url);

/** A running peer. */
export class Peer implements AsyncDisposable {
  readonly pid: number;
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #directory: string | undefined;
  readonly #lines: AsyncIterator<string>;

  private constructor(child: ChildProcessWithoutNullStreams, directory: string | undefined) {
    this.#child = child;
    this.#directory = directory;
    this.pid = child.pid ?? 0;
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    child.stdin.on('error', () => undefined); // the missing answer tells
  }

  /**
   * Compiles and starts `peers/NAME.c`; or only starts it, where $ANYDMA_BENCH_PEERS is a directory that has it.
   *
   * @param args of the program
   * @returns the peer, which the caller closes; or the reason why there is none
   */
  static start(name: string, args: readonly string[] = []): Peer | string {
    const { ANYDMA_BENCH_PEERS: ready } = process.env;
    if (ready !== undefined && existsSync(join(ready, name))) return Peer.#spawn(join(ready, name), undefined, args);
    const directory = mkdtempSync(join(tmpdir(), 'anydma-bench-'));
    const reason = compilePeer(name, directory);
    if (reason === undefined) return Peer.#spawn(join(directory, name), directory, args);
    rmSync(directory, { recursive: true, force: true });
    return reason;
  }

  static #spawn(program: string, directory: string | undefined, args: readonly string[]): Peer {
    return new Peer(spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'] }), directory);
  }

  /** Sends an order. @returns the numbers of the answer @throws Error if the peer has ended, with its last output */
  async ask(order: string): Promise<number[]> {
    return (await this.askText(order)).split(' ').map(Number);
  }

  /** As {@link Peer.ask}, for an answer that is text. */
  async askText(order: string): Promise<string> {
    this.#child.stdin.write(`${order}\n`);
    const line = await this.#lines.next();
    if (line.done === true) {
      const said: unknown = this.#child.stderr.read();
      throw new Error(`the peer ended at "${order}": ${said instanceof Buffer ? said.toString().trim() : 'silently'}`);
    }
    return line.value;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = new Promise((resolve) => this.#child.once('close', resolve));
    this.#child.stdin.end();
    if (this.#child.exitCode === null && this.#child.signalCode === null) await ended;
    if (this.#directory !== undefined) rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** Compiles `peers/NAME.c` to `NAME` in `directory`. @returns the reason why it can not be, if so */
export function compilePeer(name: string, directory: string): string | undefined {
  const flags = flagsOf(name);
  if (typeof flags === 'string') return flags;
  const { CC } = process.env;
  const compiler = [...(CC === undefined ? [] : [CC]), 'cc', 'gcc', 'clang'].find(
    (command) => spawnSync(command, ['--version']).status === 0,
  );
  if (compiler === undefined) return 'no C compiler';
  const source = fileURLToPath(new URL(`${name}.c`, SOURCES));
  const args = ['-O2', '-o', join(directory, name), source, ...flags];
  const { status, stderr } = spawnSync(compiler, args, { encoding: 'utf8' });
  return status === 0 ? undefined : `${compiler} can not compile ${name}.c: ${stderr.split('\n')[0]}`;
}
