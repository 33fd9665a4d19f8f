/** `attach-child.js NAME`: how many milliseconds go by until this process has attached to a primary, and then once more. */
import { Eal } from '../src/index.js';
import { timeAsync } from './harness/harness.js';

const name = process.argv[2];
const times: number[] = [];
for (let n = 0; n < 2; n++) {
  let close = async (): Promise<void> => undefined;
  const ms = await timeAsync(async () => {
    const store = await Eal.attach(name);
    close = () => store.close();
  });
  times.push(ms);
  await close();
}
console.log(times.join(' '));
