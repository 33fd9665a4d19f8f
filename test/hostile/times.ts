/** How long it took until a process was back after an attack: serving the next one, or done with a bad one. */
import { readFileSync } from 'node:fs';

/** A machine that has nothing else to do needs less. milliseconds */
const SOON = 1000;
/** The kernel tells the time of processes in this unit (USER_HZ). milliseconds */
const TICK = 10;

/** CPU time that a process has taken. milliseconds */
function cpuOf(pid: number): number {
  try {
    // After the name, which may have spaces: state is field 3, utime 14, stime 15.
    const fields = readFileSync(`/proc/${pid}/stat`, 'latin1')
      .replace(/^.*\) /s, '')
      .split(' ');
    return (Number(fields[11]) + Number(fields[12])) * TICK;
  } catch {
    // It has ended.
    return 0;
  }
}

/** The longest time of each kind of attack. */
export class Times {
  readonly #longest = new Map<string, { readonly ms: number; readonly cpu: number }>();

  /** Does `work`, and notes how long that took, and how much CPU time of the process `pid`. */
  async noting<T>(kind: string, pid: number | undefined, work: () => Promise<T>): Promise<T> {
    const begin = performance.now();
    const before = cpuOf(pid ?? 0);
    try {
      return await work();
    } finally {
      const ms = performance.now() - begin;
      const cpu = Math.max(0, cpuOf(pid ?? 0) - before);
      const known = this.#longest.get(kind);
      this.#longest.set(kind, { ms: Math.max(ms, known?.ms ?? 0), cpu: Math.max(cpu, known?.cpu ?? 0) });
    }
  }

  /** The longest first, with the most CPU time; those of more than a second are marked. */
  lines(most = 12): string[] {
    const sorted = [...this.#longest].sort(([, a], [, b]) => b.ms - a.ms);
    return sorted.slice(0, most).map(([kind, { ms, cpu }]) => {
      const figures = `${ms.toFixed(0).padStart(6)} ms, CPU ${cpu.toFixed(0).padStart(5)} ms`;
      return `${figures}  ${kind}${ms > SOON ? '  MORE THAN 1 s' : ''}`;
    });
  }
}
