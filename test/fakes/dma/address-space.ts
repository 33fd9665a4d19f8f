/** For tests: an address space that fails as the test says, and a domain on it over memory that consists only of addresses. */
import { DmaError, type ErrorCode } from '../../../src/errors.js';
import { Area, type AreaDetails } from '../../../src/memory/area.js';
import { AreaIndex } from '../../../src/memory/area-index.js';
import { RangeMap } from '../../../src/range-map.js';
import { Range } from '../../../src/ranges.js';
import type { Iova, Va } from '../../../src/units.js';
import type { AddressSpace, Constraints, MapKeys, Segment } from '../../../src/dma/address-space.js';
import { Domain, type DomainOptions } from '../../../src/dma/domain.js';

/** The page of tests. */
export const PAGE = 4096;

/** One call that a space got. */
export interface FakeCall {
  readonly call: 'map' | 'unmap';
  readonly segment: Omit<Segment, 'backing'>;
}

/**
 * What a call does in place of its work: throw an error of this code, answer with a wrong number of bytes (unmap only), or
 * run something first and then throw ECONNRESET, as when the other side dies in the middle of the call.
 */
export type Fault = ErrorCode | { readonly bytes: number } | { readonly dies: () => void };

/** Settings of a {@link FakeSpace}. */
export interface FakeOptions {
  readonly constraints?: Partial<Constraints>;
  /** Bring mapAsync and unmapAsync, which do their work a turn later, or when a test lets them. Default false. */
  readonly asynchronous?: boolean;
  /** Keys that each mapping gets. */
  readonly keys?: (segment: Segment) => MapKeys;
}

/** A space with a map table of its own, which it keeps as strictly as hardware would. */
export class FakeSpace implements AddressSpace {
  readonly kind = 'fake';
  constraints: Constraints;
  readonly calls: FakeCall[] = [];
  /** How often it was closed. */
  closed = 0;
  /** Calls that violated its constraints or its table. Stays empty if the domain is correct. */
  readonly violations: string[] = [];
  readonly mapAsync?: (segment: Segment) => Promise<MapKeys | undefined>;
  readonly unmapAsync?: (segment: Segment) => Promise<number>;
  readonly #keys: ((segment: Segment) => MapKeys) | undefined;
  readonly #table = new RangeMap<FakeCall['segment']>();
  readonly #faults: { readonly call: FakeCall['call']; left: number; readonly fault: Fault }[] = [];
  #gate: Promise<void> | undefined;

  constructor(options: FakeOptions = {}) {
    this.constraints = {
      granule: PAGE,
      windows: [new Range(0 as Iova, 2 ** 48)],
      entryLimit: Infinity,
      iova: 'free',
      partialUnmap: false,
      pins: false,
      ...options.constraints,
    };
    this.#keys = options.keys;
    if (options.asynchronous !== true) return;
    this.mapAsync = async (segment) => {
      await (this.#gate ?? nextTurn());
      return this.map(segment);
    };
    this.unmapAsync = async (segment) => {
      await (this.#gate ?? nextTurn());
      return this.unmap(segment);
    };
  }

  /** What is mapped, in IOVA order. */
  get table(): FakeCall['segment'][] {
    return [...this.#table.values()];
  }

  /** The `n`th `call` from now (1 is the next) meets `fault`; later ones work again. */
  fail(call: FakeCall['call'], n: number, fault: Fault): void {
    this.#faults.push({ call, left: n, fault });
  }

  /** Removes faults that did not occur. @returns their number */
  calm(): number {
    return this.#faults.splice(0).length;
  }

  /** Asynchronous calls wait from now on, until the result is called. */
  hold(): () => void {
    let proceed = (): void => undefined;
    this.#gate = new Promise((resolve) => (proceed = resolve));
    return () => {
      this.#gate = undefined;
      proceed();
    };
  }

  map(segment: Segment): MapKeys | undefined {
    const fault = this.#begin('map', segment);
    if (fault instanceof Error) throw fault;
    const { va, iova, length, access } = segment;
    if (this.#table.size >= this.constraints.entryLimit) this.#violation('map past the entry limit', segment);
    const { windows, iova: chosenBy } = this.constraints;
    if (chosenBy !== 'ignored' && !windows.some((each) => each.covers(new Range(iova, length))))
      this.#violation('map outside the windows', segment);
    if (this.#table.insert(iova, length, { va, iova, length, access }) !== undefined)
      this.#violation('map over what is mapped', segment);
    return this.#keys?.(segment);
  }

  unmap(segment: Segment): number {
    const fault = this.#begin('unmap', segment);
    if (typeof fault === 'number') return fault;
    if (fault !== undefined) throw fault;
    const { va, iova, length } = segment;
    const here = this.#table.at(iova);
    if (here === undefined || iova + length > here.iova + here.length || va - iova !== here.va - here.iova) {
      this.#violation('unmap what is not mapped', segment);
      return 0;
    }
    if (length !== here.length && !this.constraints.partialUnmap) this.#violation('unmap a part', segment);
    this.#table.delete(here.iova);
    this.#keep(here, here.iova, iova);
    this.#keep(here, iova + length, here.iova + here.length);
    return length;
  }

  close(): void {
    this.closed++;
  }

  #begin(call: FakeCall['call'], segment: Segment): Error | number | undefined {
    const { va, iova, length, access } = segment;
    this.calls.push({ call, segment: { va, iova, length, access } });
    if (this.closed > 0) this.#violation(`${call} after close`, segment);
    const { granule } = this.constraints;
    if ([va, iova, length].some((each) => each % granule !== 0)) this.#violation(`${call} misaligned`, segment);
    let met: Fault | undefined;
    for (const armed of this.#faults) if (armed.call === call && --armed.left === 0) met = armed.fault;
    if (met === undefined) return undefined;
    for (let i = this.#faults.length - 1; i >= 0; i--) if (this.#faults[i].left === 0) this.#faults.splice(i, 1);
    if (typeof met === 'string') return new DmaError({ code: met, operation: `fake ${call}`, reason: 'as told' });
    if ('bytes' in met) return met.bytes;
    this.#table.clear();
    met.dies();
    return new DmaError({ code: 'ECONNRESET', operation: `fake ${call}`, reason: 'the other side died' });
  }

  #keep(segment: FakeCall['segment'], from: number, to: number): void {
    if (from >= to) return;
    const va = (segment.va + (from - segment.iova)) as Va;
    this.#table.insert(from, to - from, { ...segment, va, iova: from as Iova, length: to - from });
  }

  #violation(what: string, { va, iova, length }: Segment): void {
    this.violations.push(`${what}: ${JSON.stringify({ va, iova, length })}`);
  }
}

/** A domain on a fake space, with areas and a clock that belong to the test. */
export class Bench {
  readonly areas: AreaIndex;
  readonly space: FakeSpace;
  readonly domain: Domain;
  /** What the locked-memory limit is, and how much of it is used. */
  locked = { limit: Infinity, used: 0 };
  /** The domain's time, in milliseconds. */
  ms = 1000;

  constructor(options: FakeOptions & { areas?: AreaIndex; domain?: Partial<DomainOptions> } = {}) {
    this.areas = options.areas ?? new AreaIndex();
    this.space = new FakeSpace(options);
    this.domain = new Domain({
      name: 'fake domain',
      space: this.space,
      areas: this.areas,
      limits: { lockedMemory: () => this.locked },
      now: () => this.ms,
      ...options.domain,
    });
  }

  /** Adds an area of `pages` pages at `va`. Nothing is there: the library never looks. */
  area(va: number, pages: number, details: Partial<AreaDetails> = {}): Area {
    const { pageSize = PAGE } = details;
    const range = new Range(va as Va, pages * pageSize);
    const area = new Area({ range, owner: 'external', label: `area ${va / PAGE}`, ...details, pageSize });
    this.areas.add(area);
    return area;
  }

  /** Compares the ledger, the table and the space, which must agree. @returns the differences */
  differences(): string[] {
    const { space, domain } = this;
    const differences = [...space.violations];
    const { table } = space;
    if (domain.entries !== table.length) differences.push(`${domain.entries} entries, ${table.length} in the space`);
    const bytes = table.reduce((sum, { length }) => sum + length, 0);
    if (domain.bytes !== bytes) differences.push(`${domain.bytes} bytes, ${bytes} in the space`);
    for (const { va, iova, length } of table) {
      for (const at of [0, length - 1])
        if (domain.vaOf(iova + at) !== va + at) differences.push(`IOVA ${iova + at} is not VA ${va + at}`);
    }
    return differences;
  }
}

/** `[va, length]` as a thing to map, in bytes. */
export function part(va: number, length: number): { va: Va; length: number } {
  return { va: va as Va, length };
}

async function nextTurn(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}
