/** The RDMA device of a PCI function, found in sysfs. */
import { unlessFails } from '../../errors.js';
import type { KernelPort } from '../../platform/ports.js';
import { interfacesOf } from '../pci/sysfs.js';

const CLASS = '/sys/class/infiniband';

/**
 * The name of the RDMA device that belongs to a PCI function: created by its kernel driver, or by software (rxe, siw)
 * on its network interface; `undefined` if there is none. Such a function can be used for RDMA while it stays with its
 * kernel driver.
 *
 * @param address such as `0000:03:00.0`
 */
export function verbsDeviceOf(kernel: Pick<KernelPort, 'list' | 'readText'>, address: string): string | undefined {
  const device = `/sys/bus/pci/devices/${address}`;
  const [own] = kernel.list(`${device}/infiniband`);
  if (own !== undefined) return own;
  const interfaces = interfacesOf(kernel, device);
  if (interfaces.length === 0) return undefined;
  return kernel.list(CLASS).find((name) => {
    for (const netdev of netdevsOf(kernel, name)) if (interfaces.includes(netdev)) return true;
    return false;
  });
}

/** The network interfaces that an RDMA device uses. */
function* netdevsOf(kernel: Pick<KernelPort, 'list' | 'readText'>, name: string): Generator<string> {
  // rxe names its interface in one file; other drivers have a table with an entry for each address, and some entries
  // are empty.
  const parent = kernel.readText(`${CLASS}/${name}/parent`)?.trim();
  if (parent !== undefined && parent !== '') yield parent;
  for (const port of kernel.list(`${CLASS}/${name}/ports`)) {
    const table = `${CLASS}/${name}/ports/${port}/gid_attrs/ndevs`;
    for (const index of kernel.list(table)) {
      // Reading an empty entry is EINVAL.
      const netdev = unlessFails(['EINVAL'], () => kernel.readText(`${table}/${index}`))?.trim();
      if (netdev !== undefined && netdev !== '') yield netdev;
    }
  }
}
