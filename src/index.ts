/** Map any memory for DMA on any device. Start with {@link Eal.start}. */
import './disposables.js';

export { Eal, type EalEvents, type EalOptions, type ProbeOptions } from './eal.js';

export { DmaError, ERRNO, errorCode, isDmaError } from './errors.js';
export type { DmaErrorDetails, ErrorCode, ErrorRange } from './errors.js';
export {
  GiB,
  KiB,
  MiB,
  TiB,
  formatSize,
  hex,
  parseSize,
  type Iova,
  type IovaLike,
  type Va,
  type VaLike,
} from './units.js';
export { Range } from './ranges.js';
export type { LongWorkOptions, Progress } from './long-work.js';

export type { Area, AreaOwner, Backing, IovaRun } from './memory/area.js';
export type {
  AllocateOptions,
  External,
  ExternalMemory,
  ExternalSource,
  FromAddressOptions,
  FromFdOptions,
  RegisteredPages,
  RegisterOptions,
} from './memory/external.js';

export type { MemoryPart } from './memory/part.js';
export type { LendOptions, Pin } from './memory/pins.js';
export type { MemoryUser } from './memory/users.js';
export type { RetiredCount, RetiredFacts } from './memory/retired.js';
export type { Block, Heap, HeapMemory, HeapStatistics } from './memory/heap/heap.js';
export type { MallocOptions } from './memory/heap/malloc-request.js';
export type { PlacedMallocOptions } from './memory/owned/heap-choice.js';
export type { Heaps } from './memory/heap/heaps.js';
export type { HugeUnlink } from './memory/owned/hugepage-files.js';
export type { IovaDecision, IovaFacts, IovaMode, IovaVote } from './memory/iova-mode.js';
export type { GrowthRequest, MemoryChange, MemoryHandler, MemoryValidator } from './memory/memory-events.js';
export type { MemoryOptions } from './memory/owned/memory-settings.js';
export type { ElementShape, PoolChunk } from './memory/pool/pool-layout.js';
export { Pool, type PoolDescription, type PoolDevice } from './memory/pool/pool.js';
export type { PoolHandler, PoolOptions, Pools } from './memory/pool/pools.js';
export type { Zone, Zones } from './memory/owned/zones.js';
export type { OwnedMallocOptions, OwnedMemory, OwnedMemoryFacts, PageListFacts } from './memory/owned/owned.js';

export type {
  AddressSpace,
  Constraints,
  DmaAccess,
  MapKeys,
  Paging,
  RegionTraits,
  RemoteAccess,
  Segment,
} from './dma/address-space.js';
export type { BookSettings, Domain, MapAsyncOptions } from './dma/domain.js';
export type { Explanation, ExplanationKind } from './dma/explain.js';
export type { MappedSegment, Mapping } from './dma/mapping.js';
export type { MapOptions } from './dma/plan.js';
export type { TranslationTable } from './dma/translation-table.js';

export type {
  AddressedMemory,
  Bus,
  Device,
  DeviceFault,
  DeviceState,
  Driver,
  ExplainedFault,
  FaultOptions,
  IdMatch,
  OpenedDevice,
  OpenOptions,
  ProbeContext,
} from './bus/model.js';
export type { DeviceAccess, InterruptKind, Interrupts, RegionInfo } from './bus/device-access.js';
export type { Description, DescriptionPart, DescriptionTable, TableCell, TableColumn } from './bus/description.js';
export type { MapOnMiss, MapOnMissOptions, MissUnit } from './bus/map-on-miss.js';
export type { MappablePool, PoolMapping } from './bus/map-pool.js';
export type { GroupMapping } from './bus/fan-out.js';
export type { VdevBus } from './bus/vdev/vdev-bus.js';

export type { Container, ContainerChoice, ContainerKind, ContainerOptions, Containers } from './vfio/containers.js';
export type { DirtyPages, DirtyTracking } from './vfio/dirty.js';
export type { PageRequest, PageRequestQueue } from './vfio/page-requests.js';

export { CopyEngine, copyError } from './drivers/copy-engine.js';
export { copyEngineDriver } from './drivers/copy-engine-driver.js';
export { Edu } from './drivers/edu.js';
export { eduDriver } from './drivers/edu-driver.js';
export { rawDriver } from './drivers/raw-driver.js';

export type { Platform } from './platform/ports.js';
export type { Registers } from './platform/registers/registers.js';

// Types that the signatures above use.
export type { ElementNumbers } from './memory/pool/element-stack.js';
export type { CopyEngineOptions, CopyEngineRings, RingMemory } from './drivers/copy-engine.js';
export type { EduOptions } from './drivers/edu.js';
export type { PoolCache } from './memory/pool/pool-cache.js';
export type { Origin } from './origin.js';
export type { PopulateOptions } from './memory/external.js';
