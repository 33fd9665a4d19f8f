/** Real hugepages for tests, on machines where they can be had. */
import { MiB } from '../../src/units.js';
import type { Platform } from '../../src/platform/ports.js';

/** Hugepages of 2 MiB that a test may use. */
export interface TestHugePages {
  /** bytes */
  readonly pageSize: number;
  /** Sets the machine back to what it was. */
  giveBack(): void;
}

const DIRECTORY = '/sys/kernel/mm/hugepages';
const FILE = `${DIRECTORY}/hugepages-2048kB/nr_hugepages`;
const LONGEST_WAIT = 60_000;

/**
 * At least `count` free hugepages of 2 MiB: those that are free, and as root as many more as it takes. Test files run at the
 * same time, so one waits for the other (by a lock on the directory of the counts): everything that counts free
 * hugepages belongs between this and `giveBack`.
 *
 * @returns why there are none, to be printed by the test that is skipped
 */
export function hugePagesForTest(platform: Platform, count: number): TestHugePages | string {
  if (platform.limitation !== undefined) return platform.limitation;
  const { files, kernel, limits } = platform;
  const pageSize = 2 * MiB;
  const free = limits.freeHugePages(pageSize);
  if (free === undefined) return 'this kernel has no hugepages of 2 MiB';
  const lock = files.open(DIRECTORY, 'read');
  const until = Date.now() + LONGEST_WAIT;
  while (!files.lock(lock, 'exclusive')) {
    if (Date.now() > until) {
      files.close(lock);
      return 'other tests have the hugepages';
    }
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
  }
  const total = Number(kernel.readText(FILE));
  const isFree = (): boolean => (limits.freeHugePages(pageSize) ?? 0) >= count;
  const giveBack = (): void => {
    try {
      if (Number(kernel.readText(FILE)) !== total) kernel.writeText(FILE, String(total));
    } finally {
      files.close(lock);
    }
  };
  try {
    if (!isFree()) kernel.writeText(FILE, String(total + count));
  } catch (error) {
    files.close(lock);
    return `hugepages can not be reserved: ${String(error)}`;
  }
  if (isFree()) return { pageSize, giveBack };
  giveBack();
  return `${count} hugepages of 2 MiB can not be had`;
}
