/** DMA engine channels that the kernel itself uses: for network copies, for RAID arrays, or in a driver. */
import type { KernelPort } from '../../platform/ports.js';
import type { Asking, Use } from './found.js';

const CLASS = '/sys/class/dma';

/** The channels of a function that have clients (`in_use_show` of drivers/dma/dmaengine.c). */
export function channelUses(kernel: KernelPort, asking: Asking, address: string): Use[] {
  return asking
    .ask(() => kernel.list(CLASS), [])
    .filter((name) => asking.ask(() => kernel.readLink(`${CLASS}/${name}`), undefined)?.includes(`/${address}/`))
    .filter((name) => Number(asking.ask(() => kernel.readText(`${CLASS}/${name}/in_use`), undefined) ?? 0) > 0)
    .map((name) => ({
      text: `the kernel uses its DMA channel ${name}`,
      todo: 'unload the modules that use DMA channels ("lsmod" shows the users of its driver and of async_tx)',
    }));
}
