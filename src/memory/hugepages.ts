/**
 * The hugepages of the machine: how many there are, reserving them and giving them up, and the hugetlbfs mounts. All of it
 * is the kernel's: nothing here belongs to this process, and what is changed stays changed when it ends.
 * Documentation/admin-guide/mm/hugetlbpage.rst has the files; the rules of use are those of dpdk-hugepages.py.
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
  /** pages nobody uses */
  readonly free: number;
  /** pages beyond what was reserved, which go away when they are free */
  readonly surplus: number;
}

/** The pages of one size. */
export interface HugePageSize {
  /** bytes */
  readonly pageSize: number;
  /** pages there are, in use or not */
  readonly total: number;
  /** pages nobody uses, those that are promised included */
  readonly free: number;
  /** pages beyond what was reserved, which go away when they are free */
  readonly surplus: number;
  /** free pages that are promised to mappings, which have not touched them yet */
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

/** Which pages to reserve or to give up. */
export interface HugePageChoice {
  /** bytes */
  readonly pageSize: number;
  /** Default: each node there is. */
  readonly node?: number;
}

/** Options of {@link HugePages.mount}. */
export interface HugetlbfsMountOptions {
  /** bytes */
  readonly pageSize: number;
  /** Number of the user who owns the directory. Default: who mounts. */
  readonly user?: number;
  /** Number of the group that owns the directory. Default: who mounts. */
  readonly group?: number;
}

/** Where the kernel's files are; for tests. */
export interface HugePagePaths {
  /** Default `/sys`. */
  readonly sysfs?: string;
  /** Default `/proc`. */
  readonly proc?: string;
}

const COMPACT = 'free memory is in pieces: write 1 to /proc/sys/vm/compact_memory as root and try again, or';

/** The hugepages of this machine, read anew by every call. */
export class HugePages {
  readonly #kernel: KernelPort;
  readonly #sysfs: string;
  readonly #proc: string;

  constructor(kernel: KernelPort, paths: HugePagePaths = {}) {
    this.#kernel = kernel;
    this.#sysfs = paths.sysfs ?? '/sys';
    this.#proc = paths.proc ?? '/proc';
  }

  /** The sizes that the kernel supports, with or without pages, in ascending order. None where it has no hugepages. */
  sizes(): HugePageSize[] {
    return this.pageSizes().map((pageSize) => this.#size(pageSize));
  }

  /** Those sizes alone, in bytes. */
  pageSizes(): number[] {
    return this.#kernel
      .list(this.#machine())
      .map((name) => Number(/^hugepages-(\d+)kB$/.exec(name)?.[1]) * KiB)
      .filter((pageSize) => isAddress(pageSize) && pageSize > 0)
      .sort((a, b) => a - b);
  }

  /** The size, in bytes, that is meant where none is named; `undefined` where there are no hugepages. */
  get defaultPageSize(): number | undefined {
    const text = this.#kernel.readText(`${this.#proc}/meminfo`) ?? '';
    const size = /^Hugepagesize:\s*(\d+) kB/m.exec(text)?.[1];
    return size === undefined ? undefined : Number(size) * KiB;
  }

  /** The NUMA nodes that have memory to reserve from, in ascending order; `[0]` on a machine without NUMA. */
  nodes(): number[] {
    const nodes = this.#numaNodes();
    return nodes.length === 0 ? [0] : nodes;
  }

  /** Where hugetlbfs is mounted and can be reached, in the order of mounting. One path may be there more than once: the last counts. */
  mounts(): HugetlbfsMount[] {
    const mounts = new Map<string, HugetlbfsMount>();
    for (const line of (this.#kernel.readText(`${this.#proc}/mounts`) ?? '').split('\n')) {
      const [, target, type, options] = line.split(' ');
      if (target === undefined) continue;
      const path = unescape(target);
      // What is mounted later hides what was there.
      mounts.delete(path);
      if (type !== 'hugetlbfs') continue;
      const pageSize = parseSize(/(?:^|,)pagesize=(\w+)/.exec(options ?? '')?.[1] ?? '') ?? this.defaultPageSize;
      if (pageSize !== undefined) mounts.set(path, { path, pageSize });
    }
    return [...mounts.values()];
  }

  /**
   * Makes the number of pages `pages`, on one node or on each. It is the number there shall be, not how many more; pages
   * in use are never taken from who uses them. When not all can be had, the numbers are set back to what they were.
   *
   * @throws DmaError EINVAL for an impossible number, a size or node that the machine does not have; EACCES, EPERM or
   *   EROFS without the right to do it; ENOMEM when fewer came, with how many
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
   * Gives up pages: of one size or all, of one node or all. Those in use go when their users are done with them.
   *
   * @returns how many pages of the choice there still are, because they are in use
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
   * Mounts a hugetlbfs at `path`, a directory that is made when it is not there.
   *
   * @returns false when one of this page size is mounted there already, and nothing was done
   * @throws DmaError EBUSY when one of another page size is mounted there, or something is in the directory; EINVAL for a size that the machine does not
   *   have; EPERM or EACCES without the right to do it
   */
  mount(path: string, options: HugetlbfsMountOptions): boolean {
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
    const text = [`pagesize=${pageSize / KiB}K`, ...(user === undefined ? [] : [`uid=${user}`])];
    if (group !== undefined) text.push(`gid=${group}`);
    try {
      this.#kernel.makeDirectory(path);
      this.#kernel.mount({ source: 'nodev', target: real, type: 'hugetlbfs', options: text.join(',') });
    } catch (error) {
      throw explain(error, operation);
    }
    return true;
  }

  /**
   * Unmounts the hugetlbfs at `path`; the directory stays.
   *
   * @throws DmaError ENOENT when none is mounted there; EBUSY while a file in it is in use; EPERM
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
   * Throws ENOMEM when the machine can not have so many pages: the kernel would take all memory there is before it finds
   * that out. Processes that run then may be ended for want of memory.
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

  /** Is a hugetlbfs mounted at `path`, by whatever name it is called? */
  isMounted(path: string): boolean {
    const real = this.#realPath(path);
    return this.mounts().some((each) => each.path === real);
  }

  /** `path` as the kernel's list of mounts has it: without symbolic links, as far as it is there. */
  #realPath(path: string): string {
    const real = this.#kernel.realPath(path);
    if (real !== undefined) return real;
    const parent = dirname(path);
    return parent === path ? path : join(this.#realPath(parent), basename(path));
  }

  #machine(): string {
    return `${this.#sysfs}/kernel/mm/hugepages`;
  }

  /** Nodes that have counts of their own; none without NUMA. Nodes without memory have no such directory in it. */
  #numaNodes(): number[] {
    const directory = `${this.#sysfs}/devices/system/node`;
    return this.#kernel
      .list(directory)
      .filter((name) => /^node\d+$/.test(name) && this.#kernel.list(`${directory}/${name}/hugepages`).length > 0)
      .map((name) => Number(name.slice('node'.length)))
      .sort((a, b) => a - b);
  }

  /** Where the counts of a node are: its own, or the machine's without NUMA. */
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

  /** The number in a file; 0 when there is none. */
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

  /** The nodes of a choice, checked. */
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
 * The hugetlbfs that the directory `path` is in, by what the file system says of itself; `undefined` when it is in none.
 *
 * @throws DmaError EACCES, EMFILE ... when that can not be found out
 */
export function hugetlbfsAt({ kernel, files }: Platform, path: string): HugetlbfsMount | undefined {
  const real = kernel.realPath(path);
  if (real === undefined) return undefined;
  const fd = files.open(real, 'read');
  try {
    const { kind, blockSize } = files.fileSystem(fd);
    return kind === 'hugetlbfs' && files.status(fd).kind === 'directory'
      ? { path: real, pageSize: blockSize }
      : undefined;
  } finally {
    files.close(fd);
  }
}

/**
 * Is one of the page sizes that are wanted among those that there are?
 *
 * @throws DmaError ENOTSUP, with the sizes there are, when none is
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

/** The error of a port as one of the operation, with what to do when it is about rights. */
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

/** A path as /proc/mounts writes it, which is read byte by byte: blanks and the like are octal, the rest is UTF-8. */
function unescape(text: string): string {
  const bytes = text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)));
  return Buffer.from(bytes, 'latin1').toString('utf8');
}
