/** Map any memory for DMA on any device. Start with {@link Eal.start}. */
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

export type { LendOptions, Pin } from './memory/pins.js';
export type { RetiredCount, RetiredFacts } from './memory/retired.js';
export type { Block, Heap, HeapMemory, HeapStatistics, MallocOptions } from './memory/heap/heap.js';
export type { PlacedMallocOptions } from './memory/owned/heap-choice.js';
export type { Heaps, HeapSettings, RawMemory } from './memory/heap/heaps.js';
export type { HugeUnlink } from './memory/owned/hugepage-files.js';
export type { IovaDecision, IovaMode, IovaVote } from './memory/iova-mode.js';
export type { GrowthRequest, MemoryChange, MemoryHandler, MemoryValidator } from './memory/memory-events.js';
export type { MemoryOptions } from './memory/owned/memory-settings.js';
export type { PoolChunk } from './memory/pool/pool-layout.js';
export { Pool, type PoolDescription, type PoolDevice } from './memory/pool/pool.js';
export type { PoolHandler, PoolOptions, Pools } from './memory/pool/pools.js';
export type { Zone, Zones } from './memory/owned/zones.js';
export type { OwnedMallocOptions, OwnedMemory, OwnedMemoryFacts, PageListFacts } from './memory/owned/owned.js';

export type {
  DmaAccess,
  AddressSpace,
  Constraints,
  MapKeys,
  Paging,
  RegionTraits,
  RemoteAccess,
  Segment,
} from './dma/address-space.js';
export { Domain, type DomainOptions, type MapAsyncOptions } from './dma/domain.js';
export type { Explanation, ExplanationKind } from './dma/explain.js';
export { Mapping, type MappedSegment } from './dma/mapping.js';
export type { MapOptions, MapTarget } from './dma/plan.js';
export type { TranslationTable } from './dma/translation-table.js';

export {
  type AddressedMemory,
  type Bus,
  type Device,
  type DeviceFault,
  type DeviceState,
  type Driver,
  type ExplainedFault,
  type FaultOptions,
  type IdMatch,
  type OpenedDevice,
  type ProbeContext,
  TRY_NEXT,
} from './bus/model.js';
export {
  PCI_REGION,
  type DeviceAccess,
  type InterruptKind,
  type Interrupts,
  type RegionInfo,
} from './bus/device-access.js';
export type { GroupMapping } from './bus/fan-out.js';
export type { VdevBus } from './bus/vdev/vdev-bus.js';

export type { Container, ContainerChoice, ContainerKind, ContainerOptions, Containers } from './vfio/containers.js';

export { CopyEngine, copyError, type CopyOptions } from './drivers/copy-engine.js';
export { copyEngineDriver } from './drivers/copy-engine-driver.js';
export { Edu } from './drivers/edu.js';
export { eduDriver } from './drivers/edu-driver.js';
export { rawDriver } from './drivers/raw-driver.js';
export { verbsDriver } from './drivers/verbs-driver.js';

export type { AddressHandle } from './rdma/address-handle.js';
export { PROMISE_IDS, type CompletionQueue, type CompletionQueueOptions } from './rdma/completion-queue.js';
export type { DmabufOptions, RdmaDevice, RdmaGid, RdmaPort } from './rdma/device.js';
export {
  connectToPeer,
  EXCHANGE_VERSION,
  listenForPeers,
  PeerServer,
  PeerSession,
  type AnnouncedMemory,
  type Answer,
  type ExchangeOptions,
  type Hello,
} from './rdma/exchange.js';
export { ReceiveRing, type RingMessage } from './rdma/receive-ring.js';
export type {
  CmAcceptOptions,
  CmConnectOptions,
  CmListenOptions,
  CmServe,
  ConnectionRequest,
  RdmaConnection,
  RdmaListener,
} from './rdma/connect-cm.js';
export type { CmAddress } from './platform/rdma/rdma-cm-port.js';
export type { ExtraRegion } from './rdma/extra-region.js';
export type { MemoryWindow, WindowBinding } from './rdma/memory-window.js';
export type {
  ConnectAsyncOptions,
  ConnectOptions,
  Destination,
  LocalMemory,
  PeerExplainer,
  QueuePair,
  QueuePairAddress,
  QueuePairOptions,
  Received,
  RemoteMemory,
} from './rdma/queue-pair.js';

export type { Platform } from './platform/ports.js';
export { completionStatusName, Completions, ReceiveRequests, SendRequests } from './platform/rdma/verbs-work.js';
export type { VerbsAsyncEvent, VerbsDevice, VerbsDeviceAttributes } from './platform/rdma/verbs-types.js';
export type { Registers } from './platform/registers/registers.js';
export type {
  DeviceDma,
  DeviceModel,
  InterruptCounts,
  ModelFactory,
  ModelHost,
  ModelRegion,
  PciIdentity,
} from './vfio-user/devices/model.js';
export { serve, type ServeOptions } from './vfio-user/server.js';
export { spawnDevice, type DeviceProcess } from './vfio-user/device-process.js';
export { type MmapChoice, type ShareChoice, VfioUserClient } from './vfio-user/client.js';

// What signatures of the above mention.
export type { DeviceChange, RegistryOptions } from './bus/registry.js';
export type { KeyCache, KeyCacheOptions, KeyOrder, KeyedPool } from './dma/key-cache.js';
export type { Claim, Entry, EntryState } from './dma/ledger.js';
export type { CopyEngineOptions, CopyEngineRings, RingMemory } from './drivers/copy-engine.js';
export type { EduOptions } from './drivers/edu.js';
export type { AreaIndex } from './memory/area-index.js';
export type { ElementNumbers } from './memory/pool/element-stack.js';
export type { IovaFacts } from './memory/iova-mode.js';
export type { PoolCache } from './memory/pool/pool-cache.js';
export type { ElementShape } from './memory/pool/pool-layout.js';
export type { Origin } from './origin.js';
export type { RdmaContext, Region, RegionUser } from './rdma/context.js';
export type { ReceiveRingOptions } from './rdma/receive-ring.js';
export type {
  CallOptions,
  ClientOptions,
  ClientRegion,
  DmaRegion,
  DmaTarget,
  InterruptRequest,
} from './vfio-user/client.js';
export type { SpawnOptions } from './vfio-user/device-process.js';
export type { DeviceName, DeviceOptions } from './vfio-user/devices/catalog.js';
export type { CopyEngineModelOptions } from './vfio-user/devices/copy-engine.js';
export type { EduModelOptions } from './vfio-user/devices/edu.js';
export type { Capabilities, DeviceInfo, IrqDescription, RegionDescription, SparseArea } from './vfio-user/messages.js';
export type { Server, ServerEvent } from './vfio-user/server.js';
export type { PopulateOptions } from './memory/external.js';
