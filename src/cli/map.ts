/** `anydma map`: maps memory for a device, prints the result, and unmaps it. */
import { Option } from 'commander';
import { Eal, formatSize, hex, type Device, type DmaAccess, type Iova } from '../index.js';
import type { ContainerChoice } from '../entry/driver.js';
import { paragraphs, type CommandSpec } from './shared/command.js';
import { DEVICE_KEYS_TEXT } from './shared/device-keys.js';
import { domainDocument, domainLines } from './devices/domain-facts.js';
import { openInput, type InputFile } from './demo/input-file.js';
import { iommuOption } from './iommu.js';
import { modeOption, MODES_TEXT, modesOf, reachExternal, takeMemory, TIMES_TEXT } from './demo/modes.js';
import type { Mode, ModeChoice, Reached, Reacher } from './demo/modes.js';
import type { Output } from './shared/output.js';
import { timedAsync } from './demo/timing.js';
import { formatTime } from './shared/format-time.js';
import { addressValue, integerValue, sizeValue } from './shared/values.js';

interface MapCommandOptions {
  readonly device: string;
  /** Bytes. */
  readonly size?: number;
  readonly mode: ModeChoice;
  readonly file?: string;
  readonly iova?: number;
  readonly access?: DmaAccess;
  readonly source?: 'memfd' | 'anonymous';
  readonly count: number;
  readonly iommu: ContainerChoice;
}

/** One piece of memory, as in the document. */
interface Row {
  readonly mode: Mode;
  readonly va: string;
  /** The address of the first byte. */
  readonly iova: string;
  /** The device addresses of each contiguous run. */
  readonly iovas: readonly string[];
  /** Bytes. */
  readonly length: number;
  /** Bytes. */
  readonly pageSize: number;
  readonly access: DmaAccess;
  /** The kind of memory, such as `memfd`. */
  readonly source: string;
  /** Entries added to the domain. */
  readonly entries: number;
  /** The key for local requests of an RDMA device. */
  readonly lkey?: string;
  readonly mapMicroseconds: number;
  unmapMicroseconds?: number;
}

/** Why the program has nothing to map in these modes. */
const UNMAPPED = {
  heap: 'the program has nothing to map; heaps.addMemory maps for every device, now and later',
  owned: 'the program has nothing to map; every device can access what malloc returns',
} as const;

/** Most rows of the table; a document has all. */
const MOST_ROWS = 16;

export const map: CommandSpec<MapCommandOptions> = {
  name: 'map',
  summary: 'map memory for a device, say what happened, and unmap it',
  description: paragraphs(
    `Maps memory for a device, reports the result, and unmaps it. It works with every device that anydma can open, and with every
    server of vfio-user.`,
    DEVICE_KEYS_TEXT,
    MODES_TEXT,
    TIMES_TEXT,
    `ENTRIES is the number of mapping entries that were added to the device's domain; 0 if the device could reach the memory already.`,
  ),
  options: (command) =>
    command
      .requiredOption('--device <name>', 'the device, such as vfio-user:/run/device.sock')
      .option('--size <size>', 'how much memory', sizeValue)
      .addOption(modeOption())
      .addOption(new Option('--file <path>', 'map this file instead of new memory').conflicts(['size', 'source']))
      .option('--iova <address>', 'the address for the device to use; default: the domain chooses', addressValue)
      .addOption(
        new Option('--access <access>', 'what the device may do; default: read-write, and read for a file').choices([
          'read',
          'write',
          'read-write',
        ]),
      )
      .addOption(
        new Option(
          '--source <source>',
          'where memory comes from: memfd goes to the device by descriptor, anonymous is reached by messages (default: memfd)',
        ).choices(['memfd', 'anonymous']),
      )
      .option('--count <n>', 'number of such mappings, one after the other', integerValue(1, 1_000_000), 1)
      .addOption(iommuOption()),
  examples: [
    ['anydma map --device vfio-user:/tmp/edu.sock --size 64MiB', 'maps 64 MiB on the device that is served there'],
    ['anydma map --device vdev:edu0 --size 4k --iova 0x100000 --access read', 'at a chosen address, for reading only'],
    ['anydma map --device vfio-user:/tmp/edu.sock --size 64MiB --mode all', 'in each mode: external, heap and owned'],
    ['anydma map --device vdev:edu0 --size 4k --mode owned --count 3', 'three blocks, and how little there is to map'],
    ['anydma map --device pci:0000:00:02.0 --size 1GiB', 'maps a GiB for a PCI device, by the IOMMU of this machine'],
    ['anydma map --device rdma:rxe0 --size 64MiB', 'registers 64 MiB with an RDMA device'],
    ['anydma map --device vfio-user:/tmp/edu.sock --size 4k --count 100 --json', 'measures 100 small mappings'],
  ],
  async run(options, { output, usage, signal }) {
    if (options.size === undefined && options.file === undefined) usage('one of --size and --file is needed');
    for (const name of ['file', 'iova', 'access', 'source'] as const)
      if (options.mode !== 'external' && options[name] !== undefined) usage(`--${name} is for --mode external`);
    using input = openNamed(options);
    const onNotice = (text: string): void => output.text(`Note: ${text}.`);
    const { iommu } = options;
    await using eal = await Eal.start({ iommu, origins: false, onForgotten: () => undefined, memory: { onNotice } });
    const device = await eal.probe(options.device);
    output.text(`${output.strong(device.name)}, driven by ${device.driver?.name ?? 'nothing'}`);
    const { domain } = device;
    const facts = domain === undefined ? undefined : domainDocument(domain);
    if (domain !== undefined) for (const line of domainLines(domain)) output.text(`  ${line}`);
    output.text();

    const rows: Row[] = [];
    const pieces: { readonly memory: Reached; readonly row: Row }[] = [];
    try {
      for (const mode of modesOf(options.mode))
        for (let n = 0; n < options.count; n++) {
          await new Promise((resolve) => setImmediate(resolve));
          signal.throwIfAborted();
          const memory = await reach(mode, { eal, device, signal }, options, input, n);
          const row = rowOf(memory, device);
          rows.push(row);
          pieces.push({ memory, row });
        }
      for (const { memory, row } of pieces.reverse()) {
        row.unmapMicroseconds = (await timedAsync(async () => memory.withdraw()))[1];
        await memory[Symbol.asyncDispose]();
      }
    } finally {
      printRows(output, rows);
    }
    for (const [mode, how] of Object.entries(UNMAPPED))
      if (rows.some((row) => row.mode === mode)) output.text(`${mode}: ${how}`);
    output.document({ ok: true, device: device.name, driver: device.driver?.name, domain: facts, mappings: rows });
  },
};

/** The file that is named, if any. It is only writable for the device if `--access` says so. */
function openNamed({ file, access = 'read' }: MapCommandOptions): InputFile | undefined {
  return file === undefined ? undefined : openInput(file, access !== 'read');
}

/** Maps piece `n`. */
async function reach(
  mode: Mode,
  reacher: Reacher,
  { size = 0, source, access, iova }: MapCommandOptions,
  input: InputFile | undefined,
  n: number,
): Promise<Reached> {
  const { external } = reacher.eal;
  const { signal } = reacher;
  const at = (length: number): Iova | undefined => (iova === undefined ? undefined : ((iova + n * length) as Iova));
  if (mode !== 'external') return takeMemory(mode, reacher, size);
  const memory =
    input === undefined ? await external.allocateAsync(size, { source, signal }) : external.fromFd(input.fd);
  return reachExternal(reacher, memory, { access, iova: at(memory.length) });
}

function rowOf(memory: Reached, device: Device): Row {
  const { mode, va, iova, length, pageSize, access, source, entries, mapMicroseconds } = memory;
  // Read by entry, because memory can have very many pages.
  const iovas = [...(device.domain?.runsOf(va, length) ?? [iova])].map(hex);
  const key = device.domain?.table.keyOfRange(va, length) ?? -1;
  const lkey = key < 0 ? undefined : hex(key);
  return {
    mode,
    va: hex(va),
    iova: hex(iova),
    iovas,
    length,
    pageSize,
    access,
    source,
    entries,
    lkey,
    mapMicroseconds,
  };
}

function printRows(output: Output, rows: readonly Row[]): void {
  if (rows.length === 0) return;
  const isKeyed = rows.some(({ lkey }) => lkey !== undefined);
  output.table(
    [
      { head: 'MODE' },
      { head: 'VA' },
      { head: 'IOVA' },
      { head: 'LENGTH', align: 'right' },
      { head: 'PAGES OF', align: 'right' },
      { head: 'ENTRIES', align: 'right' },
      { head: 'ACCESS' },
      ...(isKeyed ? [{ head: 'LKEY' }] : []),
      { head: 'MEMORY' },
      { head: 'MAP TIME', align: 'right' },
      { head: 'UNMAP TIME', align: 'right' },
    ],
    rows
      .slice(0, MOST_ROWS)
      .map(
        ({ mode, va, iovas, length, pageSize, entries, access, lkey, source, mapMicroseconds, unmapMicroseconds }) => [
          mode,
          va,
          iovas.length === 1 ? iovas[0] : `${iovas[0]} and ${iovas.length - 1} more`,
          formatSize(length),
          formatSize(pageSize),
          String(entries),
          access,
          ...(isKeyed ? [lkey ?? ''] : []),
          source,
          formatTime(mapMicroseconds),
          unmapMicroseconds === undefined ? '' : formatTime(unmapMicroseconds),
        ],
      ),
  );
  if (rows.length > MOST_ROWS) output.text(`and ${rows.length - MOST_ROWS} more; --json lists all`);
}
