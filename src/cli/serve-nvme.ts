/** The options of `anydma serve nvme`. */
import { InvalidArgumentError, type Command } from 'commander';
import type { NvmeFault } from '../vfio-user/devices/nvme/faults.js';
import type { NvmeModelOptions, NvmeNamespaceOptions } from '../vfio-user/devices/nvme/options.js';
import { pairsOf, type PairKinds } from './shared/pairs.js';
import { integerValue, sizeValue } from './shared/values.js';

/** As commander gives them. */
export interface ServeNvmeOptions {
  readonly file?: string;
  readonly size?: number;
  readonly blockSize?: number;
  readonly readOnly?: boolean;
  readonly thin?: boolean;
  readonly namespace?: readonly NvmeNamespaceOptions[];
  readonly queues?: number;
  readonly memoryBuffer?: number;
  readonly hostMemory?: number;
  readonly serial?: string;
  readonly fault?: readonly NvmeFault[];
}

const KEYS = [
  'file',
  'size',
  'blockSize',
  'readOnly',
  'thin',
  'namespace',
  'queues',
  'memoryBuffer',
  'hostMemory',
  'serial',
  'fault',
] as const;

const word = (text: string): string => text;
const status = integerValue(0, 2 ** 31);

const FAULT: PairKinds = {
  do: word,
  queue: word,
  opcode: integerValue(0, 255),
  nth: status,
  times: status,
  ms: status,
  status,
  kelvins: status,
  nsid: status,
};

/** Adds the options to the command. */
export function addNvmeOptions(command: Command): Command {
  return command
    .option('--file <path>', 'nvme: the disk image, a plain file (default: 64 MiB of memory)')
    .option('--size <size>', 'nvme: size of the image; a file that is not there, or is empty, gets it', sizeValue)
    .option('--block-size <bytes>', 'nvme: 512 or 4096 (default: 512)', integerValue(512, 4096))
    .option('--read-only', 'nvme: serve the image write protected')
    .option('--thin', 'nvme: the image may have holes that the file system has no room for')
    .option(
      '--namespace <file[,blocksize=n,size=n,readonly,thin]>',
      'nvme: one more disk image, as a namespace of its own; can be given again',
      (text: string, before: NvmeNamespaceOptions[] | undefined) => [...(before ?? []), namespaceValue(text)],
    )
    .option('--queues <n>', 'nvme: number of I/O queue pairs (default: 32)', integerValue(1, 255))
    .option('--memory-buffer <size>', 'nvme: a controller memory buffer of this size (default: none)', sizeValue)
    .option('--host-memory <size>', 'nvme: so much of the memory of its host is asked for (default: none)', sizeValue)
    .option('--serial <text>', 'nvme: serial number (default: made of the path of the image)')
    .option(
      '--fault <do=kind[,key=value...]>',
      'nvme: what goes wrong on purpose, for tests of drivers: do=lose|late|fail|unknown-id|twice|wrong-queue|fatal|gone|hot|' +
        'detach|attach, queue=admin|io, opcode=N, nth=N, times=N, ms=N, status=N, kelvins=N, nsid=N; can be given again',
      (text: string, before: NvmeFault[] | undefined) => [...(before ?? []), faultValue(text)],
    );
}

/** Names of these options that were given. */
export function givenNvmeOptions(options: ServeNvmeOptions): string[] {
  return KEYS.filter((key) => options[key] !== undefined).map(
    (key) => `--${key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`,
  );
}

/** The options of the model. */
export function nvmeModelOptions(options: ServeNvmeOptions): NvmeModelOptions {
  const { file, size, blockSize, readOnly, thin, namespace: namespaces, fault: faults } = options;
  const { queues, memoryBuffer, hostMemory, serial } = options;
  return { file, size, blockSize, readOnly, thin, namespaces, queues, memoryBuffer, hostMemory, serial, faults };
}

function faultValue(text: string): NvmeFault {
  const { do: kind, ...rest } = pairsOf<NvmeFault>(text, FAULT);
  if (kind === undefined) throw new InvalidArgumentError('It has to say what goes wrong: do=...');
  return { do: kind, ...rest };
}

function namespaceValue(text: string): NvmeNamespaceOptions {
  const [file, ...rest] = text.split(',');
  const pairs = pairsOf<{ blocksize: number; size: number; readonly: boolean; thin: boolean }>(rest.join(','), {
    blocksize: integerValue(512, 4096),
    size: sizeValue,
    readonly: 'flag',
    thin: 'flag',
  });
  return { file, blockSize: pairs.blocksize, size: pairs.size, readOnly: pairs.readonly, thin: pairs.thin };
}
