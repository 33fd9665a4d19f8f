/**
 * Two processes on one memory: this program starts an Eal with a name, and itself a second time as a process that attaches
 * to it. Both see the same bytes at the same addresses. Run it with: node attach-from-another-process.js
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { Eal } from 'anydma';

const NAME = process.env['EXAMPLE_STORE'];

if (NAME === undefined) await primary();
else await secondary(NAME);

/** Has the memory and the device. */
async function primary(): Promise<void> {
  const name = `example-${process.pid}`;
  await using eal = await Eal.start({ name, memory: { noHuge: true } });
  if (eal.platform.limitation !== undefined) return;
  using zone = eal.zones.reserve('numbers', 4096, { zero: true });
  await eal.probe('vdev:edu0');
  const child = spawn(process.execPath, [fileURLToPath(import.meta.url)], {
    stdio: 'inherit',
    env: { ...process.env, EXAMPLE_STORE: name },
  });
  const [status] = (await once(child, 'exit')) as [number | null];
  const answer = zone.bytes()[1];
  console.log(`primary: the other process wrote ${answer}`);
  if (status !== 0 || answer !== 42) process.exitCode = 1;
}

/** Attaches, works in the same memory, and maps some of its own for the primary's device. */
async function secondary(name: string): Promise<void> {
  await using store = await Eal.attach(name, { label: 'example' });
  const zone = await store.zones.find('numbers');
  if (zone === undefined) throw new Error('there is no such zone');
  zone.bytes()[1] = 42;
  await zone.detach();
  const memory = await store.external.allocate(64 * 1024);
  const device = await store.find('vdev:edu0');
  const mapping = await device?.dmaMap(memory);
  console.log(`secondary: ${memory.length} bytes at ${memory.va}, for the device at ${mapping?.iova ?? 'nothing'}`);
  await mapping?.unmap();
  await memory.detach();
}
