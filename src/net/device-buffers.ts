/** The addresses that one device uses for the buffers of packets. */
import { mustBeObject } from '../check.js';
import { invalid } from '../errors.js';
import type { Pool, PoolDevice } from '../memory/pool/pool.js';
import { STAYS } from '../stays.js';

/** What it needs of `Packets`. */
interface BuffersOf {
  readonly pool: Pool;
  placeOf(buffer: number): { readonly va: number; readonly length: number };
}

/** By buffer: where a device finds its bytes. Made by `Packets.buffersFor`; drivers use it for one burst. */
export class DeviceBuffers {
  /** @internal */
  readonly stays = STAYS;
  readonly #packets: BuffersOf;
  readonly #device: PoolDevice;
  #elements: Float64Array = new Float64Array(0);
  /** Buffers that were attached, as far as they were asked for. */
  readonly #attached = new Map<number, number>();
  #generation = -1;

  /** @internal */
  constructor(packets: BuffersOf, device: PoolDevice) {
    mustBeObject(device, 'a device', 'packets.buffersFor');
    this.#packets = packets;
    this.#device = device;
  }

  /** Itself, with the mappings of now. @throws DmaError as `pool.iovasFor` */
  refreshed(): this {
    this.#elements = this.#packets.pool.iovasFor(this.#device);
    const generation = this.#device.domain?.table.generation ?? -1;
    if (generation !== this.#generation) {
      this.#attached.clear();
      this.#generation = generation;
    }
    return this;
  }

  /** The IOVA of each element's offset 0, by its number: for loops that know that a packet shows its own bytes. */
  get elements(): Float64Array {
    return this.#elements;
  }

  /**
   * The IOVA of a buffer's offset 0; -1 if it is not mapped for the device in one piece.
   *
   * @throws DmaError EINVAL if there is no such buffer
   */
  of(buffer: number): number {
    return this.#elements[buffer] ?? this.#attached.get(buffer) ?? this.#lookUp(buffer);
  }

  #lookUp(buffer: number): number {
    const { va, length } = this.#packets.placeOf(buffer);
    if (length < 0) throw invalid('packets.buffersFor', `there is no buffer ${buffer}`);
    const iova = this.#device.domain?.table.iovaOfRange(va, Math.max(1, length)) ?? -1;
    this.#attached.set(buffer, iova);
    return iova;
  }

  /** @internal A buffer was detached: its number may be used for another one. */
  forget(buffer: number): void {
    this.#attached.delete(buffer);
  }
}
