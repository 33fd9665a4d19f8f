/**
 * File systems that the host of a virtual machine provides. They have a tag instead of a disk, so they can not be
 * claimed. One that is mounted below the root (as an initramfs leaves it) is not listed anywhere.
 */
import type { KernelPort } from '../../platform/ports.js';
import type { Asking, Use } from './found.js';
import type { Mount } from './mounts.js';
import { virtioBelow } from './virtio.js';

/** File system types by the virtio drivers that provide them. */
const TYPES: ReadonlyMap<string, string> = new Map([
  ['9pnet_virtio', '9p'],
  ['virtiofs', 'virtiofs'],
  ['virtio_fs', 'virtiofs'],
]);

/**
 * The file systems that come through a function. For one that is not mounted visibly, it stays an open question whether
 * it is used.
 */
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
        reason: `the host's file system ${tag ?? '(virtiofs)'} comes through it, and may be mounted invisibly`,
      });
    return seen.map(({ target, source }) => ({
      text: `the host's file system ${source}, mounted at ${target}, comes through it`,
      todo: `umount ${target}`,
    }));
  });
}
