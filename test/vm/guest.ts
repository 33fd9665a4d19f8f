/** What suites know of the guest that they run in, and what many of them do to it. */
import { existsSync, readlinkSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { until } from '../shared/until.js';
import type { KernelName } from './kernels.js';
import { DEVICES, HOTPLUG } from './machine.js';
import type { IommuName } from './machine.js';
import type { BackendName } from './suites.js';

const { ANYDMA_VM_BACKEND, ANYDMA_VM_KERNEL, ANYDMA_VM_IOMMU, ANYDMA_VM_WHOLE } = process.env;

export const kernel = ANYDMA_VM_KERNEL as KernelName;
export const iommu = ANYDMA_VM_IOMMU as IommuName;

/** Which way to the IOMMU this run of the suite is to take, as users name it. */
export const CHOICE = (ANYDMA_VM_BACKEND ?? 'type1') as BackendName;
/** And what the domains are then. */
export const KIND = ({ type1: 'vfio-type1', iommufd: 'iommufd', noiommu: 'vfio-noiommu' } as const)[CHOICE];

/** Is this the whole of random work (`--whole`), and not only a part? */
export const WHOLE = ANYDMA_VM_WHOLE !== undefined;

/** Two edu devices, each in a group of its own. */
export const EDU = DEVICES.edu0;
export const EDU_SECOND = DEVICES.edu1;
/** An edu device that is put into the root port's slot by `host.deviceAdd({ driver: 'edu', id: ..., bus: 'port0' })`. */
export const EDU_HOTPLUG = HOTPLUG;

/** Bits of an IOVA that the IOMMU takes. */
export function width(): number {
  if (iommu === 'none') throw new Error('there is no IOMMU in this guest');
  return iommu === 'unsafe' || iommu === 'firmware' ? 48 : Number(iommu);
}

/** A PCI device's directory. */
export function sysfs(address: string): string {
  return `/sys/bus/pci/devices/${address}`;
}

/** The IOMMU group of a PCI device. */
export function groupOf(address: string): string {
  return basename(readlinkSync(`${sysfs(address)}/iommu_group`));
}

/** The driver of a PCI device, if it has one. */
export function driverOf(address: string): string | undefined {
  const link = `${sysfs(address)}/driver`;
  return existsSync(link) ? basename(readlinkSync(link)) : undefined;
}

/** Gives the PCI devices to vfio-pci. With `wait`, they may be about to appear. */
export async function bindToVfio(addresses: readonly string[], { wait = false } = {}): Promise<void> {
  for (const address of addresses) {
    if (wait) await until(() => existsSync(sysfs(address)), `${address} is there`, 30_000);
    if (driverOf(address) === 'vfio-pci') continue;
    writeFileSync(`${sysfs(address)}/driver_override`, 'vfio-pci');
    if (driverOf(address) !== undefined) writeFileSync(`${sysfs(address)}/driver/unbind`, address);
    const probe = (): boolean => {
      writeFileSync('/sys/bus/pci/drivers_probe', address);
      return driverOf(address) === 'vfio-pci';
    };
    // The kernel is not done with a device as soon as it can be seen: until then it may not even know it (ENODEV).
    if (wait) await until(() => succeeds(probe), `vfio-pci takes ${address}`, 30_000);
    else if (!probe()) throw new Error(`vfio-pci does not take ${address}`);
  }
}

function succeeds(work: () => boolean): boolean {
  try {
    return work();
  } catch {
    return false;
  }
}

/** Takes the PCI devices from their drivers, and lets any driver have them again. */
export function release(addresses: readonly string[]): void {
  for (const address of addresses) {
    if (driverOf(address) !== undefined) writeFileSync(`${sysfs(address)}/driver/unbind`, address);
    writeFileSync(`${sysfs(address)}/driver_override`, '\n');
  }
}

/** Gives the PCI devices back to the drivers that they had when the guest came up: a suite before may have taken them. */
export function asBooted(): void {
  const addresses = [EDU, EDU_SECOND, DEVICES.edu2, DEVICES.edu3, DEVICES.net0, DEVICES.disk0];
  const taken = addresses.filter((address) => !['e1000e', 'nvme'].includes(driverOf(address) ?? ''));
  release(taken);
  for (const address of taken) writeFileSync('/sys/bus/pci/drivers_probe', address);
}
