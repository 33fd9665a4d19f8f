/** Questions about all visible processes (proc(5)). */
import { isDmaError, type DmaError } from '../../errors.js';
import type { KernelPort } from '../../platform/ports.js';
import type { Asking } from './found.js';

/** The result of `call`; `otherwise` if it fails. */
export type Ask = <T>(call: () => T, otherwise: T) => T;

/**
 * Calls `each` for every process. A failure is noted as an open question, unless the process has ended meanwhile. Equal
 * failures are noted once, with a count.
 */
export function askProcesses(kernel: KernelPort, asking: Asking, each: (process: number, ask: Ask) => void): void {
  const failures: { readonly process: number; readonly error: DmaError }[] = [];
  for (const process of asking.ask(() => processes(kernel), []))
    each(process, (call, otherwise) => {
      try {
        return call();
      } catch (error) {
        if (!isDmaError(error)) throw error;
        failures.push({ process, error });
        return otherwise;
      }
    });
  if (failures.length === 0) return;
  const left = new Set(asking.ask(() => processes(kernel), []));
  const causes = new Map<string, { readonly error: DmaError; count: number }>();
  for (const { process, error } of failures) {
    if (!left.has(process)) continue;
    const cause = `${error.code} ${error.reason.replace(/\d+/g, 'N')}`;
    const known = causes.get(cause);
    if (known === undefined) causes.set(cause, { error, count: 1 });
    else known.count++;
  }
  for (const { error, count } of causes.values()) {
    const { code, reason } = error;
    asking.unknown.push({ code, reason: count === 1 ? reason : `${reason}, and ${count - 1} more like that` });
  }
}

/** The numbers of all visible processes. */
function processes(kernel: KernelPort): number[] {
  return kernel
    .list('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number);
}
