/**
 * `anydma/rdma`: RDMA devices through libibverbs: queue pairs, completion queues, memory windows, and connecting two
 * ends.
 */
import '../disposables.js';

export { verbsDriver } from '../drivers/verbs-driver.js';

export type { DmabufOptions, RdmaDevice, RdmaGid, RdmaPort } from '../rdma/device.js';
export type { AddressHandle } from '../rdma/address-handle.js';
export { PROMISE_IDS, type CompletionQueue, type CompletionQueueOptions } from '../rdma/completion-queue.js';
export type { ExtraRegion } from '../rdma/extra-region.js';
export type { MemoryWindow } from '../rdma/memory-window.js';
export type { ConnectOptions, QueuePairAddress, QueuePairOptions } from '../rdma/queue-pair-options.js';
export type {
  Destination,
  PeerExplainer,
  QueuePairShareOptions,
  Received,
  RemoteMemory,
} from '../rdma/queue-pair-requests.js';
export { AttachedQueuePair } from '../rdma/attached-queue-pair.js';
export type { QueuePair } from '../rdma/queue-pair.js';
export { ReceiveRing, type ReceiveRingOptions, type RingMessage } from '../rdma/receive-ring.js';
export { completionStatusName } from '../platform/rdma/verbs-work.js';
export type { Completions, ReceiveRequests, Requests, SendRequests } from '../platform/rdma/verbs-work.js';
export type {
  VerbsAsyncEvent,
  VerbsDevice,
  VerbsDeviceAttributes,
  VerbsGid,
  VerbsPortAttributes,
  VerbsQpStatus,
} from '../platform/rdma/verbs-types.js';

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
} from '../rdma/exchange.js';
export type {
  CmAcceptOptions,
  CmConnectOptions,
  CmListenOptions,
  CmServe,
  ConnectionRequest,
  RdmaConnection,
  RdmaListener,
} from '../rdma/connect-cm.js';
export type { CmAddress } from '../platform/rdma/rdma-cm-port.js';

export type { KeyCache } from '../dma/key-cache.js';
