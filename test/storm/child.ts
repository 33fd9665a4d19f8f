/**
 * The process that one storm runs in: `child.js NAME SEED ROUNDS`, with an IPC channel to who started it. A storm that
 * crashes takes only this process.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Random } from '../shared/random.js';
import { FIGURES, figuresNow, grown, mayBeNoise, openDescriptors, type Figures } from './figures.js';
import type { Storm, StormFile } from './storm.js';

/** What this process tells. */
export type Report =
  | { readonly kind: 'round'; readonly rounds: number }
  | {
      readonly kind: 'end';
      readonly before: Figures;
      readonly after: Figures;
      readonly grown: readonly string[];
      readonly seen: Readonly<Record<string, number>>;
    };

/** Milliseconds between two reports of how far it is, and until what is on its way out has to be gone. */
const REPORT = 2000;
const PATIENCE = 10_000;
/** Laps of rounds: the first one fills what is kept for later (pools of threads, caches, code). */
const LAPS = 4;

const [name, seed, rounds] = process.argv.slice(2);
const { begin } = (await import(`./storms/${name}.js`)) as StormFile;

// Counting needs collections at once, in a storm that is not to have them, too.
const { gc: exposed } = globalThis;
setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

const tell = (report: Report): boolean | undefined => process.send?.(report);
const total = Number(rounds);
let told = performance.now();
let done = 0;

const storm = await begin({ random: new Random(Number(seed)), gc: exposed === undefined ? undefined : collect });
const lap = Math.ceil(total / (LAPS + 1));
await run(storm, lap);
const before = await settled();
const openBefore = openDescriptors();
while (done < total) await run(storm, Math.min(lap, total - done));
let after = await settled(before);
let found = grown(before, after, storm.allowed?.());
if (mayBeNoise(found)) {
  // What is kept for later grows once, a leak goes on: the same rounds again tell them apart.
  const middle = after;
  const allowedBefore = storm.allowed?.() ?? {};
  console.error(`${found.join(', ')} grew: ${total - lap} more rounds`);
  await run(storm, total - lap);
  after = await settled(middle);
  const again = grown(middle, after, less(storm.allowed?.() ?? {}, allowedBefore), 0.5);
  found = [...again.filter((figure) => found.includes(figure)), ...again.filter((figure) => !mayBeNoise([figure]))];
}
if (found.includes('descriptors')) {
  const known = new Set(openBefore);
  console.error(
    'new descriptors:',
    openDescriptors().filter((link) => !known.has(link)),
  );
}
tell({ kind: 'end', before, after, grown: found, seen: storm.seen });
await storm.close();
process.disconnect();

/** What came on top of `before`. */
function less(now: Partial<Figures>, before: Partial<Figures>): Partial<Figures> {
  return Object.fromEntries(FIGURES.map((figure) => [figure, (now[figure] ?? 0) - (before[figure] ?? 0)]));
}

async function run({ round, calm }: Storm, count: number): Promise<void> {
  for (const end = done + count; done < end; done++) {
    try {
      const running = round.call(storm, done);
      if (running !== undefined) await running;
    } catch (cause) {
      throw new Error(`round ${done} of ${name}`, { cause });
    }
    if (performance.now() - told < REPORT) continue;
    told = performance.now();
    tell({ kind: 'round', rounds: done });
    // A loop that never waits would tell it at the end.
    await sleep(0);
  }
  await calm?.call(storm);
}

/** The figures once all that goes by itself is gone: no more than `first`, if that ever happens. */
async function settled(first?: Figures): Promise<Figures> {
  const deadline = performance.now() + PATIENCE;
  for (let looks = 1; ; looks++) {
    collect();
    await sleep(20);
    if (looks < 10) continue;
    const now = figuresNow();
    if (first === undefined || grown(first, now, storm.allowed?.()).length === 0 || performance.now() > deadline)
      return now;
  }
}
