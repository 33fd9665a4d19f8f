/**
 * Map any memory for DMA on any device. Start with {@link Eal.start}.
 *
 * This entry exports what every program needs. Types that appear in its signatures, but that few programs name, are
 * exported by the entry of their subject: `anydma/driver`, `anydma/model`, `anydma/rdma`.
 */
import './disposables.js';

export { Eal, type EalEvents, type EalOptions, type HandOverOptions, type TakeOverOptions } from './eal.js';

export { DmaError, isDmaError, type ErrorCode } from './errors.js';
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
export { attach } from './share/attach.js';
export type { Shared } from './memory/shared/shared.js';
export type { AttachedMemory } from './memory/attached-memory.js';
export type { AttachedMapping } from './dma/attached-mapping.js';
export type { AttachedDevice } from './bus/attached-device.js';
export { Range } from './ranges.js';
export type { LongWorkOptions, Progress } from './long-work.js';
export type { Origin } from './origin.js';

// Memory.
export type { Area, IovaRun } from './memory/area.js';
export type { MemoryPart } from './memory/part.js';
export type { LendOptions, Pin } from './memory/pins.js';
export type { AllocateOptions, External, ExternalMemory, FromFdOptions, RegisterOptions } from './memory/external.js';
export type { Block, Heap, HeapStatistics } from './memory/heap/heap.js';
export type { MallocOptions } from './memory/heap/malloc-request.js';
export type { Heaps } from './memory/heap/heaps.js';
export type { Zone, Zones } from './memory/owned/zones.js';
export { Pool, type PoolDescription } from './memory/pool/pool.js';
export type { PoolCache } from './memory/pool/pool-cache.js';
export type { PoolChunk } from './memory/pool/pool-layout.js';
export type { PoolHandler, PoolOptions, Pools } from './memory/pool/pools.js';
export { Ring } from './memory/pool/ring.js';
export type { MemoryOptions } from './memory/owned/memory-settings.js';
export type { OwnedMemory, OwnedMemoryFacts } from './memory/owned/owned.js';
export type { MemoryChange, MemoryHandler, MemoryValidator } from './memory/memory-events.js';

// Devices and mappings.
export type { Device, ExplainedFault } from './bus/model.js';
export type { DmaAccess } from './dma/address-space.js';
export type { MapOptions } from './dma/plan.js';
export type { Domain, MapAsyncOptions } from './dma/domain.js';
export type { Mapping } from './dma/mapping.js';
export type { GroupMapping } from './bus/fan-out.js';
export type { PoolMapping } from './bus/map-pool.js';
export type { MapOnMiss } from './bus/map-on-miss.js';
export type { Explanation } from './dma/explain.js';
export type { TranslationTable } from './dma/translation-table.js';
export type { Container, ContainerOptions, Containers } from './vfio/containers.js';

// Built-in drivers.
export { copyEngineDriver } from './drivers/copy-engine-driver.js';
export { eduDriver } from './drivers/edu-driver.js';
export { rawDriver } from './drivers/raw-driver.js';
