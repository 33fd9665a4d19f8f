/** The processes that have device files open, from /proc/PID/fd. */
import type { KernelPort } from '../../platform/ports.js';
import type { Asking } from './found.js';
import { askProcesses } from './processes.js';

/** A process that has a device file open. */
export interface Opener {
  readonly process: number;
  /** Its name; empty if it can not be read. */
  readonly name: string;
  /** The name of the file, as the process opened it. */
  readonly path: string;
}

/** udev opens every new device for a moment. */
const PASSERS_BY: readonly string[] = ['systemd-udevd', '(udev-worker)', 'udevd', 'mdev'];

/** The inode of the first PID namespace since Linux 3.8 (PID_NS_INIT_INO of include/uapi/linux/nsfs.h). */
const FIRST_NAMESPACE = 'pid:[4026531836]';

/** Processes other than this one, by kind and number of the device: `block 259:0`. */
export function readOpenNodes(kernel: KernelPort, asking: Asking): Map<string, Opener[]> {
  const found = new Map<string, Opener[]>();
  const namespace = asking.ask(() => kernel.readLink('/proc/self/ns/pid'), undefined) ?? FIRST_NAMESPACE;
  if (namespace !== FIRST_NAMESPACE)
    asking.unknown.push({ code: 'EACCES', reason: 'processes outside of this container can not be seen' });
  const own = Number(asking.ask(() => kernel.readLink('/proc/self'), undefined));
  askProcesses(kernel, asking, (process, ask) => {
    if (process === own) return;
    const directory = `/proc/${process}/fd`;
    const paths = new Map<string, string>();
    for (const fd of ask(() => kernel.list(directory), [])) {
      const path = ask(() => kernel.readLink(`${directory}/${fd}`), undefined);
      // A process with another root (chroot) has a path in front of /dev.
      if (path?.includes('/dev/') === true) paths.set(path, `${directory}/${fd}`);
    }
    if (paths.size === 0) return;
    const name = ask(() => kernel.readText(`/proc/${process}/comm`), undefined)?.trim() ?? '';
    if (PASSERS_BY.includes(name)) return;
    for (const [path, link] of paths) {
      const node = ask(() => kernel.nodeAt(link), undefined);
      if (node === undefined) continue;
      const key = `${node.kind} ${node.number}`;
      found.set(key, [...(found.get(key) ?? []), { process, name, path }]);
    }
  });
  return found;
}

/** `process 123 (qemu)` */
export function processText({ process, name }: Pick<Opener, 'process' | 'name'>): string {
  return name === '' ? `process ${process}` : `process ${process} (${name})`;
}
