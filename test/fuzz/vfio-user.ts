/** Attacks both ends of vfio-user: `node dist/test/fuzz/vfio-user.js [--messages N] [--seed S]`. */
import { parseArgs } from 'node:util';
import { fuzz } from './vfio-user-fuzzer.js';

const { values } = parseArgs({
  options: { messages: { type: 'string', default: '1000000' }, seed: { type: 'string' }, help: { type: 'boolean' } },
});
const messages = Number(values.messages);
const seed = values.seed === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(values.seed);
if (values.help === true || !Number.isSafeInteger(messages) || messages < 1 || !Number.isSafeInteger(seed)) {
  console.error('usage: vfio-user [--messages N] [--seed S]');
  process.exit(values.help === true ? 0 : 2);
}
console.log(`seed ${seed}, ${messages} messages`);
const start = performance.now();
let shown = start;
try {
  const report = await fuzz({
    messages,
    seed,
    onBatch: (so) => {
      if (performance.now() - shown < 10_000) return;
      shown = performance.now();
      console.log(`${so.messages} messages, ${so.conversations} conversations, ${so.batches} batches`);
    },
  });
  console.log(JSON.stringify({ ...report, seconds: Math.round((performance.now() - start) / 100) / 10, seed }));
  console.log('nothing crashed, leaked, stalled or said nonsense');
} catch (error) {
  console.error(error);
  process.exit(1);
}
