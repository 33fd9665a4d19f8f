/**
 * `npm run bench:vm -- [--only vfio|rdma|fio] [--guest NAME] [--quick] [--json]`: a benchmark inside a virtual machine (test/vm).
 * `vfio`, the default: with an IOMMU and some devices given to VFIO; `rdma`: with an RDMA device in software; `fio`: with an NVMe
 * disk. The C programs are compiled here: a compiler is slow in there.
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
import { compilePeer } from './harness/peer.js';

/** The devices that are each alone in their IOMMU group; the network device is one that DPDK drives. */
const GIVEN = [DEVICES.edu0, DEVICES.edu1, DEVICES.net0, DEVICES.disk0];

const { only, guest, quick, json, help } = parseArgs({
  options: {
    help: { type: 'boolean', default: false },
    only: { type: 'string', default: 'vfio' },
    guest: { type: 'string', default: 'built-48' },
    quick: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
  },
}).values;

if (help) {
  process.stdout.write('npm run bench:vm -- [--only vfio|rdma|fio] [--guest NAME] [--quick] [--json]\n');
  process.exit();
}

const program = (path: string): string => `'${process.execPath}' '${fileURLToPath(new URL(path, import.meta.url))}'`;

/** What each benchmark needs: programs, and what is to be done in the machine before. */
const SUBJECTS: Readonly<Record<string, { readonly peers: readonly string[]; readonly before: string }>> = {
  vfio: { peers: ['vfio-map', 'dpdk-extmem'], before: `${program('../src/cli/main.js')} bind ${GIVEN.join(' ')}` },
  rdma: {
    peers: ['rdma-reg'],
    // Frames of 9000 bytes have room for the largest packets of RDMA.
    before: [
      'ip link add rdma0 type veth peer name rdma1',
      'ip addr add 192.0.2.1/24 dev rdma0',
      'ip link set rdma1 mtu 9000 up',
      'ip link set rdma0 mtu 9000 up',
      'rdma link add rxe0 type rxe netdev rdma0',
      'sleep 1',
    ].join(' && '),
  },
  fio: { peers: [], before: `export ANYDMA_BENCH_DISK=${DEVICES.disk0}` },
};
if (!(only in SUBJECTS)) throw new Error(`there is no benchmark "${only}" for virtual machines`);
const subject = SUBJECTS[only];
const peers = mkdtempSync(join(tmpdir(), 'anydma-bench-'));
try {
  for (const name of subject.peers) {
    const reason = compilePeer(name, peers);
    if (reason !== undefined) process.stderr.write(`bench: without ${name}: ${reason}\n`);
  }
  const bench = [program('./main.js'), `--only ${only}`, ...(quick ? ['--quick'] : []), ...(json ? ['--json'] : [])];
  const command = [subject.before, `ANYDMA_BENCH_PEERS='${peers}' ${bench.join(' ')}`].join(' && ');
  const main = fileURLToPath(new URL('../test/vm/main.js', import.meta.url));
  const child = spawn(process.execPath, [main, '--only', guest, '--run', command], { stdio: 'inherit' });
  // It ends its guest then, and what was compiled goes as well.
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => child.kill(signal));
  const [status] = (await once(child, 'exit')) as [number | null];
  process.exitCode = status ?? 1;
} finally {
  rmSync(peers, { recursive: true, force: true });
}
