/** Channels of DMA engines that the kernel itself has taken: for copies of the network and of arrays, or by a driver. */
import type { KernelPort } from '../../platform/ports.js';
import type { Asking, Use } from './found.js';

const CLASS = '/sys/class/dma';

/** Those of a function, by the number of their clients (`in_use_show` of drivers/dma/dmaengine.c). */
export function channelUses(kernel: KernelPort, asking: Asking, address: string): Use[] {
  return asking
    .ask(() => kernel.list(CLASS), [])
    .filter((name) => asking.ask(() => kernel.readLink(`${CLASS}/${name}`), undefined)?.includes(`/${address}/`))
    .filter((name) => Number(asking.ask(() => kernel.readText(`${CLASS}/${name}/in_use`), undefined) ?? 0) > 0)
    .map((name) => ({
      text: `the kernel copies by its DMA channel ${name}`,
      todo: 'unload what uses DMA channels ("lsmod" names the users of its driver and of async_tx)',
    }));
}
