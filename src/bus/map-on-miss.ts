/**
 * Memory that is mapped for a device when its data path meets it: registered external memory that the program has not mapped
 * itself. DPDK does this silently for drivers with regions of their own (mlx5); here it is off unless it is asked for. (It
 * has nothing to do with devices that page on demand.)
 */
import type { Mapping } from '../dma/mapping.js';
import type { Domain } from '../dma/domain.js';
import type { MapOptions } from '../dma/plan.js';
import { isDmaError, throwFirst, undoAll } from '../errors.js';
import type { AreaIndex } from '../memory/area-index.js';
import { RangeMap } from '../range-map.js';
import { isAddress, alignDown, alignUp, type Va } from '../units.js';
import type { MemoryPart } from '../memory/part.js';

/** See `Device.mapOnMiss`. */
export type MissUnit = 'area' | 'pages';

/** A device, as far as mapping on demand for it goes. */
interface MissTaker {
  readonly domain: Pick<Domain, 'constraints'> | undefined;
  dmaMap(target: MemoryPart, options?: MapOptions): Mapping;
}

/** What is mapped on demand for one device. Made by `Device.mapOnMiss`. It goes with the device's queues: close it after the last of them. */
export class MapOnMiss implements Disposable {
  readonly #device: MissTaker;
  readonly #areas: AreaIndex;
  readonly #unit: MissUnit;
  readonly #mappings = new RangeMap<Mapping>();

  /** @internal */
  constructor(device: MissTaker, areas: AreaIndex, unit: MissUnit = 'area') {
    this.#device = device;
    this.#areas = areas;
    this.#unit = unit;
  }

  /** What is mapped now, in address order. */
  get mappings(): readonly Mapping[] {
    return [...this.#mappings.values()].filter(({ live }) => live);
  }

  /**
   * Maps what a range is in. The memory can not be unregistered then, before {@link MapOnMiss.unmap} or `close`.
   *
   * @returns false when there is nothing to be mapped: it is not in one area, which is external, it overlaps with what is
   *   mapped already, or it is on a page of the device that is not all in that area
   * @throws DmaError as `Device.dmaMap`, but EEXIST
   */
  map({ va, length }: MemoryPart): boolean {
    const end = va + length;
    const area = this.#areas.at(va);
    // What is owned or in a heap is mapped for every device by the library.
    if (area?.owner !== 'external' || !isAddress(end) || !(length > 0) || end > area.range.end) return false;
    // Mapped on demand already, so that mapping it is not what is missing.
    if (this.#mappings.at(va)?.live === true) return false;
    const unit = Math.max(area.pageSize, this.#device.domain?.constraints.granule ?? 0);
    // Pages of the device that are only in part of this area can not be mapped.
    const first = alignUp(area.range.start, unit);
    const last = alignDown(area.range.end, unit);
    const from = alignDown(va, unit);
    const to = alignUp(end, unit);
    if (from < first || to > last) return false;
    return (this.#unit === 'area' && this.#map(first, last)) || this.#map(from, to);
  }

  /**
   * Unmaps what was mapped on demand of this memory, so that it can be unregistered. Its address is mapped again when the
   * data path meets it again.
   *
   * @throws the first error, once all was tried; what is still mapped then can be tried again
   */
  unmap({ va, length }: MemoryPart): void {
    const undo: (() => void)[] = [];
    for (const mapping of this.#mappings.values())
      if (mapping.va < va + length && va < mapping.range.end) undo.unshift(() => this.#unmap(mapping));
    throwFirst(undoAll(undo), 'unmap');
  }

  /** Unmaps all of it. @throws as {@link MapOnMiss.unmap} */
  close(): void {
    this.unmap({ va: 0, length: Infinity });
  }

  /** As {@link MapOnMiss.close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  #map(start: number, end: number): boolean {
    const target = { va: start as Va, length: end - start };
    let mapping: Mapping;
    try {
      mapping = this.#device.dmaMap(target);
    } catch (error) {
      if (isDmaError(error, 'EEXIST')) return false;
      throw error;
    }
    // A mapping that has ended without being asked to may be in the way.
    for (let old = this.#overlapping(target); old !== undefined; old = this.#overlapping(target))
      this.#mappings.delete(old.va);
    this.#mappings.insert(target.va, target.length, mapping);
    return true;
  }

  #unmap(mapping: Mapping): void {
    mapping[Symbol.dispose]();
    this.#mappings.delete(mapping.va);
  }

  #overlapping({ va, length }: MemoryPart): Mapping | undefined {
    return this.#mappings.overlapping(va, va + length);
  }
}
