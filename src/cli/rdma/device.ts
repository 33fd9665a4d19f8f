/** Chooses the RDMA device that a command uses. */
import { Option } from 'commander';
import { DmaError, type Device, type Eal } from '../../index.js';
import { verbsDriver, type RdmaDevice } from '../../entry/rdma.js';

/** A device, as its bus and its driver provide it. */
export interface OpenRdma {
  readonly device: Device;
  readonly rdma: RdmaDevice;
}

/** `--device` of the RDMA commands. */
export function rdmaDeviceOption(): Option {
  return new Option(
    '--device <name>',
    'the RDMA device, such as rdma:rxe0; default: the first that has an active port',
  );
}

/**
 * Opens the device of that name, or the first one with an active port.
 *
 * @throws DmaError ENODEV or ENOTSUP if there is none; as `Eal.probe`
 */
export async function openRdmaDevice(eal: Eal, name: string | undefined): Promise<OpenRdma> {
  if (name !== undefined) {
    const device = await eal.probe(name);
    return { device, rdma: device.use(verbsDriver) };
  }
  const { limitation } = eal.platform.verbs;
  if (limitation !== undefined) throw new DmaError({ code: 'ENOTSUP', operation: 'rdma', reason: limitation });
  const names = (await eal.scan()).filter((each) => each.startsWith('rdma:'));
  for (const each of names) {
    const device = await eal.probe(each);
    const rdma = device.use(verbsDriver);
    if (rdma.ports().some(({ state }) => state === 'active')) return { device, rdma };
    await eal.remove(device);
  }
  throw new DmaError({
    code: 'ENODEV',
    operation: 'rdma',
    reason: names.length === 0 ? 'this machine has no RDMA device' : `no port of ${names.join(', ')} is active`,
    hint:
      names.length === 0
        ? '"rdma link add rxe0 type rxe netdev NAME" (as root) creates one on any network interface'
        : 'bring the network interface up, or plug in the cable; "anydma devices" shows the ports',
  });
}
