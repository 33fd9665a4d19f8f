/**
 * Devices that the kernel serves to other machines: NVMe targets, and SCSI targets over files. The kernel opens them
 * without claiming them, and no process has them open.
 */
import type { DeviceNode, KernelPort } from '../../platform/ports.js';
import type { Asking } from './found.js';

/** A device that is served. */
export interface Served {
  readonly node: DeviceNode;
  /** Its path in the configuration. */
  readonly path: string;
  /** What serves it: `the NVMe target nqn.2026-01.org.example:disk` */
  readonly by: string;
  /** What ends it. */
  readonly todo: string;
}

const NVME_TARGETS = '/sys/kernel/config/nvmet/subsystems';
const SCSI_BACKSTORES = '/sys/kernel/config/target/core';

/**
 * All served devices, from configfs (drivers/nvme/target/configfs.c, drivers/target/target_core_configfs.c of Linux).
 */
export function readServed(kernel: KernelPort, asking: Asking): Served[] {
  const list = (directory: string): string[] => asking.ask(() => kernel.list(directory), []);
  const read = (path: string): string | undefined => asking.ask(() => kernel.readText(path), undefined)?.trim();
  const servedFrom = (directory: string, pathFile: string, by: string, todo: string): Served[] => {
    if (read(`${directory}/enable`) !== '1') return [];
    const path = read(`${directory}/${pathFile}`) ?? '';
    const node = path.startsWith('/') ? asking.ask(() => kernel.nodeAt(path), undefined) : undefined;
    return node === undefined ? [] : [{ node, path, by, todo }];
  };
  const nvme = list(NVME_TARGETS).flatMap((name) => {
    const directory = `${NVME_TARGETS}/${name}`;
    const spaces = list(`${directory}/namespaces`).map((number) => `${directory}/namespaces/${number}`);
    return [...spaces, `${directory}/passthru`].flatMap((each) =>
      servedFrom(each, 'device_path', `the NVMe target ${name}`, `echo 0 > ${each}/enable`),
    );
  });
  const scsi = list(SCSI_BACKSTORES).flatMap((adapter) =>
    list(`${SCSI_BACKSTORES}/${adapter}`).flatMap((name) => {
      const title = `${adapter}/${name}`;
      return servedFrom(
        `${SCSI_BACKSTORES}/${title}`,
        'udev_path',
        `the SCSI target's backstore ${title}`,
        `delete the backstore ${title} ("targetcli ls" lists what uses it)`,
      );
    }),
  );
  return [...nvme, ...scsi];
}
