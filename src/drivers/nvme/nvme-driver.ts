/** Makes an {@link Nvme} of a device. */
import type { Driver } from '../../bus/model.js';
import { lostDevice } from '../../dma/mapping.js';
import { Nvme } from './nvme.js';

/** The driver of NVMe controllers, on any bus. Probing resets the controller and takes it; `driver=raw` in the name opts out. */
export const nvmeDriver: Driver<Nvme> = {
  name: 'nvme',
  keys: [],
  buses: ['pci', 'vfio-user', 'vdev'],
  // Mass storage, non-volatile memory, NVM Express (NVMe 1.4, section 2.1.5).
  ids: [{ classCode: 0x010802 }],
  deviceClass: 'storage',
  probe: (device, context) => Nvme.open(device, context),
  mayRemove: (_device, nvme) => nvme.mustBeFree('remove'),
  remove: ({ name, lost }, nvme) => nvme.close(lost === undefined ? undefined : lostDevice('nvme', name, lost)),
};
