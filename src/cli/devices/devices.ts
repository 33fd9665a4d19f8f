/** `anydma devices`: buses, drivers and devices, and the details of some devices. */
import type { Description } from '../../bus/description.js';
import { idsDocument } from '../../bus/match.js';
import { unlessFails } from '../../errors.js';
import { Eal, formatSize, type Device } from '../../index.js';
import type { ContainerChoice, Driver, IdMatch, InterruptKind } from '../../entry/driver.js';
import { paragraphs, type CommandSpec } from '../shared/command.js';
import { domainDocument, domainLines } from './domain-facts.js';
import { DEVICE_KEYS_TEXT } from '../shared/device-keys.js';
import { iommuOption } from '../iommu.js';
import { failureDocument, type Output } from '../shared/output.js';

interface DevicesOptions {
  readonly device?: readonly string[];
  readonly iommu: ContainerChoice;
}

const INTERRUPT_KINDS: readonly InterruptKind[] = ['intx', 'msi', 'msix'];

/** Names of regions, by their VFIO index. */
const REGION_NAMES = ['BAR0', 'BAR1', 'BAR2', 'BAR3', 'BAR4', 'BAR5', 'ROM', 'config', 'VGA'];

export const devices: CommandSpec<DevicesOptions> = {
  name: 'devices',
  summary: 'list buses, drivers and devices; with --device, show all about some',
  description: paragraphs(
    `Lists the buses and drivers, and the PCI devices of the machine by kind: kernel driver, IOMMU group, other members of the
    group, NUMA node, and whether the device is usable now; below the list, what to do for those that are not. This changes nothing
    and needs no privileges.`,
    `With --device, the named devices of any bus are probed and shown with their ids, regions, interrupts, and the limits of
    mapping memory for them. Probing gives a device to its driver, which may reset it.`,
    DEVICE_KEYS_TEXT,
  ),
  options: (command) =>
    command.option('--device <name...>', 'probe these devices, and show them').addOption(iommuOption()),
  examples: [
    ['anydma devices', 'lists buses, drivers and PCI devices'],
    ['anydma devices --device pci:0000:00:02.0', 'shows all about a PCI device'],
    ['anydma devices --device vfio-user:/tmp/edu.sock vdev:copy0', 'shows all about two devices'],
    ['anydma devices --device bus=vfio-user,name=/tmp/edu.sock/driver=raw', 'with a driver of your choice'],
  ],
  async run({ device: names = [], iommu }, { output, signal }) {
    await using eal = await Eal.start({ iommu, origins: false });
    const { name, limitation } = eal.platform;
    const buses = [...eal.buses].map((bus) => ({ name: bus.name, scans: bus.scan !== undefined }));
    const found = await eal.scan();
    const drivers = eal.drivers.map((driver) => driverDocument(driver, buses));
    const described = new Map<string, Description>();
    for (const bus of eal.buses) {
      const description = await bus.describe?.();
      if (description !== undefined) described.set(bus.name, description);
    }
    if (names.length === 0) {
      output.text(limitation === undefined ? `platform: ${name}` : `platform: ${name} (${limitation})`);
      output.text();
      output.table(
        [{ head: 'BUS' }, { head: 'DEVICES' }],
        buses.map((bus) => [bus.name, bus.scans ? foundOn(bus.name, found, described) : 'are opened by name']),
      );
      output.text();
      output.table(
        [{ head: 'DRIVER' }, { head: 'CLASS' }, { head: 'BUSES' }, { head: 'IDS' }],
        eal.drivers.map((driver) => [
          driver.name,
          driver.deviceClass ?? '',
          driver.buses?.join(', ') ?? 'any',
          driver.ids === undefined ? 'any' : driver.ids.map(idText).join(', '),
        ]),
      );
      for (const { text } of described.values()) if (text.length > 0) output.show(['', ...text]);
    }
    const shown: object[] = [];
    for (const each of names) {
      signal.throwIfAborted();
      try {
        const device = await eal.probe(each);
        printDevice(output, device);
        const about = await device.describe();
        output.show(about?.text ?? []);
        shown.push(withOwn(deviceDocument(device), about?.document));
      } catch (error) {
        output.complain(error);
        shown.push({ name: each, ...failureDocument(error) });
      }
    }
    const own = { ok: !output.failed, platform: name, limitation, buses, found, drivers };
    const documents = [...described.values()].map(({ document }) => document);
    output.document({ ...withOwn(own, ...documents), devices: shown });
  },
};

/** A document with the fields of buses and devices added; they do not overwrite its own fields. */
function withOwn(own: object, ...told: readonly (object | undefined)[]): object {
  return told.reduce<object>((all, fields) => ({ ...all, ...fields, ...own }), own);
}

function foundOn(bus: string, found: readonly string[], described: ReadonlyMap<string, Description>): string {
  const names = found.filter((name) => name.startsWith(`${bus}:`));
  return names.length === 0 ? 'none' : (described.get(bus)?.summary ?? names.join(', '));
}

/** @param all the text for a driver that works on every bus */
function driverDocument({ name, deviceClass, buses, ids }: Driver, all: readonly { readonly name: string }[]): object {
  return { name, class: deviceClass, buses: buses ?? all.map((bus) => bus.name), ids: ids?.map(idsDocument) };
}

/** `1234:11e8` */
function idText({ vendor, device }: IdMatch): string {
  return [vendor, device].map((id) => id?.toString(16).padStart(4, '0') ?? '*').join(':');
}

function deviceDocument(device: Device): object {
  const { name, driver, ids, domain } = device;
  const access = registersOf(device);
  return {
    ok: true,
    name,
    driver: driver?.name,
    class: driver?.deviceClass,
    ids: ids && idsDocument(ids),
    regions: access?.regions.map((region) => ({ name: REGION_NAMES[region.index], ...region })),
    interrupts: access && Object.fromEntries(INTERRUPT_KINDS.map((kind) => [kind, access.interruptCount(kind)])),
    domain: domain && domainDocument(domain),
  };
}

/** The registers and interrupts of a device, if it has any. */
function registersOf(device: Device): Device['access'] | undefined {
  return unlessFails(['ENOTSUP'], () => device.access);
}

function printDevice(output: Output, device: Device): void {
  const { name, driver, ids, domain } = device;
  const access = registersOf(device);
  output.text(`${output.strong(name)}, driven by ${driver?.name ?? 'nothing'}`);
  if (ids !== undefined) {
    const classCode = ids.classCode.toString(16).padStart(6, '0');
    const subsystem = idText({ vendor: ids.subsystemVendor, device: ids.subsystem });
    output.text(`  ids         ${idText(ids)}, subsystem ${subsystem}, class ${classCode}`);
  }
  for (const [n, { index, size, readable, writable, notMapped }] of (access?.regions ?? []).entries()) {
    const rights = `${readable ? 'r' : '-'}${writable ? 'w' : '-'}`;
    const region = `${(REGION_NAMES[index] ?? String(index)).padEnd(6)} ${rights} ${formatSize(size)}${
      notMapped === undefined ? '' : `, not mapped, so that each access is a message: ${notMapped}`
    }`;
    output.text(`  ${n === 0 ? 'regions   ' : '          '}  ${region}`);
  }
  if (access !== undefined) {
    const interrupts = INTERRUPT_KINDS.filter((kind) => access.interruptCount(kind) > 0);
    const kinds = interrupts.map((kind) => `${kind} ${access.interruptCount(kind)}`).join(', ');
    output.text(`  interrupts  ${kinds === '' ? 'none' : kinds}`);
  }
  if (domain !== undefined)
    for (const [n, line] of domainLines(domain).entries())
      output.text(`  ${n === 0 ? 'domain    ' : '          '}  ${line}`);
  output.text();
}
