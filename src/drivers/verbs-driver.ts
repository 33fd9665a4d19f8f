/**
 * The driver of every RDMA device that libibverbs knows: mlx5, mlx4, irdma, efa, Soft-RoCE and the rest. It brings its own
 * way to map, which is no IOMMU's: memory is registered in the protection domain of the device. The device stays with its
 * kernel driver, so that a network interface on it goes on working.
 */
import { ProtectionDomain } from '../rdma/protection-domain.js';
import type { Device, Driver } from '../bus/model.js';
import { DmaError, throwFirst } from '../errors.js';
import { RdmaContext } from '../rdma/context.js';
import { RdmaDevice } from '../rdma/device.js';

const spaces = new WeakMap<RdmaContext, ProtectionDomain>();

/** What the bus opened. @throws DmaError ENODEV */
function contextOf({ name, handle }: Device): RdmaContext {
  if (handle instanceof RdmaContext) return handle;
  throw new DmaError({ code: 'ENODEV', operation: 'probe', device: name, reason: 'it is no RDMA device' });
}

/** See the head of the file. What it makes of a device is an {@link RdmaDevice}. */
export const verbsDriver: Driver<RdmaDevice> = {
  name: 'verbs',
  keys: [],
  buses: ['rdma', 'pci'],
  deviceClass: 'rdma',
  takes: ({ handle }) => handle instanceof RdmaContext,
  /** The protection domain: one for all names that lead to the same device. */
  spaceOf(device) {
    const context = contextOf(device);
    const known = spaces.get(context);
    if (known !== undefined) return known;
    const space = new ProtectionDomain(context);
    spaces.set(context, space);
    return space;
  },
  probe(device) {
    const context = contextOf(device);
    const { name, domain } = device;
    if (domain === undefined)
      throw new DmaError({ code: 'ENODEV', operation: 'probe', device: name, reason: 'it is in no domain' });
    return new RdmaDevice(context, { name, domain });
  },
  async remove(_device, rdma) {
    const errors = await rdma.close();
    throwFirst(errors, 'remove');
  },
};
