/**
 * `anydma/driver`: for writing drivers, buses and address spaces, with the interfaces that drivers use: registers,
 * regions and interrupts. Also the classes of the built-in drivers.
 */
import '../disposables.js';

export {
  TRY_NEXT,
  type Bus,
  type DeviceFault,
  type Driver,
  type IdMatch,
  type OpenedDevice,
  type OpenOptions,
  type ProbeContext,
  type TakenDevice,
  type TakenInstance,
} from '../bus/model.js';
export type { Description, DescriptionPart, DescriptionTable, TableCell, TableColumn } from '../bus/description.js';
export {
  PCI_REGION,
  type DeviceAccess,
  type InterruptKind,
  type Interrupts,
  type RegionInfo,
} from '../bus/device-access.js';
export type { Registers } from '../platform/registers/registers.js';
export { openPlatform } from '../platform/open.js';
export type { Platform } from '../platform/ports.js';

export type { Fields, JsonObject, Json } from '../fields.js';
export type { Paused } from '../handed.js';
export { ERRNO, errorCode, type DmaErrorDetails, type ErrorRange } from '../errors.js';

export type {
  AddressSpace,
  Backing,
  Constraints,
  MapKeys,
  Paging,
  RegionTraits,
  RemoteAccess,
  Segment,
} from '../dma/address-space.js';
export type { ElementUser, MemoryUser } from '../memory/users.js';
export type { IovaDecision, IovaMode } from '../memory/iova-mode.js';
export type { SharedKind } from '../memory/shared/shared.js';
export type { AttachedDomain } from '../bus/attached-device.js';
export type { AttachedTable } from '../dma/attached-table.js';
export type { PoolDevice } from '../memory/pool/pool.js';
export type { ContainerChoice, ContainerKind } from '../vfio/containers.js';
export type { DirtyPages, DirtyTracking } from '../vfio/dirty.js';
export type { PageRequest, PageRequestQueue } from '../vfio/page-requests.js';

export {
  AttachedCopyEngine,
  COPY_ABANDONED,
  CopyEngine,
  copyError,
  type CopyEngineResults,
  type CopyEngineOptions,
  type CopyEngineRings,
  type RingMemory,
} from '../drivers/copy-engine.js';
export { Edu, type EduOptions } from '../drivers/edu.js';
