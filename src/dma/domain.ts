/**
 * A domain: one DMA address space with one or more devices. Mappings are made here: every rule that holds for all kinds
 * of devices is here, once; the address space below only does the calls.
 *
 * The life of a mapping: plan (check everything, find an existing mapping to share) → reserve IOVAs and ledger entries
 * → address space → publish (translation table, hold on the area). Unmapping is the reverse. If a step fails, the steps
 * before it are undone.
 */
import { isA, mustBeOneOf, optionsOf, type Shape, typeHint } from '../check.js';
import { debug } from '../debug.js';
import { DmaError, invalid, isDmaError, named, naming, throwFirst, undoAll, withUndo } from '../errors.js';
import type { Area } from '../memory/area.js';
import type { AreaIndex } from '../memory/area-index.js';
import type { WordMemory, WordSource } from '../memory/shared/words.js';
import { notShareable, type Share } from '../memory/shared/shares.js';
import { MemoryUsers, type MemoryUser } from '../memory/users.js';
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
import { factsOf, nameOf, type AttachedMapping } from './attached-mapping.js';
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
  type Plan,
  type PlannedPiece,
} from './plan.js';
import { Reach } from './reach.js';
import { RetiredMappings } from './retired.js';
import { logBuffers, processBuffers, TableLog, type LogBuffers } from './table-log.js';
import { TranslationTable } from './translation-table.js';
import { shortForm } from '../short-form.js';
import { now as clock } from '../timers.js';
import type { MemoryPart } from '../memory/part.js';
import { STAYS } from '../stays.js';

/** Options of mapping without blocking. */
export interface MapAsyncOptions extends MapOptions, LongWorkOptions {
  /**
   * bytes per piece, rounded up to whole pages; each piece uses one mapping entry. Default: if mapping pins pages, at
   * least 2 MiB, so that a piece takes some milliseconds; else everything at once (`Infinity`). With keys (verbs) there
   * is always one entry: only its pages are faulted in piece by piece.
   */
  readonly chunkBytes?: number;
}

/** Settings of the books, beyond live mappings: see `EalOptions`. */
export interface BookSettings {
  readonly holdBackMs?: number;
  readonly remember?: number;
  readonly origins?: boolean;
}

/** A mapping as another process knows it. Addresses and lengths are in bytes. */
export interface HandedMapping {
  readonly va: number;
  readonly length: number;
  readonly access: DmaAccess;
  /** What the address space maps, in VA order: each by a call of its own. */
  readonly pieces: readonly { readonly va: number; readonly iova: number; readonly length: number }[];
}

/** Settings of a domain. */
export interface DomainOptions extends BookSettings {
  /** The name in messages. */
  readonly name: string;
  readonly space: AddressSpace;
  /** Called after the last device left and the address space was released: the domain has ended. */
  readonly closed?: () => void;
  readonly areas: AreaIndex;
  readonly limits: Pick<LimitsPort, 'lockedMemory'>;
  /**
   * Faults in pages before they are pinned, several pieces at once on other threads: this is most of the time of
   * mapping. Absent: pinning faults them in.
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

/** Unit of the translation table in bytes; every granule is a multiple of it. */
const TRANSLATION_PAGE = 4 * KiB;

/** Why calls for a lost device are cancelled. */
class Lost extends Error {
  constructor(override readonly cause: DmaError) {
    super('the device was lost');
  }
}

/** @internal The table of a domain, on loan to another process. */
export interface TableLoan extends Disposable {
  /** Changes and pieces. */
  readonly words: readonly WordMemory[];
}

/** One DMA address space, with its devices and everything mapped in it. */
export class Domain {
  /** @internal */
  readonly stays = STAYS;
  readonly name: string;
  /** From VA to IOVA and key, for hot paths. */
  readonly table = new TranslationTable();
  readonly #space: AddressSpace;
  readonly #reach = new Reach();
  readonly #onClosed: (() => void) | undefined;
  /** Devices that are lost but have not left yet. */
  readonly #lost = new Set<string>();
  readonly #areas: AreaIndex;
  readonly #locked: LockedBudget;
  readonly #pages: DomainOptions['pages'];
  readonly #ledger = new Ledger();
  readonly #retired: RetiredMappings;
  readonly #allocator: IovaAllocator;
  readonly #origins: OriginNotes;
  readonly #now: () => number;
  /** Who has the mappings of `mapOwn`. Not a name that a device can have. */
  readonly #self: string;
  /** Devices in this domain, and the mappings of each. */
  readonly #devices = new Map<string, MappingList>();
  /** What works on memory through it. */
  readonly #users = new MemoryUsers();
  /** What `mapOwn` made. */
  readonly #own = new MappingList();
  /** Async calls that are running, and how to cancel them. */
  readonly #running = new Map<Promise<unknown>, { device: string; giveUp?: AbortController }>();
  /** Entries that the address space could not unmap, and the device whose hold on the memory stays because of that. */
  readonly #stuck: { readonly entry: Entry; readonly device: string }[] = [];
  /** The constraints as last read, and their windows, with adjacent ones joined. */
  #constraints: Constraints;
  /** What plans are made from, as long as the constraints are the same. */
  #books: Books | undefined;
  #windows: readonly Range<Iova>[];
  #failure: DmaError | undefined;
  #sharedTable: Domain['sharedTable'] | undefined;
  /** The table for other processes, as long as one has it. */
  #processTable: { readonly buffers: LogBuffers; readonly log: TableLog; users: number } | undefined;
  #isHandedOver = false;
  /** Why nothing can be mapped or unmapped for now. */
  #paused: DmaError | undefined;
  /** Did the other side keep memory when the domain failed? */
  #lingers = false;
  #closed = false;

  /** @internal @throws DmaError EINVAL if the granule is not a power of two, or less than 4 KiB */
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

  /** The current rules for mappings. */
  get constraints(): Constraints {
    return this.#reach.clip(this.#space.constraints);
  }

  /** Names of the devices in it. */
  get devices(): Iterable<string> {
    return this.#devices.keys();
  }

  /** Number of outstanding mappings of the address space; limited by `constraints.entryLimit`. */
  get entries(): number {
    return this.#ledger.size;
  }

  /** Bytes that are mapped. */
  get bytes(): number {
    return this.#ledger.bytes;
  }

  /** Every live mapping, device by device, then those of `container.map`. */
  *mappings(): Generator<Mapping> {
    for (const mappings of this.#devices.values()) yield* mappings.toArray();
    yield* this.#own.toArray();
  }

  /**
   * Adds a driver that works on memory through this domain: while it does, that memory can not be unmapped or freed
   * (EBUSY). Its commands then need no pin each.
   *
   * @returns disposing it ends that; idempotent
   */
  addUser(user: MemoryUser): Disposable {
    const ends = [this.#users.add(user), this.#areas.users.add(user)];
    return {
      [Symbol.dispose]: () => {
        for (const end of ends) end();
      },
    };
  }

  /** @internal What a device has mapped, in the order it came. */
  mappingsFor(device: string): Mapping[] {
    return this.#devices.get(device)?.toArray() ?? [];
  }

  /** @internal Adds a device that can emit IOVAs of `bits` bits. */
  attach(device: string, bits = Infinity): void {
    this.#reach.add(device, bits);
    if (!this.#devices.has(device)) this.#devices.set(device, new MappingList());
  }

  /**
   * @internal Removes a device: cancels its running async maps and unmaps everything it has mapped. After the last
   *   device, the address space is released and the domain ends.
   *
   * @param lost why it is gone, if it was lost
   * @throws DmaError the first error of undoing, after everything was tried; the device is removed nevertheless
   */
  async detach(device: string, lost?: DmaError): Promise<void> {
    const errors: unknown[] = [];
    const turns = new Turns();
    for (;;) {
      // There is no await between the last check for running calls and mappings and the end, so a call that arrives
      // meanwhile is seen here.
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

  /**
   * @internal Waits for the calls that run, and refuses new ones until {@link resume}: the books stay as they are.
   *
   * @param why of the calls that are refused
   */
  async pause(why: DmaError): Promise<void> {
    this.#paused = why;
    while (this.#running.size > 0) await Promise.allSettled(this.#running.keys());
  }

  /** @internal Ends {@link pause}. */
  resume(): void {
    this.#paused = undefined;
  }

  /**
   * @internal What a device has mapped, for another process; without a device, what the domain itself has.
   *
   * @throws DmaError EBUSY for what could not be unmapped, which the other process could not know
   */
  handedMappings(device?: string): HandedMapping[] {
    const [stuck] = this.#stuck;
    if (stuck !== undefined) {
      const reason = 'it could not be unmapped, and the device may still reach it';
      throw new DmaError({ code: 'EBUSY', operation: 'handOver', device, range: stuck.entry.vaRange, reason });
    }
    const list = device === undefined ? this.#own : this.#devices.get(device);
    return (list?.toArray() ?? []).map(({ va, length, access, entries }) => ({
      ...{ va, length, access },
      pieces: entries.map((entry) => ({ va: entry.va, iova: entry.iova, length: entry.length })),
    }));
  }

  /**
   * @internal Enters a mapping that another process made in the address space, and that this process has now.
   *
   * @param device `undefined`: the domain itself
   * @throws DmaError as {@link mapFor}; nothing is entered then
   */
  takeOver(device: string | undefined, { va, length, access, pieces }: HandedMapping): Mapping {
    const operation = 'takeOver';
    const [first] = pieces;
    if (first === undefined) throw invalid(operation, 'a mapping has no pieces', { device });
    const who = device ?? this.#self;
    const options = this.constraints.iova === 'ignored' ? { access } : { access, iova: first.iova };
    const plan = this.#plan(who, { va, length }, options, operation, this.takeOver);
    if (plan.shared !== undefined) return this.#publish(plan, [...plan.shared.entries]);
    const entries = this.#reserve(plan, piecesOf(pieces));
    try {
      for (const entry of entries) this.#space.takeOver?.(entry);
      return this.#publish(plan, entries);
    } catch (error) {
      for (const entry of entries) this.#unreserve(entry);
      throw error;
    }
  }

  /** @internal Another process has it, with all mappings: clears the books. Every later call throws `error`. */
  abandon(error: DmaError): void {
    this.#isHandedOver = true;
    this.fail(error);
  }

  /** @internal Notes that a device is lost; it leaves later. If all are lost, {@link fail} follows. */
  lose(device: string, error: DmaError): void {
    if (!this.#devices.has(device)) return;
    this.#lost.add(device);
    if (this.#lost.size === this.#devices.size) this.fail(error);
  }

  /**
   * @internal The other side is gone (the process that served the device died, or the device was unplugged), with all
   *   mappings: clears the books and releases the memory. Every later call throws `error`.
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
    // Mappings that are being made may be in the table already.
    for (const entry of this.#ledger) if (entry.state === 'mapping') this.table.remove(entry.va, entry.length);
    this.#ledger.clear();
  }

  /** Memory that the other side has by descriptor is not handed out again until the other side can not reach it. */
  #noteLingering(): void {
    if (this.#isHandedOver) return;
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
   * @throws DmaError before any side effect: EINVAL (impossible, misaligned or unregistered range; an IOVA that the
   *   domain would ignore or that contradicts the area's table; remote writes to what the device may only read),
   *   ENOTSUP (remote rights or paging that the domain does not have), EACCES (writing to read-only memory), ERANGE
   *   (IOVA outside the windows), EEXIST (conflict with another mapping, by VA or IOVA), EBUSY (that mapping is just
   *   being made or undone), ENOSPC (entry limit, or no free IOVA), ENOMEM (locked-memory limit), ENODEV (the domain
   *   failed); after undoing: the error of the address space
   */
  mapFor(device: string, target: MemoryPart, options?: MapOptions, operation = 'dmaMap'): Mapping {
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
   * @internal As {@link Domain.mapFor}, without blocking the event loop: in pieces, with progress. On abort everything
   *   is undone.
   *
   * @throws DmaError as `mapFor`; EINVAL for an impossible `chunkBytes`; ECANCELED when `options.signal` is aborted or
   *   the device leaves meanwhile
   */
  async mapForAsync(
    device: string,
    target: MemoryPart,
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
   * @internal Unmaps by address what `device` mapped: exactly one whole mapping or, if the domain supports it, a part
   *   of one.
   *
   * @param target.iova if given, must be the IOVA of the mapping
   * @throws DmaError EINVAL: impossible or misaligned range, nothing of this device is mapped exactly there, or another
   *   IOVA; ENOTSUP: a part, which this domain can not unmap; EBUSY: a part of a mapping that another device shares;
   *   ENOSPC: cutting would exceed the entry limit; EIO: the other side unmapped a different number of bytes
   */
  unmapFor(device: string, target: MemoryPart & { readonly iova?: IovaLike }, operation = 'dmaUnmap'): void {
    const wanted = naming(device, () => targetOf(target, operation));
    const range = naming(device, () => new Range(wanted.va as Va, wanted.length, operation));
    const mapping = claimOf(this.#ledger, device, range, operation);
    const part = mapping.range.equals(range) ? undefined : range;
    if (wanted.iova !== undefined && mapping.iovaOf(range.start) !== wanted.iova) {
      const reason = `it is mapped at IOVA ${hex(mapping.iovaOf(range.start))}, not ${hex(wanted.iova)}`;
      throw invalid(operation, reason, { range, device, hint: 'leave the IOVA out, or give what mapping.iova says' });
    }
    if (part === undefined) {
      mapping.unshare(operation);
      this.#release(mapping, operation);
    } else this.#cut(mapping, part, operation);
  }

  /** @internal Maps for the domain itself and not for one of its devices, until its last device leaves: see `Container.map`. */
  mapOwn(target: MemoryPart, options: MapOptions | undefined, operation: string): Mapping {
    return this.mapFor(this.#self, target, options, operation);
  }

  /** @internal Undoes `mapOwn`. */
  unmapOwn(target: Mapping | (MemoryPart & { readonly iova?: IovaLike }), operation: string): void {
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
    this.#mustNotBePaused('unmap', mapping.device);
    const run = this.#releasePieces(mapping);
    this.#running.set(run, { device: mapping.device });
    try {
      await run;
    } finally {
      this.#running.delete(run);
    }
  }

  /** @internal for `Mapping` */
  share(mapping: Mapping): Share<AttachedMapping> {
    const { shares } = this.#areas;
    if (shares === undefined) throw notShareable('share');
    const facts = factsOf(mapping);
    return shares.add({ kind: 'mapping', what: nameOf(facts), facts: { ...facts } });
  }

  /** @internal The translation table, for other threads. From now on they are told of every change. */
  get sharedTable(): readonly [changes: SharedArrayBuffer, pieces: SharedArrayBuffer] {
    if (this.#sharedTable === undefined) {
      const buffers = logBuffers();
      this.table.logs.add(new TableLog(buffers, this.table.runs()));
      this.#sharedTable = [buffers.changes, buffers.pieces];
    }
    return this.#sharedTable;
  }

  /**
   * @internal The translation table, for another process. It follows every change until each process has given it back.
   *
   * @param words of the `Eal`: memory that other processes can map
   * @throws DmaError ENOMEM
   */
  lendTable(words: WordSource): TableLoan {
    if (this.#processTable === undefined) {
      const buffers = processBuffers(words);
      const log = new TableLog(buffers, this.table.runs());
      this.table.logs.add(log);
      this.#processTable = { buffers, log, users: 0 };
    }
    const lent = this.#processTable;
    const { changes, pieces } = lent.buffers;
    lent.users++;
    let isLent = true;
    return {
      words: [changes, pieces],
      [Symbol.dispose]: () => {
        if (!isLent) return;
        isLent = false;
        if (--lent.users > 0) return;
        this.table.logs.delete(lent.log);
        this.#processTable = undefined;
        throwFirst(undoAll([() => words.free(changes), () => words.free(pieces)]), 'share');
      },
    };
  }

  /** The IOVA of `va`; -1 if it is not mapped. For hot paths: no checks, no allocation. */
  iovaOf(va: number): number {
    return this.table.iovaOf(va);
  }

  /** The IOVAs at which each contiguous run of [va, va + length) begins; one look-up per mapping entry. */
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

  /** The VA of a device address; `undefined` if it is not mapped. O(log n). */
  vaOf(iova: number): Va | undefined {
    if (!isAddress(iova)) return undefined;
    const entry = this.#ledger.atIova(iova);
    return entry === undefined ? undefined : ((entry.va + (iova - entry.iova)) as Va);
  }

  /**
   * @internal The target of a device's access.
   *
   * @returns the address in this process, or an error code: `EFAULT` if not all of it is in one mapping, `EACCES` if
   *   the mapping does not allow this access
   */
  resolve(iova: number, length: number, access: DmaAccess): { va: Va; area: Area } | 'EFAULT' | 'EACCES' {
    const entry = this.#ledger.atIova(iova);
    if (entry === undefined || iova + length > entry.iova + entry.length || entry.state === 'unmapping')
      return 'EFAULT';
    if (!grants(entry.access, access)) return 'EACCES';
    return { va: (entry.va + (iova - entry.iova)) as Va, area: entry.area };
  }

  /** @internal May devices use all of [iova, iova + length) in this way? One look-up for each mapping entry. */
  mayUse(iova: number, length: number, access: DmaAccess): boolean {
    for (let at = iova; at < iova + length;) {
      const entry = this.#ledger.atIova(at);
      if (entry === undefined || !grants(entry.access, access)) return false;
      at = entry.iova + entry.length;
    }
    return true;
  }

  /**
   * Tells what a device address is: mapped, recently unmapped (and by whom), just past the end of a mapping, or never
   * mapped. For use after a DMA fault.
   *
   * @param access what the device tried, if known
   * @param by who caused the access: this device, or a peer over the network, which needs rights of its own
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

  /** @param called the function that the program called, for the origin @param when see {@link planMapping} */
  #plan(
    device: string,
    target: MemoryPart,
    options: MapOptions,
    operation: string,
    called: (this: Domain, ...args: never[]) => unknown,
    when: 'now' | 'later' = 'now',
  ): Plan {
    if (this.#failure !== undefined) throw lostDevice(operation, device, this.#failure);
    this.#mustNotBePaused(operation, device);
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

  /** Reserves IOVAs and ledger entries for all pieces; on any error, for none. */
  #reserve(plan: Plan, pieces: readonly PlannedPiece[]): Entry[] {
    // Nearly always one. An array that grows takes room for 17.
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

  /**
   * As {@link #reserve}, for a plan without pieces: they are found, checked and reserved in several turns of the event
   * loop.
   */
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
    const iova = this.#reserveIova(plan, piece);
    if (iova === undefined) throw this.#noIova(plan, piece);
    const entry = new Entry(plan.area, piece.va, iova, piece.length, plan.access, plan.region);
    this.#ledger.add(entry);
    return entry;
  }

  /** The IOVA of a piece: the given one, else the VA if that is free, else the lowest that is free. */
  #reserveIova({ area, iovaAlign }: Plan, { va, length, iova }: PlannedPiece): Iova | undefined {
    const { granule, iova: chosenBy } = this.#constraints;
    const wish = iova ?? (Number(va) as Iova);
    // A requested IOVA is always given. Otherwise IOVAs that another area has just left are held back.
    const tenant = iova === undefined ? area : undefined;
    // If IOVAs are ignored there are no windows to allocate from: they are VAs, and the ledger keeps those apart.
    const fits = wish % iovaAlign === 0;
    if (chosenBy === 'ignored' || (fits && this.#allocator.take(wish, length, tenant))) return wish;
    if (iova !== undefined) return undefined;
    // Pages at multiples of their size need fewer entries in the tables of an IOMMU.
    const least = Math.max(granule, iovaAlign);
    return this.#allocator.allocate(
      length,
      least,
      isMultiple(va, area.pageSize) ? Math.max(least, area.pageSize) : least,
    );
  }

  #unreserve(entry: Entry, now = this.#now()): void {
    this.#ledger.remove(entry);
    if (this.#constraints.iova !== 'ignored') this.#allocator.release(entry.iova, entry.length, entry.area, now);
  }

  #noIova(plan: Plan, piece: PlannedPiece): DmaError {
    const { operation, range, device } = plan;
    if (piece.iova !== undefined) {
      // Windows and ledger were checked, so only another piece of this mapping can have it.
      const reason = `the IOVA table gives ${hex(piece.iova)} to two parts of it`;
      return invalid(operation, reason, { range, device, hint: 'each page has an IOVA of its own' });
    }
    const { freeBytes, heldBackBytes, largestFree } = this.#allocator;
    return new DmaError({
      code: 'ENOSPC',
      operation,
      range,
      device,
      reason: `no ${formatSize(piece.length)} of IOVAs are free in one piece${plan.iovaAlign > 1 ? ` at a multiple of ${hex(plan.iovaAlign)}` : ''}`,
      hint: `${formatSize(freeBytes)} are free, at most ${formatSize(largestFree)} in one piece, and ${formatSize(heldBackBytes)} held back; the windows are ${this.#windows.map(String).join(', ')}: unmap what the device does not need, or map less of it at a time`,
    });
  }

  /** Undoes a map that failed half-way, in reverse; the first `mapped` entries are mapped. */
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

  /** As {@link #unwind}: the entries of `mapped` are mapped, those of `reserved` are not. */
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

  /** Removes an entry from the books after an undo, unless the undo failed. A failed domain has no books any more. */
  #undone(entry: Entry, device: string, wasMapped: boolean, failed: readonly unknown[]): void {
    if (this.#failure !== undefined) return;
    if (this.table.iovaOf(entry.va) >= 0) this.table.remove(entry.va, entry.length);
    if (failed.length > 0) return this.#stick(entry, device);
    if (wasMapped) this.#retired.add(entry, device, this.#now());
    this.#unreserve(entry);
  }

  /** An error of the address space, as an error of the program's call. */
  #named(error: DmaError, { operation, range, device }: Pick<Plan, 'operation' | 'range' | 'device'>): DmaError {
    const { undo, cause } = error;
    const wasAborted = error.code === 'ECANCELED' && !isA(cause, Lost);
    if (this.#failure !== undefined && !wasAborted)
      return lostDevice(operation, device, this.#failure, range).with({ undo });
    // It says already that the device was lost.
    if (error.code === 'ENODEV' && error.operation === operation && error.device === device) return error;
    const isOwn = [operation, ON_PROGRESS].includes(error.operation);
    const reason = isOwn ? error.reason : `${error.operation}: ${error.reason}`;
    return error.with({ operation, reason, range: error.range ?? range, device, cause: error });
  }

  #publish(plan: Plan, entries: Entry[]): Mapping {
    const { device, range, origin } = plan;
    // This may fail for lack of memory, before anything else has changed.
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

  /** As {@link #publish}, for entries that are in the translation table, in several turns of the event loop. */
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

  /** Adds a live mapping to the books of its device. */
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
    /** Entries that are reserved and not started; the last one first. */
    let waiting: Entry[] = [];
    /** Entries whose pages are being faulted in, in order. */
    const ahead: { readonly entry: Entry; readonly began: number; readonly ready: Promise<void> }[] = [];
    area.hold(device);
    try {
      const isPlanned = plan.pieces.length > 0;
      waiting = isPlanned ? this.#reserve(plan, plan.pieces) : await this.#reserveTable(plan, turns, signal);
      waiting.reverse();
      this.table.prepare(range.start, range.length);
      // A mapping with a key is one long piece. Its pages come first, so that it can be cancelled.
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

  /** Removes the first piece from the reserved entries in `waiting` (in reverse order); the rest stays there. */
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

  #mustNotBePaused(operation: string, device: string): void {
    if (this.#paused !== undefined) throw this.#paused.with({ operation, device });
  }

  #release(mapping: Mapping, operation: string): void {
    this.#mustNotBePaused(operation, mapping.device);
    mustNotBeBusy(mapping, operation);
    for (const entry of mapping.entries) this.#mustBeIdle(mapping, entry, operation);
    for (let entry = mapping.entries.at(-1); entry !== undefined; entry = mapping.entries.at(-1)) {
      if (entry.uses === 1) this.#unmapInSpace(entry, mapping.device, operation);
      // The address space may have noticed that the other side is gone, which ends the mapping as well.
      if (mapping.live) this.#drop(mapping, entry);
    }
  }

  async #releasePieces(mapping: Mapping): Promise<void> {
    const turns = new Turns();
    const { entries } = mapping;
    try {
      // From here on nobody can look up its addresses and keys.
      for (let i = 0; i < entries.length; i++) {
        if (isLook(i + 1) && turns.due) await turns.next();
        this.#mustBeIdle(mapping, entries[i], 'unmap');
        if (entries[i].uses > 1) continue;
        const began = this.#beginUnmapping(entries[i], turns);
        if (began !== undefined) await began;
      }
      for (let entry = entries.at(-1); entry !== undefined; entry = entries.at(-1)) {
        if (turns.due) await turns.next();
        // The other users may have unmapped it meanwhile.
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

  /** No command may work on what this device, or with its last claim the domain, can not reach any more. */
  #mustBeIdle(mapping: Mapping, { va, length, uses }: Entry, operation: string): void {
    this.#users.mustBeIdle(operation, va, length, (device) => uses === 1 || device === mapping.device);
  }

  /** Removes entries from the table: short ones at once; for long ones, returns a promise for the rest. */
  #beginUnmapping(entry: Entry, turns: Turns): Promise<void> | undefined {
    entry.state = 'unmapping';
    this.table.remove(entry.va, Math.min(entry.length, TABLE_PIECE));
    return entry.length > TABLE_PIECE ? removeInTurns(this.table, entry, turns) : undefined;
  }

  /** Removes the last entry of a mapping from its books, and from the domain's if nobody else uses it. */
  #drop(mapping: Mapping, entry: Entry): void {
    mapping.entries.pop();
    if (mapping.live) mapping.whole = false;
    if (entry.uses > 1) entry.unclaim(mapping);
    else this.#retire(entry, mapping.device);
    this.#endIfEmpty(mapping, entry.area);
  }

  #endIfEmpty(mapping: Mapping, area: Area): void {
    if (mapping.live) return;
    mapping.loseShare();
    this.#mappingsOf(mapping.device)?.delete(mapping);
    area.release(mapping.device);
  }

  /** Removes an unmapped entry from the books. Its last claim stays on it, for `explain`. */
  #retire(entry: Entry, device: string): void {
    // Read once, because reading the clock takes time.
    const now = this.#now();
    this.table.remove(entry.va, entry.length);
    this.#unreserve(entry, now);
    this.#retired.add(entry, device, now);
  }

  /**
   * Ends a mapping on the books only. `stick`: entries that only it used stay reserved, because the device may still
   * reach them.
   */
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

  /**
   * Keeps an entry that the address space could not unmap: its addresses are never reused, and its memory is never
   * freed.
   */
  #stick(entry: Entry, device: string): void {
    entry.state = 'stuck';
    entry.area.hold(device);
    this.#stuck.push({ entry, device });
  }

  /** Unmaps a part of a mapping. Each entry that is cut leaves up to two entries. */
  #cut(mapping: Mapping, part: Range<Va>, operation: string): void {
    const { device } = mapping;
    this.#mustNotBePaused(operation, device);
    const { name, constraints } = this;
    const cuts = planCut({ name, constraints, entries: this.#ledger.size }, mapping, part, operation);
    mapping.unshare(operation);
    for (const { cut } of cuts) this.#users.mustBeIdle(operation, cut.va, cut.length);
    for (const { entry, cut } of cuts) {
      this.#unmapInSpace(cut, device, operation);
      // The address space may have noticed that the other side is gone, which ends the mapping as well.
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

  /** If the domain failed meanwhile, the unmap has happened anyway. */
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

  /** For a call that was running when the domain failed. */
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

/** The pieces of a mapping that another process made, in the terms of a plan. */
function piecesOf(pieces: HandedMapping['pieces']): PlannedPiece[] {
  return pieces.map(({ va, iova, length }) => ({ va: va as Va, iova: iova as Iova, length }));
}

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
