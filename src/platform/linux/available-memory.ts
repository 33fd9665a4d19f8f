/**
 * How much ordinary memory is still available: to the machine, on a NUMA node, and in each control group of this
 * process (version 1 and 2, with all their ancestors). Beyond the smallest of them the kernel does not refuse: it kills
 * a process.
 */
import { NO_DESCRIPTORS, NO_PERMISSION, unlessFails } from '../../errors.js';
import { formatSize, GiB, KiB, MiB } from '../../units.js';
import { now } from '../../timers.js';
import { readKernelText, readRareText } from './proc.js';
import type { MemoryRoom } from '../ports.js';

/** Paths of the kernel's files; tests set them. */
export interface RoomPaths {
  /** Default `/proc`. */
  readonly proc?: string;
  /** Default `/sys`. */
  readonly sysfs?: string;
}

/** A mounted control group file system that counts memory, from mountinfo. */
interface Hierarchy {
  readonly version: 1 | 2;
  /** Mount point. */
  readonly path: string;
  /** The group that is visible at the mount point. */
  readonly root: string;
}

/**
 * The text of a file. A file that is hidden, or unreadable for lack of descriptors, counts as no limit: the kernel
 * still enforces the real one.
 */
function textOf(path: string, read = readKernelText): string | undefined {
  return unlessFails(UNREADABLE, () => read(path));
}
const UNREADABLE = [...NO_PERMISSION, ...NO_DESCRIPTORS];

/** Version 1 writes a number near 2^63 for no limit. */
const UNLIMITED = 2 ** 60;

/** Bytes of a limit that are held back: the process itself continues to need memory. */
function kept(total: number): number {
  return Math.min(512 * MiB, Math.max(16 * MiB, total / 64));
}

/** How much memory is available on `node` (-1 for any). See {@link LimitsPort.room}. */
export function memoryRoom(node: number, paths: RoomPaths = {}): MemoryRoom {
  const { proc = '/proc', sysfs = '/sys' } = paths;
  const counts = countsOf(textOf(`${proc}/meminfo`), KiB);
  const swap = counts.get('SwapFree') ?? 0;
  const bounds = [
    machine(counts, swap),
    ofNodes(`${sysfs}/devices/system/node`, allowedNodes(node, proc), swap),
    ...groups(proc, 'memory', ({ version }, directory) => (version === 2 ? ofGroup2 : ofGroup1)(directory, swap)),
  ].flatMap((bound) => bound ?? []);
  return leastOf(bounds);
}

function machine(counts: ReadonlyMap<string, number>, swap: number): MemoryRoom | undefined {
  const available = counts.get('MemAvailable');
  const total = counts.get('MemTotal');
  if (available === undefined || total === undefined) return undefined;
  const more = swap === 0 ? '' : ` and ${formatSize(swap)} of swap`;
  return {
    bytes: Math.max(0, available + swap - kept(total)),
    limit: `${formatSize(available)} of the machine's ${formatSize(total)}${more} are available`,
  };
}

/** The nodes that the memory must come from; `undefined` for all. */
function allowedNodes(node: number, proc: string): readonly number[] | undefined {
  if (node >= 0) return [node];
  const list = /^Mems_allowed_list:\s*(\S+)$/m.exec(textOf(`${proc}/self/status`) ?? '')?.[1];
  return list?.split(',').flatMap((range) => {
    const [first, last = first] = range.split('-').map(Number);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
}

/** What these nodes have; `undefined` if they are all nodes of the machine. */
function ofNodes(directory: string, nodes: readonly number[] | undefined, swap: number): MemoryRoom | undefined {
  const online = textOf(`${directory}/online`)?.trim();
  if (nodes === undefined || online === undefined || /^\d+$/.test(online) || online === rangesOf(nodes))
    return undefined;
  let bytes = swap;
  let total = 0;
  for (const node of nodes) {
    const text = textOf(`${directory}/node${node}/meminfo`)?.replace(/^Node \d+ /gm, '');
    const counts = countsOf(text, KiB);
    total += counts.get('MemTotal') ?? 0;
    for (const name of ['MemFree', 'Active(file)', 'Inactive(file)', 'SReclaimable']) bytes += counts.get(name) ?? 0;
  }
  if (total === 0) return undefined;
  const which = nodes.length === 1 ? `NUMA node ${nodes[0]}` : `the NUMA nodes ${rangesOf(nodes)}`;
  return {
    bytes: Math.max(0, bytes - kept(total)),
    limit: `${formatSize(bytes)} of the ${formatSize(total)} of ${which} are available`,
  };
}

/** Formats ascending numbers as the kernel does: `0-2,5`. */
function rangesOf(numbers: readonly number[]): string {
  const ranges: [number, number][] = [];
  for (const each of numbers) {
    const last = ranges.at(-1);
    if (last !== undefined && last[1] === each - 1) last[1] = each;
    else ranges.push([each, each]);
  }
  return ranges.map(([first, last]) => (first === last ? String(first) : `${first}-${last}`)).join(',');
}

/** How many bytes of hugepages of one size the control groups still allow. See {@link LimitsPort.hugePageRoom}. */
export function hugePageRoom(pageSize: number, paths: RoomPaths = {}): MemoryRoom {
  const name = `hugetlb.${shortSize(pageSize)}`;
  const bounds = groups(paths.proc ?? '/proc', 'hugetlb', ({ version }, directory) =>
    ['', '.rsvd'].flatMap((kind) => {
      const file = `${directory}/${name}${kind}.${version === 2 ? 'max' : 'limit_in_bytes'}`;
      const limit = numberIn(file);
      if (limit === undefined) return [];
      const used = numberIn(`${directory}/${name}${kind}.${version === 2 ? 'current' : 'usage_in_bytes'}`);
      if (used === undefined) return [];
      const bytes = Math.max(0, limit - used);
      return [{ bytes, limit: `${formatSize(bytes)} of the ${formatSize(limit)} of ${file} are left` }];
    }),
  );
  return leastOf(bounds);
}

/** A page size in the format of the hugetlb controller: 2MB, 1GB, 64KB. */
function shortSize(bytes: number): string {
  return bytes >= GiB ? `${bytes / GiB}GB` : bytes >= MiB ? `${bytes / MiB}MB` : `${bytes / KiB}KB`;
}

function leastOf(bounds: readonly MemoryRoom[]): MemoryRoom {
  const none: MemoryRoom = { bytes: Infinity, limit: 'this kernel reports no limit' };
  return bounds.reduce((least, bound) => (bound.bytes < least.bytes ? bound : least), none);
}

/**
 * Collects what `look` finds in each control group of this process that counts for `controller`, version 2 always
 * included.
 */
function groups(
  proc: string,
  controller: 'memory' | 'hugetlb',
  look: (hierarchy: Hierarchy, directory: string) => MemoryRoom[],
): MemoryRoom[] {
  const own = textOf(`${proc}/self/cgroup`) ?? '';
  const groupOf = (version: 1 | 2): string | undefined => {
    for (const line of own.split('\n')) {
      const [id, controllers, ...group] = line.split(':');
      if (version === 2 ? id === '0' : controllers?.split(',').includes(controller)) return group.join(':');
    }
    return undefined;
  };
  return mountedFor(proc, controller, own).flatMap((hierarchy) => {
    const { version, path, root } = hierarchy;
    const group = groupOf(version);
    if (group === undefined) return [];
    // In a container, the mount shows the container's group as the root.
    const inside = root === '/' ? group : group.startsWith(root) ? group.slice(root.length) : '';
    const names = inside.split('/').filter((name) => name !== '' && name !== '..');
    const bounds: MemoryRoom[] = [];
    for (let depth = names.length; depth >= 0; depth--) {
      const directory = [path, ...names.slice(0, depth)].join('/');
      bounds.push(...look(hierarchy, directory));
    }
    return bounds;
  });
}

/** Cached hierarchies, valid while this process stays in these groups. */
const found = new Map<string, { readonly own: string; readonly asked: number; readonly hierarchies: Hierarchy[] }>();
/** Cache time in milliseconds: mounts are many and rarely change. */
const FRESH = 1000;

function mountedFor(proc: string, controller: string, own: string): Hierarchy[] {
  const key = `${proc} ${controller}`;
  const before = found.get(key);
  if (before?.own === own && now() < before.asked + FRESH) return before.hierarchies;
  const there = hierarchies(textOf(`${proc}/self/mountinfo`) ?? '', controller);
  found.set(key, { own, asked: now(), hierarchies: there });
  return there;
}

function hierarchies(mounts: string, controller: string): Hierarchy[] {
  return mounts.split('\n').flatMap((line): Hierarchy[] => {
    const [before, after] = line.split(' - ');
    const [, , , root, path] = before.split(' ');
    if (after === undefined || path === undefined) return [];
    const [type, , options = ''] = after.split(' ');
    if (type === 'cgroup2') return [{ version: 2, path, root }];
    return type === 'cgroup' && options.split(',').includes(controller) ? [{ version: 1, path, root }] : [];
  });
}

/** The limits of one version 2 group. memory.high is one too: beyond it the kernel slows the process down to a halt. */
function ofGroup2(directory: string, swap: number): MemoryRoom[] {
  const bounds: MemoryRoom[] = [];
  for (const name of ['memory.max', 'memory.high']) {
    const limit = numberIn(`${directory}/${name}`);
    if (limit === undefined) continue;
    const used = numberIn(`${directory}/memory.current`);
    if (used === undefined) continue;
    const swapLimit = numberIn(`${directory}/memory.swap.max`) ?? Infinity;
    const more = Math.min(swap, Math.max(0, swapLimit - (numberIn(`${directory}/memory.swap.current`) ?? 0)));
    bounds.push(groupRoom(`${directory}/${name}`, limit, used, more, countsOf(textOf(`${directory}/memory.stat`), 1)));
  }
  return bounds;
}

/** The limits of one version 1 group: memory, and memory plus swap. */
function ofGroup1(directory: string, swap: number): MemoryRoom[] {
  const bounds: MemoryRoom[] = [];
  for (const [name, more] of [
    ['memory', swap],
    ['memory.memsw', 0],
  ] as const) {
    const limit = numberIn(`${directory}/${name}.limit_in_bytes`);
    if (limit === undefined) continue;
    const used = numberIn(`${directory}/${name}.usage_in_bytes`);
    if (used === undefined) continue;
    const counts = countsOf(textOf(`${directory}/memory.stat`), 1, 'total_');
    bounds.push(groupRoom(`${directory}/${name}.limit_in_bytes`, limit, used, more, counts));
  }
  return bounds;
}

function groupRoom(
  file: string,
  limit: number,
  used: number,
  swap: number,
  counts: ReadonlyMap<string, number>,
): MemoryRoom {
  // Cached file data can be freed, except mapped pages (running programs) and pages that must be written first.
  const cached = (counts.get('inactive_file') ?? 0) + (counts.get('active_file') ?? 0);
  const busy = ['mapped_file', 'file_mapped', 'dirty', 'file_dirty', 'writeback', 'file_writeback'];
  const stays = busy.reduce((sum, name) => sum + (counts.get(name) ?? 0), 0);
  const left = limit - used + Math.max(0, cached - stays) + swap;
  return {
    bytes: Math.max(0, left - kept(limit)),
    limit: `${formatSize(Math.max(0, left))} of the ${formatSize(limit)} of ${file} are available`,
  };
}

/** The number in a file; `undefined` if there is none or it means no limit. */
function numberIn(file: string): number | undefined {
  const text = textOf(file, readRareText)?.trim();
  const value = text === undefined || text === '' || text === 'max' ? NaN : Number(text);
  return value < UNLIMITED ? value : undefined;
}

/** Parses lines of a name and a number, in bytes; only names that begin with `prefix`, which is removed. */
function countsOf(text: string | undefined, unit: number, prefix = ''): Map<string, number> {
  const counts = new Map<string, number>();
  for (const [, name, number] of (text ?? '').matchAll(/^([\w()]+):?\s+(\d+)/gm))
    if (name.startsWith(prefix)) counts.set(name.slice(prefix.length), Number(number) * unit);
  return counts;
}
