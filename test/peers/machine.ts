/**
 * The machine that the peers run in: a small Debian in a directory, entered by chroot(2). It has QEMU as Debian packages it,
 * and the sample programs of libvfio-user, built from the copy that is in the source package of an older QEMU, with a server of ours
 * on it (doorbells.c).
 */
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { madeOnce, Unavailable } from '../shared/cached.js';
import type { Run } from '../shared/cached.js';
import { debianMirror } from '../shared/debian.js';

/** The first Debian release that has a QEMU with vfio-user, in its backports; its own QEMU's source has libvfio-user. */
const SUITE = 'trixie';

/** What the samples are compiled with. */
const COMPILER = ['gcc', 'libc6-dev', 'libjson-c-dev', 'pkg-config', 'xz-utils'];

/** Where the samples are, inside the machine. */
export const SAMPLES = '/opt/libvfio-user';

const DOORBELLS = fileURLToPath(new URL('../../../test/peers/doorbells.c', import.meta.url));

/** Runs inside the machine. The samples are few files, so that their own build system is not needed. */
const BUILD_SAMPLES = `set -e
cd /tmp
apt-get source --download-only qemu/${SUITE}
tar xf qemu_*.orig.tar.xz --wildcards --strip-components=3 '*/subprojects/libvfio-user/*'
library=$(ls lib/*.c | grep -v tran_pipe)
flags="-O1 -w -D_GNU_SOURCE -Iinclude -Ilib $(pkg-config --cflags json-c)"
# It insists on the region for live migration that this old protocol had behind the nine of PCI.
sed -i 's/num_regions != 10/num_regions != 9/' samples/client.c
for sample in server gpio-pci-idio-16; do
  gcc $flags -o ${SAMPLES}/$sample samples/$sample.c $library -ljson-c
done
gcc $flags -o ${SAMPLES}/doorbells ${SAMPLES}/doorbells.c $library -ljson-c
gcc $flags -o ${SAMPLES}/client samples/client.c lib/migration.c lib/tran.c lib/tran_sock.c -ljson-c
dpkg-query -W -f '\${Version}' qemu-system-x86 >/version-qemu
ls qemu_*.orig.tar.xz | sed 's/qemu_//; s/.orig.*//' >${SAMPLES}/version
cd / && rm -rf /tmp/* /var/cache/apt/archives/*.deb
`;

/** Where the peers are. */
export interface Machine {
  /** Its root directory. */
  readonly root: string;
  /** Version of QEMU. */
  readonly qemu: string;
  /** Version of the QEMU that the samples' source comes with. */
  readonly samples: string;
}

/**
 * The machine in the directory `cache`, made at first use, which takes a few minutes. Says what it does by `say`.
 *
 * @throws Unavailable when it can not be made here
 */
export async function prepareMachine(cache: string, say: (line: string) => void): Promise<Machine> {
  if (process.platform !== 'linux') throw new Unavailable('it needs Linux');
  if (process.getuid?.() !== 0) throw new Unavailable('it needs root, for chroot(2)');
  const root = await madeOnce(cache, 'root-2', make, (what) => say(`getting ${what} ...`));
  return {
    root,
    qemu: readFileSync(join(root, 'version-qemu'), 'utf8').trim(),
    samples: readFileSync(join(root, SAMPLES, 'version'), 'utf8').trim(),
  };
}

async function make(directory: string, run: Run): Promise<void> {
  if (spawnSync('debootstrap', ['--version']).status !== 0)
    throw new Unavailable('it needs debootstrap (Debian package: debootstrap)');
  const mirror = debianMirror();
  const step = (what: string, ...command: string[]): Promise<void> => run({ what, command });
  const install = ['apt-get', 'install', '-y', '--no-install-recommends'];
  try {
    await step(`a minimal Debian ${SUITE}`, 'debootstrap', '--variant=minbase', SUITE, directory, mirror);
    writeFileSync(
      join(directory, 'etc/apt/sources.list.d/peers.list'),
      `deb ${mirror} ${SUITE}-backports main\ndeb-src ${mirror} ${SUITE} main\n`,
    );
    writeFileSync(join(directory, 'etc/apt/apt.conf.d/peers'), 'Acquire::Retries "5";\n');
    await step('its package lists', 'chroot', directory, 'apt-get', 'update');
    const backports = ['-t', `${SUITE}-backports`, 'qemu-system-x86', 'seabios'];
    await step('QEMU', 'chroot', directory, ...install, ...backports);
    await step('a compiler', 'chroot', directory, ...install, ...COMPILER);
    mkdirSync(join(directory, SAMPLES), { recursive: true });
    copyFileSync(DOORBELLS, join(directory, SAMPLES, 'doorbells.c'));
    await step('the samples of libvfio-user', 'chroot', directory, 'sh', '-c', BUILD_SAMPLES);
  } finally {
    // What debootstrap leaves mounted when it fails must not be removed with the rest.
    for (const place of ['proc', 'sys']) spawnSync('umount', ['--lazy', join(directory, place)]);
  }
}
