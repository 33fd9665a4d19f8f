/** Programs that make stacks in their own way, or froze what makes them: all works, without the places. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { Eal } from './eal.js';

test('a program that makes stacks its own way, or whose stacks throw, is told no place, and nothing fails', async () => {
  const before = Object.getOwnPropertyDescriptor(Error, 'prepareStackTrace');
  const ways = [
    (_error: Error, frames: NodeJS.CallSite[]): unknown => frames,
    (): unknown => undefined,
    (): unknown => 5,
    (): never => {
      throw new Error('a stack-trace library');
    },
  ];
  try {
    for (const way of ways) {
      Error.prepareStackTrace = way;
      const told: string[] = [];
      const eal = await Eal.start({ onForgotten: (forgotten) => told.push(...forgotten) });
      const device = await eal.probe('vdev:copy0');
      const memory = eal.external.allocate(65536, { source: 'anonymous' });
      const mapping = device.dmaMap(memory);
      const { iova } = mapping;
      assert.match(device.explain(iova).text, /an unknown place/);
      mapping.unmap();
      assert.match(device.explain(iova).text, /unmapped/);
      await eal.stop();
      assert.match(told.join(), /registered at an unknown place/);
    }
  } finally {
    if (before === undefined) Reflect.deleteProperty(Error, 'prepareStackTrace');
    else Object.defineProperty(Error, 'prepareStackTrace', before);
  }
});

test('frozen intrinsics: all works but for the places', async () => {
  const program = `
    import { Eal } from ${JSON.stringify(new URL('./index.js', import.meta.url).href)};
    const eal = await Eal.start({ onForgotten: (all) => console.log(all.length) });
    const device = await eal.probe('vdev:copy0');
    const memory = eal.external.allocate(65536, { source: 'anonymous' });
    const { iova } = device.dmaMap(memory);
    console.log(device.explain(iova).kind);
    await eal.stop();`;
  const flags = ['--frozen-intrinsics', '--no-warnings', '--input-type=module', '-e', program];
  const { stdout } = await promisify(execFile)(process.execPath, flags);
  assert.match(stdout, /2\n$/);
});
