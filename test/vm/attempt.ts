/**
 * Tries to map memory for a device, for suites that need another user, or other limits, than their own: `attempt` runs this
 * very file as a program, which prints what came of each map.
 */
import { spawnSync } from 'node:child_process';
import { chmodSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Eal, isDmaError, type Iova } from '../../src/index.js';
import type { ContainerChoice } from '../../src/entry/driver.js';
import { IommufdSpace } from '../../src/vfio/iommufd.js';
import { Type1Space } from '../../src/vfio/type1.js';

/** What to try. */
export interface Attempt {
  /** The device's name. */
  readonly device: string;
  readonly iommu: ContainerChoice;
  /** bytes of each map */
  readonly maps: readonly number[];
  /** Ask the kernel, without asking this library's books first? */
  readonly bare?: boolean;
}

/** As whom. */
export interface AsWhom {
  readonly uid: number;
  /** RLIMIT_MEMLOCK, in KiB */
  readonly lockedKiB: number;
}

/** What came of it: `ok`, or the error. */
export type Outcome = 'ok' | { readonly code: string; readonly message: string; readonly hint: string | undefined };

/** What the attempt ended with. */
export interface AttemptReport {
  /** Of probing the device. */
  readonly probe: Outcome;
  /** What its domain is. */
  readonly kind: string | undefined;
  readonly maps: readonly Outcome[];
}

/** Runs it in a process of its own. */
export function attempt(what: Attempt, { uid, lockedKiB }: AsWhom): AttemptReport {
  const self = fileURLToPath(import.meta.url);
  for (const path of [self, process.execPath, process.cwd()]) letOthersIn(dirname(path));
  const { stdout, stderr } = spawnSync(
    'sh',
    ['-c', 'ulimit -l "$0" && exec "$@"', `${lockedKiB}`, process.execPath, self, JSON.stringify(what)],
    { uid, gid: uid, encoding: 'utf8', cwd: '/' },
  );
  try {
    return JSON.parse(stdout) as AttemptReport;
  } catch {
    throw new Error(`it says: ${stdout}${stderr}`);
  }
}

/** A checkout may be where only its owner can go; the guest's files are its own. */
function letOthersIn(directory: string): void {
  for (let at = directory; at !== '/'; at = dirname(at)) {
    const { mode } = statSync(at);
    if ((mode & 0o005) !== 0o005) chmodSync(at, mode | 0o055);
  }
}

function outcome(call: () => unknown): Outcome {
  try {
    call();
    return 'ok';
  } catch (error) {
    return failed(error);
  }
}

function failed(error: unknown): Outcome {
  if (!isDmaError(error)) throw error;
  const { code, message, hint } = error;
  return { code, message, hint };
}

async function tryIt({ device: name, iommu, maps, bare = false }: Attempt): Promise<AttemptReport> {
  await using eal = await Eal.start({ iommu });
  try {
    const device = await eal.probe(name);
    let iova = 0x100_0000;
    const outcomes = maps.map((length) =>
      outcome(() => {
        const memory = eal.external.allocate(length, { source: 'anonymous' });
        if (!bare) return device.dmaMap(memory);
        const { space } = eal.containers.default;
        if (!(space instanceof Type1Space || space instanceof IommufdSpace)) throw new Error(`${space?.kind}`);
        space.map({ va: memory.va, iova: iova as Iova, length, access: 'read-write' });
        iova += length;
        return undefined;
      }),
    );
    return { probe: 'ok', kind: device.domain?.kind, maps: outcomes };
  } catch (error) {
    return { probe: failed(error), kind: undefined, maps: [] };
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [, , what = ''] = process.argv;
  console.log(JSON.stringify(await tryIt(JSON.parse(what) as Attempt)));
}
