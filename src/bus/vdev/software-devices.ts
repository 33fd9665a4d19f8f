/** The software devices that come with the library, and their address spaces. */
import { invalid } from '../../errors.js';
import { parseSize } from '../../units.js';
import { deviceModel, isDeviceName } from '../../vfio-user/devices/catalog.js';
import type { NvmeModelOptions } from '../../vfio-user/devices/nvme/options.js';
import { eduMaskBits } from '../../vfio-user/devices/edu-layout.js';
import type { ModelFactory } from '../../vfio-user/devices/model.js';
import { EmulatedIommu } from './emulated.js';
import { IdentitySpace } from './identity.js';
import { translatedDma, type BytesAt } from './translated-dma.js';
import type { VdevBusOptions } from './vdev-bus.js';

/** The models of vfio-user servers, as software devices. The edu driver has the same key for the same setting. */
export function softwareModel(kind: string, args: ReadonlyMap<string, string>): ModelFactory | undefined {
  if (kind === 'edu') return deviceModel(kind, { dmaMaskBits: eduMaskBits(args) });
  if (kind === 'nvme') return deviceModel(kind, diskOptions(args));
  return isDeviceName(kind) ? deviceModel(kind) : undefined;
}

/** The keys of a disk. */
function diskOptions(args: ReadonlyMap<string, string>): NvmeModelOptions {
  const number = (key: string): number | undefined => {
    const text = args.get(key);
    if (text === undefined) return undefined;
    const bytes = parseSize(text);
    if (bytes === undefined)
      throw invalid('open', `there is no ${key}=${text}`, { hint: 'sizes are written like 64MiB' });
    return bytes;
  };
  return { file: args.get('file'), size: number('size'), blockSize: number('blocksize') };
}

/**
 * Creates the address space of a device as its key `iommu` says: an emulated IOMMU, or none.
 *
 * @param pageSize in bytes
 */
export function softwareSpaces(pageSize: number, bytesAt: BytesAt): VdevBusOptions['space'] {
  return (args) => {
    const space = softwareSpace(args.get('iommu') ?? 'emulated', pageSize);
    return { space, dma: translatedDma(space, bytesAt) };
  };
}

function softwareSpace(kind: string, pageSize: number): EmulatedIommu | IdentitySpace {
  if (kind === 'emulated') return new EmulatedIommu({ granule: pageSize });
  if (kind === 'identity') return new IdentitySpace(pageSize);
  throw invalid('open', `iommu=${kind} is not supported`, { hint: 'use emulated or identity' });
}
