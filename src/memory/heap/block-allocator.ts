/**
 * Allocates blocks from address ranges. It knows only addresses: no pages, no devices, and not the memory itself, to
 * which it never writes. So a program or device that writes outside of its block can not damage the allocator.
 *
 * Every byte is in one *block*, free or allocated. Blocks are rows of typed arrays; {@link StartIndex} links them in
 * address order and finds them by address. Free blocks are also in lists by size class, 32 classes between one power of
 * two and the next (Masmano et al., "TLSF: a new dynamic memory allocator for real-time systems", 2004), with a bit for
 * each list that is not empty. So an allocation takes a block of nearly the right size in constant time. It examines
 * all blocks that are large enough only if none of those suits, so that it fails only if there is no room. {@link
 * Examined} remembers blocks that did not suit, so that they are not examined again.
 */
import { DmaError, invalid } from '../../errors.js';
import { Range } from '../../ranges.js';
import { isPowerOfTwo } from '../../units.js';
import { Examined, type RunOf, type Wanted } from './examined.js';
import { LargestFirst } from './largest-first.js';
import { grown, LINE, StartIndex } from './start-index.js';

/** Number of classes between one power of two of lines and the next. */
const STEPS = 32;
/** Classes of every size up to 2^53 bytes: one for each size below {@link STEPS} lines, then STEPS for each doubling. */
const CLASSES = 64 + STEPS * 41;
/**
 * Number of blocks near the right size that are tried before one that is certainly large enough. More find a tighter
 * fit among blocks that alignment makes unsuitable, but take more time.
 */
const PATIENCE = 8;
/** Up to this many blocks are examined one by one to find the largest; more are then kept in order. */
const FEW = 64;

// The state of a block. Low bits of an allocated block: its length minus the requested length.
const SLACK = LINE - 1;
const ALLOCATED = LINE;
/** It does not merge with the block before it. */
const APART = 2 * LINE;

/** Initial number of rows. */
const FIRST_ROWS = 64;

/** A block, as dumps show it. */
export interface BlockInfo {
  readonly start: number;
  /** bytes */
  readonly size: number;
  readonly free: boolean;
}

/**
 * An allocator over address ranges. Blocks begin at multiples of 64, and their lengths are multiples of 64.
 *
 * All sizes are bytes; addresses are integers in [0, 2^53). The hot calls ({@link allocate}, {@link free}, {@link
 * resize}, look-ups) never throw and make no garbage: on failure they return -1 or false and change nothing.
 */
export class BlockAllocator {
  /** Where each row begins, and its neighbours in address order. Unused rows are linked by `after`. */
  readonly #index = new StartIndex(FIRST_ROWS);
  #sizes = new Float64Array(FIRST_ROWS);
  #states = new Uint8Array(FIRST_ROWS);
  /** The neighbours of a free block in the list of its class. */
  #newer = new Int32Array(FIRST_ROWS);
  #older = new Int32Array(FIRST_ROWS);
  /** The first of the linked unused rows, -1 if there is none; rows from `#rows` were never used. */
  #unused = -1;
  #rows = 0;

  /** The newest and the oldest free block of each class; -1 if it has none. */
  readonly #heads = new Int32Array(CLASSES).fill(-1);
  readonly #tails = new Int32Array(CLASSES).fill(-1);
  /** Free blocks that were examined and did not suit; absent until a search was long. */
  #examined: Examined | undefined;
  /** Blocks of a class by size, for classes whose largest block was asked for. */
  readonly #ordered = new Map<number, LargestFirst>();
  /** A bit for each class that has a free block, and a bit for each word of them that is not 0. */
  readonly #classBits = new Int32Array(CLASSES / 32);
  readonly #wordBits = new Int32Array(Math.ceil(CLASSES / 1024));

  #total = 0;
  #free = 0;
  #freeBlocks = 0;
  #allocatedBlocks = 0;
  /** Bytes of the largest free block; -1 if unknown. */
  #greatest = 0;
  /** The address in the block that `#find` found. */
  #place = 0;
  #taken = -1;

  /** Bytes that were added and not removed. */
  get totalBytes(): number {
    return this.#total;
  }

  /** Bytes that are not allocated. */
  get freeBytes(): number {
    return this.#free;
  }

  /** Bytes in allocated blocks, including rounding to 64. */
  get allocatedBytes(): number {
    return this.#total - this.#free;
  }

  /** Number of allocated blocks. */
  get allocatedBlocks(): number {
    return this.#allocatedBlocks;
  }

  /** Number of pieces of free memory. */
  get freeBlocks(): number {
    return this.#freeBlocks;
  }

  /** Bytes of the largest free block. O(log n), amortised. */
  get greatestFree(): number {
    if (this.#greatest < 0) {
      const block = this.#largest();
      this.#greatest = block < 0 ? 0 : this.#sizes[block];
    }
    return this.#greatest;
  }

  /**
   * Adds free memory. It never merges with adjacent memory: a block is inside one added range (DPDK: memory of two
   * memseg lists never merges).
   *
   * @param start a multiple of 64 @param length bytes, a multiple of 64
   * @throws DmaError EINVAL for an impossible range; EEXIST if some of it was added already
   */
  addRange(start: number, length: number): void {
    const { end } = checkedRange('addRange', start, length);
    const below = this.#index.floor(end - 1);
    if (below >= 0 && this.#index.starts[below] + this.#sizes[below] > start) {
      throw new DmaError({
        code: 'EEXIST',
        operation: 'addRange',
        reason: 'some of it was added already',
        range: new Range(start, length),
      });
    }
    this.#makeRoom();
    const block = this.#insert(below, start, length);
    this.#states[block] = APART;
    const next = this.#index.after[block];
    if (next >= 0) this.#states[next] |= APART;
    this.#total += length;
    this.#free += length;
    this.#list(block);
  }

  /**
   * Removes free memory. A free block that extends beyond the range is cut.
   *
   * @returns false, and nothing changes, unless the whole range is free memory
   * @throws DmaError EINVAL for an impossible range
   */
  removeRange(start: number, length: number): boolean {
    const { end } = checkedRange('removeRange', start, length);
    let block = this.#index.floor(start);
    const { starts, after } = this.#index;
    for (let at = start, next = block; at < end; next = after[next]) {
      if (next < 0 || !this.#isFree(next) || starts[next] > at) return false;
      at = starts[next] + this.#sizes[next];
    }
    this.#makeRoom();
    while (block >= 0 && this.#index.starts[block] < end) {
      const next = this.#index.after[block];
      const from = this.#index.starts[block];
      const rest = from + this.#sizes[block] - end;
      this.#unlist(block);
      if (rest > 0) this.#list(this.#insert(block, end, rest));
      if (from < start) {
        this.#sizes[block] = start - from;
        this.#list(block);
      } else {
        this.#drop(block);
      }
      block = next;
    }
    this.#total -= length;
    this.#free -= length;
    return true;
  }

  /**
   * Allocates a block.
   *
   * @param size bytes; rounded up to a multiple of 64
   * @param alignment of the start: a power of two; less than 64 (0 included) means 64
   * @param boundary the block does not cross a multiple of this power of two; 0 for none
   * @param runOf the block lies within one run
   * @returns the start of the block; -1 if there is no room or the arguments are impossible
   */
  allocate(size: number, alignment = LINE, boundary = 0, runOf?: RunOf): number {
    // Written so that NaN is refused, and no later sum exceeds 2^53 unnoticed.
    if (!(size > 0 && size <= this.#free)) return -1;
    const length = upToLine(size);
    if (alignment !== LINE || boundary !== 0) {
      if (!isGranule(alignment) || !isGranule(boundary) || (boundary !== 0 && boundary < length)) return -1;
      if (alignment < LINE) alignment = LINE;
    }
    const block = this.#find(length, alignment, boundary, runOf);
    if (block < 0) return -1;
    const start = this.#place;
    this.#take(block, start, length, length - size);
    return start;
  }

  /**
   * Allocates the block at `start`.
   *
   * @param start a multiple of 64 @param size bytes; rounded up to a multiple of 64
   * @returns false unless that memory is all free, and inside one added range
   */
  allocateAt(start: number, size: number): boolean {
    if (!(size > 0 && size <= this.#free) || start % LINE !== 0) return false;
    const length = upToLine(size);
    const block = this.#index.floor(start);
    if (block < 0 || !this.#isFree(block)) return false;
    if (start > this.#index.starts[block] + this.#sizes[block] - length) return false;
    this.#take(block, start, length, length - size);
    return true;
  }

  /** Allocates the largest possible block; {@link sizeOf} tells its size. Arguments and result as {@link allocate}. */
  allocateLargest(alignment = LINE, boundary = 0, runOf?: RunOf): number {
    if (!isGranule(alignment) || !isGranule(boundary) || (boundary !== 0 && boundary < LINE)) return -1;
    if (alignment < LINE) alignment = LINE;
    if (alignment === LINE && boundary === 0 && runOf === undefined) {
      const block = this.#largest();
      if (block < 0) return -1;
      const start = this.#index.starts[block];
      this.#take(block, start, this.#sizes[block], 0);
      return start;
    }
    const limit = boundary === 0 ? Infinity : boundary;
    const { starts } = this.#index;
    let best = -1;
    let bestStart = 0;
    let bestLength = 0;
    for (let sizes = this.#lastClass(CLASSES); sizes >= 0; sizes = this.#lastClass(sizes)) {
      if (bestLength === limit || bestLength >= leastOf(sizes + 1) - LINE) break;
      for (let block = this.#heads[sizes]; block >= 0; block = this.#older[block]) {
        const end = starts[block] + this.#sizes[block];
        let at = alignUp(starts[block], alignment);
        while (bestLength < limit && end - at > bestLength) {
          const stop = boundary === 0 ? end : Math.min(end, alignDown(at, boundary) + boundary);
          const run = runOf === undefined ? stop - at : Math.min(stop - at, runOf(at, stop - at));
          const length = alignDown(run, LINE);
          if (length > bestLength) {
            best = block;
            bestStart = at;
            bestLength = length;
          }
          at = alignUp(at + Math.max(run, LINE), alignment);
        }
      }
    }
    if (best < 0) return -1;
    this.#take(best, bestStart, bestLength, 0);
    return bestStart;
  }

  /**
   * Frees the block that starts at `start`, and merges it with adjacent free memory.
   *
   * @returns bytes freed; -1, and nothing changes, if no allocated block starts there (a double free, a wild address)
   */
  free(start: number): number {
    const block = this.#allocatedAt(start);
    if (block < 0) return -1;
    const size = this.#sizes[block];
    this.freeNumber(block);
    return size;
  }

  /**
   * As {@link free}, for the number of an allocated block.
   *
   * @returns the number of the free block that then contains it, for {@link startOf} and {@link bytesOf} until the next
   *   change
   */
  freeNumber(number: number): number {
    this.#free += this.#sizes[number];
    this.#allocatedBlocks--;
    return this.#release(number);
  }

  /**
   * Resizes the block at `start`: shorter, or longer if the memory after it is free and of the same added range. Does
   * not check the boundary and the runs of the allocation: callers that need them check before.
   *
   * @param size bytes; rounded up to a multiple of 64
   * @returns false, and nothing changes, if no allocated block starts there or it can not grow in place
   */
  resize(start: number, size: number): boolean {
    const block = this.#allocatedAt(start);
    if (block < 0 || !(size > 0 && size <= this.#total)) return false;
    const length = upToLine(size);
    const old = this.#sizes[block];
    if (length === old) {
      this.#setTaken(block, length - size);
      return true;
    }
    const next = this.#index.after[block];
    const neighbour = next >= 0 && this.#isFree(next) && this.#areJoined(block, next) ? next : -1;
    const rest = old - length + (neighbour < 0 ? 0 : this.#sizes[neighbour]);
    if (rest < 0) return false;
    if (neighbour >= 0) {
      this.#unlist(neighbour);
      this.#drop(neighbour);
    }
    this.#sizes[block] = length;
    this.#setTaken(block, length - size);
    this.#free += old - length;
    if (rest > 0) {
      this.#makeRoom();
      this.#list(this.#insert(block, start + length, rest));
    }
    return true;
  }

  /** Bytes of the allocated block that starts at `start`, at least what was requested; -1 if there is none. */
  sizeOf(start: number): number {
    const block = this.#allocatedAt(start);
    return block < 0 ? -1 : this.#sizes[block];
  }

  /**
   * A number for the allocated block that starts at `start`, to index tables of the caller: small, and unique until the
   * block is freed, even if it is resized. -1 if there is none.
   */
  numberOf(start: number): number {
    return this.#allocatedAt(start);
  }

  /** The number of the block that was allocated last. */
  get lastNumber(): number {
    return this.#taken;
  }

  /** The number of the allocated block that contains `address`; -1 if there is none. */
  numberAt(address: number): number {
    return this.#around(address, ALLOCATED);
  }

  /** The start of the block with this number. */
  startOf(number: number): number {
    return this.#index.starts[number];
  }

  /** Bytes of the block with this number. */
  bytesOf(number: number): number {
    return this.#sizes[number];
  }

  /** Bytes that were requested when the block was allocated or resized. */
  lengthOf(number: number): number {
    return this.#sizes[number] - (this.#states[number] & SLACK);
  }

  /** The start of the allocated block that contains `address`; -1 if there is none. */
  blockAt(address: number): number {
    const block = this.#around(address, ALLOCATED);
    return block < 0 ? -1 : this.#index.starts[block];
  }

  /**
   * The start of the free block that contains `address`: all adjacent free memory of one added range. -1 if there is
   * none.
   */
  freeAt(address: number): number {
    const block = this.#around(address, 0);
    return block < 0 ? -1 : this.#index.starts[block];
  }

  /** Bytes of the free block that starts at `start`; -1 if there is none. */
  freeSizeOf(start: number): number {
    const block = this.#index.get(start);
    return block < 0 || !this.#isFree(block) ? -1 : this.#sizes[block];
  }

  /**
   * All blocks in address order, or those with a byte in [from, to). The allocator may be changed meanwhile: iteration
   * continues after the start of the last block.
   */
  *blocks(from = 0, to = Infinity): IterableIterator<BlockInfo> {
    const index = this.#index;
    const before = index.floor(from);
    let block = before < 0 ? index.first : before;
    if (before >= 0 && index.starts[before] + this.#sizes[before] <= from) block = index.after[before];
    while (block >= 0 && index.starts[block] < to) {
      const start = index.starts[block];
      yield { start, size: this.#sizes[block], free: this.#isFree(block) };
      const below = index.floor(start);
      block = below < 0 ? index.first : index.after[below];
    }
  }

  #isFree(block: number): boolean {
    return (this.#states[block] & ALLOCATED) === 0;
  }

  #allocatedAt(start: number): number {
    const block = this.#index.get(start);
    return block >= 0 && !this.#isFree(block) ? block : -1;
  }

  /** The block that contains `address` and is in that state ({@link ALLOCATED} or 0); -1 if there is none. */
  #around(address: number, state: number): number {
    const block = this.#index.floor(address);
    if (block < 0 || (this.#states[block] & ALLOCATED) !== state) return -1;
    return address < this.#index.starts[block] + this.#sizes[block] ? block : -1;
  }

  /** A free block with room for `length` bytes at `#place`; -1 if there is none. */
  #find(length: number, alignment: number, boundary: number, runOf: RunOf | undefined): number {
    // Blocks of this class and larger ones have room, wherever they start.
    const sure =
      boundary === 0 && runOf === undefined ? classOf((length + alignment - LINE) / LINE - 1) + 1 : Number.MAX_VALUE;
    let tried = 0;
    let wanted: Wanted | undefined;
    for (let sizes = this.#nextClass(classOf(length / LINE)); sizes >= 0; sizes = this.#nextClass(sizes + 1)) {
      let end = -1;
      if (this.#examined !== undefined) {
        wanted ??= { length, alignment, boundary, runOf };
        if (this.#examined.covers(sizes, wanted)) end = this.#examined.from[sizes];
      }
      let passed = 0;
      let found = -1;
      for (let block = this.#heads[sizes]; block !== end; block = this.#older[block]) {
        const place = this.#placeIn(block, length, alignment, boundary, runOf);
        if (place >= 0) {
          this.#place = place;
          found = block;
          break;
        }
        passed++;
        if (++tried === PATIENCE && sure < CLASSES) {
          const certain = this.#nextClass(sure);
          if (certain >= 0) {
            this.#place = alignUp(this.#index.starts[this.#heads[certain]], alignment);
            return this.#heads[certain];
          }
        }
      }
      if (passed > PATIENCE) this.#passOver(sizes, found, (wanted ??= { length, alignment, boundary, runOf }));
      if (found >= 0) return found;
    }
    return -1;
  }

  /**
   * Notes that the blocks of a class before `found` (-1: all) are unsuitable: moves them to the older end of its list.
   */
  #passOver(sizes: number, found: number, wanted: Wanted): void {
    const examined = (this.#examined ??= new Examined(CLASSES));
    examined.begin(sizes, wanted);
    const first = this.#heads[sizes];
    const end = examined.from[sizes];
    if (found >= 0) {
      const last = this.#newer[found];
      const before = end < 0 ? this.#tails[sizes] : this.#newer[end];
      this.#heads[sizes] = found;
      this.#newer[found] = -1;
      this.#older[before] = first;
      this.#newer[first] = before;
      this.#older[last] = end;
      if (end < 0) this.#tails[sizes] = last;
      else this.#newer[end] = last;
    }
    examined.from[sizes] = first;
  }

  /** The lowest address for `length` bytes in a block; -1 if there is none. */
  #placeIn(block: number, length: number, alignment: number, boundary: number, runOf: RunOf | undefined): number {
    const start = this.#index.starts[block];
    const last = start + this.#sizes[block] - length;
    let at = alignment === LINE ? start : alignUp(start, alignment);
    while (at <= last) {
      if (boundary !== 0) {
        const edge = alignDown(at, boundary) + boundary;
        if (edge - at < length) {
          at = alignUp(edge, alignment);
          continue;
        }
      }
      if (runOf === undefined) return at;
      const run = runOf(at, length);
      if (run >= length) return at;
      at = alignUp(at + Math.max(run, LINE), alignment);
    }
    return -1;
  }

  /** Allocates [at, at + length) of a free block; the rest before and after becomes free blocks. */
  #take(block: number, at: number, length: number, slack: number): void {
    this.#makeRoom();
    const lead = at - this.#index.starts[block];
    const rest = this.#sizes[block] - lead - length;
    this.#unlist(block);
    let taken = block;
    if (lead > 0) {
      this.#sizes[block] = lead;
      this.#list(block);
      taken = this.#insert(block, at, length);
    } else {
      this.#sizes[block] = length;
    }
    this.#setTaken(taken, slack);
    if (rest > 0) this.#list(this.#insert(taken, at + length, rest));
    this.#free -= length;
    this.#allocatedBlocks++;
    this.#taken = taken;
  }

  #setTaken(block: number, slack: number): void {
    this.#states[block] = (this.#states[block] & APART) | ALLOCATED | slack;
  }

  /** Adds a block to a list, after merging it with its free neighbours. @returns the block that then contains it */
  #release(block: number): number {
    const { before, after } = this.#index;
    const next = after[block];
    if (next >= 0 && this.#isFree(next) && this.#areJoined(block, next)) {
      this.#unlist(next);
      this.#sizes[block] += this.#sizes[next];
      this.#drop(next);
    }
    const previous = before[block];
    if (previous >= 0 && this.#isFree(previous) && this.#areJoined(previous, block)) {
      this.#unlist(previous);
      this.#sizes[previous] += this.#sizes[block];
      this.#drop(block);
      block = previous;
    }
    this.#list(block);
    return block;
  }

  /** Does the second block begin where the first ends, in the same added range? */
  #areJoined(block: number, next: number): boolean {
    const { starts } = this.#index;
    return (this.#states[next] & APART) === 0 && starts[block] + this.#sizes[block] === starts[next];
  }

  /**
   * A new block, in no list, after block `previous` in address order (-1: as the first). There must be room for a row.
   */
  #insert(previous: number, start: number, size: number): number {
    let block = this.#unused;
    if (block >= 0) this.#unused = this.#index.after[block];
    else block = this.#rows++;
    this.#sizes[block] = size;
    this.#states[block] = 0;
    this.#index.insert(block, start, previous);
    return block;
  }

  /** Removes a block that is in no list. */
  #drop(block: number): void {
    this.#index.remove(block);
    this.#sizes[block] = 0;
    this.#index.after[block] = this.#unused;
    this.#unused = block;
  }

  /** Makes a block free, and the newest of its class. */
  #list(block: number): void {
    const size = this.#sizes[block];
    const sizes = classOf(size / LINE);
    const head = this.#heads[sizes];
    this.#states[block] &= APART;
    this.#newer[block] = -1;
    this.#older[block] = head;
    this.#heads[sizes] = block;
    if (head >= 0) {
      this.#newer[head] = block;
    } else {
      this.#tails[sizes] = block;
      this.#classBits[sizes >>> 5] |= 1 << (sizes & 31);
      this.#wordBits[sizes >>> 10] |= 1 << ((sizes >>> 5) & 31);
    }
    this.#freeBlocks++;
    if (this.#greatest >= 0 && size > this.#greatest) this.#greatest = size;
    // Most entries of a full one are stale: it is made again on demand.
    if (this.#ordered.size > 0 && this.#ordered.get(sizes)?.add(block, size) === false) this.#ordered.delete(sizes);
  }

  /** Removes a free block from the list of its class. */
  #unlist(block: number): void {
    const size = this.#sizes[block];
    const newer = this.#newer[block];
    const older = this.#older[block];
    if (this.#examined !== undefined) {
      const { from } = this.#examined;
      const sizes = classOf(size / LINE);
      if (from[sizes] === block) from[sizes] = older;
    }
    if (older >= 0) this.#newer[older] = newer;
    else this.#tails[classOf(size / LINE)] = newer;
    if (newer >= 0) {
      this.#older[newer] = older;
    } else {
      const sizes = classOf(size / LINE);
      this.#heads[sizes] = older;
      if (older < 0) {
        const word = sizes >>> 5;
        if ((this.#classBits[word] &= ~(1 << (sizes & 31))) === 0) this.#wordBits[word >>> 5] &= ~(1 << (word & 31));
      }
    }
    this.#freeBlocks--;
    if (size === this.#greatest) this.#greatest = -1;
  }

  /** The first class from `sizes` that has a block; -1 if there is none. */
  #nextClass(sizes: number): number {
    if (sizes >= CLASSES) return -1;
    let word = sizes >>> 5;
    const bits = this.#classBits[word] & (-1 << (sizes & 31));
    if (bits !== 0) return word * 32 + lowestBit(bits);
    if (++word >= this.#classBits.length) return -1;
    let group = word >>> 5;
    let words = this.#wordBits[group] & (-1 << (word & 31));
    while (words === 0) {
      if (++group === this.#wordBits.length) return -1;
      words = this.#wordBits[group];
    }
    word = group * 32 + lowestBit(words);
    return word * 32 + lowestBit(this.#classBits[word]);
  }

  /** The last class below `sizes` that has a block; -1 if there is none. */
  #lastClass(sizes: number): number {
    while (--sizes >= 0) {
      const bits = this.#classBits[sizes >>> 5] & (-1 >>> (31 - (sizes & 31)));
      if (bits !== 0) return (sizes & ~31) + 31 - Math.clz32(bits);
      sizes &= ~31;
    }
    return -1;
  }

  /** A largest free block; -1 if nothing is free. */
  #largest(): number {
    const sizes = this.#lastClass(CLASSES);
    if (sizes < 0) return -1;
    let ordered = this.#ordered.get(sizes);
    if (ordered === undefined) {
      let best = this.#heads[sizes];
      let count = 0;
      for (let block = best; block >= 0; block = this.#older[block], count++)
        if (this.#sizes[block] > this.#sizes[best]) best = block;
      if (count <= FEW) return best;
      ordered = new LargestFirst(2 * count);
      for (let block = this.#heads[sizes]; block >= 0; block = this.#older[block])
        ordered.add(block, this.#sizes[block]);
      this.#ordered.set(sizes, ordered);
    }
    return ordered.first(this.#isCurrent);
  }

  readonly #isCurrent = (block: number, size: number): boolean => this.#isFree(block) && this.#sizes[block] === size;

  /** Makes room for the two rows that one operation may need. */
  #makeRoom(): void {
    if (this.#rows + 2 <= this.#sizes.length) return;
    const capacity = this.#sizes.length * 2;
    this.#index.grow(capacity);
    this.#sizes = grown(this.#sizes, new Float64Array(capacity));
    this.#states = grown(this.#states, new Uint8Array(capacity));
    this.#newer = grown(this.#newer, new Int32Array(capacity));
    this.#older = grown(this.#older, new Int32Array(capacity));
  }
}

/**
 * The class of a block of `lines` lines: the number itself below 32, above that its leading 6 bits below its power of
 * two.
 */
function classOf(lines: number): number {
  if (lines < STEPS) return lines;
  if (lines < 2 ** 31) {
    const power = 26 - Math.clz32(lines);
    return (power << 5) + (lines >>> power);
  }
  const high = Math.floor(lines / 2 ** 17);
  const power = 26 - Math.clz32(high);
  return ((power + 17) << 5) + (high >>> power);
}

/** Bytes of the smallest block of a class. */
function leastOf(sizes: number): number {
  return sizes < STEPS ? sizes * LINE : (STEPS + (sizes & 31)) * 2 ** ((sizes >>> 5) - 1) * LINE;
}

function lowestBit(bits: number): number {
  return 31 - Math.clz32(bits & -bits);
}

// The remainder of Numbers past 2^31 is a slow call; division by a power of two is exact and fast.
function upToLine(size: number): number {
  return Math.ceil(size / LINE) * LINE;
}

function alignUp(value: number, granule: number): number {
  return Math.ceil(value / granule) * granule;
}

function alignDown(value: number, granule: number): number {
  return Math.floor(value / granule) * granule;
}

/** Is it 0 or a power of two? */
function isGranule(value: number): boolean {
  return (value | 0) === value ? value >= 0 && (value & (value - 1)) === 0 : isPowerOfTwo(value);
}

function checkedRange(operation: string, start: number, length: number): Range {
  const range = new Range(start, length, operation);
  if (!range.isAligned(LINE)) throw invalid(operation, `it does not begin and end at multiples of ${LINE}`, { range });
  return range;
}
