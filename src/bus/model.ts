/** What a bus, a device and a driver are to each other. */
import type { AddressSpace, DmaAccess } from '../dma/address-space.js';
import type { Domain, MapAsyncOptions } from '../dma/domain.js';
import type { Explanation } from '../dma/explain.js';
import type { Mapping } from '../dma/mapping.js';
import type { MapOptions } from '../dma/plan.js';
import type { DmaError } from '../errors.js';
import type { External } from '../memory/external.js';
import type { IovaMode } from '../memory/iova-mode.js';
import type { Iova, IovaLike, VaLike } from '../units.js';
import type { Description } from './description.js';
import type { DeviceAccess } from './device-access.js';
import type { MapOnMiss } from './map-on-miss.js';
import type { Pool } from '../memory/pool/pool.js';
import type { PoolMapping } from './map-pool.js';
import type { MemoryPart } from '../memory/part.js';

/** An access of a device that its IOMMU, or the device itself, reported as failed. */
export interface DeviceFault {
  /** The address that the device used. */
  readonly iova: Iova;
  /** What it tried; `undefined` when that was not told. */
  readonly access: DmaAccess | undefined;
  /** Who told: `kernel log`, `iommufd` ... */
  readonly source: string;
}

/** A device that its bus has opened. */
export interface OpenedDevice {
  /** Its PCI ids, when it has any. */
  readonly ids: Required<IdMatch> | undefined;
  /** What drivers work it through; `undefined` for devices without registers. */
  readonly access: DeviceAccess | undefined;
  /** What its driver works it through besides, or instead of, registers; the driver knows the type. */
  readonly handle?: unknown;
  /** What it says of itself besides ids, registers and its domain: see {@link Device.describe}. Absent: nothing. */
  describe?(): Promise<Description> | Description;
  /** The failed accesses that were reported since it was opened, oldest first. Absent where nobody reports them. */
  faults?(): readonly DeviceFault[];
  /** Calls back when the device reports an error of its own that it may survive. Absent where devices do not. */
  onError?(failed: (error: DmaError) => void): void;
  /** Calls back, once, when the device is gone without having been asked to go. */
  onLost(lost: (error: DmaError) => void): void;
  /** Closes it. Idempotent. */
  close(): Promise<void> | void;
}

/** How to open a device. */
export interface OpenOptions {
  /** What the program asked the device to be put into; only a bus that {@link Bus.takesContainers} is given one. It checks which. */
  readonly container?: { readonly name: string };
}

/** A bus. */
export interface Bus {
  readonly name: string;
  /** Keys of names that its `open` knows. When it and all its drivers say theirs, `probe` refuses others. */
  readonly keys?: readonly string[];
  /** The full name of the device that `name` names, or `undefined` when no device of this bus can be called so. */
  parse(name: string): string | undefined;
  /** Can its devices be put into a container that the program chooses? Default: no. */
  readonly takesContainers?: boolean;
  /** What names of its devices look like, for the hint about a wrong name: a clause. */
  readonly naming?: string;
  /**
   * Does `parse` take names that say nothing of the bus? Then a name without a bus can be meant otherwise, and other buses are
   * asked first. Default: no.
   */
  readonly takesAnyName?: boolean;
  /** Names of the devices that are there without being asked for. Absent: devices are only opened by name. */
  scan?(): Promise<readonly string[]>;
  /** What it says of itself and of the devices that it sees, for `anydma devices`. Absent: nothing but their names. */
  describe?(): Promise<Description> | Description;
  /**
   * Opens the device `name` (as `parse` gave it).
   *
   * @param args keys given with the name; unknown ones are the driver's
   * @throws DmaError ENODEV or what else keeps it from being opened; nothing is left open then
   */
  open(name: string, args: ReadonlyMap<string, string>, options?: OpenOptions): Promise<OpenedDevice>;
  /** Does the driver match, beyond its bus name and ids? Default: yes. */
  match?(opened: OpenedDevice, driver: Driver): boolean;
  /**
   * What its devices need as addresses of the library's own memory: `pa` without an IOMMU, `va` where only that works. One
   * vote in the decision on the IOVA mode. Absent, or `undefined`: either will do.
   */
  iovaWish?(): IovaMode | undefined;
  /**
   * The address space that a device of its is in. Devices for which this is the same object share what is mapped. Absent: its
   * devices can not be mapped for, unless their driver brings an address space.
   */
  spaceOf?(device: Device): AddressSpace;
}

/** A device that was opened, and the vendor-agnostic way to map memory for it. Made by `Eal.probe`. */
export interface Device {
  /** `bus:name` */
  readonly name: string;
  readonly bus: Bus;
  /** Its name in the bus. */
  readonly busName: string;
  /** Keys that were given with its name. */
  readonly args: ReadonlyMap<string, string>;
  /**
   * `opening`: its driver is being looked for; `probed`: it has one, and works; `gone`: it was removed or lost. Mapping works
   * while a driver probes, too.
   */
  readonly state: 'opening' | 'probed' | 'gone';
  /** Why it went without being asked to; `undefined` when it did not. */
  readonly lost: DmaError | undefined;
  /** Its PCI ids; `undefined` when it has none. */
  readonly ids: Required<IdMatch> | undefined;
  /** Its registers and interrupts. Reading this throws a DmaError ENOTSUP for a device without. */
  readonly access: DeviceAccess;
  /** What its bus gives its driver to work it through besides, or instead of, registers; `undefined` where there is nothing. */
  readonly handle: unknown;
  /** Its driver; `undefined` before one took it, and after it is gone. */
  readonly driver: Driver | undefined;
  /** The domain it is in; `undefined` when it can not be mapped. */
  readonly domain: Domain | undefined;
  /**
   * What it says of itself besides ids, registers and its domain, for people and for programs, as its bus tells it; `undefined`
   * when that is nothing, and once it is gone.
   */
  describe(): Promise<Description | undefined>;
  /** What `driver` made of it. @throws DmaError EINVAL when it has another driver, or none */
  use<T>(driver: Driver<T>): T;
  /**
   * Makes memory reachable by the device: the same call for every kind.
   *
   * @param target registered memory, or a part of it as `{ va, length }`
   * @throws DmaError, before any side effect: EINVAL (no driver has the device; impossible, misaligned or unregistered range; an
   *   IOVA that would be ignored or that contradicts the area's table; remote writes to memory that the device may only read),
   *   ENOTSUP (neither its driver nor its bus can map; remote rights or paging that the device does not have), EACCES (writing to
   *   read-only memory), ERANGE (IOVA outside the windows), EEXIST (another mapping in the way, by VA or IOVA), EBUSY (that
   *   mapping is being made or undone), ENOSPC (entry limit, or no free IOVA), ENOMEM (locked-memory limit), ENODEV (the device
   *   was lost); after undoing: errors of the address space
   */
  dmaMap(target: MemoryPart, options?: MapOptions): Mapping;
  /** As {@link Device.dmaMap}, without blocking, with progress and abort. @throws DmaError also ECANCELED once `signal` is aborted */
  dmaMapAsync(target: MemoryPart, options?: MapAsyncOptions): Promise<Mapping>;
  /**
   * Undoes {@link Device.dmaMap}: by the handle, or by exactly what was mapped; a part, where the domain can cut.
   *
   * @throws DmaError EINVAL: impossible or misaligned range, nothing of this device mapped exactly there, another IOVA, or the
   *   mapping of another device; ENOTSUP: a part, and the domain can not cut; EBUSY: a part of what another device maps too;
   *   ENOSPC: cutting would pass the entry limit; else as `Mapping.unmap`
   */
  dmaUnmap(target: Mapping | (MemoryPart & { readonly iova?: IovaLike })): void;
  /**
   * Unmaps all that was mapped for this device by `dmaMap` and its relatives, last first. What is mapped for every device
   * (`eal.dmaMapAll`, memory of the library and of heaps) stays, and so does what other devices have of the same domain.
   *
   * @throws DmaError as `Mapping.unmap`: the first error, with the others in `undo`, once all was tried; another call tries what is
   *   left
   */
  dmaUnmapAll(): void;
  /** As {@link Device.dmaUnmapAll}, without blocking the event loop where the address space can. */
  dmaUnmapAllAsync(): Promise<void>;
  /**
   * Maps the external memory of a pool, each area once, all or nothing. (A pool of the library's memory, or of a heap, is mapped for
   * every device already.) Unmap it before the pool's memory is unregistered.
   *
   * @throws DmaError EINVAL when the pool is freed or not for devices; else as `dmaMap`
   */
  dmaMapPool(pool: Pool, options?: Pick<MapOptions, 'access'>): PoolMapping;
  /** As {@link Device.dmaMapPool}, without blocking, with progress over all of it, and abort. */
  dmaMapPoolAsync(pool: Pool, options?: Omit<MapAsyncOptions, 'iova'>): Promise<PoolMapping>;
  /**
   * Maps registered external memory when the data path meets it: let the option `miss` of a queue pair call its `map`. Off
   * unless it is asked for, unlike in DPDK. Close it after the last queue.
   *
   * @param options.unit how much is mapped around an address that has no key: `area` (the default), all of its area, as DPDK does,
   *   or, where a part of that is mapped already, only the pages of the I/O; `pages`, always only these. Pages that overlap with
   *   what is mapped already can not be mapped again, so that `pages` fits programs whose buffers do not overlap
   * @throws DmaError EINVAL, ENOTSUP for a device that can not be mapped
   */
  mapOnMiss(options?: { readonly unit?: 'area' | 'pages' }): MapOnMiss;
  /**
   * What this device uses for the first byte of some memory, the rest of which follows there; or for one byte at a VA. Exact
   * as long as the memory stays mapped for it, which blocks, zones and pools are from the moment they are made: so ask once,
   * and keep it. It takes some nanoseconds and allocates nothing. (For a device of verbs, it is the VA.)
   *
   * @throws DmaError EINVAL when some of it is not mapped for the device, when it is in pieces for the device (ask for a block
   *   that is `contiguous`, or page by page), when it was freed, and for what is no address; EINVAL, ENOTSUP for a device
   *   that has no domain
   */
  iovaOf(memory: MemoryPart | VaLike): Iova;
  /** What is known about an address that this device used: see `Domain.explain`. */
  explain(iova: IovaLike, length?: number, access?: DmaAccess): Explanation;
  /**
   * What is known about the accesses of this device that failed, oldest first: those that its IOMMU reported since it was
   * opened, each explained. Empty when there were none, or nobody here can tell (reading the kernel's log is a privilege).
   */
  explainFaults(): ExplainedFault[];
  /**
   * The same, once there are more than `after` of them, or the time is over: what an IOMMU blocked reaches the kernel's log
   * some time after the device has gone on. Does not wait where nobody reports faults.
   *
   * @throws DmaError EINVAL for a time that is none; ECANCELED once `signal` is aborted, its reason as the cause
   */
  explainFaultsAsync(options?: {
    /** So many had been reported before what is waited for. Default 0. */
    readonly after?: number;
    /** milliseconds. Default 1000 */
    readonly timeoutMs?: number;
    readonly signal?: AbortSignal;
  }): Promise<ExplainedFault[]>;
}

/** A failed access, and what is known about its address. */
export interface ExplainedFault extends DeviceFault {
  readonly explanation: Explanation;
}

/** PCI ids that a driver takes; what is left out matches any. */
export interface IdMatch {
  readonly vendor?: number;
  readonly device?: number;
  readonly subsystemVendor?: number;
  readonly subsystem?: number;
  /** 24 bits: base class, sub-class, programming interface */
  readonly classCode?: number;
}

/** What a driver's `probe` returns when the device is not for it after all, so that the next matching driver is tried. */
export const TRY_NEXT: unique symbol = Symbol('try the next driver');

/** What drivers may use while they probe. */
export interface ProbeContext {
  /** For memory of the driver's own: rings and such. */
  readonly external: External;
}

/**
 * A driver.
 *
 * @typeParam T what it makes of a device: the object that the program then works with
 */
export interface Driver<T = unknown> {
  readonly name: string;
  /** Keys of names that it knows: see {@link Bus.keys}. */
  readonly keys?: readonly string[];
  /** Names of the buses it works on. Absent: all; it is tried after the drivers that name the device's bus. */
  readonly buses?: readonly string[];
  /** Ids it takes; absent: every device of those buses. */
  readonly ids?: readonly IdMatch[];
  /** Does it take this device, of those buses and ids? Absent: yes. */
  takes?(opened: OpenedDevice): boolean;
  /** What its devices are: `dma`, `net`, `storage`, `test` ... */
  readonly deviceClass?: string;
  /**
   * Address bits that the device can emit: IOVAs are kept below 2^bits. Absent, or `undefined`: all.
   *
   * @param args keys that were given with the device's name
   */
  dmaAddressBits?(args: ReadonlyMap<string, string>): number | undefined;
  /** The address space that a device is in, instead of the one that its bus tells: see {@link Bus.spaceOf}. */
  spaceOf?(device: Device): AddressSpace;
  /**
   * Takes the device. It can be mapped already. What it throws ends the probing, and the device is closed.
   *
   * @returns what the program works with, or {@link TRY_NEXT}
   */
  probe(device: Device, context: ProbeContext): Promise<T | typeof TRY_NEXT> | T | typeof TRY_NEXT;
  /** Lets go of the device, which may be gone already. All that `probe` took is given back. */
  remove?(device: Device, instance: T): Promise<void> | void;
}
