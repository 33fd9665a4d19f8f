/**
 * Memory of the machine that depends on a PCI function: CXL memory, and memory that a host provides through virtio-mem.
 */
import type { KernelPort } from '../../platform/ports.js';
import type { Asking, Use } from './found.js';
import { virtioBelow } from './virtio.js';

const DEVICES = '/sys/bus/cxl/devices';

/** The memory that the kernel has through a function. */
export function memoryUses(kernel: KernelPort, asking: Asking, address: string): Use[] {
  return [...cxlUses(kernel, asking, address), ...virtioUses(kernel, asking, address)];
}

/** The CXL regions that contain memory of a function (Documentation/ABI/testing/sysfs-bus-cxl). */
function cxlUses(kernel: KernelPort, asking: Asking, address: string): Use[] {
  const linkOf = (path: string): string => asking.ask(() => kernel.readLink(`${DEVICES}/${path}`), undefined) ?? '';
  const names = asking.ask(() => kernel.list(DEVICES), []);
  const memories = names.filter((name) => /^mem\d+$/.test(name) && linkOf(name).includes(`/${address}/`));
  if (memories.length === 0) return [];
  const endpoints = names.filter(
    (name) => name.startsWith('endpoint') && memories.includes(linkOf(`${name}/uport`).split('/').at(-1) ?? ''),
  );
  const prefixes = endpoints.map((name) => `decoder${name.slice('endpoint'.length)}.`);
  const decoders = names.filter((name) => prefixes.some((prefix) => name.startsWith(prefix)));
  const regions = decoders.map((name) =>
    asking.ask(() => kernel.readText(`${DEVICES}/${name}/region`), undefined)?.trim(),
  );
  return [...new Set(regions)].flatMap((region) =>
    region === undefined || region === ''
      ? []
      : [
          {
            text: `its memory is a part of ${region}`,
            todo: `cxl disable-region ${region}; cxl destroy-region ${region}`,
          },
        ],
  );
}

/** virtio-mem: if the device is reset, the host takes the memory back, even if it is in use. */
const VIRTIO_MEMORY = 'virtio_mem';

function virtioUses(kernel: KernelPort, asking: Asking, address: string): Use[] {
  return virtioBelow(kernel, asking, address)
    .filter((directory) => {
      const driver = asking.ask(() => kernel.readLink(`${directory}/driver`), undefined);
      return driver?.split('/').at(-1) === VIRTIO_MEMORY;
    })
    .map(() => ({
      text: 'it provides memory of this virtual machine',
      todo: 'remove that memory on the host',
    }));
}
