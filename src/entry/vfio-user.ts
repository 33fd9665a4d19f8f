/** `anydma/vfio-user`: the client of the protocol, for programs that talk to a served device without an `Eal`. */
import '../disposables.js';

export {
  VfioUserClient,
  type CallOptions,
  type ClientOptions,
  type ClientRegion,
  type DmaRegion,
  type DmaTarget,
  type InterruptRequest,
  type MmapChoice,
  type ShareChoice,
  type StoresChoice,
} from '../vfio-user/client.js';
export type { Capabilities, DeviceInfo, IrqDescription, RegionDescription, SparseArea } from '../vfio-user/messages.js';
