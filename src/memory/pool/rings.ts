/** The rings of one `Eal`: creates them and finds them by name. */
import { mustBeObject, mustBeString, mustBeWhole, optionsOf, type Gate, type Shape } from '../../check.js';
import { DmaError, invalid, throwFirst, undoAll } from '../../errors.js';
import { isSharedArrayBuffer } from '../../realms.js';
import { shortForm } from '../../short-form.js';
import { STAYS } from '../../stays.js';
import { Holds } from '../shared/holds.js';
import { sharedBuffers, type WordMemory } from '../shared/words.js';
import { Pool } from './pool.js';
import type { Pools, PoolsSharing } from './pools.js';
import { Ring, type RingEvents, type RingPlatform, type RingSharing } from './ring.js';
import { bytesForRing, formatRing, MOST_SLOTS, type RingSide } from './ring-words.js';
import { placesOf } from './word-places.js';

/** The properties of a ring. */
export interface RingOptions {
  /** How many numbers it can hold, 1 to 2^28. */
  readonly size: number;
  /** Do many threads enqueue, or one? One takes no lock. Default `many`. */
  readonly producers?: RingSide;
  /** Do many threads dequeue, or one? Default `many`. */
  readonly consumers?: RingSide;
  /**
   * The pool of the same `Eal` whose elements it carries: they are checked, they belong to who takes them out, and none is lost when a thread
   * ends.
   */
  readonly pool?: Pool;
}

const SIDES = ['many', 'one'] as const;
const RING_OPTIONS: Shape<RingOptions> = { size: 'number', producers: SIDES, consumers: SIDES, pool: Pool };

/** The rings of one `Eal`. */
export class Rings {
  /** @internal */
  readonly stays = STAYS;
  readonly #platform: RingPlatform;
  readonly #pools: Pools;
  readonly #sharing: PoolsSharing;
  readonly #gate: Gate | undefined;
  readonly #rings = new Map<string, Ring>();

  /** @internal */
  constructor(platform: RingPlatform, pools: Pools, sharing: PoolsSharing, gate?: Gate) {
    this.#platform = platform;
    this.#pools = pools;
    this.#sharing = sharing;
    this.#gate = gate;
  }

  /** All rings, in the order of creation. */
  [Symbol.iterator](): IterableIterator<Ring> {
    return this.#rings.values();
  }

  /** The ring with that name, if any. @throws DmaError EINVAL if the name is not a string */
  find(name: string): Ring | undefined {
    mustBeString(name, 'the name of a ring', 'rings.find');
    return this.#rings.get(name);
  }

  /**
   * Creates an empty ring (DPDK: `rte_ring_create`).
   *
   * @param name a unique name
   * @throws DmaError EINVAL for impossible values; EEXIST for a name that is in use; ENOMEM if there is no room
   */
  create(name: string, options: RingOptions): Ring {
    const operation = 'rings.create';
    this.#gate?.(operation);
    mustBeString(name, 'the name of a ring', operation);
    if (name === '')
      throw invalid(operation, 'the name of a ring is empty', { hint: 'rings.find(name) finds it by name' });
    mustBeObject(options, 'options', operation);
    const { size, producers = 'many', consumers = 'many', pool } = optionsOf(options, RING_OPTIONS, operation);
    mustBeWhole(size, 1, MOST_SLOTS, 'the option "size"', operation);
    if (pool?.live === false) throw invalid(operation, `the pool ${pool.name} was freed`);
    // Who brings elements back after a death has to know all rings of the pool.
    if (pool !== undefined && this.#pools.find(pool.name) !== pool)
      throw invalid(operation, `the pool ${pool.name} was not made by this Eal`, {
        hint: 'make the ring where the pool was made, by the same Eal, and share the ring',
      });
    const other = this.#rings.get(name);
    if (other !== undefined)
      throw new DmaError({
        code: 'EEXIST',
        operation,
        reason: `a ring ${JSON.stringify(name)} exists already`,
        hint: `it holds ${other.size} numbers: rings.find(name) returns it; free it, or use another name`,
      });
    const source = this.#sharing.words ?? sharedBuffers;
    const memory = source.allocate(bytesForRing(size));
    const words = formatRing(memory, size, producers, consumers);
    let shared: RingSharing | undefined;
    const share = (events: RingEvents): RingSharing => (shared = this.#share(name, memory, events, pool));
    const end = (): void => {
      this.#rings.delete(name);
      pool?.rings.delete(ring);
      shared?.share?.ended();
      const threads = shared?.words.threads;
      const steps = [() => source.free(memory), () => threads !== undefined && source.free(threads)];
      throwFirst(undoAll(steps), 'ring.free');
    };
    const ring = new Ring({ name, words, platform: this.#platform, pool, share, end, made: true });
    this.#rings.set(name, ring);
    pool?.stack.noteRing();
    pool?.rings.add(ring);
    return ring;
  }

  /** Makes what other threads and processes attach to. */
  #share(name: string, memory: WordMemory, events: RingEvents, pool: Pool | undefined): RingSharing {
    const { holders: holdersOf, shares, port, words: source = sharedBuffers } = this.#sharing;
    const holders = holdersOf();
    const poolOf = pool?.share();
    const threads = source.allocate(Holds.bytesFor(holders.capacity));
    try {
      const holds = Holds.create(threads, holders.capacity, holders.enter());
      const words = { words: memory, threads, holders: holders.buffer };
      const kind = 'ring' as const;
      const told = { kind, name, ...events, pool: poolOf };
      if (shares === undefined) return { holders, holds, words, description: { ...told, ...words } };
      const what = `the ring ${name}`;
      // Whoever has another pool than this one does not open it.
      const facts = { name, ...events, pool: poolOf?.sealed?.seal ?? null };
      const keepers = poolOf?.sealed?.keepers ?? [];
      if (isSharedArrayBuffer(memory) && isSharedArrayBuffer(threads) && isSharedArrayBuffer(words.holders)) {
        const parts = { kind, facts, holds: threads, holders: words.holders, more: [memory], keepers };
        const share = shares.adopt<Ring>(what, holds, parts);
        return { holders, holds, words, share, description: { ...told, ...words, sealed: share.description } };
      }
      const places = placesOf(port, words);
      const share = shares.add<Ring>({ kind, what, facts: { ...facts, ...places }, keepers }, 'ring.share');
      const description = { ...told, ...places, sealed: share.description };
      return { holders, holds, words, share, isByPlace: true, description };
    } catch (error) {
      source.free(threads);
      throw error;
    }
  }

  /** @internal A holder that has ended has nothing of any ring any more. */
  forget(id: number): void {
    for (const ring of this.#rings.values()) ring.forget(id);
  }

  /** @internal Frees all rings, except those that other threads of this process have attached to. @returns the errors */
  close(): unknown[] {
    return [...this.#rings.values()]
      .reverse()
      .flatMap((ring) => undoAll([() => ring.free({ force: ring.threadsHere === 0 })]));
  }
}

shortForm(Rings, 'Rings', (rings) => ({ names: [...rings].map(({ name }) => name) }));
