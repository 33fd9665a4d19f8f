/**
 * Devices plugged into a Thunderbolt or USB4 controller: their PCI functions are on other buses, and a reset of the
 * controller removes them.
 */
import type { KernelPort } from '../../platform/ports.js';
import type { Asking, Use } from './found.js';

const DEVICES = '/sys/bus/thunderbolt/devices';

/**
 * The devices behind the controller at `address` (Documentation/admin-guide/thunderbolt.rst): `0-0` is the controller,
 * `0-1` the first device.
 */
export function thunderboltUses(kernel: KernelPort, asking: Asking, address: string): Use[] {
  return asking
    .ask(() => kernel.list(DEVICES), [])
    .filter((name) => /^\d+-[1-9a-f][\da-f]*$/.test(name))
    .filter((name) => asking.ask(() => kernel.readLink(`${DEVICES}/${name}`), undefined)?.includes(`/${address}/`))
    .map((name) => {
      const title = asking.ask(() => kernel.readText(`${DEVICES}/${name}/device_name`), undefined)?.trim() ?? '';
      return {
        text: `the Thunderbolt device ${title === '' ? name : `${name} (${title})`} is plugged into it`,
        todo: 'unplug it',
      };
    });
}
