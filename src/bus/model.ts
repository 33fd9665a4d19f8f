/** The interfaces of a bus, a device and a driver. */
import type { AttachedDevice } from './attached-device.js';
import type { Shared } from '../memory/shared/shared.js';
import type { AddressSpace, DmaAccess } from '../dma/address-space.js';
import type { Domain, MapAsyncOptions } from '../dma/domain.js';
import type { Explanation } from '../dma/explain.js';
import type { Mapping } from '../dma/mapping.js';
import type { MapOptions } from '../dma/plan.js';
import type { DmaError } from '../errors.js';
import type { Shares } from '../memory/shared/shares.js';
import type { Platform } from '../platform/ports.js';
import type { Rings } from '../memory/pool/rings.js';
import type { Fields } from '../fields.js';
import type { Paused } from '../handed.js';
import type { External } from '../memory/external.js';
import type { IovaMode } from '../memory/iova-mode.js';
import type { Iova, IovaLike, VaLike } from '../units.js';
import type { Description } from './description.js';
import type { DeviceAccess } from './device-access.js';
import type { MapOnMiss } from './map-on-miss.js';
import type { Pool } from '../memory/pool/pool.js';
import type { PoolMapping } from './map-pool.js';
import type { MemoryPart } from '../memory/part.js';

/** A memory access of a device that its IOMMU, or the device itself, reported as failed. */
export interface DeviceFault {
  /** The address that the device used. */
  readonly iova: Iova;
  /** The kind of access; `undefined` if the report does not say. */
  readonly access: DmaAccess | undefined;
  /** Where the report comes from: `kernel log`, `iommufd` ... */
  readonly source: string;
}

/** A device that its bus has opened. */
export interface OpenedDevice {
  /** Its PCI ids, if it has any. */
  readonly ids: Required<IdMatch> | undefined;
  /** The interface through which drivers use it; `undefined` for devices without registers. */
  readonly access: DeviceAccess | undefined;
  /** An object of the bus for the driver, besides or instead of registers. The driver knows its type. */
  readonly handle?: unknown;
  /** Describes the device beyond ids, registers and domain: see {@link Device.describe}. Absent: nothing. */
  describe?(): Promise<Description> | Description;
  /** The failed accesses reported since it was opened, oldest first. Absent if this bus has no source of reports. */
  faults?(): readonly DeviceFault[];
  /** Sets the callback for errors of the device that it may survive. Absent if devices of this bus report none. */
  onError?(failed: (error: DmaError) => void): void;
  /** Sets the callback for the loss of the device: called once if the device goes away without being closed. */
  onLost(lost: (error: DmaError) => void): void;
  /**
   * Stops using the device, so that another process can continue with it: see {@link Bus.takeOver}. Absent: it can not be
   * handed over.
   *
   * @param why of the calls that are refused meanwhile
   * @throws DmaError EBUSY if it can not be handed over now; nothing has changed then
   */
  handOver?(why: DmaError): Promise<Paused>;
  /** Closes it. Idempotent. */
  close(): Promise<void> | void;
}

/** A device that another process has handed over, and that this process may not access before `start`. */
export interface TakenDevice {
  readonly opened: OpenedDevice;
  /** The other process has let go of it. */
  start(): void;
  /** The other process keeps it: gives up this process's share, and changes nothing for the device. */
  abandon(error: DmaError): void;
}

/** Options of {@link Bus.open}. */
export interface OpenOptions {
  /**
   * The container that the program chose. Given only to a bus with {@link Bus.takesContainers}, which checks its type.
   */
  readonly container?: { readonly name: string };
}

/** A bus. */
export interface Bus {
  readonly name: string;
  /** Name keys that `open` accepts. If the bus and all its drivers list their keys, `probe` refuses all other keys. */
  readonly keys?: readonly string[];
  /** The full form of the device name `name`; `undefined` if no device of this bus can have that name. */
  parse(name: string): string | undefined;
  /** Whether the program can choose the container of its devices. Default: no. */
  readonly takesContainers?: boolean;
  /** What the names of its devices look like, as a clause for the hint about a wrong name. */
  readonly naming?: string;
  /**
   * Whether `parse` accepts names that could also belong to other buses, such as paths. If so, other buses are asked
   * first about a name without a bus. Default: no.
   */
  readonly takesAnyName?: boolean;
  /** Names of the devices that the bus finds by itself. Absent: devices can only be opened by name. */
  scan?(): Promise<readonly string[]>;
  /** Describes the bus and the devices that it sees, for `anydma devices`. Absent: only their names are listed. */
  describe?(): Promise<Description> | Description;
  /**
   * Opens the device `name` (as returned by `parse`).
   *
   * @param args the keys given with the name; the bus ignores keys of the driver
   * @throws DmaError ENODEV if the device does not exist, or another code if it can not be opened; nothing stays open
   *   then
   */
  open(name: string, args: ReadonlyMap<string, string>, options?: OpenOptions): Promise<OpenedDevice>;
  /**
   * Continues with a device that another process has handed over (see {@link OpenedDevice.handOver}). Absent: devices of
   * this bus can not be taken over.
   *
   * @param handed.fds belong to the bus from now on, also if it throws
   */
  takeOver?(
    name: string,
    args: ReadonlyMap<string, string>,
    handed: { readonly state: Fields; readonly fds: readonly number[] },
  ): TakenDevice;
  /** Whether the driver matches the device, beyond its bus name and ids. Default: yes. */
  match?(opened: OpenedDevice, driver: Driver): boolean;
  /**
   * Which addresses its devices need for the library's own memory: `pa` without an IOMMU, `va` if only that works. It
   * counts as one vote in the decision on the IOVA mode. Absent, or `undefined`: either mode works.
   */
  iovaWish?(): IovaMode | undefined;
  /**
   * The address space that a device is in. Devices that get the same object share their mappings. Absent: memory can
   * not be mapped for its devices, unless their driver provides an address space.
   */
  spaceOf?(device: Device): AddressSpace;
}

/** A device that was opened. It maps memory in the same way for every kind of device. Created by `Eal.probe`. */
export interface Device {
  /** `bus:name` */
  readonly name: string;
  readonly bus: Bus;
  /** Its name on the bus. */
  readonly busName: string;
  /** The keys that were given with its name. */
  readonly args: ReadonlyMap<string, string>;
  /**
   * `opening`: a driver is being searched; `probed`: it has a driver and works; `gone`: it was removed or lost. Memory can
   * be mapped also while a driver probes.
   */
  readonly state: 'opening' | 'probed' | 'gone';
  /** Why the device was lost; `undefined` if it was not. */
  readonly lost: DmaError | undefined;
  /** Its PCI ids; `undefined` when it has none. */
  readonly ids: Required<IdMatch> | undefined;
  /** Its registers and interrupts. Throws a DmaError ENOTSUP for a device without registers. */
  readonly access: DeviceAccess;
  /** An object that its bus provides for the driver, besides or instead of registers; `undefined` if there is none. */
  readonly handle: unknown;
  /** Its driver; `undefined` before a driver took the device, and after the device is gone. */
  readonly driver: Driver | undefined;
  /** The domain it is in; `undefined` if memory can not be mapped for it. */
  readonly domain: Domain | undefined;
  /**
   * How its bus describes it beyond ids, registers and domain, for people and for programs; `undefined` if the bus has
   * nothing to add, and after the device is gone.
   */
  describe(): Promise<Description | undefined>;
  /**
   * What another thread needs to look up the addresses that the device uses: send it there by `postMessage` or as `workerData`, any number
   * of times, and give it to `attach`. While a thread has it, removing the device is EBUSY and names the thread.
   *
   * @throws DmaError EINVAL if it is not probed; ENODEV if it was lost; ENOTSUP where system calls are not available
   */
  share(): Shared<AttachedDevice>;
  /** The object that `driver` provides for this device. @throws DmaError EINVAL if it has another driver, or none */
  use<T>(driver: Driver<T>): T;
  /**
   * Maps memory so that the device can access it: the same call for every kind of device.
   *
   * @param target registered memory, or a part of it as `{ va, length }`
   * @throws DmaError, before any side effect: EINVAL (the device has no driver; impossible, misaligned or unregistered
   *   range; an IOVA that would be ignored or that contradicts the area's table; remote writes to memory that is
   *   read-only for the device), ENOTSUP (neither its driver nor its bus can map; remote access or on-demand paging
   *   that the device does not support), EACCES (writing to read-only memory), ERANGE (IOVA outside the windows),
   *   EEXIST (another mapping overlaps by VA or IOVA), EBUSY (such a mapping is being made or undone), ENOSPC (entry
   *   limit, or no free IOVA), ENOMEM (locked-memory limit), ENODEV (the device was lost); after undoing: errors of the
   *   address space
   */
  dmaMap(target: MemoryPart, options?: MapOptions): Mapping;
  /**
   * As {@link Device.dmaMap}, without blocking the event loop, with progress and abort.
   *
   * @throws DmaError also ECANCELED once `signal` is aborted
   */
  dmaMapAsync(target: MemoryPart, options?: MapAsyncOptions): Promise<Mapping>;
  /**
   * Undoes {@link Device.dmaMap}: for a mapping, for exactly a mapped range, or for a part of one if the domain can cut
   * mappings.
   *
   * @throws DmaError EINVAL: impossible or misaligned range, no mapping of this device at exactly this range, a
   *   different IOVA, or the mapping of another device; ENOTSUP: a part, and the domain can not cut mappings; EBUSY: a
   *   part that is also mapped for another device; ENOSPC: cutting would exceed the entry limit; else as
   *   `Mapping.unmap`
   */
  dmaUnmap(target: Mapping | (MemoryPart & { readonly iova?: IovaLike })): void;
  /**
   * Unmaps everything that `dmaMap`, `dmaMapAsync`, `dmaMapPool` and `mapOnMiss` mapped for this device, last first.
   * Memory that is mapped for every device (`eal.dmaMapAll`, memory of the library and of heaps) stays mapped, and so
   * do the mappings of other devices in the same domain.
   *
   * @throws DmaError as `Mapping.unmap`: the first error, with the others in `undo`, after all mappings were tried;
   *   call it again to retry what is still mapped
   */
  dmaUnmapAll(): void;
  /** As {@link Device.dmaUnmapAll}, without blocking the event loop if the address space supports that. */
  dmaUnmapAllAsync(): Promise<void>;
  /**
   * Maps the external memory of a pool, each area once, all or nothing. (Memory of the library or of a heap is mapped
   * for every device already.) Unmap it before the pool's memory is unregistered.
   *
   * @throws DmaError EINVAL if the pool was freed or is not for devices; else as `dmaMap`
   */
  dmaMapPool(pool: Pool, options?: Pick<MapOptions, 'access'>): PoolMapping;
  /**
   * As {@link Device.dmaMapPool}, without blocking the event loop, with progress over the whole pool, and with abort.
   */
  dmaMapPoolAsync(pool: Pool, options?: Omit<MapAsyncOptions, 'iova'>): Promise<PoolMapping>;
  /**
   * Maps registered external memory when the data path first uses it: let the option
   * `miss` of a queue pair call its `map`. Off by default, unlike in DPDK. Close it after the last queue is closed.
   *
   * @param options.unit how much is mapped around an address that has no key. `area` (default): its whole area, as DPDK
   *   does; if a part of the area is mapped already, only the pages of the I/O. `pages`: always only the pages of the
   *   I/O. Pages that overlap an existing mapping can not be mapped again, so `pages` is for programs whose buffers share
   *   no pages
   * @throws DmaError EINVAL if the device has no driver; ENOTSUP if memory can not be mapped for it
   */
  mapOnMiss(options?: { readonly unit?: 'area' | 'pages' }): MapOnMiss;
  /**
   * The address that this device uses for the first byte of some memory, or for the byte at a VA. The following bytes
   * of the memory follow without a gap. The address is valid as long as the memory stays mapped for the device; blocks,
   * zones and pools are mapped from their creation on. So ask once and keep the address. A call takes some nanoseconds
   * and allocates nothing. For an RDMA device the address is the VA.
   *
   * @throws DmaError EINVAL if some of the memory is not mapped for the device, if it is mapped in several pieces (ask
   *   for a `contiguous` block, or page by page), if it was freed, if the value is not an address, or if the device has
   *   no driver; ENOTSUP if memory can not be mapped for the device
   */
  iovaOf(memory: MemoryPart | VaLike): Iova;
  /** Explains an address that this device used: see `Domain.explain`. */
  explain(iova: IovaLike, length?: number, access?: DmaAccess): Explanation;
  /**
   * Explains the failed accesses that were reported for this device since it was opened, oldest first. Empty if there
   * were none, or if no reports can be read here (reading the kernel log needs a privilege).
   */
  explainFaults(): ExplainedFault[];
  /**
   * The same, but waits until there are more than `after` failed accesses or the time is over: the report of an access
   * that the IOMMU blocked reaches the kernel log some time after the access. Does not wait if this device has no
   * source of reports.
   *
   * @throws DmaError EINVAL for an invalid time; ECANCELED once `signal` is aborted, with its reason as the cause
   */
  explainFaultsAsync(options?: {
    /** The number of failed accesses that are known already: waits for one more. Default 0. */
    readonly after?: number;
    /** Milliseconds. Default 1000. */
    readonly timeoutMs?: number;
    readonly signal?: AbortSignal;
  }): Promise<ExplainedFault[]>;
}

/** A failed access, and the explanation of its address. */
export interface ExplainedFault extends DeviceFault {
  readonly explanation: Explanation;
}

/** PCI ids that a driver matches; an id that is left out matches any. */
export interface IdMatch {
  readonly vendor?: number;
  readonly device?: number;
  readonly subsystemVendor?: number;
  readonly subsystem?: number;
  /** 24 bits: base class, sub-class, programming interface. */
  readonly classCode?: number;
}

/**
 * Returned by a driver's `probe` if it does not take the device after all, so that the next matching driver is tried.
 */
export const TRY_NEXT: unique symbol = Symbol('try the next driver');

/** What a driver may use while it probes. */
export interface ProbeContext {
  /** Provides memory for the driver itself, such as rings. */
  readonly external: External;
  /** @internal What drivers share with other threads; absent in tests of drivers alone. */
  readonly shares?: Shares;
  /** @internal The rings of the `Eal`, where there is one. */
  readonly rings?: Rings;
  /** @internal The system calls of the `Eal`, where there is one. */
  readonly platform?: Platform;
}

/** What a driver makes of a device that another process has handed over. */
export interface TakenInstance<T> {
  readonly instance: T;
  /** The other process has let go of the device. Absent: nothing is to be done then. */
  start?(): void;
}

/**
 * A driver.
 *
 * @typeParam T the object that it provides for a device, and that the program works with
 */
export interface Driver<T = unknown> {
  readonly name: string;
  /** The name keys that it accepts: see {@link Bus.keys}. */
  readonly keys?: readonly string[];
  /**
   * Names of the buses it works on. Absent: all buses; it is then tried after the drivers that name the device's bus.
   */
  readonly buses?: readonly string[];
  /** Ids it matches; absent: every device of those buses. */
  readonly ids?: readonly IdMatch[];
  /** Whether it takes this device, once bus and ids match. Absent: yes. */
  takes?(opened: OpenedDevice): boolean;
  /** The class of its devices: `dma`, `net`, `storage`, `test` ... */
  readonly deviceClass?: string;
  /** May the device be removed now? @throws DmaError EBUSY, if another thread works it */
  mayRemove?(device: Device, instance: T): void;
  /**
   * How many address bits the device can use: IOVAs are kept below 2^bits. Absent, or `undefined`: no limit.
   *
   * @param args the keys that were given with the device's name
   */
  dmaAddressBits?(args: ReadonlyMap<string, string>): number | undefined;
  /** The address space of a device, instead of the one that its bus provides: see {@link Bus.spaceOf}. */
  spaceOf?(device: Device): AddressSpace;
  /**
   * Takes the device. Memory can be mapped for it already. If it throws, probing ends and the device is closed.
   *
   * @returns the object for the program, or {@link TRY_NEXT}
   */
  probe(device: Device, context: ProbeContext): Promise<T | typeof TRY_NEXT> | T | typeof TRY_NEXT;
  /**
   * Stops using the device, which goes on with what it has, so that the same driver of another process can continue. Absent:
   * its devices can not be handed over.
   *
   * @param why of the calls that are refused meanwhile
   * @throws DmaError EBUSY if it can not be handed over now; nothing has changed then
   */
  handOver?(device: Device, instance: T, why: DmaError): Promise<Paused> | Paused;
  /**
   * Continues with a device that another process has handed over. Its memory is registered, and its mappings are there. The
   * device must not be accessed before `start`.
   */
  takeOver?(device: Device, context: ProbeContext, state: Fields): TakenInstance<T>;
  /** Releases the device, which may be lost already, and everything that `probe` allocated. */
  remove?(device: Device, instance: T): Promise<void> | void;
}
