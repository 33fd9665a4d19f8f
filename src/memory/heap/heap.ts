/**
 * A heap: allocates and frees blocks of memory. Its bookkeeping is outside of the memory: only the program and its
 * devices write into blocks.
 *
 * Each piece of memory in a heap is a separate region. A block never crosses regions. So an unused piece can be
 * removed, and each block is one range for a device.
 */
import { ended, mustBe, mustBeString, optionsOf, rest, stopped } from '../../check.js';
import { DmaError, invalid, isDmaError, undoAll } from '../../errors.js';
import { longWorkOf, mustGoOn, RunningWorks, Turns, type LongWorkOptions } from '../../long-work.js';
import { captureOrigin, type Origin } from '../../origin.js';
import type { MemoryPort } from '../../platform/ports.js';
import { RangeMap } from '../../range-map.js';
import type { Range } from '../../ranges.js';
import { runSteps, runStepsAsync, type Steps } from '../../steps.js';
import { alignDown, formatSize, hex, isAddress, MiB, type Iova, type Va } from '../../units.js';
import { isError } from '../../realms.js';
import type { Area } from '../area.js';
import type { AreaIndex } from '../area-index.js';
import { BlockAllocator } from './block-allocator.js';
import type { IovaMode } from '../iova-mode.js';
import { lend, pinnedError, Pins, type LendOptions, type Pin } from '../pins.js';
import type { HandedOut } from '../retired.js';
import type { AttachedMemory, MemoryFacts } from '../attached-memory.js';
import type { Shared } from '../shared/shared.js';
import { notShareable, type Share } from '../shared/shares.js';
import type { MemoryUsers } from '../users.js';
import { checkPart, Views } from '../views.js';
import { shortForm } from '../../short-form.js';
import {
  LINE,
  type MallocOptions,
  NONE,
  type RoomRequest,
  type WishfulRequest,
  checked,
  checkedProduct,
  zeroed,
} from './malloc-request.js';
import { STAYS } from '../../stays.js';

/** Memory that a heap allocates from. */
export interface HeapMemory {
  readonly range: Range<Va>;
  /** page size in bytes */
  readonly pageSize: number;
  /** The areas that cover the range, without gaps. */
  readonly areas: readonly Area[];
  /** @internal What can reach it through views, including views of blocks. */
  readonly handedOut: HandedOut;
  /** The bytes at [va, va + length), which are inside. For use inside the library. */
  bytes(va: Va, length: number): Uint8Array;
}

/** The state of a heap; sizes in bytes. */
export interface HeapStatistics {
  readonly total: number;
  readonly free: number;
  /** Includes rounding of blocks to 64. */
  readonly allocated: number;
  /** The largest block that could be allocated. */
  readonly greatestFree: number;
  readonly allocatedBlocks: number;
  /**
   * Blocks that were freed but are never handed out again, because a view of them was transferred: its receiver can
   * reach them for ever. They count as allocated.
   */
  readonly escapedBlocks: number;
  /** Bytes of escaped blocks. */
  readonly escaped: number;
  /** Number of pieces of free memory. */
  readonly freeBlocks: number;
}

/** What a heap needs. */
export interface HeapOptions {
  readonly name: string;
  readonly id: number;
  readonly node: number;
  readonly memory: MemoryPort;
  readonly areas: AreaIndex;
  readonly iovaMode: () => IovaMode;
  readonly sameIova: boolean;
  /** Note where each block was allocated? */
  readonly origins: boolean;
  /** Can views of parts of memory be made? */
  readonly ownViews: boolean;
  /**
   * Adds memory until `fits` returns true; `fits` allocates if there is room. Memory that did not help is freed again.
   * Absent: the heap does not grow. @throws DmaError ENOMEM, with what was tried
   */
  readonly grow?: (request: RoomRequest, fits: () => boolean) => void;
  /** As `grow`, without blocking the event loop. Absent if `grow` is. */
  readonly growAsync?: (request: RoomRequest, fits: () => boolean, options: LongWorkOptions) => Promise<void>;
  /** Called when a piece of memory becomes empty. */
  readonly emptied?: (memory: HeapMemory) => void;
  /** As `emptied`; may let the event loop run. */
  readonly emptiedAsync?: (memory: HeapMemory) => Promise<void>;
  /** Runs long operations, and cancels them when the Eal stops. Default: they can not be cancelled that way. */
  readonly running?: RunningWorks;
}

/** Bytes that are cleared or copied at once. */
const AT_ONCE = 256 * MiB;

/** Bytes that are cleared in one turn of the event loop; takes some milliseconds. */
const IN_A_TURN = 8 * MiB;

/** All memory of a heap that has one page size. @internal */
export interface Room {
  readonly stays: typeof STAYS;
  readonly heap: Heap;
  /** bytes */
  readonly pageSize: number;
  readonly allocator: BlockAllocator;
  /** Allocated blocks by the allocator's number. */
  readonly blocks: (Block | undefined)[];
  /** Freed blocks that stay allocated because a view escaped: start and bytes. */
  readonly escaped: Map<number, number>;
  /** Free memory that a lost process may still write to: start and bytes. */
  readonly withheld: Map<number, number>;
}

/** Fields that few blocks need. */
class BlockExtra {
  views: Views | undefined;
  pins: Pins | undefined;
  share: Share<AttachedMemory> | undefined;
  /** Address and bytes of a block that was freed. */
  va = 0;
  length = 0;

  constructor(readonly origin: Origin | undefined) {}
}

/** The number of a freed block. */
const ENDED = -1;

/**
 * A block of memory. Disposing it frees it.
 *
 * There may be many, so that a block has only its number: the allocator knows its address and length.
 */
export class Block implements Disposable {
  /** @internal */
  readonly room: Room;
  #number: number;
  #extra: BlockExtra | undefined;

  /** @internal made by a heap @param number the allocator's */
  constructor(room: Room, number: number, origin: Origin | undefined) {
    this.room = room;
    this.#number = number;
    this.#extra = origin === undefined ? undefined : new BlockExtra(origin);
  }

  get heap(): Heap {
    return this.room.heap;
  }

  /** Address of the first byte. */
  get va(): Va {
    const number = this.#number;
    return (number === ENDED ? (this.#extra?.va ?? 0) : this.room.allocator.startOf(number)) as Va;
  }

  /** bytes, as requested */
  get length(): number {
    const number = this.#number;
    return number === ENDED ? (this.#extra?.length ?? 0) : this.room.allocator.lengthOf(number);
  }

  /** Where in the program it was allocated, if that is noted. */
  get origin(): Origin | undefined {
    return this.#extra?.origin;
  }

  /** Can it be used? False once it was freed, replaced by `realloc`, or its `Eal` stopped. */
  get live(): boolean {
    return this.#number !== ENDED;
  }

  /** The area that it begins in. @throws DmaError EINVAL once it is freed */
  get area(): Area {
    Block.#mustBeLive(this, 'area');
    return this.heap.areaAt(this.va);
  }

  /**
   * The IOVA that every device uses for the block, if there is one: its memory has physical addresses (IOVA mode `pa`)
   * or a table of its own, or the option `sameIova` is set, and the block is in one piece (`contiguous`). Otherwise, as
   * usual with an IOMMU, `undefined`, because each device may use another IOVA: `device.iovaOf(block)`.
   *
   * RDMA devices have no IOVAs: they take the VA and a key.
   *
   * @throws DmaError EINVAL once it is freed
   */
  get iova(): Iova | undefined {
    Block.#mustBeLive(this, 'iova');
    return this.heap.iovaOf(this.va, this.length);
  }

  /**
   * The bytes of the block, or of a part. Once the block is freed, the view is empty. (Where no system calls are
   * available, it is a part of the view of the whole memory, and lives as long as that.)
   *
   * For work on bytes in another thread (`crypto.randomFill`, `fs.read`, `zlib`), use {@link Block.lend}: if the block
   * were freed meanwhile, that work would write into memory of the next owner, and zlib would end the process.
   *
   * @param offset bytes from the start
   * @param length bytes; default: all that follow `offset`
   * @throws DmaError EINVAL if the part is not inside, the block is freed, or its ArrayBuffer was transferred
   */
  bytes(offset = 0, length = rest(this.length, offset)): Uint8Array {
    Block.#mustBeLive(this, 'bytes');
    checkPart(offset, length, this.length, 'bytes');
    const views = this.#extra?.views ?? Block.#newViews(this);
    if (views !== undefined) return views.bytes(offset, length);
    return this.heap.bytesAt(this.va, this.length).subarray(offset, offset + length);
  }

  /**
   * Runs `work` on the bytes of the block, or of a part, and pins the block: `free` throws EBUSY until the result of
   * `work` has settled. This is the way to give bytes to other threads.
   *
   * @returns what `work` returns
   * @throws DmaError as {@link Block.bytes}; what `work` throws
   */
  async lend<T>(work: (bytes: Uint8Array) => T, options?: LendOptions): Promise<Awaited<T>> {
    return lend(this, work, options);
  }

  /**
   * Pins the block while something works on its views: `free` throws EBUSY until the pin is disposed.
   *
   * @param reason appears in that error
   */
  pin(reason = 'a running transfer'): Pin {
    Block.#mustBeLive(this, 'pin');
    mustBeString(reason, 'the reason of a pin', 'pin');
    return (Block.#more(this).pins ??= new Pins()).add(reason);
  }

  /**
   * What another thread needs to use the block: send it there by `postMessage` or as `workerData`, any number of times, and give it to
   * `attach`. While a thread has it, `free` is EBUSY and names the thread.
   *
   * @throws DmaError EINVAL once it is freed; ENOTSUP where system calls are not available
   */
  share(): Shared<AttachedMemory> {
    return this.shareAs(undefined);
  }

  /** @internal As {@link Block.share}, for a block with a name. */
  shareAs(name: string | undefined): Shared<AttachedMemory> {
    Block.#mustBeLive(this, 'share');
    const extra = Block.#more(this);
    if (extra.share?.open === true) return extra.share.description;
    const { va, length, heap, iova } = this;
    const label = name === undefined ? `the block at ${hex(va)}` : `the zone ${name}`;
    const facts: MemoryFacts = { name, label, va, length, iova };
    extra.share = heap.share(va, label, facts);
    return extra.share.description;
  }

  /**
   * Frees the block, and detaches its views.
   *
   * @param options.wipe fill it with zeros before? Default false: the next owner of the memory may see its content
   * @throws DmaError EINVAL if it was freed before; EBUSY while it is pinned, a command of a device uses it, or another
   *   thread has attached to it
   */
  free(options?: { readonly wipe?: boolean }): void {
    if (options === undefined) return this.heap.free(this, false);
    const { wipe = false } = optionsOf<{ readonly wipe?: boolean }>(options, { wipe: 'boolean' }, 'free');
    this.heap.free(this, wipe);
  }

  /**
   * As {@link Block.free}, without blocking the event loop: if much memory is returned to the system, other threads do
   * that. The block ends at once.
   *
   * @throws DmaError as `free`
   */
  async freeAsync(options?: { readonly wipe?: boolean }): Promise<void> {
    const { wipe = false } = optionsOf<{ readonly wipe?: boolean }>(options, { wipe: 'boolean' }, 'freeAsync');
    await this.heap.freeAsync(this, wipe);
  }

  /** Frees it, unless it was freed before. */
  [Symbol.dispose](): void {
    if (this.live) this.free();
  }

  /** @internal Was a view of it transferred? */
  get escaped(): boolean {
    return this.#extra?.views?.escaped === true;
  }

  /** @internal Notes that something unknown can reach it for ever. */
  escape(): void {
    this.heap.escape(this);
  }

  /** @internal Other threads had views of it, and have let go of it. */
  shared(share: Share): void {
    this.heap.shared(this.va, share);
  }

  /** @internal The allocator's number of a live block. */
  get number(): number {
    return this.#number;
  }

  /** @internal Ends it. @param length its bytes, if the allocator has another length by now */
  expire(length = this.length): void {
    const extra = Block.#more(this);
    // If this fails, a view could still reach the memory.
    extra.views?.detach();
    extra.views = undefined;
    extra.va = this.va;
    extra.length = length;
    this.#number = ENDED;
  }

  /** @internal @throws DmaError EINVAL if it was freed; EBUSY while it is pinned, or a device works on it */
  mustBeIdle(operation: string): void {
    Block.#mustBeLive(this, operation);
    const reason = this.#extra?.pins?.reason;
    if (reason !== undefined) throw pinnedError(operation, `the block at ${hex(this.va)}`, reason);
    this.heap.users.mustBeIdle(operation, this.va, this.length);
    if (this.#extra?.share !== undefined) Block.#endShare(this, this.#extra, this.#extra.share, operation);
  }

  // Functions, not private methods: those would cost each object a word in V8.

  static #endShare(block: Block, extra: BlockExtra, share: Share, operation: string): void {
    share.end(operation);
    extra.share = undefined;
    if (share.escaped) block.escape();
    else block.heap.shared(block.va, share);
  }

  static #newViews(block: Block): Views | undefined {
    const views = block.heap.viewsOf(block);
    if (views !== undefined) Block.#more(block).views = views;
    return views;
  }

  static #more(block: Block): BlockExtra {
    return (block.#extra ??= new BlockExtra(undefined));
  }

  static #mustBeLive(block: Block, operation: string): void {
    if (block.#number === ENDED) throw ended(operation, `the block at ${hex(block.va)} was freed`, 'block.live');
  }
}

shortForm(Block, 'Block', ({ heap, va, length, live }) => ({ heap: heap.name, va: hex(va), length, live }));

/** A heap. Made by `Eal.heaps` and `Eal.memory`. */
export class Heap {
  /** @internal */
  readonly stays = STAYS;
  readonly name: string;
  /** The NUMA node for a heap of the library's own memory; 256, 257, ... for others. Never reused. */
  readonly id: number;
  /** NUMA node; -1 for a heap over the user's memory, and for one whose pages may come from any node */
  readonly node: number;
  /** Must every device use the same IOVAs for its memory? */
  readonly sameIova: boolean;
  readonly #options: HeapOptions;
  /** By page size, in ascending order. */
  #rooms: Room[] = [];
  readonly #memory = new RangeMap<HeapMemory>();
  readonly #running: RunningWorks;
  /** Live blocks of which another thread transferred a view. */
  readonly #escapedElsewhere = new Set<Block>();
  /** Areas that a lost process may still write to. */
  readonly #lingering = new Set<Area>();
  /** It allocates nothing any more: its memory is freed, or about to be. */
  #closed = false;

  /** @internal */
  constructor(options: HeapOptions) {
    this.#options = options;
    this.name = options.name;
    this.id = options.id;
    this.node = options.node;
    this.sameIova = options.sameIova;
    this.#running = options.running ?? new RunningWorks();
  }

  /**
   * Allocates a block of `size` bytes.
   *
   * @throws DmaError EINVAL for an impossible size, alignment or boundary; ENOMEM if there is no room, with the state
   *   of the heap; EBUSY if the heap would have to grow and this is a handler of memory events; ENOTSUP for the
   *   library's own memory where no system calls are available
   */
  malloc(size: number, options: Omit<MallocOptions, 'heap' | 'node'> = NONE): Block {
    const operation = 'malloc';
    if (this.#closed) throw stopped(operation);
    const request = checked(size, options, operation);
    const runOf = request.contiguous ? this.#runOf : undefined;
    const block = this.#place(request, runOf) ?? this.#makeRoom(this.#alternatives(request), runOf, operation);
    if (request.zero) this.#clear(block);
    return block;
  }

  /**
   * As {@link Heap.malloc}, without blocking the event loop: if the heap grows, other threads fault in the pages, and
   * they are mapped for devices piece by piece, with progress. With `zero` the block is cleared in parts.
   *
   * @throws DmaError as `malloc`; ECANCELED when `options.signal` is aborted, after at most one more piece: then
   *   everything is undone
   */
  async mallocAsync(
    size: number,
    options: Omit<MallocOptions, 'heap' | 'node'> & LongWorkOptions = NONE,
  ): Promise<Block> {
    const operation = 'mallocAsync';
    if (this.#closed) throw stopped(operation);
    const [{ onProgress, signal }, wanted] = longWorkOf(options, operation);
    const request = checked(size, wanted, operation);
    const runOf = request.contiguous ? this.#runOf : undefined;
    return this.#running.run(signal, operation, async (either) => {
      const work = { onProgress, signal: either };
      const block =
        this.#place(request, runOf) ??
        (await runStepsAsync(this.#makingRoom(this.#alternatives(request), runOf, operation), (ask) =>
          ask.later(work),
        ));
      if (!request.zero) return block;
      try {
        await this.#fillAsync(block, 'it is being cleared', either, operation);
        return block;
      } catch (error) {
        block.free();
        throw error;
      }
    });
  }

  /**
   * Allocates `count` times `size` bytes, zeroed; otherwise as {@link Heap.malloc}. @throws DmaError also EINVAL if the
   * product is not a valid size
   */
  calloc(count: number, size: number, options: Omit<MallocOptions, 'heap' | 'node'> = NONE): Block {
    const product = checkedProduct(count, size);
    return this.malloc(product, zeroed(options));
  }

  /**
   * Allocates the largest block that there is room for now; the heap does not grow.
   *
   * @throws DmaError EINVAL as `malloc`; ENOMEM if nothing is free
   */
  mallocLargest(options: Omit<MallocOptions, 'heap' | 'node'> = NONE): Block {
    const operation = 'mallocLargest';
    if (this.#closed) throw stopped(operation);
    const request = checked(1, options, operation);
    const runOf = request.contiguous ? this.#runOf : undefined;
    for (const { align, boundary, pageSizes } of this.#alternatives(request)) {
      const candidates = this.#rooms
        .filter(({ pageSize }) => pageSizes?.includes(pageSize) !== false)
        .map((room) => ({ room, va: room.allocator.allocateLargest(align, boundary, runOf) }))
        .filter(({ va }) => va >= 0)
        .map(({ room, va }) => ({ room, va, size: room.allocator.sizeOf(va) }))
        .sort((a, b) => b.size - a.size);
      const [best, ...others] = candidates;
      for (const { room, va } of others) room.allocator.free(va);
      if (best === undefined) continue;
      const block = this.#publish(best.room, best.room.allocator.numberOf(best.va));
      if (request.zero) this.#clear(block);
      return block;
    }
    throw this.#noRoom(1, operation);
  }

  /**
   * Resizes a block: in place if the memory after it is free and suitable, else by moving it. Its content is kept as
   * far as it fits; with `zero` the rest is zeros. The old object ends, and its views become empty. When it fails, the
   * old block is unchanged.
   *
   * @param block may be of another heap; then it moves to this one
   * @throws DmaError EINVAL, ENOMEM as {@link Heap.malloc}; EINVAL for a block that was freed; EBUSY for one that is
   *   pinned
   */
  realloc(block: Block, size: number, options: Omit<MallocOptions, 'heap' | 'node'> = NONE): Block {
    const operation = 'realloc';
    mustBe(block, Block, 'what is made longer or shorter', operation);
    const request = checked(size, options, operation);
    block.mustBeIdle(operation);
    const kept = Math.min(block.length, size);
    let next: Block;
    if (this.#resized(block, request, request.contiguous)) {
      next = this.#publish(block.room, block.room.allocator.numberOf(block.va));
    } else {
      next = this.malloc(size, { ...options, zero: false });
      try {
        for (let at = 0; at < kept; at += AT_ONCE) {
          const length = Math.min(AT_ONCE, kept - at);
          const from = block.heap.bytesAt((block.va + at) as Va, length);
          this.bytesAt((next.va + at) as Va, length).set(from);
        }
        block.free();
      } catch (error) {
        next.free();
        throw error;
      }
    }
    if (request.zero) this.#fill(next.va + kept, size - kept);
    return next;
  }

  /**
   * Checks that this is a block of this heap.
   *
   * @returns bytes that it may use, at least what was requested
   * @throws DmaError EINVAL if it is not
   */
  validate(block: Block): number {
    mustBe(block, Block, 'what is validated', 'validate');
    const { room, number } = block;
    if (block.live && this.#rooms.includes(room) && room.blocks[number] === block)
      return room.allocator.bytesOf(number);
    throw invalid('validate', `the memory at ${hex(block.va)} is not a block of the heap ${this.name}`);
  }

  /** The block that contains `va`; `undefined` if none does. */
  blockAt(va: number): Block | undefined {
    if (!isAddress(va)) return undefined;
    for (const { allocator, blocks } of this.#rooms) {
      const number = allocator.numberAt(va);
      if (number >= 0) return blocks[number];
    }
    return undefined;
  }

  /** All blocks, in no particular order. */
  get blocks(): Iterable<Block> {
    return this.#rooms.flatMap(({ blocks }) => blocks.filter((block) => block !== undefined));
  }

  /** @internal What works on its memory. */
  get users(): MemoryUsers {
    return this.#options.areas.users;
  }

  /** @internal The memory that it allocates from, in address order. */
  get memory(): Iterable<HeapMemory> {
    return this.#memory.values();
  }

  /** The current state; exact. */
  statistics(): HeapStatistics {
    const none = { total: 0, free: 0, allocated: 0, greatestFree: 0, allocatedBlocks: 0, freeBlocks: 0 };
    const sum = { ...none, escaped: 0, escapedBlocks: 0 };
    for (const { allocator, escaped } of this.#rooms) {
      sum.escapedBlocks += escaped.size;
      for (const bytes of escaped.values()) sum.escaped += bytes;
      sum.total += allocator.totalBytes;
      sum.free += allocator.freeBytes;
      sum.allocated += allocator.allocatedBytes;
      sum.greatestFree = Math.max(sum.greatestFree, allocator.greatestFree);
      sum.allocatedBlocks += allocator.allocatedBlocks;
      sum.freeBlocks += allocator.freeBlocks;
    }
    return sum;
  }

  /** bytes that it has */
  get total(): number {
    return this.#rooms.reduce((sum, { allocator }) => sum + allocator.totalBytes, 0);
  }

  // --- adding and removing memory ---

  /** @internal Adds memory, all of it free. */
  add(memory: HeapMemory): void {
    const { range, pageSize } = memory;
    let room = this.#rooms.find((each) => each.pageSize === pageSize);
    if (room === undefined) {
      const allocator = new BlockAllocator();
      room = { stays: STAYS, heap: this, pageSize, allocator, blocks: [], escaped: new Map(), withheld: new Map() };
      this.#rooms = [...this.#rooms, room].sort((a, b) => a.pageSize - b.pageSize);
    }
    room.allocator.addRange(range.start, range.length);
    this.#memory.insert(range.start, range.length, memory);
    for (const area of memory.areas) {
      area.onLinger = () => this.#lingers(area);
      if (area.lingers) this.#lingers(area);
    }
  }

  /** Withholds the free memory of an area from allocation while a lost process may write to it, or ends that. */
  #lingers(area: Area): void {
    if (area.lingers) this.#lingering.add(area);
    else this.#lingering.delete(area);
    const memory = this.#memory.at(area.range.start);
    const room = this.#rooms.find(({ pageSize }) => pageSize === memory?.pageSize);
    if (memory === undefined || room === undefined) return;
    const { allocator, withheld } = room;
    const { start: first, end } = area.range;
    const blocks = [...allocator.blocks(first, end)];
    if (!area.lingers) {
      for (const { start } of blocks) if (withheld.has(start)) this.#giveBack(room, start);
      return;
    }
    for (const { start, size, free } of blocks) {
      const from = Math.max(start, first);
      const to = Math.min(start + size, end);
      if (free && allocator.allocateAt(from, to - from)) withheld.set(from, to - from);
    }
  }

  #giveBack(room: Room, va: number): void {
    room.withheld.delete(va);
    const free = room.allocator.freeNumber(room.allocator.numberOf(va));
    const emptied = this.#options.emptied === undefined ? undefined : this.#emptyAt(room, free);
    if (emptied !== undefined) this.#options.emptied?.(emptied);
  }

  /** @internal Removes memory. @throws DmaError EBUSY while a block is in it */
  remove(memory: HeapMemory): void {
    const { range, pageSize } = memory;
    const room = this.#rooms.find((each) => each.pageSize === pageSize);
    // The owner of the memory must know if a lost process can still write to it.
    if (room !== undefined && room.withheld.size > 0)
      for (const { start } of [...room.allocator.blocks(range.start, range.end)])
        if (room.withheld.delete(start)) room.allocator.free(start);
    if (room?.allocator.removeRange(range.start, range.length) !== true) {
      const used = [...(room?.allocator.blocks(range.start, range.end) ?? [])].filter(({ free }) => !free);
      const escaped = used.filter(({ start }) => room?.escaped.has(start)).length;
      const inside = used.length - escaped;
      const blocks = (count: number): string => (count === 1 ? '1 block' : `${count} blocks`);
      const reason =
        inside > 0 || escaped === 0
          ? `${blocks(inside)} of the heap ${this.name} are in it`
          : `${blocks(escaped)} of the heap ${this.name} that were freed stay in it: views of them were transferred away`;
      const hint = inside > 0 || escaped === 0 ? 'free them first' : undefined;
      throw new DmaError({ code: 'EBUSY', operation: 'remove', range, reason, hint });
    }
    this.#memory.delete(range.start);
    for (const area of memory.areas) {
      area.onLinger = undefined;
      this.#lingering.delete(area);
    }
    if (room.allocator.totalBytes === 0) this.#rooms = this.#rooms.filter((each) => each !== room);
  }

  /** @internal Is it all free? */
  isEmpty({ range, pageSize }: HeapMemory): boolean {
    const room = this.#rooms.find((each) => each.pageSize === pageSize);
    return room?.allocator.freeSizeOf(range.start) === range.length;
  }

  /** @internal Is any block in it, live or escaped? */
  isUsed(memory: HeapMemory): boolean {
    const { range, pageSize } = memory;
    const room = this.#rooms.find((each) => each.pageSize === pageSize);
    if (room === undefined || this.isEmpty(memory)) return false;
    for (const { start, free } of room.allocator.blocks(range.start, range.end))
      if (!free && !room.withheld.has(start)) return true;
    return false;
  }

  /** @internal Ends all blocks that are not pinned: the memory is about to be freed. @returns the errors */
  expire(): unknown[] {
    this.#closed = true;
    const errors: unknown[] = [];
    for (const { blocks } of this.#rooms) {
      blocks.forEach((block, number) => {
        if (block === undefined) return;
        const expire = (): void => {
          block.mustBeIdle('stop');
          block.expire();
          blocks[number] = undefined;
        };
        errors.push(...undoAll([expire]));
      });
    }
    return errors;
  }

  // --- for blocks ---

  /** @internal */
  free(block: Block, wipe: boolean): void {
    block.mustBeIdle('free');
    if (wipe) this.#fill(block.va, block.length);
    const emptied = this.#release(block);
    if (emptied !== undefined) this.#options.emptied?.(emptied);
  }

  /** @internal */
  async freeAsync(block: Block, wipe: boolean): Promise<void> {
    block.mustBeIdle('freeAsync');
    if (wipe) await this.#fillAsync(block, 'it is being wiped', undefined, 'freeAsync');
    const emptied = this.#release(block);
    if (emptied !== undefined) await this.#options.emptiedAsync?.(emptied);
  }

  /** @returns the piece of memory that became empty, if this was its last block */
  #release(block: Block): HeapMemory | undefined {
    const { room, number, va } = block;
    const escaped = this.#hasEscaped(block);
    block.expire();
    room.blocks[number] = undefined;
    if (escaped) {
      this.#escapedElsewhere.delete(block);
      room.escaped.set(va, room.allocator.sizeOf(va));
      return undefined;
    }
    if (this.#lingering.size > 0 && this.areaAt(va).lingers) {
      room.withheld.set(va, room.allocator.sizeOf(va));
      return undefined;
    }
    const free = room.allocator.freeNumber(number);
    return this.#options.emptied === undefined ? undefined : this.#emptyAt(room, free);
  }

  /** @internal */
  areaAt(va: Va): Area {
    const area = this.#options.areas.at(va);
    if (area === undefined) throw invalid('area', `the heap ${this.name} has nothing at ${hex(va)}`);
    return area;
  }

  /** @internal The IOVA that every device uses for [va, va + length), if there is one. */
  iovaOf(va: Va, length: number): Iova | undefined {
    const iova = this.areaAt(va).iovaAt(va);
    if (iova === undefined) return undefined;
    for (let done = 0; done < length; done += this.#runOf(va + done, length - done))
      if (this.areaAt((va + done) as Va).iovaAt((va + done) as Va) !== iova + done) return undefined;
    return iova;
  }

  /** @internal Notes that another thread transferred a view of the block. */
  escape(block: Block): void {
    this.#escapedElsewhere.add(block);
    this.#memory.at(block.va)?.handedOut.escape();
  }

  /** @internal Shares a part of its memory. */
  share(va: Va, what: string, facts: MemoryFacts): Share<AttachedMemory> {
    const { shares } = this.#options.areas;
    if (shares === undefined || !this.#options.ownViews) throw notShareable('share');
    return shares.add({ kind: 'memory', what, facts: { ...facts }, vas: [va] });
  }

  /** @internal Other threads had views of memory at `va`, and let go of it. */
  shared(va: Va, share: Share): void {
    this.#memory.at(va)?.handedOut.shared(share);
  }

  #hasEscaped(block: Block): boolean {
    return block.escaped || (this.#escapedElsewhere.size > 0 && this.#escapedElsewhere.has(block));
  }

  /** @internal Views of exactly this block; `undefined` if views of parts can not be made. */
  viewsOf(block: Block): Views | undefined {
    if (!this.#options.ownViews) return undefined;
    return new Views(this.#options.memory, block.va, block.length, this.#memory.at(block.va)?.handedOut);
  }

  /** @internal */
  bytesAt(va: Va, length: number): Uint8Array {
    const memory = this.#memory.at(va);
    if (memory === undefined) throw invalid('bytes', `the heap ${this.name} has nothing at ${hex(va)}`);
    return memory.bytes(va, length);
  }

  // --- inside ---

  #place(request: RoomRequest, runOf: BlockRun | undefined): Block | undefined {
    const { size, align, boundary, pageSizes } = request;
    for (const room of this.#rooms) {
      if (pageSizes?.includes(room.pageSize) === false) continue;
      const va = room.allocator.allocate(size, align, boundary, runOf);
      if (va >= 0) return this.#publish(room, room.allocator.lastNumber);
    }
    return undefined;
  }

  /** The request, then the alternatives if it can not be met. A heap over the user's memory never grows. */
  #alternatives(request: WishfulRequest): RoomRequest[] {
    const isWish = request.pageSizes !== undefined && (request.pageSizeHint || this.#options.grow === undefined);
    return isWish ? [request, { ...request, pageSizes: undefined }] : [request];
  }

  #publish(room: Room, number: number): Block {
    const origin = this.#options.origins ? captureOrigin(undefined, 12) : undefined;
    const block = new Block(room, number, origin);
    room.blocks[number] = block;
    return block;
  }

  /** Allocates for the first of `requests` that can be satisfied, with new memory if necessary. */
  #makeRoom(requests: readonly RoomRequest[], runOf: BlockRun | undefined, operation: string): Block {
    return runSteps(this.#makingRoom(requests, runOf, operation), (ask) => ask.now());
  }

  *#makingRoom(
    requests: readonly RoomRequest[],
    runOf: BlockRun | undefined,
    operation: string,
  ): Steps<{ now(): void; later(options: LongWorkOptions): Promise<void> }, Block> {
    const { grow, growAsync } = this.#options;
    let failure: unknown;
    for (const request of requests) {
      let block = this.#place(request, runOf);
      if (block !== undefined) return block;
      try {
        const fits = (): boolean => (block = this.#place(request, runOf)) !== undefined;
        yield {
          now: () => grow?.(request, fits),
          later: async (options) => growAsync?.(request, fits, options),
        };
      } catch (error) {
        if (!isDmaError(error, 'ENOMEM')) throw error;
        failure = error;
      }
      if (block !== undefined) return block;
    }
    throw this.#noRoom(requests[0].size, operation, failure);
  }

  #noRoom(size: number, operation: string, failure?: unknown): DmaError {
    const { total, free, greatestFree } = this.statistics();
    const has =
      total === 0
        ? 'it has no memory'
        : `it has ${formatSize(total)}, ${formatSize(free)} of them free, at most ${formatSize(greatestFree)} in one piece`;
    const more = isError(failure) ? `; ${failure.message}` : '';
    const reason = `the heap ${this.name} has no room for ${formatSize(size)}`;
    return new DmaError({ code: 'ENOMEM', operation, reason, hint: `${has}${more}`, cause: failure });
  }

  /** Resizes the block in place and detaches its views, if possible. */
  #resized(block: Block, request: WishfulRequest, contiguous: boolean): boolean {
    const { size, align, boundary } = request;
    const { va, room, length } = block;
    // The receiver of a transferred view would see the new content.
    if (this.#hasEscaped(block)) return false;
    if (this.#lingering.size > 0 && this.#memory.at(va)?.areas.some(({ lingers }) => lingers) === true) return false;
    if (block.heap !== this || va % Math.max(align, LINE) !== 0) return false;
    if (boundary !== 0 && alignDown(va, boundary) !== alignDown(va + size - 1, boundary)) return false;
    if (contiguous && this.#runOf(va, size) < size) return false;
    if (!this.#alternatives(request).some(({ pageSizes }) => pageSizes?.includes(room.pageSize) !== false))
      return false;
    if (!room.allocator.resize(va, size)) return false;
    try {
      block.expire(length);
    } catch (error) {
      room.allocator.resize(va, length);
      throw error;
    }
    return true;
  }

  /** How many bytes from `start` are contiguous for every device. */
  readonly #runOf: BlockRun = (start, length) => {
    const area = this.#options.areas.at(start);
    if (area === undefined) return 0;
    const { range, iovas, pageSize, sameIova } = area;
    const end = Math.min(start + length, range.end);
    if (iovas === undefined && (sameIova || this.#options.iovaMode() === 'va')) return end - start;
    let page = Math.floor((start - range.start) / pageSize);
    let at = range.start + (page + 1) * pageSize;
    for (; at < end && iovas !== undefined && iovas[page + 1] === iovas[page] + pageSize; page++) at += pageSize;
    return Math.min(at, end) - start;
  };

  #clear(block: Block): void {
    try {
      this.#fill(block.va, block.length);
    } catch (error) {
      block.free();
      throw error;
    }
  }

  /** Fills a block with zeros, and pins it meanwhile. */
  async #fillAsync(block: Block, why: string, signal: AbortSignal | undefined, operation: string): Promise<void> {
    using _pin = block.pin(why);
    const turns = new Turns();
    for (let at = 0; at < block.length; at += IN_A_TURN) {
      if (turns.due) await turns.next();
      mustGoOn(signal, operation);
      this.#fill(block.va + at, Math.min(IN_A_TURN, block.length - at));
    }
  }

  #fill(va: number, length: number): void {
    for (let at = 0; at < length; at += AT_ONCE) this.bytesAt((va + at) as Va, Math.min(AT_ONCE, length - at)).fill(0);
  }

  /** The piece of memory that consists of this one free block, if there is one. @param number the allocator's */
  #emptyAt({ pageSize, allocator }: Room, number: number): HeapMemory | undefined {
    const size = allocator.bytesOf(number);
    return size % pageSize === 0 ? this.#memory.exact(allocator.startOf(number), size) : undefined;
  }
}

shortForm(Heap, 'Heap', (heap) => ({ name: heap.name, id: heap.id, node: heap.node, ...heap.statistics() }));

type BlockRun = (start: number, length: number) => number;
