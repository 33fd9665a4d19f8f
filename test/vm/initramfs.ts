/**
 * The first file system of a guest: busybox, and what is needed to reach the host's own file system, which then becomes
 * the guest's root with a writable layer above it. So the guest has this checkout, Node.js and all that is installed here.
 */
import { spawnSync } from 'node:child_process';
import { chmodSync, copyFileSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { Unavailable } from '../shared/cached.js';
import { DMAR_PATH, dmarTable } from './dmar.js';
import type { Kernel } from './kernels.js';

/** The names that QEMU gives the two file systems it shares with the guest. */
export const SHARES = {
  /** The host's root, read-only. */
  HOST: 'host',
  /** A directory for this guest alone, writable. */
  GUEST: 'guest',
} as const;

/** Where {@link SHARES.GUEST} is in the guest. */
export const GUEST_SHARE = '/run/anydma-vm';

/** What is run in the guest then, from {@link SHARES.GUEST}. */
export const START = 'start.sh';

/** What has to be loaded to get so far. */
const MODULES = ['virtio_pci', '9pnet_virtio', '9p', 'overlay'];

export const BUSYBOX = '/bin/busybox';

const INIT = `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
  [ -e "$module" ] && insmod "$module"
done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=1048576 ${SHARES.HOST} /lower
mount -t tmpfs -o size=1g upper /upper
mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work root /root
for each in dev proc sys run; do [ -d /root/$each ] || mkdir /root/$each; done
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mount -t tmpfs run /root/run
mount --move /dev /root/dev
mkdir /root${GUEST_SHARE}
mount -t 9p -o trans=virtio,version=9p2000.L,cache=none,msize=1048576 ${SHARES.GUEST} /root${GUEST_SHARE}
exec switch_root /root /bin/sh ${GUEST_SHARE}/${START}
`;

/**
 * Makes one for `kernel` in `directory` and returns its path.
 *
 * @throws Unavailable when something for it is missing on this machine
 */
export function makeInitramfs(kernel: Kernel, directory: string): string {
  const root = join(directory, `initramfs-${kernel.name}`);
  for (const each of ['bin', 'dev', 'lower', 'upper', 'root', 'modules'])
    mkdirSync(join(root, each), { recursive: true });
  copyFileSync(BUSYBOX, join(root, 'bin/busybox'));
  writeFileSync(join(root, 'init'), INIT);
  for (const each of ['init', 'bin/busybox']) chmodSync(join(root, each), 0o755);
  if (kernel.modular) copyModules(kernel, MODULES, join(root, 'modules'));
  const image = `${root}.gz`;
  writeFileSync(image, gzipSync(archive(root), { level: 1 }));
  return image;
}

/** The same for a guest whose firmware says what {@link dmarTable} does; returns its path. */
export function withFirmwareTable(initramfs: string, device: string): string {
  const root = `${initramfs}-acpi`;
  mkdirSync(dirname(join(root, DMAR_PATH)), { recursive: true });
  writeFileSync(join(root, DMAR_PATH), dmarTable(device));
  const image = `${root}.img`;
  // The kernel looks for tables in what comes first, before it can unpack anything.
  writeFileSync(image, Buffer.concat([archive(root), readFileSync(initramfs)]));
  return image;
}

/**
 * Copies modules of a kernel, and those that they need, so that the order of their names is the one to load them in.
 *
 * @throws Unavailable when the kernel has no such module
 */
export function copyModules(kernel: Kernel, names: readonly string[], directory: string): void {
  moduleFiles(kernel, names).forEach((file, i) => {
    const name = `${String(i).padStart(2, '0')}-${basename(file).replace(/\.ko.*$/, '.ko')}`;
    writeFileSync(join(directory, name), unpacked(file));
  });
}

/** A directory as a kernel's cpio archive. */
export function archive(root: string): Buffer {
  const entries = ['.', ...readdirSync(root, { recursive: true, encoding: 'utf8' })];
  const { status, stdout } = spawnSync('cpio', ['-o', '-H', 'newc', '--quiet'], {
    cwd: root,
    input: entries.join('\n'),
    maxBuffer: 1 << 28,
  });
  if (status !== 0) throw new Unavailable('cpio can not make an initramfs');
  return stdout;
}

function moduleFiles({ directory, release }: Kernel, names: readonly string[]): string[] {
  const files = new Set<string>();
  for (const name of names) {
    const args = ['--show-depends', '-d', directory, '-S', release, name];
    const { status, stdout, stderr } = spawnSync('modprobe', args, { encoding: 'utf8' });
    if (status !== 0) throw new Unavailable(`the kernel has no module ${name}: ${stderr}`);
    for (const [, file] of stdout.matchAll(/^insmod (\S+)/gm)) if (file !== undefined) files.add(file);
  }
  return [...files];
}

/** Not every kernel unpacks modules by itself, and busybox does not. */
function unpacked(file: string): Uint8Array {
  const command = { '.xz': 'xz', '.zst': 'zstd', '.gz': 'gzip' }[/\.\w+$/.exec(file)?.[0] ?? ''];
  if (command === undefined) return readFileSync(file);
  const { status, stdout } = spawnSync(command, ['-dc', file], { maxBuffer: 1 << 26 });
  if (status !== 0) throw new Unavailable(`${file} can not be unpacked with ${command}`);
  return stdout;
}
