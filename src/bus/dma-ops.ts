/** Checks and helpers for the DMA calls that a bus has, and that a driver may bring instead. */
import type { AsyncDomainBackend, DomainBackend } from '../dma/backend.js';
import { invalid } from '../errors.js';
import type { Device, DmaOps } from './model.js';

/** Checks the calls that `owner` brings. @throws DmaError EINVAL when there is one without the others */
export function checkDmaOps(owner: string, dma: Partial<DmaOps> | undefined): void {
  if (dma === undefined) return;
  const required = ['dmaDomain', 'dmaMap', 'dmaUnmap'] as const;
  const missing = required.filter((call) => typeof dma[call] !== 'function');
  if (missing.length === 0) return;
  const hint = 'bring dmaDomain, dmaMap and dmaUnmap, or none of them to use those of the bus';
  throw invalid('register', `${owner} brings DMA calls of its own, but no ${missing.join(' and no ')}`, { hint });
}

/**
 * The DMA calls of a bus whose devices are in the address spaces that `backendOf` tells: each in one of its own, unless
 * `keyOf` gives several the same key, and `backendOf` the same space. For backends whose calls take no time.
 */
export function spacePerDevice(
  backendOf: (device: Device) => DomainBackend,
  keyOf: (device: Device) => string = (device) => device.name,
): DmaOps {
  return {
    dmaDomain: (device) => {
      const backend = backendOf(device);
      return {
        key: keyOf(device),
        kind: backend.kind,
        get constraints() {
          return backend.constraints;
        },
        lingering: (unneeded) => backend.lingering?.(unneeded),
        close: () => backend.close(),
      };
    },
    dmaMap: (device, segment) => backendOf(device).map(segment),
    dmaUnmap: (device, segment) => backendOf(device).unmap(segment),
  };
}

/** As {@link spacePerDevice}, for backends whose calls take time. */
export function asyncSpacePerDevice(
  backendOf: (device: Device) => AsyncDomainBackend,
  keyOf?: (device: Device) => string,
): DmaOps {
  return {
    ...spacePerDevice(backendOf, keyOf),
    dmaMapAsync: (device, segment) => backendOf(device).mapAsync(segment),
    dmaUnmapAsync: (device, segment) => backendOf(device).unmapAsync(segment),
  };
}
