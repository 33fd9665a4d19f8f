/** `anydma nvme list`, `info` and `log`: what there is, and how it is. */
import { Argument } from 'commander';
import type { NvmeNamespace } from '../../entry/nvme.js';
import { Eal, formatSize } from '../../index.js';
import { LOG } from '../../nvme/commands.js';
import {
  CRITICAL_WARNING,
  ERROR_ENTRY,
  errorEntriesOf,
  FIRMWARE_LOG,
  firmwareOf,
  healthOf,
  SMART,
} from '../../nvme/log-pages.js';
import { statusOf } from '../../nvme/status.js';
import { paragraphs, type CommandContext, type CommandSpec } from '../shared/command.js';
import { controllerOptions, withController, type ControllerOptions, type OpenController } from './open.js';

/** The PCI class of NVMe controllers: mass storage, non-volatile memory, NVM Express. */
const NVME_CLASS = 0x010802;

export const nvmeList: CommandSpec<object> = {
  name: 'list',
  summary: 'list the NVMe controllers of this machine',
  description: paragraphs(
    `Lists the NVMe functions on the PCI bus, and whether anydma could open each. It opens none: a controller that the kernel's driver
    has stays with it.`,
    '"anydma nvme info --device NAME" tells more, also of controllers that are served over vfio-user.',
  ),
  options: (command) => command,
  examples: [['anydma nvme list', 'what there is, and what to do to use it']],
  async run(_options, { output }) {
    await using eal = await Eal.start({ origins: false });
    const pci = [...eal.buses].find(({ name }) => name === 'pci');
    const described = await pci?.describe?.();
    const all = (described?.document.pci ?? []) as readonly PciDocument[];
    const devices = all
      .filter(({ ids }) => Number(ids.classCode) === NVME_CLASS)
      .map(({ address, name, driver, usable, inUse, problems }) => {
        const [problem] = problems;
        return { device: `pci:${address}`, name, driver, usable, inUse, problem };
      });
    if (devices.length === 0) output.text('There is no NVMe controller on the PCI bus of this machine.');
    else
      output.table(
        [{ head: 'DEVICE' }, { head: 'NAME' }, { head: 'DRIVER' }, { head: 'USABLE NOW' }],
        devices.map(({ device, name, driver, usable, problem }) => [
          device,
          name,
          driver ?? '-',
          usable ? 'yes' : `no: ${problem?.reason ?? 'not known'}; ${problem?.todo ?? ''}`,
        ]),
      );
    output.document({ ok: true, devices });
  },
};

/** What is used here of what the PCI bus tells of a function. */
interface PciDocument {
  readonly address: string;
  readonly name: string;
  readonly driver?: string;
  readonly ids: { readonly classCode: string };
  readonly usable: boolean;
  readonly inUse: boolean;
  readonly problems: readonly { readonly code: string; readonly reason: string; readonly todo: string }[];
}

export const nvmeInfo: CommandSpec<ControllerOptions> = {
  name: 'info',
  summary: 'tell what a controller and its namespaces are',
  description:
    'Identifies a controller and its namespaces: model, limits, sizes, formats of blocks, and what they can do.',
  options: controllerOptions,
  examples: [['anydma nvme info --device vfio-user:/run/disk.sock', 'a controller that is served']],
  async run(options, context) {
    await withController(options, context, async ({ device, ssd }) => {
      const { output } = context;
      const { identity, limits, namespaces } = ssd;
      output.text(
        `${output.strong(device.name)}: ${identity.model}, serial ${identity.serial}, firmware ${identity.firmware}`,
      );
      output.text(`  NVMe ${ssd.version}, volatile write cache: ${identity.writeCache ? 'yes' : 'no'}`);
      output.text(
        `  at most ${formatSize(limits.maxTransfer)} a command, ${limits.queues} queues of ${limits.queueEntries} entries, ` +
          `pages of ${formatSize(limits.pageSize)}, scatter-gather lists: ${limits.sgl ? 'yes' : 'no'}`,
      );
      output.text();
      output.table(
        [
          { head: 'NAMESPACE', align: 'right' },
          { head: 'SIZE', align: 'right' },
          { head: 'BLOCKS', align: 'right' },
          { head: 'BLOCK SIZE', align: 'right' },
          { head: 'METADATA', align: 'right' },
          { head: 'IN USE', align: 'right' },
          { head: 'CAN' },
        ],
        namespaces.map((ns) => [
          String(ns.id),
          formatSize(ns.size),
          String(ns.blocks),
          String(ns.blockSize),
          String(ns.metadataSize),
          formatSize(ns.identity.used * ns.blockSize),
          abilities(ns).join(', '),
        ]),
      );
      output.document({
        ok: true,
        device: device.name,
        version: ssd.version,
        identity,
        limits,
        namespaces: namespaces.map((ns) => ({
          id: ns.id,
          size: ns.size,
          blocks: ns.blocks,
          blockSize: ns.blockSize,
          metadataSize: ns.metadataSize,
          used: ns.identity.used,
          formats: ns.identity.formats,
          format: ns.identity.format,
          identifiers: ns.identifiers,
          capabilities: ns.capabilities,
        })),
      });
      await Promise.resolve();
    });
  },
};

function abilities({ capabilities }: NvmeNamespace): string[] {
  const names = [
    ['compare', capabilities.compare],
    ['write-zeroes', capabilities.writeZeroes],
    ['deallocate', capabilities.deallocate],
    ['verify', capabilities.verify],
    ['copy', capabilities.copy],
    ['zones', capabilities.zoned],
    ['read-only', capabilities.writeProtected],
  ] as const;
  return names.filter(([, can]) => can).map(([name]) => name);
}

const LOGS = ['smart', 'error', 'firmware'] as const;

export const nvmeLog: CommandSpec<ControllerOptions> = {
  name: 'log',
  summary: 'read a log page: health, errors, or firmware',
  description: paragraphs(
    `Reads a log page of the controller: smart is its health, error its latest errors (the newest first), firmware what is in its
    slots.`,
  ),
  options: (command) => controllerOptions(command.addArgument(new Argument('<page>', 'which log').choices(LOGS))),
  examples: [['anydma nvme log smart --device pci:0000:04:00.0', 'its health']],
  async run(options, context) {
    const [page] = context.args;
    await withController(options, context, async (open) => {
      if (page === 'smart') await smart(open, context);
      else if (page === 'error') await errors(open, context);
      else await firmware(open, context);
    });
  },
};

async function smart(open: OpenController, { output }: CommandContext): Promise<void> {
  const health = healthOf(await open.ssd.logPage(LOG.SMART, SMART.BYTES));
  const warnings = Object.entries(CRITICAL_WARNING)
    .filter(([, bit]) => (health.criticalWarning & bit) !== 0)
    .map(([name]) => name.toLowerCase().replace(/_/g, ' '));
  const rows: [string, string][] = [
    ['critical warnings', warnings.length === 0 ? 'none' : warnings.join(', ')],
    ['temperature', `${health.temperature - 273} °C`],
    ['spare', `${health.spare} % (warns below ${health.spareThreshold} %)`],
    ['life used', `${health.percentageUsed} %`],
    ['read', `${formatSize(health.bytesRead)} by ${health.readCommands} commands`],
    ['written', `${formatSize(health.bytesWritten)} by ${health.writeCommands} commands`],
    ['busy', `${health.busyMinutes} minutes`],
    ['power', `${health.powerOnHours} hours, ${health.powerCycles} cycles, ${health.unsafeShutdowns} unsafe shutdowns`],
    ['media errors', String(health.mediaErrors)],
    ['entries in the error log', String(health.errorEntries)],
  ];
  output.text(`${output.strong(open.device.name)}: health`);
  output.table([{ head: '' }, { head: '' }], rows);
  output.document({ ok: true, device: open.device.name, health, warnings });
}

async function errors(open: OpenController, { output }: CommandContext): Promise<void> {
  const most = Math.min(64, open.ssd.identity.errorLogEntries);
  const entries = errorEntriesOf(await open.ssd.logPage(LOG.ERROR, most * ERROR_ENTRY.BYTES));
  output.text(`${output.strong(open.device.name)}: ${entries.length} entries in the error log`);
  if (entries.length > 0)
    output.table(
      [
        { head: 'COUNT', align: 'right' },
        { head: 'QUEUE', align: 'right' },
        { head: 'COMMAND', align: 'right' },
        { head: 'NAMESPACE', align: 'right' },
        { head: 'LBA', align: 'right' },
        { head: 'STATUS' },
      ],
      entries.map((entry) => [
        String(entry.count),
        String(entry.queue),
        String(entry.commandId),
        String(entry.namespace),
        String(entry.lba),
        statusOf(entry.status).text,
      ]),
    );
  output.document({
    ok: true,
    device: open.device.name,
    entries: entries.map((entry) => ({ ...entry, ...statusOf(entry.status) })),
  });
}

async function firmware(open: OpenController, { output }: CommandContext): Promise<void> {
  const slots = firmwareOf(await open.ssd.logPage(LOG.FIRMWARE, FIRMWARE_LOG.BYTES));
  output.text(`${output.strong(open.device.name)}: firmware`);
  output.table(
    [{ head: 'SLOT', align: 'right' }, { head: 'REVISION' }, { head: '' }],
    slots.revisions
      .map((revision, index): [string, string, string] => [
        String(index + 1),
        revision,
        index + 1 === slots.active ? 'active' : index + 1 === slots.next ? 'active after the next reset' : '',
      ])
      .filter(([, revision]) => revision !== ''),
  );
  output.document({ ok: true, device: open.device.name, ...slots });
}
