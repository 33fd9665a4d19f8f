/** The built-in drivers, in the order they are tried. To add one, create a file here and add a line below. */
import type { Driver } from '../bus/model.js';
import { copyEngineDriver } from './copy-engine-driver.js';
import { E1000E_KEYS, e1000eDriver } from './e1000e/e1000e-driver.js';
import { EDU_KEYS, eduDriver } from './edu-driver.js';
import { NVME_KEYS, nvmeDriver } from './nvme/nvme-driver.js';
import { nullPortDriver, pcapPortDriver, PORT_KEYS, ringPortDriver, tapPortDriver } from './ports/software-ports.js';
import { rawDriver } from './raw-driver.js';
import { verbsDriver } from './verbs-driver.js';
import { virtioNetDriver } from './virtio-net/virtio-net-driver.js';

/**
 * `verbs` is first, because it takes functions that keep their kernel driver; `raw` is last, because it takes any
 * device.
 */
export const builtinDrivers: readonly Driver[] = [
  verbsDriver,
  copyEngineDriver,
  eduDriver,
  nvmeDriver,
  e1000eDriver,
  virtioNetDriver,
  nullPortDriver,
  pcapPortDriver,
  ringPortDriver,
  tapPortDriver,
  rawDriver,
];

/** What the keys of device names mean that these drivers know, in sentences for help pages. */
export const DRIVER_KEYS: readonly string[] = [EDU_KEYS, NVME_KEYS, E1000E_KEYS, PORT_KEYS];
