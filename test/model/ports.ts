/** Random bursts through the rings of an adapter's driver, against lists of frames: `node dist/test/model/ports.js ADAPTER [--steps N] [--seed S]`. */
import { parseArgs } from 'node:util';
import { Eal } from '../../src/index.js';
import { ADAPTERS, againstRings, type AdapterName, type RingsCounts } from '../shared/adapter-rings.js';

const NAMES = Object.keys(ADAPTERS) as AdapterName[];
const USAGE = `usage: npm run model:e1000e|model:virtio-net|model:virtio-net-packed -- [options]
  --steps N      so many steps; default: a million
  --seed S       repeat a run`;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    steps: { type: 'string', default: '1000000' },
    seed: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
});
const adapter = NAMES.find((name) => name === positionals[0]);
const steps = Number(values.steps);
const seed = values.seed === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(values.seed);
if (values.help || adapter === undefined || !Number.isSafeInteger(steps) || steps < 1 || !Number.isSafeInteger(seed)) {
  console.error(USAGE);
  process.exit(values.help ? 0 : 2);
}

console.log(`${adapter}, seed ${seed}, ${steps} steps`);
const started = performance.now();
let shown = started;
const onProgress = (counts: RingsCounts): void => {
  if (performance.now() - shown < 10_000) return;
  shown = performance.now();
  console.log(JSON.stringify(counts));
};
try {
  await using eal = await Eal.start({ memory: { onNotice: () => undefined } });
  const counts = await againstRings(eal, { adapter, seed, steps, onProgress });
  console.log(JSON.stringify({ ...counts, seed, seconds: Math.round((performance.now() - started) / 1000) }));
  console.log('every frame was as the model says');
} catch (error) {
  console.error(error);
  process.exit(1);
}
