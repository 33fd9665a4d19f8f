/**
 * Maps memory for a device when its data path first uses it: registered external memory that the program has not mapped
 * itself. DPDK does this silently for drivers with their own memory regions (mlx5). Here it is off by default. It is
 * unrelated to devices that page on demand.
 */
import type { Mapping } from '../dma/mapping.js';
import type { Domain } from '../dma/domain.js';
import type { MapOptions } from '../dma/plan.js';
import { isDmaError, throwFirst, undoAll } from '../errors.js';
import type { AreaIndex } from '../memory/area-index.js';
import { RangeMap } from '../range-map.js';
import { isAddress, alignDown, alignUp, type Va } from '../units.js';
import type { MemoryPart } from '../memory/part.js';
import { STAYS } from '../stays.js';

/** See `Device.mapOnMiss`. */
export type MissUnit = 'area' | 'pages';

/** The parts of a device that mapping on demand needs. */
interface MissTaker {
  readonly domain: Pick<Domain, 'constraints'> | undefined;
  dmaMap(target: MemoryPart, options?: MapOptions): Mapping;
}

/**
 * The memory that is mapped on demand for one device. Created by `Device.mapOnMiss`. Close it after the device's last
 * queue is closed.
 */
export class MapOnMiss implements Disposable {
  /** @internal */
  readonly stays = STAYS;
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

  /** The current mappings, in address order. */
  get mappings(): readonly Mapping[] {
    return [...this.#mappings.values()].filter(({ live }) => live);
  }

  /**
   * Maps the memory around a range. After that the memory can not be unregistered before {@link MapOnMiss.unmap} or
   * `close`.
   *
   * @returns false if nothing was mapped: the range is not inside one external area, it overlaps an existing mapping,
   *   or it touches a device page that lies only partly in the area
   * @throws DmaError as `Device.dmaMap`, except EEXIST
   */
  map({ va, length }: MemoryPart): boolean {
    const end = va + length;
    const area = this.#areas.at(va);
    // The library maps owned memory and heaps for every device by itself.
    if (area?.owner !== 'external' || !isAddress(end) || !(length > 0) || end > area.range.end) return false;
    // If it is mapped on demand already, the failure has another cause.
    if (this.#mappings.at(va)?.live === true) return false;
    const unit = Math.max(area.pageSize, this.#device.domain?.constraints.granule ?? 0);
    // A device page that lies only partly in this area can not be mapped.
    const first = alignUp(area.range.start, unit);
    const last = alignDown(area.range.end, unit);
    const from = alignDown(va, unit);
    const to = alignUp(end, unit);
    if (from < first || to > last) return false;
    return (this.#unit === 'area' && this.#map(first, last)) || this.#map(from, to);
  }

  /**
   * Unmaps what was mapped on demand of this memory, so that it can be unregistered. If the data path uses the memory
   * again, it is mapped again.
   *
   * @throws the first error, after all mappings were tried; call it again to retry what is still mapped
   */
  unmap({ va, length }: MemoryPart): void {
    const undo: (() => void)[] = [];
    for (const mapping of this.#mappings.values())
      if (mapping.va < va + length && va < mapping.range.end) undo.unshift(() => this.#unmap(mapping));
    throwFirst(undoAll(undo), 'unmap');
  }

  /** Unmaps everything. @throws as {@link MapOnMiss.unmap} */
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
    // A mapping that ended by itself (its device was lost) may still be recorded here.
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
