/** `anydma hugepages`: shows, reserves and releases hugepages, and mounts their file system, as dpdk-hugepages.py does. */
import { Option } from 'commander';
import { absolutePath } from '../check.js';
import { DmaError, invalid } from '../errors.js';
import { HugePages } from '../memory/hugepages.js';
import { openPlatform } from '../platform/open.js';
import { alignDown, alignUp, formatSize, GiB, KiB, MiB, TiB } from '../units.js';
import { paragraphs, type CommandSpec } from './shared/command.js';
import type { Output } from './shared/output.js';
import { integerValue, sizeValue } from './shared/values.js';

/** The actions; `setup` is all except `show`. */
export interface HugePagesOptions {
  readonly show?: boolean;
  readonly clear?: boolean;
  readonly unmount?: boolean;
  /** Bytes. */
  readonly reserve?: number;
  readonly mount?: boolean;
  /** Bytes. */
  readonly setup?: number;
  /** Bytes. */
  readonly pagesize?: number;
  readonly node?: number;
  readonly directory?: string;
  readonly user?: number;
  readonly group?: number;
}

const DIRECTORY = '/dev/hugepages';

/** Options that only refine others, and the options that they refine. */
const DETAILS: readonly (readonly [detail: keyof HugePagesOptions, of: readonly (keyof HugePagesOptions)[]])[] = [
  ['pagesize', ['clear', 'reserve', 'mount', 'setup']],
  ['node', ['clear', 'reserve', 'setup']],
  ['directory', ['unmount', 'mount', 'setup']],
  ['user', ['mount', 'setup']],
  ['group', ['mount', 'setup']],
];

/** The columns of dpdk-hugepages.py, and one more. */
const COLUMNS = ['Node', 'Pages', 'Size', 'Total', 'Free'].map((head) => ({ head, align: 'right' as const }));

const identity = integerValue(0, 2 ** 32 - 2);

export const hugepages: CommandSpec<HugePagesOptions> = {
  name: 'hugepages',
  summary: 'show, reserve and release hugepages, and mount hugetlbfs',
  description: paragraphs(
    `Shows the hugepages of the machine, and where their file system is mounted. Options change that, like those of
    dpdk-hugepages.py; this needs root, and lasts until the next change or reboot. The order is always: clear, unmount, reserve,
    mount, show.`,
    `anydma does not need a mount: without one it uses memfds.`,
  ),
  options: (command) =>
    command
      .option('-s, --show', 'show the result, also after a change')
      .option('-c, --clear', 'release the hugepages: all, or those of --pagesize and --node')
      .option('-u, --unmount', 'unmount the file system')
      .option('-r, --reserve <size>', 'set the memory in hugepages, on each NUMA node or on --node', sizeValue)
      .option('-m, --mount', 'mount the file system')
      .addOption(
        new Option('--setup <size>', 'clear, unmount, reserve this much, and mount')
          .argParser(sizeValue)
          .conflicts('reserve'),
      )
      .option(
        '-p, --pagesize <size>',
        "size of the hugepages; default: the kernel's default size; for --clear: all sizes",
        sizeValue,
      )
      .option('-n, --node <n>', 'the NUMA node; default: every node', integerValue(0, 65_535))
      .option('-d, --directory <path>', `where to mount or unmount; default: ${DIRECTORY}`)
      .option('-U, --user <uid>', 'number of the user who owns the directory', identity)
      .option('-G, --group <gid>', 'number of the group that owns the directory', identity),
  examples: [
    ['anydma hugepages', 'shows hugepages and mounts'],
    ['anydma hugepages --reserve 1G', 'reserves 1 GiB on each NUMA node'],
    ['anydma hugepages -p 1G -n 0 -r 4G -s', 'reserves four pages of 1 GiB on node 0, and shows what there is then'],
    ['anydma hugepages --setup 2G', 'releases all, reserves 2 GiB on each node, and mounts hugetlbfs'],
    ['anydma hugepages --clear --unmount', 'releases everything'],
  ],
  async run(options, { output, usage }) {
    for (const [detail, actions] of DETAILS)
      if (options[detail] !== undefined && actions.every((action) => options[action] === undefined))
        usage(`--${detail} needs ${actions.map((action) => `--${action}`).join(' or ')}`);
    const { kernel, limitation } = openPlatform();
    if (limitation !== undefined) throw new DmaError({ code: 'ENOTSUP', operation: 'hugepages', reason: limitation });
    carryOut(new HugePages(kernel), options, output);
  },
};

/**
 * Carries out the options, and prints the result.
 *
 * @throws DmaError EINVAL, before anything was changed, for an impossible size or node; the errors of {@link HugePages}
 */
export function carryOut(pages: HugePages, options: HugePagesOptions, output: Output): void {
  const { setup, node, pagesize, user, group } = options;
  const all = setup !== undefined;
  const { clear = all, unmount = all, reserve = setup, mount = all } = options;
  const directory = absolutePath(options.directory ?? DIRECTORY, 'hugepages');
  const changes = clear || unmount || reserve !== undefined || mount;
  const pageSize = changes ? checkChoice(pages, options) : 0;
  const where = node !== undefined ? ` on node ${node}` : pages.nodes().length > 1 ? ' on each node' : '';

  // Before anything is changed. Mounts that are hidden by the one unmounted here appear only afterwards.
  if (mount && !(unmount && pages.isMounted(directory))) pages.checkMount(directory, { pageSize, user, group });

  if (clear) {
    const left = pages.release({ pageSize: pagesize, node });
    output.text(`released the hugepages${pagesize === undefined ? '' : ` of ${formatSize(pagesize)}`}${where}`);
    if (left > 0) output.note(`${left} of them are in use, and are released when their users free them`);
  }
  // --setup does not fail if nothing is mounted.
  if (unmount && (!all || pages.isMounted(directory))) {
    pages.unmount(directory);
    output.text(`unmounted ${directory}`);
  }
  if (reserve !== undefined) {
    const count = reserve / pageSize;
    pages.reserve({ pageSize, node, pages: count });
    output.text(`reserved ${count} ${count === 1 ? 'page' : 'pages'} of ${formatSize(pageSize)}${where}`);
  }
  if (mount) {
    const done = pages.mount(directory, { pageSize, user, group });
    output.text(`${done ? 'mounted' : 'already mounted:'} hugepages of ${formatSize(pageSize)} at ${directory}`);
    if (!done && (user ?? group) !== undefined) output.note(`the owner of ${directory} was not changed`);
  }
  if (changes && options.show === true) output.text();
  if (!changes || options.show === true) show(pages, output);
  output.document({ ok: true, sizes: pages.sizes(), mounts: pages.mounts() });
}

/** The page size to reserve or to mount. @throws DmaError before anything was changed, as {@link carryOut} */
function checkChoice(pages: HugePages, { pagesize, node, reserve, setup }: HugePagesOptions): number {
  const operation = 'hugepages';
  const sizes = pages.sizes().map((size) => size.pageSize);
  if (sizes.length === 0) throw new DmaError({ code: 'ENOTSUP', operation, reason: 'this kernel has no hugepages' });
  const pageSize = pagesize ?? pages.defaultPageSize ?? sizes[0];
  if (!sizes.includes(pageSize)) {
    const hint = `page sizes: ${sizes.map(formatSize).join(', ')}`;
    throw invalid(operation, `the machine has no pages of ${formatSize(pageSize)}`, { hint });
  }
  const nodes = pages.nodes();
  if (node !== undefined && !nodes.includes(node))
    throw invalid(operation, `there is no NUMA node ${node}`, { hint: `nodes: ${nodes.join(', ')}` });
  const wanted = reserve ?? setup ?? 0;
  if (wanted % pageSize !== 0) {
    const near = [alignDown(wanted, pageSize), alignUp(wanted, pageSize)].filter((size) => size > 0);
    const reason = `${formatSize(wanted)} is not a multiple of the page size, ${formatSize(pageSize)}`;
    throw invalid(operation, reason, { hint: `${near.map(formatSize).join(' or ')} is` });
  }
  return pageSize;
}

/** Prints what dpdk-hugepages.py prints, and the number of free pages. */
function show(pages: HugePages, output: Output): void {
  const rows = pages
    .sizes()
    .flatMap(({ pageSize, nodes }) => nodes.map((counts) => ({ pageSize, ...counts })))
    .filter(({ total }) => total > 0)
    .sort((a, b) => a.node - b.node || a.pageSize - b.pageSize)
    .map(({ node, total, pageSize, free }) => [
      String(node),
      String(total),
      shortSize(pageSize),
      shortSize(total * pageSize),
      String(free),
    ]);
  if (rows.length === 0) output.text('No huge pages reserved');
  else output.table(COLUMNS, rows);
  output.text();
  const mounts = pages.mounts().map(({ path }) => path);
  output.text(
    mounts.length === 0 ? 'No huge page filesystems mounted' : `Huge page filesystems mounted at: ${mounts.join(' ')}`,
  );
}

/**
 * `2Mb`, `1Gb`, as dpdk-hugepages.py formats sizes, but never rounded: in the largest unit that gives a whole number.
 */
function shortSize(bytes: number): string {
  for (const [unit, name] of [
    [TiB, 'Tb'],
    [GiB, 'Gb'],
    [MiB, 'Mb'],
  ] as const)
    if (bytes % unit === 0) return `${bytes / unit}${name}`;
  return `${bytes / KiB}Kb`;
}
