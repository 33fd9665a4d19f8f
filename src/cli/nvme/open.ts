/** Opening a controller for one command: its options, and what the commands share. */
import { Option, type Command } from 'commander';
import type { ContainerChoice } from '../../entry/driver.js';
import { nvmeDriver, type Nvme, type NvmeNamespace } from '../../entry/nvme.js';
import { DmaError, Eal, type Device } from '../../index.js';
import { iommuOption } from '../iommu.js';
import type { CommandContext } from '../shared/command.js';
import { integerValue } from '../shared/values.js';

/** Options of every command that opens a controller. */
export interface ControllerOptions {
  readonly device: string;
  readonly iommu: ContainerChoice;
}

/** Options of every command about one namespace. */
export interface NamespaceOptions extends ControllerOptions {
  readonly nsid?: number;
}

/** An open controller. */
export interface OpenController {
  readonly eal: Eal;
  readonly device: Device;
  readonly ssd: Nvme;
}

/** Adds `--device` and `--iommu`. */
export function controllerOptions(command: Command): Command {
  return command
    .requiredOption('--device <name>', 'the controller, such as pci:0000:04:00.0 or vfio-user:/run/disk.sock')
    .addOption(iommuOption());
}

/** Adds `--device`, `--iommu` and `--nsid`. */
export function namespaceOptions(command: Command): Command {
  return controllerOptions(command).addOption(nsidOption());
}

/** `--lba`: a block, counted from 0. */
export const lbaValue = integerValue(0, 2 ** 53 - 1);

/** `--blocks`: how many. */
export const blocksValue = integerValue(1, 2 ** 53 - 1);

export function nsidOption(): Option {
  return new Option('--nsid <n>', 'the namespace; default: the only one').argParser(integerValue(1, 0xfffffffe));
}

/** Opens the controller, works with it, and closes it, whatever happens. */
export async function withController<T>(
  { device: name, iommu }: ControllerOptions,
  { output, signal }: CommandContext,
  work: (open: OpenController) => Promise<T>,
): Promise<T> {
  const onNotice = (text: string): void => output.note(`note: ${text}`);
  await using eal = await Eal.start({ iommu, origins: false, onForgotten: () => undefined, memory: { onNotice } });
  signal.throwIfAborted();
  const device = await eal.probe(name);
  signal.throwIfAborted();
  return await work({ eal, device, ssd: device.use(nvmeDriver) });
}

/** The namespace that was asked for. @throws DmaError ENXIO if it does not exist, EINVAL if it has to be named */
export function namespaceOf(ssd: Nvme, nsid: number | undefined): NvmeNamespace {
  const { namespaces } = ssd;
  const there = namespaces.map(({ id }) => id).join(', ');
  if (nsid === undefined && namespaces.length > 1)
    throw new DmaError({
      code: 'EINVAL',
      operation: 'nvme',
      reason: `the controller has ${namespaces.length} namespaces`,
      hint: `--nsid says which: ${there}`,
    });
  const found = nsid === undefined ? namespaces[0] : namespaces.find(({ id }) => id === nsid);
  if (found !== undefined) return found;
  throw new DmaError({
    code: 'ENXIO',
    operation: 'nvme',
    reason: nsid === undefined ? 'the controller has no active namespace' : `the controller has no namespace ${nsid}`,
    hint:
      namespaces.length === 0 ? 'a namespace is made and attached by the tools of its vendor' : `there are ${there}`,
  });
}
