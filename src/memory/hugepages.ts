/**
 * The hugepages of the machine: counts, reserving and releasing them, and hugetlbfs mounts. All of this is state of the
 * kernel: it does not belong to this process, and changes stay when the process ends. The files are described in
 * Documentation/admin-guide/mm/hugetlbpage.rst; the rules are those of dpdk-hugepages.py.
 */
import { basename, dirname, join } from 'node:path';
import { DmaError, invalid, isDmaError, undoAll, withUndo } from '../errors.js';
import type { KernelPort, Platform } from '../platform/ports.js';
import { show } from '../show.js';
import { formatSize, isAddress, KiB, parseSize } from '../units.js';

/** The pages of one size on one NUMA node. */
export interface HugePageNode {
  /** 0 on a machine without NUMA */
  readonly node: number;
  /** pages there are, in use or not */
  readonly total: number;
  /** free pages */
  readonly free: number;
  /** pages beyond the reserved number; the kernel drops them once they are free */
  readonly surplus: number;
}

/** The pages of one size. */
export interface HugePageSize {
  /** bytes */
  readonly pageSize: number;
  /** pages there are, in use or not */
  readonly total: number;
  /** free pages, including those that are promised to mappings */
  readonly free: number;
  /** pages beyond the reserved number; the kernel drops them once they are free */
  readonly surplus: number;
  /** free pages that are promised to mappings which have not touched them yet */
  readonly reserved: number;
  /** The same by node, in ascending order. */
  readonly nodes: readonly HugePageNode[];
}

/** A mounted hugetlbfs. */
export interface HugetlbfsMount {
  readonly path: string;
  /** bytes */
  readonly pageSize: number;
}

/** The pages to reserve or release. */
export interface HugePageChoice {
  /** bytes */
  readonly pageSize: number;
  /** Default: every node. */
  readonly node?: number;
}

/** Options of {@link HugePages.mount}. */
export interface HugetlbfsMountOptions {
  /** bytes */
  readonly pageSize: number;
  /** User id of the owner of the directory. Default: the caller's. */
  readonly user?: number;
  /** Group id of the owner of the directory. Default: the caller's. */
  readonly group?: number;
}

/** Where the kernel's files are; tests use other paths. */
export interface HugePagePaths {
  /** Default `/sys`. */
  readonly sysfs?: string;
  /** Default `/proc`. */
  readonly proc?: string;
}

const COMPACT = 'free memory is in pieces: write 1 to /proc/sys/vm/compact_memory as root and try again, or';

/** The hugepages of this machine. Every call reads the kernel's files again. */
export class HugePages {
  readonly #kernel: KernelPort;
  readonly #sysfs: string;
  readonly #proc: string;

  constructor(kernel: KernelPort, paths: HugePagePaths = {}) {
    this.#kernel = kernel;
    this.#sysfs = paths.sysfs ?? '/sys';
    this.#proc = paths.proc ?? '/proc';
  }

  /** The sizes that the kernel supports, with or without pages, in ascending order. Empty if it has no hugepages. */
  sizes(): HugePageSize[] {
    return this.pageSizes().map((pageSize) => this.#size(pageSize));
  }

  /** The supported sizes in bytes, in ascending order. */
  pageSizes(): number[] {
    return this.#kernel
      .list(this.#machine())
      .map((name) => Number(/^hugepages-(\d+)kB$/.exec(name)?.[1]) * KiB)
      .filter((pageSize) => isAddress(pageSize) && pageSize > 0)
      .sort((a, b) => a - b);
  }

  /** The kernel's default size in bytes; `undefined` if there are no hugepages. */
  get defaultPageSize(): number | undefined {
    const text = this.#kernel.readText(`${this.#proc}/meminfo`) ?? '';
    const size = /^Hugepagesize:\s*(\d+) kB/m.exec(text)?.[1];
    return size === undefined ? undefined : Number(size) * KiB;
  }

  /** The NUMA nodes that can have hugepages, in ascending order; `[0]` on a machine without NUMA. */
  nodes(): number[] {
    const nodes = this.#numaNodes();
    return nodes.length === 0 ? [0] : nodes;
  }

  /**
   * The hugetlbfs mounts that can be reached, in the order of mounting. A path may occur more than once: the last mount
   * counts.
   */
  mounts(): HugetlbfsMount[] {
    const mounts = new Map<string, HugetlbfsMount>();
    for (const line of (this.#kernel.readText(`${this.#proc}/mounts`) ?? '').split('\n')) {
      const [, target, type, options] = line.split(' ');
      if (target === undefined) continue;
      const path = unescape(target);
      // A later mount hides what is below its path.
      mounts.delete(path);
      if (type !== 'hugetlbfs') continue;
      const pageSize = parseSize(/(?:^|,)pagesize=(\w+)/.exec(options ?? '')?.[1] ?? '') ?? this.defaultPageSize;
      if (pageSize !== undefined) mounts.set(path, { path, pageSize });
    }
    return [...mounts.values()];
  }

  /**
   * Sets the number of pages, on one node or on each node, to `pages`: the new total, not an increase. Pages in use are
   * never taken away. If not all are available, the numbers are restored.
   *
   * @throws DmaError EINVAL for an impossible number, or a size or node that the machine does not have; EACCES, EPERM
   *   or EROFS without the rights; ENOMEM if fewer are available, with their number
   */
  reserve(choice: HugePageChoice & { readonly pages: number }): void {
    const operation = 'hugepages.reserve';
    const { pageSize, pages } = choice;
    if (!isAddress(pages)) throw invalid(operation, `${pages} pages are not possible`);
    const undo: (() => void)[] = [];
    try {
      this.#checkAmount(choice, operation);
      for (const node of this.#chosen(choice, operation)) {
        const file = `${this.#directory(pageSize, node)}/nr_hugepages`;
        const before = this.#number(file);
        this.#write(operation, file, pages);
        undo.unshift(() => this.#kernel.writeText(file, String(before)));
        const got = this.#number(file);
        if (got < pages) throw tooFew(operation, { pageSize, pages, node, got });
      }
    } catch (error) {
      throw withUndo(error, operation, undoAll(undo));
    }
  }

  /**
   * Releases pages: of one size or all, on one node or all. Pages in use are released when they become free.
   *
   * @returns how many of these pages are left because they are in use
   * @throws DmaError EINVAL for a size or node that the machine does not have; EACCES, EPERM or EROFS
   */
  release(choice: Partial<HugePageChoice> = {}): number {
    const operation = 'hugepages.release';
    const sizes = choice.pageSize === undefined ? this.sizes().map((each) => each.pageSize) : [choice.pageSize];
    let left = 0;
    for (const pageSize of sizes) {
      for (const node of this.#chosen({ ...choice, pageSize }, operation)) {
        const file = `${this.#directory(pageSize, node)}/nr_hugepages`;
        if (this.#number(file) > 0) this.#write(operation, file, 0);
        left += this.#number(file);
      }
    }
    return left;
  }

  /**
   * Mounts a hugetlbfs at `path`. Creates the directory if it does not exist.
   *
   * @returns false if one of this page size is mounted there already; then nothing was done
   * @throws DmaError EBUSY if one of another page size is mounted there, or the directory is not empty; EINVAL for a
   *   size that the machine does not have; EPERM or EACCES without the rights
   */
  mount(path: string, options: HugetlbfsMountOptions): boolean {
    const operation = 'hugepages.mount';
    if (!this.checkMount(path, options)) return false;
    const { pageSize, user, group } = options;
    const text = [`pagesize=${pageSize / KiB}K`, ...(user === undefined ? [] : [`uid=${user}`])];
    if (group !== undefined) text.push(`gid=${group}`);
    try {
      this.#kernel.makeDirectory(path);
      const target = this.#realPath(path);
      this.#kernel.mount({ source: 'nodev', target, type: 'hugetlbfs', options: text.join(',') });
    } catch (error) {
      throw explain(error, operation);
    }
    return true;
  }

  /**
   * Could `path` be mounted over? Nothing is changed.
   *
   * @returns false when one of this page size is mounted there already
   * @throws DmaError as `mount`, but for the right to do it
   */
  checkMount(path: string, options: HugetlbfsMountOptions): boolean {
    const operation = 'hugepages.mount';
    const real = this.#realPath(path);
    const { pageSize, user, group } = options;
    this.#checkSize(pageSize, operation);
    for (const [name, id] of Object.entries({ user, group }))
      if (id !== undefined && !(isAddress(id) && id < 2 ** 32 - 1))
        throw invalid(operation, `${id} is no ${name}'s number`);
    const there = this.mounts().find((each) => each.path === real);
    if (there?.pageSize === pageSize) return false;
    if (there !== undefined) {
      const reason = `${path} has a hugetlbfs of ${formatSize(there.pageSize)} pages`;
      throw new DmaError({ code: 'EBUSY', operation, reason, hint: 'unmount it first, or take another directory' });
    }
    const [first] = this.#kernel.list(real);
    if (first !== undefined) {
      const reason = `${path} is not empty: what is in it, such as ${show(first)}, would be hidden from all programs`;
      const hint = 'take an empty directory, or one that is not there yet, which is made';
      throw new DmaError({ code: 'EBUSY', operation, reason, hint });
    }
    return true;
  }

  /**
   * Unmounts the hugetlbfs at `path`; the directory stays.
   *
   * @throws DmaError ENOENT if none is mounted there; EBUSY while a file in it is in use; EPERM
   */
  unmount(path: string): void {
    const operation = 'hugepages.unmount';
    const mounts = this.mounts();
    const real = this.#realPath(path);
    if (!this.isMounted(path)) {
      const where =
        mounts.length === 0 ? 'none is mounted' : `mounted at: ${mounts.map((each) => each.path).join(', ')}`;
      throw new DmaError({ code: 'ENOENT', operation, reason: `no hugetlbfs is mounted at ${path}`, hint: where });
    }
    try {
      this.#kernel.unmount(real);
    } catch (error) {
      throw explain(error, operation);
    }
  }

  /**
   * Throws ENOMEM if the machine can not have so many pages. The kernel would notice only after it had taken all
   * memory, and could kill processes meanwhile.
   */
  #checkAmount({ pageSize, node, pages }: HugePageChoice & { readonly pages: number }, operation: string): void {
    const nodes = this.#chosen({ pageSize, node }, operation);
    const more = nodes.reduce((sum, each) => {
      return sum + Math.max(0, pages - this.#number(`${this.#directory(pageSize, each)}/nr_hugepages`)) * pageSize;
    }, 0);
    const memory = this.#kernel.readText(`${this.#proc}/meminfo`) ?? '';
    const amount = (name: string): number | undefined => {
      const kilobytes = new RegExp(`^${name}:\\s*(\\d+) kB`, 'm').exec(memory)?.[1];
      return kilobytes === undefined ? undefined : Number(kilobytes) * KiB;
    };
    const available = amount('MemAvailable');
    if (available === undefined || more <= available) return;
    const total = formatSize(amount('MemTotal') ?? available);
    const reason = `${formatSize(more)} more are wanted, and ${formatSize(available)} of the machine's ${total} are available`;
    throw new DmaError({
      code: 'ENOMEM',
      operation,
      reason,
      hint: 'nothing was changed: ask for less, or free memory first',
    });
  }

  /** Is a hugetlbfs mounted at `path`? Symbolic links are followed. */
  isMounted(path: string): boolean {
    const real = this.#realPath(path);
    return this.mounts().some((each) => each.path === real);
  }

  /** `path` without symbolic links, as in the kernel's list of mounts, as far as it exists. */
  #realPath(path: string): string {
    const real = this.#kernel.realPath(path);
    if (real !== undefined) return real;
    const parent = dirname(path);
    return parent === path ? path : join(this.#realPath(parent), basename(path));
  }

  #machine(): string {
    return `${this.#sysfs}/kernel/mm/hugepages`;
  }

  /** Nodes that have counts of their own. Empty without NUMA; nodes without memory have no such directory. */
  #numaNodes(): number[] {
    const directory = `${this.#sysfs}/devices/system/node`;
    return this.#kernel
      .list(directory)
      .filter((name) => /^node\d+$/.test(name) && this.#kernel.list(`${directory}/${name}/hugepages`).length > 0)
      .map((name) => Number(name.slice('node'.length)))
      .sort((a, b) => a - b);
  }

  /** The directory with the counts of a node: its own, or without NUMA the machine's. */
  #directory(pageSize: number, node: number): string {
    const name = `hugepages-${pageSize / KiB}kB`;
    if (this.#numaNodes().length === 0) return `${this.#machine()}/${name}`;
    return `${this.#sysfs}/devices/system/node/node${node}/hugepages/${name}`;
  }

  #size(pageSize: number): HugePageSize {
    const counts = (directory: string): { total: number; free: number; surplus: number } => ({
      total: this.#number(`${directory}/nr_hugepages`),
      free: this.#number(`${directory}/free_hugepages`),
      surplus: this.#number(`${directory}/surplus_hugepages`),
    });
    const directory = `${this.#machine()}/hugepages-${pageSize / KiB}kB`;
    const nodes = this.nodes().map((node) => ({ node, ...counts(this.#directory(pageSize, node)) }));
    return { pageSize, ...counts(directory), reserved: this.#number(`${directory}/resv_hugepages`), nodes };
  }

  /** The number in a file; 0 if there is no such file. */
  #number(file: string): number {
    const value = Number(this.#kernel.readText(file) ?? 0);
    return isAddress(value) ? value : 0;
  }

  #checkSize(pageSize: number, operation: string): void {
    const sizes = this.sizes().map((each) => each.pageSize);
    if (sizes.includes(pageSize)) return;
    const there = sizes.length === 0 ? 'no hugepages at all' : sizes.map(formatSize).join(', ');
    throw invalid(operation, `the machine has no pages of ${formatSize(pageSize)}`, { hint: `it has: ${there}` });
  }

  /** The nodes of a choice; EINVAL if the machine does not have them. */
  #chosen({ pageSize, node }: HugePageChoice, operation: string): number[] {
    this.#checkSize(pageSize, operation);
    const nodes = this.nodes();
    if (node === undefined) return nodes;
    if (nodes.includes(node)) return [node];
    throw invalid(operation, `there is no NUMA node ${node}`, { hint: `the nodes are: ${nodes.join(', ')}` });
  }

  #write(operation: string, file: string, pages: number): void {
    try {
      this.#kernel.writeText(file, String(pages));
    } catch (error) {
      throw explain(error, operation);
    }
  }
}

/**
 * The hugetlbfs that contains the directory `path`, according to statfs; `undefined` if there is none.
 *
 * @throws DmaError EACCES, EMFILE ... if that can not be found out
 */
export function hugetlbfsAt({ kernel, files }: Platform, path: string): HugetlbfsMount | undefined {
  const real = kernel.realPath(path);
  if (real === undefined) return undefined;
  let fd: number;
  try {
    fd = files.open(real, 'read', { directory: true });
  } catch (error) {
    if (isDmaError(error, 'ENOTDIR')) return undefined;
    throw error;
  }
  try {
    const { kind, blockSize } = files.fileSystem(fd);
    return kind === 'hugetlbfs' ? { path: real, pageSize: blockSize } : undefined;
  } finally {
    files.close(fd);
  }
}

/**
 * Checks that at least one of the wanted page sizes exists.
 *
 * @throws DmaError ENOTSUP, with the existing sizes, if none does
 */
export function checkHugePageSizes(wanted: readonly number[], there: readonly number[], operation: string): void {
  if (wanted.some((size) => there.includes(size))) return;
  const reason = `the machine has no pages of ${wanted.map(formatSize).join(' or ')}`;
  const hint = there.length === 0 ? 'it has no hugepages at all' : `it has: ${there.map(formatSize).join(', ')}`;
  throw new DmaError({ code: 'ENOTSUP', operation, reason, hint });
}

function tooFew(
  operation: string,
  { pageSize, pages, node, got }: { pageSize: number; pages: number; node: number; got: number },
): DmaError {
  return new DmaError({
    code: 'ENOMEM',
    operation,
    reason: `only ${got} of ${pages} pages of ${formatSize(pageSize)} came on node ${node}`,
    hint: `${COMPACT} reserve at boot: hugepagesz=${pageSize / KiB}K hugepages=${pages} on the kernel's command line`,
  });
}

/** The error of a port as one of `operation`, with a hint if it is about rights. */
function explain(error: unknown, operation: string): DmaError {
  const failure = withUndo(error, operation, []);
  const hint = ['EACCES', 'EPERM'].includes(failure.code)
    ? 'it takes root'
    : isDmaError(failure, 'EROFS')
      ? '/sys is mounted read-only, as in a container: do it on the host'
      : isDmaError(failure, 'EBUSY')
        ? 'a process still has files there open or mapped'
        : undefined;
  return failure.with({ operation, cause: error, hint });
}

/** Decodes a path of /proc/mounts, read as bytes: blanks and the like are octal escapes, the rest is UTF-8. */
function unescape(text: string): string {
  const bytes = text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)));
  return Buffer.from(bytes, 'latin1').toString('utf8');
}
