/** QEMU's NVMe controller in a guest, by the driver of the library. */
import { createHash } from 'node:crypto';
import { nvmeDriver, type Nvme, type NvmeNamespace } from '../../src/entry/nvme.js';
import { Eal, type Device } from '../../src/index.js';
import { CHOICE } from './guest.js';
import { DEVICES } from './machine.js';

export const DISK = DEVICES.disk0;

/** A controller that is open, and its first namespace. Disposing it stops the Eal. */
export interface DiskRoom extends AsyncDisposable {
  readonly eal: Eal;
  readonly device: Device;
  readonly ssd: Nvme;
  readonly disk: NvmeNamespace;
}

/** Takes the controller. */
export async function openDisk(name = `pci:${DISK}`): Promise<DiskRoom> {
  const eal = await Eal.start({ iommu: CHOICE });
  try {
    const device = await eal.probe(name);
    const ssd = device.use(nvmeDriver);
    const [disk] = ssd.namespaces;
    return { eal, device, ssd, disk, [Symbol.asyncDispose]: () => eal.stop() };
  } catch (error) {
    await eal.stop();
    throw error;
  }
}

export const sum = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** Fills bytes with words that are other ones for each seed. */
export function fill(bytes: Uint8Array, seed: number): Uint8Array {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset & ~3, bytes.length >>> 2);
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(i + seed * 7919, 2654435761);
  return bytes;
}
