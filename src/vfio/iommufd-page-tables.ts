/**
 * Hardware page tables of an address space of iommufd (IOMMU_HWPT_ALLOC). Most devices use the default one of the IOAS; for
 * IOMMUs that track dirty pages, and for page requests, this library allocates them.
 */
import { DmaError, isDmaError, throwFirst, undoAll, withUndo } from '../errors.js';
import type { Fields, JsonObject } from '../fields.js';
import type { Platform } from '../platform/ports.js';
import { Struct } from '../platform/struct.js';
import * as iommufd from '../platform/uapi/iommufd.js';
import type { Range } from '../ranges.js';
import type { Iova } from '../units.js';
import { DirtyPages, type DirtyTracking } from './dirty.js';
import { attachDevice } from './iommufd-devices.js';
import type { IommufdCalls, PageRequests } from './page-requests.js';
import type { VfioNode } from './space.js';

const {
  IOCTL,
  IOMMU_HWPT_ALLOC: HWPT,
  IOMMU_HWPT_GET_DIRTY_BITMAP: DIRTY,
  IOMMU_HWPT_SET_DIRTY_TRACKING: TRACK,
  IOMMU_HW_INFO: HW_INFO,
} = iommufd;

/** One that was allocated. */
interface PageTable {
  readonly id: number;
  readonly tracksDirtyPages: boolean;
  readonly devices: Set<string>;
}

/** The address space that they belong to. */
interface Ioas {
  readonly id: number;
  /** bytes */
  readonly granule: number;
  readonly pageRequests: PageRequests | undefined;
}

/** The page tables of one address space, and its dirty pages, which they have. */
export class PageTables implements DirtyTracking {
  readonly #platform: Platform;
  readonly #context: IommufdCalls;
  readonly #ioas: Ioas;
  readonly #tables: PageTable[] = [];
  /** Names of all attached devices, those of the default page table too. */
  readonly #devices = new Set<string>();
  #tracking = false;

  constructor(platform: Platform, context: IommufdCalls, ioas: Ioas) {
    this.#platform = platform;
    this.#context = context;
    this.#ioas = ioas;
  }

  /** Can the IOMMUs of all devices track dirty pages? */
  get tracksDirtyPages(): boolean {
    const tracked = this.#tables.filter((table) => table.tracksDirtyPages);
    return tracked.length > 0 && tracked.reduce((sum, { devices }) => sum + devices.size, 0) === this.#devices.size;
  }

  get pageSize(): number {
    return this.#ioas.granule;
  }

  start(): void {
    this.#setTracking(true);
  }

  stop(): void {
    this.#setTracking(false);
  }

  read(range: Range<Iova>, options: { readonly keep?: boolean } = {}): DirtyPages {
    this.#mustTrack();
    if (!this.#tracking)
      throw new DmaError({ code: 'EINVAL', operation: 'dirty pages', reason: 'tracking was not started' });
    const pages = new DirtyPages(range, this.pageSize);
    const argument = new Struct(DIRTY.sizeof)
      .set32(DIRTY.size, DIRTY.sizeof)
      .set32(DIRTY.flags, options.keep === true ? iommufd.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR : 0)
      .set64(DIRTY.iova, range.start)
      .set64(DIRTY.length, range.length)
      .set64(DIRTY.page_size, pages.pageSize)
      .set64(DIRTY.data, this.#platform.memory.addressOf(pages.bitmap));
    // Each call sets the bits of pages its devices wrote and keeps the others.
    for (const { id } of this.#tables)
      this.#context.call(
        IOCTL.IOMMU_HWPT_GET_DIRTY_BITMAP,
        argument.set32(DIRTY.hwpt_id, id),
        'IOMMU_HWPT_GET_DIRTY_BITMAP',
      );
    return pages;
  }

  /**
   * Attaches a device, with a page table of its own if that supports more than the default one.
   *
   * @param id the number that iommufd gave it
   */
  attach(fd: number, id: number, node: VfioNode): void {
    const tracks = this.#hardwareTracks(id);
    if (tracks || this.#ioas.pageRequests !== undefined) this.#attachToOwn(fd, id, node, tracks);
    else attachDevice(this.#platform, fd, this.#ioas.id, node);
    this.#devices.add(node.name);
  }

  /** The page tables, for another process. */
  handOver(): JsonObject {
    const tables = this.#tables.map(({ id, tracksDirtyPages, devices }) => ({
      id,
      tracksDirtyPages,
      devices: [...devices],
    }));
    return { tables, devices: [...this.#devices], tracking: this.#tracking };
  }

  /** Continues with page tables that another process has handed over. Only before anything was attached. */
  takeOver(state: Fields): void {
    for (const table of state.list('tables')) {
      const devices = new Set(table.strings('devices'));
      this.#tables.push({ id: table.number('id'), tracksDirtyPages: table.boolean('tracksDirtyPages'), devices });
    }
    for (const name of state.strings('devices')) this.#devices.add(name);
    this.#tracking = state.boolean('tracking');
  }

  /** Forgets a closed device, and destroys the page table that only it used. */
  forget(name: string): void {
    this.#devices.delete(name);
    for (const table of [...this.#tables]) {
      if (!table.devices.delete(name) || table.devices.size > 0) continue;
      this.#tables.splice(this.#tables.indexOf(table), 1);
      this.#context.destroy(table.id);
    }
  }

  /** Destroys all. */
  close(): void {
    throwFirst(undoAll(this.#tables.splice(0).map((table) => () => this.#context.destroy(table.id))), 'close');
  }

  #attachToOwn(fd: number, id: number, node: VfioNode, tracks: boolean): void {
    for (const table of this.#tables) if (table.tracksDirtyPages === tracks && this.#joins(fd, table, node)) return;
    const table = this.#make(id, tracks);
    this.#tables.push(table);
    table.devices.add(node.name);
    attachDevice(this.#platform, fd, table.id, node);
  }

  /** Attaches to an existing page table; false if the device's IOMMU can not use it. */
  #joins(fd: number, table: PageTable, node: VfioNode): boolean {
    try {
      attachDevice(this.#platform, fd, table.id, node);
      table.devices.add(node.name);
      return true;
    } catch (error) {
      if (isDmaError(error, 'EINVAL')) return false;
      throw error;
    }
  }

  #hardwareTracks(id: number): boolean {
    const info = new Struct(HW_INFO.sizeof).set32(HW_INFO.size, HW_INFO.sizeof).set32(HW_INFO.dev_id, id);
    try {
      this.#context.call(IOCTL.IOMMU_GET_HW_INFO, info, 'IOMMU_GET_HW_INFO');
    } catch (error) {
      // Not supported before Linux 6.6, or by the IOMMU's driver.
      if (isDmaError(error, 'ENOTTY') || isDmaError(error, 'ENOTSUP')) return false;
      throw error;
    }
    return info.u32(HW_INFO.out_capabilities) % 2 === iommufd.IOMMU_HW_CAP_DIRTY_TRACKING;
  }

  #make(device: number, tracksDirtyPages: boolean): PageTable {
    const faults = this.#ioas.pageRequests;
    const argument = new Struct(HWPT.sizeof)
      .set32(HWPT.size, HWPT.sizeof)
      .set32(
        HWPT.flags,
        (tracksDirtyPages ? iommufd.IOMMU_HWPT_ALLOC_DIRTY_TRACKING : 0) |
          (faults === undefined ? 0 : iommufd.IOMMU_HWPT_FAULT_ID_VALID),
      )
      .set32(HWPT.dev_id, device)
      .set32(HWPT.pt_id, this.#ioas.id)
      .set32(HWPT.fault_id, faults?.id ?? 0);
    this.#context.call(IOCTL.IOMMU_HWPT_ALLOC, argument, 'IOMMU_HWPT_ALLOC');
    const id = argument.u32(HWPT.out_hwpt_id);
    try {
      if (tracksDirtyPages && this.#tracking) this.#track(id, true);
    } catch (error) {
      throw withUndo(error, 'open', undoAll([() => this.#context.destroy(id)]));
    }
    return { id, tracksDirtyPages, devices: new Set() };
  }

  #mustTrack(): void {
    if (this.tracksDirtyPages) return;
    const reason = 'not all IOMMUs of this address space can track dirty pages';
    throw new DmaError({ code: 'ENOTSUP', operation: 'dirty pages', reason });
  }

  #setTracking(enable: boolean): void {
    this.#mustTrack();
    const done: number[] = [];
    try {
      for (const { id } of this.#tables) {
        this.#track(id, enable);
        done.push(id);
      }
    } catch (error) {
      throw withUndo(error, 'dirty pages', undoAll(done.map((id) => () => this.#track(id, !enable))));
    }
    this.#tracking = enable;
  }

  #track(pageTable: number, enable: boolean): void {
    const argument = new Struct(TRACK.sizeof)
      .set32(TRACK.size, TRACK.sizeof)
      .set32(TRACK.flags, enable ? iommufd.IOMMU_HWPT_DIRTY_TRACKING_ENABLE : 0)
      .set32(TRACK.hwpt_id, pageTable);
    this.#context.call(IOCTL.IOMMU_HWPT_SET_DIRTY_TRACKING, argument, 'IOMMU_HWPT_SET_DIRTY_TRACKING');
  }
}
