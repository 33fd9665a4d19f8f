/** `anydma bind`: gives PCI devices to vfio-pci, or another driver, as dpdk-devbind.py does. */
import { PciBinder, type BindResult } from '../bus/pci/bind.js';
import { DmaError } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import type { KernelPort } from '../platform/ports.js';
import { paragraphs, type CommandSpec } from './command.js';
import { failureDocument, type Output } from './output.js';
import { pciDocument, PciReader, printTodo, usableText } from './pci-facts.js';
import { integerValue } from './values.js';

/** Options of the command. */
export interface BindCommandOptions {
  readonly driver?: string;
  readonly force?: boolean;
  readonly group?: boolean;
  readonly uid?: number;
  readonly gid?: number;
  readonly noiommuMode?: boolean;
}

const identity = integerValue(0, 2 ** 32 - 2);

export const bind: CommandSpec<BindCommandOptions> = {
  name: 'bind <device...>',
  summary: 'give PCI devices to vfio-pci, so that programs can use them',
  description: paragraphs(
    `Gives PCI devices to a kernel driver: to vfio-pci, which hands them to programs, unless --driver says another. A device
    is named by its address, with or without the domain; by its network interface; or by a shell-style pattern, which leaves
    bridges out. This takes root, and stays until "anydma unbind" or until the machine starts anew.`,
    `A network interface that a route leads through is refused, unless --force is given. A device that has the driver already
    is left as it is. When the driver does not take a device, the driver that had it gets it back. What fails for one device
    is done for the others all the same; the exit status is 1 then.`,
  ),
  options: (command) =>
    command
      .option('-b, --driver <name>', 'the driver that shall have them; none: no driver at all', 'vfio-pci')
      .option('--force', 'take interfaces away even when routes lead through them')
      .option('--group', 'all members of their IOMMU groups, which can only be used together')
      .option('-U, --uid <uid>', 'number of the user who is to own the device files of VFIO', identity)
      .option('-G, --gid <gid>', 'number of the group that is to own the device files of VFIO', identity)
      .option('--noiommu-mode', 'without an IOMMU: switch the mode on that protects nothing, and taints the kernel'),
  examples: [
    ['anydma bind 0000:00:02.0', 'gives one device to vfio-pci'],
    ['anydma bind --group -U 1000 03:00.0', 'all of its IOMMU group, to be used by the user with number 1000'],
    ["anydma bind eth1 '0000:81:*'", 'a device by its interface, and all of a bus'],
    ['anydma bind --driver e1000e 0000:00:02.0', 'back to a driver of your choice'],
  ],
  async run(options, { output, args }) {
    bindDevices(kernelOf('bind'), args, options, output);
  },
};

/** The kernel of this machine. @throws DmaError ENOTSUP where there is none that could be asked */
export function kernelOf(operation: string): KernelPort {
  const { kernel, limitation } = openPlatform();
  if (limitation !== undefined) throw new DmaError({ code: 'ENOTSUP', operation, reason: limitation });
  return kernel;
}

/** Does what the options say, and tells it. @throws DmaError before anything was changed: see `PciBinder` */
export function bindDevices(
  kernel: KernelPort,
  names: readonly string[],
  { driver, force, group, uid, gid, noiommuMode }: BindCommandOptions,
  output: Output,
): void {
  const binder = new PciBinder(kernel);
  const owner = uid === undefined && gid === undefined ? undefined : { user: uid, group: gid };
  if (noiommuMode === true)
    output.note('no-IOMMU mode: a device that is used that way reaches all memory of the machine, and so who uses it');
  const results = binder.bind(binder.resolve(names), {
    driver,
    force,
    wholeGroup: group,
    noIommuMode: noiommuMode,
    owner,
  });
  tell(kernel, results, output, { todo: driver === undefined || driver.includes('vfio') });
}

/**
 * Tells what became of devices.
 *
 * @param options.todo also say what else it takes to use them
 */
export function tell(
  kernel: KernelPort,
  results: readonly BindResult[],
  output: Output,
  { todo }: { readonly todo: boolean },
): void {
  const facts = new PciReader(kernel).some(results.map(({ address }) => address));
  const factsOf = (address: string): (typeof facts)[number] | undefined =>
    facts.find(({ fn }) => fn.address === address);
  const heads = ['PCI', 'NAME', 'WAS WITH', 'IS WITH', ...(todo ? ['USABLE NOW'] : [])];
  output.table(
    heads.map((head) => ({ head })),
    results.map(({ address, from, to }) => {
      const about = factsOf(address);
      const row = [address, about?.name ?? 'is gone', from ?? 'no driver', to ?? 'no driver'];
      return todo ? [...row, about === undefined ? '' : usableText(about.usability)] : row;
    }),
  );
  const done = results.filter(({ error }) => error === undefined).map(({ address }) => address);
  if (todo)
    printTodo(
      output,
      facts.filter(({ fn }) => done.includes(fn.address)),
    );
  for (const { error } of results) if (error !== undefined) output.complain(error);
  output.document({
    ok: !output.failed,
    devices: results.map(({ address, from, to, error }) => {
      const about = factsOf(address);
      return {
        ...(error === undefined ? { ok: true } : failureDocument(error)),
        address,
        from,
        to,
        changed: from !== to,
        device: about && pciDocument(about),
      };
    }),
  });
}
