/** Devices with numbers that a PCI function's driver made: those below it in sysfs, and those that are shown elsewhere. */
import type { KernelPort } from '../../platform/ports.js';
import type { SysNode } from './disks.js';
import type { Asking } from './found.js';

/** The devices among `all` that go with the function at `address`, whatever buses are between. */
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

/** With several ways to one disk, NVMe puts it above its controllers. */
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

/** NVMe controllers behind a Fibre Channel adapter: they name it by its port, and are not below it. */
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

/** Major number of the nodes of NVIDIA's own driver, which has none of them in sysfs. */
const NVIDIA_MAJOR = 195;

function nvidiaNodes(kernel: KernelPort, asking: Asking, address: string): SysNode[] {
  const path = `/proc/driver/nvidia/gpus/${address}/information`;
  const minor = /^Device Minor:\s*(\d+)$/m.exec(asking.ask(() => kernel.readText(path), undefined) ?? '')?.[1];
  if (minor === undefined) return [];
  return [{ kind: 'character', name: `nvidia${minor}`, number: `${NVIDIA_MAJOR}:${minor}`, path }];
}
