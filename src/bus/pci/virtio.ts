/** The virtio devices of a PCI function. */
import type { KernelPort } from '../../platform/ports.js';
import type { Asking } from './found.js';

/** Their directories below /sys. */
export function virtioBelow(kernel: KernelPort, asking: Asking, address: string): string[] {
  const directory = '/sys/bus/virtio/devices';
  return asking
    .ask(() => kernel.list(directory), [])
    .map((name) => `${directory}/${name}`)
    .filter((each) => asking.ask(() => kernel.readLink(each), undefined)?.includes(`/${address}/`));
}
