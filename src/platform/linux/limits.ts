/** Limits of this process on Linux. */
import { closeSync, openSync, readSync } from 'node:fs';
import { KiB } from '../../units.js';
import { descriptorFacts, resourceLimit } from './libc.js';
import type { Libc } from './libc.js';
import { readKernelText } from './proc.js';
import { ifPresent } from './node-errors.js';
import { hugePageRoom, memoryRoom } from './available-memory.js';
import type { LimitsPort } from '../ports.js';
import { CAP_IPC_LOCK, RLIMIT_MEMLOCK } from '../uapi/resource.js';

/** The {@link LimitsPort} that reads the kernel's values. */
export function linuxLimits(libc: Libc): LimitsPort {
  return {
    lockedMemory() {
      const [limit] = resourceLimit(libc, RLIMIT_MEMLOCK, 'RLIMIT_MEMLOCK');
      const status = readKernelText('/proc/self/status') ?? '';
      return { limit: mayLockAnyAmount(status) ? Infinity : limit, used: bytesOf(status, 'VmLck') };
    },

    pinnedMemory: () => bytesOf(readKernelText('/proc/self/status') ?? '', 'VmPin'),

    mappings: mappingFacts,

    descriptors: () => descriptorFacts(libc),

    room: (node) => memoryRoom(node),

    freeHugePages(pageSize) {
      const directory = `/sys/kernel/mm/hugepages/hugepages-${pageSize / KiB}kB`;
      const count = (name: string): number => Number(readKernelText(`${directory}/${name}`) ?? 0);
      if (readKernelText(`${directory}/free_hugepages`) === undefined) return undefined;
      // Reserved pages count as free until they are touched, but already belong to a mapping.
      const free = Math.max(0, count('free_hugepages') - count('resv_hugepages'));
      return free + Math.max(0, count('nr_overcommit_hugepages') - count('surplus_hugepages'));
    },

    hugePageRoom: (pageSize) => hugePageRoom(pageSize),
  };
}

/** Read buffer for /proc/self/maps. The text has megabytes, and close to the limit no mapping is left to hold it. */
const lines = Buffer.alloc(4 * KiB);

/** vm.max_map_count and the number of mappings. Takes at least 0.1 ms per 1000 mappings. */
export function mappingFacts(): { readonly limit: number; readonly used: number } {
  const limit = Number(readKernelText('/proc/sys/vm/max_map_count') ?? Infinity);
  const used = ifPresent('/proc/self/maps', () => {
    const fd = openSync('/proc/self/maps', 'r');
    try {
      let count = 0;
      for (let length = readSync(fd, lines); length > 0; length = readSync(fd, lines))
        for (let at = lines.indexOf(10); at >= 0 && at < length; at = lines.indexOf(10, at + 1)) count++;
      return count;
    } finally {
      closeSync(fd);
    }
  });
  return { limit, used: used ?? 0 };
}

/** The value in bytes of a line of /proc/self/status that is in kB. */
function bytesOf(status: string, name: string): number {
  return Number(new RegExp(`^${name}:\\s*(\\d+) kB`, 'm').exec(status)?.[1] ?? 0) * KiB;
}

/** Does CAP_IPC_LOCK lift the limit? Only in the initial user namespace, the one that maps all users to themselves. */
function mayLockAnyAmount(status: string): boolean {
  const capabilities = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)/m.exec(status)?.[1] ?? '0'}`);
  if ((capabilities >> BigInt(CAP_IPC_LOCK)) % 2n === 0n) return false;
  return /^\s*0\s+0\s+4294967295\s*$/.test(readKernelText('/proc/self/uid_map') ?? '');
}
