/** The memory of packets, of the kinds that testpmd has: owned by the library, of a heap over memory of the program, or external. */
import { MiB, type Device, type Eal, type Pool } from '../../index.js';

/** The kinds, with what they are. */
export const MEMORY_KINDS = {
  owned: 'memory of the library (testpmd: native)',
  heap: 'a heap over memory of the program',
  anon: 'external memory, registered, and mapped port by port',
  xmem: 'a heap over anonymous memory of ordinary pages',
  xmemhuge: 'a heap over anonymous hugepages',
} as const;

/** The name of a kind. */
export type MemoryKind = keyof typeof MEMORY_KINDS;

/** The names of the kinds. */
export const MEMORY_KIND_NAMES = Object.keys(MEMORY_KINDS) as readonly MemoryKind[];

/** The name of the pool, and of the zone that has the table of packets, by which other programs find them. */
export const PACKETS = 'packets';

const CACHE = 256;
const HEAP = 'extmem';
/** Room for what separates elements. */
const MORE = 1.25;

/** A pool of packets, and how ports get at it. Disposing it frees it. */
export interface PacketMemory extends Disposable {
  readonly pool: Pool;
  /** Maps it for a port, unless that has happened already. */
  map(device: Device): void;
}

/**
 * Makes a pool.
 *
 * @param elements number of packets of one segment
 * @param size bytes of a segment, with headroom
 * @throws DmaError as `pools.create`, `external.allocate` and `heaps.addMemory`
 */
export function packetMemory(eal: Eal, kind: MemoryKind, elements: number, size: number): PacketMemory {
  const common = { name: PACKETS, elements, elementSize: size, cache: cacheOf(elements) };
  if (kind === 'owned') return freed(eal.pools.create(common), [], () => undefined);
  const bytes = Math.ceil((elements * (size + 64) * MORE) / (2 * MiB)) * 2 * MiB;
  if (kind === 'anon') {
    const memory = eal.external.allocate(bytes, { source: 'anonymous', label: 'packets' });
    try {
      const pool = eal.pools.create({ ...common, external: [memory] });
      const undo = [() => memory.unregister()];
      return freed(pool, undo, (device) => {
        const mapping = device.dmaMapPool(pool);
        undo.unshift(() => mapping[Symbol.dispose]());
      });
    } catch (error) {
      memory.unregister();
      throw error;
    }
  }
  const hugePageSize = kind === 'xmemhuge' ? 2 * MiB : undefined;
  const memory = eal.external.allocate(bytes, {
    source: kind === 'heap' ? 'memfd' : 'anonymous',
    ...(hugePageSize === undefined ? {} : { hugePageSize }),
    label: 'packets',
  });
  const undo = [() => memory.unregister()];
  try {
    eal.heaps.create(HEAP);
    undo.unshift(() => eal.heaps.destroy(HEAP));
    eal.heaps.addMemory(HEAP, memory);
    undo.unshift(() => eal.heaps.removeMemory(HEAP, memory));
    return freed(eal.pools.create({ ...common, heap: HEAP }), undo, () => undefined);
  } catch (error) {
    for (const step of undo) step();
    throw error;
  }
}

function freed(pool: Pool, undo: readonly (() => void)[], map: (device: Device) => void): PacketMemory {
  return {
    pool,
    map,
    [Symbol.dispose]: () => {
      // Other programs see that it is gone.
      pool.free({ force: pool.threads > 0 && pool.threadsHere === 0 });
      for (const step of undo) step();
    },
  };
}

/** The cache of a pool: 1.5 times of it are at most what the pool has. */
function cacheOf(elements: number): number {
  return Math.min(CACHE, Math.floor(elements / 2));
}
