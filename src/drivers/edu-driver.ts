/** Makes an {@link Edu} of a device. */
import { lostDevice } from '../dma/mapping.js';
import { invalid } from '../errors.js';
import type { Driver } from '../bus/model.js';
import { EDU_DMA_MASK_BITS } from '../vfio-user/devices/edu-layout.js';
import { Edu } from './edu.js';

/** Key `dma-mask=BITS` of the device's name: IOVA bits that it uses, when that was set otherwise than the 28 of QEMU. */
export function eduMaskBits(args: ReadonlyMap<string, string>): number {
  const text = args.get('dma-mask');
  const bits = text === undefined ? EDU_DMA_MASK_BITS : Number(text);
  if (Number.isInteger(bits) && bits >= 12 && bits <= 52) return bits;
  throw invalid('open', `there is no dma-mask=${text}`, {
    hint: `it is a number of address bits from 12 to 52, ${EDU_DMA_MASK_BITS} when left out`,
  });
}

/** The driver of QEMU's teaching device, on any bus. */
export const eduDriver: Driver<Edu> = {
  name: 'edu',
  keys: ['dma-mask'],
  buses: ['vdev', 'vfio-user', 'pci'],
  ids: [Edu.matches],
  deviceClass: 'test',
  dmaAddressBits: eduMaskBits,
  probe: (device) => Edu.open(device.access, { dmaMaskBits: eduMaskBits(device.args) }),
  remove: ({ name, lost }, edu) => edu.close(lost === undefined ? undefined : lostDevice('edu', name, lost)),
};
