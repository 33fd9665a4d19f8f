/** The port of a device, whatever its driver. */
import type { Device } from '../bus/model.js';
import { mustHave } from '../check.js';
import { invalid } from '../errors.js';
import { PortBase } from './port-base.js';
import type { Port } from './port.js';

/**
 * The port that a device is, whatever driver it has.
 *
 * @throws DmaError EINVAL if it has no driver, or is no Ethernet port
 */
export function portOf(device: Device): Port {
  const operation = 'portOf';
  mustHave(device, ['use', 'bus'], 'device', operation, 'a device that eal.probe returned');
  const { driver } = device;
  const port = driver === undefined ? undefined : device.use(driver);
  if (port instanceof PortBase) return port;
  throw invalid(
    operation,
    driver === undefined ? 'it has no driver' : `its driver ${driver.name} is none of Ethernet ports`,
    {
      device: device.name,
      hint: 'ports are vdev:null0, vdev:pcap0,rx=FILE,tx=FILE, vdev:ring0, vdev:tap0, Intel 82574L adapters and virtio network devices',
    },
  );
}
