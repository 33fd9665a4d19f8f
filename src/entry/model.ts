/** `anydma/model`: for writing emulated devices and serving them over vfio-user, and for running the built-in ones. */
import '../disposables.js';

export type {
  DeviceDma,
  DeviceModel,
  InterruptCounts,
  ModelFactory,
  ModelHost,
  ModelRegion,
  PciIdentity,
} from '../vfio-user/devices/model.js';
export type { VdevBus } from '../bus/vdev/vdev-bus.js';
export { serve, type ServeOptions, type Server, type ServerEvent } from '../vfio-user/server.js';
export { spawnDevice, type DeviceProcess, type SpawnOptions } from '../vfio-user/device-process.js';
export type { DeviceName, DeviceOptions } from '../vfio-user/devices/catalog.js';
export type { CopyEngineModelOptions } from '../vfio-user/devices/copy-engine.js';
export type { EduModelOptions } from '../vfio-user/devices/edu.js';
export type { NvmeModelOptions, NvmeNamespaceOptions } from '../vfio-user/devices/nvme/options.js';
export type { NvmeFault, NvmeFaultKind } from '../vfio-user/devices/nvme/faults.js';
