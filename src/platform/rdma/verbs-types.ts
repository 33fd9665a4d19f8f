/** What RDMA devices and the things made on them look like, in the words of libibverbs. Numbers named IBV_* are in `verbs-abi/`. */
import type { Va } from '../../units.js';

/**
 * Something made by a `VerbsPort`. It is owned by the caller until it gives it back by the method named at its type, in the
 * reverse order of making: EBUSY as long as something else needs it.
 */
export interface VerbsHandle {
  /** Where its struct is in this process; 0 once it was given back. */
  readonly address: number;
}

/** An RDMA device of this machine, as the list has it. */
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
  /** The real path of what it belongs to in sysfs, such as the PCI device; absent for software devices. */
  readonly parent: string | undefined;
}

/** An open device. Given back by `VerbsPort.close`. */
export interface VerbsContext extends VerbsHandle {
  /** The device's name */
  readonly name: string;
  /** Readable when `VerbsPort.nextAsyncEvent` has something. Does not block. It belongs to the context. */
  readonly asyncFd: number;
  /** Completion vectors: the interrupts that completion queues can be spread over */
  readonly vectors: number;
}

/** What a device can do, and how much of it. Counts are the device's own promises; the system may have less. */
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
  /** Bytes a memory region may have at most; above 2^53 it is rounded */
  readonly maxMrLength: number;
  /** Page sizes the device can map with, in bytes, ascending */
  readonly pageSizes: readonly number[];
  readonly maxMrs: number;
  readonly maxMws: number;
  readonly maxPds: number;
  readonly maxQps: number;
  /** Requests a queue of a queue pair may hold */
  readonly maxRequests: number;
  /** Segments (SGEs) a request may have; of a read request, {@link maxReadSges} */
  readonly maxSges: number;
  readonly maxReadSges: number;
  readonly maxCqs: number;
  /** Completions a completion queue may hold */
  readonly maxCqEntries: number;
  readonly maxAhs: number;
  /** Reads and atomics that a queue pair can have under way as the one that asks */
  readonly maxInitiatorDepth: number;
  /** The same as the one that answers */
  readonly maxResponderDepth: number;
  readonly atomics: 'none' | 'device' | 'global';
  /** IBV_DEVICE_* */
  readonly capabilities: number;
  /** On-demand paging; all 0 where there is none */
  readonly odp: {
    /** IBV_ODP_SUPPORT, IBV_ODP_SUPPORT_IMPLICIT */
    readonly general: number;
    /** IBV_ODP_SUPPORT_SEND ... by the queue pair's type */
    readonly rc: number;
    readonly uc: number;
    readonly ud: number;
  };
}

/** A port now. */
export interface VerbsPortAttributes {
  readonly state: 'nop' | 'down' | 'init' | 'armed' | 'active' | 'active-defer' | 'unknown';
  readonly linkLayer: 'unspecified' | 'infiniband' | 'ethernet';
  /** bytes */
  readonly maxMtu: number;
  /** bytes */
  readonly activeMtu: number;
  /** bytes a message may have */
  readonly maxMessage: number;
  /** Entries of the GID table, empty ones counted */
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

/** An address of a port: an entry of its GID table that is not empty. */
export interface VerbsGid {
  readonly port: number;
  readonly index: number;
  /** In the kernel's notation: 8 groups of 4 hexadecimal digits */
  readonly gid: string;
  readonly type: 'ib' | 'roce-v1' | 'roce-v2' | 'unknown';
  /** The index of its network interface; 0 when it has none */
  readonly interfaceIndex: number;
}

/** Something happened to a device, a port or a queue, other than a completion. */
export interface VerbsAsyncEvent {
  /** IBV_EVENT_* */
  readonly type: number;
  /** The type by name without `IBV_EVENT_`, such as `PORT_ERR`, `DEVICE_FATAL`, `QP_ACCESS_ERR` */
  readonly name: string;
  /** Which port, for events of ports */
  readonly port: number | undefined;
  readonly qp: VerbsQp | undefined;
  readonly cq: VerbsCq | undefined;
}

/** A protection domain: regions, windows, queue pairs and address handles of one work together. Given back by `VerbsPort.deallocatePd`. */
export interface VerbsPd extends VerbsHandle {
  readonly context: VerbsContext;
}

/** Memory that is registered. Given back by `VerbsPort.deregisterMemory`. */
export interface VerbsMr extends VerbsHandle {
  readonly pd: VerbsPd;
  /** What local requests name it by */
  readonly lkey: number;
  /** What requests of the other side name it by */
  readonly rkey: number;
}

/** What `VerbsPort.registerMemory` registers. */
export interface VerbsMrOptions {
  readonly va: Va;
  /** bytes; Infinity, with `va` 0 and on-demand paging, for the whole address space (an implicit region) */
  readonly length: number;
  /** IBV_ACCESS_*; local read is always allowed */
  readonly access: number;
  /** The address that the first byte has in requests. Default: `va`. It must have the same place in its page as `va`. */
  readonly iova?: number;
}

/** What `VerbsPort.registerDmabuf` registers. */
export interface VerbsDmabufOptions {
  /** A dma-buf's descriptor, which is only needed during the call */
  readonly fd: number;
  /** bytes into the dma-buf */
  readonly offset: number;
  /** bytes */
  readonly length: number;
  /** The address that the first byte has in requests; the same place in its page as `offset` */
  readonly iova: number;
  /** IBV_ACCESS_* */
  readonly access: number;
}

/** A memory window: a right to a part of a region, with an rkey of its own. Given back by `VerbsPort.deallocateMw`. */
export interface VerbsMw extends VerbsHandle {
  readonly pd: VerbsPd;
  /** 1: bound by `VerbsPort.bindMw`; 2: by a send request */
  readonly type: 1 | 2;
  /** Since it was last bound by `VerbsPort.bindMw`, that binding's */
  readonly rkey: number;
}

/** What a window is bound to. */
export interface VerbsMwBinding {
  /** Must have been registered with IBV_ACCESS_MW_BIND */
  readonly mr: VerbsMr;
  readonly va: number;
  /** bytes; 0 takes the right back */
  readonly length: number;
  /** IBV_ACCESS_REMOTE_*, IBV_ACCESS_ZERO_BASED */
  readonly access: number;
  /** Of its completion; an integer in [0, 2^53) */
  readonly id: number;
  /** IBV_SEND_* */
  readonly flags: number;
}

/** Tells on a descriptor that completions came. Given back by `VerbsPort.destroyChannel`. */
export interface VerbsChannel extends VerbsHandle {
  readonly context: VerbsContext;
  /** Readable when `VerbsPort.nextCqEvent` has something. Does not block. It belongs to the channel. */
  readonly fd: number;
}

/** A completion queue. Given back by `VerbsPort.destroyCq`. */
export interface VerbsCq extends VerbsHandle {
  readonly context: VerbsContext;
  readonly channel: VerbsChannel | undefined;
  /** Completions it holds; may be more than was asked for */
  readonly entries: number;
}

/** What `VerbsPort.createQp` makes. */
export interface VerbsQpOptions {
  /** Reliable connection, unreliable connection, unreliable datagrams */
  readonly type: 'rc' | 'uc' | 'ud';
  readonly sendCq: VerbsCq;
  readonly receiveCq: VerbsCq;
  /** Send requests that may be under way. Default 0, as for all that follow. */
  readonly sends?: number;
  readonly receives?: number;
  /** Segments of a send request */
  readonly sendSges?: number;
  readonly receiveSges?: number;
  /** Bytes that may be sent inline */
  readonly inline?: number;
  /** Does every send request make a completion, whatever its flags? Default false. */
  readonly signalAll?: boolean;
}

/** A queue pair, in state RESET. Given back by `VerbsPort.destroyQp`. */
export interface VerbsQp extends VerbsHandle {
  readonly pd: VerbsPd;
  readonly number: number;
  readonly type: 'rc' | 'uc' | 'ud';
  readonly sendCq: VerbsCq;
  readonly receiveCq: VerbsCq;
  /** What it was given, each at least what was asked for */
  readonly sends: number;
  readonly receives: number;
  readonly sendSges: number;
  readonly receiveSges: number;
  readonly inline: number;
}

/** The way to another port. */
export interface VerbsPath {
  /** The local port */
  readonly port: number;
  /** The other port's LID on InfiniBand. Default 0. */
  readonly lid?: number;
  /** Default 0. */
  readonly serviceLevel?: number;
  /** The global route, without which RoCE does not work */
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

/** What can be set of a queue pair; which of it goes with which state, `man ibv_modify_qp` tells. */
export interface VerbsQpAttributes {
  /** IBV_QPS_* */
  readonly state?: number;
  /** IBV_ACCESS_*: what the other side may do */
  readonly access?: number;
  readonly pkeyIndex?: number;
  readonly port?: number;
  /** Of datagrams */
  readonly qkey?: number;
  readonly path?: VerbsPath;
  /** bytes: 256, 512, 1024, 2048 or 4096 */
  readonly mtu?: number;
  /** The other side's number */
  readonly peer?: number;
  /** Sequence numbers, 24 bits */
  readonly receivePsn?: number;
  readonly sendPsn?: number;
  /** An acknowledgement may take 4.096 µs * 2^timeout; 0 means forever, at most 31 */
  readonly timeout?: number;
  /** at most 7 */
  readonly retries?: number;
  /** When the other side has no receive request: at most 7, which means forever */
  readonly rnrRetries?: number;
  /** The code of the time that the other side is told to wait then, at most 31 */
  readonly minRnrTimer?: number;
  /** Reads and atomics under way as the one that asks */
  readonly initiatorDepth?: number;
  /** The same as the one that answers */
  readonly responderDepth?: number;
}

/** A queue pair now; what does not hold in its state is 0. */
export type VerbsQpStatus = Required<Omit<VerbsQpAttributes, 'path'>>;

/** Where a datagram goes. Given back by `VerbsPort.destroyAh`. */
export interface VerbsAh extends VerbsHandle {
  readonly pd: VerbsPd;
}
