/**
 * From a virtual address to the device's address and key: the hot path of every driver.
 *
 * It is a page table of three levels, like a processor's. The directory has the offset of a leaf for each GiB in which
 * something is mapped. A leaf has one *pair* for each of the 512 huge slots (2 MiB) of its GiB. If a huge slot is not
 * covered by one mapping, its pair refers to a second leaf, with one pair for each of its 512 pages (4 KiB). A pair is
 * the *delta* (IOVA minus VA) and the key (for verbs, the lkey), side by side in one array of doubles, so that both are
 * in one cache line. Leaf 0 is always empty and stands for every leaf that does not exist, so a look-up only tests for
 * the second leaf. It allocates nothing and takes some nanoseconds, however much is mapped.
 *
 * Sums and differences of addresses below 2^53 are exact in doubles, and so are products with powers of two.
 */
import { DmaError, invalid } from '../errors.js';
import { Range } from '../ranges.js';
import { GiB, isAddress, KiB, MiB } from '../units.js';
import { shortForm } from '../short-form.js';
import { GibWindow } from './gib-window.js';
import { STAYS } from '../stays.js';

const PAGE = 4 * KiB;
const HUGE = 2 * MiB;
/** Numbers in a leaf: 512 pairs. */
const LEAF = 1024;
/** Numbers that are stored one by one; more of them are copied, which is faster. */
const FEW = 64;
/** Offsets are 32-bit integers, so there can not be more leaves. */
const LEAF_LIMIT = 2 ** 31 / LEAF;
/** How many GiBs the first window may span per leaf, so that it uses no more memory than the leaves. */
const SPAN = 1024;

/** The delta of unmapped addresses: any sum with it is negative. */
const UNMAPPED = -Infinity;
/** The key of mappings without a key. */
const NO_KEY = -1;
/** Instead of a key: the delta is the offset of a second leaf. */
const SPLIT = -2;

/** Leaf 0 of all tables in which nothing was mapped yet. Never exposed. */
const EMPTY_LEAF = new Float64Array(LEAF);
for (let slot = 0; slot < LEAF; slot += 2) {
  EMPTY_LEAF[slot] = UNMAPPED;
  EMPTY_LEAF[slot + 1] = NO_KEY;
}

/** Is told of changes of a table. */
interface TableListener {
  add(va: number, length: number, iova: number, key: number): void;
  remove(va: number, length: number): void;
}

/**
 * What is mapped in one domain, by page, for look-ups by VA. Addresses are plain numbers here, because VAs and IOVAs
 * meet.
 *
 * Memory: 8 KiB for each GiB in which something is mapped, and 8 KiB for each 2 MiB that are not mapped as a whole;
 * next to none before the first mapping. Leaves that become empty are reused.
 */
export class TranslationTable {
  /** @internal */
  readonly stays = STAYS;
  /** The directory: the offset of each GiB's leaf. `#near` covers one part of the address space, `#far` another. */
  readonly #near = new GibWindow();
  readonly #far = new GibWindow();
  #pairs = EMPTY_LEAF;
  /** How many pairs of each leaf are in use. Its length is the capacity of `#pairs` in leaves; 0 while that is shared. */
  #used = new Int32Array(0);
  /** Number of leaves in `#pairs`, in use or not. */
  #leaves = 1;
  /** Offsets of leaves that became empty. */
  readonly #spare: number[] = [];
  #generation = 0;
  /** @internal Told of all changes, for other threads and processes that read the table. */
  readonly logs = new Set<TableListener>();

  /** Changes with every unmap. Cached answers are valid as long as it is unchanged. */
  get generation(): number {
    return this.#generation;
  }

  /** The pairs; {@link slotOf} gives the index. Replaced by map and unmap: do not keep it. */
  get pairs(): Float64Array {
    if (this.#pairs === EMPTY_LEAF) this.#growTo(1);
    return this.#pairs;
  }

  /** Bytes reserved for the table; the system backs only what was touched. */
  get bytes(): number {
    return (
      this.#near.bytes +
      this.#far.bytes +
      this.#used.length * LEAF * Float64Array.BYTES_PER_ELEMENT +
      this.#used.byteLength
    );
  }

  /**
   * The IOVA of an address, exact to the byte. The next page can be anywhere.
   *
   * @param va in [0, 2^53); not checked here, callers check it
   * @returns -1 if it is not mapped
   */
  iovaOf(va: number): number {
    const iova = va + this.#pairs[this.slotOf(va)];
    return iova >= 0 ? iova : -1;
  }

  /**
   * The IOVA of the first byte of a range that is contiguous for the device; -1 if it is not contiguous or not all
   * mapped. One look-up within a page, or within a huge slot that one mapping covers; otherwise one per page or huge
   * slot.
   *
   * @param va in [0, 2^53)
   * @param length bytes, not negative; 0 counts as 1
   */
  iovaOfRange(va: number, length: number): number {
    const pairs = this.#pairs;
    let slot = this.#hugeSlotOf(va);
    let unit = HUGE;
    if (pairs[slot + 1] === SPLIT) {
      slot = this.#pageSlotOf(va, slot);
      unit = PAGE;
    }
    const iova = va + pairs[slot];
    if (!(iova >= 0)) return -1;
    return (va & (unit - 1)) + length <= unit || this.#hasDelta(va, va + length, pairs[slot]) ? iova : -1;
  }

  /** The key of the mapping that contains an address in [0, 2^53); -1 if it has no key or is not mapped. */
  keyOf(va: number): number {
    return this.#pairs[this.slotOf(va) + 1];
  }

  /**
   * The key that a whole range has; -1 if a byte of it has another key, none, or is not mapped. One look-up within a
   * page, or within a huge slot that one mapping covers; otherwise one per page or huge slot.
   *
   * @param va in [0, 2^53)
   * @param length bytes, not negative; 0 counts as 1
   */
  keyOfRange(va: number, length: number): number {
    const pairs = this.#pairs;
    const slot = this.#hugeSlotOf(va);
    const key = pairs[slot + 1];
    if (key !== SPLIT) {
      if ((va & (HUGE - 1)) + length <= HUGE) return key;
    } else if ((va & (PAGE - 1)) + length <= PAGE) return pairs[this.#pageSlotOf(va, slot) + 1];
    return this.#keyOfSlots(va, va + length);
  }

  /**
   * Both answers with one look-up: with `slot = slotOf(va)`, the IOVA is `va + pairs[slot]`, which is negative
   * (-Infinity) if the address is not mapped, and the key is `pairs[slot + 1]`.
   *
   * @param va in [0, 2^53)
   */
  slotOf(va: number): number {
    const slot = this.#hugeSlotOf(va);
    return this.#pairs[slot + 1] === SPLIT ? this.#pageSlotOf(va, slot) : slot;
  }

  /**
   * @internal Adds a mapping. None of it may be mapped already; the ledger ensures that.
   *
   * @param va a multiple of 4096, as are `length` and `iova`
   * @param key 0 to 2^32 - 1, or -1 for none
   * @throws DmaError EINVAL for impossible arguments; ENOMEM if there is no memory for it; nothing has changed then
   */
  add(va: number, length: number, iova: number, key: number = NO_KEY): void {
    const operation = 'translation.add';
    const range = checked(va, length, operation);
    checked(iova, length, operation);
    if (!Number.isInteger(key) || key < NO_KEY) throw invalid(operation, `${key} is not a key`, { range });
    this.#reserve(range, operation);
    this.#set(va, range.end, iova - va, key);
    for (const log of this.logs) log.add(va, length, iova, key);
  }

  /**
   * @internal Reserves leaves for a range that is then {@link add}ed part by part.
   *
   * @throws DmaError as `add`
   */
  prepare(va: number, length: number): void {
    const operation = 'translation.add';
    this.#reserve(checked(va, length, operation), operation);
  }

  /**
   * @internal Removes what is mapped of a range, which may be more or less than was added.
   *
   * @param va a multiple of 4096, as is `length`
   * @throws DmaError EINVAL for impossible arguments; ENOMEM if there is no memory to keep the rest of a huge slot by
   *   page; nothing has changed then
   */
  remove(va: number, length: number): void {
    const operation = 'translation.remove';
    const range = checked(va, length, operation);
    try {
      if (this.#leavesLeft < 2) this.#needLeaves(this.#splits(range, UNMAPPED));
    } catch (cause) {
      throw noMemory(operation, range, cause);
    }
    this.#set(va, range.end, UNMAPPED, NO_KEY);
    this.#generation++;
    for (const log of this.logs) log.remove(va, length);
  }

  /** @internal What is mapped, in VA order; neighbours with the same key that are contiguous for the device are one. */
  *runs(): Generator<{ readonly va: number; readonly length: number; readonly iova: number; readonly key: number }> {
    let run = { va: 0, length: 0, iova: 0, key: NO_KEY };
    for (const [gib, leaf] of [...this.#near.entries(), ...this.#far.entries()].sort(([a], [b]) => a - b))
      for (let huge = 0; huge < LEAF; huge += 2) {
        const slot = leaf + huge;
        const isSplit = this.#pairs[slot + 1] === SPLIT;
        const first = isSplit ? this.#pairs[slot] : slot;
        const unit = isSplit ? PAGE : HUGE;
        for (let i = 0; i < (isSplit ? LEAF : 2); i += 2) {
          const [delta, key] = [this.#pairs[first + i], this.#pairs[first + i + 1]];
          if (delta === UNMAPPED) continue;
          const va = gib * GiB + (huge / 2) * HUGE + (i / 2) * PAGE;
          if (va === run.va + run.length && va + delta === run.iova + run.length && key === run.key) run.length += unit;
          else {
            if (run.length > 0) yield run;
            run = { va, length: unit, iova: va + delta, key };
          }
        }
      }
    if (run.length > 0) yield run;
  }

  /** The index of the pair of an address's huge slot. Bit operators see the low 32 bits of an address. */
  #hugeSlotOf(va: number): number {
    return this.#leafOf((va * 2 ** -30) | 0) + ((va >>> 20) & 1022);
  }

  /** The offset of a GiB's leaf; 0 (leaf 0) if it has none. */
  #leafOf(gib: number): number {
    const leaf = this.#near.get(gib);
    return leaf === 0 ? this.#far.get(gib) : leaf;
  }

  /** The index of a page's pair; `slot` is its huge slot, which refers to a second leaf. */
  #pageSlotOf(va: number, slot: number): number {
    return (this.#pairs[slot] | 0) + ((va >>> 11) & 1022);
  }

  /** As {@link keyOfRange}, slot by slot; stops where the key ends. */
  #keyOfSlots(va: number, end: number): number {
    const key = isAddress(va) && isAddress(end - 1) ? this.keyOf(va) : NO_KEY;
    for (let at = va; at < end && key !== NO_KEY;) {
      if (this.keyOf(at) !== key) return NO_KEY;
      const unit = this.#pairs[this.#hugeSlotOf(at) + 1] === SPLIT ? PAGE : HUGE;
      at += unit - (at & (unit - 1));
    }
    return key;
  }

  /** Do all pages of [va, end) have this delta? */
  #hasDelta(va: number, end: number, delta: number): boolean {
    if (!isAddress(va) || !isAddress(end - 1)) return false;
    for (let at = va; at < end;) {
      if (this.#pairs[this.slotOf(at)] !== delta) return false;
      const unit = this.#pairs[this.#hugeSlotOf(at) + 1] === SPLIT ? PAGE : HUGE;
      at += unit - (at & (unit - 1));
    }
    return true;
  }

  #set(start: number, end: number, delta: number, key: number): void {
    const pairs = this.#pairs;
    for (let at = start, next = 0; at < end; at = next) {
      const huge = (at * 2 ** -21) >>> 0;
      const gib = huge >>> 9;
      next = Math.min(end, (huge + 1) * HUGE);
      let leaf = this.#leafOf(gib);
      if (leaf === 0) {
        if (delta === UNMAPPED) {
          next = Math.min(end, (gib + 1) * GiB);
          continue;
        }
        leaf = this.#newLeaf();
        (this.#near.reaches(gib) ? this.#near : this.#far).set(gib, leaf);
      }
      const slot = leaf + ((huge & 511) << 1);
      if (next - at === HUGE) {
        if (pairs[slot + 1] === SPLIT) this.#dropLeaf(pairs[slot]);
        this.#put(slot, delta, key);
      } else if (delta !== pairs[slot] || key !== pairs[slot + 1]) {
        const second = this.#split(slot);
        const offset = (at - huge * HUGE) / PAGE;
        const pages = (next - at) / PAGE;
        this.#putAll(second + 2 * offset, second + 2 * (offset + pages), delta, key);
        if (this.#used[second / LEAF] === 0) {
          this.#dropLeaf(second);
          this.#put(slot, UNMAPPED, NO_KEY);
        }
      }
      if (this.#used[leaf / LEAF] === 0) {
        this.#dropLeaf(leaf);
        (this.#near.get(gib) === leaf ? this.#near : this.#far).set(gib, 0);
      }
    }
  }

  #put(slot: number, delta: number, key: number): void {
    const leaf = Math.floor(slot / LEAF);
    if (this.#pairs[slot] !== UNMAPPED) this.#used[leaf]--;
    if (delta !== UNMAPPED) this.#used[leaf]++;
    this.#pairs[slot] = delta;
    this.#pairs[slot + 1] = key;
  }

  /** As `#put`, for all pairs from `slot` to before `end`, in one leaf. */
  #putAll(slot: number, end: number, delta: number, key: number): void {
    const pairs = this.#pairs;
    const leaf = Math.floor(slot / LEAF);
    let gone = 0;
    if (this.#used[leaf] > 0) for (let at = slot; at < end; at += 2) if (pairs[at] !== UNMAPPED) gone++;
    const few = Math.min(end, slot + FEW);
    for (let at = slot; at < few; at += 2) {
      pairs[at] = delta;
      pairs[at + 1] = key;
    }
    // Twice as many each time.
    for (let done = few - slot; slot + done < end; done *= 2)
      pairs.copyWithin(slot + done, slot, slot + Math.min(done, end - slot - done));
    this.#used[leaf] += (delta === UNMAPPED ? 0 : (end - slot) / 2) - gone;
  }

  /** The second leaf of a huge slot; made on demand, with the pair of the slot for each page. */
  #split(slot: number): number {
    const [delta, key] = [this.#pairs[slot], this.#pairs[slot + 1]];
    if (key === SPLIT) return delta;
    const second = this.#newLeaf();
    if (delta !== UNMAPPED) this.#putAll(second, second + LEAF, delta, key);
    this.#put(slot, second, SPLIT);
    return second;
  }

  /** An empty leaf; one was reserved. */
  #newLeaf(): number {
    const spare = this.#spare.pop();
    if (spare !== undefined) return spare;
    const leaf = this.#leaves++ * LEAF;
    this.#pairs.copyWithin(leaf, 0, LEAF);
    return leaf;
  }

  #dropLeaf(leaf: number): void {
    if (this.#used[leaf / LEAF] > 0) this.#pairs.copyWithin(leaf, 0, LEAF);
    this.#used[leaf / LEAF] = 0;
    this.#spare.push(leaf);
  }

  /** Reserves leaves for a range before a change, so that the change can not fail halfway. */
  #reserve(range: Range, operation: string): void {
    const first = Math.floor(range.start / GiB);
    const last = Math.floor((range.end - 1) / GiB);
    // Usually there are more than enough, and no count is needed.
    if (this.#leavesLeft >= last - first + 3 && this.#near.reaches(first) && this.#near.reaches(last)) return;
    let gibs = 0;
    for (let gib = first; gib <= last && gibs <= LEAF_LIMIT; gib++) if (this.#leafOf(gib) === 0) gibs++;
    try {
      this.#needLeaves(gibs + this.#splits(range));
      if (gibs > 0 && !this.#near.widen(first, last, SPAN * (this.#leaves + gibs)))
        this.#far.widen(first, last, Infinity);
    } catch (cause) {
      throw noMemory(operation, range, cause);
    }
  }

  /**
   * How many second leaves a change of a range needs: one for each end inside a huge slot that has none.
   *
   * @param same the new delta: a slot that has it already stays as it is
   */
  #splits({ start, end }: Range, same = NaN): number {
    const first = this.#needsSplit(start, same) ? 1 : 0;
    const inOne = Math.floor(start / HUGE) === Math.floor(end / HUGE);
    return first + (!(inOne && first === 1) && this.#needsSplit(end, same) ? 1 : 0);
  }

  #needsSplit(end: number, same: number): boolean {
    if ((end & (HUGE - 1)) === 0) return false;
    const slot = this.#hugeSlotOf(end);
    return this.#pairs[slot + 1] !== SPLIT && this.#pairs[slot] !== same;
  }

  /** How many leaves are available without more memory; -1 if there is not even an own leaf 0. */
  get #leavesLeft(): number {
    return this.#used.length - this.#leaves + this.#spare.length;
  }

  /** Makes sure that this many leaves are available. */
  #needLeaves(count: number): void {
    if (count === 0 || count <= this.#leavesLeft) return;
    const needed = this.#leaves + count - this.#spare.length;
    if (needed > LEAF_LIMIT) throw new RangeError(`${needed} leaves are more than ${LEAF_LIMIT}`);
    this.#growTo(Math.min(Math.max(needed, 2 * this.#used.length), LEAF_LIMIT));
  }

  #growTo(leaves: number): void {
    const pairs = new Float64Array(leaves * LEAF);
    const used = new Int32Array(leaves);
    pairs.set(this.#pairs);
    used.set(this.#used);
    this.#pairs = pairs;
    this.#used = used;
  }
}

shortForm(TranslationTable, 'TranslationTable', ({ bytes, generation }) => ({ bytes, generation }));

function checked(start: number, length: number, operation: string): Range {
  const range = new Range(start, length, operation);
  if (range.isAligned(PAGE)) return range;
  throw invalid(operation, `not aligned to ${PAGE} bytes`, { range });
}

function noMemory(operation: string, range: Range, cause: unknown): DmaError {
  return new DmaError({ code: 'ENOMEM', operation, reason: 'no memory for the translation table', range, cause });
}
