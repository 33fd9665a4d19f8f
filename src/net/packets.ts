/**
 * Packets over the elements of a pool: where the data of each begins, how long it is, which segments follow, and what
 * hardware said about it. All of it is in typed arrays beside the pool, by element number; nothing is written into the
 * memory of packets. DPDK calls such an element an mbuf.
 *
 * A packet is the number of its first element. A segment whose bytes are in its own element is direct; one that shows the
 * bytes of another element (a clone) or of other memory (`attach`) is indirect.
 */
import { mustBeFunction, mustBeObject, mustBeWhole, mustHave, optionsOf } from '../check.js';
import { DmaError, invalid } from '../errors.js';
import type { Pool, PoolDevice } from '../memory/pool/pool.js';
import { checkBurst } from '../memory/pool/element-stack.js';
import { show } from '../show.js';
import { DeviceBuffers } from './device-buffers.js';
import { ownTable, sharedTable, tableBytes } from './packet-table.js';
import { STAYS } from '../stays.js';

/** Bytes before the data of a received packet, unless the program says otherwise: as in DPDK. */
export const HEADROOM = 128;

/** Sizes and offsets are kept in 16 bits. */
const MAX_ELEMENT = 0xffff;

/** Segments of a packet are counted in 16 bits. */
const MAX_SEGMENTS = 0xffff;

/** Bytes of a packet are counted in 32 bits. */
const MAX_PACKET = 2 ** 32 - 1;

/** No element. */
export const NONE = -1;

/** Uses of an element: it is a packet or segment in use; its bytes are shown by one packet; both. */
const IN_USE = 1;
const SHOWN = 2;
const ALONE = IN_USE + SHOWN;

/** How packets lie in the elements of their pool. */
export interface PacketsOptions {
  /** Bytes of each element before the data of a received packet, for headers that are put in front. Default {@link HEADROOM}. */
  readonly headroom?: number;
  /**
   * Memory for the arrays that tell what packets are, {@link Packets.tableBytes} of it, such as a zone's: packets are the same then in all
   * threads and processes that have the pool and this memory. The thread that made the pool makes its packets first. Default: memory of
   * this thread alone.
   */
  readonly table?: Uint8Array;
}

/** Memory outside of the pool, for {@link Packets.attach}. */
export interface ExternalBuffer {
  /** The bytes. They must stay where they are until `released` is called. */
  readonly bytes: Uint8Array;
  /** Their address in this process. */
  readonly va: number;
  /** Called once, after the last packet that shows these bytes was released. */
  readonly released: () => void;
}

/** Packets over the elements of a pool. */
export class Packets {
  /** @internal */
  readonly stays = STAYS;
  readonly pool: Pool;
  /** bytes */
  readonly headroom: number;
  /** Bytes that one element can receive: its size without the headroom. */
  readonly room: number;
  /** Are they in a table that other threads or processes may have? */
  readonly isShared: boolean;
  /** By element: where its data begins, in bytes from the beginning of its buffer. */
  readonly offset: Uint16Array;
  /** By element: bytes of data in this segment. */
  readonly length: Uint16Array;
  /** By first element: bytes of the whole packet. */
  readonly total: Uint32Array;
  /** By element: the next segment, or {@link NONE}. */
  readonly next: Int32Array;
  /** By first element: number of segments. */
  readonly segments: Uint16Array;
  /** By first element: what hardware found, or is asked to do: `OFFLOAD`. */
  readonly flags: Uint32Array;
  /** By first element: the VLAN tag (802.1Q: priority, DEI and id) that was stripped, or that is to be inserted. */
  readonly vlan: Uint16Array;
  /** By first element: the hash that receive-side scaling computed. */
  readonly hash: Uint32Array;
  /** By first element: when it was received, in seconds since 1970 and nanoseconds; see `OFFLOAD.RX_TIMESTAMP`. */
  readonly seconds: Float64Array;
  readonly nanos: Uint32Array;
  /** By first element: bytes that the frame had on the wire, where it was cut; see `OFFLOAD.RX_CUT`. */
  readonly wire: Uint32Array;
  /** By first element: lengths of headers in bytes, for offloads: Ethernet, IP, TCP or UDP. */
  readonly l2: Uint8Array;
  readonly l3: Uint16Array;
  readonly l4: Uint8Array;
  /** By first element: bytes of data in each packet that a large one is cut into (TSO). */
  readonly segmentSize: Uint16Array;
  /** By element: whose bytes it shows. An element number, or `pool.elements` plus the number of an attached buffer. */
  readonly buffer: Int32Array;
  /**
   * By element: twice the number of packets that show its bytes (its own counts, even if it shows others), plus one while
   * it is a packet or segment in use. 0: it is in the pool.
   */
  readonly #uses: Int32Array;
  /** By buffer: the view that has its bytes, and where in the view its offset 0 is. */
  readonly #views: Uint8Array[] = [];
  #viewOf: Int32Array;
  #startOf: Int32Array;
  #external: (AttachedBuffer | undefined)[] = [];
  #freeExternal: number[] = [];
  readonly #devices = new Map<object, DeviceBuffers>();
  readonly #one = new Int32Array(1);
  #back = new Int32Array(64);

  /**
   * @param pool where the elements come from. Programs may make several `Packets` over one pool, each with packets of its own
   * @throws DmaError EINVAL if the pool is freed, the elements are larger than 65,535 bytes or not larger than the headroom, or
   *   `options.table` is no memory for them
   */
  constructor(pool: Pool, options: PacketsOptions = {}) {
    const operation = 'packets';
    mustHave(pool, ['get', 'put', 'chunkBytes', 'iovasFor'], 'pool', operation, 'see eal.pools.create');
    const given = optionsOf(options, { headroom: 'number', table: Uint8Array }, operation);
    const { headroom = HEADROOM, table: memory } = given;
    mustBeWhole(headroom, 0, MAX_ELEMENT, 'the headroom', operation);
    const { elements, elementSize } = pool;
    if (elementSize > MAX_ELEMENT || elementSize <= headroom)
      throw invalid(
        operation,
        `elements of ${elementSize} bytes can not have packets with ${headroom} bytes of headroom`,
        {
          hint: `elements have more bytes than the headroom, and at most ${MAX_ELEMENT}; 2,176 is usual: 128 + 2,048`,
        },
      );
    this.pool = pool;
    this.headroom = headroom;
    this.room = elementSize - headroom;
    const shape = { elements, elementSize, headroom };
    const table = memory === undefined ? ownTable(shape) : sharedTable(memory, shape, pool.isMine, operation);
    this.isShared = memory !== undefined;
    this.offset = table.offset;
    this.length = table.length;
    this.total = table.total;
    this.next = table.next;
    this.segments = table.segments;
    this.flags = table.flags;
    this.vlan = table.vlan;
    this.hash = table.hash;
    this.seconds = table.seconds;
    this.nanos = table.nanos;
    this.wire = table.wire;
    this.l2 = table.l2;
    this.l3 = table.l3;
    this.l4 = table.l4;
    this.segmentSize = table.segmentSize;
    this.#uses = table.uses;
    this.buffer = Int32Array.from({ length: elements }, (_, element) => element);
    this.#viewOf = pool.chunkOf.slice();
    this.#startOf = pool.offsetOf.slice();
    pool.chunks.forEach((_, chunk) => this.#views.push(pool.chunkBytes(chunk)));
  }

  /**
   * Takes `count` empty packets of one segment, all or none, and writes their numbers to `into` from index `at`.
   *
   * @returns false if the pool has fewer
   * @throws DmaError as `pool.get`
   */
  take(into: Int32Array, count: number, at = 0): boolean {
    if (!this.pool.get(into, count, at)) return false;
    const { offset, length, total, flags, headroom } = this;
    const uses = this.#uses;
    for (let i = at; i < at + count; i++) {
      const element = into[i] ?? 0;
      if (uses[element] !== 0) this.#forget(element);
      uses[element] = ALONE;
      offset[element] = headroom;
      length[element] = 0;
      total[element] = 0;
      flags[element] = 0;
    }
    return true;
  }

  /** The element came back from a thread that ended while it was a part of a packet. */
  #forget(element: number): void {
    this.next[element] = NONE;
    this.segments[element] = 1;
  }

  /** Bytes of the option `table` for a pool of so many elements. */
  static tableBytes(elements: number): number {
    return tableBytes(elements);
  }

  /** Takes one empty packet: its number, or {@link NONE} if the pool has none left. */
  takeOne(): number {
    return this.take(this.#one, 1) ? (this.#one[0] ?? NONE) : NONE;
  }

  /**
   * Releases `count` packets, with all their segments, whose numbers are in `from` from index `at`. Elements go back to
   * the pool as soon as no clone shows their bytes. Makes no garbage.
   *
   * @throws DmaError EINVAL for a number that is no packet in use, before anything of it is released; those before it in
   *   the burst are released
   */
  release(from: Int32Array, count: number, at = 0): void {
    const uses = this.#uses;
    const { next, buffer } = this;
    // The usual case: one segment each, nothing shared.
    let i = at;
    const end = at + count;
    for (; i < end; i++) {
      const element = from[i] ?? NONE;
      if (uses[element] !== ALONE || next[element] !== NONE || buffer[element] !== element) break;
      uses[element] = 0;
    }
    if (i > at) this.pool.put(from, i - at, at);
    for (; i < end; i++) this.#releaseChain(from[i] ?? NONE);
  }

  /** Releases one packet. @throws DmaError as {@link Packets.release} */
  releaseOne(packet: number): void {
    this.#one[0] = packet;
    this.release(this.#one, 1);
  }

  #releaseChain(first: number): void {
    const uses = this.#uses;
    const { next, segments } = this;
    if (!this.inUse(first)) this.#mustBeInUse(first, 'release');
    let count = 0;
    for (let element = first; element !== NONE; element = next[element] ?? NONE) {
      // A chain that was made by hand may run in a circle.
      if (((uses[element] ?? 0) & IN_USE) === 0 || ++count > (segments[first] ?? 0))
        this.#mustBeInUse(element, 'release');
    }
    segments[first] = 1;
    for (let element = first; element !== NONE;) {
      const following = next[element] ?? NONE;
      next[element] = NONE;
      this.#releaseSegment(element);
      element = following;
    }
  }

  #releaseSegment(element: number): void {
    const shown = this.buffer[element] ?? element;
    this.#drop(element, ALONE);
    if (shown === element) return;
    this.buffer[element] = element;
    if (shown < this.pool.elements) this.#drop(shown, SHOWN);
    else this.#dropExternal(shown - this.pool.elements);
  }

  /** Takes uses away from an element; the last one gives it back to the pool. */
  #drop(element: number, uses: number): void {
    const left = (this.#uses[element] ?? 0) - uses;
    this.#uses[element] = left;
    if (left > 0) return;
    this.#back[0] = element;
    this.pool.put(this.#back, 1);
  }

  #dropExternal(slot: number): void {
    const buffer = this.#external[slot];
    if (buffer === undefined || --buffer.references > 0) return;
    this.#external[slot] = undefined;
    this.#freeExternal.push(slot);
    for (const device of this.#devices.values()) device.forget(this.pool.elements + slot);
    buffer.released();
  }

  #mustBeInUse(element: number, operation: string): void {
    if (this.inUse(element))
      throw invalid(`packets.${operation}`, `the segments of packet ${element} do not end`, {
        hint: 'a chain is made by packets.chain; segments[] tells how many it has',
      });
    throw invalid(`packets.${operation}`, `${show(element)} is no packet in use`, {
      hint: 'it was released before, or sent: what tx takes belongs to the port',
    });
  }

  /**
   * Are the first `count` numbers of a burst packets in use, each once? For ports, before they take any.
   *
   * @throws DmaError EINVAL; nothing has changed then
   */
  mustBeBurst(burst: Int32Array, count: number, operation = 'port.tx'): void {
    checkBurst(burst, count, 0);
    const uses = this.#uses;
    let seen = 0;
    for (; seen < count; seen++) {
      const packet = burst[seen];
      if ((uses[packet] & IN_USE) === 0) break;
      // So that the same one is not in use when it comes again.
      uses[packet] -= IN_USE;
    }
    for (let i = 0; i < seen; i++) uses[burst[i]] |= IN_USE;
    if (seen === count) return;
    const wrong = burst[seen];
    throw invalid(operation, this.inUse(wrong) ? `packet ${wrong} twice` : `${show(wrong)} is no packet in use`, {
      hint: 'what tx takes belongs to the port; packets.clone makes another packet of the same bytes',
    });
  }

  /** Is this the number of a packet or segment in use? */
  inUse(packet: number): boolean {
    return ((this.#uses[packet] ?? 0) & IN_USE) !== 0;
  }

  /** Is it a packet in use, of one segment, that shares its bytes with no other one? */
  isPlain(packet: number): boolean {
    return this.#uses[packet] === ALONE && this.next[packet] === NONE && this.buffer[packet] === packet;
  }

  /** Does a segment in use show its own bytes, and no other packet them? */
  isAlone(segment: number): boolean {
    return this.#uses[segment] === ALONE && this.buffer[segment] === segment;
  }

  /**
   * Makes `more` the continuation of `packet`, whose last segment's successor it becomes. From then on it belongs to
   * `packet`.
   *
   * @throws DmaError EINVAL if one of them is not in use, or both are the same packet; ERANGE: more segments or bytes than can be counted
   */
  chain(packet: number, more: number): void {
    const operation = 'packets.chain';
    if (!this.inUse(packet)) this.#mustBeInUse(packet, 'chain');
    if (!this.inUse(more)) this.#mustBeInUse(more, 'chain');
    const { next, segments, total } = this;
    const count = (segments[packet] ?? 1) + (segments[more] ?? 1);
    if (count > MAX_SEGMENTS)
      throw new DmaError({ code: 'ERANGE', operation, reason: `${count} segments are too many` });
    let last = packet;
    for (;;) {
      if (last === more) throw invalid(operation, `packet ${more} is a part of packet ${packet}`);
      const following = next[last] ?? NONE;
      if (following === NONE) break;
      last = following;
    }
    next[last] = more;
    segments[packet] = count;
    segments[more] = 1;
    total[packet] = (total[packet] ?? 0) + (total[more] ?? 0);
  }

  /**
   * Another packet with the same bytes, nothing copied: as long as one of the two lives, so do the bytes. Headers that
   * are written through one are seen through the other.
   *
   * @returns its number, or {@link NONE} if the pool has too few elements
   * @throws DmaError EINVAL if `packet` is not in use
   */
  clone(packet: number): number {
    if (!this.inUse(packet)) this.#mustBeInUse(packet, 'clone');
    const count = this.segments[packet] ?? 1;
    if (this.#back.length < count) this.#back = new Int32Array(2 * count);
    const taken = count === 1 ? this.#one : new Int32Array(count);
    if (!this.take(taken, count)) return NONE;
    const first = taken[0] ?? NONE;
    let from = packet;
    for (let i = 0; i < count; i++) {
      const element = taken[i] ?? NONE;
      const shown = this.buffer[from] ?? from;
      this.buffer[element] = shown;
      if (shown < this.pool.elements) this.#uses[shown] = (this.#uses[shown] ?? 0) + SHOWN;
      else this.#attached(shown).references++;
      this.offset[element] = this.offset[from] ?? 0;
      this.length[element] = this.length[from] ?? 0;
      this.next[element] = i + 1 < count ? (taken[i + 1] ?? NONE) : NONE;
      from = this.next[from] ?? NONE;
    }
    this.#copyFacts(packet, first);
    this.total[first] = this.total[packet] ?? 0;
    this.segments[first] = count;
    return first;
  }

  /** What is known of a packet besides its segments. */
  #copyFacts(from: number, to: number): void {
    const { flags, vlan, hash, seconds, nanos, wire, l2, l3, l4, segmentSize } = this;
    for (const of of [flags, vlan, hash, seconds, nanos, wire, l2, l3, l4, segmentSize]) of[to] = of[from] ?? 0;
  }

  /**
   * Another packet with bytes of its own, and all else as `packet` has it.
   *
   * @returns its number, or {@link NONE} if the pool has too few elements
   * @throws DmaError EINVAL if `packet` is not in use
   */
  copied(packet: number): number {
    const copy = this.from(this.copy(packet));
    if (copy !== NONE) this.#copyFacts(packet, copy);
    return copy;
  }

  /**
   * Lets an empty packet show bytes outside of the pool: `external.bytes`, of which `length` from `offset` are its data.
   *
   * @throws DmaError EINVAL if the packet is not in use, has segments or data, or the range is not inside the bytes;
   *   ERANGE for more than 65,535 bytes
   */
  attach(packet: number, external: ExternalBuffer, offset = 0, length?: number): void {
    const operation = 'packets.attach';
    if (!this.inUse(packet)) this.#mustBeInUse(packet, 'attach');
    mustBeObject(external, 'the buffer', operation);
    const { bytes, va, released } = external;
    mustBeFunction(released, 'released', operation);
    mustBeWhole(va, 0, Number.MAX_SAFE_INTEGER, 'va', operation);
    const size = length ?? bytes.length - offset;
    if (!(
      Number.isInteger(offset) &&
      offset >= 0 &&
      Number.isInteger(size) &&
      size >= 0 &&
      offset + size <= bytes.length
    ))
      throw invalid(operation, `${show(size)} bytes from ${show(offset)} are not inside ${bytes.length} bytes`);
    if (offset + size > MAX_ELEMENT)
      throw new DmaError({
        code: 'ERANGE',
        operation,
        reason: `a segment ends at most ${MAX_ELEMENT} bytes after the beginning of its buffer`,
      });
    if (this.next[packet] !== NONE || this.total[packet] !== 0 || this.buffer[packet] !== packet)
      throw invalid(operation, `packet ${packet} has data already`, { hint: 'take a new one, attach, and chain it' });
    const slot = this.#freeExternal.pop() ?? this.#external.length;
    const id = this.pool.elements + slot;
    this.#external[slot] = { va, bytes, released, references: 1 };
    if (id >= this.#viewOf.length) {
      this.#viewOf = grown(this.#viewOf);
      this.#startOf = grown(this.#startOf);
    }
    const view = this.pool.chunks.length + slot;
    this.#views[view] = bytes;
    this.#viewOf[id] = view;
    this.#startOf[id] = 0;
    this.buffer[packet] = id;
    this.offset[packet] = offset;
    this.length[packet] = size;
    this.total[packet] = size;
  }

  #attached(buffer: number): AttachedBuffer {
    const there = this.#external[buffer - this.pool.elements];
    if (there === undefined) throw invalid('packets', `there is no buffer ${buffer}`);
    return there;
  }

  /** @internal The address in this process of a buffer's offset 0, and its size; a size of -1: no such buffer. */
  placeOf(buffer: number): { readonly va: number; readonly length: number } {
    const { pool } = this;
    if (buffer < pool.elements) return { va: pool.vas[buffer] ?? 0, length: pool.elementSize };
    const there = this.#external[buffer - pool.elements];
    return there === undefined ? { va: 0, length: -1 } : { va: there.va, length: there.bytes.length };
  }

  /**
   * The bytes of one segment of a packet. A new view each time: for hot paths see {@link Packets.view}.
   *
   * @throws DmaError EINVAL if it is not in use
   */
  bytes(segment: number): Uint8Array {
    if (!this.inUse(segment)) this.#mustBeInUse(segment, 'bytes');
    const start = this.start(segment);
    return this.view(segment).subarray(start, start + (this.length[segment] ?? 0));
  }

  /** The view that has a segment's bytes, from {@link Packets.start}; nothing is checked. */
  view(segment: number): Uint8Array {
    return this.#views[this.#viewOf[this.buffer[segment] ?? -1] ?? -1] ?? NO_BYTES;
  }

  /** Where in {@link Packets.view} a segment's data begins; nothing is checked. */
  start(segment: number): number {
    return (this.#startOf[this.buffer[segment] ?? -1] ?? 0) + (this.offset[segment] ?? 0);
  }

  /** All bytes of a packet, copied. @throws DmaError EINVAL if it is not in use */
  copy(packet: number): Uint8Array<ArrayBuffer> {
    if (!this.inUse(packet)) this.#mustBeInUse(packet, 'copy');
    const all = new Uint8Array(this.total[packet] ?? 0);
    let at = 0;
    for (let segment = packet; segment !== NONE; segment = this.next[segment] ?? NONE) {
      const part = this.bytes(segment);
      all.set(part.subarray(0, all.length - at), at);
      at += part.length;
    }
    return all;
  }

  /**
   * Makes `bytes` the data of a new packet, in as many segments as it takes; at least one.
   *
   * @returns its number, or {@link NONE} if the pool has too few elements left
   * @throws DmaError ERANGE for more bytes than 65,535 segments have room for
   */
  from(bytes: Uint8Array): number {
    const { room } = this;
    const count = Math.max(1, Math.ceil(bytes.length / room));
    if (count > MAX_SEGMENTS)
      throw new DmaError({ code: 'ERANGE', operation: 'packets.from', reason: `${count} segments are too many` });
    const taken = count === 1 ? this.#one : new Int32Array(count);
    if (!this.take(taken, count)) return NONE;
    const first = taken[0] ?? NONE;
    for (let i = 0, at = 0; i < count; i++, at += room) {
      const element = taken[i] ?? NONE;
      const part = bytes.subarray(at, at + room);
      this.view(element).set(part, this.start(element));
      this.length[element] = part.length;
      this.next[element] = i + 1 < count ? (taken[i + 1] ?? NONE) : NONE;
    }
    this.segments[first] = count;
    this.total[first] = bytes.length;
    return first;
  }

  /**
   * Room for `count` bytes in front of the data, taken from the headroom.
   *
   * @throws DmaError EINVAL if the packet is not in use; ENOSPC if the headroom is too small
   */
  prepend(packet: number, count: number): void {
    if (!this.inUse(packet)) this.#mustBeInUse(packet, 'prepend');
    mustBeWhole(count, 0, MAX_PACKET, 'the number of bytes', 'packets.prepend');
    const { offset, length, total } = this;
    const before = offset[packet] ?? 0;
    if (count > before || (length[packet] ?? 0) + count > MAX_ELEMENT)
      throw new DmaError({
        code: 'ENOSPC',
        operation: 'packets.prepend',
        reason: `there is no room for ${count} bytes in front`,
        hint: `the packet has ${before} bytes of headroom left`,
      });
    offset[packet] = before - count;
    length[packet] = (length[packet] ?? 0) + count;
    total[packet] = (total[packet] ?? 0) + count;
  }

  /**
   * Takes `count` bytes away from the beginning of the first segment.
   *
   * @throws DmaError EINVAL if the packet is not in use, or its first segment is shorter
   */
  trimFront(packet: number, count: number): void {
    if (!this.inUse(packet)) this.#mustBeInUse(packet, 'trimFront');
    mustBeWhole(count, 0, MAX_PACKET, 'the number of bytes', 'packets.trimFront');
    const { offset, length, total } = this;
    const has = length[packet] ?? 0;
    if (count > has)
      throw invalid('packets.trimFront', `the first segment of packet ${packet} has ${has} bytes, fewer than ${count}`);
    offset[packet] = (offset[packet] ?? 0) + count;
    length[packet] = has - count;
    total[packet] = (total[packet] ?? 0) - count;
  }

  /**
   * Keeps the first `count` bytes of a packet, and releases segments behind them.
   *
   * @throws DmaError EINVAL if the packet is not in use, or shorter
   */
  truncate(packet: number, count: number): void {
    if (!this.inUse(packet)) this.#mustBeInUse(packet, 'truncate');
    mustBeWhole(count, 0, MAX_PACKET, 'the number of bytes', 'packets.truncate');
    const { next, length, total, segments } = this;
    const has = total[packet] ?? 0;
    if (count > has) throw invalid('packets.truncate', `packet ${packet} has ${has} bytes, fewer than ${count}`);
    let last = packet;
    let kept = 1;
    let left = count;
    while (left > (length[last] ?? 0)) {
      left -= length[last] ?? 0;
      last = next[last] ?? NONE;
      kept++;
    }
    length[last] = left;
    const rest = next[last] ?? NONE;
    next[last] = NONE;
    const dropped = (segments[packet] ?? 1) - kept;
    segments[packet] = kept;
    total[packet] = count;
    if (rest === NONE) return;
    segments[rest] = dropped;
    this.#releaseChain(rest);
  }

  /**
   * The device's address of each buffer, for drivers: `buffers.of(segment)`.
   *
   * @throws DmaError as `pool.iovasFor`
   */
  buffersFor(device: PoolDevice): DeviceBuffers {
    let there = this.#devices.get(device);
    if (there === undefined) this.#devices.set(device, (there = new DeviceBuffers(this, device)));
    return there.refreshed();
  }
}

/** Memory that packets show, and how many do. */
interface AttachedBuffer extends ExternalBuffer {
  references: number;
}

const NO_BYTES = new Uint8Array(0);

function grown(words: Int32Array): Int32Array<ArrayBuffer> {
  const more = new Int32Array(words.length + 64 + (words.length >> 2));
  more.set(words);
  return more;
}
