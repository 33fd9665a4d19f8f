/**
 * Maps the memory of a pool for a device. The library maps its own memory and heaps for every device by itself.
 * External memory of a pool is the user's to map: these functions map all of it, because the pool uses all of it.
 *
 * Each area becomes one mapping, however many chunks the pool has in it. The time is proportional to the number of
 * chunks and areas.
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
import { STAYS } from '../stays.js';

/** The parts of a device that mapping a pool needs. */
interface PoolTaker {
  readonly name: string;
  dmaMap(target: MemoryPart, options?: MapOptions): Mapping;
  dmaMapAsync(target: MemoryPart, options?: MapAsyncOptions): Promise<Mapping>;
}

/** The parts of a pool that mapping it needs. */
export type MappablePool = Pick<Pool, 'name' | 'forDevices' | 'live' | 'chunks'>;

/**
 * The memory of a pool, mapped for one device. Disposing it unmaps it. Do so before the pool's memory is unregistered.
 */
export class PoolMapping implements Disposable, AsyncDisposable {
  /** @internal */
  readonly stays = STAYS;
  /**
   * One for each area of external memory, in the order of the pool's chunks; empty if the pool uses no external memory.
   */
  readonly mappings: readonly Mapping[];

  /** @internal */
  constructor(mappings: readonly Mapping[]) {
    this.mappings = mappings;
  }

  /**
   * Unmaps it, in reverse order.
   *
   * @throws the first error, after all mappings were tried; call it again to retry what is still mapped
   */
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
 * @param areas the areas of the `Eal` that the pool belongs to
 * @throws DmaError EINVAL if the pool was freed or is not for devices; else as `Device.dmaMap`
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
 * As {@link dmaMapPool}, without blocking the event loop, with progress over the whole pool, and with abort.
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

/** The external areas that contain the chunks, each once. */
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
