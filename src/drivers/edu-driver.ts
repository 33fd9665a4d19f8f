/** Makes an {@link Edu} of a device. */
import { lostDevice } from '../dma/mapping.js';
import type { Driver } from '../bus/model.js';
import { eduMaskBits } from '../vfio-user/devices/edu-layout.js';
import { Edu } from './edu.js';

/** Its keys, for help pages. */
export const EDU_KEYS = 'edu devices take dma-mask=BITS, the number of address bits that they use (28).';

/** The driver of QEMU's teaching device, on any bus. */
export const eduDriver: Driver<Edu> = {
  name: 'edu',
  keys: ['dma-mask'],
  buses: ['vdev', 'vfio-user', 'pci'],
  ids: [Edu.matches],
  deviceClass: 'test',
  dmaAddressBits: eduMaskBits,
  probe: (device) => Edu.open(device.access, { dmaMaskBits: eduMaskBits(device.args) }),
  handOver: (_, edu) => edu.handOver(),
  takeOver: ({ access, args }) => ({ instance: Edu.takeOver(access, { dmaMaskBits: eduMaskBits(args) }) }),
  remove: ({ name, lost }, edu) => edu.close(lost === undefined ? undefined : lostDevice('edu', name, lost)),
};
