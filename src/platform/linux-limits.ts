/** Limits of this process on Linux. */
import { KiB } from '../units.js';
import { check } from './libc.js';
import type { Libc } from './libc.js';
import { readKernelText } from './linux-proc.js';
import type { LimitsPort } from './ports.js';
import { CAP_IPC_LOCK, RLIMIT, RLIMIT_MEMLOCK } from './uapi/resource.js';

/** The {@link LimitsPort} that asks the kernel. */
export function linuxLimits(libc: Libc): LimitsPort {
  return {
    lockedMemory() {
      const words = new Uint32Array(RLIMIT.sizeof / 4);
      check(libc, libc.getrlimit(RLIMIT_MEMLOCK, words), 'getrlimit', 'RLIMIT_MEMLOCK');
      const [low, high] = words;
      const isInfinite = low === 0xffffffff && high === 0xffffffff;
      const status = readKernelText('/proc/self/status') ?? '';
      const limit = isInfinite || mayLockAnyAmount(status) ? Infinity : low + high * 2 ** 32;
      return { limit, used: bytesOf(status, 'VmLck') };
    },

    pinnedMemory: () => bytesOf(readKernelText('/proc/self/status') ?? '', 'VmPin'),

    freeHugePages(pageSize) {
      const directory = `/sys/kernel/mm/hugepages/hugepages-${pageSize / KiB}kB`;
      const free = readKernelText(`${directory}/free_hugepages`);
      // Reserved pages count as free until they are touched, but are promised to a mapping already.
      const reserved = readKernelText(`${directory}/resv_hugepages`);
      return free === undefined ? undefined : Math.max(0, Number(free) - Number(reserved ?? 0));
    },
  };
}

/** A line of /proc/self/status that is in kB, in bytes. */
function bytesOf(status: string, name: string): number {
  return Number(new RegExp(`^${name}:\\s*(\\d+) kB`, 'm').exec(status)?.[1] ?? 0) * KiB;
}

/** Does CAP_IPC_LOCK lift the limit? Only in the first user namespace, which is told by its mapping all users to themselves. */
function mayLockAnyAmount(status: string): boolean {
  const capabilities = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)/m.exec(status)?.[1] ?? '0'}`);
  if ((capabilities >> BigInt(CAP_IPC_LOCK)) % 2n === 0n) return false;
  return /^\s*0\s+0\s+4294967295\s*$/.test(readKernelText('/proc/self/uid_map') ?? '');
}
