/** Makes an {@link Nvme} of a device. */
import type { Driver } from '../../bus/model.js';
import { lostDevice } from '../../dma/mapping.js';
import { invalid } from '../../errors.js';
import { Nvme } from './nvme.js';

/** Its keys, for help pages. */
export const NVME_KEYS =
  'NVMe controllers take dma-mask=BITS, 32 to 64: the number of address bits that they reach, where it is fewer than 64.';

/** The driver of NVMe controllers, on any bus. Probing resets the controller and takes it; `driver=raw` in the name opts out. */
export const nvmeDriver: Driver<Nvme> = {
  name: 'nvme',
  keys: ['dma-mask'],
  buses: ['pci', 'vfio-user', 'vdev'],
  // Mass storage, non-volatile memory, NVM Express (NVMe 1.4, section 2.1.5).
  ids: [{ classCode: 0x010802 }],
  deviceClass: 'storage',
  dmaAddressBits: maskBits,
  probe: (device, context) => Nvme.open(device, context),
  mayRemove: (_device, nvme) => nvme.mustBeFree('remove'),
  remove: ({ name, lost }, nvme) => nvme.close(lost === undefined ? undefined : lostDevice('nvme', name, lost)),
};

/** The specification has 64 bits; what is between the controller and memory may have less. @throws DmaError EINVAL */
function maskBits(args: ReadonlyMap<string, string>): number | undefined {
  const text = args.get('dma-mask');
  if (text === undefined) return undefined;
  const bits = Number(text);
  if (Number.isInteger(bits) && bits >= 32 && bits <= 64) return bits;
  throw invalid('open', `there is no dma-mask=${text}`, {
    hint: 'it is a number of address bits from 32 to 64, 64 when left out',
  });
}
