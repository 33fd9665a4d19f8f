/** The handle that `dmaMap` returns. */
import { ended } from '../check.js';
import { DmaError, invalid } from '../errors.js';
import type { IovaRun } from '../memory/area.js';
import type { Shared } from '../memory/shared/shared.js';
import type { Share } from '../memory/shared/shares.js';
import type { Origin } from '../origin.js';
import { Range } from '../ranges.js';
import { show } from '../show.js';
import { hex, isAddress, type Iova, type Va, type VaLike } from '../units.js';
import type { DmaAccess, RegionTraits } from './address-space.js';
import type { AttachedMapping } from './attached-mapping.js';
import { termsOf, type Entry, type Terms } from './ledger.js';
import { shortForm } from '../short-form.js';

/** @internal @throws DmaError EBUSY while some of the mapping is being unmapped */
export function mustNotBeBusy({ entries, range, device }: Mapping, operation: string): void {
  for (const { state } of entries)
    if (state !== 'live') {
      const hint = 'await what unmapAsync returned';
      throw new DmaError({ code: 'EBUSY', operation, range, device, reason: 'it is being unmapped', hint });
    }
}

/** ENODEV for a call on a device that was lost because of `cause`. */
export function lostDevice(operation: string, device: string | undefined, cause: DmaError, range?: Range): DmaError {
  const reason = `the device was lost: ${cause.reason}`;
  const hint = 'explain() and explainFaults() still answer; eal.probe(name) opens it when it is back';
  return new DmaError({ code: 'ENODEV', operation, device, range, reason, cause, hint });
}

/** Up to so many entries are searched. */
const FEW = 4;

/** Fields that few mappings need. */
interface Seldom {
  readonly keeper?: string;
  readonly lost?: DmaError;
  readonly unmapping?: Promise<void>;
  readonly whole?: boolean;
  readonly share?: Share<AttachedMapping>;
}

/** What a mapping needs of its domain. */
export interface MappingOwner {
  /** The IOVA of `va`; -1 if it is not mapped. */
  iovaOf(va: number): number;
  release(mapping: Mapping): void;
  releaseAsync(mapping: Mapping): Promise<void>;
  share(mapping: Mapping): Share<AttachedMapping>;
}

/**
 * A range of memory that a device can reach. Disposing it (`using`, `await using`) or `unmap` unmaps it, once.
 *
 * For this device it is mapped until this handle is unmapped, the device leaves, or the domain fails. The range stays
 * mapped in the domain as long as any of its devices has the same range mapped.
 */
export class Mapping implements Disposable, AsyncDisposable {
  readonly device: string;
  /** Address of the first byte. */
  readonly va: Va;
  /** bytes */
  readonly length: number;
  readonly #terms: Terms;
  #origin: Origin | undefined;
  /** @internal the ledger entries behind it, in VA order; only the domain changes them */
  entries: Entry[];
  /** @internal its neighbours in the {@link MappingList} of its device */
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
    this.#origin = origin;
  }

  /** Where in the program it was made, if that was noted. */
  get origin(): Origin | undefined {
    return this.#origin;
  }

  /** @internal */
  set origin(origin: Origin | undefined) {
    this.#origin = origin;
  }

  /** The range that was asked for. */
  get range(): Range<Va> {
    return new Range(this.va, this.length);
  }

  /** What the device may do with the memory. */
  get access(): DmaAccess {
    return this.#terms.access;
  }

  /** For regions with keys (verbs): the rights of peers, and whether pages are pinned. */
  get region(): RegionTraits {
    return this.#terms.region;
  }

  /** @internal For a mapping of every device: what unmaps it, for messages; `undefined`: the program */
  get keeper(): string | undefined {
    return this.#seldom?.keeper;
  }

  /** @internal */
  set keeper(keeper: string | undefined) {
    if (keeper !== this.keeper) this.#seldom = { ...this.#seldom, keeper };
  }

  /** @internal The reason, if it ended because its device was lost. Unmapping it does nothing then, and is no error. */
  get lost(): DmaError | undefined {
    return this.#seldom?.lost;
  }

  /** @internal */
  set lost(lost: DmaError | undefined) {
    if (lost !== this.lost) this.#seldom = { ...this.#seldom, lost };
  }

  /** @internal The domain sets it to false when a part was unmapped. */
  get whole(): boolean {
    return this.#seldom?.whole ?? true;
  }

  /** @internal */
  set whole(whole: boolean) {
    if (whole !== this.whole) this.#seldom = { ...this.#seldom, whole };
  }

  /**
   * The device's address of the first byte. If the memory is not contiguous for the device (an area with an IOVA
   * table), see `segments` and `iovaOf` for later bytes.
   *
   * @throws DmaError EINVAL once it is unmapped
   */
  get iova(): Iova {
    return Mapping.#first(this, 'iova').iova;
  }

  /** Local key of the memory region, for devices with keys (verbs); else `undefined`. */
  get lkey(): number | undefined {
    return Mapping.#first(this, 'lkey').keys?.lkey;
  }

  /** Remote key of the memory region, for devices with keys (verbs); else `undefined`. */
  get rkey(): number | undefined {
    return Mapping.#first(this, 'rkey').keys?.rkey;
  }

  /** Is it mapped? */
  get live(): boolean {
    return this.entries.length > 0;
  }

  /** What is mapped, in VA order; neighbours that are contiguous for the device are joined. Empty once unmapped. */
  get segments(): readonly IovaRun[] {
    const segments: IovaRun[] = [];
    for (const { va, iova, length } of this.entries) {
      const last = segments.at(-1);
      if (last !== undefined && last.va + last.length === va && last.iova + last.length === iova)
        segments[segments.length - 1] = { ...last, length: last.length + length };
      else segments.push({ va, iova, length });
    }
    return segments;
  }

  /** The device's address of the byte at `va`. @throws DmaError EINVAL if this handle does not map that byte */
  iovaOf(va: VaLike): Iova {
    const iova = isAddress(va) ? Mapping.#iovaAt(this, va) : -1;
    if (iova >= 0) return iova as Iova;
    if (Mapping.#endedByLoss(this)) Mapping.#first(this, 'iovaOf');
    throw invalid('iovaOf', `${isAddress(va) ? hex(va) : show(va)} is not in this mapping`, {
      range: this.range,
      hint: this.live ? 'it takes a VA of the range; device.iovaOf knows all mappings' : 'it was unmapped',
    });
  }

  /**
   * What another thread needs to use the mapping (its IOVA, its keys): send it there by `postMessage` or as `workerData`, any number of times,
   * and give it to `attach`. While a thread has it, `unmap` and removing the device are EBUSY and name the thread.
   *
   * @throws DmaError EINVAL once it is unmapped; ENOTSUP where system calls are not available
   */
  share(): Shared<AttachedMapping> {
    Mapping.#first(this, 'share');
    let share = this.#seldom?.share;
    if (share?.open !== true) {
      share = this.#owner.share(this);
      this.#seldom = { ...this.#seldom, share };
    }
    return share.description;
  }

  /** @internal @throws DmaError EBUSY, naming them, while other threads have attached to it */
  mustBeUnshared(operation: string): void {
    this.#seldom?.share?.mustBeFree(operation);
  }

  /** @internal Nobody can attach to it any more. @throws DmaError as {@link Mapping.mustBeUnshared} */
  unshare(operation: string): void {
    this.#seldom?.share?.end(operation);
  }

  /** @internal It went away, whoever has attached to it. */
  loseShare(): void {
    this.#seldom?.share?.lose();
  }

  /**
   * Unmaps it. When this throws, what is still mapped stays on the books, and `unmap` can be tried again. Does nothing
   * if its device was lost, because that ended the mapping.
   *
   * @throws DmaError EINVAL if it is unmapped already; EBUSY while `unmapAsync` runs or another thread has attached to it, and if it is one mapping of a
   *   group for every device (`eal.dmaMapAll`, memory of the library and of heaps), which is only unmapped as a whole;
   *   EIO if the other side unmapped a different number of bytes; else the error of the address space
   */
  unmap(): void {
    Mapping.#mustNotBeKept(this);
    this.end();
  }

  /** @internal As {@link Mapping.unmap}, for the owner of a group. */
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
    if (this.#seldom?.share !== undefined) this.unshare('unmap');
    this.#owner.release(this);
  }

  /** As {@link Mapping.unmap}, without blocking the event loop if the address space supports that. */
  async unmapAsync(): Promise<void> {
    Mapping.#mustNotBeKept(this);
    await this.endAsync();
  }

  /**
   * @internal As {@link Mapping.unmapAsync}, for the owner of a group. Calls while it runs wait for the same result.
   */
  async endAsync(): Promise<void> {
    if (Mapping.#endedByLoss(this)) return;
    Mapping.#first(this, 'unmap');
    let unmapping = this.#seldom?.unmapping;
    if (unmapping === undefined) {
      if (this.#seldom?.share !== undefined) this.unshare('unmap');
      unmapping = this.#owner.releaseAsync(this).finally(() => {
        this.#seldom = { ...this.#seldom, unmapping: undefined };
      });
      this.#seldom = { ...this.#seldom, unmapping };
    }
    await unmapping;
  }

  /** @internal Does it belong to this domain? */
  isOf(owner: MappingOwner): boolean {
    return this.#owner === owner;
  }

  /** Unmaps it, unless it was unmapped before. */
  [Symbol.dispose](): void {
    if (this.live) this.unmap();
  }

  /** Unmaps it, unless it was unmapped before. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.live) await this.unmapAsync();
  }

  // Static functions, not private methods: those would cost each object a word in V8.

  /** The IOVA of `va`; -1 if it is not in the mapping. */
  static #iovaAt(mapping: Mapping, va: number): number {
    const { entries } = mapping;
    // The table of the domain is faster than a search. (After a part was cut out, another mapping may be there.)
    if (entries.length > FEW && mapping.whole && va >= mapping.va && va < mapping.va + mapping.length) {
      const iova = mapping.#owner.iovaOf(va);
      if (iova >= 0) return iova;
    }
    let low = 0;
    for (let high = entries.length; low < high;) {
      const middle = (low + high) >>> 1;
      if (entries[middle].va <= va) low = middle + 1;
      else high = middle;
    }
    const entry = low === 0 ? undefined : entries[low - 1];
    return entry !== undefined && va < entry.va + entry.length ? entry.iova + (va - entry.va) : -1;
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

/** Mappings in the order they came. A mapping is in at most one list. Unlike a Set, it uses no memory of its own. */
export class MappingList {
  #first: Mapping | undefined;
  #last: Mapping | undefined;

  add(mapping: Mapping): void {
    mapping.previous = this.#last;
    if (this.#last === undefined) this.#first = mapping;
    else this.#last.next = mapping;
    this.#last = mapping;
  }

  /** Removes a mapping that is in this list. */
  delete(mapping: Mapping): void {
    const { previous, next } = mapping;
    if (previous === undefined) this.#first = next;
    else previous.next = next;
    if (next === undefined) this.#last = previous;
    else next.previous = previous;
    mapping.previous = mapping.next = undefined;
  }

  /** All mappings at this moment. */
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
