/**
 * From an address to the key that a device needs with it (for verbs, the lkey), on the data path of one queue.
 *
 * Each answer comes from the table of the domain: it takes some nanoseconds however much is mapped, and unmapped memory
 * is gone at once. Checking the queue's last hits first (as mlx5 of DPDK does, then eight more, then a sorted table)
 * halves the time for an address in the same region, but more than doubles it for any other, because of branch
 * misprediction. bench/lkey.ts compares this with C.
 *
 * Only the keys of all elements of a pool are cached, by number. They are dropped once anything was unmapped (the
 * generation of the table changes), before the next answer.
 */
import { invalid } from '../errors.js';
import type { Pool } from '../memory/pool/pool.js';
import { Range } from '../ranges.js';
import type { Va } from '../units.js';
import type { TranslationTable } from './translation-table.js';
import { STAYS } from '../stays.js';

/**
 * Byte order of keys: `native` numbers for work requests of verbs; `big-endian` for programs that write descriptors
 * directly: storing the number on this (little-endian) machine gives the bytes in the order that hardware (such as
 * mlx5) reads.
 */
export type KeyOrder = 'native' | 'big-endian';

/** Settings of a {@link KeyCache}. */
export interface KeyCacheOptions {
  /** The name of the device, for messages. */
  readonly device: string;
  /** The table of the device's domain. */
  readonly table: Pick<TranslationTable, 'keyOfRange' | 'generation'>;
  /** Default `native`. */
  readonly order?: KeyOrder;
  /**
   * Called if a range has no key; returns true if it may have one now (`MapOnMiss.map`). Its exceptions pass
   * through the look-up. Default: no second look.
   */
  readonly miss?: (va: number, length: number) => boolean;
}

/** What is needed of a pool. */
export type KeyedPool = Pick<Pool, 'name' | 'vas' | 'headroom' | 'elementSize' | 'live'>;

/** The keys for one queue. Holds nothing that must be released. */
export class KeyCache {
  /** @internal */
  readonly stays = STAYS;
  readonly #device: string;
  readonly #table: KeyCacheOptions['table'];
  readonly #isSwapped: boolean;
  readonly #miss: KeyCacheOptions['miss'];
  #pools = new WeakMap<KeyedPool, Uint32Array>();
  /** The table's generation when the first of `#pools` was made. */
  #generation = -1;

  /** @internal */
  constructor({ device, table, order = 'native', miss }: KeyCacheOptions) {
    this.#device = device;
    this.#table = table;
    this.#isSwapped = order === 'big-endian';
    this.#miss = miss;
  }

  /**
   * The key for an I/O. For hot paths: allocates nothing.
   *
   * @param va in [0, 2^53); callers check it
   * @param length bytes, not negative; all of them must be in one registration
   * @returns a key from 0 to 2^32 - 1 in the order of this cache; -1 if the I/O is not all in one registration
   * @throws DmaError only from registering on demand
   */
  keyOf(va: number, length: number): number {
    const key = this.#table.keyOfRange(va, length);
    if (key < 0) return this.#keyAfterMiss(va, length);
    return this.#isSwapped ? swapped(key) : key;
  }

  /**
   * The key of each element of a pool, in the order of this cache, for I/O inside an element or its headroom. The same
   * array until something is unmapped in the domain, so a call is cheap: ask once per burst, and do not keep the result
   * over an unmap.
   *
   * @throws DmaError EINVAL if the pool is freed, or an element is not all in one registration; the errors of
   *   registering on demand
   */
  keysOf(pool: Pick<Pool, 'name' | 'vas' | 'headroom' | 'elementSize' | 'live'>): Uint32Array {
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
    // Registering on demand unmaps nothing, so the generation is unchanged.
    this.#pools.set(pool, keys);
    return keys;
  }

  #keyAfterMiss(va: number, length: number): number {
    if (this.#miss?.(va, length) !== true) return -1;
    const key = this.#table.keyOfRange(va, length);
    return key < 0 || !this.#isSwapped ? key : swapped(key);
  }
}

/** A key with its bytes reversed. */
function swapped(key: number): number {
  return ((key << 24) | ((key & 0xff00) << 8) | ((key >>> 8) & 0xff00) | (key >>> 24)) >>> 0;
}
