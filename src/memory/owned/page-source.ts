/**
 * Where the pages of the library's own memory come from. A source has pages of one size on one NUMA node, for one list
 * of pages that grows and shrinks inside reserved addresses.
 *
 * Three kinds: a memfd, files of hugetlbfs, and anonymous memory. Pages that a source hands out are present (touching
 * them can not kill the process), on the right node, and zero unless `dirty` is set. Freed pages are dropped, not
 * cleared: the kernel clears every page before a process gets it. Programs that keep secrets clear them before.
 */
import { invalid, throwFirst, undoAll, withUndo } from '../../errors.js';
import { dropStep, pauseStep, type LongStep } from '../../long-work.js';
import type { FilesPort, MemoryPort, Platform } from '../../platform/ports.js';
import { Range } from '../../ranges.js';
import { runSteps, type Steps } from '../../steps.js';
import { hex, isAddress, isPowerOfTwo, type Va } from '../../units.js';
import type { Backing } from '../area.js';
import { claimFile, hugePageFile, type HugeUnlink } from './hugepage-files.js';
import { OrdinaryMemory } from '../ordinary-memory.js';
import { settling } from '../settle.js';

/** The operations in errors of {@link PageSource.take}. */
export const PAGE_OPERATIONS: readonly string[] = ['memfd.take', 'hugetlbfs.take', 'anonymous.take'];

/** Adjacent pages that were handed out, with at most one descriptor behind them. */
export interface PageRun {
  readonly va: Va;
  /** bytes */
  readonly length: number;
  /** The descriptor that they are a shared mapping of, and the offset in it. The source owns it. */
  readonly backing: Backing | undefined;
  /** They may hold what an earlier process left in them (`never` of {@link HugeUnlink}). */
  readonly dirty: boolean;
}

/** Pages of one size on one node, for one list of pages. */
export interface PageSource {
  readonly kind: 'memfd' | 'hugetlbfs' | 'anonymous';
  /** page size in bytes */
  readonly pageSize: number;
  /** NUMA node that all pages come from; -1 for any */
  readonly node: number;
  /**
   * Maps pages at `va`, inside a reservation (`MemoryPort.reserve`). All or nothing.
   *
   * @param va address of the first page, a multiple of the page size
   * @param pages number of pages
   * @param index index of the first page in the list
   * @returns the runs that were mapped, in ascending order, without gaps
   * @throws DmaError ENOMEM if there are not so many pages on that node; EINVAL for pages that are not in the list or
   *   are taken; EBUSY if another process uses the file behind them; other errors of the system
   */
  take(va: Va, pages: number, index: number): PageRun[];
  /** {@link take} in steps. The pages count as taken from the first step on, unless it fails. */
  taking(va: Va, pages: number, index: number): Steps<LongStep, PageRun[]>;
  /**
   * Frees pages; `va` and `index` as for {@link take}, for whole runs or any pages of them. The addresses stay
   * reserved. There must be no views, and no device may have the pages mapped. When it fails, the pages are still
   * taken.
   *
   * @param retire leave addresses that can be touched (`MemoryPort.retire`)? Default false
   * @param keep do the pages stay as they are in their file, for another process that has it mapped? They are freed with
   *   the file. Default false
   * @throws DmaError EINVAL for pages that are not taken
   */
  giveBack(va: Va, pages: number, index: number, retire?: boolean, keep?: boolean): void;
  /** {@link giveBack} in steps. */
  givingBack(va: Va, pages: number, index: number, retire?: boolean, keep?: boolean): Steps<LongStep, void>;
  /**
   * Closes descriptors and removes files; with `never`, files that have pages stay. Pages that are still mapped live
   * until they are unmapped. Idempotent.
   */
  close(): void;
}

/** Options of all sources. */
export interface PageSourceOptions {
  /** page size in bytes: the system's, or a hugepage size */
  readonly pageSize: number;
  /** The most pages the list can have. */
  readonly pages: number;
  /** The NUMA node to take pages from. Default: any. */
  readonly node?: number;
}

/** Options of {@link hugetlbfsPages}. */
export interface HugetlbfsOptions extends PageSourceOptions {
  /** Where a hugetlbfs of this page size is mounted. */
  readonly directory: string;
  /** Prefix of file names, different for each process. */
  readonly prefix: string;
  /**
   * One file for the whole list instead of one for each page? Uses one descriptor instead of one per page. Default
   * false.
   */
  readonly singleFile?: boolean;
  /** The number in the name of the list's first file. Default 0. */
  readonly firstFile?: number;
  /** Default `existing`. */
  readonly unlink?: HugeUnlink;
}

/**
 * Pages of a memfd, which can be passed to other processes by descriptor and leaves no file. The memfd has the length
 * of the whole list from the start, so that it can be sealed against shrinking and growing, but only pages that are
 * taken. It exists while any page is taken.
 *
 * @param options.name appears in /proc/self/maps
 */
export function memfdPages(platform: Platform, options: PageSourceOptions & { readonly name?: string }): PageSource {
  const { pageSize, pages, name = 'anydma' } = options;
  const { memory } = platform;
  const open = (): OpenFile => {
    const hugePageSize = pageSize === memory.pageSize ? undefined : pageSize;
    return { fd: memory.memfd({ name, length: pages * pageSize, hugePageSize }), path: undefined, dirty: false };
  };
  return new Source('memfd', platform, options, new SingleFile(platform, pageSize, open, false));
}

/**
 * Pages of files in a mounted hugetlbfs, as in DPDK. `removeStale` removes the files of a killed process at the next
 * start. A file exists while pages of it are taken.
 */
export function hugetlbfsPages(platform: Platform, options: HugetlbfsOptions): PageSource {
  const { directory, prefix, singleFile = false, firstFile = 0, unlink = 'existing', pageSize, pages } = options;
  const { files } = platform;
  if (!isAddress(firstFile) || !isAddress(firstFile + pages))
    throw invalid('hugetlbfsPages', `${firstFile} can not be the number of a file`);
  if (/[/\0]/.test(prefix))
    throw invalid('hugetlbfsPages', `${JSON.stringify(prefix)} can not be the prefix of a file name`);
  const open = (number: number, length: number): OpenFile => {
    const path = hugePageFile(directory, prefix, firstFile + number);
    const { fd, reused } = claimFile(files, path, unlink);
    try {
      files.truncate(fd, length);
      if (unlink === 'always') files.remove(path);
    } catch (error) {
      const remove = reused ? [] : [() => files.remove(path)];
      throw withUndo(error, 'hugetlbfsPages', undoAll([...remove, () => files.close(fd)]));
    }
    return { fd, path: unlink === 'always' ? undefined : path, dirty: reused };
  };
  const keep = unlink === 'never';
  const store = singleFile
    ? new SingleFile(platform, pageSize, () => open(0, pages * pageSize), keep)
    : new FilePerPage(platform, pageSize, (index) => open(index, pageSize), keep);
  return new Source('hugetlbfs', platform, options, store);
}

/**
 * Private pages of this process without a file: devices reach them by address only. A forked child does not inherit
 * them.
 */
export function anonymousPages(platform: Platform, options: PageSourceOptions): PageSource {
  const { memory } = platform;
  const { pageSize } = options;
  const hugePageSize = pageSize === memory.pageSize ? undefined : pageSize;
  return new Source('anonymous', platform, options, {
    // eslint-disable-next-line require-yield -- it is one short step
    *commit(va, pages) {
      const length = pages * pageSize;
      memory.commit(va, { length, hugePageSize });
      return [{ va, length, backing: undefined, dirty: false }];
    },
    // eslint-disable-next-line require-yield -- it is one short step
    *drop(va, pages, _index, { retire }) {
      leave(memory, va, pages * pageSize, retire);
    },
    close: () => undefined,
  });
}

/** How one kind of source keeps its pages. */
interface Store {
  /** Maps pages that need not be present yet. All or nothing. */
  commit(va: Va, pages: number, index: number): Steps<LongStep, PageRun[]>;
  /**
   * Drops the content of pages that are about to be freed and that nothing reaches: the slow part. Absent: nothing to
   * drop.
   */
  empty?(pages: number, index: number): LongStep;
  /** Frees pages. When it fails, they are unchanged. */
  drop(va: Va, pages: number, index: number, how: DropOptions): Steps<LongStep, void>;
  close(): void;
}

/** How pages are freed. */
interface DropOptions {
  /** Is no page of the list taken afterwards? */
  readonly last: boolean;
  /** Can the addresses still be touched afterwards? */
  readonly retire: boolean;
  /** Do they stay in their file? */
  readonly keep: boolean;
}

/** Returns committed addresses to the reservation, or replaces them by zero pages that can be touched. */
function leave(memory: MemoryPort, va: Va, length: number, retire: boolean): void {
  if (retire) memory.retire(va, length);
  else memory.decommit(va, length);
}

/** The bookkeeping that all kinds share, and faulting in pages on the right node. */
class Source implements PageSource {
  readonly kind: PageSource['kind'];
  readonly pageSize: number;
  readonly node: number;
  readonly #platform: Platform;
  readonly #store: Store;
  readonly #ordinary: OrdinaryMemory;
  /** 1 for each taken page, by index. */
  readonly #taken: Uint8Array;
  #count = 0;
  #closed = false;

  constructor(kind: PageSource['kind'], platform: Platform, options: PageSourceOptions, store: Store) {
    const { pageSize, pages, node = -1 } = options;
    const operation = `${kind}Pages`;
    if (!isPowerOfTwo(pageSize) || pageSize < platform.memory.pageSize)
      throw invalid(operation, `a page size of ${pageSize} bytes is not possible`);
    if (!isAddress(pages) || pages === 0 || !isAddress(pages * pageSize))
      throw invalid(operation, `a list of ${pages} pages is not possible`);
    if (!Number.isInteger(node) || node < -1) throw invalid(operation, `there is no NUMA node ${node}`);
    this.kind = kind;
    this.pageSize = pageSize;
    this.node = node;
    this.#platform = platform;
    this.#store = store;
    this.#ordinary = new OrdinaryMemory(platform);
    this.#taken = new Uint8Array(pages);
  }

  take(va: Va, pages: number, index: number): PageRun[] {
    return runSteps(this.taking(va, pages, index), (step) => step.now());
  }

  giveBack(va: Va, pages: number, index: number, retire?: boolean, keep?: boolean): void {
    runSteps(this.givingBack(va, pages, index, retire, keep), (step) => step.now());
  }

  *taking(va: Va, pages: number, index: number): Steps<LongStep, PageRun[]> {
    const operation = `${this.kind}.take`;
    const range = this.#check(operation, va, pages, index, 0);
    const { pageSize, node } = this;
    this.#mark(pages, index, 1);
    try {
      if (pageSize === this.#platform.memory.pageSize) this.#ordinary.check(range.length, node, operation);
      const runs = yield* this.#store.commit(va, pages, index);
      const [{ backing }] = runs;
      try {
        const wanted = { va, length: range.length, pageSize, node, fd: backing?.fd };
        yield* settling(this.#platform, this.#ordinary, wanted, operation);
      } catch (error) {
        if (this.#store.empty !== undefined) yield this.#store.empty(pages, index);
        const undo: unknown[] = [];
        try {
          yield* this.#store.drop(va, pages, index, { last: this.#count === pages, retire: false, keep: false });
        } catch (failure) {
          undo.push(failure);
        }
        throw withUndo(error, operation, undo);
      }
      return runs;
    } catch (error) {
      this.#mark(pages, index, 0);
      const failure = withUndo(error, operation, []);
      throw failure.with({ operation, range, cause: error });
    }
  }

  *givingBack(va: Va, pages: number, index: number, retire = false, keep = false): Steps<LongStep, void> {
    const operation = `${this.kind}.giveBack`;
    const range = this.#check(operation, va, pages, index, 1);
    try {
      if (!retire && !keep && this.#store.empty !== undefined) yield this.#store.empty(pages, index);
      yield* this.#store.drop(va, pages, index, { last: this.#count === pages, retire, keep });
    } catch (error) {
      throw withUndo(error, operation, []).with({ operation, range, cause: error });
    }
    this.#mark(pages, index, 0);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#store.close();
  }

  /** Throws EINVAL unless these pages are in the list, and all taken (1) or all not taken (0). */
  #check(operation: string, va: Va, pages: number, index: number, taken: 0 | 1): Range<Va> {
    const capacity = this.#taken.length;
    if (this.#closed) throw invalid(operation, 'the source is closed');
    if (!isAddress(pages) || pages === 0 || !isAddress(index) || index + pages > capacity)
      throw invalid(operation, `${pages} pages from ${index} on are not in a list of ${capacity}`);
    const range = new Range(va, pages * this.pageSize, operation);
    if (!range.isAligned(this.pageSize))
      throw invalid(operation, `${hex(va)} is not a multiple of the page size ${hex(this.pageSize)}`);
    const wrong = this.#taken.subarray(index, index + pages).indexOf(1 - taken);
    if (wrong !== -1)
      throw invalid(operation, `page ${index + wrong} is ${taken === 0 ? 'taken already' : 'not taken'}`, { range });
    return range;
  }

  #mark(pages: number, index: number, taken: 0 | 1): void {
    this.#taken.fill(taken, index, index + pages);
    this.#count += taken === 1 ? pages : -pages;
  }
}

/** A file with pages. */
interface OpenFile {
  readonly fd: number;
  /** Its name; `undefined` if it was unlinked. */
  readonly path: string | undefined;
  readonly dirty: boolean;
}

/** One file for the whole list: page `index` is at offset `index` pages. Pages are freed by punching holes. */
class SingleFile implements Store {
  readonly #memory: MemoryPort;
  readonly #files: FilesPort;
  readonly #pageSize: number;
  readonly #open: () => OpenFile;
  readonly #keep: boolean;
  #file: OpenFile | undefined;

  /**
   * @param open creates the file, with the length of the whole list
   * @param keep does the file stay if it is closed with pages in it?
   */
  constructor(platform: Platform, pageSize: number, open: () => OpenFile, keep: boolean) {
    this.#memory = platform.memory;
    this.#files = platform.files;
    this.#pageSize = pageSize;
    this.#open = open;
    this.#keep = keep;
  }

  // eslint-disable-next-line require-yield -- it is one short step
  *commit(va: Va, pages: number, index: number): Steps<LongStep, PageRun[]> {
    const length = pages * this.#pageSize;
    const isNew = this.#file === undefined;
    const { fd, dirty } = (this.#file ??= this.#open());
    const offset = index * this.#pageSize;
    try {
      this.#memory.commit(va, { length, fd, offset });
    } catch (error) {
      const undo = isNew ? [() => this.#removeName(), () => this.#close()] : [];
      throw withUndo(error, 'commit', undoAll(undo));
    }
    return [{ va, length, backing: { fd, offset }, dirty }];
  }

  empty(pages: number, index: number): LongStep {
    const fd = this.#file?.fd;
    const start = index * this.#pageSize;
    const length = pages * this.#pageSize;
    const piece = async (offset: number, bytes: number): Promise<void> => {
      // Pages that can not be dropped now are dropped with the rest, or that fails.
      if (fd !== undefined) await this.#files.punchAsync(fd, start + offset, bytes).catch(() => undefined);
    };
    return dropStep(length, this.#pageSize, piece);
  }

  // eslint-disable-next-line require-yield -- it is one short step
  *drop(va: Va, pages: number, index: number, { last, retire, keep }: DropOptions): Steps<LongStep, void> {
    const file = this.#file;
    if (file === undefined) return;
    const length = pages * this.#pageSize;
    const offset = index * this.#pageSize;
    // Unlinking comes first: if a later step fails, the file still works without its name.
    if (last) this.#removeName();
    leave(this.#memory, va, length, retire);
    try {
      if (!keep) this.#files.punch(file.fd, offset, length);
    } catch (error) {
      const recommit = (): void => {
        this.#memory.commit(va, { length, fd: file.fd, offset });
        this.#memory.populate(va, length);
      };
      throw withUndo(error, 'drop', undoAll([recommit]));
    }
    if (last) this.#close();
  }

  close(): void {
    if (this.#file === undefined) return;
    const remove = this.#keep ? [] : [() => this.#removeName()];
    throwFirst(undoAll([...remove, () => this.#close()]), 'close');
  }

  #removeName(): void {
    const file = this.#file;
    if (file?.path === undefined) return;
    this.#files.remove(file.path);
    this.#file = { ...file, path: undefined };
  }

  #close(): void {
    const file = this.#file;
    this.#file = undefined;
    if (file !== undefined) this.#files.close(file.fd);
  }
}

/** Files that are created in one step, before the event loop runs. */
const PAGES_A_STEP = 8;

/** One file for each page. A page is freed with its file. */
class FilePerPage implements Store {
  readonly #memory: MemoryPort;
  readonly #files: FilesPort;
  readonly #pageSize: number;
  readonly #open: (index: number) => OpenFile;
  readonly #keep: boolean;
  readonly #pages = new Map<number, OpenFile>();

  /**
   * @param open creates the file of a page
   * @param keep do files stay if they are closed with pages in them?
   */
  constructor(platform: Platform, pageSize: number, open: (index: number) => OpenFile, keep: boolean) {
    this.#memory = platform.memory;
    this.#files = platform.files;
    this.#pageSize = pageSize;
    this.#open = open;
    this.#keep = keep;
  }

  *commit(va: Va, pages: number, index: number): Steps<LongStep, PageRun[]> {
    const length = this.#pageSize;
    const runs: PageRun[] = [];
    const pause = pauseStep('commit');
    const goingOn = pauseStep();
    try {
      for (let i = 0; i < pages; i++) {
        if (i % PAGES_A_STEP === PAGES_A_STEP - 1) yield pause;
        const file = this.#open(index + i);
        this.#pages.set(index + i, file);
        const at = (va + i * length) as Va;
        this.#memory.commit(at, { length, fd: file.fd });
        runs.push({ va: at, length, backing: { fd: file.fd, offset: 0 }, dirty: file.dirty });
      }
    } catch (error) {
      const undo: unknown[] = [];
      // The last page may have a file without being mapped.
      for (let i = Math.min(runs.length, pages - 1); i >= 0; i--) {
        if (i % PAGES_A_STEP === 0) yield goingOn;
        const decommit = (): void => this.#memory.decommit((va + i * length) as Va, length);
        const steps = [() => this.#removeName(index + i), () => this.#close(index + i)];
        undo.push(...undoAll(i < runs.length ? [decommit, ...steps] : steps));
      }
      throw withUndo(error, 'commit', undo);
    }
    return runs;
  }

  *drop(va: Va, pages: number, index: number, { retire }: DropOptions): Steps<LongStep, void> {
    const pause = pauseStep();
    // Unlinking comes first: if a later step fails, the files still work without their names.
    for (let i = index; i < index + pages; i++) {
      if (i % PAGES_A_STEP === 0) yield pause;
      this.#removeName(i);
    }
    leave(this.#memory, va, pages * this.#pageSize, retire);
    for (let i = index; i < index + pages; i++) {
      if (i % PAGES_A_STEP === 0) yield pause;
      this.#close(i);
    }
  }

  close(): void {
    const indexes = [...this.#pages.keys()];
    const remove = this.#keep ? [] : indexes.map((index) => () => this.#removeName(index));
    throwFirst(undoAll([...remove, ...indexes.map((index) => () => this.#close(index))]), 'close');
  }

  #removeName(index: number): void {
    const file = this.#pages.get(index);
    if (file?.path === undefined) return;
    this.#files.remove(file.path);
    this.#pages.set(index, { ...file, path: undefined });
  }

  #close(index: number): void {
    const file = this.#pages.get(index);
    this.#pages.delete(index);
    if (file !== undefined) this.#files.close(file.fd);
  }
}
