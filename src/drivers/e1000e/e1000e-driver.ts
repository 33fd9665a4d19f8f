/** Makes a port of an Intel 82574L. */
import type { Driver } from '../../bus/model.js';
import { lostDevice } from '../../dma/mapping.js';
import type { Port } from '../../net/port.js';
import { E1000ePort } from './e1000e.js';

const INTEL = 0x8086;

/** What its keys mean, for help pages. */
export const E1000E_KEYS =
  'e1000e adapters take descriptors=legacy: the older form of descriptors, with one receive queue and no hash (default: extended).';

const driver: Driver<E1000ePort> = {
  name: 'e1000e',
  keys: ['descriptors'],
  buses: ['pci', 'vfio-user', 'vdev'],
  ids: [
    { vendor: INTEL, device: 0x10d3 },
    { vendor: INTEL, device: 0x10f6 },
  ],
  deviceClass: 'net',
  probe: (device, context) => E1000ePort.open(device, context),
  remove: ({ name, lost }, port) => port.close(lost === undefined ? undefined : lostDevice('port', name, lost)),
};

/** The driver of Intel 82574L adapters (QEMU's `e1000e`), on any bus. Probing resets the adapter and takes it; `driver=raw` in the name opts out. */
export const e1000eDriver: Driver<Port> = driver;
