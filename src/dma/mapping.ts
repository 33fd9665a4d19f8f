/** The handle that `dmaMap` returns. */
import { ended } from '../check.js';
import { DmaError, invalid } from '../errors.js';
import type { Origin } from '../origin.js';
import { Range } from '../ranges.js';
import { show } from '../show.js';
import { hex, isAddress, type Iova, type Va } from '../units.js';
import type { DmaAccess, RegionTraits } from './address-space.js';
import { termsOf, type Entry, type Terms } from './ledger.js';
import { shortForm } from '../short-form.js';

/** A contiguous piece of a mapping: `length` bytes at `va` are `length` bytes at `iova` for the device. */
export interface MappedSegment {
  readonly va: Va;
  readonly iova: Iova;
  readonly length: number;
}

/** @throws DmaError EBUSY while some of the mapping is being unmapped */
export function mustNotBeBusy({ entries, range, device }: Mapping, operation: string): void {
  for (const { state } of entries)
    if (state !== 'live') {
      const hint = 'await what unmapAsync returned';
      throw new DmaError({ code: 'EBUSY', operation, range, device, reason: 'it is being unmapped', hint });
    }
}

/** The error of a call for a device that was lost because of `cause`: the one code that all such calls have. */
export function lostDevice(operation: string, device: string | undefined, cause: DmaError, range?: Range): DmaError {
  const reason = `the device was lost: ${cause.reason}`;
  const hint = 'explain() and explainFaults() still answer; eal.probe(name) opens it when it is back';
  return new DmaError({ code: 'ENODEV', operation, device, range, reason, cause, hint });
}

/** What few mappings have. */
interface Seldom {
  readonly keeper?: string;
  readonly lost?: DmaError;
  readonly unmapping?: Promise<void>;
  readonly whole?: boolean;
}

/** The domain behind a mapping, as far as the handle needs it. */
export interface MappingOwner {
  release(mapping: Mapping): void;
  releaseAsync(mapping: Mapping): Promise<void>;
}

/**
 * A range of memory that a device can reach. Disposing it (`using`, `await using`) unmaps it, once; so does `unmap`.
 *
 * It stays mapped for as long as any device of the same domain has the same range mapped, and for this device until this
 * handle is unmapped, the device goes, or its domain fails.
 */
export class Mapping implements Disposable, AsyncDisposable {
  readonly device: string;
  /** Address of the first byte. */
  readonly va: Va;
  /** bytes */
  readonly length: number;
  readonly #terms: Terms;
  /** Where the program asked for it, when that was noted. Set by the library only. */
  origin: Origin | undefined;
  /** @internal entries of the ledger that serve it, in VA order; the domain's to change */
  entries: Entry[];
  /** @internal its neighbours among those of its device, see {@link MappingList} */
  previous: Mapping | undefined = undefined;
  /** @internal */
  next: Mapping | undefined = undefined;
  readonly #owner: MappingOwner;
  #seldom: Seldom | undefined;

  /** @internal made by a domain */
  constructor(
    owner: MappingOwner,
    device: string,
    range: Range<Va>,
    { access, region }: { readonly access: DmaAccess; readonly region: RegionTraits },
    entries: Entry[],
    origin: Origin | undefined,
  ) {
    this.#owner = owner;
    this.device = device;
    this.va = range.start;
    this.length = range.length;
    this.#terms = termsOf(access, region);
    this.entries = entries;
    this.origin = origin;
  }

  /** The range that was asked for. */
  get range(): Range<Va> {
    return new Range(this.va, this.length);
  }

  /** What the device may do with it. */
  get access(): DmaAccess {
    return this.#terms.access;
  }

  /** What it is as a region with keys (verbs): the rights of peers, and where its pages are. */
  get region(): RegionTraits {
    return this.#terms.region;
  }

  /** @internal set by a group that is mapped for every device: who may unmap it, for messages; `undefined`: the program */
  get keeper(): string | undefined {
    return this.#seldom?.keeper;
  }

  /** @internal */
  set keeper(keeper: string | undefined) {
    if (keeper !== this.keeper) this.#seldom = { ...this.#seldom, keeper };
  }

  /** @internal set when it ended because its device was lost: why. Undoing it is done then, and no mistake. */
  get lost(): DmaError | undefined {
    return this.#seldom?.lost;
  }

  /** @internal */
  set lost(lost: DmaError | undefined) {
    if (lost !== this.lost) this.#seldom = { ...this.#seldom, lost };
  }

  /** @internal set by the domain when a part was unmapped */
  get whole(): boolean {
    return this.#seldom?.whole ?? true;
  }

  /** @internal */
  set whole(whole: boolean) {
    if (whole !== this.whole) this.#seldom = { ...this.#seldom, whole };
  }

  /**
   * The address that the device uses for the first byte. When the memory is not contiguous for the device (an area with an
   * IOVA table of its own), later bytes are elsewhere: see `segments` and `iovaOf`.
   *
   * @throws DmaError EINVAL once it is unmapped
   */
  get iova(): Iova {
    return Mapping.#first(this, 'iova').iova;
  }

  /** Local key of the memory region, for devices that use keys (verbs); `undefined` for others. */
  get lkey(): number | undefined {
    return Mapping.#first(this, 'lkey').keys?.lkey;
  }

  /** Remote key of the memory region, for devices that use keys (verbs); `undefined` for others. */
  get rkey(): number | undefined {
    return Mapping.#first(this, 'rkey').keys?.rkey;
  }

  /** Is it mapped? */
  get live(): boolean {
    return this.entries.length > 0;
  }

  /** What is mapped, in VA order: neighbours that are contiguous for the device too are one. Empty once unmapped. */
  get segments(): readonly MappedSegment[] {
    const segments: MappedSegment[] = [];
    for (const { va, iova, length } of this.entries) {
      const last = segments.at(-1);
      if (last !== undefined && last.va + last.length === va && last.iova + last.length === iova)
        segments[segments.length - 1] = { ...last, length: last.length + length };
      else segments.push({ va, iova, length });
    }
    return segments;
  }

  /** The device's address of the byte at `va`. @throws DmaError EINVAL when that byte is not mapped by this handle */
  iovaOf(va: Va): Iova {
    const entry = isAddress(va) ? Mapping.#entryAt(this, va) : undefined;
    if (entry === undefined && Mapping.#endedByLoss(this)) Mapping.#first(this, 'iovaOf');
    if (entry === undefined)
      throw invalid('iovaOf', `${isAddress(va) ? hex(va) : show(va)} is not in this mapping`, {
        range: this.range,
        hint: this.live ? 'it takes a VA of the range; device.iovaOf knows all mappings' : 'it was unmapped',
      });
    return (entry.iova + (va - entry.va)) as Iova;
  }

  /**
   * Unmaps it. When this throws, what is still mapped stays on the books and `unmap` can be tried again. Does nothing when its
   * device was lost, which has ended it.
   *
   * @throws DmaError EINVAL when it is unmapped already; EBUSY while `unmapAsync` runs, and when it is mapped for every device
   *   (`eal.dmaMapAll`, memory of the library and of heaps), which only all together ends; EIO when the other side unmapped
   *   a different number of bytes; else what the address space says
   */
  unmap(): void {
    Mapping.#mustNotBeKept(this);
    this.end();
  }

  /** @internal As {@link Mapping.unmap}, for who keeps it. */
  end(): void {
    if (this.#seldom?.unmapping !== undefined)
      throw new DmaError({
        code: 'EBUSY',
        operation: 'unmap',
        range: this.range,
        device: this.device,
        reason: 'it is being unmapped',
        hint: 'await what unmapAsync returned',
      });
    if (Mapping.#endedByLoss(this)) return;
    Mapping.#first(this, 'unmap');
    this.#owner.release(this);
  }

  /** As {@link Mapping.unmap}, without blocking the event loop where the address space can. */
  async unmapAsync(): Promise<void> {
    Mapping.#mustNotBeKept(this);
    await this.endAsync();
  }

  /** @internal As {@link Mapping.unmapAsync}, for who keeps it. Whoever calls it while it runs waits for the same. */
  async endAsync(): Promise<void> {
    if (Mapping.#endedByLoss(this)) return;
    Mapping.#first(this, 'unmap');
    let unmapping = this.#seldom?.unmapping;
    if (unmapping === undefined) {
      unmapping = this.#owner.releaseAsync(this).finally(() => {
        this.#seldom = { ...this.#seldom, unmapping: undefined };
      });
      this.#seldom = { ...this.#seldom, unmapping };
    }
    await unmapping;
  }

  /** @internal Did this domain make it? */
  isOf(owner: MappingOwner): boolean {
    return this.#owner === owner;
  }

  /** Unmaps it, unless that was done. */
  [Symbol.dispose](): void {
    if (this.live) this.unmap();
  }

  /** Unmaps it, unless that was done. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.live) await this.unmapAsync();
  }

  // Not methods: with a private one V8 marks each object of the class, which takes a word.

  /** The entry that holds `va`, of however many there are in VA order. */
  static #entryAt({ entries }: Mapping, va: Va): Entry | undefined {
    let low = 0;
    for (let high = entries.length; low < high;) {
      const middle = (low + high) >>> 1;
      if (entries[middle].va <= va) low = middle + 1;
      else high = middle;
    }
    const entry = low === 0 ? undefined : entries[low - 1];
    return entry !== undefined && va < entry.va + entry.length ? entry : undefined;
  }

  static #endedByLoss({ lost, live }: Mapping): boolean {
    return lost !== undefined && !live;
  }

  static #mustNotBeKept(mapping: Mapping): void {
    const { keeper } = mapping;
    if (keeper === undefined || !mapping.live) return;
    const { range, device } = mapping;
    const reason = 'it is mapped for every device, and unmapped from all of them together';
    throw new DmaError({ code: 'EBUSY', operation: 'unmap', range, device, reason, hint: `${keeper} ends it` });
  }

  static #first(mapping: Mapping, operation: string): Entry {
    const [entry] = mapping.entries;
    if (entry !== undefined) return entry;
    const { device, range, lost } = mapping;
    if (lost !== undefined) throw lostDevice(operation, device, lost, range);
    throw ended(operation, 'the mapping is gone: it was unmapped, or its device left', 'mapping.live', {
      range,
      device,
    });
  }
}

/** Mappings in the order they came. One is in one list at most. Unlike a set it takes no memory of its own. */
export class MappingList {
  #first: Mapping | undefined;
  #last: Mapping | undefined;

  add(mapping: Mapping): void {
    mapping.previous = this.#last;
    if (this.#last === undefined) this.#first = mapping;
    else this.#last.next = mapping;
    this.#last = mapping;
  }

  /** Takes out one that is in this list. */
  delete(mapping: Mapping): void {
    const { previous, next } = mapping;
    if (previous === undefined) this.#first = next;
    else previous.next = next;
    if (next === undefined) this.#last = previous;
    else next.previous = previous;
    mapping.previous = mapping.next = undefined;
  }

  /** All of them, as they are now. */
  toArray(): Mapping[] {
    const all: Mapping[] = [];
    for (let mapping = this.#first; mapping !== undefined; mapping = mapping.next) all.push(mapping);
    return all;
  }
}

shortForm(Mapping, 'Mapping', ({ device, range, access, live, entries: [first] }) => ({
  device,
  va: hex(range.start),
  length: range.length,
  access,
  live,
  iova: first === undefined ? undefined : hex(first.iova),
  lkey: first?.keys?.lkey,
  rkey: first?.keys?.rkey,
}));
