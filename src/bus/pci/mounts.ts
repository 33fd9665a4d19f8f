/** Mounted file systems in every visible mount namespace, and swap areas (proc_pid_mountinfo(5), proc_swaps(5)). */
import type { KernelPort } from '../../platform/ports.js';
import type { Asking } from './found.js';
import { askProcesses } from './processes.js';

/** A mounted file system. */
export interface Mount {
  /** The number of its device: `259:1`; a number that begins with `0:` means no device, or several. */
  readonly number: string;
  /** The mount point, as its namespace sees it. */
  readonly target: string;
  readonly type: string;
  /** The source of the mount: a device, a tag, or any text. */
  readonly source: string;
  /** A process in the namespace that has the mount; `undefined`: this process. */
  readonly process: number | undefined;
}

/** A swap area. */
export interface Swap {
  readonly path: string;
  readonly kind: 'partition' | 'file';
  /** Its file was deleted: another file may have this name now. */
  readonly deleted: boolean;
}

/** All mounts of this process, of process 1, and of one process in each other mount namespace. */
export function readMounts(kernel: KernelPort, asking: Asking): Mount[] {
  const mounts = asking.ask(() => parse(kernel.readText('/proc/self/mountinfo') ?? '', undefined), []);
  const own = asking.ask(() => kernel.readLink('/proc/self/ns/mnt'), undefined);
  const seen = new Set([own]);
  askProcesses(kernel, asking, (process, ask) => {
    const space = ask(() => kernel.readLink(`/proc/${process}/ns/mnt`), undefined);
    // This process may see only a part of process 1's file systems (chroot).
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

/** All swap areas. */
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

/** The kernel adds this to the name of a deleted file that is still in use. */
const DELETED = ' (deleted)';

/** The name that a file had before it was deleted. */
export function withoutDeleted(path: string): string {
  return path.endsWith(DELETED) ? path.slice(0, -DELETED.length) : path;
}

/** The mount that a path of this process's namespace is on: the last of the mounts with the longest target. */
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

/**
 * Decodes blanks and similar characters, which are written as three octal digits; the bytes are UTF-8 in most cases.
 */
function unescaped(text: string): string {
  const bytes = text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(parseInt(digits, 8)));
  return Buffer.from(bytes, 'latin1').toString('utf8');
}
