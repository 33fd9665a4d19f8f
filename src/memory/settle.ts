/** Faults in pages before their addresses are given to anyone, so that touching them can not kill the process. */
import { DmaError, forPeople, isDmaError, NO_PERMISSION, unlessFails, withUndo } from '../errors.js';
import { mustGoOn, Turns, type LongStep } from '../long-work.js';
import type { Platform } from '../platform/ports.js';
import { runSteps, type Steps } from '../steps.js';
import { formatSize, type Va } from '../units.js';
import { HugePages } from './hugepages.js';
import { populateInLanes, type OrdinaryMemory } from './ordinary-memory.js';

/** Mapped addresses, and what their pages must be. */
export interface Unsettled {
  readonly va: Va;
  /** bytes */
  readonly length: number;
  /** page size in bytes, as the kernel maps them */
  readonly pageSize: number;
  /** the NUMA node that all pages must come from; -1 for any */
  readonly node: number;
  /** The access that pages are faulted in for; see `MemoryPort.populate`. Default `write`. */
  readonly access?: 'read' | 'write';
  /** The descriptor behind them, if any; used to explain a failure. */
  readonly fd?: number;
}

/**
 * Faults in all pages of mapped addresses, on their node.
 *
 * @throws DmaError ENOMEM, with figures, if pages are not available; some may be present then
 */
export function settle(platform: Platform, ordinary: OrdinaryMemory, what: Unsettled, operation: string): void {
  const { va, length, pageSize, node, access } = what;
  // Most calls, in one step.
  if (node === -1 && pageSize === platform.memory.pageSize) ordinary.populate(va, length, node, operation, access);
  else runSteps(settling(platform, ordinary, what, operation), (step) => step.now());
}

/** {@link settle} in steps: `later` faults in several pieces at once, on other threads. */
export function* settling(
  platform: Platform,
  ordinary: OrdinaryMemory,
  what: Unsettled,
  operation: string,
): Steps<LongStep, void> {
  const { memory } = platform;
  const { va, length, pageSize, node, access } = what;
  if (node !== -1) memory.bind(va, length, node);
  if (pageSize === memory.pageSize) {
    yield {
      now: () => ordinary.populate(va, length, node, operation, access),
      later: async (work) => ordinary.populateAsync(va, length, node, operation, work, access),
    };
  } else
    try {
      yield {
        now: () => memory.populate(va, length, access),
        later: async (work) => populateInLanes(memory, { va, length, pageSize, access, operation }, work),
      };
    } catch (error) {
      throw explainShortage(platform, error, what, operation);
    }
  if (node === -1) return;
  yield {
    now: () => checkNodes(platform, what, operation),
    later: async ({ signal }) => {
      if (hasOneNode(platform)) return;
      const turns = new Turns();
      const step = NODES_AT_ONCE * pageSize;
      for (let at = 0; at < length; at += step) {
        if (turns.due) await turns.next();
        mustGoOn(signal, operation);
        checkNodes(platform, { ...what, va: (va + at) as Va, length: Math.min(step, length - at) }, operation);
      }
    },
  };
}

/** With one node only, asking for the node of each page would block the event loop for long and tell nothing. */
function hasOneNode({ kernel }: Platform): boolean {
  return unlessFails(NO_PERMISSION, () => new HugePages(kernel).nodes().length === 1) ?? false;
}

/** Pages whose nodes are asked for in one turn of the event loop. */
const NODES_AT_ONCE = 4096;

/**
 * Throws ENOMEM unless all pages are on `node`: some pages of a file may have come from elsewhere. Pages whose node is
 * unknown (-1) pass.
 */
export function checkNodes(platform: Platform, { va, length, pageSize, node }: Unsettled, operation: string): void {
  const pages = length / pageSize;
  const nodes = platform.memory.nodesOf(va, pageSize, pages);
  const wrong = nodes.findIndex((each) => each !== node && each !== -1);
  if (wrong === -1) return;
  const reason = `page ${wrong} of ${pages} is on NUMA node ${nodes[wrong]}, not on ${node}`;
  throw new DmaError({ code: 'ENOMEM', operation, reason });
}

/** Explains ENOMEM for hugepages: the error of `operation`, with the limits that may be the cause. */
export function explainShortage(
  platform: Platform,
  error: unknown,
  { length, pageSize, node = -1, fd }: Partial<Unsettled> & Pick<Unsettled, 'length' | 'pageSize'>,
  operation: string,
): DmaError {
  const failure = withUndo(error, operation, []);
  if (!isDmaError(failure, 'ENOMEM') || failure.hint !== undefined) return failure;
  const pages = length / pageSize;
  const where = node === -1 ? '' : ` on NUMA node ${node}`;
  const figures = forPeople(() => `, ${hugePageFigures(platform, pageSize, fd)}`) ?? '';
  const hint = `${pages} hugepages of ${formatSize(pageSize)} are needed${where}${figures}`;
  return failure.with({ operation, cause: error, hint });
}

/** The number of free hugepages and the limits on them, for a hint. */
function hugePageFigures({ limits, files }: Platform, pageSize: number, fd: number | undefined): string {
  const free = limits.freeHugePages(pageSize);
  const figures = [
    free === undefined ? 'this kernel has no hugepages of that size' : `${free} are free on the machine`,
  ];
  const group = limits.hugePageRoom(pageSize);
  if (group.bytes !== Infinity) figures.push(group.limit);
  const mount = fd === undefined ? undefined : files.fileSystem(fd);
  if (mount !== undefined && mount.size !== Infinity)
    figures.push(`${formatSize(mount.left)} of the ${formatSize(mount.size)} of its mount (size=) are left`);
  return `${figures.join(', ')}: reserve more as root, or raise the limit (see anydma hugepages)`;
}
