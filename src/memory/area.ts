/** An area: one VA range that the library knows. DPDK calls it a memseg list. */
import { invalid, type DmaError } from '../errors.js';
import type { Range } from '../ranges.js';
import { formatSize, hex, isAddress, isPowerOfTwo, type Iova, type Va } from '../units.js';
import { shortForm } from '../short-form.js';
import { STAYS } from '../stays.js';

/** The descriptor behind a piece of memory, for devices that get it passed. The area owns it. */
export interface Backing {
  readonly fd: number;
  /** offset of the piece in the file, in bytes */
  readonly offset: number;
}

/** What {@link Area} is made of. */
export interface AreaDetails {
  readonly range: Range<Va>;
  /** page size in bytes, a power of two; the range begins and ends on page boundaries */
  readonly pageSize: number;
  readonly owner: Area['owner'];
  /** The name in messages, or what makes it when it is first needed. */
  readonly label: string | (() => string);
  /** NUMA node; -1 if unknown */
  readonly node?: number;
  /** May the process, and so devices, write to it? Default true. */
  readonly writable?: boolean;
  /** One IOVA per page, each a multiple of the page size: the device addresses of this memory. Copied. */
  readonly iovas?: ArrayLike<number>;
  /** See {@link Area.sameIova}. Default false. */
  readonly sameIova?: boolean;
  /** The descriptor of which the whole range is a shared mapping. */
  readonly backing?: Backing;
}

/** A piece of memory that is contiguous in VA and in IOVA: `length` bytes at `va` are `length` bytes at `iova` for the device. */
export interface IovaRun {
  readonly va: Va;
  readonly iova: Iova;
  /** bytes */
  readonly length: number;
}

const NOBODY: ReadonlyMap<string, number> = new Map();

/** Pages to examine before the generator yields. */
const PAGES_A_LOOK = 0x10000;

/**
 * One VA range with its page size, its owner, its IOVAs (if given) and its holders. The memory itself is never written.
 */
export class Area {
  /** @internal */
  readonly stays = STAYS;
  readonly range: Range<Va>;
  /** bytes */
  readonly pageSize: number;
  #owner: 'owned' | 'heap' | 'external';
  #label: string | (() => string);
  /** NUMA node; -1 if unknown */
  readonly node: number;
  readonly writable: boolean;
  readonly backing: Backing | undefined;
  /** One IOVA per page; `undefined` if the area has no table. */
  readonly iovas: Float64Array | undefined;
  #sameIova: boolean;
  /** The first holder, nearly always the only one, and its number of holds; 0 if there is none. */
  #holder = '';
  #holds = 0;
  #others: Map<string, number> | undefined;
  /** For each lost process that may still write to this memory: a callback that ends the wait for that process. */
  #lingering: Map<object, () => void> | undefined;
  /** @internal For a Buffer: was its ArrayBuffer transferred, so that its address is no longer known here? */
  isEmptied: (() => boolean) | undefined;
  /** @internal What it was registered as. */
  registration: object | undefined;
  /** @internal Called when {@link lingers} changes; set by the heap that allocates from this area. */
  onLinger: (() => void) | undefined;
  /** @internal The same for the page list that holds this area: one more (1) or one less (-1) lingers. */
  onLingerInList: ((by: 1 | -1) => void) | undefined;

  /**
   * @internal @throws DmaError EINVAL: the page size is not a power of two, the range is not on page boundaries, the table does
   *   not have one entry per page, or an entry is not a multiple of the page size
   */
  constructor(details: AreaDetails, operation = 'register') {
    const { range, pageSize, iovas } = details;
    if (!isPowerOfTwo(pageSize)) throw noPageSize(pageSize, operation);
    if (!range.isAligned(pageSize)) throw misaligned(range, pageSize, operation);
    if (iovas !== undefined) checkTable(iovas, range, pageSize, operation);
    this.range = range;
    this.pageSize = pageSize;
    this.#owner = details.owner;
    this.#label = details.label;
    this.node = details.node ?? -1;
    this.writable = details.writable ?? true;
    this.backing = details.backing;
    this.iovas = iovas === undefined ? undefined : new Float64Array(iovas);
    this.#sameIova = details.sameIova ?? false;
  }

  /**
   * Who owns the memory: the library, a heap (it is the user's memory, added to that heap), or the user alone. Changes when
   * external memory is added to a heap, and when it is removed.
   */
  get owner(): 'owned' | 'heap' | 'external' {
    return this.#owner;
  }

  /** @internal */
  set owner(owner: 'owned' | 'heap' | 'external') {
    this.#owner = owner;
  }

  /**
   * Must every device use the same IOVA: that of the table, or without a table the VA? A device that can not use it is
   * refused. Changes when external memory is added to a heap that requires this, and when it is removed.
   */
  get sameIova(): boolean {
    return this.#sameIova;
  }

  /** @internal */
  set sameIova(same: boolean) {
    this.#sameIova = same;
  }

  /** The name in messages. */
  get label(): string {
    return typeof this.#label === 'string' ? this.#label : (this.#label = this.#label());
  }

  /**
   * The IOVA of `va`, an address of this area, for every device; valid up to the end of its page. `undefined` if each
   * domain chooses its own.
   */
  iovaAt(va: Va): Iova | undefined {
    const { iovas, pageSize } = this;
    if (iovas === undefined) return this.sameIova ? (Number(va) as Iova) : undefined;
    const offset = va - this.range.start;
    return (iovas[Math.floor(offset / pageSize)] + (offset % pageSize)) as Iova;
  }

  /** The IOVA that all of `part` begins at for every device, in one piece; `undefined` if there is no such address. */
  iovaOf(part: Range<Va>): Iova | undefined {
    const [first, ...others] = this.iovaRuns(part) ?? [];
    return others.length === 0 ? first?.iova : undefined;
  }

  /** The descriptor and offset behind `va`, an address of this area. */
  backingAt(va: Va): Backing | undefined {
    if (this.backing === undefined) return undefined;
    return { fd: this.backing.fd, offset: this.backing.offset + (va - this.range.start) };
  }

  /**
   * The runs of `part` (inside this area) that are contiguous in the area's IOVAs, in VA order; `undefined` if each
   * domain chooses its own.
   */
  iovaRuns(part: Range<Va>): IovaRun[] | undefined {
    const { iovas } = this;
    if (iovas === undefined) {
      if (!this.sameIova) return undefined;
      return [{ va: part.start, iova: Number(part.start) as Iova, length: part.length }];
    }
    return [...this.#runsOfTable(iovas, part)].filter((run) => run !== undefined);
  }

  /**
   * As {@link iovaRuns}, one run at a time, for an area with a table: there may be one run per page. Yields `undefined`
   * from time to time within a long run, so that the caller can let others work.
   */
  *eachIovaRun(part: Range<Va>): Generator<IovaRun | undefined, void, undefined> {
    if (this.iovas !== undefined) yield* this.#runsOfTable(this.iovas, part);
  }

  *#runsOfTable(iovas: Float64Array, { start, end }: Range<Va>): Generator<IovaRun | undefined, void, undefined> {
    const { pageSize, range } = this;
    for (let va: number = start; va < end;) {
      const first = Math.floor((va - range.start) / pageSize);
      let page = first;
      while (range.start + (page + 1) * pageSize < end && iovas[page + 1] === iovas[page] + pageSize) {
        page++;
        if (page % PAGES_A_LOOK === 0) yield undefined;
      }
      const next = Math.min(end, range.start + (page + 1) * pageSize);
      const within = va - (range.start + first * pageSize);
      yield { va: va as Va, iova: (iovas[first] + within) as Iova, length: next - va };
      va = next;
    }
  }

  /** @internal May a lost process still write to it? Then none of it is given to a new user. */
  get lingers(): boolean {
    return this.#lingering !== undefined && this.#lingering.size > 0;
  }

  /**
   * @internal Notes that a process that has the descriptor was lost; it may write to this memory until `over` resolves.
   *
   * @param unneeded called if this memory is freed earlier: nobody can get it then, so the wait can end
   */
  linger(over: Promise<void>, unneeded: () => void): void {
    const token = {};
    const lingering = (this.#lingering ??= new Map<object, () => void>());
    lingering.set(token, unneeded);
    if (lingering.size === 1) {
      this.onLinger?.();
      this.onLingerInList?.(1);
    }
    void over.then(() => {
      lingering.delete(token);
      if (lingering.size > 0) return;
      this.onLinger?.();
      this.onLingerInList?.(-1);
    });
  }

  /** @internal The memory was freed and is never handed out again: ends the wait for lost processes. */
  gone(): void {
    for (const unneeded of this.#lingering?.values() ?? []) unneeded();
  }

  /** @internal Adds a hold of `holder` (a device's name). Holds are counted: each needs its own release. */
  hold(holder: string): void {
    // The common case: mapping and unmapping again and again leaves the Map unchanged.
    if (this.#holds === 0 && this.#others?.has(holder) !== true) this.#holder = holder;
    if (holder === this.#holder) {
      this.#holds++;
      return;
    }
    const others = (this.#others ??= new Map<string, number>());
    others.set(holder, (others.get(holder) ?? 0) + 1);
  }

  /** @internal Releases one hold of `holder`. */
  release(holder: string): void {
    if (holder === this.#holder && this.#holds > 0) {
      this.#holds--;
      return;
    }
    const count = this.#others?.get(holder) ?? 0;
    if (count > 1) this.#others?.set(holder, count - 1);
    else this.#others?.delete(holder);
  }

  /** @internal Who holds this memory now, and how many times. It must not be freed while anyone does. */
  get holders(): ReadonlyMap<string, number> {
    const others = this.#others ?? NOBODY;
    return this.#holds === 0 ? others : new Map([[this.#holder, this.#holds], ...others]);
  }
}

shortForm(Area, 'Area', ({ label, range, pageSize, owner, node, writable, iovas, sameIova, holders }) => ({
  label,
  va: hex(range.start),
  length: range.length,
  pageSize,
  owner,
  node,
  writable,
  iovas: iovas === undefined ? undefined : `${iovas.length} pages`,
  sameIova,
  holders: [...holders.keys()],
}));

/** @internal EINVAL for a page size that is not a power of two. */
export function noPageSize(pageSize: number, operation: string): DmaError {
  const hint = 'page sizes are 4 KiB, 2 MiB and the like: "anydma hugepages" lists those of this machine';
  return invalid(operation, `a page size of ${pageSize} bytes is not a power of two`, { hint });
}

function misaligned(range: Range, pageSize: number, operation: string): DmaError {
  const which = range.start % pageSize === 0 ? `length ${hex(range.length)}` : `start ${hex(range.start)}`;
  const inside = range.alignedInside(pageSize);
  const hint =
    inside === undefined ? `no whole page of ${formatSize(pageSize)} is inside` : `${inside.toString()} would do`;
  return invalid(operation, `the ${which} is not a multiple of the page size ${hex(pageSize)}`, { range, hint });
}

function checkTable(iovas: ArrayLike<number>, range: Range, pageSize: number, operation: string): void {
  const pages = range.length / pageSize;
  if (iovas.length !== pages)
    throw invalid(operation, `the IOVA table has ${iovas.length} entries for ${pages} pages`, {
      range,
      hint: `it has one IOVA for each page of ${formatSize(pageSize)}`,
    });
  for (let page = 0; page < pages; page++) {
    const iova = iovas[page];
    // Exact, and faster than a remainder.
    const number = iova / pageSize;
    if (!isAddress(iova) || number !== Math.floor(number) || !isAddress(iova + pageSize))
      throw invalid(operation, `entry ${page} of the IOVA table, ${iova}, is not a multiple of ${hex(pageSize)}`, {
        range,
        hint: 'each entry is the device address of a page, and pages begin at multiples of their size',
      });
  }
}
