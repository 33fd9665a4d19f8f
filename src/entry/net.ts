/** `anydma/net`: Ethernet ports, packets in the elements of pools, captures, and the engine that forwards. */
import '../disposables.js';

export { HEADROOM, NONE, Packets, type ExternalBuffer, type PacketsOptions } from '../net/packets.js';
export type { DeviceBuffers } from '../net/device-buffers.js';
export { OFFLOAD } from '../net/offloads.js';
export { portOf } from '../net/port-of.js';
export type { Link, Port, PortConfig, PortEvent, PortLimits, PortStatistics } from '../net/port.js';
export { COUNT, PortBase, type CheckedConfig } from '../net/port-base.js';
export {
  Forwarder,
  TOPOLOGIES,
  type ForwarderOptions,
  type StreamStatistics,
  type Topology,
} from '../net/forwarder.js';
export { MODE_NAMES, type ModeName } from '../net/modes.js';
export { macBytes, macText } from '../net/mac-address.js';
export { CaptureReader } from '../net/capture/capture-reader.js';
export { CaptureWriter, captureKindOf, type CaptureKind } from '../net/capture/capture-writer.js';
export { writePacket } from '../net/capture/packet-writer.js';
export { LINK_ETHERNET, type CaptureFrame, type FrameFacts } from '../net/capture/capture-frame.js';
export { e1000eDriver } from '../drivers/e1000e/e1000e-driver.js';
export { nullPortDriver, pcapPortDriver, ringPortDriver, tapPortDriver } from '../drivers/ports/software-ports.js';
export type { TapPort } from '../drivers/ports/tap-port.js';
export { RingPort } from '../drivers/ports/ring-port.js';
export type { RingPair, RingPortBase } from '../drivers/ports/ring-port-base.js';
export { openOtherEnd, type NamedRings, type OtherEndOptions } from '../drivers/ports/other-end.js';
export { SoftwarePort } from '../drivers/ports/software-port.js';
export { virtioNetDriver } from '../drivers/virtio-net/virtio-net-driver.js';
