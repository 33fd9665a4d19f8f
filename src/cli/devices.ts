/** `anydma devices`: buses, drivers, what there is, and what a device is like. */
import { Eal, formatSize, hex, type Device, type Driver, type IdMatch, type InterruptKind } from '../index.js';
import { paragraphs, type CommandSpec } from './command.js';
import { domainDocument, domainLines } from './domain-facts.js';
import { failureDocument, type Output } from './output.js';

interface DevicesOptions {
  readonly device?: readonly string[];
}

const INTERRUPT_KINDS: readonly InterruptKind[] = ['intx', 'msi', 'msix'];

/** Names of regions, by the index that VFIO gives them. */
const REGION_NAMES = ['BAR0', 'BAR1', 'BAR2', 'BAR3', 'BAR4', 'BAR5', 'ROM', 'config', 'VGA'];

export const devices: CommandSpec<DevicesOptions> = {
  name: 'devices',
  summary: 'list buses, drivers and devices; with --device, show all about some',
  description: paragraphs(
    `Lists the buses and drivers that there are, and the devices that buses find by themselves. Devices of other buses are
    opened by name: with --device they are probed, and shown with their ids, regions, interrupts, and what holds for
    mapping memory on them. Probing a device gives it to its driver, which may reset it.`,
  ),
  options: (command) => command.option('--device <name...>', 'probe these devices, and show them'),
  examples: [
    ['anydma devices', 'lists buses, drivers and devices'],
    ['anydma devices --device vfio-user:/tmp/edu.sock vdev:copy0', 'shows all about two devices'],
    ['anydma devices --device bus=vfio-user,name=/tmp/edu.sock/driver=raw', 'with a driver of your choice'],
  ],
  async run({ device: names = [] }, { output, signal }) {
    await using eal = await Eal.start({ origins: false });
    const { name, limitation } = eal.platform;
    const buses = [...eal.buses].map((bus) => ({ name: bus.name, scans: bus.scan !== undefined }));
    const found = await eal.scan();
    const drivers = eal.drivers.map(driverDocument);
    if (names.length === 0) {
      output.text(limitation === undefined ? `platform: ${name}` : `platform: ${name} (${limitation})`);
      output.text();
      output.table(
        [{ head: 'BUS' }, { head: 'DEVICES' }],
        buses.map((bus) => [bus.name, bus.scans ? foundOn(bus.name, found) : 'are opened by name']),
      );
      output.text();
      output.table(
        [{ head: 'DRIVER' }, { head: 'CLASS' }, { head: 'BUSES' }, { head: 'IDS' }],
        eal.drivers.map((driver) => [
          driver.name,
          driver.deviceClass ?? '',
          driver.buses.join(', '),
          driver.ids === undefined ? 'any' : driver.ids.map(idText).join(', '),
        ]),
      );
    }
    const shown: object[] = [];
    for (const each of names) {
      signal.throwIfAborted();
      try {
        const device = await eal.probe(each);
        printDevice(output, device);
        shown.push(deviceDocument(device));
      } catch (error) {
        output.complain(error);
        shown.push({ name: each, ...failureDocument(error) });
      }
    }
    output.document({ ok: !output.failed, platform: name, limitation, buses, found, drivers, devices: shown });
  },
};

function foundOn(bus: string, found: readonly string[]): string {
  const names = found.filter((name) => name.startsWith(`${bus}:`));
  return names.length === 0 ? 'none' : names.join(', ');
}

function driverDocument({ name, deviceClass, buses, ids }: Driver): object {
  return { name, class: deviceClass, buses, ids: ids?.map(idsDocument) };
}

/** `{ vendor: '0x1234', ... }` */
function idsDocument(ids: IdMatch): object {
  const entries = Object.entries<number | undefined>({ ...ids });
  return Object.fromEntries(entries.map(([key, value]) => [key, value === undefined ? undefined : hex(value)]));
}

/** `1234:11e8` */
function idText({ vendor, device }: IdMatch): string {
  return [vendor, device].map((id) => id?.toString(16).padStart(4, '0') ?? '*').join(':');
}

function deviceDocument(device: Device): object {
  const { name, driver, ids, access, domain } = device;
  return {
    ok: true,
    name,
    driver: driver?.name,
    class: driver?.deviceClass,
    ids: ids && idsDocument(ids),
    regions: access.regions.map((region) => ({ name: REGION_NAMES[region.index], ...region })),
    interrupts: Object.fromEntries(INTERRUPT_KINDS.map((kind) => [kind, access.interruptCount(kind)])),
    domain: domain && domainDocument(domain),
  };
}

function printDevice(output: Output, { name, driver, ids, access, domain }: Device): void {
  output.text(`${output.strong(name)}, driven by ${driver?.name ?? 'nothing'}`);
  if (ids !== undefined) {
    const classCode = ids.classCode.toString(16).padStart(6, '0');
    const subsystem = idText({ vendor: ids.subsystemVendor, device: ids.subsystem });
    output.text(`  ids         ${idText(ids)}, subsystem ${subsystem}, class ${classCode}`);
  }
  for (const [n, { index, size, readable, writable }] of access.regions.entries()) {
    const rights = `${readable ? 'r' : '-'}${writable ? 'w' : '-'}`;
    const region = `${(REGION_NAMES[index] ?? String(index)).padEnd(6)} ${rights} ${formatSize(size)}`;
    output.text(`  ${n === 0 ? 'regions   ' : '          '}  ${region}`);
  }
  const interrupts = INTERRUPT_KINDS.filter((kind) => access.interruptCount(kind) > 0);
  const kinds = interrupts.map((kind) => `${kind} ${access.interruptCount(kind)}`).join(', ');
  output.text(`  interrupts  ${kinds === '' ? 'none' : kinds}`);
  if (domain !== undefined)
    for (const [n, line] of domainLines(domain).entries())
      output.text(`  ${n === 0 ? 'domain    ' : '          '}  ${line}`);
  output.text();
}
