/** What tests need besides this checkout, and takes minutes to make: made once a machine, and kept in a directory outside. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';

/** Something can not be had on this machine, and why. */
export class Unavailable extends Error {}

/** The directory in the environment variable `variable`, or else `name` below $XDG_CACHE_HOME or /var/tmp. */
export function cacheDirectory(variable: string, name: string): string {
  const { [variable]: own, XDG_CACHE_HOME: shared } = process.env;
  if (own !== undefined && own !== '') return own;
  return join(shared !== undefined && shared !== '' ? shared : '/var/tmp', name);
}

/** One program of several that make something. */
export interface Step {
  /** What it is for, for the user. */
  readonly what: string;
  readonly command: readonly string[];
  /** Its working directory. */
  readonly cwd?: string;
  /** Called now and then with what the program has said so far, line by line. */
  readonly watch?: (lines: readonly string[]) => void;
}

/** Runs a step; its output goes to a log. Rejects with {@link Unavailable} when it fails. */
export type Run = (step: Step) => Promise<void>;

/** milliseconds */
const WATCH_EVERY = 30_000;

/**
 * The directory `name` in the cache directory `cache`. When it is not there, `make` fills a new directory, which gets its
 * name at the end, so that it is complete or not there. All that the steps print is in `log` in the cache directory.
 *
 * @param say is told what is being done
 * @param signal ends it early; what runs is killed
 * @throws Unavailable when it can not be made here
 */
export async function madeOnce(
  cache: string,
  name: string,
  make: (directory: string, run: Run) => Promise<void>,
  say: (line: string) => void,
  signal?: AbortSignal,
): Promise<string> {
  const place = join(cache, name);
  if (existsSync(place)) return place;
  mkdirSync(cache, { recursive: true, mode: 0o755 });
  const { uid, mode } = statSync(cache);
  if (uid !== process.getuid?.() || (mode & 0o022) !== 0)
    throw new Unavailable(`${cache} must belong to the user who runs this, and nobody else may write it`);

  const directory = mkdtempSync(join(cache, 'new-'));
  chmodSync(directory, 0o755);
  const log = join(cache, `log-${name}`);
  writeFileSync(log, '');
  const run = (step: Step): Promise<void> => {
    say(step.what);
    return runLogged(step, log, signal);
  };
  try {
    await make(directory, run);
    // Somebody else may have made the same meanwhile.
    if (!existsSync(place)) renameSync(directory, place);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
  return place;
}

async function runLogged({ what, command, cwd, watch }: Step, log: string, signal?: AbortSignal): Promise<void> {
  const out = openSync(log, 'a');
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C' };
  // Who can end it early ends its whole process group; else it stays in ours, which a terminal ends.
  const detached = signal !== undefined;
  const child = spawn(command[0] ?? '', command.slice(1), { cwd, env, detached, stdio: ['ignore', out, out] });
  const end = (): void => {
    if (child.pid !== undefined && child.exitCode === null && child.signalCode === null)
      process.kill(-child.pid, 'SIGKILL');
  };
  const timer = watch && setInterval(() => watch(readFileSync(log, 'utf8').split('\n')), WATCH_EVERY);
  signal?.addEventListener('abort', end);
  try {
    signal?.throwIfAborted();
    const [status] = (await once(child, 'close')) as [number | null];
    signal?.throwIfAborted();
    if (status !== 0) throw new Unavailable(`${what}: ${lastWords(log)} (all of it is in ${log})`);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    throw new Unavailable(`${what}: ${command[0] ?? ''} is not there`);
  } finally {
    signal?.removeEventListener('abort', end);
    clearInterval(timer);
    closeSync(out);
  }
}

/** What stands last in a log, and is the reason, mostly. */
function lastWords(log: string): string {
  return readFileSync(log, 'utf8').trim().split('\n').at(-1) ?? '';
}
