/** `anydma nvme flush`, `write-zeroes`, `deallocate`, `format` and `reset`. */
import { InvalidArgumentError } from 'commander';
import type { NvmeNamespace } from '../../entry/nvme.js';
import { DmaError, formatSize } from '../../index.js';
import { paragraphs, type CommandSpec } from '../shared/command.js';
import { integerValue } from '../shared/values.js';
import { forceOption, mayDestroy } from './guard.js';
import {
  blocksValue,
  controllerOptions,
  lbaValue,
  namespaceOf,
  namespaceOptions,
  withController,
  type ControllerOptions,
  type NamespaceOptions,
} from './open.js';

interface RangeOptions extends NamespaceOptions {
  readonly lba: number;
  readonly blocks: number;
  readonly force?: boolean;
}

export const nvmeFlush: CommandSpec<NamespaceOptions> = {
  name: 'flush',
  summary: 'make what was written durable',
  description: 'Has the controller write its volatile cache to the media (command Flush).',
  options: namespaceOptions,
  examples: [['anydma nvme flush --device pci:0000:04:00.0', 'flushes its namespace']],
  async run(options, context) {
    await withController(options, context, async ({ device, ssd }) => {
      const ns = namespaceOf(ssd, options.nsid);
      await ns.flush({ signal: context.signal });
      context.output.text(`${device.name}: namespace ${ns.id} is flushed`);
      context.output.document({ ok: true, device: device.name, nsid: ns.id });
    });
  },
};

/** A command that changes a range of blocks. */
function rangeSpec(
  name: string,
  words: { readonly summary: string; readonly description: string; readonly doing: string; readonly done: string },
  work: (ns: NvmeNamespace, range: { lba: number; blocks: number }, signal: AbortSignal) => Promise<void>,
): CommandSpec<RangeOptions> {
  return {
    name,
    summary: words.summary,
    description: paragraphs(words.description, 'On a PCI device this needs --force.'),
    options: (command) =>
      namespaceOptions(command)
        .requiredOption('--lba <n>', 'the first block', lbaValue)
        .requiredOption('--blocks <n>', 'number of blocks', blocksValue)
        .addOption(forceOption()),
    examples: [
      [
        `anydma nvme ${name} --device vfio-user:/run/disk.sock --lba 0 --blocks 2048`,
        `${words.doing} the first 2048 blocks`,
      ],
    ],
    async run({ lba, blocks, nsid, force, ...options }, context) {
      await withController(options, context, async (open) => {
        const ns = namespaceOf(open.ssd, nsid);
        const what = `${words.doing} ${blocks} block${blocks === 1 ? '' : 's'} at LBA ${lba}`;
        await mayDestroy(open, { what, nsid: ns.id }, force);
        await work(ns, { lba, blocks }, context.signal);
        const size = formatSize(blocks * ns.blockSize);
        context.output.text(`${open.device.name}: ${size} at LBA ${lba} of namespace ${ns.id} ${words.done}`);
        context.output.document({ ok: true, device: open.device.name, nsid: ns.id, lba, blocks });
      });
    },
  };
}

export const nvmeWriteZeroes = rangeSpec(
  'write-zeroes',
  {
    summary: 'write zeroes to a range of blocks, without transferring them',
    description: 'Has the controller set a range of blocks to zero (command Write Zeroes).',
    doing: 'zeroing',
    done: 'are zero',
  },
  (ns, range, signal) => ns.writeZeroes({ ...range, signal }),
);

export const nvmeDeallocate = rangeSpec(
  'deallocate',
  {
    summary: 'tell the controller that a range of blocks is not used any more',
    description: `Deallocates a range of blocks (command Dataset Management), which is also called trim or discard. What the blocks hold
    afterwards depends on the controller; "anydma nvme info" tells whether it is zeroes.`,
    doing: 'deallocating',
    done: 'are deallocated',
  },
  (ns, range, signal) => ns.deallocate([range], { signal }),
);

interface FormatOptions extends NamespaceOptions {
  readonly lbaFormat?: number;
  readonly blockSize?: number;
  readonly erase: number;
  readonly all?: boolean;
  readonly force?: boolean;
}

/** Secure erase settings of Format NVM (NVMe 1.4, section 5.23). */
const ERASE: Readonly<Record<string, number>> = { none: 0, user: 1, cryptographic: 2 };

function eraseValue(text: string): number {
  const value = Object.hasOwn(ERASE, text) ? ERASE[text] : undefined;
  if (value === undefined) throw new InvalidArgumentError(`It is one of: ${Object.keys(ERASE).join(', ')}.`);
  return value;
}

export const nvmeFormat: CommandSpec<FormatOptions> = {
  name: 'format',
  summary: 'format a namespace: all that is on it is lost',
  description: paragraphs(
    `Formats a namespace with one of its formats of blocks (command Format NVM), which "anydma nvme info" lists. It can take long: the
    time limit is ten minutes.`,
    'On a PCI device this needs --force.',
  ),
  options: (command) =>
    namespaceOptions(command)
      .option('--lba-format <n>', 'the format, by its number; default: the present one', integerValue(0, 63))
      .option('--block-size <bytes>', 'the format, by its block size, without metadata', integerValue(512, 2 ** 20))
      .option('--erase <how>', 'none, user (all user data), or cryptographic (its key)', eraseValue, 0)
      .option('--all', 'all namespaces, each with its own present format if none is given')
      .addOption(forceOption()),
  examples: [
    ['anydma nvme format --device pci:0000:04:00.0 --block-size 4096 --force', 'blocks of 4096 bytes, if it has them'],
  ],
  async run(options, context) {
    const { lbaFormat, blockSize, all, erase, force } = options;
    if (lbaFormat !== undefined && blockSize !== undefined) context.usage('--lba-format and --block-size say the same');
    await withController(options, context, async (open) => {
      const { ssd, device } = open;
      const namespaces = all === true ? ssd.namespaces : [namespaceOf(ssd, options.nsid)];
      if (namespaces.length === 0) namespaceOf(ssd, undefined);
      const formats = namespaces.map((ns) => formatOf(ns, options));
      await mayDestroy(open, { what: 'formatting', nsid: all === true ? undefined : namespaces[0].id }, force);
      for (const [n, ns] of namespaces.entries())
        await ssd.format(ns, { format: formats[n], erase, timeoutMs: 600_000, signal: context.signal });
      const nsids = namespaces.map(({ id }) => id);
      context.output.text(`${device.name}: formatted ${nsids.map((id) => `namespace ${id}`).join(', ')}`);
      context.output.document({ ok: true, device: device.name, nsids, format: formats[0], formats });
    });
  },
};

/** The format that was asked for; else the one that it has. @throws DmaError EINVAL when it has none like that */
function formatOf(ns: NvmeNamespace, { lbaFormat, blockSize }: FormatOptions): number {
  const { formats, format: present } = ns.identity;
  if (lbaFormat === undefined && blockSize === undefined) return present;
  const found = formats.findIndex((format, n) =>
    lbaFormat === undefined ? format.blockSize === blockSize && format.metadataSize === 0 : n === lbaFormat,
  );
  if (found >= 0) return found;
  const there = formats.map((format, n) => `${n} (${format.blockSize} + ${format.metadataSize} bytes)`).join(', ');
  const what =
    lbaFormat === undefined ? `format with blocks of ${blockSize} bytes and no metadata` : `format ${lbaFormat}`;
  throw new DmaError({
    code: 'EINVAL',
    operation: 'nvme format',
    reason: `namespace ${ns.id} has no ${what}`,
    hint: `it has ${there}`,
  });
}

export const nvmeReset: CommandSpec<ControllerOptions> = {
  name: 'reset',
  summary: 'reset the controller, and see whether it comes back',
  description: 'Disables the controller, enables it again, and identifies it. What was written and flushed stays.',
  options: controllerOptions,
  examples: [['anydma nvme reset --device pci:0000:04:00.0', 'resets it']],
  async run(options, context) {
    await withController(options, context, async ({ device, ssd }) => {
      const started = performance.now();
      await ssd.reset();
      const milliseconds = performance.now() - started;
      context.output.text(`${device.name}: reset, and ready again after ${milliseconds.toFixed(0)} ms`);
      context.output.document({ ok: true, device: device.name, milliseconds });
    });
  },
};
