/** Random bursts through the rings of the e1000e driver, against lists of frames: `node dist/test/model/e1000e.js [--steps N] [--seed S]`. */
import { parseArgs } from 'node:util';
import { Eal } from '../../src/index.js';
import { againstRings, type RingsCounts } from '../shared/e1000e-rings.js';

const USAGE = `usage: npm run model:e1000e -- [options]
  --steps N      so many steps; default: a million
  --seed S       repeat a run`;

const { values } = parseArgs({
  options: {
    steps: { type: 'string', default: '1000000' },
    seed: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
});
const steps = Number(values.steps);
const seed = values.seed === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(values.seed);
if (values.help || !Number.isSafeInteger(steps) || steps < 1 || !Number.isSafeInteger(seed)) {
  console.error(USAGE);
  process.exit(values.help ? 0 : 2);
}

console.log(`seed ${seed}, ${steps} steps`);
const started = performance.now();
let shown = started;
const onProgress = (counts: RingsCounts): void => {
  if (performance.now() - shown < 10_000) return;
  shown = performance.now();
  console.log(JSON.stringify(counts));
};
try {
  await using eal = await Eal.start({ memory: { onNotice: () => undefined } });
  const counts = await againstRings(eal, { seed, steps, onProgress });
  console.log(JSON.stringify({ ...counts, seed, seconds: Math.round((performance.now() - started) / 1000) }));
  console.log('every frame was as the model says');
} catch (error) {
  console.error(error);
  process.exit(1);
}
