/**
 * What the library asks of RDMA devices: the verbs of libibverbs, whose manual pages (`man ibv_reg_mr`) say what each does.
 *
 * Errors are those of all ports; `operation` is the function of libibverbs. A handle that was given back, or that another
 * port made, is EINVAL; one whose device was unplugged is EIO or ENODEV.
 */
import type {
  VerbsAh,
  VerbsAsyncEvent,
  VerbsChannel,
  VerbsContext,
  VerbsCq,
  VerbsDevice,
  VerbsDeviceAttributes,
  VerbsDmabufOptions,
  VerbsGid,
  VerbsMr,
  VerbsMrOptions,
  VerbsMw,
  VerbsMwBinding,
  VerbsPath,
  VerbsPd,
  VerbsPortAttributes,
  VerbsQp,
  VerbsQpAttributes,
  VerbsQpOptions,
  VerbsQpStatus,
} from './verbs-types.js';
import type { Completions, ReceiveRequests, SendRequests } from './verbs-work.js';

/** RDMA devices, through libibverbs. The library is loaded on first use; where it can not be, every method is ENOTSUP. */
export interface VerbsPort {
  /** Why there are no verbs here, in a clause, with what to install; `undefined` where there are. Loads the library. */
  readonly limitation: string | undefined;

  /** The devices of this machine, by the kernel's order. Empty also where the kernel has no RDMA. */
  devices(): VerbsDevice[];
  /** ibv_open_device. ENODEV when there is none of that name; ENOENT, EACCES for its character device. */
  open(name: string): VerbsContext;
  /** ibv_close_device. Nobody may watch its descriptor any more. EBUSY while anything made on it is open. */
  close(context: VerbsContext): void;
  queryDevice(context: VerbsContext): VerbsDeviceAttributes;
  /** @param port from 1 */
  queryPort(context: VerbsContext, port: number): VerbsPortAttributes;
  /** The addresses of all ports. */
  gids(context: VerbsContext): VerbsGid[];
  /** Takes the next event, and acknowledges it; `undefined` when there is none. */
  nextAsyncEvent(context: VerbsContext): VerbsAsyncEvent | undefined;

  allocatePd(context: VerbsContext): VerbsPd;
  /** EBUSY as long as anything of it is open. */
  deallocatePd(pd: VerbsPd): void;

  /**
   * ibv_reg_mr: pins memory and makes it reachable for the device. EFAULT when it is not mapped, or is read-only and
   * `access` has IBV_ACCESS_LOCAL_WRITE; ENOMEM beyond RLIMIT_MEMLOCK or the device's count; EINVAL when `access` allows
   * remote writes or atomics without local writes; ENOTSUP for what the device has not. The memory must stay mapped until
   * the region is given back.
   */
  registerMemory(pd: VerbsPd, options: VerbsMrOptions): VerbsMr;
  /** As `registerMemory`, on another thread. The protection domain has to stay until it is done. */
  registerMemoryAsync(pd: VerbsPd, options: VerbsMrOptions): Promise<VerbsMr>;
  /** ibv_reg_dmabuf_mr. ENOTSUP when library, kernel or device can not. */
  registerDmabuf(pd: VerbsPd, options: VerbsDmabufOptions): VerbsMr;
  /** ibv_dereg_mr: the keys stop working at once. EBUSY while a window is bound to it. */
  deregisterMemory(mr: VerbsMr): void;
  /** As `deregisterMemory`, on another thread. */
  deregisterMemoryAsync(mr: VerbsMr): Promise<void>;
  /**
   * ibv_advise_mr for [va, va + length) of a region with on-demand paging.
   *
   * @param advice IBV_ADVISE_MR_ADVICE_*
   * @param flush wait until it is done? Else it is only begun.
   */
  adviseMemory(mr: VerbsMr, va: number, length: number, advice: number, flush: boolean): void;

  allocateMw(pd: VerbsPd, type: 1 | 2): VerbsMw;
  deallocateMw(mw: VerbsMw): void;
  /** ibv_bind_mw: posts the binding of a window of type 1 to the send queue, with a completion like any other request's. Returns its new rkey. */
  bindMw(qp: VerbsQp, mw: VerbsMw, binding: VerbsMwBinding): number;

  createChannel(context: VerbsContext): VerbsChannel;
  /** Nobody may watch its descriptor any more. EBUSY while a completion queue uses it. */
  destroyChannel(channel: VerbsChannel): void;
  /** Takes the next event, and acknowledges it; `undefined` when there is none. */
  nextCqEvent(channel: VerbsChannel): VerbsCq | undefined;

  /**
   * @param entries completions it has to hold at least
   * @param channel who tells that completions came, after {@link requestNotify}
   * @param vector from 0 to the context's `vectors` - 1. Default 0.
   */
  createCq(context: VerbsContext, entries: number, channel?: VerbsChannel, vector?: number): VerbsCq;
  /** ENOTSUP when the device can not; EINVAL when there are more completions in it than it would hold. */
  resizeCq(cq: VerbsCq, entries: number): void;
  /** EBUSY while a queue pair uses it. */
  destroyCq(cq: VerbsCq): void;
  /**
   * The next completion that comes after this makes one event on the channel. Poll once more after it: what came before
   * makes none.
   *
   * @param solicitedOnly only receives sent with IBV_SEND_SOLICITED, and errors
   */
  requestNotify(cq: VerbsCq, solicitedOnly: boolean): void;
  /** ibv_poll_cq: fills `into` from slot 0 on. Returns how many came. Does not block. */
  pollCq(cq: VerbsCq, into: Completions): number;

  createQp(pd: VerbsPd, options: VerbsQpOptions): VerbsQp;
  /** ibv_modify_qp. On the way to RTR the kernel may look for the peer's link address, and wait for a second when nobody answers. */
  modifyQp(qp: VerbsQp, attributes: VerbsQpAttributes): void;
  /** As `modifyQp`, on another thread. The queue pair has to stay, and nobody else may change it, until it is done. */
  modifyQpAsync(qp: VerbsQp, attributes: VerbsQpAttributes): Promise<void>;
  queryQp(qp: VerbsQp): VerbsQpStatus;
  destroyQp(qp: VerbsQp): void;
  /** ibv_create_ah. It may look for the peer's link address, as `modifyQp` does. */
  createAh(pd: VerbsPd, path: VerbsPath): VerbsAh;
  /** As `createAh`, on another thread. The protection domain has to stay until it is done. */
  createAhAsync(pd: VerbsPd, path: VerbsPath): Promise<VerbsAh>;
  destroyAh(ah: VerbsAh): void;

  /**
   * ibv_post_send of slots `first` to `first + count - 1`, the last slot being followed by slot 0. The slots are free
   * again when it returns. The memory they name, unless sent inline, is the device's until their completion. What is
   * named with IBV_SEND_INLINE must be memory that can be read: nobody checks it.
   *
   * @returns how many were taken. Fewer than `count` when one was refused; post that one again to have its error.
   * @throws when the first one was refused: ENOMEM when the queue is full or a request too large for it, EINVAL
   */
  postSend(qp: VerbsQp, requests: SendRequests, first: number, count: number): number;
  /** ibv_post_recv; all as in {@link postSend}. */
  postReceive(qp: VerbsQp, requests: ReceiveRequests, first: number, count: number): number;
}
