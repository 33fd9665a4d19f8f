/**
 * Finds blocks by address, and their neighbours. A block is a *row*, a small integer. Rows are linked in address order
 * in typed arrays. The index over them makes no garbage, and needs a few look-ups for each operation, whatever its
 * size.
 *
 * The address space is cut into leaves of {@link LEAF_BYTES}. A hash table gives the first row of each leaf in which a
 * block begins; links lead from there to the other rows, in a few steps. The table stores rows only: the start of a row
 * tells its leaf. Above the leaves are {@link LEVELS} levels of nodes of {@link NODE_BITS} bits; each bit stands for a
 * leaf or node below that is not empty. Only nodes that are not empty exist; each level has a hash table from their
 * numbers to their contents. To find the nearest leaf below an address, climb until a lower bit is set, then go down
 * along the highest bits.
 */
import { ADDRESS_LIMIT } from '../../units.js';

/** Blocks begin and end at multiples of this, in bytes: a cache line, so that no two blocks share one. */
export const LINE = 64;

const LEAF_BYTES = LINE * 8;
const NODE_BITS = 512;
const NODE_WORDS = NODE_BITS / 32;
/** Enough levels for a single node at the top. */
const LEVELS = Math.ceil(Math.log2(ADDRESS_LIMIT / LEAF_BYTES) / Math.log2(NODE_BITS));

/** Marks an unused entry in a table. Not an integer, so no look-up finds it. */
const NONE = -0.5;

/** Maps the number of a node to the slot that holds its content. Slots are dense and reused. */
class SlotTable {
  #keys = new Float64Array(16).fill(NONE);
  #slots = new Int32Array(16);
  #shift = 28;
  #count = 0;
  /** Slots that were given back, the last one last; `#made` slots were ever given. */
  #spare = new Int32Array(8);
  #spares = 0;
  #made = 0;

  /** The slot of `key`; -1 if it has none. */
  find(key: number): number {
    const keys = this.#keys;
    const mask = keys.length - 1;
    let at = hash(key) >>> this.#shift;
    for (;;) {
      const found = keys[at];
      if (found === key) return this.#slots[at];
      if (found === NONE) return -1;
      at = (at + 1) & mask;
    }
  }

  /** Gives `key`, which has none yet, a slot. */
  add(key: number): number {
    // At least half of the table stays empty: probes are short, and a new slot is always less than half the table's
    // length.
    if (this.#count * 2 >= this.#keys.length) this.#double();
    this.#count++;
    const slot = this.#spares > 0 ? this.#spare[--this.#spares] : this.#made++;
    this.#put(key, slot);
    return slot;
  }

  /** Takes the slot of `key`, which has one, back. */
  remove(key: number): void {
    const keys = this.#keys;
    const slots = this.#slots;
    const mask = keys.length - 1;
    let hole = hash(key) >>> this.#shift;
    while (keys[hole] !== key) hole = (hole + 1) & mask;
    this.#count--;
    this.#spare[this.#spares++] = slots[hole];
    // Entries that a collision had moved past this hole move back, so that no probe ends too early.
    for (let at = (hole + 1) & mask; keys[at] !== NONE; at = (at + 1) & mask) {
      const home = hash(keys[at]) >>> this.#shift;
      if (((at - home) & mask) >= ((at - hole) & mask)) {
        keys[hole] = keys[at];
        slots[hole] = slots[at];
        hole = at;
      }
    }
    keys[hole] = NONE;
  }

  #put(key: number, slot: number): void {
    const mask = this.#keys.length - 1;
    let at = hash(key) >>> this.#shift;
    while (this.#keys[at] !== NONE) at = (at + 1) & mask;
    this.#keys[at] = key;
    this.#slots[at] = slot;
  }

  #double(): void {
    const keys = this.#keys;
    const slots = this.#slots;
    this.#keys = new Float64Array(keys.length * 2).fill(NONE);
    this.#slots = new Int32Array(keys.length * 2);
    this.#shift--;
    this.#spare = doubled(this.#spare);
    keys.forEach((key, at) => {
      if (key !== NONE) this.#put(key, slots[at]);
    });
  }
}

/** Nodes of one level, each a set of numbers below {@link NODE_BITS}. */
class Level {
  readonly #table = new SlotTable();
  /** {@link NODE_WORDS} words per node, and one word that says which of them are not 0. */
  #words = new Int32Array(8 * NODE_WORDS);
  #filled = new Int32Array(8);

  /** Adds `bit` to `node`. @returns whether it is the first bit */
  add(node: number, bit: number): boolean {
    let slot = this.#table.find(node);
    const isNew = slot < 0;
    if (isNew) {
      slot = this.#table.add(node);
      if (slot >= this.#filled.length) {
        this.#words = doubled(this.#words);
        this.#filled = doubled(this.#filled);
      }
    }
    this.#words[slot * NODE_WORDS + (bit >>> 5)] |= 1 << (bit & 31);
    this.#filled[slot] |= 1 << (bit >>> 5);
    return isNew;
  }

  /** Removes `bit`, which is set, from `node`. @returns whether it was the last bit */
  remove(node: number, bit: number): boolean {
    const slot = this.#table.find(node);
    const word = bit >>> 5;
    if ((this.#words[slot * NODE_WORDS + word] &= ~(1 << (bit & 31))) !== 0) return false;
    if ((this.#filled[slot] &= ~(1 << word)) !== 0) return false;
    this.#table.remove(node);
    return true;
  }

  /** The highest bit of `node` below `bit`; -1 if there is none, or no such node. */
  below(node: number, bit: number): number {
    const slot = this.#table.find(node);
    if (slot < 0) return -1;
    const word = bit >>> 5;
    if (word < NODE_WORDS) {
      const bits = this.#words[slot * NODE_WORDS + word] & ~(-1 << (bit & 31));
      if (bits !== 0) return word * 32 + 31 - Math.clz32(bits);
    }
    const words = word < NODE_WORDS ? this.#filled[slot] & ~(-1 << word) : this.#filled[slot];
    if (words === 0) return -1;
    const last = 31 - Math.clz32(words);
    return last * 32 + 31 - Math.clz32(this.#words[slot * NODE_WORDS + last]);
  }
}

/** The rows and the index. Starts are multiples of {@link LINE} below 2^53; no two rows have the same. */
export class StartIndex {
  /** Where each row begins. Other files only read this. */
  starts: Float64Array;
  /** The neighbours of each row in address order; -1 at the ends. */
  before: Int32Array;
  after: Int32Array;
  /** The row with the lowest address; -1 if there is none. */
  first = -1;
  /** The first row of each leaf, plus 1; 0 for an unused entry. */
  #leaves = new Int32Array(32);
  #shift = 27;
  #count = 0;
  readonly #levels = Array.from({ length: LEVELS }, () => new Level());

  /** @param capacity number of rows */
  constructor(capacity: number) {
    this.starts = new Float64Array(capacity);
    this.before = new Int32Array(capacity);
    this.after = new Int32Array(capacity);
  }

  /** Makes room for more rows; `capacity` is larger than before. */
  grow(capacity: number): void {
    this.starts = grown(this.starts, new Float64Array(capacity));
    this.before = grown(this.before, new Int32Array(capacity));
    this.after = grown(this.after, new Int32Array(capacity));
  }

  /** Adds `row`, which begins at `start`, after the row `previous` (-1: as the first). */
  insert(row: number, start: number, previous: number): void {
    const { starts, before, after } = this;
    const next = previous < 0 ? this.first : after[previous];
    starts[row] = start;
    before[row] = previous;
    after[row] = next;
    if (previous < 0) this.first = row;
    else after[previous] = row;
    if (next >= 0) before[next] = row;
    const leaf = leafOf(start);
    if (previous >= 0 && leafOf(starts[previous]) === leaf) return;
    if (next >= 0 && leafOf(starts[next]) === leaf) this.#leaves[this.#placeOf(next, leaf)] = row + 1;
    else this.#add(row, leaf);
  }

  /** Removes `row`, which is present. */
  remove(row: number): void {
    const { starts, before, after } = this;
    const previous = before[row];
    const next = after[row];
    if (previous < 0) this.first = next;
    else after[previous] = next;
    if (next >= 0) before[next] = previous;
    const leaf = leafOf(starts[row]);
    if (previous >= 0 && leafOf(starts[previous]) === leaf) return;
    const place = this.#placeOf(row, leaf);
    if (next >= 0 && leafOf(starts[next]) === leaf) this.#leaves[place] = next + 1;
    else this.#remove(place, leaf);
  }

  /** The row that begins exactly at `start`; -1 if none does. `start` may be any number. */
  get(start: number): number {
    const { starts, after } = this;
    let row = this.#find(leafOf(start));
    while (row >= 0 && starts[row] < start) row = after[row];
    return row >= 0 && starts[row] === start ? row : -1;
  }

  /** The row that begins at `address`, else the nearest below it; -1 if there is none. `address` may be any number. */
  floor(address: number): number {
    const { starts, after } = this;
    const leaf = leafOf(Math.min(address, ADDRESS_LIMIT));
    let row = this.#find(leaf);
    if (row < 0) row = this.#find(this.#below(leaf));
    else if (starts[row] > address) return this.before[row];
    if (row < 0) return -1;
    for (let next = after[row]; next >= 0 && starts[next] <= address; next = after[row]) row = next;
    return row;
  }

  /** The first row of a leaf; -1 if there is none. */
  #find(leaf: number): number {
    const leaves = this.#leaves;
    const { starts } = this;
    const mask = leaves.length - 1;
    for (let at = hash(leaf) >>> this.#shift; ; at = (at + 1) & mask) {
      const row = leaves[at] - 1;
      if (row < 0 || leafOf(starts[row]) === leaf) return row;
    }
  }

  /** The position in the table of a leaf's first row. */
  #placeOf(row: number, leaf: number): number {
    const leaves = this.#leaves;
    const mask = leaves.length - 1;
    let at = hash(leaf) >>> this.#shift;
    while (leaves[at] !== row + 1) at = (at + 1) & mask;
    return at;
  }

  #add(row: number, leaf: number): void {
    // At least a third of the table stays empty, so that probes are short.
    if (++this.#count * 3 > this.#leaves.length * 2) this.#double();
    this.#put(row, leaf);
    let number = leaf;
    for (const level of this.#levels) {
      const node = Math.floor(number / NODE_BITS);
      if (!level.add(node, number - node * NODE_BITS)) break;
      number = node;
    }
  }

  #remove(place: number, leaf: number): void {
    const leaves = this.#leaves;
    const { starts } = this;
    const mask = leaves.length - 1;
    let hole = place;
    // Entries that a collision had moved past this hole move back, so that no probe ends too early.
    for (let at = (hole + 1) & mask; leaves[at] !== 0; at = (at + 1) & mask) {
      const home = hash(leafOf(starts[leaves[at] - 1])) >>> this.#shift;
      if (((at - home) & mask) >= ((at - hole) & mask)) {
        leaves[hole] = leaves[at];
        hole = at;
      }
    }
    leaves[hole] = 0;
    this.#count--;
    let number = leaf;
    for (const level of this.#levels) {
      const node = Math.floor(number / NODE_BITS);
      if (!level.remove(node, number - node * NODE_BITS)) break;
      number = node;
    }
  }

  #put(row: number, leaf: number): void {
    const leaves = this.#leaves;
    const mask = leaves.length - 1;
    let at = hash(leaf) >>> this.#shift;
    while (leaves[at] !== 0) at = (at + 1) & mask;
    leaves[at] = row + 1;
  }

  #double(): void {
    const leaves = this.#leaves;
    this.#leaves = new Int32Array(leaves.length * 2);
    this.#shift--;
    for (const first of leaves) if (first !== 0) this.#put(first - 1, leafOf(this.starts[first - 1]));
  }

  /** The highest leaf below `leaf` that is not empty; -1 if there is none. */
  #below(leaf: number): number {
    let number = leaf;
    for (let height = 0; height < LEVELS; height++) {
      const node = Math.floor(number / NODE_BITS);
      const bit = this.#levels[height].below(node, number - node * NODE_BITS);
      number = node;
      if (bit < 0) continue;
      number = node * NODE_BITS + bit;
      while (height-- > 0) number = number * NODE_BITS + this.#levels[height].below(number, NODE_BITS);
      return number;
    }
    return -1;
  }
}

function leafOf(address: number): number {
  return Math.floor(address / LEAF_BYTES);
}

/** A 32-bit hash of an integer below 2^53; its high bits are the best mixed. */
function hash(key: number): number {
  return Math.imul((key | 0) ^ Math.imul((key * 2 ** -32) | 0, 0x85ebca6b), 0x9e3779b1);
}

/** A copy of twice the length; the new half is 0. */
function doubled(array: Int32Array): Int32Array<ArrayBuffer> {
  return grown(array, new Int32Array(array.length * 2));
}

/** Fills `larger` from its beginning with `array`. @returns `larger` */
export function grown<T extends Float64Array | Int32Array | Uint8Array>(
  array: Float64Array | Int32Array | Uint8Array,
  larger: T,
): T {
  larger.set(array);
  return larger;
}
