/**
 * A domain: one DMA address space, with one or more devices in it. This is where a mapping is made: every rule that holds
 * for all kinds of devices is here, once; the address space below only does the calls.
 *
 * The life of a mapping: plan (check everything, find what is shared) → reserve IOVAs and ledger entries → address space →
 * publish (translation table, hold on the area). Unmapping goes the other way. Each step undoes itself when a later fails.
 */
import { isA, mustBeOneOf, optionsOf, type Shape, typeHint } from '../check.js';
import { debug } from '../debug.js';
import { DmaError, invalid, isDmaError, named, naming, throwFirst, undoAll, withUndo } from '../errors.js';
import type { Area } from '../memory/area.js';
import type { AreaIndex } from '../memory/area-index.js';
import { OriginNotes } from '../origin.js';
import {
  checkLongWork,
  inLanes,
  mustGoOn,
  ON_PROGRESS,
  Pace,
  progressOf,
  Turns,
  type LongWorkOptions,
} from '../long-work.js';
import type { LimitsPort, MemoryPort } from '../platform/ports.js';
import { joined, Range } from '../ranges.js';
import { formatSize, hex, isAddress, isMultiple, KiB, type Iova, type IovaLike, type Va } from '../units.js';
import { show } from '../show.js';
import { grants, type DmaAccess, type AddressSpace, type Constraints } from './address-space.js';
import { claimOf } from './claim-of.js';
import { leftOf, planCut } from './cut.js';
import { explain, type Explanation } from './explain.js';
import { IovaAllocator } from './iova-allocator.js';
import { Entry, Ledger } from './ledger.js';
import { LockedBudget } from './locked-budget.js';
import { lostDevice, Mapping, MappingList, mustNotBeBusy } from './mapping.js';
import { enterInTurns, getPages, isLook, pieceSizes, PINNING_MS, removeInTurns, TABLE_PIECE } from './pieces.js';
import {
  ACCESSES,
  checkPiece,
  MAP_OPTIONS,
  piecesOfTable,
  planMapping,
  targetOf,
  type Books,
  type MapOptions,
  type MapTarget,
  type Plan,
  type PlannedPiece,
} from './plan.js';
import { Reach } from './reach.js';
import { RetiredMappings } from './retired.js';
import { TranslationTable } from './translation-table.js';
import { shortForm } from '../short-form.js';
import { now as clock } from '../timers.js';

/** How to map it without blocking. */
export interface MapAsyncOptions extends MapOptions, LongWorkOptions {
  /**
   * bytes a piece, rounded up to whole pages; each is a mapping entry of its own. Default: where mapping pins pages, 2 MiB and
   * more, so that a piece takes some milliseconds; else all at once (`Infinity`). Where a mapping has a key (verbs) it is one
   * entry in any case, and only its pages are got piece by piece.
   */
  readonly chunkBytes?: number;
}

/** What is kept in the books beside live mappings. */
export interface BookSettings {
  /** How long a freed IOVA is held back before reuse, in milliseconds. Default 100. */
  readonly holdBackMs?: number;
  /** How many retired mappings `explain` remembers. Default 1024. */
  readonly remember?: number;
  /**
   * Note where each mapping was made, which costs some microseconds? Default: of the first 1000, and from then on of one in 64.
   */
  readonly origins?: boolean;
}

/** Settings of a domain. */
export interface DomainOptions extends BookSettings {
  /** What messages call it. */
  readonly name: string;
  readonly space: AddressSpace;
  /** Called when the last device has left and the address space was let go of: the domain is no more. */
  readonly closed?: () => void;
  readonly areas: AreaIndex;
  readonly limits: Pick<LimitsPort, 'lockedMemory'>;
  /**
   * Gets the pages of memory that is to be pinned, several pieces at once on other threads: most of the time of mapping goes
   * there. Absent: pinning does.
   */
  readonly pages?: Pick<MemoryPort, 'populateAsync' | 'lanes'>;
  /** The clock, in milliseconds. Default `performance.now`. */
  readonly now?: () => number;
}

const NONE: MapOptions = {};
const MAP_ASYNC_OPTIONS: Shape<MapAsyncOptions> = {
  ...MAP_OPTIONS,
  onProgress: 'function',
  signal: 'signal',
  chunkBytes: 'number',
};

/** The unit of the translation table, which every granule is a multiple of. bytes */
const TRANSLATION_PAGE = 4 * KiB;

/** Why a call is given up whose device was lost. */
class Lost extends Error {
  constructor(override readonly cause: DmaError) {
    super('the device was lost');
  }
}

/** One DMA address space. */
export class Domain {
  readonly name: string;
  /** VA to IOVA and key, for hot paths. */
  readonly table = new TranslationTable();
  readonly #space: AddressSpace;
  readonly #reach = new Reach();
  readonly #onClosed: (() => void) | undefined;
  /** Devices that are lost, and have not left yet. */
  readonly #lost = new Set<string>();
  readonly #areas: AreaIndex;
  readonly #locked: LockedBudget;
  readonly #pages: DomainOptions['pages'];
  readonly #ledger = new Ledger();
  readonly #retired: RetiredMappings;
  readonly #allocator: IovaAllocator;
  readonly #origins: OriginNotes;
  readonly #now: () => number;
  /** Who has the mappings of {@link mapOwn}. Not a name that a device can have. */
  readonly #self: string;
  /** Devices in this domain, and what each has mapped. */
  readonly #devices = new Map<string, MappingList>();
  /** What {@link mapOwn} made. */
  readonly #own = new MappingList();
  /** Async calls that are running, and how to make them give up. */
  readonly #running = new Map<Promise<unknown>, { device: string; giveUp?: AbortController }>();
  /** Entries that the address space would not undo, and the device whose hold on the memory stays because of that. */
  readonly #stuck: { readonly entry: Entry; readonly device: string }[] = [];
  /** As they were when they were last asked for, and their windows, with those that touch joined. */
  #constraints: Constraints;
  /** What plans are made from, as long as the constraints are the same. */
  #books: Books | undefined;
  #windows: readonly Range<Iova>[];
  #failure: DmaError | undefined;
  /** Did the other side keep memory when the domain failed? */
  #lingers = false;
  #closed = false;

  /** @internal @throws DmaError EINVAL when the granule is not a power of two, or less than 4 KiB */
  constructor(options: DomainOptions) {
    const { space, now = clock } = options;
    const { constraints } = space;
    const { windows, granule } = constraints;
    if (granule % TRANSLATION_PAGE !== 0)
      throw invalid('domain', `${options.name} has a granule of ${formatSize(granule)}; 4 KiB is the least`);
    this.name = options.name;
    this.#self = `the domain ${options.name}`;
    this.#space = space;
    this.#onClosed = options.closed;
    this.#areas = options.areas;
    this.#locked = new LockedBudget(options.limits);
    this.#pages = options.pages;
    this.#retired = new RetiredMappings(options.remember ?? 1024);
    this.#constraints = constraints;
    this.#windows = joined(windows);
    this.#allocator = new IovaAllocator({ windows, granule, holdBackMs: options.holdBackMs, now });
    this.#origins = new OriginNotes(options.origins);
    this.#now = now;
  }

  /** `vfio-user`, `emulated`, `identity` ... */
  get kind(): string {
    return this.#space.kind;
  }

  /** What holds for mappings here, now. */
  get constraints(): Constraints {
    return this.#reach.clip(this.#space.constraints);
  }

  /** Names of the devices in it. */
  get devices(): Iterable<string> {
    return this.#devices.keys();
  }

  /** How many calls of the address space are outstanding: what counts against `constraints.entryLimit`. */
  get entries(): number {
    return this.#ledger.size;
  }

  /** Bytes that are mapped. */
  get bytes(): number {
    return this.#ledger.bytes;
  }

  /** Every live mapping, device by device; last those of the domain's own. */
  *mappings(): Generator<Mapping> {
    for (const mappings of this.#devices.values()) yield* mappings.toArray();
    yield* this.#own.toArray();
  }

  /** @internal What a device has mapped, in the order it came. */
  mappingsFor(device: string): Mapping[] {
    return this.#devices.get(device)?.toArray() ?? [];
  }

  /** @internal A device joins, which can emit so many bits of an IOVA. */
  attach(device: string, bits = Infinity): void {
    this.#reach.add(device, bits);
    if (!this.#devices.has(device)) this.#devices.set(device, new MappingList());
  }

  /**
   * @internal A device leaves: async maps it has running are given up, all it has mapped is unmapped, and after the last device the
   * address space is let go of and the domain is no more.
   *
   * @param lost why it is gone, when it was not asked to leave
   * @throws DmaError of the first thing that could not be undone, once all of it was tried; the device is gone all the same
   */
  async detach(device: string, lost?: DmaError): Promise<void> {
    const errors: unknown[] = [];
    const turns = new Turns();
    for (;;) {
      // No gap between the last look at what runs and is mapped, and the end: a call that comes meanwhile is seen here.
      const isLast = this.#devices.size === 1 && this.#devices.has(device);
      const names = isLast ? [device, this.#self] : [device];
      const runs = [...this.#running].filter(([, run]) => names.includes(run.device));
      if (runs.length > 0) {
        for (const [, { giveUp }] of runs)
          giveUp?.abort(lost === undefined ? new Error(`${device} is leaving`) : new Lost(lost));
        await Promise.allSettled(runs.map(([run]) => run));
        continue;
      }
      const mappings = [...(isLast ? this.#own.toArray() : []), ...(this.#devices.get(device)?.toArray() ?? [])];
      if (mappings.length === 0) break;
      for (const mapping of mappings.reverse()) {
        if (mapping.device === device) mapping.lost ??= lost;
        if (turns.due) await turns.next();
        if (!mapping.live) continue;
        try {
          await mapping.endAsync();
        } catch (error) {
          errors.push(error);
          if (mapping.live) this.#abandon(mapping, 'stick');
        }
      }
    }
    this.#devices.delete(device);
    this.#reach.delete(device);
    this.#lost.delete(device);
    if (this.#devices.size === 0 && !this.#closed) {
      this.#closed = true;
      errors.push(...undoAll([() => this.#space.close()]));
      this.fail(
        new DmaError({ code: 'ENODEV', operation: 'dmaMap', reason: `${this.name} is closed: no device is left` }),
      );
      this.#onClosed?.();
    }
    throwFirst(errors, 'detach');
  }

  /** @internal A device is gone, which leaves later. When all are, {@link fail} follows. */
  lose(device: string, error: DmaError): void {
    if (!this.#devices.has(device)) return;
    this.#lost.add(device);
    if (this.#lost.size === this.#devices.size) this.fail(error);
  }

  /**
   * @internal The other side is gone (the process that served the device died, the device was pulled), and all mappings with it: the
   * books are cleared, memory is free again, and every later call throws `error`.
   */
  fail(error: DmaError): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    for (const { giveUp } of this.#running.values()) giveUp?.abort(new Lost(error));
    this.#noteLingering();
    for (const mapping of [...this.mappings()]) {
      mapping.lost ??= error;
      this.#abandon(mapping, 'forget');
    }
    for (const { entry, device } of this.#stuck.splice(0)) entry.area.release(device);
    // What is being mapped may be in the table already.
    for (const entry of this.#ledger) if (entry.state === 'mapping') this.table.remove(entry.va, entry.length);
    this.#ledger.clear();
  }

  /** What the other side was given by descriptor stays out of use until it can not reach it. */
  #noteLingering(): void {
    const shared = new Set([...this.#ledger].filter(({ area }) => area.backing !== undefined).map(({ area }) => area));
    if (shared.size === 0) return;
    const unneeded = new AbortController();
    const over = this.#space.lingering?.(unneeded.signal);
    if (over === undefined) return;
    this.#lingers = true;
    for (const area of [...shared])
      area.linger(over, () => {
        if (shared.delete(area) && shared.size === 0) unneeded.abort();
      });
  }

  /**
   * @internal Maps `target` for `device`.
   *
   * @throws DmaError, before any side effect: EINVAL (impossible, misaligned or unregistered range, or an IOVA that the
   *   domain would ignore or that contradicts the area's table; remote writes to what the device may only read), ENOTSUP
   *   (remote rights or paging that the domain has not), EACCES (writing to read-only memory), ERANGE (IOVA
   *   outside the windows), EEXIST (other mapping in the way, by VA or IOVA), EBUSY (the mapping in the way is just being
   *   made or undone), ENOSPC (entry limit, or no free IOVA), ENOMEM (locked-memory limit), ENODEV (the domain failed);
   *   after undoing: what the address space says
   */
  mapFor(device: string, target: MapTarget, options?: MapOptions, operation = 'dmaMap'): Mapping {
    const checked = options === undefined ? NONE : optionsOf(options, MAP_OPTIONS, operation);
    const plan = this.#plan(device, target, checked, operation, this.mapFor);
    if (plan.shared !== undefined) return this.#publish(plan, [...plan.shared.entries]);
    const entries = this.#reserve(plan, plan.pieces);
    let mapped = 0;
    try {
      for (const entry of entries) {
        entry.keys = this.#space.map(entry);
        mapped++;
      }
      this.#mustNotHaveFailed(operation);
      return this.#publish(plan, entries);
    } catch (error) {
      throw this.#unwind(plan, entries, mapped, error);
    }
  }

  /**
   * @internal As {@link Domain.mapFor}, without blocking the event loop: in pieces, with progress, and everything undone on abort.
   *
   * @throws DmaError as `mapFor`, and EINVAL for impossible `chunkBytes`, ECANCELED when `options.signal` is aborted or the
   *   device leaves meanwhile
   */
  async mapForAsync(
    device: string,
    target: MapTarget,
    asked?: MapAsyncOptions,
    operation = 'dmaMapAsync',
  ): Promise<Mapping> {
    const options: MapAsyncOptions = naming(device, () => optionsOf(asked, MAP_ASYNC_OPTIONS, operation));
    naming(device, () => checkAsync(options, operation));
    const plan = this.#plan(device, target, options, operation, this.mapForAsync, 'later');
    const giveUp = new AbortController();
    const signal = options.signal === undefined ? giveUp.signal : AbortSignal.any([giveUp.signal, options.signal]);
    const run = this.#mapPieces(plan, options, signal);
    this.#running.set(run, { device, giveUp });
    try {
      return await run;
    } finally {
      this.#running.delete(run);
    }
  }

  /**
   * @internal Unmaps by address what `device` mapped: exactly one whole mapping, or, where the domain can, a part of one.
   *
   * @param target.iova what the mapping has, to be sure; not compared when absent
   * @throws DmaError EINVAL: impossible or misaligned range, nothing of this device mapped exactly there, or another IOVA;
   *   ENOTSUP: a part, and the domain can not cut; EBUSY: a part of what another device maps too; ENOSPC: cutting would
   *   pass the entry limit; EIO: the other side unmapped a different number of bytes
   */
  unmapFor(device: string, target: MapTarget & { readonly iova?: IovaLike }, operation = 'dmaUnmap'): void {
    const wanted = naming(device, () => targetOf(target, operation));
    const range = naming(device, () => new Range(wanted.va as Va, wanted.length, operation));
    const mapping = claimOf(this.#ledger, device, range, operation);
    const part = mapping.range.equals(range) ? undefined : range;
    if (wanted.iova !== undefined && mapping.iovaOf(range.start) !== wanted.iova) {
      const reason = `it is mapped at IOVA ${hex(mapping.iovaOf(range.start))}, not ${hex(wanted.iova)}`;
      throw invalid(operation, reason, { range, device, hint: 'leave the IOVA out, or give what mapping.iova says' });
    }
    if (part === undefined) this.#release(mapping, operation);
    else this.#cut(mapping, part, operation);
  }

  /** @internal Maps for the domain itself and not for one of its devices, until its last device leaves: see `Container.map`. */
  mapOwn(target: MapTarget, options: MapOptions | undefined, operation: string): Mapping {
    return this.mapFor(this.#self, target, options, operation);
  }

  /** @internal Undoes {@link mapOwn}. */
  unmapOwn(target: Mapping | (MapTarget & { readonly iova?: IovaLike }), operation: string): void {
    if (!isA(target, Mapping)) return this.unmapFor(this.#self, target, operation);
    if (!this.#isOwn(target))
      throw invalid(operation, 'container.map did not make this mapping', { range: target.range });
    target.unmap();
  }

  /** @internal for `Mapping` */
  release(mapping: Mapping): void {
    this.#release(mapping, 'unmap');
  }

  /** @internal for `Mapping` */
  async releaseAsync(mapping: Mapping): Promise<void> {
    const run = this.#releasePieces(mapping);
    this.#running.set(run, { device: mapping.device });
    try {
      await run;
    } finally {
      this.#running.delete(run);
    }
  }

  /** The device's address of `va`; -1 when it is not mapped. For hot paths: no checks, no allocation. */
  iovaOf(va: number): number {
    return this.table.iovaOf(va);
  }

  /** Where the device's addresses of [va, va + length) begin, and where they begin anew: one look a mapping entry. */
  *runsOf(va: Va, length: number): Generator<Iova, void> {
    const end = va + length;
    let next = -1;
    for (let at: number = va; at < end;) {
      const entry = this.#ledger.overlappingVa(at, end - at);
      if (entry === undefined) return;
      at = Math.max(at, entry.va);
      const iova = (entry.iova + (at - entry.va)) as Iova;
      if (iova !== next) yield iova;
      at = entry.va + entry.length;
      next = entry.iova + entry.length;
    }
  }

  /** The address in this process of a device's address; `undefined` when it is not mapped. O(log n). */
  vaOf(iova: number): Va | undefined {
    if (!isAddress(iova)) return undefined;
    const entry = this.#ledger.atIova(iova);
    return entry === undefined ? undefined : ((entry.va + (iova - entry.iova)) as Va);
  }

  /**
   * @internal Where a device's access goes.
   *
   * @returns the address in this process, or the reason why there is none: `EFAULT` when not all of it is in one mapping,
   *   `EACCES` when the mapping does not grant it
   */
  resolve(iova: number, length: number, access: DmaAccess): { va: Va; area: Area } | 'EFAULT' | 'EACCES' {
    const entry = this.#ledger.atIova(iova);
    if (entry === undefined || iova + length > entry.iova + entry.length || entry.state === 'unmapping')
      return 'EFAULT';
    if (!grants(entry.access, access)) return 'EACCES';
    return { va: (entry.va + (iova - entry.iova)) as Va, area: entry.area };
  }

  /**
   * What a device address is: mapped, mapped until a moment ago and by whom, just past the end of something, or never
   * mapped. For the moment after a DMA fault.
   *
   * @param access what the device tried, when that is known
   * @param by who asked the device to: this program, or a peer over the network, who needs rights of its own
   */
  explain(iova: IovaLike, length = 1, access?: DmaAccess, by: 'device' | 'peer' = 'device'): Explanation {
    const range = new Range(iova as Iova, length, 'explain');
    if (access !== undefined) mustBeOneOf(access, ACCESSES, 'access', 'explain');
    const evidence = { ledger: this.#ledger, retired: this.#retired, windows: this.#windows, now: this.#now() };
    return explain(evidence, range.start, range.length, access, by);
  }

  #isOwn(mapping: Mapping): boolean {
    return mapping.device === this.#self && mapping.live && mapping.isOf(this);
  }

  #mappingsOf(device: string): MappingList | undefined {
    return device === this.#self ? this.#own : this.#devices.get(device);
  }

  // --- mapping ---

  /** @param called what the program called, for the origin @param when see {@link planMapping} */
  #plan(
    device: string,
    target: MapTarget,
    options: MapOptions,
    operation: string,
    called: (this: Domain, ...args: never[]) => unknown,
    when: 'now' | 'later' = 'now',
  ): Plan {
    if (this.#failure !== undefined) throw lostDevice(operation, device, this.#failure);
    const books = this.#newBooks();
    const origin = this.#origins.note(called);
    try {
      return planMapping(books, { device, target, options, operation, origin }, when);
    } catch (error) {
      throw named(error, device);
    }
  }

  #newBooks(): Books {
    const constraints = this.#newConstraints();
    // Mostly nothing has changed.
    if (this.#books?.constraints === constraints) return this.#books;
    return (this.#books = {
      name: this.name,
      constraints,
      windows: this.#windows,
      areas: this.#areas,
      ledger: this.#ledger,
      locked: this.#locked,
    });
  }

  /** Books IOVAs and ledger entries for all pieces, or none, whatever throws. */
  #reserve(plan: Plan, pieces: readonly PlannedPiece[]): Entry[] {
    // Nearly always. An array that grows takes room for 17.
    if (pieces.length === 1) return [this.#reservePiece(plan, pieces[0])];
    const entries: Entry[] = [];
    try {
      for (const piece of pieces) entries.push(this.#reservePiece(plan, piece));
      return entries;
    } catch (error) {
      for (const entry of entries) this.#unreserve(entry);
      throw error;
    }
  }

  /** As {@link #reserve}, for a plan without pieces: they are found, checked and booked in as many turns as that takes. */
  async #reserveTable(plan: Plan, turns: Turns, signal: AbortSignal): Promise<Entry[]> {
    const goOn = async (): Promise<void> => {
      await turns.next();
      this.#mustNotHaveFailed(plan.operation);
      this.#mustGoOn(signal, plan);
    };
    let books = this.#newBooks();
    let looks = 0;
    let left = 0;
    for (const piece of piecesOfTable(books, plan)) {
      if (piece !== undefined) left++;
      if ((piece === undefined || isLook(++looks)) && turns.due) await goOn();
    }
    await goOn();
    books = this.#newBooks();
    const entries: Entry[] = [];
    try {
      for (const piece of piecesOfTable(books, plan)) {
        if ((piece === undefined || isLook(++looks)) && turns.due) {
          await goOn();
          books = this.#newBooks();
        }
        if (piece === undefined) continue;
        checkPiece(books, plan, piece, left--);
        entries.push(this.#reservePiece(plan, piece));
      }
      return entries;
    } catch (error) {
      await this.#unwindAsync(plan, [], entries, error);
      throw error;
    }
  }

  #reservePiece(plan: Plan, piece: PlannedPiece): Entry {
    const iova = this.#reserveIova(plan.area, piece);
    if (iova === undefined) throw this.#noIova(plan, piece);
    const entry = new Entry(plan.area, piece.va, iova, piece.length, plan.access, plan.region);
    this.#ledger.add(entry);
    return entry;
  }

  /** The IOVA of a piece: as given, else the VA where that is free, else the lowest that is. */
  #reserveIova(area: Area, { va, length, iova }: PlannedPiece): Iova | undefined {
    const { granule, iova: chosenBy } = this.#constraints;
    const wish = iova ?? (Number(va) as Iova);
    // Who asks for an IOVA gets it. Otherwise what another area has just left is held back from this one.
    const tenant = iova === undefined ? area : undefined;
    // Where IOVAs are ignored there are no windows to take them from; they are VAs, which the ledger keeps apart.
    if (chosenBy === 'ignored' || this.#allocator.take(wish, length, tenant)) return wish;
    if (iova !== undefined) return undefined;
    // Pages that begin at multiples of their size take fewer entries in the tables of an IOMMU.
    return this.#allocator.allocate(length, granule, isMultiple(va, area.pageSize) ? area.pageSize : granule);
  }

  #unreserve(entry: Entry, now = this.#now()): void {
    this.#ledger.remove(entry);
    if (this.#constraints.iova !== 'ignored') this.#allocator.release(entry.iova, entry.length, entry.area, now);
  }

  #noIova(plan: Plan, piece: PlannedPiece): DmaError {
    const { operation, range, device } = plan;
    if (piece.iova !== undefined) {
      // Windows and ledger have been checked, so that only another piece of this very mapping can have taken it.
      const reason = `the IOVA table gives ${hex(piece.iova)} to two parts of it`;
      return invalid(operation, reason, { range, device, hint: 'each page has an IOVA of its own' });
    }
    const { freeBytes, heldBackBytes, largestFree } = this.#allocator;
    return new DmaError({
      code: 'ENOSPC',
      operation,
      range,
      device,
      reason: `no ${formatSize(piece.length)} of IOVAs are free in one piece`,
      hint: `${formatSize(freeBytes)} are free, at most ${formatSize(largestFree)} in one piece, and ${formatSize(heldBackBytes)} held back; the windows are ${this.#windows.map(String).join(', ')}: unmap what the device does not need, or map less of it at a time`,
    });
  }

  /** Undoes a map that failed half-way, in reverse; the first `mapped` entries have been mapped. */
  #unwind(plan: Plan, entries: readonly Entry[], mapped: number, error: unknown): DmaError {
    const undo: unknown[] = [];
    for (let i = entries.length - 1; i >= 0 && this.#failure === undefined; i--) {
      const entry = entries[i];
      const failed = i < mapped ? undoAll([() => this.#unmapInSpace(entry, plan.device, plan.operation)]) : [];
      this.#undone(entry, plan.device, i < mapped, failed);
      undo.push(...failed);
    }
    return this.#named(withUndo(error, plan.operation, undo), plan);
  }

  /** As {@link #unwind}: the entries of `mapped` have been mapped, those of `reserved` not. */
  async #unwindAsync(plan: Plan, mapped: Entry[], reserved: readonly Entry[], error: unknown): Promise<DmaError> {
    const undo: unknown[] = [];
    const turns = new Turns();
    for (const entry of reserved) {
      if (turns.due) await turns.next();
      this.#undone(entry, plan.device, false, []);
    }
    for (let entry = mapped.pop(); entry !== undefined && this.#failure === undefined; entry = mapped.pop()) {
      if (turns.due) await turns.next();
      await removeInTurns(this.table, entry, turns);
      const failed: unknown[] = [];
      await this.#unmapInSpaceAsync(entry, plan.device, plan.operation).catch((why: unknown) => failed.push(why));
      this.#undone(entry, plan.device, true, failed);
      undo.push(...failed);
    }
    return this.#named(withUndo(error, plan.operation, undo), plan);
  }

  /** Takes an entry off the books after an undo, unless that failed. A domain that failed has no books any more. */
  #undone(entry: Entry, device: string, wasMapped: boolean, failed: readonly unknown[]): void {
    if (this.#failure !== undefined) return;
    if (this.table.iovaOf(entry.va) >= 0) this.table.remove(entry.va, entry.length);
    if (failed.length > 0) return this.#stick(entry, device);
    if (wasMapped) this.#retired.add(entry, device, this.#now());
    this.#unreserve(entry);
  }

  /** An error of the address space, told as the failure of the call that it made fail. */
  #named(error: DmaError, { operation, range, device }: Pick<Plan, 'operation' | 'range' | 'device'>): DmaError {
    const { undo, cause } = error;
    const wasAborted = error.code === 'ECANCELED' && !isA(cause, Lost);
    if (this.#failure !== undefined && !wasAborted)
      return lostDevice(operation, device, this.#failure, range).with({ undo });
    // The device was lost, and says so.
    if (error.code === 'ENODEV' && error.operation === operation && error.device === device) return error;
    const isOwn = [operation, ON_PROGRESS].includes(error.operation);
    const reason = isOwn ? error.reason : `${error.operation}: ${error.reason}`;
    return error.with({ operation, reason, range: error.range ?? range, device, cause: error });
  }

  #publish(plan: Plan, entries: Entry[]): Mapping {
    const { device, range, origin } = plan;
    // This may fail for want of memory, before anything else has changed.
    for (const entry of entries)
      if (entry.state !== 'live') this.table.add(entry.va, entry.length, entry.iova, entry.keys?.lkey ?? -1);
    const mapping = new Mapping(this, device, range, plan, entries, origin);
    for (const entry of entries) {
      entry.claim(mapping);
      entry.state = 'live';
    }
    this.#enter(mapping, plan);
    return mapping;
  }

  /** As {@link #publish} for entries that are in the translation table, in as many turns as they take. */
  async #publishLater(plan: Plan, entries: Entry[], turns: Turns): Promise<Mapping> {
    const { device, range, origin, operation } = plan;
    const mapping = new Mapping(this, device, range, plan, entries, origin);
    for (let i = 0; i < entries.length; i++) {
      if (isLook(i + 1) && turns.due) {
        await turns.next();
        this.#mustNotHaveFailed(operation);
      }
      entries[i].claim(mapping);
    }
    for (const entry of entries) entry.state = 'live';
    this.#enter(mapping, plan);
    return mapping;
  }

  /** Enters what has become live in the books of its device. */
  #enter(mapping: Mapping, { device, range, area, shared }: Plan): void {
    area.hold(device);
    if (device !== this.#self && !this.#devices.has(device)) this.attach(device);
    this.#mappingsOf(device)?.add(mapping);
    const how = shared === undefined ? 'mapped' : 'mapped already, so counted and not mapped again';
    debug?.(`${this.name}: ${how}: ${range.toString()} for ${device} at IOVA ${hex(mapping.entries[0].iova)}`);
  }

  async #mapPieces(plan: Plan, options: MapAsyncOptions, signal: AbortSignal): Promise<Mapping> {
    const { range, operation, area, device, region } = plan;
    const { pins, regions } = this.constraints;
    const report = progressOf(options.onProgress, range.length);
    this.#mustGoOn(signal, plan);
    if (plan.shared !== undefined) {
      const mapping = this.#publish(plan, [...plan.shared.entries]);
      try {
        report(range.length);
      } catch (error) {
        throw this.#named(withUndo(error, operation, undoAll([() => mapping[Symbol.dispose]()])), plan);
      }
      return mapping;
    }
    const turns = new Turns();
    const pace = new Pace(area.pageSize, PINNING_MS);
    const pages = pins && region.paging === 'pinned' ? this.#pages : undefined;
    const mapped: Entry[] = [];
    /** Reserved and not begun, the last first. */
    let waiting: Entry[] = [];
    /** Whose pages are being got, in order. */
    const ahead: { readonly entry: Entry; readonly began: number; readonly ready: Promise<void> }[] = [];
    area.hold(device);
    try {
      const isPlanned = plan.pieces.length > 0;
      waiting = isPlanned ? this.#reserve(plan, plan.pieces) : await this.#reserveTable(plan, turns, signal);
      waiting.reverse();
      this.table.prepare(range.start, range.length);
      // What has a key is one piece, and long: its pages come first, so that it can be given up.
      if (regions !== undefined && pages !== undefined)
        await inLanes({
          ...{ length: range.length, lanes: pages.lanes, pace, signal, operation },
          piece: (offset, bytes) => getPages(pages, (range.start + offset) as Va, bytes, area),
          done: (bytes) => {
            if (bytes < range.length) report(bytes);
          },
        });
      const spare = this.constraints.entryLimit - this.#ledger.size;
      const pieceBytes = pieceSizes(this.constraints, plan, { chunkBytes: options.chunkBytes, pace, spare });
      const lanes = regions === undefined ? (pages?.lanes ?? 1) : 1;
      let done = 0;
      while (waiting.length + ahead.length > 0) {
        while (waiting.length > 0 && ahead.length < lanes) {
          const entry = this.#firstPiece(waiting, pieceBytes);
          const ready =
            pages === undefined || regions !== undefined
              ? Promise.resolve()
              : getPages(pages, entry.va, entry.length, area);
          ahead.push({ entry, began: clock(), ready });
        }
        const [{ entry, began, ready }] = ahead;
        await ready;
        this.#mustNotHaveFailed(operation);
        this.#mustGoOn(signal, plan);
        entry.keys = await this.#mapInSpaceAsync(entry);
        this.#mustNotHaveFailed(operation);
        mapped.push(entry);
        ahead.shift();
        pace.took(entry.length, clock() - began);
        await enterInTurns(this.table, entry, turns, () => this.#mustNotHaveFailed(operation));
        done += entry.length;
        report(done);
        if (turns.due) await turns.next();
        this.#mustNotHaveFailed(operation);
        this.#mustGoOn(signal, plan);
      }
      return await this.#publishLater(plan, [...mapped], turns);
    } catch (error) {
      await Promise.all(ahead.map(({ ready }) => ready));
      throw await this.#unwindAsync(plan, mapped, [...ahead.map(({ entry }) => entry), ...waiting], error);
    } finally {
      area.release(device);
    }
  }

  #mustGoOn(signal: AbortSignal, { operation, range, device }: Plan): void {
    const reason: unknown = signal.reason;
    if (isA(reason, Lost)) throw lostDevice(operation, device, reason.cause, range);
    try {
      mustGoOn(signal, operation);
    } catch (error) {
      throw isDmaError(error) ? error.with({ range, device }) : error;
    }
  }

  /** Takes the first piece off the reserved entries of `waiting`, which is in reverse; the rest stays there. */
  #firstPiece(waiting: Entry[], pieceBytes: (va: Va) => number): Entry {
    const entry = waiting[waiting.length - 1];
    const bytes = pieceBytes(entry.va);
    waiting.pop();
    if (entry.length <= bytes) return entry;
    const first = entry.part(entry.va, bytes);
    const rest = entry.part((entry.va + bytes) as Va, entry.length - bytes);
    this.#ledger.remove(entry);
    this.#ledger.add(first);
    this.#ledger.add(rest);
    waiting.push(rest);
    return first;
  }

  // --- unmapping ---

  #release(mapping: Mapping, operation: string): void {
    mustNotBeBusy(mapping, operation);
    for (let entry = mapping.entries.at(-1); entry !== undefined; entry = mapping.entries.at(-1)) {
      if (entry.uses === 1) this.#unmapInSpace(entry, mapping.device, operation);
      // The address space may have found out that the other side is gone, which ends the mapping as well.
      if (mapping.live) this.#drop(mapping, entry);
    }
  }

  async #releasePieces(mapping: Mapping): Promise<void> {
    const turns = new Turns();
    const { entries } = mapping;
    try {
      // Before any of it is unmapped, nobody is told an address or a key of it any more.
      for (let i = 0; i < entries.length; i++) {
        if (isLook(i + 1) && turns.due) await turns.next();
        if (entries[i].uses > 1) continue;
        const began = this.#beginUnmapping(entries[i], turns);
        if (began !== undefined) await began;
      }
      for (let entry = entries.at(-1); entry !== undefined; entry = entries.at(-1)) {
        if (turns.due) await turns.next();
        // Who had it too may have gone meanwhile.
        if (entry.uses === 1 && entry.state === 'live') await this.#beginUnmapping(entry, turns);
        if (entry.state === 'unmapping') await this.#unmapInSpaceAsync(entry, mapping.device, 'unmap');
        if (mapping.live) this.#drop(mapping, entry);
      }
    } catch (error) {
      for (const entry of mapping.entries)
        if (entry.state === 'unmapping') {
          entry.state = 'live';
          this.table.add(entry.va, entry.length, entry.iova, entry.keys?.lkey ?? -1);
        }
      throw error;
    }
  }

  /** What is short is done at once; what this returns is the rest of what is long. */
  #beginUnmapping(entry: Entry, turns: Turns): Promise<void> | undefined {
    entry.state = 'unmapping';
    this.table.remove(entry.va, Math.min(entry.length, TABLE_PIECE));
    return entry.length > TABLE_PIECE ? removeInTurns(this.table, entry, turns) : undefined;
  }

  /** Takes the last entry of a mapping off its books, and off the domain's when nobody else claims it. */
  #drop(mapping: Mapping, entry: Entry): void {
    mapping.entries.pop();
    if (mapping.live) mapping.whole = false;
    if (entry.uses > 1) entry.unclaim(mapping);
    else this.#retire(entry, mapping.device);
    this.#endIfEmpty(mapping, entry.area);
  }

  #endIfEmpty(mapping: Mapping, area: Area): void {
    if (mapping.live) return;
    this.#mappingsOf(mapping.device)?.delete(mapping);
    area.release(mapping.device);
  }

  /** Off the books: an entry that was unmapped. Its last claim stays on it, for `explain`. */
  #retire(entry: Entry, device: string): void {
    // Asked once: the time is not free.
    const now = this.#now();
    this.table.remove(entry.va, entry.length);
    this.#unreserve(entry, now);
    this.#retired.add(entry, device, now);
  }

  /** Ends a mapping on the books only. `stick`: what only it claimed stays booked, since the device may still reach it. */
  #abandon(mapping: Mapping, what: 'stick' | 'forget'): void {
    const entries = mapping.entries.splice(0);
    this.#endIfEmpty(mapping, entries[0].area);
    for (const entry of entries) {
      if (entry.uses > 1) entry.unclaim(mapping);
      else {
        this.table.remove(entry.va, entry.length);
        if (what === 'stick') this.#stick(entry, mapping.device);
        else this.#retired.add(entry, mapping.device, this.#now());
      }
    }
  }

  /** Keeps an entry on the books that the address space will not undo: its addresses are never reused, its memory not freed. */
  #stick(entry: Entry, device: string): void {
    entry.state = 'stuck';
    entry.area.hold(device);
    this.#stuck.push({ entry, device });
  }

  /** Unmaps a part of a mapping; what is left of it stays, as up to two entries in place of each that was cut. */
  #cut(mapping: Mapping, part: Range<Va>, operation: string): void {
    const { device } = mapping;
    const { name, constraints } = this;
    const cuts = planCut({ name, constraints, entries: this.#ledger.size }, mapping, part, operation);
    for (const { entry, cut } of cuts) {
      this.#unmapInSpace(cut, device, operation);
      // The address space may have found out that the other side is gone, which ends the mapping as well.
      if (!mapping.live) return;
      const left = leftOf(entry, cut);
      this.#ledger.remove(entry);
      for (const rest of [cut, ...left]) {
        rest.claim(mapping);
        this.#ledger.add(rest);
      }
      this.#retire(cut, device);
      mapping.whole = false;
      mapping.entries.splice(mapping.entries.indexOf(entry), 1, ...left);
    }
    this.#endIfEmpty(mapping, cuts[0].entry.area);
  }

  // --- calls of the address space, and what its answers mean ---

  #unmapInSpace(entry: Entry, device: string, operation: string): void {
    try {
      this.#mustHaveUnmapped(entry, this.#space.unmap(entry), device, operation);
      debug?.(`${this.name}: unmapped: ${entry.vaRange.toString()} for ${device}, IOVA ${hex(entry.iova)}`);
    } catch (error) {
      this.#mayBeOver(isDmaError(error) ? error.with({ device, range: error.range ?? entry.iovaRange }) : error);
    }
  }

  async #unmapInSpaceAsync(entry: Entry, device: string, operation: string): Promise<void> {
    const { unmapAsync } = this.#space;
    try {
      const bytes = unmapAsync === undefined ? this.#space.unmap(entry) : await unmapAsync.call(this.#space, entry);
      this.#mustHaveUnmapped(entry, bytes, device, operation);
      debug?.(`${this.name}: unmapped: ${entry.vaRange.toString()} for ${device}, IOVA ${hex(entry.iova)}`);
    } catch (error) {
      this.#mayBeOver(isDmaError(error) ? error.with({ device, range: error.range ?? entry.iovaRange }) : error);
    }
  }

  /** What an unmap was to bring about has come about all the same when the domain failed meanwhile. */
  #mayBeOver(error: unknown): void {
    if (this.#failure === undefined) throw error;
    if (!this.#lingers) return;
    const hint = 'the other side may still write to this memory: nobody else gets it until its process has ended';
    throw isDmaError(error) ? error.with({ hint }) : error;
  }

  async #mapInSpaceAsync(entry: Entry): Promise<Entry['keys']> {
    return this.#space.mapAsync === undefined ? this.#space.map(entry) : this.#space.mapAsync(entry);
  }

  #mustHaveUnmapped(entry: Entry, bytes: number, device: string, operation: string): void {
    if (bytes === entry.length) return;
    throw new DmaError({
      code: 'EIO',
      operation,
      device,
      range: entry.iovaRange,
      reason: `${this.name} says that it unmapped ${bytes} bytes instead of ${entry.length}`,
      hint: 'the device may still reach this memory; reset or detach it before the memory is reused',
    });
  }

  /** For a call that was under way when the domain failed. */
  #mustNotHaveFailed(operation: string): void {
    if (this.#failure !== undefined) throw lostDevice(operation, undefined, this.#failure);
  }

  #newConstraints(): Constraints {
    const { constraints } = this;
    const { windows } = constraints;
    const hasMoved = windows !== this.#constraints.windows;
    this.#constraints = constraints;
    if (hasMoved) {
      this.#windows = joined(windows);
      this.#allocator.setWindows(windows);
    }
    return constraints;
  }
}

shortForm(Domain, 'Domain', ({ name, kind, devices, entries, bytes }) => ({
  name,
  kind,
  devices: [...devices],
  entries,
  bytes,
}));

/** @throws DmaError EINVAL */
function checkAsync(options: MapAsyncOptions, operation: string): void {
  const { chunkBytes = Infinity } = options;
  checkLongWork(options, operation);
  if (typeof chunkBytes !== 'number' || !(chunkBytes >= 1))
    throw invalid(operation, `pieces of ${show(chunkBytes)} bytes are not possible`, {
      hint:
        typeHint(chunkBytes, 'number') ??
        'chunkBytes is 1 or more; without it pieces are as large as take some milliseconds',
    });
}
