/** What `malloc` is asked for: options, checked, and what is tried for them. */
import { optionsOf, type Shape, typeHint } from '../../check.js';
import { invalid } from '../../errors.js';
import { show } from '../../show.js';
import { formatSize, isAddress, isPowerOfTwo } from '../../units.js';

/** Options of an allocation. */
export interface MallocOptions {
  /** Name of the heap. Default: the library's own memory, on `node` or any node. */
  readonly heap?: string;
  /** Only from this NUMA node. Default: any, the first that has room. */
  readonly node?: number;
  /** Its address is a multiple of this power of two, in bytes. Default, and minimum: 64. 0 means 64. */
  readonly align?: number;
  /** Fill it with zeros? Default false: it may hold old data. */
  readonly zero?: boolean;
  /** Contiguous for every device, whatever addresses the device uses? Default false. */
  readonly contiguous?: boolean;
  /** It does not cross a multiple of this power of two, in bytes, which is at least its size. Default 0: it may. */
  readonly boundary?: number;
  /**
   * It is on pages of one of these sizes, in bytes. Default: any. A heap over the user's memory treats this as a wish.
   */
  readonly pageSizes?: readonly number[];
  /** Are other page sizes acceptable if none of `pageSizes` is available? Default false. */
  readonly pageSizeHint?: boolean;
}

/** Options of an allocation from a heap that was chosen. */
export type BlockOptions = Omit<MallocOptions, 'heap' | 'node'>;

/** What is needed if a heap has no room. */
export interface RoomRequest {
  /** bytes */
  readonly size: number;
  /** bytes */
  readonly align: number;
  /** bytes; 0 for none */
  readonly boundary: number;
  /** bytes; absent: any */
  readonly pageSizes: readonly number[] | undefined;
}

export const NONE: BlockOptions = {};

/** @internal With the options that choose a heap, which callers evaluate. */
export const MALLOC_OPTIONS: Shape<MallocOptions> = {
  align: 'number',
  zero: 'boolean',
  contiguous: 'boolean',
  boundary: 'number',
  pageSizes: 'array',
  pageSizeHint: 'boolean',
  heap: 'string',
  node: 'number',
};

/** Blocks begin at multiples of this, in bytes. */
export const LINE = 64;

/** `count * size`. @throws DmaError EINVAL if that is not a valid size */
export function checkedProduct(count: number, size: number): number {
  if (isAddress(count) && isAddress(size) && isAddress(count * size)) return count * size;
  throw invalid('calloc', `${show(count)} times ${show(size)} bytes are not possible`, {
    hint: typeHint(count, 'number') ?? typeHint(size, 'number') ?? 'their product is a size, below 2^53 bytes',
  });
}

/** As {@link RoomRequest}, from the options of a caller. */
export interface WishfulRequest extends RoomRequest {
  readonly pageSizeHint: boolean;
  readonly contiguous: boolean;
  readonly zero: boolean;
}

type Wishes = Omit<WishfulRequest, 'size'>;

/** In the order of {@link usual} and {@link whole}, so that V8 sees one kind of object. */
const PLAIN: Wishes = {
  align: LINE,
  boundary: 0,
  pageSizes: undefined,
  pageSizeHint: false,
  contiguous: false,
  zero: false,
};

const ZEROED: BlockOptions = Object.freeze({ zero: true });

/** These options of `calloc`, as those of `malloc`. @throws DmaError EINVAL */
export function zeroed(options: BlockOptions | undefined): BlockOptions {
  if (options === undefined || options === NONE) return ZEROED;
  return { ...optionsOf<BlockOptions>(options, MALLOC_OPTIONS, 'calloc'), zero: true };
}

/** Reads the options of most calls, quickly; `undefined` if they need a full check. Each option is read once. */
function usual(options: BlockOptions): Wishes | undefined {
  try {
    // On an instance of a class, `constructor` is another function; an own member of that name is not an option.
    if (options.constructor !== Object) return undefined;
    const values: { readonly [K in keyof BlockOptions]: unknown } = options;
    const { align = LINE, boundary = 0, contiguous = false, zero = false } = values;
    for (const key in options)
      if (key !== 'align' && key !== 'zero' && key !== 'contiguous' && key !== 'boundary') return undefined;
    const isRight =
      typeof align === 'number' &&
      typeof boundary === 'number' &&
      typeof contiguous === 'boolean' &&
      typeof zero === 'boolean';
    return isRight ? { align, boundary, pageSizes: undefined, pageSizeHint: false, contiguous, zero } : undefined;
  } catch {
    return undefined;
  }
}

/** Reads and checks all options. @throws DmaError EINVAL */
function whole(options: BlockOptions, operation: string): Wishes {
  const given: BlockOptions = optionsOf<BlockOptions>(options, MALLOC_OPTIONS, operation);
  const { pageSizes, align = LINE, boundary = 0, pageSizeHint = false, contiguous = false, zero = false } = given;
  return { align, boundary, pageSizes, pageSizeHint, contiguous, zero };
}

/** The powers of two around a number that is not one. */
function powerHint(bytes: number): string {
  if (!(bytes > LINE && bytes < 2 ** 52)) return `it is ${LINE}, ${2 * LINE}, ${4 * LINE} and so on, in bytes`;
  const below = 2 ** Math.floor(Math.log2(bytes));
  return `${below} and ${2 * below} are`;
}

export function checked(size: number, options: BlockOptions, operation: string): WishfulRequest {
  if (!(isAddress(size) && size > 0 && isAddress(size + LINE)))
    throw invalid(operation, `a block of ${show(size)} bytes is not possible`, {
      hint: typeHint(size, 'number') ?? 'it has a whole number of bytes, 1 or more',
    });
  const given = options === NONE ? PLAIN : (usual(options) ?? whole(options, operation));
  const { align, boundary, pageSizes, pageSizeHint, contiguous, zero } = given;
  if (align !== LINE && align !== 0) {
    if (!isPowerOfTwo(align))
      throw invalid(operation, `an alignment of ${align} bytes is not a power of two`, { hint: powerHint(align) });
    if (!isAddress(size + align))
      throw invalid(operation, `an alignment of ${align} bytes is not possible`, { hint: 'addresses are below 2^53' });
  }
  if (boundary !== 0) {
    if (!isPowerOfTwo(boundary))
      throw invalid(operation, `a boundary of ${boundary} bytes is not a power of two`, { hint: powerHint(boundary) });
    if (boundary < size)
      throw invalid(operation, `${formatSize(size)} do not fit between two multiples of ${formatSize(boundary)}`, {
        hint: 'the boundary is as large as the block, or larger',
      });
  }
  // A block of at most one line that begins on a line crosses no boundary.
  return { size, align, boundary: boundary < LINE ? 0 : boundary, pageSizes, pageSizeHint, contiguous, zero };
}
