/** All ports as Linux gives them. */
import type { Libc } from './linux/libc.js';
import { linuxEvents } from './linux/events.js';
import { linuxFiles } from './linux/files.js';
import { linuxIoctl } from './linux/ioctl.js';
import { linuxKernel } from './linux/kernel.js';
import { linuxLimits } from './linux/limits.js';
import { linuxMemory } from './linux/memory.js';
import { linuxRdmaCm } from './rdma/linux-rdma-cm.js';
import { linuxReadiness } from './linux/readiness.js';
import { linuxSockets } from './linux/sockets.js';
import { linuxVerbs } from './rdma/linux-verbs.js';
import type { Platform } from './ports.js';

/** The platform of a Linux machine. It belongs to the thread that calls this: libc's errno does. */
export function linuxPlatform(libc: Libc): Platform {
  return {
    name: 'linux',
    limitation: undefined,
    memory: linuxMemory(libc),
    files: linuxFiles(libc),
    sockets: linuxSockets(libc),
    events: linuxEvents(libc),
    readiness: linuxReadiness(libc),
    ioctl: linuxIoctl(libc),
    limits: linuxLimits(libc),
    kernel: linuxKernel(libc),
    verbs: linuxVerbs(libc),
    rdmaCm: linuxRdmaCm(libc),
  };
}
