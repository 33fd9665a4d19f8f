import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { openPlatform } from './platform/open.js';

const PROGRAM = `
  import { Eal } from ${JSON.stringify(new URL('./index.js', import.meta.url).href)};
  const eal = await Eal.start({ memory: { noHuge: true } });
  const device = await eal.probe('vdev:copy0');
  const memory = eal.external.allocate(65536, { source: 'anonymous' });
  const [one, two] = [device.dmaMap(memory), device.dmaMap(memory)];
  one.unmap();
  two.unmap();
  memory.unregister();
  if (eal.platform.limitation === undefined) eal.malloc(100).free();
  await eal.remove(device);
  await eal.stop();`;

async function logOf(NODE_DEBUG: string): Promise<string[]> {
  const env = { ...process.env, NODE_DEBUG };
  const { stderr } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', PROGRAM], { env });
  return stderr.split('\n').filter((line) => /^ANYDMA \d+: /.test(line));
}

for (const asked of ['anydma', 'http,ANYDMA', 'any*'])
  test(`NODE_DEBUG=${asked} tells what is mapped, what was mapped already, unmapped, probed and removed`, async () => {
    const lines = await logOf(asked);
    const probed = lines.findIndex((line) => /probed: vdev:copy0, driver copy/.test(line));
    // Before that the driver has mapped memory of its own.
    const at = (pattern: RegExp): number => lines.findIndex((line, n) => n > probed && pattern.test(line));
    const mapped = at(/: mapped: \[0x.*\) for vdev:copy0 at IOVA 0x/);
    const again = at(/: mapped already, so counted and not mapped again: \[0x.*\) for vdev:copy0/);
    const unmapped = at(/: unmapped: \[0x.*\) for vdev:copy0/);
    const removed = at(/removed: vdev:copy0/);
    assert.ok(0 <= probed && probed < mapped && mapped < again, lines.join('\n'));
    assert.ok(again < unmapped && unmapped < removed, lines.join('\n'));
    if (openPlatform().limitation === undefined) assert.ok(at(/socket_0: grown by \d+ pages/) > unmapped);
  });

for (const asked of ['', 'http', 'anydmax'])
  test(`NODE_DEBUG=${asked} tells nothing`, async () => {
    assert.deepEqual(await logOf(asked), []);
  });
