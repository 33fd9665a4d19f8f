/**
 * The driver of every RDMA device that libibverbs supports: mlx5, mlx4, irdma, efa, Soft-RoCE and others. It maps
 * without an IOMMU: memory is registered in the device's protection domain. The device keeps its kernel driver, so its
 * network interface continues to work.
 */
import { ProtectionDomain } from '../rdma/protection-domain.js';
import type { Device, Driver } from '../bus/model.js';
import { DmaError, throwFirst } from '../errors.js';
import { RdmaContext } from '../rdma/context.js';
import { RdmaDevice } from '../rdma/device.js';

const spaces = new WeakMap<RdmaContext, ProtectionDomain>();

/** The context that the bus opened. @throws DmaError ENODEV */
function contextOf({ name, handle }: Device): RdmaContext {
  if (handle instanceof RdmaContext) return handle;
  throw new DmaError({ code: 'ENODEV', operation: 'probe', device: name, reason: 'it is not an RDMA device' });
}

/** The driver of RDMA devices; `device.use` returns an {@link RdmaDevice}. */
export const verbsDriver: Driver<RdmaDevice> = {
  name: 'verbs',
  keys: [],
  buses: ['rdma', 'pci'],
  deviceClass: 'rdma',
  takes: ({ handle }) => handle instanceof RdmaContext,
  /** The protection domain: one for all names of the same device. */
  spaceOf(device) {
    const context = contextOf(device);
    const known = spaces.get(context);
    if (known !== undefined) return known;
    const space = new ProtectionDomain(context);
    spaces.set(context, space);
    return space;
  },
  probe(device, { shares }) {
    const context = contextOf(device);
    const { name, domain } = device;
    if (domain === undefined)
      throw new DmaError({ code: 'ENODEV', operation: 'probe', device: name, reason: 'it has no domain' });
    return new RdmaDevice(context, { name, domain, shares });
  },
  mayRemove: (_device, rdma) => rdma.mustBeFree('remove'),
  async remove(_device, rdma) {
    const errors = await rdma.close();
    throwFirst(errors, 'remove');
  },
};
