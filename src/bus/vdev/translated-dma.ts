/** How a device that is emulated in this process reaches memory: through a translator, to views of registered areas. */
import { DmaError } from '../../errors.js';
import { Range } from '../../ranges.js';
import { isAddress, type Va } from '../../units.js';
import type { DeviceDma } from '../../vfio-user/devices/model.js';
import type { Translator } from './emulated.js';

/** The bytes at [va, va + length) of registered memory; `undefined` when there are none for that, or not in one area. */
export type BytesAt = (va: Va, length: number, access: 'read' | 'write') => Uint8Array | undefined;

/** The DMA port of a device behind `translator`. */
export function translatedDma(translator: Translator, bytesAt: BytesAt): DeviceDma {
  /** All of the range, piece by piece, before the first byte moves. */
  const pieces = (iova: number, length: number, access: 'read' | 'write'): Uint8Array[] => {
    const found: Uint8Array[] = [];
    if (!isAddress(iova + length))
      throw new DmaError({ code: 'EFAULT', operation: 'device DMA', reason: 'it goes past all addresses' });
    for (let at = 0; at < length;) {
      const { va, length: here } = translator.translate(iova + at, length - at, access);
      const bytes = bytesAt(va, here, access);
      if (bytes === undefined) {
        const range = new Range(iova, length);
        throw new DmaError({
          code: 'EFAULT',
          operation: 'device DMA',
          range,
          reason: `no registered memory is there to ${access}`,
        });
      }
      found.push(bytes);
      at += here;
    }
    return found;
  };
  return {
    direct(iova, length, access) {
      const [first, ...rest] = pieces(iova, length, access);
      return rest.length === 0 ? first : undefined;
    },
    read(iova, into) {
      let at = 0;
      for (const bytes of pieces(iova, into.length, 'read')) {
        into.set(bytes, at);
        at += bytes.length;
      }
      return undefined;
    },
    write(iova, from) {
      let at = 0;
      for (const bytes of pieces(iova, from.length, 'write')) {
        bytes.set(from.subarray(at, at + bytes.length));
        at += bytes.length;
      }
      return undefined;
    },
  };
}
