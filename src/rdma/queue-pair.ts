/**
 * A queue pair posts requests, in one of two ways. Requests that the program builds in arrays, posts in batches and
 * polls for cost no allocation and one call per batch. Methods that return promises post one request each, translate
 * its address to a key, and explain failures.
 *
 * Use all queue pairs of one completion queue in the same way.
 */
import { randomInt } from 'node:crypto';
import { isA, mustBe, mustBeOneOf, mustBeWhole, optionsOf } from '../check.js';
import type { DmaAccess, RemoteAccess } from '../dma/address-space.js';
import type { Domain } from '../dma/domain.js';
import { lostDevice } from '../dma/mapping.js';
import { KeyCache } from '../dma/key-cache.js';
import { ACCESSES } from '../dma/plan.js';
import { DmaError, type DmaErrorDetails, invalid, isDmaError, throwFirst, undoAll, withUndo } from '../errors.js';
import type {
  VerbsPath,
  VerbsPortAttributes,
  VerbsQp,
  VerbsQpAttributes,
  VerbsQpStatus,
} from '../platform/rdma/verbs-types.js';
import { completionStatusName, ReceiveRequests, SendRequests, type Completions } from '../platform/rdma/verbs-work.js';
import { IBV_MW_TYPE_1 } from '../platform/rdma/abi/memory.js';
import { IBV_QPS_ERR, IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS } from '../platform/rdma/abi/queues.js';
import {
  IBV_SEND_INLINE,
  IBV_SEND_SIGNALED,
  IBV_WC_GRH,
  IBV_WC_WITH_IMM,
  IBV_WC_WITH_INV,
} from '../platform/rdma/abi/requests.js';
import { Range } from '../ranges.js';
import { isAddress, type Va } from '../units.js';
import { remoteFlags } from './access.js';
import { completionError, isProtectionError, wasFlushed } from './completion-error.js';
import type { CompletionQueue } from './completion-queue.js';
import { succeeded, type Promised } from './completion-queue.js';
import type { RdmaContext } from './context.js';
import { isUnicast } from './gid.js';
import { MemoryWindow } from './memory-window.js';
import { shortForm } from '../short-form.js';
import { thrown } from '../show.js';
import {
  checkAddress,
  type CheckedQueuePairOptions,
  checkTimes,
  CONNECT_ASYNC_OPTIONS,
  CONNECT_OPTIONS,
  type ConnectAsyncOptions,
  type ConnectOptions,
  MTUS,
  NO_GID,
  type QueuePairAddress,
} from './queue-pair-options.js';
import {
  checkedLocal,
  checkedRequest,
  type Destination,
  isKey,
  Lane,
  mustBeWord,
  noRequests,
  type PeerExplainer,
  type Received,
  type RemoteMemory,
  remoteRange,
  type Request,
} from './queue-pair-requests.js';
import type { MemoryPart } from '../memory/part.js';

/** What a queue pair is created from. */
export interface QueuePairParts {
  readonly rdma: RdmaContext;
  /** The device's name, for messages and the domain */
  readonly device: string;
  readonly domain: Domain;
  readonly port: number;
  readonly portAttributes: VerbsPortAttributes;
  readonly gid: { readonly index: number; readonly gid: string } | undefined;
  readonly completions: CompletionQueue;
  readonly receiveCompletions: CompletionQueue;
  /** Completion queues to close with it */
  readonly owned: readonly CompletionQueue[];
  readonly closed: (queue: QueuePair) => void;
}

/** Most outstanding reads and atomics. */
const READS = 16;
/** Code of the time that a peer waits if no receive is posted: 0.64 ms. */
const RNR_TIMER = 12;
/** Bytes of the global route header before a datagram. */
const GRH = 40;

/** A queue pair. Created by `RdmaDevice.createQueuePair`; close it when no longer needed. */
export class QueuePair implements Disposable {
  readonly type: 'rc' | 'uc' | 'ud';
  /** Queue of its completions. */
  readonly completions: CompletionQueue;
  readonly receiveCompletions: CompletionQueue;
  /** Translates addresses to keys, for requests that the program builds. */
  readonly keys: KeyCache;
  /** What the peer must know of it. */
  readonly address: QueuePairAddress;
  /** Asks the peer why it refused an access; the answer becomes part of the error. */
  explainPeer: PeerExplainer | undefined;
  /** @internal */
  readonly qp: VerbsQp;
  readonly #parts: QueuePairParts;
  /** The completion queues, and how many completions it can have in each at once. */
  readonly #reserved: readonly (readonly [queue: CompletionQueue, count: number])[];
  readonly #sendIds: number;
  readonly #receiveIds: number;
  readonly #sends: Lane;
  readonly #receives: Lane;
  #sendRequests: SendRequests | undefined;
  #receiveRequests: ReceiveRequests | undefined;
  /** @internal Its connection by the connection manager; closed with the queue pair. */
  connection: { close(): void } | undefined;
  #failure: DmaError | undefined;
  /** Resolves when no other thread changes its state any more; `undefined` if none does. */
  #changing: Promise<void> | undefined;
  #haltsLater = false;
  #open = true;

  /** @internal */
  constructor(parts: QueuePairParts, options: CheckedQueuePairOptions) {
    const operation = 'createQueuePair';
    const { rdma, device, domain, completions, receiveCompletions, port, portAttributes, gid } = parts;
    const { verbs, pd, attributes } = rdma;
    const { type = 'rc', sends, receives, sendSges = 1, receiveSges = 1, inline = 0 } = options;
    const { remote = 'read-write', qkey = 0x11111111 } = options;
    this.#reserved =
      completions === receiveCompletions
        ? [[completions, sends + receives]]
        : [
            [completions, sends],
            [receiveCompletions, receives],
          ];
    this.#reserve(operation);
    try {
      this.qp = rdma.limits.make('queuePairs', operation, () =>
        verbs.createQp(pd, {
          type,
          sendCq: completions.cq,
          receiveCq: receiveCompletions.cq,
          sends,
          receives,
          sendSges,
          receiveSges,
          inline,
        }),
      );
    } catch (error) {
      this.#release();
      throw error;
    }
    this.type = type;
    this.completions = completions;
    this.receiveCompletions = receiveCompletions;
    this.keys = new KeyCache({ device, table: domain.table, miss: options.miss });
    this.address = {
      number: this.qp.number,
      psn: randomInt(2 ** 24),
      gid: gid?.gid ?? NO_GID,
      lid: portAttributes.lid,
      mtu: portAttributes.activeMtu,
      reads: Math.min(READS, attributes.maxResponderDepth),
      qkey: type === 'ud' ? qkey : 0,
    };
    this.#parts = parts;
    // The device may allow more than requested, but completion queues are sized for the requested number.
    this.#sends = new Lane(sends);
    this.#receives = new Lane(receives);
    const begin = { state: IBV_QPS_INIT, pkeyIndex: 0, port };
    try {
      if (type === 'ud') {
        verbs.modifyQp(this.qp, { ...begin, qkey });
        verbs.modifyQp(this.qp, { state: IBV_QPS_RTR });
        verbs.modifyQp(this.qp, { state: IBV_QPS_RTS, sendPsn: this.address.psn });
      } else verbs.modifyQp(this.qp, { ...begin, access: remoteFlags(remote, attributes) });
    } catch (error) {
      throw withUndo(error, operation, undoAll([() => this.#destroy(rdma)]));
    }
    this.#sendIds = completions.promise(this.#settler(this.#sends, false));
    this.#receiveIds = receiveCompletions.promise(this.#settler(this.#receives, true));
  }

  /** Its queue pair number on the device. */
  get number(): number {
    return this.qp.number;
  }

  /** @internal Its device. */
  get rdma(): RdmaContext {
    return this.#parts.rdma;
  }

  /** Is it open? */
  get live(): boolean {
    return this.#open;
  }

  /** @internal Resolves when a closed queue pair is destroyed: another thread may still be changing its state. */
  get gone(): Promise<void> {
    return this.#changing ?? Promise.resolve();
  }

  /** The error that stopped it; `undefined` while it works. */
  get failure(): DmaError | undefined {
    return this.#failure;
  }

  /** Queries its state and attributes from the device. */
  status(): VerbsQpStatus {
    this.#mustBeOpen('status');
    return this.#parts.rdma.verbs.queryQp(this.qp);
  }

  /**
   * Connects it to the queue pair at `peer`, which must be connected to this one too; send only after both are.
   *
   * @throws DmaError EINVAL for an invalid address, or a datagram queue pair; ENOTSUP for iWARP devices; EBUSY while it
   * is being connected; errors of the device, such as ETIMEDOUT or ENETUNREACH if the peer is not reachable
   */
  connect(peer: QueuePairAddress, asked?: ConnectOptions): void {
    const { verbs } = this.#parts.rdma;
    const { receiving, sending } = this.#connectSteps(peer, asked);
    verbs.modifyQp(this.qp, receiving);
    verbs.modifyQp(this.qp, sending);
  }

  /**
   * Like {@link QueuePair.connect}, but does not block the event loop while the kernel resolves the peer, which takes a
   * second if there is no reply. Only one such call runs at a time. A queue pair that is closed meanwhile is destroyed
   * afterwards.
   *
   * @param options.signal cancels while the call waits for its turn
   * @throws DmaError as `connect`; ECANCELED if it was cancelled or closed
   */
  async connectAsync(peer: QueuePairAddress, options?: ConnectAsyncOptions): Promise<void> {
    const { signal, ...others } = optionsOf(options, CONNECT_ASYNC_OPTIONS, 'connect');
    return this.connectFor('', peer, others, signal);
  }

  /** @internal @param asker the party it is for: different parties take turns */
  async connectFor(
    asker: string,
    peer: QueuePairAddress,
    options?: ConnectOptions,
    signal?: AbortSignal,
  ): Promise<void> {
    const { rdma } = this.#parts;
    const { verbs } = rdma;
    const { receiving, sending } = this.#connectSteps(peer, options);
    const work = async (): Promise<void> => {
      this.#mustGoOn();
      await this.#change(() => verbs.modifyQpAsync(this.qp, receiving));
      this.#mustGoOn();
      verbs.modifyQp(this.qp, sending);
    };
    if (rdma.isNear(peer.gid)) return work();
    try {
      await rdma.turns.run(asker, work, signal);
    } catch (error) {
      if (isDmaError(error) || signal?.aborted !== true) throw error;
      throw this.#error('ECANCELED', 'connect', `cancelled: ${thrown(error)}`, { cause: error });
    }
  }

  /** Changes its state on another thread. Until that is done it is neither destroyed nor changed by another call. */
  async #change(change: () => Promise<void>): Promise<void> {
    let over: () => void = () => undefined;
    this.#changing = new Promise((resolve) => (over = resolve));
    let failure: unknown;
    try {
      await change();
    } catch (error) {
      failure = error;
    }
    this.#changing = undefined;
    const after = this.#open ? undoAll(this.#haltsLater ? [() => this.halt()] : []) : this.#finish();
    over();
    if (failure !== undefined || after.length > 0) throw withUndo(failure ?? after.shift(), 'connect', after);
  }

  /** Throws if it was closed, or stopped, meanwhile. */
  #mustGoOn(): void {
    const { rdma, device } = this.#parts;
    if (rdma.lost !== undefined) throw lostDevice('connect', device, rdma.lost);
    if (!this.#open) throw this.#error('ECANCELED', 'connect', 'the queue pair was closed');
    if (this.#failure !== undefined)
      throw this.#failure.with({ code: 'ECANCELED', operation: 'connect', cause: this.#failure });
  }

  /** Its state changes, in order. @throws DmaError as `connect` */
  #connectSteps(
    peer: QueuePairAddress,
    asked: ConnectOptions | undefined,
  ): { readonly receiving: VerbsQpAttributes; readonly sending: VerbsQpAttributes } {
    const operation = 'connect';
    this.#mustBeOpen(operation);
    if (this.#changing !== undefined) throw this.#error('EBUSY', operation, 'it is being connected');
    const options = optionsOf(asked, CONNECT_OPTIONS, operation);
    const { type } = this;
    if (type === 'ud')
      throw this.#error('EINVAL', 'connect', 'datagrams need no connection: give each send its destination');
    checkAddress(peer);
    checkTimes(options, operation);
    if (options.mtu !== undefined && !MTUS.includes(options.mtu))
      throw invalid(operation, `mtu is ${options.mtu}`, { hint: `it is ${MTUS.join(', ')}` });
    mustBeWhole(options.serviceLevel ?? 0, 0, 15, 'serviceLevel', operation);
    mustBeWhole(options.trafficClass ?? 0, 0, 255, 'trafficClass', operation);
    const { attributes, isIwarp } = this.#parts.rdma;
    if (isIwarp)
      throw this.#error('ENOTSUP', 'connect', 'queue pairs of iWARP devices are connected by the connection manager', {
        hint: 'take `PeerSession.join`, or `RdmaDevice.connect` and `RdmaDevice.listen`',
      });
    const { mtu = Math.min(this.address.mtu, peer.mtu), timeout = 14, retries = 7, rnrRetries = 7 } = options;
    const ready: VerbsQpAttributes = {
      state: IBV_QPS_RTR,
      path: pathTo(this.#parts, peer, options),
      mtu,
      peer: peer.number,
      receivePsn: peer.psn,
    };
    const send: VerbsQpAttributes = { state: IBV_QPS_RTS, sendPsn: this.address.psn };
    if (type === 'uc') return { receiving: ready, sending: send };
    const initiatorDepth = Math.min(READS, attributes.maxInitiatorDepth, peer.reads);
    return {
      receiving: { ...ready, responderDepth: this.address.reads, minRnrTimer: RNR_TIMER },
      sending: { ...send, timeout, retries, rnrRetries, initiatorDepth },
    };
  }

  // --- requests built by the program ---

  /** Creates `slots` send requests, each of up to `sges` segments. Build them once, post them often. */
  sendRequests(slots: number, sges = this.qp.sendSges): SendRequests {
    return new SendRequests(this.#parts.rdma.platform.memory, slots, sges);
  }

  /** Creates `slots` receive requests, each of up to `sges` segments. */
  receiveRequests(slots: number, sges = this.qp.receiveSges): ReceiveRequests {
    return new ReceiveRequests(this.#parts.rdma.platform.memory, slots, sges);
  }

  /**
   * Posts send requests in one call: slots `first` to `first + count - 1`; slot 0 follows the last slot. Ids must be
   * below 2^52. For hot paths.
   *
   * @returns how many were posted; fewer than `count` if the queue is full
   * @throws DmaError if the first one was refused: ENOMEM if the queue is full, EINVAL
   */
  post(requests: SendRequests, first = 0, count?: number): number {
    if (!isA(requests, SendRequests)) throw noRequests('post', 'sendRequests');
    this.#mustBeThere('post', this.completions);
    return this.#parts.rdma.verbs.postSend(this.qp, requests, first, count === undefined ? requests.slots : count);
  }

  /** Posts receives, like {@link QueuePair.post}. */
  postReceives(requests: ReceiveRequests, first = 0, count?: number): number {
    if (!isA(requests, ReceiveRequests)) throw noRequests('postReceives', 'receiveRequests');
    this.#mustBeThere('postReceives', this.receiveCompletions);
    return this.#parts.rdma.verbs.postReceive(this.qp, requests, first, count === undefined ? requests.slots : count);
  }

  // --- requests with promises ---

  /**
   * Writes local memory to the peer's memory.
   *
   * @param request.immediate 32 bits that complete a receive of the peer
   * @returns when the peer has the data
   * @throws DmaError EFAULT if the local memory is not mapped; EACCES, with an explanation, if the peer does not allow
   * it; ETIMEDOUT; ECANCELED if the queue pair stopped before; ENODEV if the device is gone
   */
  async write(request: {
    readonly local: MemoryPart;
    readonly remote: RemoteMemory;
    readonly immediate?: number;
  }): Promise<void> {
    const { local, remote, immediate } = checkedRequest('write', request, true);
    return this.#send(
      'write',
      'read',
      local,
      (requests, slot, flags) => {
        if (immediate === undefined) requests.write(slot, remote.address, remote.rkey, flags);
        else requests.writeWithImmediate(slot, remote.address, remote.rkey, immediate, flags);
      },
      { ...remote, length: local.length, access: 'write' },
    );
  }

  /** Reads the peer's memory into local memory. @throws DmaError as {@link QueuePair.write} */
  async read(request: { readonly local: MemoryPart; readonly remote: RemoteMemory }): Promise<void> {
    const { local, remote } = checkedRequest('read', request, true);
    return this.#send(
      'read',
      'write',
      local,
      (requests, slot, flags) => requests.read(slot, remote.address, remote.rkey, flags & ~IBV_SEND_INLINE),
      { ...remote, length: local.length, access: 'read' },
    );
  }

  /**
   * Sends a message, which consumes a receive of the peer.
   *
   * @param request.immediate 32 bits of data sent with it
   * @param request.to the destination, for datagrams only
   * @throws DmaError as {@link QueuePair.write}; EMSGSIZE, EINVAL if it is longer than the peer's receive
   */
  async send(request: {
    readonly local: MemoryPart;
    readonly immediate?: number;
    readonly to?: Destination;
  }): Promise<void> {
    const { local, immediate, to } = checkedRequest('send', request, false);
    if ((to === undefined) === (this.type === 'ud')) {
      const reason =
        to === undefined ? 'a datagram needs a destination' : 'a connected queue pair takes no destination';
      throw this.#error('EINVAL', 'send', reason);
    }
    return this.#send('send', 'read', local, (requests, slot, flags) => {
      if (immediate === undefined) requests.send(slot, flags);
      else requests.sendWithImmediate(slot, immediate, flags);
      if (to !== undefined) requests.setDestination(slot, to.address.handle, to.number, to.qkey);
    });
  }

  /**
   * If the peer's 8 bytes at `remote.address`, a multiple of 8, equal `compare`, sets them to `exchange`. The old value
   * is written to the 8 bytes at `local.va`.
   *
   * @throws DmaError as {@link QueuePair.write}
   */
  async compareAndSwap(request: {
    readonly local: Pick<MemoryPart, 'va'>;
    readonly remote: RemoteMemory;
    readonly compare: number | bigint;
    readonly exchange: number | bigint;
  }): Promise<void> {
    const { local, remote } = checkedRequest('compareAndSwap', request, true);
    const { compare, exchange } = request;
    mustBeWord(compare, 'compare', 'compareAndSwap');
    mustBeWord(exchange, 'exchange', 'compareAndSwap');
    return this.#atomic('compareAndSwap', local.va, remote, (requests, slot, flags) =>
      requests.compareAndSwap(slot, remote.address, remote.rkey, compare, exchange, flags),
    );
  }

  /** Adds `add` to the peer's 8 bytes; otherwise like {@link QueuePair.compareAndSwap}. */
  async fetchAndAdd(request: {
    readonly local: Pick<MemoryPart, 'va'>;
    readonly remote: RemoteMemory;
    readonly add: number | bigint;
  }): Promise<void> {
    const { local, remote } = checkedRequest('fetchAndAdd', request, true);
    const { add } = request;
    mustBeWord(add, 'add', 'fetchAndAdd');
    return this.#atomic('fetchAndAdd', local.va, remote, (requests, slot, flags) =>
      requests.fetchAndAdd(slot, remote.address, remote.rkey, add, flags),
    );
  }

  /**
   * Posts memory for one message and waits for the message. If several are posted, they are filled in that order.
   *
   * @throws DmaError EFAULT, ECANCELED, ENODEV as {@link QueuePair.write}; EMSGSIZE if the message is longer
   */
  async receive(memory: MemoryPart): Promise<Received> {
    const local = checkedLocal('receive', memory);
    return new Promise((resolve, reject) => {
      this.#begin(this.#receives, {
        operation: 'receive',
        local,
        access: 'write',
        post: (slot, id) => {
          const requests = (this.#receiveRequests ??= this.receiveRequests(this.#receives.underWay.length, 1));
          this.#setLocal(requests, slot, id, local, 'receive', 'write');
          this.postReceives(requests, slot, 1);
        },
        done: (completions, index) => resolve(this.#received(local, completions, index)),
        failed: reject,
      });
    });
  }

  /**
   * Binds a window to a part of a mapping: the peer can use that part by the window's rkey, until the window is bound
   * again, unbound or closed.
   *
   * @returns the rkey
   * @throws DmaError EINVAL if the part is not inside one mapping that the device may write; EACCES if the device
   * refuses
   */
  async bind(window: MemoryWindow, part: MemoryPart, remote: Exclude<RemoteAccess, 'none'>): Promise<number> {
    this.#mustTake(window, 'bind');
    mustBeOneOf(remote, ACCESSES, 'remote access', 'bind');
    this.#mustBeThere('bind');
    return this.#bind('bind', window, checkedLocal('bind', part), remote);
  }

  /** Unbinds a window, which ends the peer's access. */
  async unbind(window: MemoryWindow): Promise<void> {
    this.#mustTake(window, 'unbind');
    if (window.bound !== undefined)
      await this.#bind('unbind', window, { va: window.bound.range.start, length: 0 }, 'none');
  }

  /**
   * Closes it and cancels outstanding requests (ECANCELED). If it is being connected, it is destroyed when that is
   * done. Idempotent.
   *
   * @throws DmaError the first failure, after all steps were tried
   */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    if (this.#changing !== undefined) return;
    throwFirst(this.#finish(), 'close');
  }

  /** Releases everything it owns. @returns what failed */
  #finish(): unknown[] {
    const { rdma, owned, closed } = this.#parts;
    const errors = undoAll([() => this.connection?.close(), () => this.#destroy(rdma)]);
    const { lost } = rdma;
    this.#giveUp(
      lost !== undefined
        ? lostDevice('queue pair', this.#parts.device, lost)
        : this.#error('ECANCELED', 'queue pair', 'it was closed'),
    );
    this.completions.forget(this.#sendIds);
    this.receiveCompletions.forget(this.#receiveIds);
    closed(this);
    errors.push(...undoAll(owned.map((queue) => () => queue.close())));
    return errors;
  }

  /** Calls {@link close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** @internal Called when the device reports that it stopped. */
  stop(error: DmaError): void {
    this.#failure ??= error;
  }

  /** Puts it into the error state: outstanding requests fail with ECANCELED, and it accepts no others. */
  halt(): void {
    this.#mustBeOpen('halt');
    this.#haltsLater = this.#changing !== undefined;
    if (this.#haltsLater) return;
    this.#parts.rdma.verbs.modifyQp(this.qp, { state: IBV_QPS_ERR });
  }

  // --- internal ---

  /** Reserves room for its completions. @throws DmaError ENOSPC */
  #reserve(operation: string): void {
    const taken: (() => void)[] = [];
    try {
      for (const [queue, count] of this.#reserved) {
        queue.reserve(count, operation);
        taken.push(() => queue.reserve(-count, operation));
      }
    } catch (error) {
      for (const release of taken) release();
      throw error;
    }
  }

  #release(): void {
    for (const [queue, count] of this.#reserved) queue.reserve(-count, 'close');
  }

  #destroy({ verbs, limits }: RdmaContext): void {
    verbs.destroyQp(this.qp);
    limits.gave('queuePairs');
    this.#release();
  }

  #send(
    operation: string,
    access: DmaAccess,
    local: MemoryPart,
    fill: (requests: SendRequests, slot: number, flags: number) => void,
    remote?: Request['remote'],
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      if (remote !== undefined && (!isAddress(remote.address) || !isKey(remote.rkey)))
        throw this.#error('EINVAL', operation, 'the address or key of the remote memory is out of range');
      this.#begin(this.#sends, {
        operation,
        local,
        access,
        remote,
        post: (slot, id) => {
          const requests = this.#sendSlots;
          const inline = local.length <= this.qp.inline && access === 'read' ? IBV_SEND_INLINE : 0;
          this.#setLocal(requests, slot, id, local, operation, access);
          fill(requests, slot, IBV_SEND_SIGNALED | inline);
          this.post(requests, slot, 1);
        },
        done: () => resolve(),
        failed: reject,
      });
    });
  }

  #atomic(
    operation: string,
    va: number,
    remote: RemoteMemory,
    fill: (requests: SendRequests, slot: number, flags: number) => void,
  ): Promise<void> {
    if (remote.address % 8 !== 0)
      return Promise.reject(this.#error('EINVAL', operation, 'the remote address is not a multiple of 8'));
    return this.#send(operation, 'write', { va, length: 8 }, fill, {
      ...remote,
      length: 8,
      access: 'read-write',
    });
  }

  #bind(operation: string, window: MemoryWindow, part: MemoryPart, remote: RemoteAccess): Promise<number> {
    const { rdma } = this.#parts;
    return new Promise((resolve, reject) => {
      const unbinds = remote === 'none';
      // Also correct for unbinding: the region can not be deregistered while the window is bound to it.
      const region = unbinds
        ? window.bound?.region
        : rdma.regionOf(new Range(part.va, part.length, operation), operation);
      if (region === undefined) throw this.#error('EINVAL', operation, 'the window is not bound');
      let rkey = 0;
      this.#begin(this.#sends, {
        operation,
        local: part,
        access: 'write',
        post: (slot, id) => {
          const access = remoteFlags(remote, rdma.attributes);
          if (window.mw.type === IBV_MW_TYPE_1) {
            const binding = { mr: region.mr, va: part.va, length: part.length, access, id, flags: IBV_SEND_SIGNALED };
            rkey = rdma.verbs.bindMw(this.qp, window.mw, binding);
            return;
          }
          const requests = this.#sendSlots;
          requests.clearLocal(slot);
          requests.setId(slot, id);
          rkey = window.nextKey();
          if (unbinds) requests.invalidate(slot, window.rkey, IBV_SEND_SIGNALED);
          else requests.bindWindow(slot, window.mw, rkey, region.mr, part.va, part.length, access, IBV_SEND_SIGNALED);
          this.post(requests, slot, 1);
        },
        done: () => {
          window.became(rkey, unbinds ? undefined : { region, range: new Range(part.va, part.length) });
          resolve(rkey);
        },
        failed: reject,
      });
    });
  }

  get #sendSlots(): SendRequests {
    return (this.#sendRequests ??= this.sendRequests(this.#sends.underWay.length, 1));
  }

  #setLocal(
    requests: SendRequests | ReceiveRequests,
    slot: number,
    id: number,
    { va, length }: MemoryPart,
    operation: string,
    access: DmaAccess,
  ): void {
    requests.setId(slot, id);
    if (length === 0) {
      requests.clearLocal(slot);
      return;
    }
    if (!isAddress(va) || !isAddress(va + length) || length >= 2 ** 31)
      throw this.#error('EINVAL', operation, `${length} bytes at ${va} is too much for one request`);
    const key = this.keys.keyOf(va, length);
    if (key < 0) throw this.#unmapped(operation, va, length, access);
    requests.setLocal(slot, va, length, key);
  }

  #begin(lane: Lane, request: Request): void {
    const { rdma, device } = this.#parts;
    if (rdma.lost !== undefined) return request.failed(lostDevice(request.operation, device, rdma.lost));
    if (!this.#open) return request.failed(this.#error('EINVAL', request.operation, 'the queue pair is closed'));
    if (this.#failure !== undefined)
      return request.failed(
        this.#failure.with({ code: 'ECANCELED', operation: request.operation, cause: this.#failure }),
      );
    const slot = lane.waiting.length > 0 ? undefined : lane.take(request);
    if (slot === undefined) lane.waiting.push(request);
    else this.#start(lane, slot, request);
  }

  #start(lane: Lane, slot: number, request: Request): void {
    const isReceive = lane === this.#receives;
    const queue = isReceive ? this.receiveCompletions : this.completions;
    let isExpected = false;
    try {
      queue.expect(1);
      isExpected = true;
      request.post(slot, (isReceive ? this.#receiveIds : this.#sendIds) + slot);
    } catch (error) {
      lane.give(slot);
      if (isExpected) queue.expect(-1);
      const failure = isDmaError(error)
        ? error
        : this.#error('EIO', request.operation, thrown(error), { cause: error });
      request.failed(failure.device === undefined ? failure.with({ device: this.#parts.device }) : failure);
      this.#next(lane);
    }
  }

  #next(lane: Lane): void {
    const [request] = lane.waiting;
    if (request === undefined) return;
    const slot = lane.take(request);
    if (slot === undefined) return;
    lane.waiting.shift();
    this.#start(lane, slot, request);
  }

  #settler(lane: Lane, isReceive: boolean): Promised {
    return {
      settle: (slot, completions, index) => {
        const request = lane.give(slot);
        if (request === undefined) return;
        if (succeeded(completions, index)) request.done(completions, index);
        else this.#fail(request, completions.status(index), completions.vendorError(index));
        if (this.#failure === undefined) this.#next(lane);
        else for (const late of lane.waiting.splice(0)) late.failed(this.#cancelled(late));
        (isReceive ? this.receiveCompletions : this.completions).expect(-1);
      },
      fail: (error) => {
        this.#failure ??= error;
        for (const request of lane.empty())
          request.failed(error.with({ operation: request.operation, cause: error.cause ?? error }));
        // Requests with completions in the other queue then end too. If the device is gone, it has stopped the queue
        // pair already.
        if (this.#open) undoAll([() => this.halt()]);
      },
    };
  }

  #fail(request: Request, status: number, vendorError: number): void {
    const { operation, local, remote, access } = request;
    const { device, domain } = this.#parts;
    const name = completionStatusName(status);
    if (wasFlushed(name)) {
      this.#failure ??= completionError(status, vendorError, { operation, device });
      request.failed(this.#cancelled(request));
      return;
    }
    const range = local.length > 0 ? new Range<number>(local.va, local.length) : undefined;
    const byPeer = name === 'REM_ACCESS_ERR' && remote !== undefined;
    const hint =
      !byPeer && isProtectionError(name) && range !== undefined
        ? domain.explain(range.start, range.length, access).text
        : undefined;
    const error = completionError(status, vendorError, {
      operation,
      device,
      hint,
      range: byPeer ? remoteRange(remote) : range,
    });
    this.#failure ??= error;
    if (!byPeer || this.explainPeer === undefined) {
      request.failed(error);
      return;
    }
    void this.explainPeer(remote, remote.access).then(
      (text) => request.failed(text === undefined ? error : error.with({ hint: `the peer says: ${text}` })),
      () => request.failed(error),
    );
  }

  #cancelled({ operation }: Request): DmaError {
    const cause = this.#failure;
    const why = cause === undefined ? '' : `: ${cause.reason}`;
    return this.#error('ECANCELED', operation, `the queue pair has stopped${why}`, { cause });
  }

  #giveUp(error: DmaError): void {
    this.#failure ??= error;
    for (const [lane, queue] of [
      [this.#sends, this.completions],
      [this.#receives, this.receiveCompletions],
    ] as const) {
      const underWay = lane.underWay.filter((request) => request !== undefined).length;
      for (const { operation, failed } of lane.empty()) failed(error.with({ operation }));
      for (let i = 0; i < underWay; i++) queue.expect(-1);
    }
  }

  #received(local: MemoryPart, completions: Completions, index: number): Received {
    const flags = completions.flags(index);
    const isDatagram = this.type === 'ud';
    const header = isDatagram ? GRH : 0;
    return {
      va: local.va,
      offset: header,
      length: Math.max(0, completions.byteLength(index) - (isDatagram && (flags & IBV_WC_GRH) === 0 ? 0 : header)),
      immediate: (flags & IBV_WC_WITH_IMM) === 0 ? undefined : completions.immediate(index),
      invalidated: (flags & IBV_WC_WITH_INV) === 0 ? undefined : completions.invalidated(index),
      sourceQp: isDatagram ? completions.sourceQp(index) : undefined,
    };
  }

  #unmapped(operation: string, va: number, length: number, access: DmaAccess): DmaError {
    const hint = this.#parts.domain.explain(va, length, access).text;
    const range = new Range(va as Va, length);
    return this.#error('EFAULT', operation, 'the local memory is not all in one mapping', { range, hint });
  }

  #mustTake(window: MemoryWindow, operation: string): void {
    mustBe(window, MemoryWindow, 'the window', operation);
    if (!window.isOf(this.#parts.rdma)) throw this.#error('EINVAL', operation, 'the window is of another device');
  }

  /** @param queue the queue that would get the completions */
  #mustBeThere(operation: string, queue?: CompletionQueue): void {
    const { rdma, device } = this.#parts;
    if (rdma.lost !== undefined) throw lostDevice(operation, device, rdma.lost);
    const failure = queue?.failure;
    if (failure !== undefined) throw failure.with({ code: 'ECANCELED', operation, device, cause: failure });
  }

  #mustBeOpen(operation: string): void {
    this.#mustBeThere(operation);
    if (!this.#open) throw this.#error('EINVAL', operation, 'the queue pair is closed');
  }

  #error(
    code: DmaErrorDetails['code'],
    operation: string,
    reason: string,
    more: Partial<DmaErrorDetails> = {},
  ): DmaError {
    return new DmaError({ code, operation, device: this.#parts.device, reason, ...more });
  }
}

shortForm(QueuePair, 'QueuePair', ({ type, address }) => ({ type, number: address.number }));

/** The path to a port, from the port of a queue pair. */
export function pathTo(
  { port, portAttributes, gid }: Pick<QueuePairParts, 'port' | 'portAttributes' | 'gid'>,
  peer: Pick<QueuePairAddress, 'gid' | 'lid'>,
  { serviceLevel = 0, trafficClass = 0 }: Pick<ConnectOptions, 'serviceLevel' | 'trafficClass'> = {},
): VerbsPath {
  const isRouted = portAttributes.linkLayer === 'ethernet' || portAttributes.grhRequired || peer.lid === 0;
  if (isRouted && !isUnicast(peer.gid))
    throw invalid('connect', `${peer.gid} is not a unicast address: it is zero, broadcast or multicast`, {
      hint: 'the port of the peer has no address: give its network interface one',
    });
  const route = isRouted && gid !== undefined ? { gid: peer.gid, localIndex: gid.index, trafficClass } : undefined;
  return { port, lid: peer.lid, serviceLevel, route };
}
