/** The driver of last resort: takes any device with registers, and leaves it to the program. */
import type { DeviceAccess } from '../bus/device-access.js';
import type { Driver } from '../bus/model.js';

/**
 * Takes every device with registers that no other driver took. `device.use` returns plain access to its registers and
 * interrupts; mapping works as for any device.
 */
export const rawDriver: Driver<DeviceAccess> = {
  name: 'raw',
  keys: [],
  deviceClass: 'raw',
  takes: ({ access }) => access !== undefined,
  probe: (device) => device.access,
  // The device's registers and interrupts are all that there is, and its bus hands those over.
  handOver: () => ({ state: {}, fds: [], resume: () => undefined, end: () => undefined }),
  takeOver: (device) => ({ instance: device.access }),
};
