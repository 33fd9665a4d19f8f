/**
 * The block and character devices that the driver of a PCI function created: those below it in sysfs, and those shown
 * elsewhere.
 */
import type { KernelPort } from '../../platform/ports.js';
import type { SysNode } from './disks.js';
import type { Asking } from './found.js';

/** The devices among `all` that belong to the function at `address`, also through other buses. */
export function nodesOfFunction(
  kernel: KernelPort,
  asking: Asking,
  all: readonly SysNode[],
  address: string,
): SysNode[] {
  const below = all.filter(({ path }) => path.includes(`/${address}/`));
  const fabrics = overFibreChannel(kernel, asking, address);
  const remote = all.filter(({ path }) => fabrics.some((name) => `${path}/`.includes(`/nvme-fabrics/ctl/${name}/`)));
  const own = [...below, ...remote];
  const controllers = own.flatMap(({ path }) => /\/(nvme\d+)$/.exec(path)?.[1] ?? []);
  return [...own, ...headsOf(kernel, asking, all, controllers), ...nvidiaNodes(kernel, asking, address)];
}

/** With several paths to one disk, NVMe shows the disk under its subsystem, not under its controllers. */
function headsOf(
  kernel: KernelPort,
  asking: Asking,
  all: readonly SysNode[],
  controllers: readonly string[],
): SysNode[] {
  if (controllers.length === 0) return [];
  const directory = '/sys/class/nvme-subsystem';
  const subsystems = asking
    .ask(() => kernel.list(directory), [])
    .filter((name) =>
      asking.ask(() => kernel.list(`${directory}/${name}`), []).some((each) => controllers.includes(each)),
    );
  return all.filter(({ path }) => subsystems.some((name) => path.includes(`/nvme-subsystem/${name}/`)));
}

/**
 * NVMe controllers behind a Fibre Channel adapter: sysfs shows them elsewhere, and they name the adapter by its port.
 */
function overFibreChannel(kernel: KernelPort, asking: Asking, address: string): string[] {
  const hosts = '/sys/class/fc_host';
  const ports = asking
    .ask(() => kernel.list(hosts), [])
    .filter((name) => asking.ask(() => kernel.readLink(`${hosts}/${name}`), undefined)?.includes(`/${address}/`))
    .flatMap((name) => asking.ask(() => kernel.readText(`${hosts}/${name}/port_name`), undefined)?.trim() ?? []);
  if (ports.length === 0) return [];
  const directory = '/sys/class/nvme';
  return asking
    .ask(() => kernel.list(directory), [])
    .filter((name) => {
      const text = asking.ask(() => kernel.readText(`${directory}/${name}/address`), undefined) ?? '';
      // host_traddr=nn-0x20000090fa945c1a:pn-0x10000090fa945c1a
      const port = /(?:^|,)host_traddr=nn-0x[\da-f]+:pn-(0x[\da-f]+)/i.exec(text)?.[1];
      return port !== undefined && ports.some((each) => BigInt(each) === BigInt(port));
    });
}

/** The major number of the device files of NVIDIA's own driver, which does not show them in sysfs. */
const NVIDIA_MAJOR = 195;

function nvidiaNodes(kernel: KernelPort, asking: Asking, address: string): SysNode[] {
  const path = `/proc/driver/nvidia/gpus/${address}/information`;
  const minor = /^Device Minor:\s*(\d+)$/m.exec(asking.ask(() => kernel.readText(path), undefined) ?? '')?.[1];
  if (minor === undefined) return [];
  return [{ kind: 'character', name: `nvidia${minor}`, number: `${NVIDIA_MAJOR}:${minor}`, path }];
}
