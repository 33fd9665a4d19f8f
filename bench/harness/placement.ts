/** Where processes run. Two that wait for each other are measured on one CPU, because waking an idle one takes longer. */
import { spawnSync } from 'node:child_process';
import { readlinkSync } from 'node:fs';

/**
 * Keeps this process's main thread and the processes `others` on one CPU until the result is disposed.
 *
 * @returns the reason, if that is not possible
 */
export function onOneCpu(others: readonly number[]): Disposable | string {
  const before = taskset(['-c', '-p', String(process.pid)])?.match(/: (\S+)\s*$/)?.[1];
  const cpu = before?.match(/\d+$/)?.[0];
  if (before === undefined || cpu === undefined) return 'no taskset(1)';
  const pids = [process.pid, ...others];
  const place = (cpus: string): boolean =>
    pids.map((pid) => taskset(['-c', '-p', cpus, String(pid)]) !== undefined).every(Boolean);
  const back: Disposable = { [Symbol.dispose]: () => void place(before) };
  if (place(cpu)) return back;
  back[Symbol.dispose]();
  return 'taskset(1) is not allowed to';
}

/** The CPUs that this process may run on. */
export function cpusOfThis(): number[] {
  const list = taskset(['-c', '-p', String(process.pid)])?.match(/: (\S+)\s*$/)?.[1] ?? '';
  return list.split(',').flatMap((part) => {
    const [first, last = first] = part.split('-').map(Number);
    return Number.isInteger(first) ? Array.from({ length: last - first + 1 }, (_, i) => first + i) : [];
  });
}

/** Keeps this thread on one CPU. @returns ends that */
export function pinTo(cpu: number): () => void {
  const thread = readlinkSync('/proc/thread-self').replace(/.*\//, '');
  const before = cpusOfThis().join(',');
  taskset(['-c', '-p', String(cpu), thread]);
  return () => void taskset(['-c', '-p', before, thread]);
}

function taskset(args: readonly string[]): string | undefined {
  const { status, stdout } = spawnSync('taskset', args, { encoding: 'utf8' });
  return status === 0 ? stdout : undefined;
}
