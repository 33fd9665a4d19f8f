/**
 * File systems that come from the host of a virtual machine: they have a tag in place of a disk, so that nothing can be
 * claimed, and one that is mounted where nobody sees it (below the root, as an initramfs leaves it) shows nowhere.
 */
import type { KernelPort } from '../../platform/ports.js';
import type { Asking, Use } from './found.js';
import type { Mount } from './mounts.js';
import { virtioBelow } from './virtio.js';

/** Their types by the drivers of virtio that bring them. */
const TYPES: ReadonlyMap<string, string> = new Map([
  ['9pnet_virtio', '9p'],
  ['virtiofs', 'virtiofs'],
  ['virtio_fs', 'virtiofs'],
]);

/** Those that come through a function; one that is mounted nowhere is put among what is not known. */
export function shareUses(kernel: KernelPort, asking: Asking, address: string, mounts: () => readonly Mount[]): Use[] {
  return virtioBelow(kernel, asking, address).flatMap((directory) => {
    const driver = asking
      .ask(() => kernel.readLink(`${directory}/driver`), undefined)
      ?.split('/')
      .at(-1);
    const type = TYPES.get(driver ?? '');
    if (type === undefined) return [];
    const tag = asking.ask(() => kernel.readText(`${directory}/mount_tag`), undefined)?.replace(/\0|\n/g, '');
    const seen = mounts().filter((mount) => mount.type === type && mount.source === (tag ?? mount.source));
    if (seen.length === 0)
      asking.unknown.push({
        code: 'EBUSY',
        reason: `the host's file system ${tag ?? '(virtiofs)'} comes through it, and may be mounted where nobody sees it`,
      });
    return seen.map(({ target, source }) => ({
      text: `the host's file system ${source}, mounted at ${target}, comes through it`,
      todo: `umount ${target}`,
    }));
  });
}
