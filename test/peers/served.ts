/** Runs `anydma serve`, as a user would, and keeps what it says. */
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, readdirSync, rmSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { spawnTied } from '../shared/tied.js';
import { until } from '../shared/until.js';

const CLI = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));

/** What the server says when a client comes, leaves, or is refused. */
export const SAID = {
  CONNECTED: 'a client has connected',
  GONE: 'the client is gone',
  REFUSED: 'another client was refused',
} as const;

/** A device at a socket, served by a process of its own until disposed. */
export class ServedDevice implements AsyncDisposable {
  /** Lines of standard error. */
  readonly said: string[] = [];

  private constructor(
    private readonly child: ChildProcess,
    readonly socketPath: string,
  ) {}

  /** Resolves when the socket can be connected to. */
  static async start(device: string, socketPath: string, options: readonly string[] = []): Promise<ServedDevice> {
    const child = spawnTied(process.execPath, [CLI, 'serve', device, '--socket', socketPath, '--json', ...options]);
    const served = new ServedDevice(child, socketPath);
    createInterface({ input: child.stderr }).on('line', (line) => served.said.push(line));
    let ready = false;
    createInterface({ input: child.stdout }).once('line', () => (ready = true));
    try {
      await until(() => ready || child.exitCode !== null, 'the server is ready');
      if (!ready) throw new Error(`anydma serve ${device} ended: ${served.said.join('\n')}`);
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
    return served;
  }

  /** Does the process live? */
  get alive(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  /** Ends the process in no order, as a crash does. */
  async kill(): Promise<void> {
    const exit = once(this.child, 'exit');
    this.child.kill('SIGKILL');
    await exit;
    rmSync(this.socketPath, { force: true });
  }

  /** What the process holds of clients: descriptors, and mappings of files that are not on a disk. */
  holds(): { readonly descriptors: number; readonly mappings: number } {
    const proc = `/proc/${this.child.pid ?? 0}`;
    const maps = readFileSync(`${proc}/maps`, 'utf8').split('\n');
    return {
      descriptors: readdirSync(`${proc}/fd`).length,
      mappings: maps.filter((line) => /memory-backend|memfd:|\/memory$/.test(line)).length,
    };
  }

  /** How often it has said `text`, one of {@link SAID}. */
  times(text: string): number {
    return this.said.filter((line) => line.includes(text)).length;
  }

  /** Ends the server as Ctrl-C does; rejects unless it ends well. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.alive) {
      const exit = once(this.child, 'exit');
      this.child.kill('SIGINT');
      const timer = setTimeout(() => this.child.kill('SIGKILL'), 5000);
      await exit;
      clearTimeout(timer);
    }
    rmSync(this.socketPath, { force: true });
    const { exitCode, signalCode } = this.child;
    // 130: ended by the interrupt, as asked.
    if (exitCode !== 0 && exitCode !== 130)
      throw new Error(`anydma serve ended with ${exitCode ?? signalCode}: ${this.said.join('\n')}`);
  }
}
