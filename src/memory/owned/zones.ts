/**
 * Memory with names: a part of a program, or a driver, reserves a zone, and others look it up by name. A zone is a
 * block of a heap, so every device reaches it, now and later. DPDK calls it a memzone.
 */
import { ended, mustBe, mustBeNumber, mustBeString, optionsOf } from '../../check.js';
import { DmaError, invalid, isDmaError } from '../../errors.js';
import { longWorkOf, type LongWorkOptions } from '../../long-work.js';
import { show } from '../../show.js';
import { runSteps, runStepsAsync, type Steps } from '../../steps.js';
import { alignUp, hex, isAddress, type Iova, type Va } from '../../units.js';
import { allocatingFrom, chooseHeaps, toldOf, type Allocation, type HeapSources } from './heap-choice.js';
import { MALLOC_OPTIONS, type MallocOptions } from '../heap/malloc-request.js';
import type { Block, Heap } from '../heap/heap.js';
import type { AttachedMemory } from '../attached-memory.js';
import type { LendOptions, Pin } from '../pins.js';
import type { Shared } from '../shared/shared.js';
import { shortForm } from '../../short-form.js';
import { STAYS } from '../../stays.js';

/** Longest name in bytes, as in DPDK (RTE_MEMZONE_NAMESIZE). */
const LONGEST_NAME = 31;
/** Lengths are multiples of this, in bytes. */
const LINE = 64;

/** A named block of memory. Disposing it frees the block and the name. */
export class Zone implements Disposable {
  /** @internal */
  readonly stays = STAYS;
  readonly name: string;
  /** NUMA node; -1 if unknown */
  readonly node: number;
  readonly #block: Block;
  readonly #zones: Zones;

  /** @internal made by {@link Zones.reserve} */
  constructor(name: string, block: Block, zones: Zones) {
    this.name = name;
    this.node = block.area.node;
    this.#block = block;
    this.#zones = zones;
  }

  /** The heap that it was allocated from. */
  get heap(): Heap {
    return this.#block.heap;
  }

  /** Address of the first byte. */
  get va(): Va {
    return this.#block.va;
  }

  /** bytes: what was asked for, rounded up to a multiple of 64 */
  get length(): number {
    return this.#block.length;
  }

  /** Page size of its memory, in bytes. */
  get pageSize(): number {
    return this.#block.room.pageSize;
  }

  /** Can it be used? False after it was freed, or after its `Eal` stopped. */
  get live(): boolean {
    return this.#block.live;
  }

  /**
   * The IOVA that every device uses for it, if there is one: see `Block.iova`. @throws DmaError EINVAL once it is freed
   */
  get iova(): Iova | undefined {
    return this.#block.iova;
  }

  /**
   * The bytes of the zone, or of a part. Once the zone is freed, the view is empty. For work in other threads use
   * {@link Zone.lend}.
   *
   * @param offset bytes from the start
   * @param length bytes; default: all that follow `offset`
   * @throws DmaError EINVAL if the part is not inside, the zone is freed, or its ArrayBuffer was transferred
   */
  bytes(offset?: number, length?: number): Uint8Array {
    return this.#block.bytes(offset, length);
  }

  /** Runs `work` on the bytes of the zone, and pins it meanwhile: see `Block.lend`. */
  async lend<T>(work: (bytes: Uint8Array) => T, options?: LendOptions): Promise<Awaited<T>> {
    return this.#block.lend(work, options);
  }

  /** Pins the zone while something works on its views: `free` throws EBUSY until the pin is disposed. */
  pin(reason?: string): Pin {
    return this.#block.pin(reason);
  }

  /** What another thread needs to use the zone: see `Block.share`. There `name` is its name. */
  share(): Shared<AttachedMemory> {
    return this.#block.shareAs(this.name);
  }

  /**
   * Frees the memory and the name. When it throws, nothing has changed.
   *
   * @param options.wipe fill it with zeros before? Default false: the next owner of the memory may see its content
   * @throws DmaError EINVAL if it was freed before; EBUSY while it is pinned
   */
  free(options?: { readonly wipe?: boolean }): void {
    this.#block.free(options);
    this.#zones.forget(this);
  }

  /** Frees it, unless it was freed before. */
  [Symbol.dispose](): void {
    if (this.live) this.free();
  }
}

shortForm(Zone, 'Zone', ({ name, heap, va, length, live }) => ({ name, heap: heap.name, va: hex(va), length, live }));

/** The zones of one `Eal`, in any number. A look-up by name takes constant time. */
export class Zones {
  /** @internal */
  readonly stays = STAYS;
  readonly #sources: HeapSources;
  /** Includes zones whose blocks were freed in another way than by {@link Zone.free}. */
  readonly #zones = new Map<string, Zone>();

  /** @internal */
  constructor(sources: HeapSources) {
    this.#sources = sources;
  }

  /** The number of zones. */
  get size(): number {
    return [...this].length;
  }

  /** All zones, in the order they were reserved. */
  *[Symbol.iterator](): IterableIterator<Zone> {
    for (const zone of this.#zones.values()) if (zone.live) yield zone;
  }

  /** The zone of that name, if there is one. @throws DmaError EINVAL if it is not a valid name */
  find(name: string): Zone | undefined {
    mustBeString(name, 'the name of a zone', 'zones.find');
    const zone = this.#zones.get(name);
    return zone?.live === true ? zone : undefined;
  }

  /**
   * Reserves memory under a name.
   *
   * @param name 1 to 31 bytes
   * @param length bytes, rounded up to a multiple of 64. 0: `boundary` bytes if a boundary is given, else the largest
   *   block that is free now, without growing a heap
   * @throws DmaError, in this order: EINVAL for an empty name, ENAMETOOLONG, EEXIST for a name that is in use; then
   *   those of `Heap.malloc`: EINVAL for an invalid length, alignment, boundary, node or name of a heap, ENOENT if the
   *   heap does not exist, ENOMEM. When it throws, nothing is reserved.
   */
  reserve(name: string, length: number, options?: MallocOptions): Zone {
    const operation = 'zones.reserve';
    this.#sources.gate?.(operation);
    return runSteps(this.#reserving(name, length, options, operation), (allocation) => allocation.now());
  }

  /**
   * As {@link Zones.reserve}, without blocking the event loop: see `Heap.mallocAsync`. The name is taken when the
   * memory is there.
   *
   * @throws DmaError as `reserve`; ECANCELED, after at most one more piece, when `options.signal` is aborted or the Eal
   *   stops
   */
  async reserveAsync(name: string, length: number, options: MallocOptions & LongWorkOptions = {}): Promise<Zone> {
    const operation = 'zones.reserveAsync';
    this.#sources.gate?.(operation);
    const [{ onProgress, signal }, asked] = longWorkOf(options, operation);
    const run = async (either: AbortSignal | undefined): Promise<Zone> =>
      runStepsAsync(this.#reserving(name, length, asked, operation), (allocation) =>
        allocation.later({ onProgress, signal: either }),
      );
    return this.#sources.running === undefined ? run(signal) : this.#sources.running.run(signal, operation, run);
  }

  *#reserving(
    name: string,
    length: number,
    asked: MallocOptions | undefined,
    operation: string,
  ): Steps<Allocation, Zone> {
    checkName(name, operation);
    this.#mustBeNew(name, operation);
    mustBeNumber(length, 'the length', operation);
    const options: MallocOptions = optionsOf<MallocOptions>(asked, MALLOC_OPTIONS, operation);
    const { boundary = 0 } = options;
    const wanted = length === 0 ? boundary : length;
    if (!isAddress(wanted) || !isAddress(wanted + LINE))
      throw invalid(operation, `a zone of ${wanted} bytes is not possible`, {
        hint: 'it has a whole number of bytes; 0 takes the largest free block there is',
      });
    const size = alignUp(wanted, LINE);
    const heaps = chooseHeaps(this.#sources, options, operation);
    const block =
      size === 0 ? largestOf(heaps, options, operation) : yield* allocatingFrom(heaps, size, options, operation);
    try {
      // A handler that ran during growth may have taken the name.
      this.#mustBeNew(name, operation);
      const zone = new Zone(name, block, this);
      this.#zones.set(name, zone);
      return zone;
    } catch (error) {
      block.free();
      throw error;
    }
  }

  /**
   * Frees a zone of this `Eal`, given as an object or by name: see {@link Zone.free}.
   *
   * @throws DmaError EINVAL for a zone that was freed before or is of another `Eal`; ENOENT if no zone has that name;
   *   EBUSY while it is pinned
   */
  free(zone: Zone | string): void {
    const operation = 'zones.free';
    if (typeof zone !== 'string') {
      mustBe(zone, Zone, 'what is freed', operation);
      if (this.find(zone.name) !== zone)
        throw ended(operation, `the zone ${zone.name} was freed, or belongs to another Eal`, 'zone.live');
      zone.free();
      return;
    }
    const found = this.find(zone);
    if (found === undefined)
      throw new DmaError({
        code: 'ENOENT',
        operation,
        reason: `there is no zone ${JSON.stringify(zone)}`,
        hint: known('zones', this),
      });
    found.free();
  }

  /** @internal Removes a zone that was freed. */
  forget(zone: Zone): void {
    // A handler that was told may have given the name to another zone.
    if (this.#zones.get(zone.name) === zone) this.#zones.delete(zone.name);
  }

  #mustBeNew(name: string, operation: string): void {
    if (this.find(name) !== undefined)
      throw new DmaError({
        code: 'EEXIST',
        operation,
        reason: `there is a zone ${JSON.stringify(name)} already`,
        hint: 'zones.find(name) finds it; free it, or take another name',
      });
    this.#zones.delete(name);
  }
}

/** The existing names, for a hint. */
function known(what: string, all: Iterable<{ readonly name: string }>): string {
  const names = Array.from(all, ({ name }) => name).slice(0, 8);
  return names.length === 0 ? `there are no ${what}` : `there are: ${names.join(', ')}`;
}

shortForm(Zones, 'Zones', (zones) => ({ size: zones.size }));

/**
 * Reserves the largest free block of any of the heaps. @throws DmaError ENOMEM of the first heap if none has a free
 * block
 */
function largestOf(heaps: readonly Heap[], options: MallocOptions, operation: string): Block {
  let failure: unknown;
  for (const heap of heaps) {
    try {
      return heap.mallocLargest(options);
    } catch (error) {
      const told = toldOf(operation, error);
      if (!isDmaError(told, 'ENOMEM')) throw told;
      failure ??= told;
    }
  }
  throw failure;
}

function checkName(name: string, operation: string): void {
  if (typeof name !== 'string' || name === '') {
    const hint = `the first argument is a name of 1 to ${LONGEST_NAME} bytes, the second the length in bytes`;
    throw invalid(operation, `${show(name)} is not a valid name of a zone`, { hint });
  }
  const bytes = Buffer.byteLength(name);
  if (bytes <= LONGEST_NAME) return;
  const reason = `the name ${JSON.stringify(name)} has ${bytes} bytes`;
  throw new DmaError({ code: 'ENAMETOOLONG', operation, reason, hint: `${LONGEST_NAME} are the most` });
}
