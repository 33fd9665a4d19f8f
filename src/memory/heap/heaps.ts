/**
 * Heaps by name: heaps over memory of the user, which are created, extended and destroyed here, and the library's own.
 * Adding memory to a heap keeps its content, unless the user wants it cleared.
 */
import { type Gate, isA, mustBeObject, optionsOf, type Shape } from '../../check.js';
import { DmaError, invalid, undoAll, withUndo } from '../../errors.js';
import {
  briefStep,
  followedBy,
  longWorkOf,
  mustGoOn,
  RunningWorks,
  Turns,
  UNATTENDED,
  type LongStep,
  type LongWorkOptions,
} from '../../long-work.js';
import type { Platform } from '../../platform/ports.js';
import { show } from '../../show.js';
import { runSteps, runStepsAsync, type Steps } from '../../steps.js';
import { MiB, type Va } from '../../units.js';
import { Area } from '../area.js';
import type { AreaIndex } from '../area-index.js';
import { External, ExternalMemory, REGISTER_OPTIONS, type RegisterOptions } from '../external.js';
import { Heap, type HeapMemory } from './heap.js';
import type { IovaMode } from '../iova-mode.js';
import type { MemoryChange, MemoryHandlers, Reach, ReachAsync } from '../memory-events.js';
import { rangeOf, type MemoryPart } from '../part.js';
import { pinnedError, type Pin } from '../pins.js';
import { shortForm } from '../../short-form.js';
import { STAYS } from '../../stays.js';

/** First id of heaps over the user's memory; smaller ids are NUMA nodes. */
const FIRST_ID = 256;
/** Bytes cleared in one step; IN_A_TURN: in one turn of the event loop, which takes some milliseconds. */
const AT_ONCE = 256 * MiB;
const IN_A_TURN = 8 * MiB;
/** Names are shorter than this, in bytes. */
const NAME_LIMIT = 32;

/** Memory at an address, to be added to a heap without registering it before. */
type RawMemory = Omit<MemoryPart, 'live'> & RegisterOptions;

/** What {@link Heaps} needs. */
export interface HeapsOptions {
  readonly platform: Platform;
  readonly areas: AreaIndex;
  readonly handlers: MemoryHandlers;
  readonly reach: Reach;
  readonly reachAsync: ReachAsync;
  /** Runs long operations, and cancels them when the Eal stops. Default: they can not be cancelled that way. */
  readonly running?: RunningWorks;
  readonly iovaMode: () => IovaMode;
  /** Throws when a heap may not be created or extended now. */
  readonly gate?: Gate;
  readonly origins: boolean;
  /** The heaps of the library's own memory. */
  readonly native: () => readonly Heap[];
}

/** One area in a heap. */
interface Part extends HeapMemory {
  readonly memory: ExternalMemory;
  readonly area: Area;
  readonly change: MemoryChange;
  readonly pin: Pin;
  release: LongStep;
}

/** The heaps of one `Eal`. */
export class Heaps {
  /** @internal */
  readonly stays = STAYS;
  readonly #options: HeapsOptions;
  /** Registers memory that was given by address. */
  readonly #adopted: External;
  readonly #heaps = new Map<string, Heap>();
  readonly #parts = new Map<Area, Part>();
  /** Heaps whose memory is being changed (handlers may be running), and how many changes each has. */
  readonly #changing = new Map<Heap, number>();
  readonly #running: RunningWorks;
  #nextId = FIRST_ID;

  /** @internal */
  constructor(options: HeapsOptions) {
    this.#options = options;
    this.#running = options.running ?? new RunningWorks();
    this.#adopted = new External(options.platform, options.areas);
  }

  /** All heaps: first the library's own, then the others in the order of creation. */
  *[Symbol.iterator](): IterableIterator<Heap> {
    yield* this.#options.native();
    yield* this.#heaps.values();
  }

  /** @internal Heaps over the user's memory, in the order of creation. */
  get made(): Iterable<Heap> {
    return this.#heaps.values();
  }

  /**
   * The heap of that name; `undefined` if there is none.
   * @throws DmaError EINVAL for a name that is empty or has 32 bytes or more
   */
  find(name: string): Heap | undefined {
    checkName(name, 'heaps.find');
    return this.#heaps.get(name) ?? this.#native(name);
  }

  /** @internal The heap that an operation names. @throws DmaError as `find`; ENOENT if there is no such heap */
  named(name: string, operation: string): Heap {
    checkName(name, operation);
    const heap = this.#heaps.get(name) ?? this.#native(name);
    if (heap !== undefined) return heap;
    const names = [...this].map((each) => each.name).join(', ');
    const hint = `heaps here: ${names}`;
    throw new DmaError({ code: 'ENOENT', operation, reason: `there is no heap ${JSON.stringify(name)}`, hint });
  }

  /**
   * Creates a heap without memory. Its id is 256 or more, and is never used again.
   *
   * @param options.sameIova must every device use the same IOVAs for its memory: those of the memory's table, or without a
   *   table the VAs? See `MemoryOptions.sameIova`. Memory for which a device can not do that is refused. Default false
   * @throws DmaError EINVAL for an invalid name; EEXIST if a heap of that name exists
   */
  create(name: string, options?: { readonly sameIova?: boolean }): Heap {
    const operation = 'heaps.create';
    this.#options.gate?.(operation);
    const { sameIova = false } = optionsOf(options, SAME_IOVA, operation);
    checkName(name, operation);
    if (this.#heaps.has(name) || this.#native(name) !== undefined)
      throw new DmaError({
        code: 'EEXIST',
        operation,
        reason: `there is a heap ${JSON.stringify(name)} already`,
        hint: 'heaps.find(name) finds it; destroy it, or take another name',
      });
    const { platform, areas, iovaMode, origins } = this.#options;
    const { memory } = platform;
    const ownViews = platform.limitation === undefined;
    const id = this.#nextId++;
    const running = this.#running;
    const heap = new Heap({ name, id, node: -1, memory, areas, iovaMode, sameIova, origins, ownViews, running });
    this.#heaps.set(name, heap);
    return heap;
  }

  /**
   * Destroys a heap that has no memory.
   *
   * @throws DmaError EINVAL for an invalid name; ENOENT if there is no such heap; EPERM for the library's own; EBUSY
   *   while it has memory, and in handlers of its changes
   */
  destroy(name: string): void {
    const operation = 'heaps.destroy';
    const heap = this.#users(name, operation);
    this.#mustRest(heap, operation);
    const parts = [...heap.memory];
    if (parts.length > 0) {
      const { allocatedBlocks } = heap.statistics();
      const reason = `the heap ${name} has ${allocatedBlocks} blocks in ${parts.length} pieces of memory`;
      throw new DmaError({ code: 'EBUSY', operation, reason, hint: 'free the blocks, then removeMemory' });
    }
    this.#heaps.delete(name);
  }

  /**
   * Adds memory to a heap, which allocates from it until `removeMemory`. Every device gets it mapped, now and later.
   * The user still owns it, but can neither unregister nor free it meanwhile. Its content is kept.
   *
   * @param memory external memory of the same `Eal`, or memory at an address, which must stay mapped as long as it is
   *   in the heap
   * @param options.clear fill it with zeros? Default false
   * @throws DmaError EINVAL for an invalid name, address, page size or table, and for memory of another `Eal`; ENOENT
   *   if there is no such heap; EPERM for the library's own; EEXIST for memory that is in a heap or overlaps an area;
   *   EACCES for memory that can not be written; EFAULT for addresses that are not mapped; EBUSY for memory that is
   *   pinned, or of which a view was transferred; the error of the device or handler that refuses it. When it throws,
   *   nothing has changed.
   */
  addMemory(
    name: string,
    memory: ExternalMemory | (MemoryPart & RegisterOptions),
    options?: { readonly clear?: boolean },
  ): void {
    const operation = 'heaps.addMemory';
    this.#options.gate?.(operation);
    runSteps(this.#adding(name, memory, options, operation), (step) => step.now());
  }

  /**
   * As {@link Heaps.addMemory}, without blocking the event loop: the memory is mapped for the devices, and cleared,
   * piece by piece.
   *
   * @throws DmaError as `addMemory`; ECANCELED, after at most one more piece, when `options.signal` is aborted or the
   *   Eal stops. When it throws, nothing has changed.
   */
  async addMemoryAsync(
    name: string,
    memory: ExternalMemory | (MemoryPart & RegisterOptions),
    options: { readonly clear?: boolean } & LongWorkOptions = {},
  ): Promise<void> {
    const operation = 'heaps.addMemoryAsync';
    this.#options.gate?.(operation);
    const [{ onProgress, signal }, asked] = longWorkOf(options, operation);
    await this.#running.run(signal, operation, async (either) => {
      const work = followedBy({ onProgress, signal: either });
      await runStepsAsync(this.#adding(name, memory, asked, operation), (step) => step.later(work));
    });
  }

  *#adding(
    name: string,
    given: ExternalMemory | (MemoryPart & RegisterOptions),
    asked: { readonly clear?: boolean } | undefined,
    operation: string,
  ): Steps<LongStep, void> {
    checkName(name, operation);
    const options = optionsOf<{ readonly clear?: boolean }>(asked, { clear: 'boolean' }, operation);
    const memory = isA(given, ExternalMemory) ? given : rawOf(given, operation);
    if (!(memory instanceof ExternalMemory)) this.#checkRaw(memory, operation);
    const heap = this.#users(name, operation);
    const clear = options.clear === true;
    if (memory instanceof ExternalMemory) return yield* this.#alone(heap, this.#add(heap, memory, clear, operation));
    const registered = this.#adopted.fromAddress(memory.va, memory.length, registrationOf(memory));
    try {
      yield* this.#alone(heap, this.#add(heap, registered, clear, operation));
    } catch (error) {
      throw withUndo(error, operation, undoAll([() => registered.unregister()]));
    }
  }

  /**
   * Removes memory from a heap and unmaps it from all devices.
   *
   * @param memory exactly what was added
   * @throws DmaError EINVAL for an invalid name or range; ENOENT if there is no such heap, or if this was not added to
   *   it; EPERM for the library's own; EBUSY while a block is in it, and in handlers of changes of this heap; the error
   *   of the device or handler that refuses. When it throws, nothing has changed.
   */
  removeMemory(name: string, memory: MemoryPart): void {
    runSteps(this.#removing(name, memory, 'heaps.removeMemory'), (step) => step.now());
  }

  /** As {@link Heaps.removeMemory}, without blocking the event loop. @throws DmaError as `removeMemory` */
  async removeMemoryAsync(name: string, memory: MemoryPart): Promise<void> {
    const operation = 'heaps.removeMemoryAsync';
    await this.#running.run(undefined, operation, async () =>
      runStepsAsync(this.#removing(name, memory, operation), (step) => step.later(UNATTENDED)),
    );
  }

  *#removing(name: string, memory: MemoryPart, operation: string): Steps<LongStep, void> {
    checkName(name, operation);
    const range = rangeOf(memory, operation);
    const heap = this.#users(name, operation);
    const area = this.#options.areas.exact(range);
    const part = area === undefined ? undefined : this.#parts.get(area);
    if (part === undefined || part.change.heap !== name) {
      const hint = firstOf(heap.memory);
      throw new DmaError({ code: 'ENOENT', operation, range, reason: `the heap ${name} was not given this`, hint });
    }
    this.#mustRest(heap, operation);
    yield* this.#alone(heap, this.#remove(heap, part, operation));
  }

  /**
   * @internal The bytes at [va, va + length) of memory that was given by address; `undefined` unless they are all in
   *   one piece.
   */
  bytesAt(va: Va, length: number): Uint8Array | undefined {
    return this.#adopted.bytesAt(va, length);
  }

  /**
   * @internal Frees all blocks, and gives all memory back to the user.
   *
   * @returns the errors, such as pinned blocks: those heaps keep their memory, and a later call tries again
   */
  close(): unknown[] {
    const errors: unknown[] = [];
    for (const [name, heap] of this.#heaps) {
      const failed = heap.expire();
      errors.push(...failed);
      if (failed.length === 0) this.#heaps.delete(name);
    }
    for (const part of [...this.#parts.values()].reverse()) {
      if (this.#heaps.has(part.change.heap)) continue;
      errors.push(...undoAll([() => part.release.now()]));
      this.#forget(part);
    }
    const left = new Set([...this.#parts.values()].map(({ memory }) => memory));
    for (const memory of [...this.#adopted].reverse())
      if (!left.has(memory)) errors.push(...undoAll([() => memory.unregister()]));
    return errors;
  }

  /** @throws DmaError EBUSY while the memory of `heap` is being changed, as in handlers of its changes */
  #mustRest(heap: Heap, operation: string): void {
    if (!this.#changing.has(heap)) return;
    const reason = `the memory of the heap ${heap.name} is being changed`;
    const hint = 'wait for that, which handlers of memory events can not';
    throw new DmaError({ code: 'EBUSY', operation, reason, hint });
  }

  /** Keeps others from destroying the heap and from removing its memory while `work` runs. */
  *#alone(heap: Heap, work: Steps<LongStep, void>): Steps<LongStep, void> {
    this.#changing.set(heap, (this.#changing.get(heap) ?? 0) + 1);
    try {
      yield* work;
    } finally {
      const left = (this.#changing.get(heap) ?? 1) - 1;
      if (left > 0) this.#changing.set(heap, left);
      else this.#changing.delete(heap);
    }
  }

  #native(name: string): Heap | undefined {
    return /^socket_(?:\d+|any)$/.test(name) ? this.#options.native().find((heap) => heap.name === name) : undefined;
  }

  /** A heap that users may change. */
  #users(name: string, operation: string): Heap {
    const heap = this.named(name, operation);
    if (this.#heaps.get(name) === heap) return heap;
    throw new DmaError({
      code: 'EPERM',
      operation,
      reason: `the heap ${name} is the library's own`,
      hint: 'only heaps of heaps.create() can be changed',
    });
  }

  /** Checks arguments for raw memory, without touching the memory, in the order of the other checks. */
  #checkRaw(memory: RawMemory, operation: string): void {
    const { pageSize = this.#options.platform.memory.pageSize } = memory;
    const range = rangeOf(memory, operation);
    new Area({ ...memory, range, pageSize, owner: 'heap', label: 'memory for a heap' }, operation);
  }

  *#add(heap: Heap, memory: ExternalMemory, clear: boolean, operation: string): Steps<LongStep, void> {
    const { area } = memory;
    const { range } = area;
    const { areas, handlers, reach, reachAsync } = this.#options;
    if (!memory.live || areas.exact(range) !== area)
      throw invalid(operation, `${area.label} is not registered here`, {
        range,
        hint: memory.live
          ? 'it is memory of another Eal: each has its own'
          : 'it was unregistered: memory.live tells, and external.allocate gets new memory',
      });
    const other = this.#parts.get(area);
    if (other !== undefined) {
      const reason = `${area.label} is in the heap ${other.change.heap} already`;
      const hint = `removeMemory(${JSON.stringify(other.change.heap)}, memory) takes it out there`;
      throw new DmaError({ code: 'EEXIST', operation, range, reason, hint });
    }
    if (!area.writable)
      throw new DmaError({
        code: 'EACCES',
        operation,
        range,
        reason: `${area.label} can not be written`,
        hint: 'blocks are for writing: register it writable, or map it on devices by itself',
      });
    if (memory.pinned !== undefined) throw pinnedError(operation, area.label, memory.pinned, range);
    if (memory.escaped) {
      const reason = `a view of ${area.label} was transferred away, and whoever has it would reach every block`;
      const hint = 'add memory of which no view was given away';
      throw new DmaError({ code: 'EBUSY', operation, range, reason, hint });
    }
    const change = { heap: heap.name, range, areas: [area], pageSize: area.pageSize, node: area.node };
    const pin = memory.pin(`it is in the heap ${heap.name}`);
    const part: Part = {
      memory,
      area,
      range,
      pageSize: area.pageSize,
      areas: [area],
      handedOut: memory.handedOut,
      change,
      pin,
      release: briefStep(() => undefined),
      bytes: (va, length) => memory.bytesForDevice(va - range.start, length),
    };
    const undo: (() => void)[] = [() => this.#forget(part)];
    try {
      area.owner = 'heap';
      area.sameIova = heap.sameIova;
      undo.unshift(handlers.ask('grow', change));
      yield {
        now: () => void (part.release = reach([area])),
        later: async ({ signal, report }) => {
          const onProgress: LongWorkOptions['onProgress'] = ({ doneBytes, totalBytes }) =>
            report(doneBytes, totalBytes);
          part.release = await reachAsync([area], { signal, onProgress });
        },
      };
      undo.unshift(() => part.release.now());
      if (clear) yield clearing(memory, operation);
      heap.add(part);
    } catch (error) {
      throw withUndo(error, operation, undoAll(undo)).with({ operation });
    }
    this.#parts.set(area, part);
    handlers.tell('grown', change);
  }

  *#remove(heap: Heap, part: Part, operation: string): Steps<LongStep, void> {
    const { handlers } = this.#options;
    const undo: (() => void)[] = [];
    if (heap.isUsed(part)) heap.remove(part);
    try {
      undo.unshift(handlers.ask('shrink', part.change));
      heap.remove(part);
      undo.unshift(() => heap.add(part));
      yield part.release;
    } catch (error) {
      throw withUndo(error, operation, undoAll(undo)).with({ operation });
    }
    this.#forget(part);
    handlers.tell('shrunk', part.change);
    if (this.#adopted.has(part.memory)) part.memory.unregister();
  }

  /** Forgets a part: it belongs to the user alone again. */
  #forget({ area, pin }: Part): void {
    area.owner = 'external';
    area.sameIova = false;
    pin[Symbol.dispose]();
    this.#parts.delete(area);
  }
}

shortForm(Heaps, 'Heaps', ({ made }) => ({ made: [...made].map(({ name }) => name) }));

/** Fills the memory with zeros, in parts that one view can hold; `later` lets the event loop run in between. */
function clearing(memory: ExternalMemory, operation: string): LongStep {
  const clear = (at: number, most: number): void => void memory.bytes(at, Math.min(most, memory.length - at)).fill(0);
  return {
    now: () => {
      for (let at = 0; at < memory.length; at += AT_ONCE) clear(at, AT_ONCE);
    },
    later: async ({ signal }) => {
      const turns = new Turns();
      for (let at = 0; at < memory.length; at += IN_A_TURN) {
        if (turns.due) await turns.next();
        mustGoOn(signal, operation);
        clear(at, IN_A_TURN);
      }
    },
  };
}

/** The first pieces of a heap's memory, for the hint of ENOENT. */
function firstOf(memory: Iterable<HeapMemory>): string {
  const pieces: string[] = [];
  for (const { range } of memory) {
    if (pieces.length === 8) return `it has: ${pieces.join(', ')} and more`;
    pieces.push(range.toString());
  }
  return pieces.length === 0 ? 'it has no memory' : `it has: ${pieces.join(', ')}`;
}

function checkName(name: string, operation: string): void {
  if (typeof name === 'string' && name !== '' && Buffer.byteLength(name) < NAME_LIMIT) return;
  throw invalid(operation, `${show(name)} is not a valid name of a heap`, {
    hint: `a name has 1 to ${NAME_LIMIT - 1} bytes`,
  });
}

const SAME_IOVA = { sameIova: 'boolean' } as const;
const RAW_MEMORY: Shape<RawMemory> = { ...REGISTER_OPTIONS, va: 'number', length: 'number' };

/** @throws DmaError EINVAL if it is not memory at an address */
function rawOf(memory: RawMemory, operation: string): RawMemory {
  mustBeObject(memory, 'addresses', operation);
  const { va = 0, length = 0, ...options } = optionsOf(memory, RAW_MEMORY, operation);
  return { va, length, ...options };
}

function registrationOf({ pageSize, iovas, node, label }: RawMemory): RegisterOptions {
  return { pageSize, iovas, node, label };
}
