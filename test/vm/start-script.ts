/** The first program of a guest's system. */
import { GUEST_SHARE } from './initramfs.js';
import { GUEST_HUGEPAGES } from './machine.js';

/** What a guest is to run: a program, with variables of its environment. */
export interface GuestJob {
  readonly title: string;
  readonly command: readonly string[];
  readonly environment: Readonly<Record<string, string>>;
  /** It is ended after so many seconds. */
  readonly seconds: number;
}

export interface StartOptions {
  readonly jobs: readonly GuestJob[];
  /** The working directory. */
  readonly directory: string;
  /** The kernel's `lib/modules`, when it has modules. */
  readonly modules: string | undefined;
  /** Its headers for programs, if it comes with them. */
  readonly headers: string | undefined;
}

/**
 * A script for /bin/sh: mounts what programs expect, runs the jobs one after the other, and switches the machine off. Leaves
 * `status-N` in the share for job N (exit status, and seconds that it took), and the kernel's log in `kernel-log`.
 */
export function startScript({ jobs, directory, modules, headers }: StartOptions): string {
  return `
export PATH=${quoted(process.env.PATH ?? '')} HOME=/root LC_ALL=C.UTF-8 ANYDMA_VM=${GUEST_SHARE}
${headers === undefined ? '' : `export ANYDMA_UAPI_INCLUDE=${quoted(headers)}`}
mkdir -p /dev/shm /dev/pts /dev/hugepages
mount -t tmpfs shm /dev/shm
mount -t devpts devpts /dev/pts
mount -t hugetlbfs hugepages /dev/hugepages
mount -t debugfs debug /sys/kernel/debug
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -sfn /proc/self/fd /dev/fd
ln -sfn /proc/self/fd/0 /dev/stdin
ln -sfn /proc/self/fd/1 /dev/stdout
ln -sfn /proc/self/fd/2 /dev/stderr
${modules === undefined ? '' : loadModules(modules)}
echo ${GUEST_HUGEPAGES} >/proc/sys/vm/nr_hugepages
ip link set lo up
ulimit -l unlimited
# Where there is no IOMMU, VFIO is to work without.
unsafe=/sys/module/vfio/parameters/enable_unsafe_noiommu_mode
[ ! -e $unsafe ] || [ -e /sys/class/iommu/dmar0 ] || echo Y >$unsafe
cd ${quoted(directory)}

seconds() { cut -d. -f1 /proc/uptime; }
# job NUMBER SECONDS TITLE COMMAND...
job() {
  number=$1 limit=$2 started=$(seconds)
  echo "=== $3"
  shift 3
  # Through a pipe, because a program would take the console for somebody's terminal.
  { timeout -k 10 "$limit" "$@" </dev/null 2>&1; echo $? >/run/status; } | cat
  dmesg >${GUEST_SHARE}/kernel-log
  echo "$(cat /run/status) $(($(seconds) - started))" >${GUEST_SHARE}/status-$number
}
echo "=== Linux $(uname -r) is up after $(seconds) s"
${jobs.map(call).join('\n')}
dmesg >${GUEST_SHARE}/kernel-log
/bin/busybox poweroff -f
`;
}

function loadModules(modules: string): string {
  return `mkdir -p /lib/modules
mount --bind ${quoted(modules)} /lib/modules
modprobe -a vfio-pci vfio_iommu_type1 e1000e nvme rdma_rxe`;
}

function call({ title, command, environment, seconds }: GuestJob, number: number): string {
  const variables = Object.entries(environment).map(([name, value]) => `${name}=${value}`);
  return ['job', `${number}`, `${seconds}`, ...[title, 'env', ...variables, ...command].map(quoted)].join(' ');
}

/** `text` as one word of a shell's command. */
function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
