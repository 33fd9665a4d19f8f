/**
 * The IOVAs that all devices of a domain can emit: the windows of its address space, clipped to the narrowest device.
 */
import { Range } from '../ranges.js';
import type { Iova } from '../units.js';
import type { Constraints } from './address-space.js';

/**
 * The address bits of the devices of a domain. Adding and removing a device takes O(1), apart from a scan of the few
 * distinct widths.
 */
export class Reach {
  /** How many bits of an IOVA each device can emit. */
  readonly #bits = new Map<string, number>();
  /** Number of devices by width in bits. */
  readonly #widths = new Map<number, number>();
  /** Bits that every device can emit. */
  #least = Infinity;
  /** The last result of `clip`, and its inputs. */
  #last: { readonly from: Constraints; readonly bits: number; readonly to: Constraints } | undefined;

  add(device: string, bits: number): void {
    this.delete(device);
    this.#bits.set(device, bits);
    this.#widths.set(bits, (this.#widths.get(bits) ?? 0) + 1);
    this.#least = Math.min(this.#least, bits);
  }

  delete(device: string): void {
    const bits = this.#bits.get(device);
    if (bits === undefined) return;
    this.#bits.delete(device);
    const others = (this.#widths.get(bits) ?? 1) - 1;
    if (others > 0) this.#widths.set(bits, others);
    else this.#widths.delete(bits);
    this.#least = Math.min(Infinity, ...this.#widths.keys());
  }

  /** `constraints`, with the windows that every device reaches; the same object as long as nothing has changed. */
  clip(constraints: Constraints): Constraints {
    const bits = this.#least;
    if (bits === Infinity) return constraints;
    const last = this.#last;
    if (last?.from === constraints && last.bits === bits) return last.to;
    const isKnown = last?.from.windows === constraints.windows && last.bits === bits;
    const windows = isKnown ? last.to.windows : below(constraints.windows, bits);
    const { granule, entryLimit, iova, partialUnmap, pins, regions } = constraints;
    const to = { granule, windows, entryLimit, iova, partialUnmap, pins, regions };
    this.#last = { from: constraints, bits, to };
    return to;
  }
}

/** The parts of `windows` that addresses of `bits` bits can reach. */
function below(windows: readonly Range<Iova>[], bits: number): Range<Iova>[] {
  const reach = new Range(0 as Iova, 2 ** Math.min(bits, 52));
  return windows.flatMap((window) => window.intersection(reach) ?? []);
}
