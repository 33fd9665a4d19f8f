/** RDMA devices and the objects created on them, in the terms of libibverbs. Constants named IBV_* are in `abi/`. */
import type { Va } from '../../units.js';

/**
 * An object created by a `VerbsPort`. The caller owns it and releases it by the method named at its type, in reverse
 * order of creation: EBUSY while another object needs it.
 */
export interface VerbsHandle {
  /** Address of its C struct; 0 once it was released. */
  readonly address: number;
}

/** An RDMA device in the list of this machine's devices. */
export interface VerbsDevice {
  /** The kernel's name, such as `mlx5_0`, `rxe0` */
  readonly name: string;
  /** The node's GUID in the kernel's notation, such as `5054:00ff:fe12:3456` */
  readonly guid: string;
  readonly node: 'unknown' | 'ca' | 'switch' | 'router' | 'rnic' | 'usnic' | 'usnic-udp' | 'unspecified';
  readonly transport: 'unknown' | 'ib' | 'iwarp' | 'usnic' | 'usnic-udp' | 'unspecified';
  /** The device in sysfs: `/sys/class/infiniband/NAME` */
  readonly path: string;
  /** Its character device: `/dev/infiniband/uverbsN` */
  readonly devicePath: string;
  /** The real path of its parent in sysfs, such as the PCI device; undefined for software devices. */
  readonly parent: string | undefined;
}

/** An open device. Released by `VerbsPort.close`. */
export interface VerbsContext extends VerbsHandle {
  /** The device's name */
  readonly name: string;
  /** Readable when `VerbsPort.nextAsyncEvent` has an event. Non-blocking; owned by the context. */
  readonly asyncFd: number;
  /** How many completion vectors there are: interrupts that completion queues can be distributed over */
  readonly vectors: number;
}

/** Features and limits of a device. Counts are the device's limits; the system may have fewer resources. */
export interface VerbsDeviceAttributes {
  /** The firmware's version; may be empty */
  readonly firmware: string;
  readonly nodeGuid: string;
  readonly systemGuid: string;
  readonly vendorId: number;
  readonly vendorPart: number;
  readonly hardwareVersion: number;
  /** Ports are numbered from 1 to this */
  readonly ports: number;
  /** Largest memory region in bytes; rounded above 2^53 */
  readonly maxMrLength: number;
  /** Page sizes that the device supports, in bytes, ascending */
  readonly pageSizes: readonly number[];
  readonly maxMrs: number;
  readonly maxMws: number;
  readonly maxPds: number;
  readonly maxQps: number;
  /** Most requests in a queue of a queue pair */
  readonly maxRequests: number;
  /** Most segments (SGEs) of a request; for read requests, {@link maxReadSges} */
  readonly maxSges: number;
  readonly maxReadSges: number;
  readonly maxCqs: number;
  /** Most completions in a completion queue */
  readonly maxCqEntries: number;
  readonly maxAhs: number;
  /** Reads and atomics that a queue pair can have outstanding as initiator */
  readonly maxInitiatorDepth: number;
  /** Reads and atomics that it can have outstanding as responder */
  readonly maxResponderDepth: number;
  readonly atomics: 'none' | 'device' | 'global';
  /** IBV_DEVICE_* */
  readonly capabilities: number;
  /** On-demand paging; all 0 if not supported */
  readonly odp: {
    /** IBV_ODP_SUPPORT, IBV_ODP_SUPPORT_IMPLICIT */
    readonly general: number;
    /** IBV_ODP_SUPPORT_SEND ..., per queue pair type */
    readonly rc: number;
    readonly uc: number;
    readonly ud: number;
  };
}

/** The current attributes of a port. */
export interface VerbsPortAttributes {
  readonly state: 'nop' | 'down' | 'init' | 'armed' | 'active' | 'active-defer' | 'unknown';
  readonly linkLayer: 'unspecified' | 'infiniband' | 'ethernet';
  /** bytes */
  readonly maxMtu: number;
  /** bytes */
  readonly activeMtu: number;
  /** largest message in bytes */
  readonly maxMessage: number;
  /** Entries of the GID table, including empty ones */
  readonly gids: number;
  readonly pkeys: number;
  /** The local identifier on InfiniBand; 0 on Ethernet */
  readonly lid: number;
  readonly smLid: number;
  /** IBV_PORT_* */
  readonly capabilities: number;
  /** Must requests carry a global route (IBV_QPF_GRH_REQUIRED)? */
  readonly grhRequired: boolean;
}

/** A non-empty entry of a port's GID table. */
export interface VerbsGid {
  readonly port: number;
  readonly index: number;
  /** In the kernel's notation: 8 groups of 4 hexadecimal digits */
  readonly gid: string;
  readonly type: 'ib' | 'roce-v1' | 'roce-v2' | 'unknown';
  /** Index of its network interface; 0 if it has none */
  readonly interfaceIndex: number;
}

/** An event of a device, a port or a queue, other than a completion. */
export interface VerbsAsyncEvent {
  /** IBV_EVENT_* */
  readonly type: number;
  /** The type by name without `IBV_EVENT_`, such as `PORT_ERR`, `DEVICE_FATAL`, `QP_ACCESS_ERR` */
  readonly name: string;
  /** Port number, for port events */
  readonly port: number | undefined;
  /** @internal */
  readonly qp: VerbsQp | undefined;
  /** @internal */
  readonly cq: VerbsCq | undefined;
}

/**
 * A protection domain: its regions, windows, queue pairs and address handles can be used together. Released by
 * `VerbsPort.deallocatePd`.
 */
export interface VerbsPd extends VerbsHandle {
  readonly context: VerbsContext;
}

/** A registered memory region. Released by `VerbsPort.deregisterMemory`. */
export interface VerbsMr extends VerbsHandle {
  readonly pd: VerbsPd;
  /** Key for local requests */
  readonly lkey: number;
  /** Key for requests of the peer */
  readonly rkey: number;
}

/** Options of `VerbsPort.registerMemory`. */
export interface VerbsMrOptions {
  readonly va: Va;
  /** bytes; Infinity, with `va` 0 and on-demand paging, for the whole address space (an implicit region) */
  readonly length: number;
  /** IBV_ACCESS_*; local read is always allowed */
  readonly access: number;
  /** The address of the first byte in requests. Default: `va`. It must have the same offset in its page as `va`. */
  readonly iova?: number;
}

/** Options of `VerbsPort.registerDmabuf`. */
export interface VerbsDmabufOptions {
  /** A dma-buf descriptor, needed only during the call */
  readonly fd: number;
  /** bytes into the dma-buf */
  readonly offset: number;
  /** bytes */
  readonly length: number;
  /** The address of the first byte in requests; same offset in its page as `offset` */
  readonly iova: number;
  /** IBV_ACCESS_* */
  readonly access: number;
}

/** A memory window: access to a part of a region, with its own rkey. Released by `VerbsPort.deallocateMw`. */
export interface VerbsMw extends VerbsHandle {
  readonly pd: VerbsPd;
  /** 1: bound by `VerbsPort.bindMw`; 2: by a send request */
  readonly type: 1 | 2;
  /** The key of the last binding by `VerbsPort.bindMw` */
  readonly rkey: number;
}

/** Binding of a memory window. */
export interface VerbsMwBinding {
  /** Must have been registered with IBV_ACCESS_MW_BIND */
  readonly mr: VerbsMr;
  readonly va: number;
  /** bytes; 0 revokes the access */
  readonly length: number;
  /** IBV_ACCESS_REMOTE_*, IBV_ACCESS_ZERO_BASED */
  readonly access: number;
  /** Id of its completion; an integer in [0, 2^53) */
  readonly id: number;
  /** IBV_SEND_* */
  readonly flags: number;
}

/** A descriptor that reports new completions. Released by `VerbsPort.destroyChannel`. */
export interface VerbsChannel extends VerbsHandle {
  readonly context: VerbsContext;
  /** Readable when `VerbsPort.nextCqEvent` has an event. Non-blocking; owned by the channel. */
  readonly fd: number;
}

/** A completion queue. Released by `VerbsPort.destroyCq`. */
export interface VerbsCq extends VerbsHandle {
  readonly context: VerbsContext;
  readonly channel: VerbsChannel | undefined;
  /** How many completions it holds; may be more than requested */
  readonly entries: number;
}

/** Options of `VerbsPort.createQp`. */
export interface VerbsQpOptions {
  /** Reliable connection, unreliable connection, unreliable datagrams */
  readonly type: 'rc' | 'uc' | 'ud';
  readonly sendCq: VerbsCq;
  readonly receiveCq: VerbsCq;
  /** Send requests that may be outstanding. Default 0, as for all that follow. */
  readonly sends?: number;
  readonly receives?: number;
  /** Segments of a send request */
  readonly sendSges?: number;
  readonly receiveSges?: number;
  /** Bytes that may be sent inline */
  readonly inline?: number;
  /** Does every send request create a completion, whatever its flags? Default false. */
  readonly signalAll?: boolean;
}

/** A queue pair, created in state RESET. Released by `VerbsPort.destroyQp`. */
export interface VerbsQp extends VerbsHandle {
  readonly pd: VerbsPd;
  readonly number: number;
  readonly type: 'rc' | 'uc' | 'ud';
  readonly sendCq: VerbsCq;
  readonly receiveCq: VerbsCq;
  /** Actual sizes, each at least as requested */
  readonly sends: number;
  readonly receives: number;
  readonly sendSges: number;
  readonly receiveSges: number;
  readonly inline: number;
}

/** What another thread of this process needs to use a queue pair: plain data. Made by `VerbsPort.lend`. */
export interface VerbsLoan extends Omit<VerbsQp, 'address' | 'pd' | 'sendCq' | 'receiveCq'> {
  /** The device's name */
  readonly device: string;
  /** Addresses of C structs, which are the same in all threads */
  readonly addresses: {
    readonly context: number;
    readonly pd: number;
    readonly qp: number;
    readonly sendCq: number;
    readonly receiveCq: number;
  };
}

/** The path to another port. */
export interface VerbsPath {
  /** The local port */
  readonly port: number;
  /** The other port's LID on InfiniBand. Default 0. */
  readonly lid?: number;
  /** Default 0. */
  readonly serviceLevel?: number;
  /** The global route; required on RoCE */
  readonly route?: {
    /** The other port's GID */
    readonly gid: string;
    /** The local GID's index */
    readonly localIndex: number;
    /** Default 64. */
    readonly hopLimit?: number;
    /** Default 0. */
    readonly trafficClass?: number;
    /** Default 0. */
    readonly flowLabel?: number;
  };
}

/** The current attributes of a queue pair; those without meaning in its state are 0. */
export interface VerbsQpStatus {
  /** IBV_QPS_* */
  readonly state: number;
  /** IBV_ACCESS_*: what the peer may do */
  readonly access: number;
  readonly pkeyIndex: number;
  readonly port: number;
  /** For datagrams */
  readonly qkey: number;
  /** bytes: 256, 512, 1024, 2048 or 4096 */
  readonly mtu: number;
  /** The peer's queue pair number */
  readonly peer: number;
  /** Sequence numbers, 24 bits */
  readonly receivePsn: number;
  readonly sendPsn: number;
  /** Acknowledgement timeout of 4.096 µs * 2^timeout; at most 31, 0 means infinite */
  readonly timeout: number;
  /** at most 7 */
  readonly retries: number;
  /** Retries while the peer has no receive request: at most 7, which means infinite */
  readonly rnrRetries: number;
  /** Code of the time that the peer is told to wait in that case, at most 31 */
  readonly minRnrTimer: number;
  /** Outstanding reads and atomics as initiator */
  readonly initiatorDepth: number;
  /** Outstanding reads and atomics as responder */
  readonly responderDepth: number;
}

/** Attributes to set on a queue pair; `man ibv_modify_qp` lists those of each state. */
export interface VerbsQpAttributes extends Partial<VerbsQpStatus> {
  readonly path?: VerbsPath;
}

/** The destination of datagrams. Released by `VerbsPort.destroyAh`. */
export interface VerbsAh extends VerbsHandle {
  readonly pd: VerbsPd;
}
