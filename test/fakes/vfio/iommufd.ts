/** For tests: iommufd, with the rules of drivers/iommu/iommufd (Linux 7.3). */
import type { DmaAccess } from '../../../src/dma/address-space.js';
import * as iommufd from '../../../src/platform/uapi/iommufd.js';
import { isPowerOfTwo, type Va } from '../../../src/units.js';
import { ALL_ONES, Argument, refuse } from './argument.js';
import { FakePageTable, type FakeMapping, type FakeMemory } from './pages.js';
import { bitmapAt, lowestBit, type IovaSpan, type FakeIommu } from './type1.js';

const {
  IOCTL,
  IOMMU_DESTROY: DESTROY,
  IOMMU_FAULT_ALLOC: FAULT,
  IOMMU_HWPT_ALLOC: HWPT,
  IOMMU_HWPT_GET_DIRTY_BITMAP: DIRTY,
  IOMMU_HWPT_SET_DIRTY_TRACKING: TRACK,
  IOMMU_HW_INFO: HW_INFO,
  IOMMU_IOAS_ALLOC: ALLOC,
  IOMMU_IOAS_ALLOW_IOVAS: ALLOW,
  IOMMU_IOAS_COPY: COPY,
  IOMMU_IOAS_IOVA_RANGES: RANGES,
  IOMMU_IOAS_MAP: MAP,
  IOMMU_IOAS_MAP_FILE: MAP_FILE,
  IOMMU_IOAS_UNMAP: UNMAP,
  IOMMU_IOVA_RANGE: RANGE,
  IOMMU_IOAS_MAP_FIXED_IOVA: FIXED,
  IOMMU_IOAS_MAP_READABLE: READABLE,
  IOMMU_IOAS_MAP_WRITEABLE: WRITEABLE,
} = iommufd;

/** A device as iommufd sees it. */
export interface IommufdDevice {
  readonly name: string;
  /** number of its group */
  readonly group: number;
  readonly iommu: FakeIommu;
  /** Can its IOMMU track dirty pages? */
  readonly tracksDirtyPages: boolean;
}

interface Ioas {
  readonly type: 'ioas';
  users: number;
  readonly table: FakePageTable;
  readonly reserved: { readonly span: IovaSpan; readonly owner: object }[];
  allowed: IovaSpan[];
  readonly pageTables: Set<PageTable>;
}

interface PageTable {
  readonly type: 'hwpt';
  readonly id: number;
  users: number;
  readonly ioas: Ioas;
  readonly iommu: FakeIommu;
  readonly isAutomatic: boolean;
  readonly canTrack: boolean;
  readonly fault: FaultQueue | undefined;
  tracking: boolean;
}

interface BoundDevice {
  readonly type: 'device';
  users: number;
  readonly device: IommufdDevice;
  pageTable: PageTable | undefined;
}

/** A queue of page requests. */
export interface FaultQueue {
  readonly type: 'fault';
  users: number;
  /** Bytes of requests that were not read yet, a group each. */
  readonly waiting: { readonly cookie: number; readonly bytes: Uint8Array }[];
  /** Groups that were read, by cookie. */
  readonly unanswered: Set<number>;
  readonly answers: { readonly cookie: number; readonly code: number }[];
}

type Thing = Ioas | PageTable | BoundDevice | FaultQueue;

/** What is different from machine to machine. */
export interface IommufdSettings {
  /** Has it IOMMU_IOAS_MAP_FILE? */
  readonly mapsFiles: boolean;
  /** Makes a descriptor for a queue. */
  readonly faultDescriptor: (queue: FaultQueue) => number;
}

/** See the head of the file. One open /dev/iommu. */
export class FakeIommufd {
  readonly #memory: FakeMemory;
  readonly #settings: IommufdSettings;
  readonly #things = new Map<number, Thing>();
  #lastId = 0;

  constructor(memory: FakeMemory, settings: IommufdSettings) {
    this.#memory = memory;
    this.#settings = settings;
  }

  /** What is there, as `ioas 1`. */
  get objects(): string[] {
    return [...this.#things].map(([id, { type }]) => `${type} ${id}`);
  }

  /** Its descriptor was closed. */
  close(): void {
    for (const thing of this.#things.values()) if (thing.type === 'ioas') thing.table.clear();
    this.#things.clear();
  }

  // --- devices, for VFIO ---

  bind(device: IommufdDevice): number {
    return this.#add({ type: 'device', users: 1, device, pageTable: undefined });
  }

  unbind(id: number): void {
    this.detach(id);
    this.#things.delete(id);
  }

  /** @returns the page table's number. EINVAL: no such, or of no use for the device; EADDRINUSE */
  attach(id: number, pageTable: number): number {
    const bound = this.#get(id, 'device');
    const to = this.#things.get(pageTable);
    if (to?.type !== 'ioas' && to?.type !== 'hwpt')
      throw refuse(to === undefined ? 'ENOENT' : 'EINVAL', 'no page table');
    if (to.type === 'hwpt') return this.#attachTo(bound, to);
    for (const each of to.pageTables)
      if (each.isAutomatic && isCompatible(each, bound.device)) return this.#attachTo(bound, each);
    const made = this.#makePageTable(to, bound.device, { isAutomatic: true, canTrack: false, fault: undefined });
    try {
      return this.#attachTo(bound, made);
    } catch (error) {
      this.#destroyPageTable(made);
      throw error;
    }
  }

  detach(id: number): void {
    const bound = this.#get(id, 'device');
    const { pageTable } = bound;
    if (pageTable === undefined) return;
    bound.pageTable = undefined;
    removeReserved(pageTable.ioas, bound);
    pageTable.users--;
    if (pageTable.isAutomatic && pageTable.users === 0) this.#destroyPageTable(pageTable);
  }

  /** Where the device's accesses go; `undefined` while it is in no address space. */
  tableOf(
    id: number,
  ): { readonly table: FakePageTable; readonly tracking: boolean; readonly fault: FaultQueue | undefined } | undefined {
    const pageTable = this.#get(id, 'device').pageTable;
    if (pageTable === undefined) return undefined;
    return { table: pageTable.ioas.table, tracking: pageTable.tracking, fault: pageTable.fault };
  }

  // --- calls ---

  ioctl(request: number, argument: Argument): number {
    const call = this.#calls.get(request);
    if (call === undefined) throw refuse('ENOTTY');
    argument.size(call.least, call.known);
    call.run(argument);
    return 0;
  }

  readonly #calls: ReadonlyMap<number, { least: number; known: number; run: (argument: Argument) => void }> = new Map<
    number,
    { least: number; known: number; run: (argument: Argument) => void }
  >([
    [IOCTL.IOMMU_DESTROY, { least: 8, known: 8, run: (argument) => this.#destroy(argument.u32(DESTROY.id)) }],
    [IOCTL.IOMMU_IOAS_ALLOC, { least: 12, known: 12, run: (argument) => this.#ioasAlloc(argument) }],
    [IOCTL.IOMMU_IOAS_ALLOW_IOVAS, { least: 24, known: 24, run: (argument) => this.#allowIovas(argument) }],
    [IOCTL.IOMMU_IOAS_COPY, { least: 40, known: 40, run: (argument) => this.#copy(argument) }],
    [IOCTL.IOMMU_IOAS_IOVA_RANGES, { least: 32, known: 32, run: (argument) => this.#iovaRanges(argument) }],
    [IOCTL.IOMMU_IOAS_MAP, { least: 40, known: 40, run: (argument) => this.#map(argument) }],
    [IOCTL.IOMMU_IOAS_MAP_FILE, { least: 40, known: 40, run: (argument) => this.#mapFile(argument) }],
    [IOCTL.IOMMU_IOAS_UNMAP, { least: 24, known: 24, run: (argument) => this.#unmap(argument) }],
    [IOCTL.IOMMU_HWPT_ALLOC, { least: 24, known: 48, run: (argument) => this.#hwptAlloc(argument) }],
    [IOCTL.IOMMU_GET_HW_INFO, { least: 32, known: 40, run: (argument) => this.#hwInfo(argument) }],
    [IOCTL.IOMMU_HWPT_SET_DIRTY_TRACKING, { least: 16, known: 16, run: (argument) => this.#setTracking(argument) }],
    [IOCTL.IOMMU_HWPT_GET_DIRTY_BITMAP, { least: 48, known: 48, run: (argument) => this.#getDirty(argument) }],
    [IOCTL.IOMMU_FAULT_QUEUE_ALLOC, { least: 16, known: 16, run: (argument) => this.#faultAlloc(argument) }],
  ]);

  #add(thing: Thing): number {
    this.#things.set(++this.#lastId, thing);
    return this.#lastId;
  }

  #get<T extends Thing['type']>(id: number, type: T): Extract<Thing, { type: T }> {
    const thing = this.#things.get(id);
    if (thing?.type !== type) throw refuse('ENOENT', `no ${type} ${id}`);
    return thing as Extract<Thing, { type: T }>;
  }

  #destroy(id: number): void {
    const thing = this.#things.get(id);
    if (thing === undefined) throw refuse('ENOENT', `no object ${id}`);
    if (thing.users > 0) throw refuse('EBUSY', `${thing.type} ${id} has users`);
    if (thing.type === 'hwpt') this.#destroyPageTable(thing);
    if (thing.type === 'ioas') thing.table.clear();
    this.#things.delete(id);
  }

  #ioasAlloc(argument: Argument): void {
    if (argument.u32(ALLOC.flags) !== 0) throw refuse('ENOTSUP');
    const table = new FakePageTable(this.#memory);
    const id = this.#add({ type: 'ioas', users: 0, table, reserved: [], allowed: [], pageTables: new Set() });
    argument.set32(ALLOC.out_ioas_id, id);
  }

  #iovaRanges(argument: Argument): void {
    const ioas = this.#get(argument.u32(RANGES.ioas_id), 'ioas');
    const room = argument.u32(RANGES.num_iovas);
    const reserved = ioas.reserved.map(({ span }) => span).sort((a, b) => a.start - b.start);
    const holes: IovaSpan[] = [];
    let start = 0;
    for (const span of reserved) {
      if (span.start > start) holes.push({ start, last: span.start - 1 });
      start = Math.max(start, span.last === ALL_ONES ? ALL_ONES : span.last + 1);
    }
    if (start < ALL_ONES) holes.push({ start, last: ALL_ONES });
    argument.set32(RANGES.num_iovas, holes.length);
    argument.set64(RANGES.out_iova_alignment, alignmentOf(ioas));
    const address = argument.u64(RANGES.allowed_iovas);
    const written = Math.min(room, holes.length);
    if (written > 0)
      this.#memory.bytes(bitmapAt(address, room * RANGE.sizeof), 0, written * RANGE.sizeof, (bytes) => {
        const out = new Argument(bytes);
        holes.slice(0, written).forEach((hole, i) => {
          out.set64(i * RANGE.sizeof + RANGE.start, hole.start);
          out.set64(i * RANGE.sizeof + RANGE.last, hole.last);
        });
      });
    if (holes.length > room) throw refuse('EMSGSIZE');
  }

  #allowIovas(argument: Argument): void {
    const ioas = this.#get(argument.u32(ALLOW.ioas_id), 'ioas');
    const count = argument.u32(ALLOW.num_iovas);
    const allowed: IovaSpan[] = [];
    if (count > 0)
      this.#memory.bytes(
        bitmapAt(argument.u64(ALLOW.allowed_iovas), count * RANGE.sizeof),
        0,
        count * RANGE.sizeof,
        (bytes) => {
          const list = new Argument(bytes);
          for (let i = 0; i < count; i++) {
            const start = Number(list.u64(i * RANGE.sizeof + RANGE.start));
            const last = Number(list.u64(i * RANGE.sizeof + RANGE.last));
            if (start >= last || allowed.some((other) => overlap(other, { start, last }))) throw refuse('EINVAL');
            allowed.push({ start, last });
          }
        },
      );
    if (allowed.some((span) => ioas.reserved.some((each) => overlap(each.span, span)))) throw refuse('EADDRINUSE');
    ioas.allowed = allowed;
  }

  /** What all three calls that map check first. */
  #mapArguments(flags: number, addresses: readonly bigint[]): DmaAccess {
    if ((flags & ~(FIXED | READABLE | WRITEABLE)) !== 0) throw refuse('ENOTSUP', 'flags');
    if (addresses.some((address) => address >= 2n ** 64n - 1n)) throw refuse('EOVERFLOW');
    if ((flags & (READABLE | WRITEABLE)) === 0) throw refuse('EINVAL', 'no access');
    // The fake has no allocator of IOVAs: who uses it always says which.
    if ((flags & FIXED) === 0) throw refuse('ENOSPC', 'the fake does not choose IOVAs');
    return (flags & WRITEABLE) === 0 ? 'read' : (flags & READABLE) === 0 ? 'write' : 'read-write';
  }

  #map(argument: Argument): void {
    const [va64, length64, iova64] = [MAP.user_va, MAP.length, MAP.iova].map((at) => argument.u64(at));
    const access = this.#mapArguments(argument.u32(MAP.flags), [iova64, length64]);
    const ioas = this.#get(argument.u32(MAP.ioas_id), 'ioas');
    if (va64 + length64 > 2n ** 64n - 1n) throw refuse('EOVERFLOW');
    if (length64 === 0n) throw refuse('EINVAL', 'length 0');
    const [va, length, iova] = [va64, length64, iova64].map(Number);
    const alignment = alignmentOf(ioas);
    this.#mustBeFree(ioas, iova, length);
    if (va % alignment !== 0) throw refuse('EINVAL', 'misaligned');
    const pages = this.#memory.pinVa(va as Va, length, access !== 'read');
    ioas.table.insert({ iova, length, access, pages, offset: 0 });
  }

  #mapFile(argument: Argument): void {
    if (!this.#settings.mapsFiles) throw refuse('ENOTTY');
    const [start64, length64, iova64] = [MAP_FILE.start, MAP_FILE.length, MAP_FILE.iova].map((at) => argument.u64(at));
    const access = this.#mapArguments(argument.u32(MAP_FILE.flags), [iova64, length64]);
    const ioas = this.#get(argument.u32(MAP_FILE.ioas_id), 'ioas');
    if (length64 === 0n) throw refuse('EINVAL', 'length 0');
    if (start64 + length64 > 2n ** 64n) throw refuse('EOVERFLOW');
    const [start, length, iova] = [start64, length64, iova64].map(Number);
    this.#mustBeFree(ioas, iova, length);
    if (start % alignmentOf(ioas) !== 0) throw refuse('EINVAL', 'misaligned');
    const pages = this.#memory.pinFile(argument.s32(MAP_FILE.fd), start, length, access !== 'read');
    ioas.table.insert({ iova, length, access, pages, offset: 0 });
  }

  #copy(argument: Argument): void {
    const [length64, to64, from64] = [COPY.length, COPY.dst_iova, COPY.src_iova].map((at) => argument.u64(at));
    const access = this.#mapArguments(argument.u32(COPY.flags), [length64, to64, from64]);
    const source = this.#get(argument.u32(COPY.src_ioas_id), 'ioas');
    const target = this.#get(argument.u32(COPY.dst_ioas_id), 'ioas');
    if (length64 === 0n) throw refuse('EINVAL', 'length 0');
    const [length, to, from] = [length64, to64, from64].map(Number);
    const pieces: { mapping: FakeMapping; start: number; length: number }[] = [];
    for (let at = from; at < from + length;) {
      const mapping = source.table.mappings.at(at);
      if (mapping === undefined) throw refuse('ENOENT', 'not all of it is mapped');
      const end = Math.min(from + length, mapping.iova + mapping.length);
      pieces.push({ mapping, start: at, length: end - at });
      at = end;
    }
    this.#mustBeFree(target, to, length);
    if (access !== 'read' && pieces.some(({ mapping }) => !mapping.pages.writable)) throw refuse('EPERM');
    if (from % alignmentOf(target) !== 0) throw refuse('EINVAL', 'misaligned');
    for (const { mapping, start, length: bytes } of pieces)
      target.table.insert({
        iova: to + (start - from),
        length: bytes,
        access,
        pages: mapping.pages,
        offset: mapping.offset + (start - mapping.iova),
      });
  }

  #unmap(argument: Argument): void {
    const ioas = this.#get(argument.u32(UNMAP.ioas_id), 'ioas');
    const [iova64, length64] = [argument.u64(UNMAP.iova), argument.u64(UNMAP.length)];
    const max = 2n ** 64n - 1n;
    if (iova64 === 0n && length64 === max) {
      argument.set64(UNMAP.length, ioas.table.clear());
      return;
    }
    if (iova64 >= max || length64 >= max) throw refuse('EOVERFLOW');
    if (length64 === 0n) throw refuse('EINVAL', 'length 0');
    if (iova64 + length64 > 2n ** 64n) throw refuse('EOVERFLOW');
    const [iova, end] = [Number(iova64), Number(iova64 + length64)];
    let unmapped = 0;
    // What is before the one that is cut goes all the same.
    for (const mapping of ioas.table.inside(iova, end)) {
      if (mapping.iova < iova || mapping.iova + mapping.length > end) throw refuse('ENOENT', 'it cuts a mapping');
      unmapped += mapping.length;
      ioas.table.remove(mapping);
    }
    if (unmapped === 0) throw refuse('ENOENT', 'nothing is mapped there');
    argument.set64(UNMAP.length, unmapped);
  }

  #mustBeFree(ioas: Ioas, iova: number, length: number): void {
    const alignment = alignmentOf(ioas);
    if (length % alignment !== 0 || iova % alignment !== 0) throw refuse('EINVAL', 'misaligned');
    if (iova + length > 2 ** 64) throw refuse('EOVERFLOW');
    const span = { start: iova, last: iova + length - 1 };
    if (ioas.reserved.some((each) => overlap(each.span, span))) throw refuse('EINVAL', 'reserved');
    if (ioas.table.mappings.overlapping(iova, iova + length) !== undefined) throw refuse('EEXIST');
  }

  // --- page tables ---

  #hwptAlloc(argument: Argument): void {
    const flags = argument.u32(HWPT.flags);
    const DIRTY_TRACKING = iommufd.IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
    const FAULT_VALID = iommufd.IOMMU_HWPT_FAULT_ID_VALID;
    if (argument.u32(HWPT.data_type) !== iommufd.IOMMU_HWPT_DATA_NONE || argument.u32(HWPT.data_len) !== 0)
      throw refuse('EINVAL', 'data');
    const { device } = this.#get(argument.u32(HWPT.dev_id), 'device');
    const ioas = this.#things.get(argument.u32(HWPT.pt_id));
    if (ioas?.type !== 'ioas') throw refuse('EINVAL', 'no address space');
    if ((flags & ~(DIRTY_TRACKING | FAULT_VALID)) !== 0) throw refuse('ENOTSUP', 'flags');
    const canTrack = (flags & DIRTY_TRACKING) !== 0;
    if (canTrack && !device.tracksDirtyPages) throw refuse('ENOTSUP', 'its IOMMU does not track dirty pages');
    const fault = (flags & FAULT_VALID) === 0 ? undefined : this.#get(argument.u32(HWPT.fault_id), 'fault');
    argument.set32(HWPT.out_hwpt_id, this.#makePageTable(ioas, device, { isAutomatic: false, canTrack, fault }).id);
  }

  #makePageTable(
    ioas: Ioas,
    { iommu }: IommufdDevice,
    what: Pick<PageTable, 'isAutomatic' | 'canTrack' | 'fault'>,
  ): PageTable {
    const id = this.#lastId + 1;
    const pageTable: PageTable = { type: 'hwpt', id, users: 0, ioas, iommu, tracking: false, ...what };
    reserve(ioas, pageTable, [{ start: 2 ** iommu.width, last: ALL_ONES }]);
    this.#add(pageTable);
    ioas.pageTables.add(pageTable);
    ioas.users++;
    if (what.fault !== undefined) what.fault.users++;
    return pageTable;
  }

  #destroyPageTable(pageTable: PageTable): void {
    const { ioas, fault } = pageTable;
    this.#things.delete(pageTable.id);
    ioas.pageTables.delete(pageTable);
    removeReserved(ioas, pageTable);
    ioas.users--;
    if (fault !== undefined) fault.users--;
  }

  #attachTo(bound: BoundDevice, pageTable: PageTable): number {
    const { device } = bound;
    if (!isCompatible(pageTable, device)) throw refuse('EINVAL', 'another IOMMU');
    for (const other of this.#things.values())
      if (other.type === 'device' && other !== bound && other.device.group === device.group)
        if (other.pageTable !== undefined && other.pageTable !== pageTable)
          throw refuse('EINVAL', 'its group is attached elsewhere');
    if (bound.pageTable !== undefined) throw refuse('EINVAL', 'the fake does not replace page tables');
    reserve(pageTable.ioas, bound, device.iommu.reserved);
    bound.pageTable = pageTable;
    pageTable.users++;
    return pageTable.id;
  }

  #hwInfo(argument: Argument): void {
    const { device } = this.#get(argument.u32(HW_INFO.dev_id), 'device');
    if (argument.u32(HW_INFO.flags) !== 0) throw refuse('ENOTSUP');
    argument.set32(HW_INFO.data_len, 0);
    argument.set64(HW_INFO.out_capabilities, device.tracksDirtyPages ? iommufd.IOMMU_HW_CAP_DIRTY_TRACKING : 0);
  }

  #setTracking(argument: Argument): void {
    const flags = argument.u32(TRACK.flags);
    if ((flags & ~iommufd.IOMMU_HWPT_DIRTY_TRACKING_ENABLE) !== 0) throw refuse('ENOTSUP');
    const pageTable = this.#get(argument.u32(TRACK.hwpt_id), 'hwpt');
    if (!pageTable.canTrack) throw refuse('ENOTSUP');
    pageTable.tracking = flags !== 0;
    if (pageTable.tracking) pageTable.ioas.table.dirty.clear();
  }

  #getDirty(argument: Argument): void {
    const flags = argument.u32(DIRTY.flags);
    if ((flags & ~iommufd.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR) !== 0) throw refuse('ENOTSUP');
    const pageTable = this.#get(argument.u32(DIRTY.hwpt_id), 'hwpt');
    const [iova, length, pageSize] = [DIRTY.iova, DIRTY.length, DIRTY.page_size].map((at) => Number(argument.u64(at)));
    if (length === 0 || !isPowerOfTwo(pageSize) || iova % pageSize !== 0 || length % pageSize !== 0)
      throw refuse('EINVAL');
    if (!pageTable.canTrack) throw refuse('ENOTSUP');
    const { dirty } = pageTable.ioas.table;
    const size = Math.ceil(length / pageSize / 8);
    this.#memory.bytes(bitmapAt(argument.u64(DIRTY.data), size), 0, size, (bitmap) => {
      for (const page of [...dirty]) {
        const at = Math.floor((page * 4096 - iova) / pageSize);
        if (at < 0 || at >= length / pageSize) continue;
        bitmap[Math.floor(at / 8)] |= 1 << (at % 8);
        if (flags === 0) dirty.delete(page);
      }
    });
  }

  #faultAlloc(argument: Argument): void {
    if (argument.u32(FAULT.flags) !== 0) throw refuse('ENOTSUP');
    // Its descriptor is a user.
    const queue: FaultQueue = { type: 'fault', users: 1, waiting: [], unanswered: new Set(), answers: [] };
    argument.set32(FAULT.out_fault_id, this.#add(queue));
    argument.set32(FAULT.out_fault_fd, this.#settings.faultDescriptor(queue));
  }
}

/** Copies what waits into `into`, whole groups only. */
export function readFaults(queue: FaultQueue, into: Uint8Array): number {
  if (into.length % iommufd.IOMMU_HWPT_PGFAULT.sizeof !== 0) throw refuse('ESPIPE');
  let done = 0;
  for (let [next] = queue.waiting; next !== undefined; [next] = queue.waiting) {
    if (next.bytes.length > into.length - done) {
      if (done === 0) throw refuse('EINVAL', 'the first group does not fit');
      break;
    }
    queue.waiting.shift();
    queue.unanswered.add(next.cookie);
    into.set(next.bytes, done);
    done += next.bytes.length;
  }
  return done;
}

/** Takes the answer in `from`. */
export function answerFault(queue: FaultQueue, from: Uint8Array): number {
  const { IOMMU_HWPT_PAGE_RESPONSE: RESPONSE } = iommufd;
  if (from.length !== RESPONSE.sizeof) throw refuse('ESPIPE');
  const response = new Argument(from);
  const [cookie, code] = [response.u32(RESPONSE.cookie), response.u32(RESPONSE.code)];
  if (code > iommufd.IOMMUFD_PAGE_RESP_INVALID || !queue.unanswered.delete(cookie)) throw refuse('EINVAL');
  queue.answers.push({ cookie, code });
  return from.length;
}

function alignmentOf({ pageTables }: Ioas): number {
  return Math.max(1, ...[...pageTables].map(({ iommu }) => lowestBit(iommu.pageSizes)));
}

function isCompatible({ iommu, canTrack }: PageTable, device: IommufdDevice): boolean {
  return (
    iommu.width === device.iommu.width &&
    iommu.pageSizes === device.iommu.pageSizes &&
    (!canTrack || device.tracksDirtyPages)
  );
}

/** EADDRINUSE when something is mapped there, or was promised. */
function reserve(ioas: Ioas, owner: object, spans: readonly IovaSpan[]): void {
  for (const span of spans) {
    const end = span.last === ALL_ONES ? Infinity : span.last + 1;
    if (
      ioas.table.mappings.overlapping(span.start, end) !== undefined ||
      ioas.allowed.some((each) => overlap(each, span))
    ) {
      removeReserved(ioas, owner);
      throw refuse('EADDRINUSE');
    }
    ioas.reserved.push({ span, owner });
  }
}

function removeReserved({ reserved }: Ioas, owner: object): void {
  for (let i = reserved.length - 1; i >= 0; i--) if (reserved[i].owner === owner) reserved.splice(i, 1);
}

function overlap(a: IovaSpan, b: IovaSpan): boolean {
  return a.start <= b.last && b.start <= a.last;
}
