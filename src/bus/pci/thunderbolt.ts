/** What is plugged into a Thunderbolt or USB4 controller: its PCI functions are on other buses, and go with a reset of it. */
import type { KernelPort } from '../../platform/ports.js';
import type { Asking, Use } from './found.js';

const DEVICES = '/sys/bus/thunderbolt/devices';

/** The devices behind the controller at `address` (Documentation/admin-guide/thunderbolt.rst): `0-0` is itself, `0-1` the first. */
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
