/**
 * The uses of block devices: file systems, swap, and other block devices that use them
 * (Documentation/ABI/stable/sysfs-block).
 */
import { isDmaError } from '../../errors.js';
import type { KernelPort } from '../../platform/ports.js';
import type { Asking, Use } from './found.js';
import { mountOf, withoutDeleted, type Mount, type Swap } from './mounts.js';

/** A block or character device of /sys/dev. */
export interface SysNode {
  readonly kind: 'block' | 'character';
  /** Its name in /dev. */
  readonly name: string;
  /** `259:0` */
  readonly number: string;
  /** Its path below /sys. */
  readonly path: string;
}

/** All block and character devices. */
export function readNodes(kernel: KernelPort, asking: Asking): SysNode[] {
  return (['block', 'character'] as const).flatMap((kind) => {
    const directory = kind === 'block' ? '/sys/dev/block' : '/sys/dev/char';
    return asking
      .ask(() => kernel.list(directory), [])
      .flatMap((number) => {
        const path = asking.ask(() => kernel.readLink(`${directory}/${number}`), undefined);
        if (path === undefined) return [];
        return [{ kind, number, path, name: (path.split('/').at(-1) ?? '').replaceAll('!', '/') }];
      });
  });
}

/** A block device with its description. */
interface Named {
  readonly node: SysNode;
  /** `its disk nvme0n1`, `dm-0 (LVM volume vg-root) above its disk nvme0n1` */
  readonly label: string;
  /** Its own description, and that of the device that it uses; `undefined` for the devices of the function itself. */
  readonly upon?: { readonly title: string; readonly label: string };
}

/** Facts that are collected once for all disks. */
export interface DiskFacts {
  readonly nodes: readonly SysNode[];
  readonly mounts: readonly Mount[];
  readonly swaps: readonly Swap[];
}

/** The block devices of one function, and all block devices that use them. */
export class Disks {
  readonly #kernel: KernelPort;
  readonly #asking: Asking;
  readonly #facts: DiskFacts;
  readonly #own: readonly Named[];
  readonly #found = new Map<string, Named>();
  readonly uses: Use[] = [];

  /** @param own the block devices of the function, including their partitions */
  constructor(kernel: KernelPort, asking: Asking, facts: DiskFacts, own: readonly SysNode[]) {
    this.#kernel = kernel;
    this.#asking = asking;
    this.#facts = facts;
    this.#own = own.map((node) => ({
      node,
      label: `its ${isPartition(node, own) ? 'partition' : 'disk'} ${node.name}`,
    }));
    for (const named of this.#own) this.#found.set(named.node.number, named);
    if (own.length === 0) return;
    // Repeats until nothing is added: a loop device's file may be on a device that is found only later.
    for (let before = -1; before !== this.#found.size;) {
      before = this.#found.size;
      for (const named of this.#found.values()) this.#climb(named);
      this.#addLoops();
    }
    this.uses.push(...this.#mountUses(), ...this.#swapUses(), ...this.#holderUses());
  }

  /** All devices found, those of the function first. */
  get all(): SysNode[] {
    return [...this.#found.values()].map(({ node }) => node);
  }

  /**
   * Opens the disks of the function exclusively, which fails if anything in the kernel holds them. This also finds uses
   * that sysfs does not show.
   *
   * @returns the claims; disposing one ends it. Devices that turn out to be held are added to `uses`
   */
  claim(): Disposable[] {
    const claims: Disposable[] = [];
    for (const { node, label } of this.#own) {
      // A claim of a disk includes its partitions.
      if (this.#isPartOf(node)) continue;
      if (!this.#isHeld(node, claims)) continue;
      const parts = this.#own.filter((part) => part.node.path.startsWith(`${node.path}/`));
      const brief: Disposable[] = [];
      const guilty = parts.filter((part) => this.#isHeld(part.node, brief));
      for (const each of brief) each[Symbol.dispose]();
      const labels = guilty.length === 0 ? [label] : guilty.map((part) => part.label);
      for (const each of labels)
        if (!this.uses.some(({ text }) => text.startsWith(`${each} `) || text.includes(` above ${each} `)))
          this.uses.push({
            text: `${each} is held by the kernel for an unknown purpose${this.#suspects()}`,
            todo: `find what holds it (lsblk, zpool status, a file system that was unmounted while in use), and stop that`,
          });
    }
    return claims;
  }

  /** Whether the kernel holds it for another user. If not, it is claimed. */
  #isHeld({ kind, name, number }: SysNode, claims: Disposable[]): boolean {
    return this.#asking.ask(() => {
      try {
        claims.push(this.#kernel.claim(`/dev/${name}`, { kind, number }));
        return false;
      } catch (error) {
        if (isDmaError(error, 'EBUSY')) return true;
        // The drive contains no medium (ENOMEDIUM).
        if (isDmaError(error) && error.errno === 123) return false;
        throw error;
      }
    }, false);
  }

  #isPartOf(node: SysNode): boolean {
    return this.#own.some((other) => node.path.startsWith(`${other.node.path}/`));
  }

  /** Adds the devices that use it directly, and its partitions. */
  #climb({ node, label }: Named): void {
    const holders = this.#asking.ask(() => this.#kernel.list(`/sys/dev/block/${node.number}/holders`), []);
    for (const name of holders) this.#add(this.#nodeOf(name), label);
    for (const part of this.#facts.nodes)
      if (part.kind === 'block' && part.path.startsWith(`${node.path}/`)) this.#add(part, label);
  }

  /** Adds the loop devices whose backing file or device is on a device found so far. */
  #addLoops(): void {
    for (const node of this.#facts.nodes) {
      if (node.kind !== 'block' || !/\/loop\d+$/.test(node.path) || this.#found.has(node.number)) continue;
      const file = this.#read(`/sys/dev/block/${node.number}/loop/backing_file`);
      if (file === undefined) continue;
      const below = this.#below(withoutDeleted(file));
      if (below !== undefined) this.#add(node, below.label);
    }
  }

  /** The device found so far that a file is on, or that the path names. */
  #below(path: string): Named | undefined {
    const node = this.#asking.ask(() => this.#kernel.nodeAt(path), undefined);
    if (node?.kind === 'block') return this.#found.get(node.number);
    const mount = mountOf(this.#facts.mounts, path);
    return mount === undefined ? undefined : this.#under(mount)[0];
  }

  #add(node: SysNode | undefined, below: string): void {
    if (node === undefined || this.#found.has(node.number)) return;
    const title = this.#title(node);
    this.#found.set(node.number, { node, label: `${title} above ${below}`, upon: { title, label: below } });
  }

  #nodeOf(name: string): SysNode | undefined {
    return this.#facts.nodes.find((node) => node.kind === 'block' && node.name === name.replaceAll('!', '/'));
  }

  /**
   * The devices found so far that a file system is on: by number, or, if it has none or several, by the names of its
   * devices.
   */
  #under({ number, source, type }: Mount): Named[] {
    const direct = this.#found.get(number);
    if (direct !== undefined) return [direct];
    if (!number.startsWith('0:')) return [];
    const sources = source.split(':').flatMap((each) => {
      const node = each.startsWith('/') ? this.#asking.ask(() => this.#kernel.nodeAt(each), undefined) : undefined;
      return node?.kind === 'block' ? [node.number] : [];
    });
    const members = type === 'btrfs' ? this.#btrfsWith(sources) : sources;
    return members.flatMap((each) => this.#found.get(each) ?? []);
  }

  /** The numbers of all devices of the btrfs file system that contains one of these. */
  #btrfsWith(numbers: readonly string[]): string[] {
    const directory = '/sys/fs/btrfs';
    const sets = this.#asking
      .ask(() => this.#kernel.list(directory), [])
      .map((id) =>
        this.#asking
          .ask(() => this.#kernel.list(`${directory}/${id}/devices`), [])
          .flatMap((name) => this.#nodeOf(name)?.number ?? []),
      );
    return sets.find((set) => set.some((each) => numbers.includes(each))) ?? [...numbers];
  }

  #mountUses(): Use[] {
    return this.#facts.mounts.flatMap((mount) =>
      this.#under(mount).map(({ label }) => ({
        text: `${label} is mounted at ${mount.target}${mount.process === undefined ? '' : ` for process ${mount.process}`}`,
        todo:
          mount.process === undefined
            ? `umount ${mount.target}`
            : `nsenter -t ${mount.process} -m umount ${mount.target}`,
      })),
    );
  }

  #swapUses(): Use[] {
    return this.#facts.swaps.flatMap(({ path, kind, deleted }) => {
      const node = deleted ? undefined : this.#asking.ask(() => this.#kernel.nodeAt(path), undefined);
      const named =
        kind === 'file'
          ? this.#below(path)
          : node?.kind === 'block'
            ? this.#found.get(node.number)
            : this.#found.get(this.#nodeOf(path.replace(/^\/dev\//, ''))?.number ?? '');
      if (named === undefined) return [];
      const text = kind === 'file' ? `${named.label} has the swap file ${path}` : `${named.label} is swapped to`;
      return [{ text, todo: `swapoff ${path}` }];
    });
  }

  #holderUses(): Use[] {
    return [...this.#found.values()].flatMap(({ node, upon }) =>
      upon === undefined || isPartition(node, this.all)
        ? []
        : [{ text: `${upon.label} is held by ${upon.title}`, todo: this.#undoing(node) }],
    );
  }

  /** Deleted swap areas: their names no longer tell which device they are on. */
  #suspects(): string {
    const lost = this.#facts.swaps.filter(({ deleted, kind }) => deleted && kind === 'partition');
    return lost.length === 0 ? '' : `, perhaps for the swap area ${lost.map(({ path }) => path).join(', ')}`;
  }

  #title({ name, number }: SysNode): string {
    const directory = `/sys/dev/block/${number}`;
    const mapped = this.#read(`${directory}/dm/name`);
    if (mapped !== undefined) return `${name} (${mapperKind(this.#read(`${directory}/dm/uuid`) ?? '')} ${mapped})`;
    const level = this.#read(`${directory}/md/level`);
    if (level !== undefined) return `${name} (MD array${level === '' ? '' : `, ${level}`})`;
    const file = this.#read(`${directory}/loop/backing_file`);
    return file === undefined ? name : `${name} (loop of ${file})`;
  }

  #undoing({ name, number }: SysNode): string {
    const directory = `/sys/dev/block/${number}`;
    const mapped = this.#read(`${directory}/dm/name`);
    if (mapped !== undefined) {
      const uuid = this.#read(`${directory}/dm/uuid`) ?? '';
      if (uuid.startsWith('LVM-')) return `lvchange -an /dev/mapper/${mapped}`;
      return uuid.startsWith('CRYPT-') ? `cryptsetup close ${mapped}` : `dmsetup remove ${mapped}`;
    }
    if (this.#read(`${directory}/md/level`) !== undefined) return `mdadm --stop /dev/${name}`;
    return this.#read(`${directory}/loop/backing_file`) === undefined ? `stop ${name}` : `losetup -d /dev/${name}`;
  }

  #read(path: string): string | undefined {
    return this.#asking.ask(() => this.#kernel.readText(path), undefined)?.trim();
  }
}

function mapperKind(uuid: string): string {
  if (uuid.startsWith('LVM-')) return 'LVM volume';
  if (uuid.startsWith('CRYPT-')) return 'encrypted volume';
  return uuid.startsWith('mpath-') ? 'multipath' : 'device-mapper';
}

function isPartition(node: SysNode, among: readonly SysNode[]): boolean {
  return among.some((other) => other.kind === 'block' && node.path.startsWith(`${other.path}/`));
}
