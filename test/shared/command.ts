/** Runs the compiled command as users do, and finds what it left behind; listens to commands run in this process. For tests. */
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { Output } from '../../src/cli/shared/output.js';
import { runProgram } from '../../src/cli/program.js';
import { checkDocument } from './json-schema.js';

/** How a command ended. */
export interface Ended {
  readonly status: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A command that was started. */
export interface Running {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
  /** Resolves when `text` has been seen on either output. Rejects when the command ends before. */
  saying(text: string): Promise<void>;
}

/** Where rooms are; a command that runs in this process has another temporary folder meanwhile. */
const ROOT = tmpdir();

/** Settles after the last of {@link Room.call}. */
let calls: Promise<unknown> = Promise.resolve();

/** A directory for one test. Commands that are started here keep all their temporary files in it. */
export class Room implements Disposable {
  readonly path = mkdtempSync(join(ROOT, 'cli-'));
  readonly #children = new Set<ChildProcess>();

  /** The path of a file in here. */
  file(name: string): string {
    return join(this.path, name);
  }

  start(args: readonly string[], environment: Readonly<Record<string, string>> = {}): Running {
    const env = { ...process.env, NO_COLOR: '1', ...environment, TMPDIR: this.path };
    const main = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
    const child = spawn(process.execPath, [main, ...args], { env, cwd: this.path, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#children.add(child);
    const said = { stdout: '', stderr: '' };
    const watchers = new Set<() => void>();
    for (const stream of ['stdout', 'stderr'] as const)
      child[stream].setEncoding('utf8').on('data', (text: string) => {
        said[stream] += text;
        for (const look of watchers) look();
      });
    const ended = new Promise<Ended>((resolve, reject) => {
      child.on('error', reject).on('close', (status, signal) => resolve({ status, signal, ...said }));
    }).then((end) => checked(args, end));
    const saying = (text: string): Promise<void> =>
      new Promise((resolve, reject) => {
        const look = (): void => {
          if (said.stdout.includes(text) || said.stderr.includes(text)) resolve();
        };
        watchers.add(look);
        void ended.then(() => reject(new Error(`it ended before saying "${text}": ${said.stdout}${said.stderr}`)));
        look();
      });
    return { child, ended, saying };
  }

  /**
   * As {@link Room.run}, in this process, which takes far less time: for what does not depend on the process. One at a time,
   * because the process has one temporary folder.
   */
  async call(args: readonly string[]): Promise<Ended> {
    const said = { stdout: '', stderr: '' };
    const stream = (name: keyof typeof said): Writable =>
      new Writable({
        decodeStrings: false,
        write: (text: string, _encoding, done) => {
          said[name] += text;
          done();
        },
      });
    const turn = calls.then(async () => {
      const { TMPDIR } = process.env;
      process.env['TMPDIR'] = this.path;
      try {
        return await runProgram(args, { stdout: stream('stdout'), stderr: stream('stderr') });
      } finally {
        if (TMPDIR === undefined) delete process.env['TMPDIR'];
        else process.env['TMPDIR'] = TMPDIR;
      }
    });
    calls = turn.catch(() => undefined);
    return checked(args, { status: await turn, signal: null, ...said });
  }

  run(args: readonly string[], environment?: Readonly<Record<string, string>>): Promise<Ended> {
    return this.start(args, environment).ended;
  }

  /** Names of files in here that tests have not named as their own. */
  leftovers(...own: readonly string[]): string[] {
    return readdirSync(this.path).filter((name) => !own.includes(name));
  }

  /** Command lines of processes that have to do with this room. */
  processes(): string[] {
    const found: string[] = [];
    for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
      try {
        const line = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
        if (line.includes(this.path)) found.push(line);
      } catch {
        // It has ended meanwhile.
      }
    }
    return found;
  }

  [Symbol.dispose](): void {
    for (const child of this.#children) if (child.exitCode === null) child.kill('SIGKILL');
    rmSync(this.path, { recursive: true, force: true });
  }
}

/** Keeps what a command says to people, and its documents. */
export class Listener extends Output {
  readonly documents: object[] = [];
  #text = '';
  #notes = '';

  get said(): string {
    return this.#text;
  }

  get notes(): string {
    return this.#notes;
  }

  override text(line = ''): void {
    this.#text += `${line}\n`;
  }

  override note(line: string): void {
    this.#notes += `${line}\n`;
  }

  override document(value: object): void {
    this.documents.push(value);
  }
}

/** With `--json`, what was printed is as docs/json.schema.json says. */
function checked(args: readonly string[], ended: Ended): Ended {
  if (args.includes('--json') && ended.stdout !== '') checkDocument(JSON.parse(ended.stdout));
  return ended;
}

/** The only document on standard output. */
export function documentOf({ stdout }: Ended): Record<string, unknown> {
  return JSON.parse(stdout) as Record<string, unknown>;
}
