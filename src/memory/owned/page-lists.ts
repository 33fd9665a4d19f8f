/**
 * Every page that the library owns: one list per page size and node, made when its first page is needed; another one
 * when a list is full.
 */
import { DmaError, invalid, isDmaError, NO_PERMISSION, undoAll, unlessFails } from '../../errors.js';
import type { LongStep } from '../../long-work.js';
import type { Platform } from '../../platform/ports.js';
import type { Steps } from '../../steps.js';
import { formatSize, GiB } from '../../units.js';
import type { AreaIndex } from '../area-index.js';
import type { PageChoice } from '../heap/growth.js';
import { removeStale } from './hugepage-files.js';
import { checkHugePageSizes, HugePages, hugetlbfsAt, type HugetlbfsMount } from '../hugepages.js';
import { START, type FileSettings, type MemorySettings } from './memory-settings.js';
import { hugetlbfsPages, memfdPages, type PageSource } from './page-source.js';
import { OrdinaryMemory } from '../ordinary-memory.js';
import { SegmentList, type Extent } from './segment-list.js';

/** Pages in a list, or fewer if LIST_BYTES would be exceeded; DPDK's numbers. A larger request gets a longer list. */
const LIST_PAGES = 32768;
const LIST_BYTES = 64 * GiB;

/** Errors after which another mount is tried, and those that are about rights. */
const ABOUT_RIGHTS: readonly string[] = ['EACCES', 'EPERM', 'EROFS'];
const ABOUT_A_MOUNT: readonly string[] = [...ABOUT_RIGHTS, 'ENOSPC', 'ENOMEM', 'ENOENT'];
/** Stands for any NUMA node. */
const ANY_NODE = -1;

const MOUNT_HINT = 'anydma hugepages --mount mounts one';

function keyOf(pageSize: number, node: number, mount: HugetlbfsMount | undefined): string {
  return `${pageSize}@${node} ${mount?.path ?? ''}`;
}

/** The lists of all page sizes and nodes. */
export class PageLists {
  readonly #platform: Platform;
  readonly #ordinary: OrdinaryMemory;
  readonly #areas: AreaIndex;
  readonly #settings: MemorySettings;
  readonly #physical: () => boolean;
  readonly #huge: HugePages;
  readonly #lists = new Map<string, SegmentList[]>();
  /** The number of the next file in each directory. */
  readonly #nextFile = new Map<string, number>();
  /** The hugetlbfs that the settings name. */
  #directory: HugetlbfsMount | undefined;
  #nodes: readonly number[] | undefined;
  #heapNodes: readonly number[] | undefined;
  #unbound: DmaError | undefined;
  #hidden: DmaError | undefined;
  #hugeSizes: number[] | undefined;

  /** @param physical do devices use physical addresses? */
  constructor(platform: Platform, areas: AreaIndex, settings: MemorySettings, physical: () => boolean) {
    this.#platform = platform;
    this.#ordinary = new OrdinaryMemory(platform);
    this.#areas = areas;
    this.#settings = settings;
    this.#physical = physical;
    this.#huge = new HugePages(platform.kernel);
  }

  /** NUMA nodes that have memory, in ascending order. */
  get nodes(): readonly number[] {
    return (this.#nodes ??= this.#ifShown(() => this.#huge.nodes()) ?? [0]);
  }

  /**
   * The nodes that have heaps: all of them, in ascending order; only -1, for any node, where the process may not say which node
   * pages come from.
   */
  get heapNodes(): readonly number[] {
    if (this.#heapNodes !== undefined) return this.#heapNodes;
    this.#unbound = this.nodes.length === 1 ? undefined : this.#whyUnbound();
    if (this.#unbound !== undefined) {
      const { reason, hint } = this.#unbound;
      const todo = hint === undefined ? '' : ` (${hint})`;
      this.#settings.onNotice(`pages come from any NUMA node, as this process may not choose one: ${reason}${todo}`);
    }
    return (this.#heapNodes = this.#unbound === undefined ? this.nodes : [ANY_NODE]);
  }

  /** Why memory can not be bound to a node, where that is so; EPERM. */
  get unbound(): DmaError | undefined {
    return this.heapNodes[0] === ANY_NODE ? this.#unbound : undefined;
  }

  /** Tries it with a page that nobody touches. */
  #whyUnbound(): DmaError | undefined {
    const { memory, limitation } = this.#platform;
    if (limitation !== undefined) return undefined;
    const length = memory.pageSize;
    const va = memory.map({ length });
    try {
      memory.bind(va, length, this.nodes[0]);
      return undefined;
    } catch (error) {
      // Other errors come again, and are told, when memory is wanted.
      return isDmaError(error, 'EPERM') ? error : undefined;
    } finally {
      memory.unmap(va, length);
    }
  }

  /** The error if this user may not read which hugepages there are. */
  get hidden(): DmaError | undefined {
    return this.#hidden;
  }

  /** All lists. */
  get lists(): readonly SegmentList[] {
    return [...this.#lists.values()].flat();
  }

  /** Hugepage sizes that may be used, in ascending order, whether there are such pages or not. */
  get hugeSizes(): readonly number[] {
    if (this.#hugeSizes !== undefined) return this.#hugeSizes;
    const { noHuge, pageSizes, files } = this.#settings;
    const all = (): number[] => this.#huge.sizes().map(({ pageSize }) => pageSize);
    const sizes = noHuge ? [] : pageSizes === undefined && files === undefined ? (this.#ifShown(all) ?? []) : all();
    const mounted = files === undefined ? sizes : this.#mounts(files).map(({ pageSize }) => pageSize);
    this.#hugeSizes = sizes.filter((size) => pageSizes?.includes(size) !== false && mounted.includes(size));
    return this.#hugeSizes;
  }

  /**
   * May ordinary pages be used? Not if other pages were asked for, and not with physical addresses: the kernel moves
   * ordinary pages, even locked ones.
   */
  get ordinary(): boolean {
    const { pageSizes, files } = this.#settings;
    const isWanted = pageSizes?.includes(this.#platform.memory.pageSize) ?? files === undefined;
    return isWanted && !this.#physical();
  }

  /** What could be taken on a node now. */
  choices(node: number): PageChoice[] {
    const choices = this.hugeSizes.map((pageSize) => {
      return { pageSize, free: this.#free(pageSize, node), left: this.#left(pageSize, node), huge: true };
    });
    const { pageSize } = this.#platform.memory;
    if (!this.ordinary) return choices;
    return [...choices, { pageSize, free: Infinity, left: this.#left(pageSize, node), huge: false }];
  }

  /**
   * Takes adjacent pages from a list that has room, or from a new one, in steps.
   *
   * @param alignment the first page is at a multiple of this, in bytes, a power of two and at least the page size
   * @throws DmaError ENOMEM if there are not so many pages, or no addresses for them; EBUSY if another process uses
   *   this file prefix; EPERM if physical addresses are needed but hidden
   */
  *taking(pageSize: number, node: number, pages: number, alignment: number): Steps<LongStep, Extent> {
    const errors: unknown[] = [];
    for (const mount of this.#mountsFor(pageSize)) {
      try {
        return yield* this.#takingIn(mount, pageSize, node, pages, alignment);
      } catch (error) {
        // Another mount may be accessible, or have room.
        if (!isDmaError(error) || !ABOUT_A_MOUNT.includes(error.code)) throw error;
        errors.push(error);
      }
    }
    // Prefer an error that is not about rights: that mount could be used.
    throw errors.find((error) => isDmaError(error) && !ABOUT_RIGHTS.includes(error.code)) ?? errors[0];
  }

  *#takingIn(
    mount: HugetlbfsMount | undefined,
    pageSize: number,
    node: number,
    pages: number,
    alignment: number,
  ): Steps<LongStep, Extent> {
    const key = keyOf(pageSize, node, mount);
    const lists = this.#lists.get(key) ?? [];
    for (const list of lists) {
      const extent = yield* list.taking(pages, alignment);
      if (extent !== undefined) return extent;
    }
    // A list has a byte per page, so that an impossible request would itself use memory.
    if (pageSize === this.#platform.memory.pageSize) this.#ordinary.check(pages * pageSize, node, 'memfd.take');
    const list = this.#newList(mount, pageSize, node, pages + alignment / pageSize - 1);
    // From here on other callers may use it too.
    this.#lists.set(key, [...(this.#lists.get(key) ?? []), list]);
    try {
      const extent = yield* list.taking(pages, alignment);
      if (extent !== undefined) return extent;
      throw new DmaError({ code: 'ENOMEM', operation: 'take', reason: `a new list has no room for ${pages} pages` });
    } catch (error) {
      // An empty list is removed.
      if (list.pages > 0) throw error;
      this.#lists.set(
        key,
        (this.#lists.get(key) ?? []).filter((each) => each !== list),
      );
      const undo = undoAll([() => list.close()]);
      throw undo.length > 0 && isDmaError(error) ? error.with({ undo: [...error.undo, ...undo] }) : error;
    }
  }

  /** The mounts for pages of a size; `undefined` stands for a memfd. */
  #mountsFor(pageSize: number): (HugetlbfsMount | undefined)[] {
    const { files } = this.#settings;
    if (files === undefined || pageSize === this.#platform.memory.pageSize) return [undefined];
    const mounts = this.#mounts(files).filter((each) => each.pageSize === pageSize);
    if (mounts.length > 0) return mounts;
    throw new DmaError({
      code: 'ENOENT',
      operation: 'take',
      reason: `no hugetlbfs with pages of ${formatSize(pageSize)} is mounted any more`,
      hint: MOUNT_HINT,
    });
  }

  /**
   * Checks the settings against this machine, and removes files that dead processes with this prefix left.
   *
   * @throws DmaError EINVAL for a node that does not exist, or a directory without hugetlbfs; ENOENT if files were
   *   asked for and no hugetlbfs is mounted; ENOTSUP for page sizes that the machine does not have
   */
  start(): void {
    const { files, numaMem, numaLimit } = this.#settings;
    const most = Math.max(numaMem.length, numaLimit.length);
    // The numbers of nodes have gaps on some machines.
    if (most > 0 && most > Math.max(...this.nodes) + 1)
      throw invalid(START, `sizes for ${most} NUMA nodes were given, and there are ${this.nodes.length}`, {
        hint: `the nodes are: ${this.nodes.join(', ')}; the first number is of node 0`,
      });
    const { pageSizes } = this.#settings;
    const ordinary = this.#platform.memory.pageSize;
    if (pageSizes !== undefined && !pageSizes.includes(ordinary))
      checkHugePageSizes(pageSizes, this.#huge.pageSizes(), START);
    if (files === undefined) return;
    const mounts = this.#mounts(files).filter(({ pageSize }) => pageSizes?.includes(pageSize) !== false);
    if (mounts.length === 0 && !this.ordinary) throw this.#noMount(files);
    if (files.unlink === 'never') return;
    // A mount that this process may not read has no files of it.
    for (const { path } of mounts) unlessFails(NO_PERMISSION, () => removeStale(this.#platform, path, files.prefix));
  }

  /** Why no file can be kept: no suitable hugetlbfs is mounted. */
  #noMount({ directory }: FileSettings): DmaError {
    const { pageSizes } = this.#settings;
    const sizes = pageSizes === undefined ? '' : ` with pages of ${pageSizes.map(formatSize).join(' or ')}`;
    if (directory !== undefined)
      return invalid(START, `no hugetlbfs${sizes} is mounted at ${directory}`, {
        hint: `${MOUNT_HINT}; without hugeDir every mount is used`,
      });
    const reason = `no hugetlbfs${sizes} is mounted, and an option asks for files in one`;
    return new DmaError({
      code: 'ENOENT',
      operation: START,
      reason,
      hint: `${MOUNT_HINT}; without filePrefix, hugeUnlink and singleFileSegments no mount is needed`,
    });
  }

  /**
   * Frees all pages and addresses.
   *
   * @param keep do the pages stay in their files, for other processes that have them mapped?
   * @returns the errors; a later call tries again
   */
  *closing(keep = false): Steps<LongStep, unknown[]> {
    const errors: unknown[] = [];
    for (const [key, lists] of this.#lists) {
      const left: SegmentList[] = [];
      for (const list of lists) {
        try {
          yield* list.closing(keep);
        } catch (error) {
          errors.push(error);
          left.push(list);
        }
      }
      if (left.length > 0) this.#lists.set(key, left);
      else this.#lists.delete(key);
    }
    return errors;
  }

  /** Without the right to read about hugepages, ordinary pages are used, unless page sizes were demanded. */
  #ifShown<T>(ask: () => T): T | undefined {
    try {
      return ask();
    } catch (error) {
      if (!isDmaError(error) || !NO_PERMISSION.includes(error.code)) throw error;
      this.#hidden = error;
      return undefined;
    }
  }

  #mounts({ directory }: FileSettings): HugetlbfsMount[] {
    if (directory === undefined) return this.#huge.mounts();
    // Asked once (names may change), of the file system, so that any path to it works.
    this.#directory ??= hugetlbfsAt(this.#platform, directory);
    return this.#directory === undefined ? [] : [this.#directory];
  }

  /** Free hugepages of a size on a node. */
  #free(pageSize: number, node: number): number {
    const free = this.#platform.limits.freeHugePages(pageSize) ?? 0;
    if (free === 0 || node === ANY_NODE || this.nodes.length === 1) return free;
    const counts = this.#huge.sizes().find((each) => each.pageSize === pageSize);
    return Math.min(free, counts?.nodes.find((each) => each.node === node)?.free ?? 0);
  }

  /** How many bytes of a page size may still be taken on a node. */
  #left(pageSize: number, node: number): number {
    const limit = this.#settings.pageSizeLimits.get(pageSize);
    if (limit === undefined) return Infinity;
    const lists = this.lists.filter(({ source }) => source.pageSize === pageSize && source.node === node);
    return limit - lists.reduce((bytes, list) => bytes + list.pages * pageSize, 0);
  }

  #newList(mount: HugetlbfsMount | undefined, pageSize: number, node: number, least: number): SegmentList {
    const platform = this.#platform;
    const pages = Math.max(least, Math.min(LIST_PAGES, Math.floor(LIST_BYTES / pageSize)));
    const make = (length: number): SegmentList => {
      const source = this.#source(mount, pageSize, node, length);
      const { sameIova } = this.#settings;
      const physical = this.#physical();
      return new SegmentList({ platform, areas: this.#areas, source, pages: length, physical, sameIova });
    };
    try {
      return make(pages);
    } catch (error) {
      // Addresses can be limited (RLIMIT_AS).
      if (!isDmaError(error, 'ENOMEM') || pages === least) throw error;
      return make(least);
    }
  }

  #source(mount: HugetlbfsMount | undefined, pageSize: number, node: number, pages: number): PageSource {
    const { files } = this.#settings;
    const platform = this.#platform;
    if (files === undefined || mount === undefined) {
      const name = `anydma ${formatSize(pageSize)}`;
      return memfdPages(platform, { pageSize, pages, node, name });
    }
    const { prefix, unlink, singleFile } = files;
    const directory = mount.path;
    const firstFile = this.#nextFile.get(directory) ?? 0;
    this.#nextFile.set(directory, firstFile + (singleFile ? 1 : pages));
    return hugetlbfsPages(platform, { pageSize, pages, node, directory, prefix, unlink, singleFile, firstFile });
  }
}
