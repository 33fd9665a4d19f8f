/**
 * The memory of a pool, mapped for a device. What the library owns, and heaps, are mapped for every device anyway; the
 * external memory of a pool is the user's to map, and this maps it, as a whole: the pool has all of it for itself.
 *
 * Each area is one mapping, however many chunks the pool has in it: what is next to each other is merged. It takes time in
 * proportion to the number of chunks and areas.
 */
import type { MapAsyncOptions } from '../dma/domain.js';
import type { Mapping } from '../dma/mapping.js';
import type { MapOptions } from '../dma/plan.js';
import { invalid, throwFirst, undoAll, withUndo } from '../errors.js';
import type { Area } from '../memory/area.js';
import { progressOf, type Progress } from '../long-work.js';
import type { AreaIndex } from '../memory/area-index.js';
import type { Pool } from '../memory/pool/pool.js';
import { formatSize } from '../units.js';
import { shortForm } from '../short-form.js';
import type { MemoryPart } from '../memory/part.js';

/** A device, as far as mapping a pool for it goes. */
interface PoolTaker {
  readonly name: string;
  dmaMap(target: MemoryPart, options?: MapOptions): Mapping;
  dmaMapAsync(target: MemoryPart, options?: MapAsyncOptions): Promise<Mapping>;
}

/** A pool, as far as mapping it goes. */
export type MappablePool = Pick<Pool, 'name' | 'forDevices' | 'live' | 'chunks'>;

/** The memory of a pool, mapped for one device. Disposing it unmaps it; do that before the pool's memory is unregistered. */
export class PoolMapping implements Disposable, AsyncDisposable {
  /** One for each area of external memory, in the order of the pool's chunks; none for memory that every device has. */
  readonly mappings: readonly Mapping[];

  /** @internal */
  constructor(mappings: readonly Mapping[]) {
    this.mappings = mappings;
  }

  /** Unmaps it, in reverse order. @throws the first error, once all was tried; what is still mapped can be tried again */
  unmap(): void {
    throwFirst(undoAll(this.mappings.toReversed().map((mapping) => () => mapping[Symbol.dispose]())), 'unmap');
  }

  /** As {@link PoolMapping.unmap}, without blocking the event loop if the address space supports that. */
  async unmapAsync(): Promise<void> {
    const errors: unknown[] = [];
    for (const mapping of this.mappings.toReversed())
      await mapping[Symbol.asyncDispose]().catch((error: unknown) => errors.push(error));
    throwFirst(errors, 'unmap');
  }

  /** As {@link PoolMapping.unmap}. */
  [Symbol.dispose](): void {
    this.unmap();
  }

  /** As {@link PoolMapping.unmapAsync}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.unmapAsync();
  }
}

shortForm(PoolMapping, 'PoolMapping', ({ mappings }) => ({
  mappings: mappings.length,
  live: mappings.some(({ live }) => live),
}));

/**
 * Maps the memory of a pool for a device, all or nothing.
 *
 * @param areas of the `Eal` that the pool is of
 * @throws DmaError EINVAL when the pool is freed or not for devices; as `Device.dmaMap`
 */
export function dmaMapPool(
  device: Pick<PoolTaker, 'name' | 'dmaMap'>,
  pool: MappablePool,
  areas: AreaIndex,
  options?: Pick<MapOptions, 'access'>,
): PoolMapping {
  const mappings: Mapping[] = [];
  try {
    for (const target of targetsOf(device, pool, areas)) mappings.push(device.dmaMap(target, options));
    return new PoolMapping(mappings);
  } catch (error) {
    throw withUndo(error, 'dmaMapPool', undoAll([() => new PoolMapping(mappings).unmap()]));
  }
}

/**
 * As {@link dmaMapPool}, without blocking, with progress over all of it, and abort.
 */
export async function dmaMapPoolAsync(
  device: Pick<PoolTaker, 'name' | 'dmaMapAsync'>,
  pool: MappablePool,
  areas: AreaIndex,
  { onProgress, ...options }: Omit<MapAsyncOptions, 'iova'> = {},
): Promise<PoolMapping> {
  const mappings: Mapping[] = [];
  try {
    const targets = targetsOf(device, pool, areas);
    const report = progressOf(
      onProgress,
      targets.reduce((sum, { length }) => sum + length, 0),
    );
    let before = 0;
    for (const target of targets) {
      const done = before;
      const onPart = ({ doneBytes }: Progress): void => report(done + doneBytes);
      mappings.push(await device.dmaMapAsync(target, { ...options, onProgress: onPart }));
      before += target.length;
    }
    return new PoolMapping(mappings);
  } catch (error) {
    const undo: unknown[] = [];
    await new PoolMapping(mappings).unmapAsync().catch((failed: unknown) => undo.push(failed));
    throw withUndo(error, 'dmaMapPool', undo);
  }
}

/** The areas that the chunks are in and that nobody has mapped for every device, each once. */
function targetsOf({ name }: Pick<PoolTaker, 'name'>, pool: MappablePool, areas: AreaIndex): MemoryPart[] {
  const refuse = (why: string): Error => invalid('dmaMapPool', `the pool ${pool.name} ${why}`, { device: name });
  if (!pool.live) throw refuse('was freed');
  if (!pool.forDevices) throw refuse('is not for devices');
  const found = new Set<Area>();
  let last: Area | undefined;
  for (const { va, length } of pool.chunks) {
    if (last !== undefined && va >= last.range.start && va + length <= last.range.end) continue;
    last = areas.at(va);
    if (last === undefined) throw refuse(`has ${formatSize(length)} that are not registered here`);
    found.add(last);
  }
  return [...found]
    .filter(({ owner }) => owner === 'external')
    .map(({ range }) => ({ va: range.start, length: range.length }));
}
