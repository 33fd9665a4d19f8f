/** The driver of last resort: takes any device, and leaves all of it to the program. */
import type { DeviceAccess } from '../bus/device-access.js';
import type { Driver } from '../bus/model.js';

/**
 * Takes every device that no other driver took. What it makes of one is the bare access to its registers and interrupts;
 * mapping works as for any device.
 */
export const rawDriver: Driver<DeviceAccess> = {
  name: 'raw',
  keys: [],
  buses: ['vdev', 'vfio-user', 'pci'],
  deviceClass: 'raw',
  probe: (device) => device.access,
};
