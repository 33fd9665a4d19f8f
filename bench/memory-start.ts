/** `memory-start.js BYTES`: how many milliseconds go by until a process has so much memory of its own, in hugepages. */
import { Eal } from '../src/index.js';
import { timeAsync } from './harness/harness.js';

const size = Number(process.argv[2]);
let eal: Eal | undefined;
const ms = await timeAsync(async () => {
  eal = await Eal.start({ memory: { size } });
});
console.log(ms);
await eal?.stop();
