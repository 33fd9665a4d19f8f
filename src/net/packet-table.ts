/**
 * The arrays of packets, by element number, laid out in one piece of memory: of this thread alone, or of a zone that other threads and
 * processes have too. There a packet is passed on by its number, and nothing of it is copied.
 */
import { invalid } from '../errors.js';

/** What a table begins with, in 32-bit words: what it is, and what pool it is for. */
const KIND = 0x504b5453;
const HEAD_WORDS = 16;
const ELEMENTS_AT = 1;
const SIZE_AT = 2;
const HEADROOM_AT = 3;

/** Each array begins on a cache line. */
const LINE = 64;
/** Bytes of each element in all arrays together. */
const ELEMENT_BYTES = 8 + 7 * 4 + 6 * 2 + 2;
const ARRAYS = 16;

/** The arrays: see `Packets`. */
export interface PacketTable {
  readonly offset: Uint16Array;
  readonly length: Uint16Array;
  readonly total: Uint32Array;
  readonly next: Int32Array;
  readonly segments: Uint16Array;
  readonly flags: Uint32Array;
  readonly vlan: Uint16Array;
  readonly hash: Uint32Array;
  readonly seconds: Float64Array;
  readonly nanos: Uint32Array;
  readonly wire: Uint32Array;
  readonly l2: Uint8Array;
  readonly l3: Uint16Array;
  readonly l4: Uint8Array;
  readonly segmentSize: Uint16Array;
  readonly uses: Int32Array;
}

/** Bytes of a table for a pool of so many elements. */
export function tableBytes(elements: number): number {
  return HEAD_WORDS * 4 + elements * ELEMENT_BYTES + ARRAYS * LINE;
}

/** What a table has to fit. */
export interface TableShape {
  readonly elements: number;
  readonly elementSize: number;
  readonly headroom: number;
}

/** A table of this thread alone. */
export function ownTable(shape: TableShape): PacketTable {
  return cleared(arraysIn(new Uint8Array(tableBytes(shape.elements)), shape.elements), shape);
}

/**
 * A table in memory that others have, too.
 *
 * @param clear make all packets free; otherwise only if there is no table yet
 * @throws DmaError EINVAL if the memory is too small, not aligned to 8 bytes, or has the table of another pool
 */
export function sharedTable(memory: Uint8Array, shape: TableShape, clear: boolean, operation: string): PacketTable {
  const { elements, elementSize, headroom } = shape;
  const needs = tableBytes(elements);
  if (memory.length < needs || memory.byteOffset % 8 !== 0)
    throw invalid(operation, `a table of ${elements} elements does not fit into these ${memory.length} bytes`, {
      hint: `it takes Packets.tableBytes(pool.elements) = ${needs} bytes, aligned to 8: those of a zone are`,
    });
  const head = new Int32Array(memory.buffer, memory.byteOffset, HEAD_WORDS);
  const arrays = arraysIn(memory, elements);
  if (clear || Atomics.load(head, 0) !== KIND) {
    cleared(arrays, shape);
    head[ELEMENTS_AT] = elements;
    head[SIZE_AT] = elementSize;
    head[HEADROOM_AT] = headroom;
    Atomics.store(head, 0, KIND);
  }
  const there = [head[ELEMENTS_AT], head[SIZE_AT], head[HEADROOM_AT]];
  if (there.join() === [elements, elementSize, headroom].join()) return arrays;
  throw invalid(
    operation,
    `the table is of ${there[0]} elements of ${there[1]} bytes with ${there[2]} of headroom, not of ${elements} of ${elementSize} with ${headroom}`,
    { hint: 'all who share a table make their packets with the same pool and the same headroom' },
  );
}

function cleared(table: PacketTable, { headroom }: TableShape): PacketTable {
  table.uses.fill(0);
  table.offset.fill(headroom);
  table.next.fill(-1);
  table.segments.fill(1);
  return table;
}

function arraysIn(memory: Uint8Array, elements: number): PacketTable {
  let at = HEAD_WORDS * 4;
  const place = (bytes: number): readonly [ArrayBufferLike, number, number] => {
    const here = at;
    at = Math.ceil((at + elements * bytes) / LINE) * LINE;
    return [memory.buffer, memory.byteOffset + here, elements];
  };
  return {
    seconds: new Float64Array(...place(8)),
    uses: new Int32Array(...place(4)),
    next: new Int32Array(...place(4)),
    total: new Uint32Array(...place(4)),
    flags: new Uint32Array(...place(4)),
    hash: new Uint32Array(...place(4)),
    nanos: new Uint32Array(...place(4)),
    wire: new Uint32Array(...place(4)),
    offset: new Uint16Array(...place(2)),
    length: new Uint16Array(...place(2)),
    segments: new Uint16Array(...place(2)),
    vlan: new Uint16Array(...place(2)),
    l3: new Uint16Array(...place(2)),
    segmentSize: new Uint16Array(...place(2)),
    l2: new Uint8Array(...place(1)),
    l4: new Uint8Array(...place(1)),
  };
}
