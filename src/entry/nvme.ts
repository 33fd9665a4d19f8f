/**
 * `anydma/nvme`: NVMe controllers: read and write namespaces with any memory, send any command, and use queues in hot
 * paths.
 */
import '../disposables.js';

export { nvmeDriver } from '../drivers/nvme/nvme-driver.js';
export { Nvme, type NvmeLimits, type NvmeQueueOptions, type NvmeSettings } from '../drivers/nvme/nvme.js';
export {
  NvmeNamespace,
  type NvmeBlocks,
  type NvmeCompareOptions,
  type NvmeNamespaceCapabilities,
  type NvmeProtection,
  type NvmeRange,
  type NvmeReadOptions,
  type NvmeWriteOptions,
} from '../drivers/nvme/namespace.js';
export { ABORTED_BY_HOST, NvmeQueue, type AttachedNvmeQueue } from '../drivers/nvme/queue.js';
export { NvmeError, statusError, type NvmeFailure, type NvmeOutcome } from '../drivers/nvme/nvme-error.js';
export type { NvmeEvent } from '../drivers/nvme/events.js';
export type { BounceMemory } from '../drivers/nvme/bounce.js';
export type { NvmeMemory } from '../drivers/nvme/data-pointer.js';
export type {
  AttachedNvmeNamespace,
  AttachedReadOptions,
  AttachedWriteOptions,
} from '../drivers/nvme/attached-namespace.js';
export type { NvmeCallOptions } from '../drivers/nvme/call-options.js';
export type { NvmeResult } from '../drivers/nvme/operation.js';
export type { NvmeCommand } from '../drivers/nvme/requests.js';
export type { NvmeStreamOptions } from '../drivers/nvme/streams.js';
export type { NvmeAppendOptions, NvmeZone, NvmeZoneLimits, ZoneAction, ZoneCalls } from '../drivers/nvme/zones.js';

// The words of the specification.
export { ADMIN, CNS, COMMAND_SET, EVENT_CONFIG, FEATURE, IO_CDW12, LOG, NVM } from '../nvme/commands.js';
export { STATUS, STATUS_FIELD, statusOf, type NvmeStatus } from '../nvme/status.js';
export { LPA, OACS, ONCS } from '../nvme/identify.js';
export type { NvmeControllerIdentity, NvmeDescriptors, NvmeFormat, NvmeNamespaceIdentity } from '../nvme/identify.js';
export { CRITICAL_WARNING, errorEntriesOf, firmwareOf, healthOf } from '../nvme/log-pages.js';
export type { NvmeErrorEntry, NvmeFirmware, NvmeHealth } from '../nvme/log-pages.js';
