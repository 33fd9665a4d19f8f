/** What is mounted, in every mount namespace that can be seen, and what is swapped to (proc_pid_mountinfo(5), proc_swaps(5)). */
import type { KernelPort } from '../../platform/ports.js';
import type { Asking } from './found.js';
import { askProcesses } from './processes.js';

/** A mounted file system. */
export interface Mount {
  /** The number of its device: `259:1`; with 0 before the colon it has none, or several. */
  readonly number: string;
  /** The directory, as its namespace sees it. */
  readonly target: string;
  readonly type: string;
  /** What was mounted: a device, a tag, or any text. */
  readonly source: string;
  /** A process that sees it; `undefined`: this one. */
  readonly process: number | undefined;
}

/** An area that the kernel swaps to. */
export interface Swap {
  readonly path: string;
  readonly kind: 'partition' | 'file';
  /** Its name is gone: what has that name now is something else. */
  readonly deleted: boolean;
}

/** All mounts of this process, of the first one, and of one process of each other mount namespace. */
export function readMounts(kernel: KernelPort, asking: Asking): Mount[] {
  const mounts = asking.ask(() => parse(kernel.readText('/proc/self/mountinfo') ?? '', undefined), []);
  const own = asking.ask(() => kernel.readLink('/proc/self/ns/mnt'), undefined);
  const seen = new Set([own]);
  askProcesses(kernel, asking, (process, ask) => {
    const space = ask(() => kernel.readLink(`/proc/${process}/ns/mnt`), undefined);
    // This process may be confined to a part of what the first one sees.
    if (space === undefined || (seen.has(space) && process !== 1)) return;
    const text = ask(() => kernel.readText(`/proc/${process}/mountinfo`), undefined);
    if (text === undefined) return;
    seen.add(space);
    mounts.push(...parse(text, space === own ? undefined : process));
  });
  return mounts;
}

function parse(text: string, process: number | undefined): Mount[] {
  return text.split('\n').flatMap((line) => {
    const fields = line.split(' ');
    const dash = fields.indexOf('-', 6);
    if (dash < 0) return [];
    const [number, target, type, source] = [fields[2], fields[4], fields[dash + 1], fields[dash + 2] ?? ''];
    return [{ number, target: unescaped(target), type, source: unescaped(source), process }];
  });
}

/** All areas that are swapped to. */
export function readSwaps(kernel: KernelPort): Swap[] {
  const lines = (kernel.readText('/proc/swaps') ?? '').split('\n').slice(1);
  return lines.flatMap((line) => {
    const [name, kind] = line.split(/\s+/);
    if (kind === undefined) return [];
    const path = unescaped(name);
    const deleted = path.endsWith(DELETED);
    return [{ path: withoutDeleted(path), kind: kind === 'file' ? 'file' : 'partition', deleted } as const];
  });
}

/** What the kernel adds to the name of what was removed while it is in use. */
const DELETED = ' (deleted)';

/** A name as it was before it was removed. */
export function withoutDeleted(path: string): string {
  return path.endsWith(DELETED) ? path.slice(0, -DELETED.length) : path;
}

/** Where a file is mounted from, by its name in this process's namespace: the last of the mounts with the longest target. */
export function mountOf(mounts: readonly Mount[], path: string): Mount | undefined {
  let best: Mount | undefined;
  for (const mount of mounts) {
    if (mount.process !== undefined) continue;
    const inside =
      mount.target === '/' || path === mount.target || path.startsWith(`${mount.target.replace(/\/$/, '')}/`);
    if (inside && (best === undefined || mount.target.length >= best.target.length)) best = mount;
  }
  return best;
}

/** Blanks and such are written as three octal digits; the bytes are UTF-8, mostly. */
function unescaped(text: string): string {
  const bytes = text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(parseInt(digits, 8)));
  return Buffer.from(bytes, 'latin1').toString('utf8');
}
