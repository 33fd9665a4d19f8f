/** For tests: the sPAPR v2 IOMMU driver, with the rules of drivers/vfio/vfio_iommu_spapr_tce.c (Linux 7.3). */
import * as vfio from '../../../src/platform/uapi/vfio.js';
import { isPowerOfTwo, type Va } from '../../../src/units.js';
import type { Argument } from './argument.js';
import { refuse } from './argument.js';
import { FakePageTable, type FakeMemory, type PinnedPages } from './pages.js';

const {
  IOCTL,
  VFIO_IOMMU_SPAPR_REGISTER_MEMORY: REGISTER,
  VFIO_IOMMU_SPAPR_TCE_CREATE: CREATE,
  VFIO_IOMMU_SPAPR_TCE_DDW_INFO: DYNAMIC,
  VFIO_IOMMU_SPAPR_TCE_INFO: INFO,
  VFIO_IOMMU_SPAPR_TCE_REMOVE: REMOVE,
  VFIO_IOMMU_TYPE1_DMA_MAP: MAP,
  VFIO_IOMMU_TYPE1_DMA_UNMAP: UNMAP,
} = vfio;

interface Window {
  readonly start: number;
  readonly size: number;
  readonly pageSize: number;
  readonly levels: number;
}

/** Memory that is registered: one list for all containers of a process. */
export interface SpaprMemory {
  readonly va: number;
  readonly length: number;
  readonly pages: PinnedPages;
  readonly containers: Set<FakeSpapr>;
}

/** What the machine is like: two windows, page sizes of POWER9. */
export const SPAPR_MACHINE = {
  defaultWindow: 0x80000000,
  pageSizes: 0x1000 | 0x10000 | 0x200000,
  maxWindows: 2,
  maxLevels: 5,
  /** bytes that the table of one level can have */
  maxTable: 4 * 1024 * 1024,
} as const;

/** See the head of the file. One container's. */
export class FakeSpapr {
  readonly table: FakePageTable;
  readonly #memory: FakeMemory;
  readonly #pageSize: number;
  readonly #windows: (Window | undefined)[] = [undefined, undefined];
  readonly #all: SpaprMemory[];
  #enabled = false;
  #defaultPending = true;

  /** @param all what any container of the process has registered */
  constructor(memory: FakeMemory, pageSize: number, all: SpaprMemory[]) {
    this.#all = all;
    this.#memory = memory;
    this.#pageSize = pageSize;
    this.table = new FakePageTable(memory);
  }

  /** The windows that there are. */
  get windows(): readonly Window[] {
    return this.#windows.filter((window) => window !== undefined);
  }

  /** How many ranges are registered. */
  get registrations(): number {
    return this.#registered.length;
  }

  release(): void {
    this.table.clear();
    for (const memory of this.#registered) this.#drop(memory);
  }

  checkExtension(extension: number): number {
    return extension === vfio.VFIO_SPAPR_TCE_IOMMU || extension === vfio.VFIO_SPAPR_TCE_v2_IOMMU ? 1 : 0;
  }

  ioctl(request: number, argument: Argument): number {
    switch (request) {
      case IOCTL.VFIO_IOMMU_SPAPR_TCE_GET_INFO:
        this.#getInfo(argument);
        break;
      case IOCTL.VFIO_IOMMU_MAP_DMA:
        this.#map(argument);
        break;
      case IOCTL.VFIO_IOMMU_UNMAP_DMA:
        this.#unmap(argument);
        break;
      case IOCTL.VFIO_IOMMU_SPAPR_REGISTER_MEMORY:
        this.#register(argument);
        break;
      case IOCTL.VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY:
        this.#unregister(argument);
        break;
      case IOCTL.VFIO_IOMMU_SPAPR_TCE_CREATE:
        this.#create(argument);
        break;
      case IOCTL.VFIO_IOMMU_SPAPR_TCE_REMOVE:
        this.#remove(argument);
        break;
      default:
        throw refuse('ENOTTY');
    }
    return 0;
  }

  #getInfo(argument: Argument): void {
    const argsz = argument.argsz(INFO.dma32_window_size + 4);
    argument.set32(INFO.flags, vfio.VFIO_IOMMU_SPAPR_INFO_DDW);
    argument.set32(INFO.dma32_window_start, 0);
    argument.set32(INFO.dma32_window_size, SPAPR_MACHINE.defaultWindow);
    if (argsz < INFO.sizeof) return;
    argument.set64(INFO.ddw + DYNAMIC.pgsizes, SPAPR_MACHINE.pageSizes);
    argument.set32(INFO.ddw + DYNAMIC.max_dynamic_windows_supported, SPAPR_MACHINE.maxWindows);
    argument.set32(INFO.ddw + DYNAMIC.levels, SPAPR_MACHINE.maxLevels);
  }

  #register(argument: Argument): void {
    const { va, length } = this.#memoryOf(argument);
    const known = this.#all.find((each) => each.va === va && each.length === length);
    if (known?.containers.has(this) === true) throw refuse('EBUSY');
    this.#enabled = true;
    if (known !== undefined) {
      known.containers.add(this);
      return;
    }
    if (this.#all.some((each) => each.va < va + length && va < each.va + each.length))
      throw refuse('EINVAL', 'it overlaps');
    const pages = this.#memory.pinVa(va as Va, length, true);
    pages.users = 1;
    this.#all.push({ va, length, pages, containers: new Set([this]) });
  }

  #unregister(argument: Argument): void {
    const { va, length } = this.#memoryOf(argument);
    const memory = this.#registered.find((each) => each.va === va && each.length === length);
    if (memory === undefined) throw refuse('ENOENT');
    if (memory.containers.size === 1 && memory.pages.users > 1) throw refuse('EBUSY', 'it is mapped');
    this.#drop(memory);
  }

  get #registered(): SpaprMemory[] {
    return this.#all.filter(({ containers }) => containers.has(this));
  }

  #drop(memory: SpaprMemory): void {
    memory.containers.delete(this);
    if (memory.containers.size > 0) return;
    this.#all.splice(this.#all.indexOf(memory), 1);
    this.#memory.unpin(memory.pages);
  }

  #memoryOf(argument: Argument): { va: number; length: number } {
    argument.argsz(REGISTER.sizeof);
    const [va, length] = [Number(argument.u64(REGISTER.vaddr)), Number(argument.u64(REGISTER.size))];
    if (argument.u32(REGISTER.flags) !== 0) throw refuse('EINVAL', 'flags');
    if (va % this.#pageSize !== 0 || length % this.#pageSize !== 0) throw refuse('EINVAL', 'misaligned');
    return { va, length };
  }

  #create(argument: Argument): void {
    argument.argsz(CREATE.sizeof);
    if (argument.u32(CREATE.flags) !== 0) throw refuse('EINVAL', 'flags');
    this.#makeDefault();
    const window = this.#addWindow(
      2 ** argument.u32(CREATE.page_shift),
      Number(argument.u64(CREATE.window_size)),
      argument.u32(CREATE.levels),
    );
    argument.set64(CREATE.start_addr, window.start);
  }

  #makeDefault(): void {
    if (!this.#defaultPending) return;
    this.#addWindow(4096, SPAPR_MACHINE.defaultWindow, 1);
    this.#defaultPending = false;
  }

  #addWindow(pageSize: number, size: number, levels: number): Window {
    const number = this.#windows.indexOf(undefined);
    if (number < 0) throw refuse('ENOSPC', 'no window is left');
    if ((SPAPR_MACHINE.pageSizes & pageSize) === 0) throw refuse('EINVAL', 'page size');
    if (levels < 1 || levels > SPAPR_MACHINE.maxLevels || !isPowerOfTwo(size)) throw refuse('EINVAL', 'levels or size');
    const perLevel = 2 ** Math.ceil(Math.log2(size / pageSize) / levels) * 8;
    if (perLevel > SPAPR_MACHINE.maxTable) throw refuse('ENOMEM', 'the table of a level is too large');
    // The second window begins where addresses bypass the first.
    const window = { start: number === 0 ? 0 : 2 ** 59, size, pageSize, levels };
    this.#windows[number] = window;
    return window;
  }

  #remove(argument: Argument): void {
    argument.argsz(REMOVE.sizeof);
    if (argument.u32(REMOVE.flags) !== 0) throw refuse('EINVAL', 'flags');
    const start = Number(argument.u64(REMOVE.start_addr));
    if (this.#defaultPending && start === 0) {
      this.#defaultPending = false;
      return;
    }
    const number = this.#windows.findIndex((window) => window?.start === start);
    const window = this.#windows[number];
    if (window === undefined) throw refuse('EINVAL', 'no such window');
    this.#clear(start, start + window.size);
    this.#windows[number] = undefined;
  }

  #map(argument: Argument): void {
    if (!this.#enabled) throw refuse('EPERM', 'nothing was registered ever');
    argument.argsz(MAP.sizeof);
    const flags = argument.u32(MAP.flags);
    const READ = vfio.VFIO_DMA_MAP_FLAG_READ;
    const WRITE = vfio.VFIO_DMA_MAP_FLAG_WRITE;
    if ((flags & ~(READ | WRITE)) !== 0) throw refuse('EINVAL', 'flags');
    this.#makeDefault();
    const [iova, va, size] = [MAP.iova, MAP.vaddr, MAP.size].map((at) => Number(argument.u64(at)));
    const { pageSize } = this.#windowAt(iova, size);
    if (size % pageSize !== 0 || va % pageSize !== 0) throw refuse('EINVAL', 'misaligned');
    if ((flags & (READ | WRITE)) === 0) throw refuse('EINVAL', 'no access');
    if (iova % pageSize !== 0) throw refuse('EINVAL', 'misaligned');
    const access = (flags & WRITE) === 0 ? 'read' : (flags & READ) === 0 ? 'write' : 'read-write';
    // What was there is replaced, page by page.
    for (let at = 0; at < size; at += pageSize) {
      const memory = this.#registered.find((each) => each.va <= va + at && va + at + pageSize <= each.va + each.length);
      if (memory === undefined) {
        this.#clear(iova, iova + at);
        throw refuse('EINVAL', 'it is not registered');
      }
      this.#clear(iova + at, iova + at + pageSize);
      this.table.insert({
        iova: iova + at,
        length: pageSize,
        access,
        pages: memory.pages,
        offset: va + at - memory.va,
      });
    }
  }

  #unmap(argument: Argument): void {
    if (!this.#enabled) throw refuse('EPERM', 'nothing was registered ever');
    argument.argsz(UNMAP.sizeof);
    if (argument.u32(UNMAP.flags) !== 0) throw refuse('EINVAL', 'flags');
    const [iova, size] = [Number(argument.u64(UNMAP.iova)), Number(argument.u64(UNMAP.size))];
    const { pageSize } = this.#windowAt(iova, size);
    if (size % pageSize !== 0 || iova % pageSize !== 0) throw refuse('EINVAL', 'misaligned');
    this.#clear(iova, iova + size);
  }

  #windowAt(iova: number, size: number): Window {
    const window = this.windows.find(({ start, size: bytes }) => iova >= start && iova < start + bytes);
    if (window === undefined) throw refuse('ENXIO');
    if (iova + size > window.start + window.size) throw refuse('EINVAL', 'it leaves the window');
    return window;
  }

  #clear(start: number, end: number): void {
    for (const mapping of this.table.inside(start, end)) this.table.remove(mapping);
  }
}
