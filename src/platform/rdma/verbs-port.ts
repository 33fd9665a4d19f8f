/**
 * The RDMA verbs that the library uses. Each method is a function of libibverbs; its manual page (`man ibv_reg_mr`)
 * describes it.
 *
 * Errors are as in all ports; `operation` is the function of libibverbs. A handle that was released, or belongs to
 * another port, is EINVAL; if its device was unplugged, EIO or ENODEV.
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
  VerbsLoan,
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

/**
 * RDMA devices, through libibverbs. The library is loaded on first use; if it can not be loaded, every method throws
 * ENOTSUP.
 */
export interface VerbsPort {
  /** Why verbs are not available and what to install, as a clause; `undefined` if they are. Loads the library. */
  readonly limitation: string | undefined;

  /** The devices of this machine, in the kernel's order. Empty if the kernel does not support RDMA. */
  devices(): VerbsDevice[];
  /** ibv_open_device. ENODEV if no device has that name; ENOENT, EACCES from its character device. */
  open(name: string): VerbsContext;
  /** ibv_close_device. Close all watches of its descriptor first. EBUSY while anything created on it is open. */
  close(context: VerbsContext): void;
  queryDevice(context: VerbsContext): VerbsDeviceAttributes;
  /** @param port from 1 */
  queryPort(context: VerbsContext, port: number): VerbsPortAttributes;
  /** The addresses of all ports. */
  gids(context: VerbsContext): VerbsGid[];
  /** Takes and acknowledges the next event; `undefined` if there is none. */
  nextAsyncEvent(context: VerbsContext): VerbsAsyncEvent | undefined;

  allocatePd(context: VerbsContext): VerbsPd;
  /** EBUSY while anything created in it is open. */
  deallocatePd(pd: VerbsPd): void;

  /**
   * ibv_reg_mr: pins memory and makes it accessible to the device. EFAULT if it is not mapped, or is read-only and
   * `access` has IBV_ACCESS_LOCAL_WRITE; ENOMEM beyond RLIMIT_MEMLOCK or the device's limit; EINVAL if `access` allows
   * remote writes or atomics without local writes; ENOTSUP if the device does not support `access`. The memory must
   * stay mapped until the region is deregistered.
   */
  registerMemory(pd: VerbsPd, options: VerbsMrOptions): VerbsMr;
  /** Like `registerMemory`, on another thread. Keep the protection domain until it is done. */
  registerMemoryAsync(pd: VerbsPd, options: VerbsMrOptions): Promise<VerbsMr>;
  /** ibv_reg_dmabuf_mr. ENOTSUP if the library, kernel or device does not support it. */
  registerDmabuf(pd: VerbsPd, options: VerbsDmabufOptions): VerbsMr;
  /** ibv_dereg_mr: the keys become invalid at once. EBUSY while a window is bound to it. */
  deregisterMemory(mr: VerbsMr): void;
  /** Like `deregisterMemory`, on another thread. */
  deregisterMemoryAsync(mr: VerbsMr): Promise<void>;
  /**
   * ibv_advise_mr for [va, va + length) of a region with on-demand paging.
   *
   * @param advice IBV_ADVISE_MR_ADVICE_*
   * @param flush wait until it is done? Otherwise it only starts.
   */
  adviseMemory(mr: VerbsMr, va: number, length: number, advice: number, flush: boolean): void;

  allocateMw(pd: VerbsPd, type: 1 | 2): VerbsMw;
  deallocateMw(mw: VerbsMw): void;
  /**
   * ibv_bind_mw: posts the binding of a type 1 window to the send queue, with a completion like any other request.
   * Returns the new rkey.
   */
  bindMw(qp: VerbsQp, mw: VerbsMw, binding: VerbsMwBinding): number;

  createChannel(context: VerbsContext): VerbsChannel;
  /** Close all watches of its descriptor first. EBUSY while a completion queue uses it. */
  destroyChannel(channel: VerbsChannel): void;
  /** Takes and acknowledges the next event; `undefined` if there is none. */
  nextCqEvent(channel: VerbsChannel): VerbsCq | undefined;

  /**
   * @param entries minimum number of completions it must hold
   * @param channel reports new completions, after {@link requestNotify}
   * @param vector from 0 to the context's `vectors` - 1. Default 0.
   */
  createCq(context: VerbsContext, entries: number, channel?: VerbsChannel, vector?: number): VerbsCq;
  /** ENOTSUP if the device can not resize; EINVAL if the queue now holds more than `entries` completions. */
  resizeCq(cq: VerbsCq, entries: number): void;
  /** EBUSY while a queue pair uses it. */
  destroyCq(cq: VerbsCq): void;
  /**
   * Requests one event on the channel for the next completion. Poll once more afterwards: earlier completions cause no
   * event.
   *
   * @param solicitedOnly only for receives sent with IBV_SEND_SOLICITED, and errors
   */
  requestNotify(cq: VerbsCq, solicitedOnly: boolean): void;
  /** ibv_poll_cq: fills `into` from slot 0 on and returns how many completions it took. Does not block. */
  pollCq(cq: VerbsCq, into: Completions): number;

  createQp(pd: VerbsPd, options: VerbsQpOptions): VerbsQp;
  /**
   * ibv_modify_qp. On the transition to RTR the kernel may resolve the peer's link address, and wait a second if there
   * is no reply.
   */
  modifyQp(qp: VerbsQp, attributes: VerbsQpAttributes): void;
  /** Like `modifyQp`, on another thread. Until it is done, keep the queue pair and do not change it otherwise. */
  modifyQpAsync(qp: VerbsQp, attributes: VerbsQpAttributes): Promise<void>;
  queryQp(qp: VerbsQp): VerbsQpStatus;
  destroyQp(qp: VerbsQp): void;
  /** What another thread needs for {@link borrow}. */
  lend(qp: VerbsQp): VerbsLoan;
  /**
   * A queue pair of another thread of this process, with its completion queues, for {@link postSend}, {@link postReceive} and {@link
   * pollCq} only. It must stay there until {@link giveBack}, and only one thread may use it at a time. Does not load the library: the
   * device's driver is called directly.
   */
  borrow(loan: VerbsLoan): VerbsQp;
  /** The handles that {@link borrow} made can not be used any more. Nothing is destroyed. */
  giveBack(qp: VerbsQp): void;
  /** ibv_create_ah. It may resolve the peer's link address, as `modifyQp` does. */
  createAh(pd: VerbsPd, path: VerbsPath): VerbsAh;
  /** Like `createAh`, on another thread. Keep the protection domain until it is done. */
  createAhAsync(pd: VerbsPd, path: VerbsPath): Promise<VerbsAh>;
  destroyAh(ah: VerbsAh): void;

  /**
   * ibv_post_send of slots `first` to `first + count - 1`; slot 0 follows the last slot. When it returns, the slots can
   * be reused. The memory of a request, unless sent inline, belongs to the device until its completion. Memory sent
   * with IBV_SEND_INLINE must be readable: this is not checked.
   *
   * @returns how many requests were posted. Fewer than `count` if one was refused; post that one again to get its
   * error.
   * @throws if the first one was refused: ENOMEM if the queue is full or the request too large for it, EINVAL
   */
  postSend(qp: VerbsQp, requests: SendRequests, first: number, count: number): number;
  /** ibv_post_recv; otherwise like {@link postSend}. */
  postReceive(qp: VerbsQp, requests: ReceiveRequests, first: number, count: number): number;
}
