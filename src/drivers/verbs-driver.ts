/**
 * The driver of every RDMA device that libibverbs knows: mlx5, mlx4, irdma, efa, Soft-RoCE and the rest. It brings its own
 * way to map, which is no IOMMU's: memory is registered in the protection domain of the device. The device stays with its
 * kernel driver, so that a network interface on it goes on working.
 */
import { VerbsBackend } from '../rdma/protection-domain.js';
import type { Device, DmaOps, Driver } from '../bus/model.js';
import { DmaError, withUndo } from '../errors.js';
import type { RdmaContext } from '../rdma/context.js';
import { RdmaDevice } from '../rdma/device.js';

const backends = new WeakMap<RdmaContext, VerbsBackend>();

/** One for all names that lead to the same device. */
function backendOf(device: Device): VerbsBackend {
  const { rdma } = device;
  if (rdma === undefined)
    throw new DmaError({ code: 'ENODEV', operation: 'dma', device: device.name, reason: 'it is no RDMA device' });
  const known = backends.get(rdma);
  if (known !== undefined) return known;
  const backend = new VerbsBackend(rdma);
  backends.set(rdma, backend);
  return backend;
}

const dma: DmaOps = {
  dmaDomain(device) {
    const backend = backendOf(device);
    return {
      key: `verbs:${device.rdma?.name ?? device.name}`,
      kind: backend.kind,
      constraints: backend.constraints,
      close: () => backend.close(),
    };
  },
  dmaMap: (device, segment) => backendOf(device).map(segment),
  dmaUnmap: (device, segment) => backendOf(device).unmap(segment),
  dmaMapAsync: (device, segment) => backendOf(device).mapAsync(segment),
  dmaUnmapAsync: (device, segment) => backendOf(device).unmapAsync(segment),
};

/** See the head of the file. What it makes of a device is an {@link RdmaDevice}. */
export const verbsDriver: Driver<RdmaDevice> = {
  name: 'verbs',
  keys: [],
  buses: ['rdma', 'pci'],
  deviceClass: 'rdma',
  dma,
  takes: ({ rdma }) => rdma !== undefined,
  probe({ name, rdma, domain }) {
    if (rdma === undefined || domain === undefined)
      throw new DmaError({ code: 'ENODEV', operation: 'probe', device: name, reason: 'it is no RDMA device' });
    return new RdmaDevice(rdma, { name, domain });
  },
  async remove(_device, rdma) {
    const errors = await rdma.close();
    if (errors.length > 0) throw withUndo(errors[0], 'remove', errors.slice(1));
  },
};
