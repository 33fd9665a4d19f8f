/**
 * What the library asks of the RDMA connection manager: the functions of librdmacm, whose manual pages (`man rdma_cm`) say
 * what each does. It finds the way to another machine by its IP address and agrees on a connection; the queue pairs are made
 * by the port for verbs, and named to it by their numbers: its own `rdma_create_qp` would only work on its own open devices.
 *
 * For iWARP the kernel then connects the queue pair itself; for InfiniBand and RoCE the caller does, by
 * {@link RdmaCmPort.qpAttributes}. Errors are those of all ports; `operation` is the function of librdmacm.
 */
import type { VerbsHandle, VerbsQpAttributes } from './verbs-types.js';

/** An IP address and port, in RDMA's own space of ports. */
export interface CmAddress {
  /** IPv4 or IPv6 in the usual notation; of link-local ones with the interface's name, such as `fe80::1%eth0` */
  readonly host: string;
  readonly port: number;
}

/** Where events come from. Given back by `RdmaCmPort.destroyChannel`. */
export interface CmChannel extends VerbsHandle {
  /** Readable when `RdmaCmPort.nextEvent` has something. Does not block. It belongs to the channel. */
  readonly fd: number;
}

/** A listener or a connection, as sockets are. Given back by `RdmaCmPort.destroyId`. */
export interface CmId extends VerbsHandle {
  readonly channel: CmChannel;
}

/** What a connection is asked for, or accepted, with. */
export interface CmParameters {
  /** The number of the queue pair, 24 bits */
  readonly queuePair: number;
  /** For the program at the other side; 0 to 196 bytes, fewer on some ways: 56 for a request on InfiniBand and RoCE */
  readonly data: Uint8Array;
  /** Reads and atomics under way that it answers */
  readonly responderDepth: number;
  /** The same as the one that asks */
  readonly initiatorDepth: number;
  /** at most 7. Ignored when accepting, as it is on iWARP. */
  readonly retries: number;
  /** at most 7 */
  readonly rnrRetries: number;
}

/** Something that happened to an id. */
export interface CmEvent {
  /** The type by name without `RDMA_CM_EVENT_`, such as `CONNECT_REQUEST`, `REJECTED` */
  readonly name: string;
  /** 0, a negative error number, or of `REJECTED` a reason of the transport's */
  readonly status: number;
  /** Of a `CONNECT_REQUEST` a new one, which is the caller's */
  readonly id: CmId;
  /** The one that listens, of a `CONNECT_REQUEST` */
  readonly listener: CmId | undefined;
  /** What the program at the other side sent along; on InfiniBand and RoCE with zeros behind */
  readonly data: Uint8Array;
  /** What the other side leaves to this one, of `CONNECT_REQUEST`, `CONNECT_RESPONSE` and `ESTABLISHED` */
  readonly responderDepth: number;
  readonly initiatorDepth: number;
}

/** The connection manager, through librdmacm, which is loaded on first use; where it can not be, every method is ENOTSUP. */
export interface RdmaCmPort {
  /** Why it can not be used, in a clause, with what to install; `undefined` where it can. Loads the library. */
  readonly limitation: string | undefined;

  /** rdma_create_event_channel. ENODEV, ENOENT or EACCES when the kernel has no `/dev/infiniband/rdma_cm`, or not for this user. */
  createChannel(): CmChannel;
  /** Nobody may watch its descriptor any more. EBUSY while an id uses it. */
  destroyChannel(channel: CmChannel): void;
  /** Takes the next event, copies and acknowledges it; `undefined` when there is none. */
  nextEvent(channel: CmChannel): CmEvent | undefined;

  /** rdma_create_id for connections (RDMA_PS_TCP). */
  createId(channel: CmChannel): CmId;
  /** rdma_destroy_id. Ends its connection, and refuses a request that was not answered. */
  destroyId(id: CmId): void;
  /** rdma_bind_addr. Port 0 takes any that is free. ENODEV when no device has the address, EADDRINUSE. */
  bind(id: CmId, address: CmAddress): void;
  /** rdma_listen. EADDRINUSE. */
  listen(id: CmId, backlog: number): void;
  /** rdma_resolve_addr: begins to look for the device that leads there, and its own address; `ADDR_RESOLVED` or `ADDR_ERROR` follows. */
  resolveAddress(id: CmId, to: CmAddress, timeoutMs: number): void;
  /** rdma_resolve_route: begins to look for the way; `ROUTE_RESOLVED` or `ROUTE_ERROR` follows. */
  resolveRoute(id: CmId, timeoutMs: number): void;
  /** The name of the device that it is bound to; `undefined` as long as it is not. */
  device(id: CmId): string | undefined;
  /** Its own address. */
  local(id: CmId): CmAddress | undefined;
  /** The other side's address. */
  remote(id: CmId): CmAddress | undefined;
  /** rdma_init_qp_attr: what `VerbsPort.modifyQp` is to be given to bring its queue pair into `state` (IBV_QPS_*). */
  qpAttributes(id: CmId, state: number): VerbsQpAttributes;
  /**
   * rdma_connect. `CONNECT_RESPONSE` (InfiniBand, RoCE: then {@link establish}) or `ESTABLISHED` (iWARP) follows, or `REJECTED`,
   * `UNREACHABLE`, `CONNECT_ERROR`. May wait for the other machine (siw does); ECONNREFUSED at once when nobody listens there.
   */
  connect(id: CmId, parameters: CmParameters): void;
  /** rdma_accept of a `CONNECT_REQUEST`; `ESTABLISHED` or `CONNECT_ERROR` follows. */
  accept(id: CmId, parameters: CmParameters): void;
  /** rdma_establish: tells the other side, which then has `ESTABLISHED`, that the queue pair is ready. */
  establish(id: CmId): void;
  /** rdma_reject of a `CONNECT_REQUEST`. */
  reject(id: CmId, data: Uint8Array): void;
  /** rdma_disconnect; `DISCONNECTED` follows, here and at the other side. */
  disconnect(id: CmId): void;
}
