/** The options of the library's own memory, with DPDK's names and rules, and the settings that result from them. */
import { absolutePath, mustBeObject, optionsOf, type Shape, typeHint } from '../../check.js';
import { invalid } from '../../errors.js';
import { show } from '../../show.js';
import { formatSize, isAddress, isPowerOfTwo } from '../../units.js';
import type { HugeUnlink } from './hugepage-files.js';
import type { IovaMode } from '../iova-mode.js';

/**
 * Options of the memory that the library owns. All sizes are in bytes. The name of DPDK's option follows in
 * parentheses.
 */
export interface MemoryOptions {
  /** Take this much at the start, from any node that has it, and keep it until the end (`-m`). */
  readonly size?: number;
  /** The same for each node (`--numa-mem`, `--socket-mem`). */
  readonly numaMem?: readonly number[];
  /** Never take more than this on each node; 0 for no limit (`--numa-limit`). */
  readonly numaLimit?: readonly number[];
  /**
   * Page sizes to use, including the system's. Default: all hugepage sizes, then ordinary pages, with a notice. Sizes
   * given here, or by an option about files, are a demand: if they are not available, that is an error with the reason.
   * Ordinary pages are used as a fallback only if their size is listed.
   */
  readonly pageSizes?: readonly number[];
  /**
   * Never have more than `limit` bytes in pages of this size on each node; 0 for none (`--pagesz-mem`). If a size is
   * given twice, the last one counts.
   */
  readonly pageSizeLimits?: readonly { readonly pageSize: number; readonly limit: number }[];
  /**
   * Keep it in memfds, without files or mounts? Default true, unless one of the options about files is given:
   * `hugeDir`, `filePrefix`, `hugeUnlink`, `singleFileSegments`.
   */
  readonly inMemory?: boolean;
  /** Use ordinary pages only. */
  readonly noHuge?: boolean;
  /** A hugetlbfs directory for the files. Default: every mounted one that this process can use. */
  readonly hugeDir?: string;
  /** Prefix of file names, different for each process. Default `anydma`. */
  readonly filePrefix?: string;
  /**
   * What happens to files of hugepages, by DPDK's names of `--huge-unlink`:
   * - `existing` (the default): a file that a dead process left is removed and created again; own files keep their names while
   *   in use.
   * - `always`: as `existing`, but a file is unlinked before it is mapped, so that nothing is ever left behind.
   * - `never`: an existing file is used with its content, and files in use at the end stay for the next start. This is
   *   faster, because the kernel clears no page, but the next process can read what this one left.
   */
  readonly hugeUnlink?: 'existing' | 'always' | 'never';
  /** One file for each list of pages instead of one for each page? Devices then need fewer mappings. Default false. */
  readonly singleFileSegments?: boolean;
  /**
   * Never take more than an allocation needs, and free memory together with the allocation that it was taken for?
   * Default false.
   */
  readonly matchAllocations?: boolean;
  /** What devices use as addresses. Default: decided at first use; see `eal.memory.iova`. */
  readonly iovaMode?: IovaMode;
  /**
   * Must every device use the same IOVAs for this memory, so that `block.iova`, `zone.iova` and `pool.iovas` exist?
   * They are the VAs (what DPDK promises with `--iova-mode=va`), or the physical addresses in IOVA mode `pa`. While
   * there is memory, a device that can not use its IOVAs (too few address bits, or they are in use there) is not
   * probed; once such a device is attached, memory does not grow. The error gives the reason. Addresses can be reused
   * at once. Default false: each domain chooses, and `device.iovaOf` tells.
   */
  readonly sameIova?: boolean;
  /**
   * For an Eal with a name: the first address of its memory, a multiple of 1 GiB. 512 GiB from there on has to be free in
   * all of its processes (64 GiB with `sameIova`). Default: far from all other memory, by name; with `sameIova` 4 GiB,
   * as devices with few address bits reach it.
   */
  readonly baseAddress?: number;
  /**
   * Note where each block is allocated, to report blocks that were never freed? Default false: it costs a microsecond
   * per block.
   */
  readonly origins?: boolean;
  /**
   * Called once with each fact that a program may want to know, such as that there are no hugepages. Default: a process
   * warning.
   */
  readonly onNotice?: (text: string) => void;
}

/** Checked options, with defaults for what was left out. */
export interface MemorySettings {
  readonly size: number;
  readonly numaMem: readonly number[];
  readonly numaLimit: readonly number[];
  /** `undefined`: all */
  readonly pageSizes: readonly number[] | undefined;
  readonly pageSizeLimits: ReadonlyMap<number, number>;
  /** How files are kept; `undefined` for memfds. */
  readonly files: FileSettings | undefined;
  readonly noHuge: boolean;
  readonly matchAllocations: boolean;
  readonly iovaMode: IovaMode | undefined;
  readonly sameIova: boolean;
  readonly baseAddress: number | undefined;
  readonly origins: boolean;
  readonly onNotice: (text: string) => void;
}

/** How hugepages are kept in files. */
export interface FileSettings {
  /** an absolute path */
  readonly directory: string | undefined;
  readonly prefix: string;
  readonly unlink: HugeUnlink;
  readonly singleFile: boolean;
}

/** The operation in errors of these options. */
export const START = 'Eal.start';
const OPTIONS: Shape<MemoryOptions> = {
  size: 'number',
  numaMem: 'array',
  numaLimit: 'array',
  pageSizes: 'array',
  pageSizeLimits: 'array',
  inMemory: 'boolean',
  noHuge: 'boolean',
  hugeDir: 'string',
  filePrefix: 'string',
  hugeUnlink: 'any',
  singleFileSegments: 'boolean',
  matchAllocations: 'boolean',
  iovaMode: 'any',
  sameIova: 'boolean',
  baseAddress: 'number',
  origins: 'boolean',
  onNotice: 'function',
};
type PageSizeLimit = NonNullable<MemoryOptions['pageSizeLimits']>[number];

function limitsOf(limits: readonly PageSizeLimit[]): readonly PageSizeLimit[] {
  for (const each of limits) mustBeObject(each, 'memory.pageSizeLimits', START);
  return limits;
}

const FILE_OPTIONS = ['hugeDir', 'filePrefix', 'hugeUnlink', 'singleFileSegments'] as const;

/** @throws DmaError EINVAL for options that are not possible or contradict each other */
export function memorySettings(asked: MemoryOptions): MemorySettings {
  const options: MemoryOptions = optionsOf(asked, OPTIONS, START);
  checkConflicts(options);
  const { size = 0, numaMem = [], numaLimit = [], pageSizes, pageSizeLimits = [], filePrefix = 'anydma' } = options;
  for (const [name, bytes] of [
    ['size', [size]],
    ['numaMem', numaMem],
    ['numaLimit', numaLimit],
  ] as const)
    for (const each of bytes)
      if (!isAddress(each))
        throw invalid(START, `memory.${name}: ${show(each)} is no size`, {
          hint: typeHint(each, 'number') ?? 'it is a whole number of bytes, such as 64 * MiB',
        });
  for (const pageSize of pageSizes ?? []) checkPageSize('pageSizes', pageSize);
  if (pageSizes?.length === 0)
    throw invalid(START, 'memory.pageSizes: there has to be one', { hint: 'leave it out for all there are' });
  for (const { pageSize, limit } of limitsOf(pageSizeLimits)) {
    checkPageSize('pageSizeLimits', pageSize);
    if (!isAddress(limit) || limit % pageSize !== 0)
      throw invalid(START, `memory.pageSizeLimits: ${show(limit)} is not a multiple of ${formatSize(pageSize)}`, {
        hint: 'it is bytes, not a number of pages; 0 for none of them',
      });
  }
  if (filePrefix === '' || /[/\0]/.test(filePrefix))
    throw invalid(START, `memory.filePrefix: ${JSON.stringify(filePrefix)} can not be the prefix of a file name`, {
      hint: 'it is one part of a name, without /; hugeDir is the folder',
    });
  const { hugeDir, hugeUnlink = 'existing', singleFileSegments = false, iovaMode } = options;
  if (!['existing', 'always', 'never'].includes(hugeUnlink))
    throw invalid(START, `memory.hugeUnlink: there is no ${show(hugeUnlink)}`, {
      hint: 'it is existing, always, never',
    });
  if (iovaMode !== undefined && iovaMode !== 'va' && iovaMode !== 'pa')
    throw invalid(START, `memory.iovaMode: there is no ${show(iovaMode)}`, { hint: 'it is va or pa' });
  const directory = hugeDir === undefined ? undefined : absolutePath(hugeDir, START);
  const files = { directory, prefix: filePrefix, unlink: hugeUnlink, singleFile: singleFileSegments };
  const usesFiles = !(options.inMemory ?? FILE_OPTIONS.every((name) => options[name] === undefined));
  return {
    size,
    numaMem: [...numaMem],
    numaLimit: [...numaLimit],
    pageSizes: pageSizes === undefined ? undefined : [...pageSizes],
    pageSizeLimits: new Map(limitsOf(pageSizeLimits).map(({ pageSize, limit }) => [pageSize, limit])),
    files: usesFiles && options.noHuge !== true ? files : undefined,
    noHuge: options.noHuge ?? false,
    matchAllocations: options.matchAllocations ?? false,
    iovaMode,
    sameIova: options.sameIova ?? false,
    baseAddress: options.baseAddress,
    origins: options.origins ?? false,
    onNotice: options.onNotice ?? ((text) => process.emitWarning(text, { code: 'ANYDMA_NOTICE' })),
  };
}

/** Options that can not be combined: one, and those that contradict it. */
const CONFLICTS: readonly (readonly [keyof MemoryOptions, readonly (keyof MemoryOptions)[]])[] = [
  ['size', ['numaMem']],
  [
    'noHuge',
    ['numaMem', 'matchAllocations', 'hugeUnlink', 'singleFileSegments', 'hugeDir', 'pageSizes', 'pageSizeLimits'],
  ],
  ['hugeUnlink', ['singleFileSegments']],
  ['inMemory', FILE_OPTIONS],
];

function checkConflicts(options: MemoryOptions): void {
  const isGiven = (name: keyof MemoryOptions): boolean => options[name] !== undefined && options[name] !== false;
  for (const [name, others] of CONFLICTS) {
    const other = isGiven(name) ? others.find(isGiven) : undefined;
    if (other !== undefined)
      throw invalid(START, `memory.${name} and memory.${other} contradict each other`, {
        hint: 'leave one of them out',
      });
  }
}

function checkPageSize(name: string, pageSize: number): void {
  if (!isPowerOfTwo(pageSize))
    throw invalid(START, `memory.${name}: ${show(pageSize)} is not a power of two`, {
      hint:
        typeHint(pageSize, 'number') ??
        'page sizes are 2 * MiB, GiB and the like: "anydma hugepages" lists those of this machine',
    });
}
