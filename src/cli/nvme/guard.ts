/** Before data is destroyed: what would be lost, and did the user say that this is meant? */
import { Option } from 'commander';
import { DmaError, formatSize } from '../../index.js';
import type { NvmeNamespace } from '../../entry/nvme.js';
import { namespaceOf, type OpenController } from './open.js';
import { SIGNATURE_BYTES, signaturesOf } from './signatures.js';

/** `--force`. */
export function forceOption(): Option {
  return new Option('--force', 'destroy data on a PCI device; without it, what would be destroyed is told instead');
}

/** What is destroyed. */
export interface Destruction {
  /** What will be done, as a noun phrase: `writing 8 blocks at LBA 0`. */
  readonly what: string;
  /** The namespace; `undefined`: all of them. */
  readonly nsid?: number;
}

/**
 * Goes on only when nothing real can be lost by mistake: what is served over vfio-user or emulated here was made for that, but
 * a PCI device is a real disk.
 *
 * @throws DmaError EPERM, which names what would be destroyed: size, contents and blocks in use
 */
export async function mayDestroy(
  { eal, device, ssd }: OpenController,
  { what, nsid }: Destruction,
  force: boolean | undefined,
): Promise<void> {
  if (device.bus.name !== 'pci' || force === true) return;
  const namespaces = nsid === undefined ? ssd.namespaces : [namespaceOf(ssd, nsid)];
  const contents: string[] = [];
  for (const ns of namespaces) contents.push(await contentsOf(eal, ns));
  throw new DmaError({
    code: 'EPERM',
    operation: 'nvme',
    device: device.name,
    reason: `${what} would destroy data: ${contents.join('; ')}`,
    hint: '--force does it all the same',
  });
}

/** `namespace 1 of 64 MiB, all blocks in use, with an XFS file system` */
async function contentsOf(eal: OpenController['eal'], ns: NvmeNamespace): Promise<string> {
  const { used } = ns.identity;
  const inUse = used >= ns.blocks ? 'all blocks in use' : `${formatSize(used * ns.blockSize)} in use`;
  const found = await signaturesOn(eal, ns).catch(() => undefined);
  const seen =
    found === undefined
      ? 'whose first blocks can not be read'
      : found.length === 0
        ? 'with no file system or partition table that is known here'
        : `with ${found.join(' and ')}`;
  return `namespace ${ns.id} of ${formatSize(ns.size)}, ${inUse}, ${seen}`;
}

async function signaturesOn(eal: OpenController['eal'], ns: NvmeNamespace): Promise<string[]> {
  const blocks = Math.min(ns.blocks, Math.ceil(SIGNATURE_BYTES / ns.blockSize));
  const memory = eal.malloc(blocks * ns.transferSize, { align: 4096 });
  try {
    await ns.read({ lba: 0, blocks, into: memory });
    return signaturesOf(memory.bytes(), ns.blockSize);
  } finally {
    memory.free();
  }
}
