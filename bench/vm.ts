/**
 * `npm run bench:vm -- [--guest NAME] [--quick] [--json]`: the benchmark of VFIO inside a virtual machine that has an IOMMU
 * (test/vm), with some devices given to VFIO. The C programs are compiled here: a compiler is slow in there.
 *
 * Exit status: as test/vm/main.ts.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { DEVICES } from '../test/vm/machine.js';
import { compilePeer } from './peer.js';

/** The devices that are each alone in their IOMMU group; the network device is one that DPDK drives. */
const GIVEN = [DEVICES.edu0, DEVICES.edu1, DEVICES.net0, DEVICES.disk0];

const { guest, quick, json } = parseArgs({
  options: {
    guest: { type: 'string', default: 'built-48' },
    quick: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
  },
}).values;

const program = (path: string): string => `'${process.execPath}' '${fileURLToPath(new URL(path, import.meta.url))}'`;
const peers = mkdtempSync(join(tmpdir(), 'anydma-bench-'));
try {
  for (const name of ['vfio-map', 'dpdk-extmem']) {
    const reason = compilePeer(name, peers);
    if (reason !== undefined) process.stderr.write(`bench: without ${name}: ${reason}\n`);
  }
  const bench = [program('./main.js'), '--only vfio', ...(quick ? ['--quick'] : []), ...(json ? ['--json'] : [])];
  const command = [
    `${program('../src/cli/main.js')} bind ${GIVEN.join(' ')}`,
    `ANYDMA_BENCH_PEERS='${peers}' ${bench.join(' ')}`,
  ].join(' && ');
  const main = fileURLToPath(new URL('../test/vm/main.js', import.meta.url));
  const child = spawn(process.execPath, [main, '--only', guest, '--run', command], { stdio: 'inherit' });
  // It ends its guest then, and what was compiled goes as well.
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => child.kill(signal));
  const [status] = (await once(child, 'exit')) as [number | null];
  process.exitCode = status ?? 1;
} finally {
  rmSync(peers, { recursive: true, force: true });
}
