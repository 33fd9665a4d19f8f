/** How long a process needs to attach to a primary that owns much memory: until all of it is there, at the same addresses. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Eal, formatSize, GiB, isDmaError } from '../src/index.js';
import { openPlatform } from '../src/platform/open.js';
import { measure, type Case, type Effort, type Result } from './harness/harness.js';

/** Bytes that the primary owns: the first that the machine has. */
const SIZES = [8 * GiB, 2 * GiB, GiB / 2];
/** Microseconds. */
const GOAL = 50_000;

const PROGRAM = fileURLToPath(new URL('./attach-child.js', import.meta.url));

/** Measures attaching. */
export async function benchAttach({ quick, progress }: Effort): Promise<Result[]> {
  const { limitation } = openPlatform();
  if (limitation !== undefined) {
    progress(`attach: left out, ${limitation}`);
    return [];
  }
  const name = `bench-${process.pid}`;
  for (const size of quick ? SIZES.slice(1) : SIZES) {
    const eal = await startWith(name, size);
    if (eal === undefined) continue;
    try {
      progress(`attach: to ${formatSize(size)}`);
      return await measure(casesOf(name, size), quick ? { warmUp: 1, measured: 5 } : { warmUp: 2, measured: 15 });
    } finally {
      await eal.stop();
    }
  }
  progress('attach: left out, there is not enough memory');
  return [];
}

/** A primary that owns so many bytes, in ordinary pages; `undefined` if the machine has not so many. */
async function startWith(name: string, size: number): Promise<Eal | undefined> {
  try {
    return await Eal.start({ name, memory: { size, noHuge: true } });
  } catch (error) {
    if (isDmaError(error, 'ENOMEM')) return undefined;
    throw error;
  }
}

/** In processes of their own. Not measured is what comes before: Node.js and loading the library. */
function casesOf(name: string, size: number): Case[] {
  let again = NaN;
  const common = { unit: 'us', count: 1, goal: GOAL } as const;
  return [
    {
      ...common,
      name: `Eal.attach to ${formatSize(size)}`,
      round: async () => {
        const { stdout } = await promisify(execFile)(process.execPath, [PROGRAM, name]);
        const [first, second] = stdout.split(' ').map(Number);
        again = second;
        return first;
      },
    },
    { ...common, name: `Eal.attach to ${formatSize(size)}, again in the same process`, round: () => again },
  ];
}
