/** Attacks the channel of a primary: `node dist/test/fuzz/share.js [--inputs N] [--seed S]`. */
import { parseArgs } from 'node:util';
import { fuzzShare } from './share-fuzzer.js';

const { values } = parseArgs({
  options: { inputs: { type: 'string', default: '1000000' }, seed: { type: 'string' }, help: { type: 'boolean' } },
});
const inputs = Number(values.inputs);
const seed = values.seed === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(values.seed);
if (values.help === true || !Number.isSafeInteger(inputs) || inputs < 1 || !Number.isSafeInteger(seed)) {
  console.error('usage: share [--inputs N] [--seed S]');
  process.exit(values.help === true ? 0 : 2);
}
console.log(`seed ${seed}, ${inputs} inputs`);
let shown = performance.now();
try {
  const report = await fuzzShare({
    inputs,
    seed,
    onBatch: (so) => {
      if (performance.now() - shown < 10_000) return;
      shown = performance.now();
      console.log(JSON.stringify(so));
    },
  });
  console.log(JSON.stringify({ ...report, seed }));
  console.log('nothing crashed, stalled or was left behind, and another user got nothing');
} catch (error) {
  console.error(error);
  process.exit(1);
}
