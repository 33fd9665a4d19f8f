/** `anydma bind`: gives PCI devices to vfio-pci, or another driver, as dpdk-devbind.py does. */
import { PciBinder, type BindPlan, type BindResult } from '../../bus/pci/bind.js';
import { pciDocument, PciReader, todoLines, usableText } from '../../bus/pci/facts.js';
import { isVfioDriver } from '../../bus/pci/sysfs.js';
import { usesText } from '../../bus/pci/uses.js';
import { DmaError, invalid } from '../../errors.js';
import { openPlatform } from '../../platform/open.js';
import type { KernelPort } from '../../platform/ports.js';
import { paragraphs, type CommandSpec } from '../shared/command.js';
import { failureDocument, type Output } from '../shared/output.js';

/** Options of the command. */
export interface BindCommandOptions {
  readonly driver?: string;
  readonly force?: boolean;
  readonly group?: boolean;
  /** A number, or a name. */
  readonly uid?: string;
  readonly gid?: string;
  readonly noiommuMode?: boolean;
  readonly dryRun?: boolean;
}

export const bind: CommandSpec<BindCommandOptions> = {
  name: 'bind <device...>',
  summary: 'give PCI devices to vfio-pci, so that programs can use them',
  description: paragraphs(
    `Binds PCI devices to a kernel driver: vfio-pci, which hands them to programs, or the one that --driver names. A device is
    named by its address, with or without the domain, by its network interface, or by a shell-style pattern, which skips bridges.
    This needs root, and lasts until "anydma unbind" or a reboot.`,
    `A device in use is refused, and the message says by what: mounted file systems, swap, arrays and volumes on its disks,
    routes and addresses of its interfaces, the console, programs that have it open, virtual functions. A device is also refused if
    its uses can not be determined. --force takes it anyway: unwritten data is lost then. --dry-run changes nothing, and says what
    would be done, and why not.`,
    `A device that has the driver already is not changed. If the driver does not accept a device, the previous driver gets it
    back. If one device fails, the others are still done, except within one IOMMU group with --group; the exit status is 1 then.`,
  ),
  options: (command) =>
    command
      .option('-b, --driver <name>', 'the driver to bind to; none: no driver', 'vfio-pci')
      .option('--force', 'also take devices that are in use, or whose use can not be determined')
      .option('-n, --dry-run', 'change nothing; say what would be done, and why not')
      .option('--group', 'bind all members of their IOMMU groups, which can only be used together')
      .option('-U, --uid <user>', 'owner of the device files of VFIO: name or number of a user')
      .option('-G, --gid <group>', 'group of the device files of VFIO: name or number')
      .option(
        '--noiommu-mode',
        'without an IOMMU: switch on no-IOMMU mode, which protects nothing and taints the kernel',
      ),
  examples: [
    ['anydma bind 0000:00:02.0', 'gives one device to vfio-pci'],
    ['anydma bind --dry-run 0000:00:02.0', 'says whether that would work, and what is in the way'],
    ['anydma bind --group -U alice 03:00.0', 'a whole IOMMU group, for the user alice'],
    ["anydma bind eth1 '0000:81:*'", 'a device by its interface, and all of a bus'],
    ['anydma bind --driver e1000e 0000:00:02.0', 'back to a driver of your choice'],
  ],
  async run(options, { output, args }) {
    bindDevices(kernelOf('bind'), args, options, output);
  },
};

/** The kernel of this machine. @throws DmaError ENOTSUP if it can not be accessed */
export function kernelOf(operation: string): KernelPort {
  const { kernel, limitation } = openPlatform();
  if (limitation !== undefined) throw new DmaError({ code: 'ENOTSUP', operation, reason: limitation });
  return kernel;
}

/** Carries out the options, and prints the result. @throws DmaError before anything was changed: see `PciBinder` */
export function bindDevices(
  kernel: KernelPort,
  names: readonly string[],
  { driver, force, group, uid, gid, noiommuMode, dryRun = false }: BindCommandOptions,
  output: Output,
): void {
  const binder = new PciBinder(kernel);
  const user = identityOf(kernel, 'user', uid);
  const owner = { user, group: identityOf(kernel, 'group', gid) };
  const options = {
    driver,
    force,
    wholeGroup: group,
    noIommuMode: noiommuMode,
    owner: owner.user === undefined && owner.group === undefined ? undefined : owner,
  };
  const functions = binder.resolve(names);
  const plans = binder.plan(functions, options);
  if (noiommuMode === true)
    output.note('no-IOMMU mode: a device used this way, and its user, can access all memory of the machine');
  if (dryRun) return tellPlans(kernel, plans, output);
  noteForced(plans, output);
  const todo = driver === undefined || isVfioDriver(driver);
  tell(kernel, binder.bind(functions, options, plans), output, { todo });
}

const LARGEST_ID = 2 ** 32 - 2;

/** The number of a user or a group, given by name or number. @throws DmaError EINVAL if it does not exist */
function identityOf(kernel: KernelPort, kind: 'user' | 'group', text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const number = /^\d+$/.test(text) ? Number(text) : text === '' ? undefined : kernel.idOf(kind, text);
  if (number !== undefined && number <= LARGEST_ID) return number;
  const hint = `"getent ${kind === 'user' ? 'passwd' : 'group'}" lists them; a number works, too`;
  throw invalid('bind', `there is no ${kind} "${text}"`, { hint });
}

/** Prints which uses will end, and which are not known, before the change: the change may end this session. */
export function noteForced(plans: readonly BindPlan[], output: Output): void {
  for (const { address, uses, unknown, error } of plans) {
    if (error !== undefined) continue;
    if (uses.length > 0) output.note(`${address} is taken although ${usesText(uses)}`);
    if (unknown.length > 0) {
      const reasons = usesText(unknown.map(({ reason }) => ({ text: reason })));
      output.note(
        `${address} is taken although it is not known ${uses.length > 0 ? 'who else uses it' : 'whether it is in use'}: ${reasons}`,
      );
    }
  }
}

const DOING: Readonly<Record<BindPlan['action'], string>> = {
  bind: 'would get',
  take: 'would be without a driver',
  release: "would get one of the kernel's own drivers",
  leave: 'stays with',
};

/** Prints what would be done with each device. */
export function tellPlans(kernel: KernelPort, plans: readonly BindPlan[], output: Output): void {
  const facts = new PciReader(kernel).some(plans.map(({ address }) => address));
  const nameOf = (address: string): string => facts.find(({ fn }) => fn.address === address)?.name ?? 'is gone';
  output.table(
    ['PCI', 'NAME', 'IS WITH', 'OUTCOME', 'USED BY'].map((head) => ({ head })),
    plans.map(({ address, from, action, to, uses, error }) => [
      address,
      nameOf(address),
      from ?? 'no driver',
      error === undefined ? [DOING[action], ...(to === undefined ? [] : [to])].join(' ') : 'would be refused',
      uses.length === 0 ? '-' : usesText(uses),
    ]),
  );
  output.text();
  output.text('Nothing was changed.');
  for (const { error } of plans) if (error !== undefined) output.complain(error);
  output.document({
    ok: !output.failed,
    dryRun: true,
    devices: plans.map(({ address, from, to, action, uses, unknown, error }) => ({
      ...(error === undefined ? { ok: true } : failureDocument(error)),
      address,
      from,
      to,
      action: error === undefined ? action : 'refuse',
      usedBy: uses.map(({ text }) => text),
      usesNotKnown: unknown.map(({ reason }) => reason),
    })),
  });
}

/**
 * Prints the result for each device.
 *
 * @param options.todo also print what else is needed to use them
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
  if (todo) output.show(todoLines(facts.filter(({ fn }) => done.includes(fn.address))));
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
