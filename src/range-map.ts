/**
 * An ordered map from address ranges to values, with lookup by address, by overlap and by neighbour.
 *
 * It is a B+tree. The ranges, in address order, are in leaves of up to {@link FAN_OUT}, linked in both directions. The
 * inner nodes hold a *separator* for each child: an address that is at most every start below that child and greater
 * than every start below the child before it. The first separator of a node is the one that its parent has for it
 * (-Infinity on the left edge), so entries can move between neighbours unchanged. Addresses are in typed arrays beside
 * the values, so that a search reads a few consecutive cache lines and no objects.
 *
 * Invariants: ranges do not overlap; all leaves have the same depth; every node but the root has at least {@link LEAST}
 * entries, and an inner root at least two. So the depth grows with the logarithm of the size, memory with the size, and
 * every operation on one range is O(log n): overlapping ranges are next to the place where the search ends.
 *
 * For first-fit searches an inner node also knows the *room* below each child: the most bytes that any one range there
 * has from a multiple of an alignment on. It is kept only for alignments that were passed to {@link RangeMap.fit}.
 */

/** Entries of a full node. */
const FAN_OUT = 64;
/** A node with fewer entries gets some from a neighbour, or is merged with it. */
const LEAST = FAN_OUT / 8;
/**
 * Neighbours are merged if they have at most this many entries together: well below full, so that the next insert does
 * not split them again.
 */
const MERGED = (FAN_OUT / 4) * 3;

/** Where in the array of a leaf the ends begin. */
const ENDS = FAN_OUT;

class Node<V> {
  /** How many entries there are. */
  count = 0;
  /** Leaf: the starts of the ranges, and from {@link ENDS} on their ends. Inner node: the separators. */
  readonly starts: Float64Array;
  /** Leaf: the values, `count` of them. */
  readonly values: V[];
  /** Inner node: the children, `count` of them. */
  readonly children: Node<V>[];
  /** Inner node: the room below each child, for each recorded alignment. */
  readonly rooms: Float64Array[];
  /** Leaf: its neighbours. */
  previous: Node<V> | undefined = undefined;
  next: Node<V> | undefined = undefined;

  /** @param level 0 for a leaf @param alignments the number of recorded alignments */
  constructor(
    readonly level: number,
    alignments: number,
  ) {
    this.starts = new Float64Array(level === 0 ? 2 * FAN_OUT : FAN_OUT);
    this.values = level === 0 ? [] : NOTHING;
    this.children = level === 0 ? NOTHING : [];
    this.rooms = level === 0 ? NOTHING : [];
    if (level > 0) for (let i = 0; i < alignments; i++) this.rooms.push(new Float64Array(FAN_OUT));
  }

  /** The last entry that starts at or below `address`; -1 if there is none. */
  slotOf(address: number): number {
    const { starts } = this;
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (starts[middle] <= address) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  /** The most bytes of one range in or below this node from a multiple of `alignment` on. */
  room(alignment: number, index: number): number {
    let most = 0;
    if (this.level === 0) {
      for (let i = 0; i < this.count; i++) {
        const room = this.starts[ENDS + i] - roundUp(this.starts[i], alignment);
        if (room > most) most = room;
      }
    } else {
      const rooms = this.rooms[index];
      for (let i = 0; i < this.count; i++) if (rooms[i] > most) most = rooms[i];
    }
    return most;
  }

  /** Leaf: inserts a range at `slot`; the node must not be full. */
  put(slot: number, start: number, end: number, value: V): void {
    const { starts, values } = this;
    values.push(value);
    for (let i = this.count++; i > slot; i--) {
      starts[i] = starts[i - 1];
      starts[ENDS + i] = starts[ENDS + i - 1];
      values[i] = values[i - 1];
    }
    starts[slot] = start;
    starts[ENDS + slot] = end;
    values[slot] = value;
  }

  /** Leaf: removes the range at `slot`. */
  drop(slot: number): void {
    const { starts, values } = this;
    const last = --this.count;
    for (let i = slot; i < last; i++) {
      starts[i] = starts[i + 1];
      starts[ENDS + i] = starts[ENDS + i + 1];
      values[i] = values[i + 1];
    }
    values.pop();
  }

  /** Moves `count` entries, from `slot` on, to `target`, a node of the same level, at `at`. */
  move(slot: number, count: number, target: Node<V>, at: number): void {
    shift(0, this.starts, slot, this.count, target.starts, at, target.count, count);
    if (this.level === 0) {
      shift(ENDS, this.starts, slot, this.count, target.starts, at, target.count, count);
      target.values.splice(at, 0, ...this.values.splice(slot, count));
    } else {
      this.rooms.forEach((rooms, i) => shift(0, rooms, slot, this.count, target.rooms[i], at, target.count, count));
      target.children.splice(at, 0, ...this.children.splice(slot, count));
    }
    this.count -= count;
    target.count += count;
  }

  /** Inner node: inserts a child at `slot`; the node must not be full. Does not set its room. */
  adopt(slot: number, separator: number, child: Node<V>): void {
    this.starts.copyWithin(slot + 1, slot, this.count);
    for (const rooms of this.rooms) rooms.copyWithin(slot + 1, slot, this.count);
    this.children.splice(slot, 0, child);
    this.starts[slot] = separator;
    this.count++;
  }

  /** Inner node: removes the child at `slot`. */
  abandon(slot: number): void {
    this.starts.copyWithin(slot, slot + 1, this.count);
    for (const rooms of this.rooms) rooms.copyWithin(slot, slot + 1, this.count);
    this.children.splice(slot, 1);
    this.count--;
  }
}

/** The empty array of members that a node does not use. Never changed. */
const NOTHING: never[] = [];

/** Exact up to 2^53, because division by a power of two is. */
function roundUp(address: number, alignment: number): number {
  return Math.ceil(address / alignment) * alignment;
}

/** Moves `count` numbers at `slot` of an array with `used` numbers into a gap that it opens at `at` of another; all behind `base`. */
function shift(
  base: number,
  source: Float64Array,
  slot: number,
  used: number,
  target: Float64Array,
  at: number,
  targetUsed: number,
  count: number,
): void {
  target.copyWithin(base + at + count, base + at, base + targetUsed);
  target.set(source.subarray(base + slot, base + slot + count), base + at);
  source.copyWithin(base + slot, base + slot + count, base + used);
}

/**
 * Non-overlapping half-open address ranges with a value each, in address order.
 *
 * Addresses and lengths are not checked: integers, length at least 1, end at most 2^53 (as in a `Range`). Only {@link
 * entries} allocates, apart from growth of the tree.
 *
 * @typeParam V anything but `undefined`, which means "none" in results.
 */
export class RangeMap<V> {
  #root = new Node<V>(0, 0);
  #size = 0;
  /** Counts changes, so that iterators notice them. */
  #version = 0;
  /** The result of the last search. */
  #foundLeaf = this.#root;
  #foundSlot = 0;
  /** The alignments that room is kept for. */
  readonly #alignments: number[] = [];
  /** The nodes of the last descent, by level, and the slot in each (-1: before all entries of the leaf). */
  readonly #path: Node<V>[] = [];
  readonly #slots: number[] = [];

  /** How many ranges there are. */
  get size(): number {
    return this.#size;
  }

  /**
   * Adds `[start, start + length)`.
   *
   * @returns `undefined` if added; if it overlaps another range, nothing changes and the value of the lowest such range
   * is returned
   */
  insert(start: number, length: number, value: V): V | undefined {
    const end = start + length;
    let leaf = this.#descend(start);
    const obstacle = this.#inTheWay(leaf, this.#slots[0], start, end);
    if (obstacle !== undefined) return obstacle;
    if (leaf.count === FAN_OUT) {
      this.#split(0);
      leaf = this.#path[0];
    }
    leaf.put(this.#slots[0] + 1, start, end, value);
    this.#size++;
    this.#version++;
    this.#raiseRooms(start, end);
    return undefined;
  }

  /** Removes the range that begins exactly at `start` and returns its value; `undefined` if there is none. */
  delete(start: number): V | undefined {
    const leaf = this.#descend(start);
    const slot = this.#slots[0];
    if (slot < 0 || leaf.starts[slot] !== start) return undefined;
    const value = leaf.values[slot];
    const end = leaf.starts[ENDS + slot];
    leaf.drop(slot);
    this.#size--;
    this.#version++;
    this.#lowerRooms(start, end);
    if (leaf.count < LEAST) this.#fillUp();
    return value;
  }

  /** Removes all ranges. */
  clear(): void {
    this.#root = new Node<V>(0, 0);
    this.#path.length = 0;
    this.#size = 0;
    this.#version++;
  }

  /** The value of exactly this range. */
  exact(start: number, length: number): V | undefined {
    const leaf = this.#leafOf(start);
    const slot = leaf.slotOf(start);
    return slot >= 0 && leaf.starts[slot] === start && leaf.starts[ENDS + slot] === start + length
      ? leaf.values[slot]
      : undefined;
  }

  /** The value of the range that contains `address`. */
  at(address: number): V | undefined {
    const leaf = this.#leafOf(address);
    return this.#inTheWay(leaf, leaf.slotOf(address), address, address);
  }

  /** The value of the lowest range that overlaps `[start, end)`. */
  overlapping(start: number, end: number): V | undefined {
    const leaf = this.#leafOf(start);
    return this.#inTheWay(leaf, leaf.slotOf(start), start, end);
  }

  /** The value of the range with the greatest start that is at most `address`. */
  floor(address: number): V | undefined {
    const leaf = this.#leafOf(address);
    const slot = leaf.slotOf(address);
    if (slot >= 0) return this.#found(leaf, slot);
    return leaf.previous === undefined ? undefined : this.#found(leaf.previous, leaf.previous.count - 1);
  }

  /** The value of the range with the least start that is greater than `address`. */
  above(address: number): V | undefined {
    const leaf = this.#leafOf(address);
    const slot = leaf.slotOf(address) + 1;
    if (slot < leaf.count) return this.#found(leaf, slot);
    return leaf.next === undefined ? undefined : this.#found(leaf.next, 0);
  }

  /**
   * The start of the range that the last search found (`at`, `overlapping`, `floor`, `above`, `fit`). Valid until the
   * next change.
   */
  get foundStart(): number {
    return this.#foundLeaf.starts[this.#foundSlot];
  }

  /** The end of that range. */
  get foundEnd(): number {
    return this.#foundLeaf.starts[ENDS + this.#foundSlot];
  }

  /** Replaces the value of the range that the last search found. */
  replaceFound(value: V): void {
    this.#foundLeaf.values[this.#foundSlot] = value;
  }

  /**
   * The value of the lowest range with `length` bytes from a multiple of `alignment` (a power of two) on.
   *
   * The first call with an alignment visits every range; from then on every change also updates the room for it.
   */
  fit(length: number, alignment: number): V | undefined {
    const index = this.#keepRoom(alignment);
    let node = this.#root;
    while (node.level > 0) {
      const rooms = node.rooms[index];
      let slot = 0;
      while (slot < node.count && rooms[slot] < length) slot++;
      if (slot === node.count) return undefined;
      node = node.children[slot];
    }
    for (let slot = 0; slot < node.count; slot++) {
      if (node.starts[ENDS + slot] - roundUp(node.starts[slot], alignment) >= length) return this.#found(node, slot);
    }
    return undefined;
  }

  /** The greatest length for which {@link fit} finds a range; 0 if there is none. */
  room(alignment: number): number {
    return this.#root.room(alignment, this.#keepRoom(alignment));
  }

  /**
   * The values in address order. The map may change meanwhile: the iteration continues behind the last range that it
   * returned.
   */
  *values(): IterableIterator<V> {
    for (const [, , value] of this.entries()) yield value;
  }

  /** `[start, length, value]` of every range in address order. The map may change meanwhile, as for {@link values}. */
  *entries(): IterableIterator<[start: number, length: number, value: V]> {
    let leaf: Node<V> | undefined = this.#leafOf(-Infinity);
    let slot = 0;
    while (leaf !== undefined) {
      if (slot === leaf.count) {
        leaf = leaf.next;
        slot = 0;
        continue;
      }
      const version = this.#version;
      const start = leaf.starts[slot];
      yield [start, leaf.starts[ENDS + slot] - start, leaf.values[slot]];
      if (version !== this.#version) {
        leaf = this.#leafOf(start);
        slot = leaf.slotOf(start);
      }
      slot++;
    }
  }

  /** The leaf that contains, or would contain, a range starting at `address`. */
  #leafOf(address: number): Node<V> {
    let node = this.#root;
    while (node.level > 0) {
      node = node.children[node.slotOf(address)];
    }
    return node;
  }

  /** Like `#leafOf`, and records the path. */
  #descend(address: number): Node<V> {
    let node = this.#root;
    while (node.level > 0) {
      const slot = node.slotOf(address);
      this.#path[node.level] = node;
      this.#slots[node.level] = slot;
      node = node.children[slot];
    }
    this.#path[0] = node;
    this.#slots[0] = node.slotOf(address);
    return node;
  }

  /** Splits the full node of the path at `level`, and full nodes above it; updates the path. */
  #split(level: number): void {
    const node = this.#path[level];
    if (node === this.#root) {
      this.#root = new Node<V>(level + 1, this.#alignments.length);
      this.#root.adopt(0, -Infinity, node);
      this.#path[level + 1] = this.#root;
      this.#slots[level + 1] = 0;
    } else if (this.#path[level + 1].count === FAN_OUT) {
      this.#split(level + 1);
    }
    // Ascending inserts leave nodes behind that get no more entries: such a node keeps most of them.
    const slotTaken = this.#slots[level];
    const half = slotTaken === FAN_OUT - 1 ? FAN_OUT - LEAST : slotTaken < 0 ? LEAST : FAN_OUT / 2;
    const right = new Node<V>(level, this.#alignments.length);
    node.move(half, FAN_OUT - half, right, 0);
    if (level === 0) {
      right.previous = node;
      right.next = node.next;
      if (node.next !== undefined) node.next.previous = right;
      node.next = right;
    }
    const parent = this.#path[level + 1];
    const slot = this.#slots[level + 1];
    parent.adopt(slot + 1, right.starts[0], right);
    this.#updateRoom(parent, slot);
    this.#updateRoom(parent, slot + 1);
    if (this.#slots[level] >= half) {
      this.#path[level] = right;
      this.#slots[level] -= half;
      this.#slots[level + 1]++;
    }
  }

  /** Gives nodes of the path with too few entries some of a neighbour's, or merges the two. */
  #fillUp(): void {
    for (let level = 0; this.#path[level] !== this.#root && this.#path[level].count < LEAST; level++) {
      const parent = this.#path[level + 1];
      const slot = Math.max(1, this.#slots[level + 1]);
      const left = parent.children[slot - 1];
      const right = parent.children[slot];
      const total = left.count + right.count;
      if (total <= MERGED) {
        right.move(0, right.count, left, left.count);
        if (level === 0) {
          left.next = right.next;
          if (right.next !== undefined) right.next.previous = left;
        }
        parent.abandon(slot);
      } else {
        const surplus = left.count - (total >>> 1);
        if (surplus > 0) left.move(left.count - surplus, surplus, right, 0);
        else right.move(0, -surplus, left, left.count);
        parent.starts[slot] = right.starts[0];
        this.#updateRoom(parent, slot);
      }
      this.#updateRoom(parent, slot - 1);
    }
    while (this.#root.level > 0 && this.#root.count === 1) this.#root = this.#root.children[0];
  }

  /** The index of `alignment` among those that room is kept for; adds it if needed. */
  #keepRoom(alignment: number): number {
    const known = this.#alignments.indexOf(alignment);
    if (known >= 0) return known;
    const index = this.#alignments.push(alignment) - 1;
    const add = (node: Node<V>): void => {
      if (node.level === 0) return;
      const rooms = new Float64Array(FAN_OUT);
      node.rooms.push(rooms);
      node.children.forEach((child, slot) => {
        add(child);
        rooms[slot] = child.room(alignment, index);
      });
    };
    add(this.#root);
    return index;
  }

  /** Updates the room below one child. */
  #updateRoom(parent: Node<V>, slot: number): void {
    for (let i = 0; i < this.#alignments.length; i++) {
      parent.rooms[i][slot] = parent.children[slot].room(this.#alignments[i], i);
    }
  }

  /** Updates the rooms above after a range was added to the leaf of the path. */
  #raiseRooms(start: number, end: number): void {
    for (let i = 0; i < this.#alignments.length; i++) {
      const room = end - roundUp(start, this.#alignments[i]);
      for (let level = 1; level <= this.#root.level; level++) {
        const rooms = this.#path[level].rooms[i];
        const slot = this.#slots[level];
        if (room <= rooms[slot]) break;
        rooms[slot] = room;
      }
    }
  }

  /** Updates the rooms above after a range was removed from the leaf of the path. */
  #lowerRooms(start: number, end: number): void {
    for (let i = 0; i < this.#alignments.length; i++) {
      const room = end - roundUp(start, this.#alignments[i]);
      for (let level = 1; level <= this.#root.level; level++) {
        const rooms = this.#path[level].rooms[i];
        const slot = this.#slots[level];
        if (room < rooms[slot]) break;
        rooms[slot] = this.#path[level].children[slot].room(this.#alignments[i], i);
      }
    }
  }

  /** The value of the lowest range that overlaps `[start, end)`; `slot` is the last of `leaf` up to `start`. */
  #inTheWay(leaf: Node<V>, slot: number, start: number, end: number): V | undefined {
    if (slot >= 0) {
      if (leaf.starts[ENDS + slot] > start) return this.#found(leaf, slot);
    } else if (leaf.previous !== undefined) {
      const { starts, count } = leaf.previous;
      if (starts[ENDS + count - 1] > start) return this.#found(leaf.previous, count - 1);
    }
    const after = slot + 1;
    if (after < leaf.count) return leaf.starts[after] < end ? this.#found(leaf, after) : undefined;
    const { next } = leaf;
    return next !== undefined && next.starts[0] < end ? this.#found(next, 0) : undefined;
  }

  /** Records the result of a search. */
  #found(leaf: Node<V>, slot: number): V {
    this.#foundLeaf = leaf;
    this.#foundSlot = slot;
    return leaf.values[slot];
  }

  /**
   * For tests: throws if an invariant of the tree does not hold.
   * @internal
   */
  checkInvariants(): void {
    const fail = (what: string): never => {
      throw new Error(`RangeMap: ${what}`);
    };
    const leaves: Node<V>[] = [];
    const check = (node: Node<V>, low: number, high: number): void => {
      const { count, level, children, values, starts } = node;
      const ends = starts.subarray(ENDS);
      if (count > FAN_OUT || (node !== this.#root && count < LEAST)) fail(`${count} entries at level ${level}`);
      if (level === 0) {
        leaves.push(node);
        if (values.length !== count) fail('values do not match the count');
        for (let i = 0; i < count; i++) {
          if (starts[i] < low || starts[i] >= high) fail('a start lies outside its separators');
          if (ends[i] <= starts[i]) fail('an empty range');
          if (i > 0 && starts[i] < ends[i - 1]) fail('ranges overlap');
        }
        return;
      }
      if (count < 2 || children.length !== count) fail('children do not match the count');
      if (starts[0] !== low) fail("the first separator is not the parent's");
      children.forEach((child, i) => {
        if (child.level !== level - 1) fail('depth differs');
        this.#alignments.forEach((alignment, a) => {
          if (node.rooms[a][i] !== child.room(alignment, a)) fail('a room is out of date');
        });
        check(child, starts[i], i + 1 < count ? starts[i + 1] : high);
      });
    };
    check(this.#root, -Infinity, Infinity);
    leaves.forEach((leaf, i) => {
      if (leaf.previous !== leaves[i - 1] || leaf.next !== leaves[i + 1]) fail('the chain of leaves is broken');
      if (i > 0 && leaf.starts[0] < leaves[i - 1].starts[ENDS + leaves[i - 1].count - 1])
        fail('ranges of two leaves overlap');
    });
    if (leaves.reduce((sum, leaf) => sum + leaf.count, 0) !== this.#size) fail('the size is wrong');
  }
}
