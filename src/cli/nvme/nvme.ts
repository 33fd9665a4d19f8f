/** `anydma nvme`: NVMe disks, from the command line. */
import type { Command } from 'commander';
import { addCommand, paragraphs, type Run } from '../shared/command.js';
import { nvmeInfo, nvmeList, nvmeLog } from './facts.js';
import { nvmeRead, nvmeVerify, nvmeWrite } from './move.js';
import { nvmeAdmin, nvmeIo } from './passthrough.js';
import { nvmePerf } from './perf.js';
import { nvmeDeallocate, nvmeFlush, nvmeFormat, nvmeReset, nvmeWriteZeroes } from './upkeep.js';

/** Adds the commands of NVMe to the program, as one group. */
export function addNvme(program: Command, run: Run): void {
  const group = program
    .command('nvme')
    .summary('NVMe disks: list, info, log, read, write, verify, perf, ...')
    .description(
      paragraphs(
        `Works NVMe controllers from this process, without the kernel's driver: PCI devices that were bound to vfio-pci
        ("anydma bind"), and controllers that are served over vfio-user ("anydma serve nvme").`,
        `"anydma nvme perf" needs no device: it starts a controller of our own.`,
      ),
    )
    .showHelpAfterError('"anydma nvme --help" lists its commands.');
  addCommand(group, nvmePerf, run);
  addCommand(group, nvmeList, run);
  addCommand(group, nvmeInfo, run);
  addCommand(group, nvmeLog, run);
  addCommand(group, nvmeRead, run);
  addCommand(group, nvmeWrite, run);
  addCommand(group, nvmeVerify, run);
  addCommand(group, nvmeFlush, run);
  addCommand(group, nvmeWriteZeroes, run);
  addCommand(group, nvmeDeallocate, run);
  addCommand(group, nvmeFormat, run);
  addCommand(group, nvmeReset, run);
  addCommand(group, nvmeAdmin, run);
  addCommand(group, nvmeIo, run);
}
