/**
 * An ordered map from address ranges to values, with lookup by address, by overlap and by neighbour.
 *
 * It is a B+tree. A node is a *row* of up to {@link FAN_OUT} entries in arrays that all nodes share, so that a search reads a few
 * consecutive cache lines and no objects, and that the garbage collector has few objects to visit. The ranges, in address order, are in
 * leaves, linked in both directions. The inner nodes hold a *separator* for each child: an address that is at most every start below
 * that child and greater than every start below the child before it. The first separator of a node is the one that its parent has for
 * it (-Infinity on the left edge), so entries can move between neighbours unchanged.
 *
 * Invariants: ranges do not overlap; all leaves have the same depth; every node but the root has at least {@link LEAST}
 * entries, and an inner root at least two. So the depth grows with the logarithm of the size, memory with the size, and
 * every operation on one range is O(log n): overlapping ranges are next to the place where the search ends. (Arrays that grow or
 * shrink are copied, as they are in JavaScript.)
 *
 * For first-fit searches an inner node also knows the *room* below each child: the most bytes that any one range there
 * has from a multiple of an alignment on. It is kept only for alignments that were passed to {@link RangeMap.fit}.
 */

/**
 * Places of a node in the arrays: seven cache lines. As that number is odd, the same places of all nodes are in different sets of
 * a processor's cache.
 */
const ROW = 56;
/** Entries of a full node. The last place is never used, for {@link lastOf}. */
const FAN_OUT = ROW - 1;
/** A node with fewer entries gets some from a neighbour, or is merged with it. */
const LEAST = ROW / 14;
/**
 * Neighbours are merged if they have at most this many entries together: well below full, so that the next insert does
 * not split them again.
 */
const MERGED = (ROW / 4) * 3;
/** The arrays of fewer nodes do not shrink. */
const FEW_ROWS = 16;
/** In place of a node. */
const NONE = -1;
/** The start in a place that is not used: at or below no address. */
const UNUSED = NaN;

/** Exact up to 2^53, because division by a power of two is. */
function roundUp(address: number, alignment: number): number {
  return Math.ceil(address / alignment) * alignment;
}

/**
 * Of the starts of the node from `first` on, where the last is that is at or below `address`; before all if there is none. A loop
 * over what is in use would take longer.
 */
function lastOf(starts: Float64Array, first: number, address: number): number {
  let at = first;
  if (starts[at + 31] <= address) at += 24;
  if (starts[at + 15] <= address) at += 16;
  if (starts[at + 7] <= address) at += 8;
  if (starts[at + 3] <= address) at += 4;
  if (starts[at + 1] <= address) at += 2;
  return starts[at] <= address ? at : at - 1;
}

/** Places for so many starts. */
function unused(room: number): Float64Array<ArrayBuffer> {
  return new Float64Array(room).fill(UNUSED);
}

/** The arrays of all maps that nothing was added to. Never changed. */
const NO_STARTS = unused(ROW);
const NO_ENDS = new Float64Array(ROW);

/** Moves `count` numbers from `from` on, of those up to `fromEnd`, into a gap that it opens at `to`, of those up to `toEnd`. */
function move(
  source: Float64Array,
  from: number,
  fromEnd: number,
  target: Float64Array,
  to: number,
  toEnd: number,
  count: number,
): void {
  target.copyWithin(to + count, to, toEnd);
  target.set(source.subarray(from, from + count), to);
  source.copyWithin(from, from + count, fromEnd);
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
  #size = 0;
  /** Counts changes, so that iterators notice them. */
  #version = 0;
  /** Where in the arrays the result of the last search is. */
  #found = 0;
  /** Leaf: the starts of the ranges. Inner node: the separators. Row r begins at r times {@link ROW}. */
  #starts = NO_STARTS;
  /** Leaf: the ends of the ranges. Inner node: the rows of the children. */
  #ends = NO_ENDS;
  /** Leaf: the values. */
  #values: (V | undefined)[] = [];
  /** How many entries each row has. */
  #counts = [0];
  /** The neighbours of each leaf. */
  #previous = [NONE];
  #next = [NONE];
  /** Rows that were used and are free now. */
  #spare: number[] = [];
  #root = 0;
  /** How many inner nodes are above each leaf. */
  #height = 0;
  /** The alignments that room is kept for; and for each, the room below each child by row. */
  readonly #alignments: number[] = [];
  #rooms: Map<number, Float64Array>[] = [];
  /** The rows of the last descent, by level, and the slot in each (-1: before all entries of the leaf). */
  readonly #path: number[] = [];
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
    let row = this.#descend(start);
    const obstacle = this.#inTheWay(row, row * ROW + this.#slots[0], start, end);
    if (obstacle !== undefined) return obstacle;
    if (this.#starts === NO_STARTS) {
      this.#starts = unused(ROW);
      this.#ends = new Float64Array(ROW);
    }
    if (this.#counts[row] === FAN_OUT) {
      this.#split(0);
      row = this.#path[0];
    }
    this.#put(row, this.#slots[0] + 1, start, end, value);
    this.#size++;
    this.#version++;
    this.#raiseRooms(start, end);
    return undefined;
  }

  /** Removes the range that begins exactly at `start` and returns its value; `undefined` if there is none. */
  delete(start: number): V | undefined {
    const row = this.#descend(start);
    const at = row * ROW + this.#slots[0];
    if (this.#slots[0] < 0 || this.#starts[at] !== start) return undefined;
    const value = this.#values[at];
    const end = this.#ends[at];
    this.#drop(row, at);
    this.#size--;
    this.#version++;
    this.#lowerRooms(start, end);
    if (this.#counts[row] < LEAST) this.#fillUp();
    return value;
  }

  /** Removes all ranges. */
  clear(): void {
    this.#starts = NO_STARTS;
    this.#ends = NO_ENDS;
    this.#values = [];
    this.#counts = [0];
    this.#previous = [NONE];
    this.#next = [NONE];
    this.#spare = [];
    this.#root = 0;
    this.#height = 0;
    this.#rooms = this.#alignments.map(() => new Map<number, Float64Array>());
    this.#size = 0;
    this.#version++;
  }

  /** The value of exactly this range. */
  exact(start: number, length: number): V | undefined {
    const row = this.#leafOf(start);
    const at = this.#last(row, start);
    return at >= row * ROW && this.#starts[at] === start && this.#ends[at] === start + length
      ? this.#values[at]
      : undefined;
  }

  /** The value of the range that contains `address`. */
  at(address: number): V | undefined {
    const row = this.#leafOf(address);
    return this.#inTheWay(row, this.#last(row, address), address, address);
  }

  /** The value of the lowest range that overlaps `[start, end)`. */
  overlapping(start: number, end: number): V | undefined {
    const row = this.#leafOf(start);
    return this.#inTheWay(row, this.#last(row, start), start, end);
  }

  /** The value of the range with the greatest start that is at most `address`. */
  floor(address: number): V | undefined {
    const row = this.#leafOf(address);
    const at = this.#last(row, address);
    if (at >= row * ROW) return this.#result(at);
    const before = this.#previous[row];
    return before === NONE ? undefined : this.#result(before * ROW + this.#counts[before] - 1);
  }

  /** The value of the range with the least start that is greater than `address`. */
  above(address: number): V | undefined {
    const row = this.#leafOf(address);
    const at = this.#last(row, address) + 1;
    if (at < row * ROW + this.#counts[row]) return this.#result(at);
    const after = this.#next[row];
    return after === NONE ? undefined : this.#result(after * ROW);
  }

  /**
   * The start of the range that the last search found (`at`, `overlapping`, `floor`, `above`, `fit`). Valid until the
   * next change.
   */
  get foundStart(): number {
    return this.#starts[this.#found];
  }

  /** The end of that range. */
  get foundEnd(): number {
    return this.#ends[this.#found];
  }

  /** Makes that range longer or shorter. It must not be empty then, nor overlap the next one. */
  setFoundEnd(end: number): void {
    const at = this.#found;
    const start = this.#starts[at];
    const before = this.#ends[at];
    this.#ends[at] = end;
    if (this.#alignments.length === 0) return;
    this.#descend(start);
    if (end > before) this.#raiseRooms(start, end);
    else this.#lowerRooms(start, before);
  }

  /** Replaces the value of the range that the last search found. */
  replaceFound(value: V): void {
    this.#values[this.#found] = value;
  }

  /**
   * The value of the lowest range with `length` bytes from a multiple of `alignment` (a power of two) on.
   *
   * The first call with an alignment visits every range; from then on every change also updates the room for it.
   */
  fit(length: number, alignment: number): V | undefined {
    const index = this.#keepRoom(alignment);
    const starts = this.#starts;
    const ends = this.#ends;
    let row = this.#root;
    for (let level = this.#height; level > 0; level--) {
      const rooms = this.#roomsOf(row, index);
      const count = this.#counts[row];
      let slot = 0;
      while (slot < count && rooms[slot] < length) slot++;
      if (slot === count) return undefined;
      row = ends[row * ROW + slot] | 0;
    }
    const end = row * ROW + this.#counts[row];
    for (let at = row * ROW; at < end; at++)
      if (ends[at] - roundUp(starts[at], alignment) >= length) return this.#result(at);
    return undefined;
  }

  /** The greatest length for which {@link fit} finds a range; 0 if there is none. */
  room(alignment: number): number {
    return this.#room(this.#root, this.#height, this.#keepRoom(alignment));
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
    let row = this.#leafOf(-Infinity);
    let at = row * ROW;
    while (row !== NONE) {
      if (at === row * ROW + this.#counts[row]) {
        row = this.#next[row];
        at = row * ROW;
        continue;
      }
      const version = this.#version;
      const start = this.#starts[at];
      yield [start, this.#ends[at] - start, this.#values[at] as V];
      if (version !== this.#version) {
        row = this.#leafOf(start);
        at = this.#last(row, start);
      }
      at++;
    }
  }

  // --- searches ---

  /** The leaf that contains, or would contain, a range starting at `address`. */
  #leafOf(address: number): number {
    const starts = this.#starts;
    const ends = this.#ends;
    let row = this.#root;
    for (let level = this.#height; level > 0; level--) row = ends[lastOf(starts, row * ROW, address)] | 0;
    return row;
  }

  /** Where the last entry of a row that starts at or below `address` is; before the row if there is none. */
  #last(row: number, address: number): number {
    return lastOf(this.#starts, row * ROW, address);
  }

  /** Like `#leafOf`, and records the path. */
  #descend(address: number): number {
    let row = this.#root;
    for (let level = this.#height; level >= 0; level--) {
      const at = this.#last(row, address);
      this.#path[level] = row;
      this.#slots[level] = at - row * ROW;
      if (level > 0) row = this.#ends[at] | 0;
    }
    return row;
  }

  /** The value of the lowest range that overlaps `[start, end)`; `at` is the last of the leaf `row` up to `start`. */
  #inTheWay(row: number, at: number, start: number, end: number): V | undefined {
    const base = row * ROW;
    const ends = this.#ends;
    if (at >= base) {
      if (ends[at] > start) return this.#result(at);
    } else {
      const before = this.#previous[row];
      if (before !== NONE) {
        const last = before * ROW + this.#counts[before] - 1;
        if (ends[last] > start) return this.#result(last);
      }
    }
    let after = at + 1;
    if (after === base + this.#counts[row]) {
      const next = this.#next[row];
      if (next === NONE) return undefined;
      after = next * ROW;
    }
    return this.#starts[after] < end ? this.#result(after) : undefined;
  }

  /** Records the result of a search. */
  #result(at: number): V {
    this.#found = at;
    return this.#values[at] as V;
  }

  // --- entries of nodes ---

  /** Leaf: inserts a range at `slot`; the node must not be full. */
  #put(row: number, slot: number, start: number, end: number, value: V): void {
    const starts = this.#starts;
    const ends = this.#ends;
    const values = this.#values;
    const at = row * ROW + slot;
    let last = row * ROW + this.#counts[row]++;
    if (last >= values.length) values.push(undefined);
    for (; last > at; last--) {
      starts[last] = starts[last - 1];
      ends[last] = ends[last - 1];
      values[last] = values[last - 1];
    }
    starts[at] = start;
    ends[at] = end;
    values[at] = value;
  }

  /** Leaf: removes the range at `at`. */
  #drop(row: number, at: number): void {
    const starts = this.#starts;
    const ends = this.#ends;
    const values = this.#values;
    const last = row * ROW + --this.#counts[row];
    for (let i = at; i < last; i++) {
      starts[i] = starts[i + 1];
      ends[i] = ends[i + 1];
      values[i] = values[i + 1];
    }
    starts[last] = UNUSED;
    values[last] = undefined;
  }

  /** Moves `count` entries, from `slot` on, to another node of the same level, at `at`. */
  #move(source: number, slot: number, count: number, target: number, at: number, level: number): void {
    const from = source * ROW + slot;
    const fromEnd = source * ROW + this.#counts[source];
    const to = target * ROW + at;
    const toEnd = target * ROW + this.#counts[target];
    move(this.#starts, from, fromEnd, this.#starts, to, toEnd, count);
    move(this.#ends, from, fromEnd, this.#ends, to, toEnd, count);
    this.#starts.fill(UNUSED, fromEnd - count, fromEnd);
    if (level === 0) {
      const values = this.#values;
      for (let i = toEnd - 1; i >= to; i--) values[i + count] = values[i];
      for (let i = 0; i < count; i++) values[to + i] = values[from + i];
      for (let i = from; i < fromEnd; i++) values[i] = i + count < fromEnd ? values[i + count] : undefined;
    } else
      for (let i = 0; i < this.#alignments.length; i++) {
        const [own, others] = [this.#roomsOf(source, i), this.#roomsOf(target, i)];
        move(own, slot, this.#counts[source], others, at, this.#counts[target], count);
      }
    this.#counts[source] -= count;
    this.#counts[target] += count;
  }

  /** Inner node: inserts a child at `slot`; the node must not be full. Does not set its room. */
  #adopt(row: number, slot: number, separator: number, child: number): void {
    const at = row * ROW + slot;
    const end = row * ROW + this.#counts[row];
    this.#starts.copyWithin(at + 1, at, end);
    this.#ends.copyWithin(at + 1, at, end);
    for (let i = 0; i < this.#alignments.length; i++)
      this.#roomsOf(row, i).copyWithin(slot + 1, slot, this.#counts[row]);
    this.#starts[at] = separator;
    this.#ends[at] = child;
    this.#counts[row]++;
  }

  /** Inner node: removes the child at `slot`. */
  #abandon(row: number, slot: number): void {
    const at = row * ROW + slot;
    const end = row * ROW + this.#counts[row];
    this.#starts.copyWithin(at, at + 1, end);
    this.#starts[end - 1] = UNUSED;
    this.#ends.copyWithin(at, at + 1, end);
    for (let i = 0; i < this.#alignments.length; i++)
      this.#roomsOf(row, i).copyWithin(slot, slot + 1, this.#counts[row]);
    this.#counts[row]--;
  }

  #childOf(row: number, slot: number): number {
    return this.#ends[row * ROW + slot] | 0;
  }

  // --- rows ---

  /** An empty node. */
  #newRow(level: number): number {
    const row = this.#spare.pop() ?? this.#counts.length;
    this.#counts[row] = 0;
    this.#previous[row] = this.#next[row] = NONE;
    if (level > 0) for (const rooms of this.#rooms) rooms.set(row, new Float64Array(ROW));
    const end = (row + 1) * ROW;
    if (end > this.#starts.length) this.#reserve(end);
    while (this.#values.length < end) this.#values.push(undefined);
    return row;
  }

  /** The node was merged with another. */
  #dropRow(row: number): void {
    for (const rooms of this.#rooms) rooms.delete(row);
    this.#starts.fill(UNUSED, row * ROW, (row + 1) * ROW);
    this.#spare.push(row);
  }

  /** Makes room for `entries` in the arrays, and for more. */
  #reserve(entries: number): void {
    const used = this.#starts.length;
    const room = Math.ceil((entries * 5) / 4 / ROW) * ROW;
    const [starts, ends] = [new Float64Array(room), new Float64Array(room)];
    starts.set(this.#starts);
    starts.fill(UNUSED, used);
    ends.set(this.#ends);
    this.#starts = starts;
    this.#ends = ends;
  }

  /** Copies what is in use to smaller arrays when that is little of them. */
  #shrink(): void {
    const rows = this.#counts.length;
    const used = rows - this.#spare.length;
    if (rows < FEW_ROWS || used * 4 > rows) return;
    const old = { starts: this.#starts, ends: this.#ends, values: this.#values, counts: this.#counts };
    const rooms = this.#rooms;
    this.#rooms = rooms.map(() => new Map<number, Float64Array>());
    this.#starts = unused(used * ROW);
    this.#ends = new Float64Array(used * ROW);
    this.#values = [];
    this.#counts = [];
    this.#previous = [];
    this.#next = [];
    this.#spare = [];
    let before = NONE;
    const copy = (from: number, level: number): number => {
      const count = old.counts[from];
      const base = from * ROW;
      const row = this.#counts.push(count) - 1;
      this.#previous[row] = this.#next[row] = NONE;
      const at = row * ROW;
      this.#starts.set(old.starts.subarray(base, base + count), at);
      for (let i = 0; i < ROW; i++) this.#values.push(level === 0 && i < count ? old.values[base + i] : undefined);
      if (level === 0) {
        this.#ends.set(old.ends.subarray(base, base + count), at);
        this.#previous[row] = before;
        if (before !== NONE) this.#next[before] = row;
        before = row;
        return row;
      }
      rooms.forEach((each, i) => {
        const own = each.get(from);
        if (own !== undefined) this.#rooms[i].set(row, own);
      });
      for (let i = 0; i < count; i++) this.#ends[at + i] = copy(old.ends[base + i] | 0, level - 1);
      return row;
    };
    this.#root = copy(this.#root, this.#height);
  }

  /** Splits the full node of the path at `level`, and full nodes above it; updates the path. */
  #split(level: number): void {
    const row = this.#path[level];
    if (row === this.#root) {
      this.#root = this.#newRow(level + 1);
      this.#height = level + 1;
      this.#adopt(this.#root, 0, -Infinity, row);
      this.#path[level + 1] = this.#root;
      this.#slots[level + 1] = 0;
    } else if (this.#counts[this.#path[level + 1]] === FAN_OUT) {
      this.#split(level + 1);
    }
    // Ascending inserts leave nodes behind that get no more entries: such a node keeps most of them.
    const slotTaken = this.#slots[level];
    const half = slotTaken === FAN_OUT - 1 ? FAN_OUT - LEAST : slotTaken < 0 ? LEAST : ROW / 2;
    const right = this.#newRow(level);
    this.#move(row, half, FAN_OUT - half, right, 0, level);
    if (level === 0) {
      const next = this.#next[row];
      this.#previous[right] = row;
      this.#next[right] = next;
      if (next !== NONE) this.#previous[next] = right;
      this.#next[row] = right;
    }
    const parent = this.#path[level + 1];
    const slot = this.#slots[level + 1];
    this.#adopt(parent, slot + 1, this.#starts[right * ROW], right);
    this.#updateRoom(parent, slot, level);
    this.#updateRoom(parent, slot + 1, level);
    if (this.#slots[level] >= half) {
      this.#path[level] = right;
      this.#slots[level] -= half;
      this.#slots[level + 1]++;
    }
  }

  /** Gives nodes of the path with too few entries some of a neighbour's, or merges the two. */
  #fillUp(): void {
    for (let level = 0; level < this.#height && this.#counts[this.#path[level]] < LEAST; level++) {
      const parent = this.#path[level + 1];
      const slot = Math.max(1, this.#slots[level + 1]);
      const left = this.#childOf(parent, slot - 1);
      const right = this.#childOf(parent, slot);
      const total = this.#counts[left] + this.#counts[right];
      if (total <= MERGED) {
        this.#move(right, 0, this.#counts[right], left, this.#counts[left], level);
        if (level === 0) {
          const next = this.#next[right];
          this.#next[left] = next;
          if (next !== NONE) this.#previous[next] = left;
        }
        this.#abandon(parent, slot);
        this.#dropRow(right);
      } else {
        const surplus = this.#counts[left] - (total >>> 1);
        if (surplus > 0) this.#move(left, this.#counts[left] - surplus, surplus, right, 0, level);
        else this.#move(right, 0, -surplus, left, this.#counts[left], level);
        this.#starts[parent * ROW + slot] = this.#starts[right * ROW];
        this.#updateRoom(parent, slot, level);
      }
      this.#updateRoom(parent, slot - 1, level);
    }
    while (this.#height > 0 && this.#counts[this.#root] === 1) {
      const above = this.#root;
      this.#root = this.#childOf(above, 0);
      this.#height--;
      this.#dropRow(above);
    }
    this.#shrink();
  }

  // --- rooms ---

  /** Inner node: the room below each child. */
  #roomsOf(row: number, index: number): Float64Array {
    return this.#rooms[index].get(row) ?? NO_ROOMS;
  }

  /** The most bytes of one range in or below a node from a multiple of an alignment on. */
  #room(row: number, level: number, index: number): number {
    const count = this.#counts[row];
    let most = 0;
    if (level === 0) {
      const alignment = this.#alignments[index];
      for (let at = row * ROW; at < row * ROW + count; at++) {
        const room = this.#ends[at] - roundUp(this.#starts[at], alignment);
        if (room > most) most = room;
      }
    } else {
      const rooms = this.#roomsOf(row, index);
      for (let i = 0; i < count; i++) if (rooms[i] > most) most = rooms[i];
    }
    return most;
  }

  /** The index of `alignment` among those that room is kept for; adds it if needed. */
  #keepRoom(alignment: number): number {
    const known = this.#alignments.indexOf(alignment);
    if (known >= 0) return known;
    const index = this.#alignments.push(alignment) - 1;
    const all = new Map<number, Float64Array>();
    this.#rooms.push(all);
    const add = (row: number, level: number): void => {
      if (level === 0) return;
      const rooms = new Float64Array(ROW);
      all.set(row, rooms);
      for (let slot = 0; slot < this.#counts[row]; slot++) {
        const child = this.#childOf(row, slot);
        add(child, level - 1);
        rooms[slot] = this.#room(child, level - 1, index);
      }
    };
    add(this.#root, this.#height);
    return index;
  }

  /** Updates the room below one child, which is at `level`. */
  #updateRoom(parent: number, slot: number, level: number): void {
    for (let i = 0; i < this.#alignments.length; i++)
      this.#roomsOf(parent, i)[slot] = this.#room(this.#childOf(parent, slot), level, i);
  }

  /** Updates the rooms above after a range was added to the leaf of the path. */
  #raiseRooms(start: number, end: number): void {
    for (let i = 0; i < this.#alignments.length; i++) {
      const room = end - roundUp(start, this.#alignments[i]);
      for (let level = 1; level <= this.#height; level++) {
        const rooms = this.#roomsOf(this.#path[level], i);
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
      for (let level = 1; level <= this.#height; level++) {
        const row = this.#path[level];
        const rooms = this.#roomsOf(row, i);
        const slot = this.#slots[level];
        if (room < rooms[slot]) break;
        rooms[slot] = this.#room(this.#childOf(row, slot), level - 1, i);
      }
    }
  }

  /**
   * For tests: throws if an invariant of the tree does not hold.
   * @internal
   */
  checkInvariants(): void {
    const fail = (what: string): never => {
      throw new Error(`RangeMap: ${what}`);
    };
    const leaves: number[] = [];
    const rows = new Set<number>();
    const check = (row: number, level: number, low: number, high: number): void => {
      const count = this.#counts[row];
      const base = row * ROW;
      const starts = this.#starts.subarray(base, base + count);
      const ends = this.#ends.subarray(base, base + count);
      if (rows.has(row) || this.#spare.includes(row)) fail('a row is used twice');
      rows.add(row);
      if (count > FAN_OUT || (row !== this.#root && count < LEAST)) fail(`${count} entries at level ${level}`);
      for (let i = count; i < ROW; i++) {
        if (this.#values[base + i] !== undefined) fail('a value is left behind');
        if (!Number.isNaN(this.#starts[base + i])) fail('a start is left behind');
      }
      if (level === 0) {
        leaves.push(row);
        for (let i = 0; i < count; i++) {
          if (starts[i] < low || starts[i] >= high) fail('a start lies outside its separators');
          if (ends[i] <= starts[i]) fail('an empty range');
          if (i > 0 && starts[i] < ends[i - 1]) fail('ranges overlap');
          if (this.#values[base + i] === undefined) fail('a value is missing');
        }
        return;
      }
      if (count < 2) fail('an inner node has one child');
      if (starts[0] !== low) fail("the first separator is not the parent's");
      ends.forEach((child, i) => {
        this.#alignments.forEach((_, a) => {
          if (this.#roomsOf(row, a)[i] !== this.#room(child, level - 1, a)) fail('a room is out of date');
        });
        check(child, level - 1, starts[i], i + 1 < count ? starts[i + 1] : high);
      });
    };
    check(this.#root, this.#height, -Infinity, Infinity);
    leaves.forEach((leaf, i) => {
      if (this.#previous[leaf] !== (leaves[i - 1] ?? NONE) || this.#next[leaf] !== (leaves[i + 1] ?? NONE))
        fail('the chain of leaves is broken');
      const before = this.#previous[leaf];
      if (before !== NONE && this.#starts[leaf * ROW] < this.#ends[before * ROW + this.#counts[before] - 1])
        fail('ranges of two leaves overlap');
    });
    if (rows.size + this.#spare.length !== this.#counts.length) fail('a row is lost');
    if (this.#counts.length >= FEW_ROWS && rows.size * 4 <= this.#counts.length) fail('the arrays are too large');
    if (leaves.reduce((sum, leaf) => sum + this.#counts[leaf], 0) !== this.#size) fail('the size is wrong');
  }
}

/** Of no node. */
const NO_ROOMS = new Float64Array(0);
