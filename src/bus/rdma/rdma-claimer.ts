/** PCI functions that are RDMA devices: they stay with their kernel driver, and libibverbs uses them through it. */
import type { KernelPort } from '../../platform/ports.js';
import type { RdmaContexts } from '../../rdma/context.js';
import type { PciClaimer } from '../pci/claimer.js';
import { openRdma } from './open-rdma.js';
import { verbsDeviceOf } from './verbs-device-of.js';

/** @param contexts the contexts of the bus `rdma`, so that both names of a device share one context */
export function rdmaClaimer(kernel: Pick<KernelPort, 'list' | 'readText'>, contexts: RdmaContexts): PciClaimer {
  return {
    open(address, ids) {
      const name = verbsDeviceOf(kernel, address);
      return name === undefined ? undefined : openRdma(contexts, name, ids);
    },
  };
}
