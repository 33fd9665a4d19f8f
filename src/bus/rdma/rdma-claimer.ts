/** PCI functions that are RDMA devices: their kernel driver keeps them, and libibverbs works through it. */
import type { KernelPort } from '../../platform/ports.js';
import type { RdmaContexts } from '../../rdma/context.js';
import type { PciClaimer } from '../pci/claimer.js';
import { openRdma } from './open-rdma.js';
import { verbsDeviceOf } from './verbs-device-of.js';

/** @param contexts those of the bus `rdma`, so that both names of a device lead to the same one */
export function rdmaClaimer(kernel: Pick<KernelPort, 'list' | 'readText'>, contexts: RdmaContexts): PciClaimer {
  return {
    open(address, ids) {
      const name = verbsDeviceOf(kernel, address);
      return name === undefined ? undefined : openRdma(contexts, name, ids);
    },
  };
}
