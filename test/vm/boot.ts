/** One guest, from its start to its end. */
import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { spawnTied } from '../shared/tied.js';
import { START } from './initramfs.js';
import type { Kernel } from './kernels.js';
import { DISKS, machineArguments } from './machine.js';
import type { DiskName, IommuName } from './machine.js';
import { RequestService } from './requests.js';
import { startScript } from './start-script.js';
import type { GuestJob } from './start-script.js';

export interface GuestOptions {
  readonly kernel: Kernel;
  readonly initramfs: string;
  readonly iommu: IommuName;
  /** An existing, empty directory for its files. */
  readonly directory: string;
  readonly jobs: readonly GuestJob[];
  /** Is told what its console shows, line by line. */
  readonly print: (line: string) => void;
  /** Ends it early. */
  readonly signal: AbortSignal;
}

/** How a job ended. */
export interface JobResult {
  readonly job: GuestJob;
  /** `undefined`: it did not end, or was not started, because the guest went down. */
  readonly status: number | undefined;
  readonly seconds: number;
}

/** Booting and switching off; in seconds. A loaded machine needs a minute. */
const BOOT_SECONDS = 240;

/** Boots a guest, has it run the jobs, and resolves when it is switched off or has been ended. */
export async function runGuest(options: GuestOptions): Promise<readonly JobResult[]> {
  const { kernel, iommu, initramfs, directory, jobs, print, signal } = options;
  const share = join(directory, 'share');
  const disks = Object.fromEntries(Object.keys(DISKS).map((name) => [name, join(directory, `${name}.img`)])) as Record<
    DiskName,
    string
  >;
  const monitor = join(directory, 'monitor');
  mkdirSync(share);
  for (const [name, file] of Object.entries(disks)) {
    writeFileSync(file, '');
    truncateSync(file, DISKS[name as DiskName]);
  }
  const modules = kernel.modular ? join(kernel.directory, 'lib/modules') : undefined;
  writeFileSync(join(share, START), startScript({ jobs, directory: process.cwd(), modules, headers: kernel.headers }));

  signal.throwIfAborted();
  const qemu = spawnTied(
    'qemu-system-x86_64',
    machineArguments({ iommu, image: kernel.image, initramfs, share, disks, monitor }),
  );
  const closed = once(qemu, 'close');
  using _service = new RequestService(share, monitor);
  createInterface({ input: qemu.stdout }).on('line', (line) => print(line.replace(/[\r\0]+/g, '')));
  createInterface({ input: qemu.stderr }).on('line', (line) => {
    // The interface's cable ends nowhere, as it is to.
    if (!line.includes('is not connected to host network')) print(line);
  });
  const limit = jobs.reduce((sum, { seconds }) => sum + seconds + 10, BOOT_SECONDS);
  const timer = setTimeout(() => {
    print(`the guest is ended: it has not switched itself off within ${limit} s`);
    qemu.kill('SIGKILL');
  }, limit * 1000);
  const end = (): void => void qemu.kill('SIGKILL');
  signal.addEventListener('abort', end);
  try {
    await closed;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', end);
  }
  return jobs.map((job, i) => {
    const path = join(share, `status-${i}`);
    const [status, seconds] = existsSync(path) ? readFileSync(path, 'utf8').split(' ').map(Number) : [];
    return { job, status, seconds: seconds ?? 0 };
  });
}

/** The last lines of the kernel's log of a guest that ran in `directory`. */
export function kernelLog(directory: string, lines: number): readonly string[] {
  const path = join(directory, 'share/kernel-log');
  return existsSync(path) ? readFileSync(path, 'utf8').trimEnd().split('\n').slice(-lines) : [];
}
