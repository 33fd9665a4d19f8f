/** Makes a port of a virtio network device. */
import type { Driver } from '../../bus/model.js';
import { lostDevice } from '../../dma/mapping.js';
import type { Port } from '../../net/port.js';
import { NETWORK_DEVICE, VIRTIO_VENDOR } from './layout.js';
import { VirtioNetPort } from './virtio-net.js';

const driver: Driver<VirtioNetPort> = {
  name: 'virtio-net',
  keys: [],
  buses: ['pci', 'vfio-user', 'vdev'],
  ids: [
    { vendor: VIRTIO_VENDOR, device: NETWORK_DEVICE.MODERN },
    { vendor: VIRTIO_VENDOR, device: NETWORK_DEVICE.TRANSITIONAL },
  ],
  deviceClass: 'net',
  probe: (device, context) => VirtioNetPort.open(device, context),
  remove: ({ name, lost }, port) => port.close(lost === undefined ? undefined : lostDevice('port', name, lost)),
};

/** The driver of virtio network devices on PCI, on any bus. Probing resets the device and takes it; `driver=raw` in the name opts out. */
export const virtioNetDriver: Driver<Port> = driver;
