/**
 * A virtual machine whose only disk is our NVMe controller, by QEMU's vfio-user-pci: Linux's own driver makes an ext4 on it, works
 * with it, and finds everything that it had flushed after the controller was killed.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, chmodSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, it } from 'node:test';
import { gzipSync } from 'node:zlib';
import { cacheDirectory, Unavailable } from '../shared/cached.js';
import { spawnTied } from '../shared/tied.js';
import { until } from '../shared/until.js';
import { archive, BUSYBOX, copyModules } from '../vm/initramfs.js';
import { prepareKernel } from '../vm/kernels.js';
import { ServedDevice } from './served.js';

const root = process.env.ANYDMA_PEERS_ROOT ?? '';

/** Milliseconds for a guest to come up and do its work, in software on a loaded machine. */
const LIMIT = 900_000;

/** What Linux needs for the disk and its file system. */
const MODULES = ['nvme', 'ext4', 'crc32c_generic'];
/** Programs of this machine that the guest has too, and their Debian packages. */
const PROGRAMS = [
  ['/usr/sbin/mkfs.ext4', 'e2fsprogs'],
  ['/usr/sbin/fsck.ext4', 'e2fsprogs'],
  ['/usr/bin/fio', 'fio'],
] as const;
/** What else is needed here. */
const NEEDS = [
  ...PROGRAMS,
  [BUSYBOX, 'busybox-static'],
  ['/usr/bin/cpio', 'cpio'],
  ['/usr/sbin/modprobe', 'kmod'],
] as const;

/** Before each script: devices, modules, and the disk. `ok` and `wrong` end the line that the test waits for. */
const INIT = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/sbin:/usr/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
for module in /modules/*.ko; do insmod "$module"; done
say() { echo "GUEST: $*"; }
check() { name=$1; shift; if "$@" >/tmp/out 2>&1; then say "$name ok"; else say "$name wrong"; tail -5 /tmp/out; dmesg | tail -20; poweroff -f; fi; }
n=0
while { [ ! -e /dev/nvme0n1 ] || [ ! -e /dev/nvme0n2 ]; } && [ $n -lt 60 ]; do sleep 1; n=$((n + 1)); done
mkdir -p /disk
# Linux looks at namespaces all at once, so that the names of their disks are in any order.
disk_of() { for each in /sys/block/nvme0n*; do [ "$(cat "$each/nsid")" = "$1" ] && echo "\${each##*/}"; done; }
A=$(disk_of 1)
B=$(disk_of 2)
. /script
poweroff -f
`;

/** fio on files of the disk: direct I/O in blocks of 4 KiB, of which each says where it belongs and has its check sum. */
const FIO = `
fio() {
  /usr/bin/fio --name=work --directory=/disk --filename=fio --ioengine=io_uring --direct=1 --bs=4k --size=16m \\
    --verify=crc32c --verify_fatal=1 --verify_state_save=0 --output-format=terse "$@"
}
`;

/**
 * fio reads and writes for a minute, flushes after each 16 writes, and reads soon what it wrote; then it writes all of the file, and
 * reads it once that is done. Then files with random content and their sums, flushed. After that, fio goes on writing, and files
 * that are flushed one by one are told of, until the controller is gone.
 */
const FIRST = `${FIO}
say "model $(cat /sys/class/nvme/nvme0/model)"
say "sizes $(cat /sys/block/$A/size) $(cat /sys/block/$B/queue/logical_block_size) $(cat /sys/block/$A/queue/write_cache)"
check mkfs mkfs.ext4 -q /dev/$A
check mount mount -o discard /dev/$A /disk
check fio-minute fio --rw=randrw --iodepth=16 --fsync=16 --verify_backlog=64 --time_based --runtime=60
say "fio: $(tail -1 /tmp/out | cut -d';' -f 6,8,47,49)"
check fio-all fio --rw=randwrite --iodepth=16 --fsync=64
check unmount umount /disk
check fsck fsck.ext4 -f -n /dev/$A
check mount-again mount -o discard /dev/$A /disk
cd /disk
mkdir kept synced
for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  dd if=/dev/urandom of=kept/$n bs=$((n * 5003)) count=7 2>/dev/null
done
dd if=/dev/zero of=kept/large bs=1048576 count=8 2>/dev/null
rm kept/7
md5sum kept/* >kept.sums
check flush sync
dd if=/dev/urandom of=/tmp/raw bs=4096 count=64 2>/dev/null
check raw dd if=/tmp/raw of=/dev/$B bs=4096 conv=fsync
say "raw sum $(md5sum /tmp/raw | cut -c1-32)"
say flushed
fio --rw=randrw --iodepth=8 --fsync=32 --time_based --runtime=3600 >/tmp/fio 2>&1 &
n=0
while true; do
  n=$((n + 1))
  dd if=/dev/urandom of=/tmp/piece bs=$((n % 19 * 977 + 1)) count=3 2>/dev/null
  dd if=/tmp/piece of=synced/$n bs=4096 conv=fsync 2>/dev/null || break
  say "synced $n $(md5sum /tmp/piece | cut -c1-32)"
  dd if=/dev/urandom of=unflushed.$((n % 50)) bs=30011 count=9 2>/dev/null
done
sleep 3600
`;

/** The journal is replayed, nothing that was flushed is lost, no block is torn, and the disk goes on being used. */
const SECOND = `${FIO}
check replay mount /dev/$A /disk
cd /disk
check kept md5sum -c kept.sums
say "raw sum $(dd if=/dev/$B bs=4096 count=64 2>/dev/null | md5sum | cut -c1-32)"
for each in synced/*; do say "found \${each##*/} $(md5sum $each | cut -c1-32)"; done
check fio-blocks fio --rw=read --iodepth=16
check fio-again fio --rw=randrw --iodepth=16 --fsync=16
n=0
while [ $n -lt 30 ]; do
  n=$((n + 1))
  dd if=/dev/urandom of=/tmp/piece bs=$((n * 1009)) count=3 2>/dev/null
  dd if=/tmp/piece of=verify.$((n % 7)) conv=fsync 2>/dev/null
  echo 1 >/proc/sys/vm/drop_caches
  cmp /tmp/piece verify.$((n % 7)) || say "piece $n wrong"
done
say "pieces ok"
cd /
check unmount umount /disk
check fsck fsck.ext4 -f -n /dev/$A
say done
`;

/** After so many files that were flushed one by one the controller is killed. */
const SYNCED = 25;

describe('a virtual machine on our NVMe controller', () => {
  const outside = mkdtempSync(join(root, 'run', 'anydma-'));
  const inside = outside.slice(root.length);
  const disk = join(outside, 'disk.img');
  const second = join(outside, 'second.img');
  let image = '';
  /** Why it can not be done here. */
  let missing: string | undefined;

  before(
    async () => {
      const lacking = NEEDS.filter(([program]) => !existsSync(program)).map(([, name]) => name);
      if (lacking.length > 0) {
        missing = `install what is missing: apt-get install ${[...new Set(lacking)].join(' ')}`;
        return;
      }
      const kernel = await prepareKernel(
        'debian',
        cacheDirectory('ANYDMA_VM_CACHE', 'anydma-vm'),
        () => undefined,
        new AbortController().signal,
      ).catch((error: unknown) => {
        if (!(error instanceof Unavailable)) throw error;
        missing = error.message;
      });
      if (kernel === undefined) return;
      image = join(inside, 'vmlinuz');
      copyFileSync(kernel.image, join(outside, 'vmlinuz'));
      for (const [name, script] of Object.entries({ first: FIRST, second: SECOND })) {
        const directory = join(outside, name);
        for (const each of ['bin', 'sbin', 'dev', 'proc', 'sys', 'tmp', 'modules', 'usr/sbin', 'etc'])
          mkdirSync(join(directory, each), { recursive: true });
        copyFileSync(BUSYBOX, join(directory, 'bin/busybox'));
        for (const [program] of PROGRAMS) copyWithLibraries(program, directory);
        writeFileSync(join(directory, 'etc/mtab'), '');
        writeFileSync(join(directory, 'script'), script);
        writeFileSync(join(directory, 'init'), INIT);
        for (const each of ['init', 'bin/busybox']) chmodSync(join(directory, each), 0o755);
        copyModules(kernel, MODULES, join(directory, 'modules'));
        writeFileSync(`${directory}.gz`, gzipSync(archive(directory), { level: 1 }));
      }
    },
    { timeout: LIMIT },
  );
  after(() => rmSync(outside, { recursive: true, force: true }));

  const serve = (): Promise<ServedDevice> =>
    ServedDevice.start('nvme', join(outside, 'disk.sock'), [
      ...['--file', disk, '--size', '128MiB', '--serial', 'GUEST'],
      ...['--namespace', `${second},size=16MiB,blocksize=4096`],
    ]);

  it(
    'Linux works with it, and nothing that was flushed is lost when the controller is killed',
    { timeout: LIMIT },
    async (test) => {
      if (missing !== undefined) {
        test.skip(missing);
        return;
      }
      const server = await serve();
      const first = new Guest(image, join(inside, 'first.gz'), join(inside, 'disk.sock'));
      try {
        await first.until(/flushed/);
        assert.match(first.line(/model/), /anydma NVMe/);
        assert.match(first.line(/sizes/), /sizes 262144 4096 write back/);
        for (const what of ['fio-minute', 'fio-all', 'unmount', 'fsck'])
          assert.ok(first.said.includes(`${what} ok`), `${what}: ${first.console.slice(-30).join('\n')}`);
        test.diagnostic(first.line(/^fio:/));
        await first.until(new RegExp(`synced ${SYNCED} `));
      } finally {
        await server.kill();
        await first.kill();
      }
      assert.deepEqual(first.wrong, []);

      await using again = await serve();
      const guest = new Guest(image, join(inside, 'second.gz'), join(inside, 'disk.sock'));
      try {
        await guest.until(/done/);
      } finally {
        await guest.kill();
      }
      assert.deepEqual(guest.wrong, []);
      assert.equal(guest.line(/raw sum/), first.line(/raw sum/));
      const found = new Set(guest.said.filter((line) => line.startsWith('found ')));
      const synced = first.said.filter((line) => line.startsWith('synced '));
      assert.ok(synced.length >= SYNCED);
      const lost = synced.filter((line) => !found.has(line.replace('synced', 'found')));
      assert.deepEqual(lost, [], 'files that were flushed');
      for (const what of ['replay', 'kept', 'fio-blocks', 'fio-again', 'pieces', 'unmount', 'fsck'])
        assert.ok(guest.said.includes(`${what} ok`), `${what}: ${guest.console.slice(-30).join('\n')}`);
      assert.ok(again.alive);
    },
  );
});

/** A virtual machine, and what it says. */
class Guest {
  /** What its script says. */
  readonly said: string[] = [];
  readonly console: string[] = [];
  readonly #child;
  readonly #closed: Promise<unknown>;

  constructor(kernel: string, initramfs: string, socket: string) {
    this.#child = spawnTied('chroot', [
      root,
      'qemu-system-x86_64',
      ...['-machine', 'q35,memory-backend=mem', '-accel', 'tcg,thread=multi', '-cpu', 'max', '-smp', '2', '-m', '512M'],
      ...['-object', 'memory-backend-memfd,id=mem,size=512M,share=on', '-nodefaults', '-no-reboot'],
      ...['-display', 'none', '-serial', 'stdio', '-kernel', kernel, '-initrd', initramfs],
      ...['-append', 'console=ttyS0 loglevel=4 panic=-1 mitigations=off random.trust_cpu=on no_timer_check nowatchdog'],
      ...['-device', JSON.stringify({ driver: 'vfio-user-pci', socket: { type: 'unix', path: socket } })],
    ]);
    this.#closed = once(this.#child, 'close');
    for (const stream of [this.#child.stdout, this.#child.stderr])
      createInterface({ input: stream }).on('line', (text) => {
        const line = text.replace(/[\r\0]+/g, '');
        this.console.push(line);
        const said = /GUEST: (.*)/.exec(line)?.[1];
        if (said !== undefined) this.said.push(said);
      });
  }

  /** Lines that say that something went wrong. */
  get wrong(): string[] {
    return this.said.filter((line) => line.endsWith('wrong'));
  }

  /** The line that says this. */
  line(text: RegExp): string {
    return this.said.find((line) => text.test(line)) ?? assert.fail(`it has not said ${text.source}`);
  }

  /** Waits until it has said this; fails if it ends before. */
  async until(text: RegExp): Promise<void> {
    const ended = (): boolean => this.#child.exitCode !== null || this.#child.signalCode !== null;
    await until(() => this.said.some((line) => text.test(line)) || ended(), `the guest says ${text.source}`, LIMIT);
    if (!this.said.some((line) => text.test(line)))
      assert.fail(`the guest ended without ${text.source}:\n${this.console.slice(-40).join('\n')}`);
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#closed;
  }
}

function copyWithLibraries(program: string, directory: string): void {
  const { stdout } = spawnSync('ldd', [program], { encoding: 'utf8' });
  for (const file of [program, ...[...stdout.matchAll(/(\/\S+) \(/g)].map(([, path]) => path)]) {
    if (!existsSync(file)) continue;
    mkdirSync(dirname(join(directory, file)), { recursive: true });
    copyFileSync(file, join(directory, file));
    chmodSync(join(directory, file), 0o755);
  }
}
