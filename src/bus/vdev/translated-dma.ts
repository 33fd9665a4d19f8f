/**
 * How a device that is emulated in this process accesses memory: a translator finds the registered bytes of an IOVA.
 */
import { DmaError } from '../../errors.js';
import { Range } from '../../ranges.js';
import { isAddress, type Va } from '../../units.js';
import type { DeviceDma } from '../../vfio-user/devices/model.js';
import type { Translator } from './emulated.js';

/**
 * The bytes at [va, va + length) of registered memory; `undefined` if they do not allow that access, or are not in one
 * area.
 */
export type BytesAt = (va: Va, length: number, access: 'read' | 'write') => Uint8Array | undefined;

/** The DMA port of a device behind `translator`. */
export function translatedDma(translator: Translator, bytesAt: BytesAt): DeviceDma {
  /** All pieces of the range. They are found before the first byte moves. */
  const pieces = (iova: number, length: number, access: 'read' | 'write'): Uint8Array[] => {
    const found: Uint8Array[] = [];
    if (!isAddress(iova + length))
      throw new DmaError({ code: 'EFAULT', operation: 'device DMA', reason: 'the range ends beyond the last address' });
    for (let at = 0; at < length;) {
      const { va, length: here } = translator.translate(iova + at, length - at, access);
      const bytes = bytesAt(va, here, access);
      if (bytes === undefined) {
        const range = new Range(iova, length);
        throw new DmaError({
          code: 'EFAULT',
          operation: 'device DMA',
          range,
          reason: `the mapped memory is not registered, or does not allow the device to ${access}`,
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
    address(iova, length, access) {
      const { va, length: here } = translator.translate(iova, length, access);
      return here === length && bytesAt(va, length, access) !== undefined ? va : -1;
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
