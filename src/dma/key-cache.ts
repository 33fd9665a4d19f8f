/**
 * From an address to the key that a device wants with it (for verbs, the lkey), on the data path of one queue.
 *
 * The answer comes from the table of the domain, each time. That takes some nanoseconds however much is mapped, and what
 * was unmapped is gone from it at once. To look first at what the queue hit last (mlx5 of DPDK does, and then at eight more,
 * and at a sorted table) saves half of that for an address in the same region, and makes any other take more than twice as
 * long, because the processor guesses wrong. bench/lkey.ts measures it against C.
 *
 * What is worth keeping are the keys of all elements of a pool, by number: then there is nothing to look up. They are
 * dropped when anything was unmapped since (the generation of the table tells), before the next answer.
 */
import { invalid } from '../errors.js';
import { Range } from '../ranges.js';
import type { Va } from '../units.js';
import type { TranslationTable } from './translation-table.js';

/**
 * How keys are wanted: `native`, as numbers, for work requests of verbs; `big-endian`, so that a store of the number on this
 * (little-endian) machine puts the bytes as hardware reads them (mlx5 and its like), for who writes descriptors directly.
 */
export type KeyOrder = 'native' | 'big-endian';

/** Settings of a {@link KeyCache}. */
export interface KeyCacheOptions {
  /** What messages call the owner: the name of the device. */
  readonly device: string;
  /** Of the domain that the device is in. */
  readonly table: Pick<TranslationTable, 'keyOfRange' | 'generation'>;
  /** Default `native`. */
  readonly order?: KeyOrder;
  /**
   * Asked when a range has no key: true when it may have one now, and is worth another look (`MapOnMiss.register`). What it
   * throws is thrown by the look-up. Default: nothing can be done.
   */
  readonly miss?: (va: number, length: number) => boolean;
}

/** A pool, as far as its keys need it. */
export interface KeyedPool {
  readonly name: string;
  /** The address of each element, behind its headroom. */
  readonly vas: Float64Array;
  /** bytes */
  readonly headroom: number;
  /** bytes, without the headroom */
  readonly elementSize: number;
  readonly live: boolean;
}

/** The keys for one queue; see the head of the file. It holds nothing that would have to be given back. */
export class KeyCache {
  readonly #device: string;
  readonly #table: KeyCacheOptions['table'];
  readonly #isSwapped: boolean;
  readonly #miss: KeyCacheOptions['miss'];
  #pools = new WeakMap<KeyedPool, Uint32Array>();
  /** Of the table, when the first of `#pools` was made. */
  #generation = -1;

  constructor({ device, table, order = 'native', miss }: KeyCacheOptions) {
    this.#device = device;
    this.#table = table;
    this.#isSwapped = order === 'big-endian';
    this.#miss = miss;
  }

  /**
   * The key for an I/O; for hot paths: it allocates nothing.
   *
   * @param va in [0, 2^53); check it at the edge
   * @param length bytes, not negative, all of which have to be in one registration
   * @returns a key from 0 to 2^32 - 1 in the order of this cache; -1 when the I/O is not, or not all, in one registration
   * @throws DmaError only of registering on demand
   */
  keyOf(va: number, length: number): number {
    const key = this.#table.keyOfRange(va, length);
    if (key < 0) return this.#keyAfterMiss(va, length);
    return this.#isSwapped ? swapped(key) : key;
  }

  /**
   * The key of each element of a pool, in the order of this cache; an I/O inside an element, or its headroom, has that key.
   * The same array until something is unmapped in the domain, so that a call costs next to nothing: ask once a burst, and do
   * not keep the result over an unmap.
   *
   * @throws DmaError EINVAL when the pool is freed, or an element of it is not all in one registration; of registering on
   *   demand
   */
  keysOf(pool: KeyedPool): Uint32Array {
    const { generation } = this.#table;
    if (generation !== this.#generation) {
      this.#pools = new WeakMap();
      this.#generation = generation;
    }
    const known = this.#pools.get(pool);
    if (known !== undefined && pool.live) return known;
    const { name, vas, headroom, elementSize, live } = pool;
    if (!live) throw invalid('keysOf', `the pool ${name} was freed`, { device: this.#device });
    const keys = new Uint32Array(vas.length);
    for (let element = 0; element < keys.length; element++) {
      const va = vas[element] - headroom;
      const key = this.keyOf(va, headroom + elementSize);
      if (key < 0)
        throw invalid('keysOf', `element ${element} of the pool ${name} is not in one registration`, {
          device: this.#device,
          range: new Range(va as Va, headroom + elementSize),
          hint: 'map the memory of the pool first: dmaMapPool',
        });
      keys[element] = key;
    }
    // Registering on demand unmaps nothing, so that the generation is still the same.
    this.#pools.set(pool, keys);
    return keys;
  }

  #keyAfterMiss(va: number, length: number): number {
    if (this.#miss?.(va, length) !== true) return -1;
    const key = this.#table.keyOfRange(va, length);
    return key < 0 || !this.#isSwapped ? key : swapped(key);
  }
}

/** A key with its bytes the other way round. */
function swapped(key: number): number {
  return ((key << 24) | ((key & 0xff00) << 8) | ((key >>> 8) & 0xff00) | (key >>> 24)) >>> 0;
}
