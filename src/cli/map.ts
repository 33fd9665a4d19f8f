/** `anydma map`: maps memory for a device, tells what happened, and unmaps it. */
import { Option } from 'commander';
import { Eal, formatSize, hex, type DmaAccess, type ExternalMemory, type Iova, type Mapping } from '../index.js';
import { paragraphs, type CommandSpec } from './command.js';
import { domainDocument, domainLines } from './domain-facts.js';
import { openInput, type InputFile } from './input-file.js';
import type { Output } from './output.js';
import { formatMicroseconds, timed } from './timing.js';
import { addressValue, integerValue, sizeValue } from './values.js';

interface MapCommandOptions {
  readonly device: string;
  /** bytes */
  readonly size?: number;
  readonly file?: string;
  readonly iova?: number;
  readonly access?: DmaAccess;
  readonly source?: 'memfd' | 'anonymous';
  readonly count: number;
}

/** One mapping, as the document tells it. */
interface Row {
  readonly va: string;
  readonly iova: string;
  /** bytes */
  readonly length: number;
  readonly access: DmaAccess;
  readonly source: string;
  readonly mapMicroseconds: number;
  unmapMicroseconds?: number;
}

/** Rows of the table; a document has all. */
const MOST_ROWS = 16;

export const map: CommandSpec<MapCommandOptions> = {
  name: 'map',
  summary: 'map memory for a device, say what happened, and unmap it',
  description: paragraphs(
    `Takes memory, registers it, maps it for the device, tells what came of it, and unmaps it. It works on any device that
    anydma can open; of vfio-user servers it needs nothing but the protocol.`,
  ),
  options: (command) =>
    command
      .requiredOption('--device <name>', 'the device, such as vfio-user:/run/device.sock')
      .option('--size <size>', 'how much memory', sizeValue)
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
      .option('--count <n>', 'how many such pieces, one after the other', integerValue(1, 1_000_000), 1),
  examples: [
    ['anydma map --device vfio-user:/tmp/edu.sock --size 64MiB', 'maps 64 MiB on the device that is served there'],
    ['anydma map --device vdev:edu0 --size 4k --iova 0x100000 --access read', 'at a chosen address, for reading only'],
    ['anydma map --device vfio-user:/tmp/edu.sock --size 4k --count 100 --json', 'measures 100 small mappings'],
  ],
  async run(options, { output, usage, signal }) {
    if (options.size === undefined && options.file === undefined) usage('one of --size and --file is needed');
    using input = openNamed(options);
    await using eal = await Eal.start({ origins: false, onForgotten: () => undefined });
    const device = await eal.probe(options.device);
    output.text(`${output.strong(device.name)}, driven by ${device.driver?.name ?? 'nothing'}`);
    const { domain } = device;
    const facts = domain === undefined ? undefined : domainDocument(domain);
    if (domain !== undefined) for (const line of domainLines(domain)) output.text(`  ${line}`);
    output.text();

    const rows: Row[] = [];
    const pieces: { readonly memory: ExternalMemory; readonly mapping: Mapping; readonly row: Row }[] = [];
    try {
      for (let n = 0; n < options.count; n++) {
        await new Promise((resolve) => setImmediate(resolve));
        signal.throwIfAborted();
        const memory = takeMemory(eal, options, input);
        const iova = options.iova === undefined ? undefined : ((options.iova + n * memory.length) as Iova);
        const [mapping, mapMicroseconds] = timed(() => device.dmaMap(memory, { iova, access: options.access }));
        const { va, length, access } = mapping;
        const { source } = memory;
        const row = { va: hex(va), iova: hex(mapping.iova), length, access, source, mapMicroseconds };
        rows.push(row);
        pieces.push({ memory, mapping, row });
      }
      for (const { memory, mapping, row } of pieces.reverse()) {
        row.unmapMicroseconds = timed(() => mapping.unmap())[1];
        memory.unregister();
      }
    } finally {
      printRows(output, rows);
    }
    output.document({ ok: true, device: device.name, driver: device.driver?.name, domain: facts, mappings: rows });
  },
};

/** The file that is named, if one is; the device may write it only if that is asked for. */
function openNamed({ file, access = 'read' }: MapCommandOptions): InputFile | undefined {
  return file === undefined ? undefined : openInput(file, access !== 'read');
}

function takeMemory(eal: Eal, { size = 0, source }: MapCommandOptions, input: InputFile | undefined): ExternalMemory {
  return input === undefined ? eal.external.allocate(size, { source }) : eal.external.fromFd(input.fd);
}

function printRows(output: Output, rows: readonly Row[]): void {
  if (rows.length === 0) return;
  output.table(
    [
      { head: 'VA' },
      { head: 'IOVA' },
      { head: 'LENGTH', align: 'right' },
      { head: 'ACCESS' },
      { head: 'MEMORY' },
      { head: 'MAP TIME', align: 'right' },
      { head: 'UNMAP TIME', align: 'right' },
    ],
    rows
      .slice(0, MOST_ROWS)
      .map(({ va, iova, length, access, source, mapMicroseconds, unmapMicroseconds }) => [
        va,
        iova,
        formatSize(length),
        access,
        source,
        formatMicroseconds(mapMicroseconds),
        unmapMicroseconds === undefined ? '' : formatMicroseconds(unmapMicroseconds),
      ]),
  );
  if (rows.length > MOST_ROWS) output.text(`and ${rows.length - MOST_ROWS} more; --json tells all`);
}
