/**
 * Which block begins where: an ordered map from addresses, multiples of {@link LINE}, to small integers, that makes no
 * garbage and whose every operation takes a few look-ups, whatever its size.
 *
 * The address space is cut into leaves of 32 lines (2 KiB); a leaf is one word, a bit for each line that something
 * begins at, and 32 values. Above them are {@link LEVELS} levels of nodes of 1024 bits, each bit a leaf or node below
 * that is not empty. Only what is not empty exists, and is found by its number through a hash table of its level. To find
 * the nearest entry below an address is to climb until a lower bit is set and to go down along the highest ones.
 */
import { ADDRESS_LIMIT } from '../../units.js';

/** The unit that blocks begin and end at, in bytes: a cache line, so that no two blocks share one. */
export const LINE = 64;

const LEAF_LINES = 32;
const LEAF_BYTES = LINE * LEAF_LINES;
const NODE_BITS = 1024;
const NODE_WORDS = NODE_BITS / 32;
/** So many levels of nodes that the one on top is a single node. */
const LEVELS = Math.ceil(Math.log2(ADDRESS_LIMIT / LEAF_BYTES) / Math.log2(NODE_BITS));

/** The key of an unused place in a table: no whole number, so that no look-up is for it. */
const NONE = -0.5;

/** Numbers of leaves or nodes to the slots that their contents are kept in; slots are dense and used again. */
class SlotTable {
  #keys = new Float64Array(16).fill(NONE);
  #slots = new Int32Array(16);
  #shift = 28;
  #count = 0;
  /** Slots given back, the last first; `#made` slots were ever given. */
  #spare = new Int32Array(8);
  #spares = 0;
  #made = 0;

  /** The slot of `key`, -1 when it has none. */
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

  /** A slot for `key`, which has none yet. */
  add(key: number): number {
    // Half empty at least, so that probes are short and a new slot is always less than half the table's length.
    if (this.#count * 2 >= this.#keys.length) this.#double();
    this.#count++;
    const slot = this.#spares > 0 ? this.#spare[--this.#spares] : this.#made++;
    this.#put(key, slot);
    return slot;
  }

  /** Gives the slot of `key`, which has one, back. */
  remove(key: number): void {
    const keys = this.#keys;
    const slots = this.#slots;
    const mask = keys.length - 1;
    let hole = hash(key) >>> this.#shift;
    while (keys[hole] !== key) hole = (hole + 1) & mask;
    this.#count--;
    this.#spare[this.#spares++] = slots[hole];
    // What was pushed beyond the hole by it moves up, so that no probe ends early.
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

/** Nodes of one level, each a set of the numbers 0 to 1023. */
class Level {
  readonly #table = new SlotTable();
  /** {@link NODE_WORDS} words a node, and one word a node that says which of these are not 0. */
  #words = new Int32Array(8 * NODE_WORDS);
  #filled = new Int32Array(8);

  /** Adds `bit` to `node`. Was that its first? */
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

  /** Takes `bit`, which is there, from `node`. Was it the last? */
  remove(node: number, bit: number): boolean {
    const slot = this.#table.find(node);
    const word = bit >>> 5;
    if ((this.#words[slot * NODE_WORDS + word] &= ~(1 << (bit & 31))) !== 0) return false;
    if ((this.#filled[slot] &= ~(1 << word)) !== 0) return false;
    this.#table.remove(node);
    return true;
  }

  /** The highest bit of `node` that is less than `bit`; -1 when there is none, or no such node. */
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

/** The map. Values are integers from 0 to 2^31 - 1; keys are multiples of {@link LINE} below 2^53. */
export class StartIndex {
  readonly #leaves = new SlotTable();
  /** One word a leaf: which lines have a value; and {@link LEAF_LINES} values a leaf. */
  #bits = new Int32Array(8);
  #values = new Int32Array(8 * LEAF_LINES);
  readonly #levels = Array.from({ length: LEVELS }, () => new Level());

  /** Puts `value` at `start`, in place of what is there. */
  set(start: number, value: number): void {
    let number = Math.floor(start / LEAF_BYTES);
    const line = (start - number * LEAF_BYTES) / LINE;
    let slot = this.#leaves.find(number);
    if (slot < 0) {
      slot = this.#leaves.add(number);
      if (slot >= this.#bits.length) {
        this.#bits = doubled(this.#bits);
        this.#values = doubled(this.#values);
      }
      for (const level of this.#levels) {
        const node = Math.floor(number / NODE_BITS);
        if (!level.add(node, number - node * NODE_BITS)) break;
        number = node;
      }
    }
    this.#bits[slot] |= 1 << line;
    this.#values[slot * LEAF_LINES + line] = value;
  }

  /** Removes what is at `start`; there has to be something. */
  delete(start: number): void {
    let number = Math.floor(start / LEAF_BYTES);
    const line = (start - number * LEAF_BYTES) / LINE;
    const slot = this.#leaves.find(number);
    if ((this.#bits[slot] &= ~(1 << line)) !== 0) return;
    this.#leaves.remove(number);
    for (const level of this.#levels) {
      const node = Math.floor(number / NODE_BITS);
      if (!level.remove(node, number - node * NODE_BITS)) break;
      number = node;
    }
  }

  /** What is at `start`, -1 when nothing is. `start` may be any number: one that is no address has nothing. */
  get(start: number): number {
    const number = Math.floor(start / LEAF_BYTES);
    const line = (start - number * LEAF_BYTES) / LINE;
    const slot = this.#leaves.find(number);
    // A part of a line shifts by its whole part, and has to be refused.
    if (slot < 0 || (this.#bits[slot] & (1 << line)) === 0 || (line | 0) !== line) return -1;
    return this.#values[slot * LEAF_LINES + line];
  }

  /** What is at the highest start that is at most `address`, -1 when nothing is. `address` may be any number. */
  floor(address: number): number {
    let number = Math.floor(address / LEAF_BYTES);
    const slot = this.#leaves.find(number);
    if (slot >= 0) {
      const line = ((address - number * LEAF_BYTES) / LINE) | 0;
      const bits = this.#bits[slot] & (-1 >>> (31 - line));
      if (bits !== 0) return this.#values[slot * LEAF_LINES + 31 - Math.clz32(bits)];
    }
    for (let height = 0; height < LEVELS; height++) {
      const node = Math.floor(number / NODE_BITS);
      const bit = this.#levels[height].below(node, number - node * NODE_BITS);
      number = node;
      if (bit < 0) continue;
      number = node * NODE_BITS + bit;
      while (height-- > 0) number = number * NODE_BITS + this.#levels[height].below(number, NODE_BITS);
      const last = this.#leaves.find(number);
      return this.#values[last * LEAF_LINES + 31 - Math.clz32(this.#bits[last])];
    }
    return -1;
  }
}

/** 32 well-mixed bits of a whole number below 2^53; the high ones are the best. */
function hash(key: number): number {
  return Math.imul((key | 0) ^ Math.imul((key * 2 ** -32) | 0, 0x85ebca6b), 0x9e3779b1);
}

/** A copy with as much again, which is 0. */
function doubled(array: Int32Array): Int32Array<ArrayBuffer> {
  const copy = new Int32Array(array.length * 2);
  copy.set(array);
  return copy;
}
