/** `anydma unbind`: gives PCI devices back to the kernel's own drivers. */
import { PciBinder } from '../../bus/pci/bind.js';
import type { KernelPort } from '../../platform/ports.js';
import { kernelOf, noteForced, tell, tellPlans } from './bind.js';
import { paragraphs, type CommandSpec } from '../shared/command.js';
import type { Output } from '../shared/output.js';

/** Options of the command. */
export interface UnbindCommandOptions {
  readonly force?: boolean;
  readonly dryRun?: boolean;
}

export const unbind: CommandSpec<UnbindCommandOptions> = {
  name: 'unbind <device...>',
  summary: "give PCI devices back to the kernel's own drivers",
  description: paragraphs(
    `Unbinds PCI devices from vfio-pci and similar drivers, and lets the kernel choose a driver for each, as at boot. A device
    that has such a driver is not changed. Devices are named as for "anydma bind"; "anydma bind --driver none" leaves a device
    without a driver. This needs root.`,
    `A device that a program has open is refused. With --force the kernel asks the program to give it back, and the command
    waits until it does. It is an error if VFIO takes the device again, because it was told to take all devices with that id.
    --dry-run changes nothing, and says what would be done, and why not.`,
  ),
  options: (command) =>
    command
      .option('--force', 'also take devices that programs have open, or whose use can not be determined')
      .option('-n, --dry-run', 'change nothing; say what would be done, and why not'),
  examples: [
    ['anydma unbind 0000:00:02.0', 'gives a device back to the kernel'],
    ["anydma unbind '0000:81:*'", 'all of a bus that programs could use'],
  ],
  async run(options, { output, args }) {
    unbindDevices(kernelOf('unbind'), args, options, output);
  },
};

/** Carries out the options, and prints the result. @throws DmaError before anything was changed: see `PciBinder` */
export function unbindDevices(
  kernel: KernelPort,
  names: readonly string[],
  options: UnbindCommandOptions,
  output: Output,
): void {
  const binder = new PciBinder(kernel, 'unbind');
  const functions = binder.resolve(names);
  const plans = binder.unbindPlan(functions, options);
  if (options.dryRun === true) return tellPlans(kernel, plans, output);
  noteForced(plans, output);
  const results = binder.unbind(functions, options, plans);
  tell(kernel, results, output, { todo: false });
  for (const [n, { address, to, error }] of results.entries()) {
    if (to !== undefined || error !== undefined) continue;
    const modules = binder.modulesFor(functions[n]);
    const hint = modules.length === 0 ? '' : `; modules for it: ${modules.join(', ')} (see modprobe)`;
    output.note(`no driver of the kernel's took ${address}${hint}`);
  }
}
