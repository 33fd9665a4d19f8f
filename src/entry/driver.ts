/** `anydma/driver`: to write drivers, buses and address spaces. */
import '../disposables.js';

export {
  TRY_NEXT,
  type Bus,
  type Device,
  type DeviceFault,
  type Driver,
  type IdMatch,
  type OpenedDevice,
  type OpenOptions,
  type ProbeContext,
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
export type {
  AddressSpace,
  Backing,
  Constraints,
  DmaAccess,
  MapKeys,
  Paging,
  RegionTraits,
  RemoteAccess,
  Segment,
} from '../dma/address-space.js';
