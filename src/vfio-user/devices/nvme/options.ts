/** How a served NVMe controller is made. */
import { mustBeObject, mustBeString, mustBeWhole, optionsOf, type Shape } from '../../../check.js';
import { invalid } from '../../../errors.js';
import { GiB, isAddress, isPowerOfTwo, KiB, MiB } from '../../../units.js';
import { LEAST_PAGE, type Settings } from './core.js';
import { faultRule, type NvmeFault, type Rule } from './faults.js';
import type { ImageOptions } from './image.js';
import { FORMATS } from './namespace.js';

/** A namespace: a disk image and how it is seen. */
export interface NvmeNamespaceOptions {
  /** The path of the image, a plain file. Without one, the content is in memory and ends with the device. */
  readonly file?: string;
  /**
   * Bytes. A file that is not there, or that is empty, gets this size; any other must have it. Default: the size of the
   * file; 64 MiB in memory.
   */
  readonly size?: number;
  /** Bytes of a block: 512 or 4096. Default 512. */
  readonly blockSize?: number;
  /** Serve it write protected. Default false. */
  readonly readOnly?: boolean;
  /** May the file have holes that the file system has no room for? Default false. */
  readonly thin?: boolean;
}

/** Options of a served NVMe controller. Those of {@link NvmeNamespaceOptions} are of namespace 1. */
export interface NvmeModelOptions extends NvmeNamespaceOptions {
  /** More namespaces, with the ids from 2 on; from 1 on, if none of the options above is given. */
  readonly namespaces?: readonly NvmeNamespaceOptions[];
  /** Serial number, up to 20 printable characters. Default: made of the path of the first image. */
  readonly serial?: string;
  /** Model number, up to 40 printable characters. Default `anydma NVMe`. */
  readonly model?: string;
  /** I/O queue pairs, 1 to 255, each with an interrupt vector. Default 32. */
  readonly queues?: number;
  /** Most entries of an I/O queue, 2 to 65536. Default 4096. */
  readonly queueEntries?: number;
  /** Most bytes of a command, a power of two from 4 KiB to 4 MiB. Default 1 MiB. */
  readonly maxTransfer?: number;
  /** Bytes from one doorbell to the next, a power of two from 4 to 4096. Default 4. */
  readonly doorbellStride?: number;
  /** Offer scatter-gather lists? Default true. */
  readonly sgl?: boolean;
  /** Offer doorbells in memory (Doorbell Buffer Config)? Default true. */
  readonly shadowDoorbells?: boolean;
  /**
   * Bytes of a controller memory buffer for queues, lists and data, a power of two from 64 KiB to 1 GiB. Default 0: there is
   * none.
   */
  readonly memoryBuffer?: number;
  /** Bytes of the host's memory that the controller asks for, a multiple of 4 KiB up to 1 GiB. Default 0: none. */
  readonly hostMemory?: number;
  /** What goes wrong on purpose, for tests of drivers. */
  readonly faults?: readonly NvmeFault[];
}

const NAMESPACE: Shape<NvmeNamespaceOptions> = {
  file: 'string',
  size: 'number',
  blockSize: 'number',
  readOnly: 'boolean',
  thin: 'boolean',
};

const MODEL: Shape<NvmeModelOptions> = {
  ...NAMESPACE,
  namespaces: 'array',
  serial: 'string',
  model: 'string',
  queues: 'number',
  queueEntries: 'number',
  maxTransfer: 'number',
  doorbellStride: 'number',
  sgl: 'boolean',
  shadowDoorbells: 'boolean',
  memoryBuffer: 'number',
  hostMemory: 'number',
  faults: 'array',
};

/** A namespace, checked. */
export interface NamespaceSettings extends ImageOptions {
  readonly blockSize: number;
}

/** All options, checked. */
export interface NvmeSettings extends Omit<Settings, 'serial'> {
  readonly serial: string | undefined;
  /** by id, from 1 on */
  readonly namespaces: readonly NamespaceSettings[];
  readonly faults: readonly Rule[];
}

const OPERATION = 'nvmeModel';
const MOST_NAMESPACES = 1024;

/**
 * Checks the options of a controller. Files are opened later.
 *
 * @throws DmaError EINVAL for what can not be
 */
export function nvmeSettings(options: NvmeModelOptions | undefined): NvmeSettings {
  const given = optionsOf(options, MODEL, OPERATION);
  const { serial, model = 'anydma NVMe', queues = 32, queueEntries = 4096, maxTransfer = MiB } = given;
  const {
    doorbellStride = 4,
    sgl = true,
    shadowDoorbells = true,
    memoryBuffer = 0,
    hostMemory = 0,
    faults = [],
    namespaces = [],
  } = given;
  mustBeWhole(queues, 1, 255, 'queues', OPERATION);
  mustBeWhole(queueEntries, 2, 65536, 'queueEntries', OPERATION);
  if (!isPowerOfTwo(maxTransfer) || maxTransfer < LEAST_PAGE || maxTransfer > 4 * MiB)
    throw invalid(OPERATION, `maxTransfer is ${maxTransfer}, not a power of two from 4 KiB to 4 MiB`);
  if (!isPowerOfTwo(doorbellStride) || doorbellStride < 4 || doorbellStride > 4096)
    throw invalid(OPERATION, `doorbellStride is ${doorbellStride}, not a power of two from 4 to 4096`);
  if (shadowDoorbells && 2 * (queues + 1) * doorbellStride > LEAST_PAGE)
    throw invalid(OPERATION, `doorbells of ${queues} queues ${doorbellStride} bytes apart do not fit into a page`, {
      hint: 'have fewer queues, a smaller stride, or no shadowDoorbells',
    });
  if (memoryBuffer !== 0 && (!isPowerOfTwo(memoryBuffer) || memoryBuffer < 64 * KiB || memoryBuffer > GiB))
    throw invalid(OPERATION, `memoryBuffer is ${memoryBuffer}, not a power of two from 64 KiB to 1 GiB`);
  mustBeWhole(hostMemory, 0, GiB, 'hostMemory', OPERATION);
  if (hostMemory % LEAST_PAGE !== 0)
    throw invalid(OPERATION, `hostMemory is ${hostMemory}, not a multiple of ${LEAST_PAGE}`);
  if (serial !== undefined) checkText(serial, 20, 'serial');
  checkText(model, 40, 'model');
  const own = (Object.keys(NAMESPACE) as (keyof NvmeNamespaceOptions)[]).some((key) => given[key] !== undefined);
  const first = own || namespaces.length === 0 ? [namespaceSettings(given)] : [];
  const others = namespaces.map((each) => {
    mustBeObject(each, 'a namespace', OPERATION);
    return namespaceSettings(optionsOf(each, NAMESPACE, OPERATION));
  });
  const all = [...first, ...others];
  if (all.length > MOST_NAMESPACES)
    throw invalid(OPERATION, `${all.length} namespaces; ${MOST_NAMESPACES} are possible`);
  return {
    serial,
    model,
    queues,
    entries: queueEntries,
    mdts: Math.log2(maxTransfer / LEAST_PAGE),
    doorbellStride,
    sgl,
    shadowDoorbells,
    memoryBuffer,
    hostMemory,
    namespaces: all,
    faults: faults.map((fault) => faultRule(fault, OPERATION)),
  };
}

function namespaceSettings(options: NvmeNamespaceOptions): NamespaceSettings {
  const { file, size, blockSize = 512, readOnly = false, thin = false } = options;
  if (!FORMATS.some((power) => 2 ** power === blockSize))
    throw invalid(OPERATION, `blockSize is ${blockSize}, not 512 or 4096`);
  if (file === '') throw invalid(OPERATION, 'file is empty, not the path of a disk image');
  if (size !== undefined && (!isAddress(size) || size < blockSize || size % blockSize !== 0))
    throw invalid(OPERATION, `size is ${size}, not a whole number of blocks of ${blockSize} bytes`);
  return { file, size, blockSize, readOnly, thin };
}

function checkText(text: string, most: number, what: string): void {
  mustBeString(text, what, OPERATION);
  if (!/^[\x20-\x7e]*$/.test(text) || text.length > most)
    throw invalid(OPERATION, `${what} is not up to ${most} printable characters`);
}
