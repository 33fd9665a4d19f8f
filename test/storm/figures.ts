/** What a process has at one moment, to see whether any of it grows. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';

/** One count of each kind of thing that can be left behind. Sizes in KiB. */
export interface Figures {
  readonly rss: number;
  readonly heap: number;
  readonly addresses: number;
  readonly hugepages: number;
  readonly mappings: number;
  readonly descriptors: number;
  readonly sockets: number;
  readonly files: number;
  readonly children: number;
}

export type Figure = keyof Figures;

/** How much each may differ by the moment it was looked at: what V8 and the C library keep for later. Nothing else may. */
export const NOISE: Figures = {
  rss: 40 * 1024,
  heap: 3 * 1024,
  addresses: 192 * 1024,
  hugepages: 0,
  mappings: 160,
  descriptors: 0,
  sockets: 0,
  files: 0,
  children: 0,
};

export const FIGURES = Object.keys(NOISE) as readonly Figure[];

/** The process's own, now. Its temporary folder is its own too. */
export function figuresNow(): Figures {
  const status = readFileSync('/proc/self/status', 'utf8');
  const field = (name: string): number => Number(new RegExp(`^${name}:\\s*(\\d+)`, 'm').exec(status)?.[1] ?? 0);
  const open = openDescriptors();
  return {
    rss: field('VmRSS'),
    heap: Math.round(process.memoryUsage().heapUsed / 1024),
    addresses: field('VmSize'),
    hugepages: field('HugetlbPages'),
    mappings: readFileSync('/proc/self/maps', 'utf8').split('\n').length - 1,
    descriptors: open.length,
    sockets: open.filter((link) => link.startsWith('socket:')).length,
    files: readdirSync(tmpdir(), { recursive: true }).length,
    children: childrenOf('self').length,
  };
}

/** Processes that a process has started and not yet waited for, by all of its threads. */
function childrenOf(process: string): string[] {
  return readdirSync(`/proc/${process}/task`).flatMap((thread) => {
    try {
      return readFileSync(`/proc/${process}/task/${thread}/children`, 'utf8').split(' ').filter(Boolean);
    } catch {
      return []; // The thread has ended meanwhile.
    }
  });
}

/**
 * What each open descriptor is. Without the sources of modules: Node 20 leaves those open that a worker was still reading when
 * it was terminated, with any program.
 */
export function openDescriptors(): string[] {
  return readdirSync('/proc/self/fd')
    .flatMap(linkOf)
    .filter((link) => !link.endsWith('.js'));
}

/** What a descriptor is; nothing for the one that this very look has opened. */
function linkOf(fd: string): string[] {
  try {
    return [readlinkSync(`/proc/self/fd/${fd}`)];
  } catch {
    return [];
  }
}

/** What is higher than `before` by more than noise and `allowed`. @param part of the noise: 1 is all of it */
export function grown(before: Figures, after: Figures, allowed: Partial<Figures> = {}, part = 1): Figure[] {
  return FIGURES.filter((figure) => after[figure] - before[figure] > NOISE[figure] * part + (allowed[figure] ?? 0));
}

/** Can noise alone explain that these have grown? Then as many rounds again say whether it goes on. */
export function mayBeNoise(found: readonly Figure[]): boolean {
  return found.length > 0 && found.every((figure) => NOISE[figure] > 0);
}
