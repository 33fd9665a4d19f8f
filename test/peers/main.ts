/**
 * Proves both ends of vfio-user against peers that are not ours: `node dist/test/peers/main.js` (`npm run peers`).
 *
 * - QEMU's vfio-user-pci as the client of `anydma serve`: qemu-client.ts;
 * - a virtual machine whose disk is our NVMe controller, which is killed meanwhile: nvme-guest.ts;
 * - the samples of libvfio-user as servers of our client, and as a client of our server: libvfio-user.ts.
 *
 * They run in a small Debian of their own, which is made at the first run in $ANYDMA_PEERS_CACHE, or else in anydma-peers
 * below $XDG_CACHE_HOME or /var/tmp, and kept there. That takes a few minutes, 700 MB of disk, and Debian packages from the
 * mirror that apt-get uses; later runs take some minutes. It needs Linux on x86-64, root (for chroot), setpriv and
 * debootstrap; no KVM. The virtual machine with a disk boots Debian's kernel (test/vm/kernels.ts) and has this machine's busybox-static,
 * e2fsprogs and fio; without them it is left out.
 *
 * Exit status: 0 all is well, 1 a test failed, 77 it can not be run here, and the reason is on standard error.
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { cacheDirectory, Unavailable } from '../shared/cached.js';
import { prepareMachine } from './machine.js';

try {
  const cache = cacheDirectory('ANYDMA_PEERS_CACHE', 'anydma-peers');
  const machine = await prepareMachine(cache, (line) => console.log(line));
  console.log(`QEMU ${machine.qemu}, libvfio-user of QEMU ${machine.samples}, in ${machine.root}`);
  const files = ['qemu-client.js', 'nvme-guest.js', 'libvfio-user.js'].map((name) =>
    fileURLToPath(new URL(name, import.meta.url)),
  );
  const { status } = spawnSync(
    process.execPath,
    ['--test', '--test-reporter=spec', '--test-concurrency=1', '--test-timeout=400000', ...files],
    { stdio: 'inherit', env: { ...process.env, ANYDMA_PEERS_ROOT: machine.root } },
  );
  process.exitCode = status ?? 1;
} catch (error) {
  if (!(error instanceof Unavailable)) throw error;
  console.error(`the peers can not be run here: ${error.message}`);
  process.exitCode = 77;
}
