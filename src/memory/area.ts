/** An area: one VA range that the library knows. DPDK calls it a memseg list. */
import { invalid, type DmaError } from '../errors.js';
import type { Range } from '../ranges.js';
import { formatSize, hex, isAddress, isPowerOfTwo, type Iova, type Va } from '../units.js';
import { shortForm } from '../short-form.js';

/** Whose memory an area is: the library's, a heap's over user memory, or the user's alone. */
export type AreaOwner = 'owned' | 'heap' | 'external';

/** The descriptor behind a piece of memory, for devices that are reached by passing it. It stays the area's. */
export interface Backing {
  readonly fd: number;
  /** bytes into the descriptor where the piece begins */
  readonly offset: number;
}

/** What an area is made of. */
export interface AreaDetails {
  readonly range: Range<Va>;
  /** bytes, a power of two; the range begins and ends on multiples of it */
  readonly pageSize: number;
  readonly owner: AreaOwner;
  /** What people see it called in messages. */
  readonly label: string;
  /** NUMA node; -1 when not known */
  readonly node?: number;
  /** May the process, and so a device, write it? Default true. */
  readonly writable?: boolean;
  /** One IOVA a page, multiples of the page size, for memory whose device addresses are given. Copied. */
  readonly iovas?: ArrayLike<number>;
  /** See {@link Area.sameIova}. Default false. */
  readonly sameIova?: boolean;
  /** The descriptor that the whole range is a shared mapping of. */
  readonly backing?: Backing;
}

/** A run of pages of an area that is contiguous in VA and in IOVA. */
export interface IovaRun {
  readonly va: Va;
  readonly iova: Iova;
  /** bytes */
  readonly length: number;
}

/** How many pages of a run are looked at before others may go on. */
const PAGES_A_LOOK = 0x10000;

/** One VA range with its page size, owner and, if given, its IOVAs; and who holds it. Nothing is ever written into it. */
export class Area {
  readonly range: Range<Va>;
  /** bytes */
  readonly pageSize: number;
  /** Changes when external memory comes into a heap, and when it leaves. */
  owner: AreaOwner;
  readonly label: string;
  /** NUMA node; -1 when not known */
  readonly node: number;
  readonly writable: boolean;
  readonly backing: Backing | undefined;
  /** One IOVA a page; `undefined` when the area has no table of its own. */
  readonly iovas: Float64Array | undefined;
  /**
   * Is its IOVA to be the same for every device: by its own table, or without one the VA? A device that can not have that is
   * refused. Changes when external memory comes into a heap that asks for it, and when it leaves.
   */
  sameIova: boolean;
  /** Who held it first, nearly always the only one, and how many times; 0 when nobody does. */
  #holder = '';
  #holds = 0;
  readonly #others = new Map<string, number>();
  /** For each process that may still write to it, what says that nobody has to know any more when it ends. */
  readonly #lingering = new Map<object, () => void>();
  /** @internal For a Buffer: was its ArrayBuffer emptied by somebody else, so that nothing here reaches the memory? */
  isEmptied: (() => boolean) | undefined;
  /** @internal Called when {@link lingers} changes: the heap that serves from it. */
  onLinger: (() => void) | undefined;
  /** @internal The same, for the list of pages that it is of: more (1), or less (-1). */
  onLingerInList: ((by: 1 | -1) => void) | undefined;

  /**
   * @throws DmaError EINVAL: page size no power of two, range not on page boundaries, a table whose length is not the
   *   number of pages, or an entry in it that is no multiple of the page size
   */
  constructor(details: AreaDetails, operation = 'register') {
    const { range, pageSize, iovas } = details;
    if (!isPowerOfTwo(pageSize)) throw noPageSize(pageSize, operation);
    if (!range.isAligned(pageSize)) throw misaligned(range, pageSize, operation);
    if (iovas !== undefined) checkTable(iovas, range, pageSize, operation);
    this.range = range;
    this.pageSize = pageSize;
    this.owner = details.owner;
    this.label = details.label;
    this.node = details.node ?? -1;
    this.writable = details.writable ?? true;
    this.backing = details.backing;
    this.iovas = iovas === undefined ? undefined : new Float64Array(iovas);
    this.sameIova = details.sameIova ?? false;
  }

  /**
   * What every device uses for `va`, an address of this area, and for what follows up to the end of its page; `undefined`
   * when that is for each domain to choose.
   */
  iovaAt(va: Va): Iova | undefined {
    const { iovas, pageSize } = this;
    if (iovas === undefined) return this.sameIova ? (Number(va) as Iova) : undefined;
    const offset = va - this.range.start;
    return (iovas[Math.floor(offset / pageSize)] + (offset % pageSize)) as Iova;
  }

  /** The descriptor and offset behind `va`, an address of this area. */
  backingAt(va: Va): Backing | undefined {
    if (this.backing === undefined) return undefined;
    return { fd: this.backing.fd, offset: this.backing.offset + (va - this.range.start) };
  }

  /**
   * The runs of `part` (inside this area) that are contiguous in the area's own IOVAs, in VA order; `undefined` when it has
   * none, because each domain chooses.
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
   * As {@link iovaRuns} of an area with a table of its own, run by run: there may be one for each page. `undefined` comes now
   * and then in a run of many pages, so that others may go on.
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

  /** May a process that was lost still write to it? Then nothing of it is given to anybody new. */
  get lingers(): boolean {
    return this.#lingering.size > 0;
  }

  /**
   * A process that was given its descriptor was lost, and may write to it until `over` resolves.
   *
   * @param unneeded called when this memory goes before that: then nobody is given it, and nobody has to know
   */
  linger(over: Promise<void>, unneeded: () => void): void {
    const token = {};
    this.#lingering.set(token, unneeded);
    if (this.#lingering.size === 1) {
      this.onLinger?.();
      this.onLingerInList?.(1);
    }
    void over.then(() => {
      this.#lingering.delete(token);
      if (this.#lingering.size > 0) return;
      this.onLinger?.();
      this.onLingerInList?.(-1);
    });
  }

  /** @internal The memory has been given back: it is never handed out again, and what may still write to it is not waited for. */
  gone(): void {
    for (const unneeded of this.#lingering.values()) unneeded();
  }

  /** Notes that `holder` (a device's name) uses this memory. Counted: each hold needs its own release. */
  hold(holder: string): void {
    // Mapping and unmapping again and again changes no map.
    if (this.#holds === 0 && !this.#others.has(holder)) this.#holder = holder;
    if (holder === this.#holder) this.#holds++;
    else this.#others.set(holder, (this.#others.get(holder) ?? 0) + 1);
  }

  /** Takes back one hold of `holder`. */
  release(holder: string): void {
    if (holder === this.#holder && this.#holds > 0) {
      this.#holds--;
      return;
    }
    const count = this.#others.get(holder) ?? 0;
    if (count > 1) this.#others.set(holder, count - 1);
    else this.#others.delete(holder);
  }

  /** Who holds this memory now, and how many times. While anyone does it must not go away. */
  get holders(): ReadonlyMap<string, number> {
    return this.#holds === 0 ? this.#others : new Map([[this.#holder, this.#holds], ...this.#others]);
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

/** @internal The error of a page size that can be none. */
export function noPageSize(pageSize: number, operation: string): DmaError {
  const hint = 'sizes of pages are 4 KiB, 2 MiB and the like: "anydma hugepages" lists those of the machine';
  return invalid(operation, `a page size of ${pageSize} bytes is no power of two`, { hint });
}

function misaligned(range: Range, pageSize: number, operation: string): DmaError {
  const which = range.start % pageSize === 0 ? `length ${hex(range.length)}` : `start ${hex(range.start)}`;
  const inside = range.alignedInside(pageSize);
  const hint =
    inside === undefined ? `no whole page of ${formatSize(pageSize)} is inside` : `${inside.toString()} would do`;
  return invalid(operation, `the ${which} is no multiple of the page size ${hex(pageSize)}`, { range, hint });
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
    // Exact, and unlike a remainder a matter of nanoseconds.
    const number = iova / pageSize;
    if (!isAddress(iova) || number !== Math.floor(number) || !isAddress(iova + pageSize))
      throw invalid(operation, `entry ${page} of the IOVA table, ${iova}, is no multiple of ${hex(pageSize)}`, {
        range,
        hint: 'each is where a device finds that page, and pages begin at multiples of their size',
      });
  }
}
