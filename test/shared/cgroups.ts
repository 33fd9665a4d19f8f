/** Control groups for tests, on machines where they can be made: as root, with the controller mounted. */
import { appendFileSync, mkdtempSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { spawn } from 'node:child_process';

/** What became of a program. */
export interface Ended {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly out: string;
  readonly err: string;
}

/** A control group that programs can be run in. */
export interface TestCgroup {
  /** Where its files are. */
  readonly directory: string;
  /** Runs an ES module in a Node.js of its own, in the group from its first instruction on. */
  run(program: string, nodeOptions?: readonly string[]): Promise<Ended>;
  /** Removes the group. */
  giveBack(): void;
}

/** Limits in bytes by the names of version 2, such as `hugetlb.2MB.max`; those of version 1 are found by them. */
type Limits = Readonly<Record<string, number>>;

/**
 * A new control group with `limits`.
 *
 * @returns why there can be none, to be printed by the test that is skipped
 */
export function cgroupForTest(controller: 'memory' | 'hugetlb', limits: Limits): TestCgroup | string {
  try {
    const { path, version } = find(controller);
    if (version === 2) appendFileSync(join(path, 'cgroup.subtree_control'), `+${controller}`);
    const directory = mkdtempSync(join(path, 'anydma-test-'));
    try {
      for (const [name, bytes] of Object.entries(limits)) {
        const file = version === 2 ? name : name.replace(/\.max$/, '.limit_in_bytes');
        writeFileSync(join(directory, file), String(bytes));
      }
    } catch (error) {
      rmdirSync(directory);
      throw error;
    }
    return {
      directory,
      run: (program, options) => runIn(directory, program, options),
      giveBack: () => rmdirSync(directory),
    };
  } catch (error) {
    return `no control group for ${controller} can be made here: ${error instanceof Error ? error.message : String(error)}`;
  }
}

/** Where groups of a controller are made. Throws when it is nowhere. */
function find(controller: string): { path: string; version: 1 | 2 } {
  for (const line of readFileSync('/proc/self/mounts', 'utf8').split('\n')) {
    const [, path, type, options = ''] = line.split(' ');
    if (type === 'cgroup' && options.split(',').includes(controller)) return { path, version: 1 };
    if (type !== 'cgroup2') continue;
    const there = readFileSync(join(path, 'cgroup.controllers'), 'utf8').trim().split(' ');
    if (there.includes(controller)) return { path, version: 2 };
  }
  // Where nothing mounts control groups, as in a small guest.
  const path = '/sys/fs/cgroup';
  throw new Error(`${controller} is not mounted below ${path}`);
}

function runIn(directory: string, program: string, nodeOptions: readonly string[] = []): Promise<Ended> {
  const script = 'echo $$ > "$0/cgroup.procs" && exec "$@"';
  const node = [process.execPath, ...nodeOptions, '--input-type=module', '-e', program];
  const child = spawn('sh', ['-c', script, directory, ...node], { stdio: ['ignore', 'pipe', 'pipe'] });
  const texts = { out: '', err: '' };
  child.stdout.on('data', (data: Buffer) => (texts.out += data.toString()));
  child.stderr.on('data', (data: Buffer) => (texts.err += data.toString()));
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (status, signal) => resolve({ status, signal, ...texts }));
  });
}
