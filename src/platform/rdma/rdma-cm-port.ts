/**
 * The RDMA connection manager. Each method is a function of librdmacm; see `man rdma_cm`. It resolves the route to
 * another machine by its IP address and negotiates a connection. The verbs port creates the queue pairs, and their
 * numbers are passed here: librdmacm's own `rdma_create_qp` works only on devices that it opened itself.
 *
 * For iWARP the kernel connects the queue pair; for InfiniBand and RoCE the caller does, with {@link
 * RdmaCmPort.qpAttributes}. Errors are as in all ports; `operation` is the function of librdmacm.
 */
import type { VerbsHandle, VerbsQpAttributes } from './verbs-types.js';

/** An IP address and a port number of RDMA's own port space. */
export interface CmAddress {
  /** IPv4 or IPv6 in the usual notation; link-local with the interface name, such as `fe80::1%eth0` */
  readonly host: string;
  readonly port: number;
}

/** The source of events. Released by `RdmaCmPort.destroyChannel`. */
export interface CmChannel extends VerbsHandle {
  /** Readable when `RdmaCmPort.nextEvent` has an event. Non-blocking; owned by the channel. */
  readonly fd: number;
}

/** A listener or a connection, like a socket. Released by `RdmaCmPort.destroyId`. */
export interface CmId extends VerbsHandle {
  readonly channel: CmChannel;
}

/** Parameters of a connection request or its acceptance. */
export interface CmParameters {
  /** The number of the queue pair, 24 bits */
  readonly queuePair: number;
  /** Data for the peer's program; 0 to 196 bytes, fewer in some messages: 56 for a request on InfiniBand and RoCE */
  readonly data: Uint8Array;
  /** Outstanding reads and atomics that it accepts as responder */
  readonly responderDepth: number;
  /** Outstanding reads and atomics as initiator */
  readonly initiatorDepth: number;
  /** at most 7. Ignored when accepting, as it is on iWARP. */
  readonly retries: number;
  /** at most 7 */
  readonly rnrRetries: number;
}

/** An event of an id. */
export interface CmEvent {
  /** The type by name without `RDMA_CM_EVENT_`, such as `CONNECT_REQUEST`, `REJECTED` */
  readonly name: string;
  /** 0, a negative errno, or for `REJECTED` a reason code of the transport */
  readonly status: number;
  /** For `CONNECT_REQUEST` a new id, owned by the caller */
  readonly id: CmId;
  /** The listening id, for `CONNECT_REQUEST` */
  readonly listener: CmId | undefined;
  /** Data from the peer's program; on InfiniBand and RoCE padded with zeros */
  readonly data: Uint8Array;
  /** Responder depth for this side, in `CONNECT_REQUEST`, `CONNECT_RESPONSE` and `ESTABLISHED` */
  readonly responderDepth: number;
  readonly initiatorDepth: number;
}

/**
 * The connection manager, through librdmacm. The library is loaded on first use; if it can not be loaded, every method
 * throws ENOTSUP.
 */
export interface RdmaCmPort {
  /** Why it is not available and what to install, as a clause; `undefined` if it is. Loads the library. */
  readonly limitation: string | undefined;

  /**
   * rdma_create_event_channel. ENODEV, ENOENT or EACCES if `/dev/infiniband/rdma_cm` does not exist, or this user may
   * not open it.
   */
  createChannel(): CmChannel;
  /** Close all watches of its descriptor first. EBUSY while an id uses it. */
  destroyChannel(channel: CmChannel): void;
  /** Takes, copies and acknowledges the next event; `undefined` if there is none. */
  nextEvent(channel: CmChannel): CmEvent | undefined;

  /** rdma_create_id for connections (RDMA_PS_TCP). */
  createId(channel: CmChannel): CmId;
  /** rdma_destroy_id. Ends its connection, and rejects an unanswered request. */
  destroyId(id: CmId): void;
  /** rdma_bind_addr. Port 0 takes any free port. ENODEV if no device has the address, EADDRINUSE. */
  bind(id: CmId, address: CmAddress): void;
  /** rdma_listen. EADDRINUSE. */
  listen(id: CmId, backlog: number): void;
  /**
   * rdma_resolve_addr: starts to resolve the device and local address for a destination; `ADDR_RESOLVED` or
   * `ADDR_ERROR` follows.
   */
  resolveAddress(id: CmId, to: CmAddress, timeoutMs: number): void;
  /** rdma_resolve_route: starts to resolve the route; `ROUTE_RESOLVED` or `ROUTE_ERROR` follows. */
  resolveRoute(id: CmId, timeoutMs: number): void;
  /** The name of the device that it is bound to; `undefined` before that. */
  device(id: CmId): string | undefined;
  /** The local address. */
  local(id: CmId): CmAddress | undefined;
  /** The peer's address. */
  remote(id: CmId): CmAddress | undefined;
  /** rdma_init_qp_attr: the attributes for `VerbsPort.modifyQp` to bring its queue pair into `state` (IBV_QPS_*). */
  qpAttributes(id: CmId, state: number): VerbsQpAttributes;
  /**
   * rdma_connect. `CONNECT_RESPONSE` (InfiniBand, RoCE: then call {@link establish}) or `ESTABLISHED` (iWARP) follows,
   * or `REJECTED`, `UNREACHABLE`, `CONNECT_ERROR`. May wait for the other machine (siw does); ECONNREFUSED at once if
   * nobody listens there.
   */
  connect(id: CmId, parameters: CmParameters): void;
  /** rdma_accept of a `CONNECT_REQUEST`; `ESTABLISHED` or `CONNECT_ERROR` follows. */
  accept(id: CmId, parameters: CmParameters): void;
  /** rdma_establish: tells the peer, which then gets `ESTABLISHED`, that the queue pair is ready. */
  establish(id: CmId): void;
  /** rdma_reject of a `CONNECT_REQUEST`. */
  reject(id: CmId, data: Uint8Array): void;
  /** rdma_disconnect; `DISCONNECTED` follows on both sides. */
  disconnect(id: CmId): void;
}
