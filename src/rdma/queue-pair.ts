/**
 * A queue pair posts requests, in one of two ways. Requests that the program builds in arrays, posts in batches and
 * polls for cost no allocation and one call per batch. Methods that return promises post one request each, translate
 * its address to a key, and explain failures.
 *
 * Use all queue pairs of one completion queue in the same way.
 */
import { randomInt } from 'node:crypto';
import { isA, mustBe, mustBeOneOf, optionsOf } from '../check.js';
import type { DmaAccess, RemoteAccess } from '../dma/address-space.js';
import type { Domain } from '../dma/domain.js';
import { lostDevice } from '../dma/mapping.js';
import { KeyCache } from '../dma/key-cache.js';
import { ACCESSES } from '../dma/plan.js';
import { DmaError, type DmaErrorDetails, isDmaError, throwFirst, undoAll, withUndo } from '../errors.js';
import type { VerbsQp, VerbsQpStatus } from '../platform/rdma/verbs-types.js';
import { ReceiveRequests, SendRequests, type Completions } from '../platform/rdma/verbs-work.js';
import { IBV_MW_TYPE_1 } from '../platform/rdma/abi/memory.js';
import { IBV_QPS_ERR, IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS } from '../platform/rdma/abi/queues.js';
import {
  IBV_SEND_INLINE,
  IBV_SEND_SIGNALED,
  IBV_WC_GRH,
  IBV_WC_WITH_IMM,
  IBV_WC_WITH_INV,
} from '../platform/rdma/abi/requests.js';
import type { Shared } from '../memory/shared/shared.js';
import type { Shares } from '../memory/shared/shares.js';
import { Range } from '../ranges.js';
import { isAddress, type Va } from '../units.js';
import { remoteFlags } from './access.js';
import type { AttachedQueuePair } from './attached-queue-pair.js';
import type { CompletionQueue } from './completion-queue.js';
import type { RdmaContext } from './context.js';
import { MemoryWindow } from './memory-window.js';
import { shortForm } from '../short-form.js';
import { thrown } from '../show.js';
import {
  type CheckedQueuePairOptions,
  CONNECT_ASYNC_OPTIONS,
  type ConnectOptions,
  NO_GID,
  type QueuePairAddress,
} from './queue-pair-options.js';
import {
  checkedLocal,
  checkedRequest,
  type Destination,
  destinationsIn,
  isKey,
  mustBeWord,
  noRequests,
  type PeerExplainer,
  type QueuePairShareOptions,
  type Received,
  type RemoteMemory,
} from './queue-pair-requests.js';
import { QueuePairLending } from './queue-pair-lending.js';
import { OutstandingRequests, type Request } from './outstanding-requests.js';
import { connectSteps, READS, type QueuePairPort } from './queue-pair-connect.js';
import type { MemoryPart } from '../memory/part.js';
import { STAYS } from '../stays.js';

/** What a queue pair is created from. */
export interface QueuePairParts extends QueuePairPort {
  readonly rdma: RdmaContext;
  /** The device's name, for messages and the domain */
  readonly device: string;
  readonly domain: Domain;
  /** What shares it with other threads; absent for a device of no `Eal`. */
  readonly shares: Shares | undefined;
  readonly completions: CompletionQueue;
  readonly receiveCompletions: CompletionQueue;
  /** Completion queues to close with it */
  readonly owned: readonly CompletionQueue[];
  readonly closed: (queue: QueuePair) => void;
}

/** Bytes of the global route header before a datagram. */
const GRH = 40;

/** A queue pair. Created by `RdmaDevice.createQueuePair`; close it when no longer needed. */
export class QueuePair implements Disposable {
  /** @internal */
  readonly stays = STAYS;
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
  readonly #outstanding: OutstandingRequests;
  #sendRequests: SendRequests | undefined;
  #receiveRequests: ReceiveRequests | undefined;
  /** @internal Its connection by the connection manager; closed with the queue pair. */
  connection: { close(): void } | undefined;
  /** Resolves when no other thread changes its state any more; `undefined` if none does. */
  #changing: Promise<void> | undefined;
  #haltsLater = false;
  /** Set from {@link share} until {@link takeBack}. */
  #lending: QueuePairLending | undefined;
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
    // The device may allow more than requested, but completion queues are sized for the requested number.
    this.#outstanding = new OutstandingRequests(this, parts, sends, receives);
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
    return this.#outstanding.failure;
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
  connect(peer: QueuePairAddress, options?: ConnectOptions): void {
    const { verbs } = this.#parts.rdma;
    const { receiving, sending } = this.#connectSteps(peer, options);
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
  async connectAsync(
    peer: QueuePairAddress,
    options?: ConnectOptions & { readonly signal?: AbortSignal },
  ): Promise<void> {
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
    const { failure } = this;
    if (failure !== undefined) throw failure.with({ code: 'ECANCELED', operation: 'connect', cause: failure });
  }

  /** The changes of its state. @throws DmaError as `connect` */
  #connectSteps(peer: QueuePairAddress, asked: ConnectOptions | undefined): ReturnType<typeof connectSteps> {
    this.#mustBeOpen('connect');
    if (this.#changing !== undefined) throw this.#error('EBUSY', 'connect', 'it is being connected');
    return connectSteps(this.#parts, this, peer, asked);
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
    if (this.#lending !== undefined) throw this.#lending.busy('post');
    this.#mustBeThere('post', this.completions);
    return this.#parts.rdma.verbs.postSend(this.qp, requests, first, count === undefined ? requests.slots : count);
  }

  /** Posts receives, like {@link QueuePair.post}. */
  postReceives(requests: ReceiveRequests, first = 0, count?: number): number {
    if (!isA(requests, ReceiveRequests)) throw noRequests('postReceives', 'receiveRequests');
    if (this.#lending !== undefined) throw this.#lending.busy('postReceives');
    this.#mustBeThere('postReceives', this.receiveCompletions);
    return this.#parts.rdma.verbs.postReceive(this.qp, requests, first, count === undefined ? requests.slots : count);
  }

  // --- other threads ---

  /**
   * Offers the queue pair, with its completion queues, to another thread: what this returns can be sent there any number of times, and the
   * first one that attaches to it (`attach(shared)`) has it: it posts requests and polls by itself. From now on requests and polling are
   * EBUSY here, until {@link takeBack}; connecting, `status` and `halt` stay here.
   *
   * @throws DmaError EBUSY while promises are pending, completions are awaited, or its completion queues serve other queue pairs, too;
   *   ENOTSUP in a worker thread; EINVAL for destinations that can not be; the error that stopped it
   */
  share(options: QueuePairShareOptions = {}): Shared<AttachedQueuePair> {
    const operation = 'queuePair.share';
    this.#mustBeOpen(operation);
    const destinations = destinationsIn(options, this.qp, operation);
    if (this.#lending !== undefined) return this.#lending.description;
    const { failure } = this;
    if (failure !== undefined) throw failure.with({ operation });
    const { device, domain, shares, rdma } = this.#parts;
    const pair = { queue: this, device, domain, shares, verbs: rdma.verbs };
    this.#lending = new QueuePairLending(pair, destinations, operation);
    return this.#lending.description;
  }

  /**
   * Takes the queue pair back that {@link share} offered, from nobody or from a thread that has ended. Requests that were posted there go on:
   * their completions are polled here.
   *
   * @returns false if the thread that had it has ended without giving it back
   * @throws DmaError EBUSY while a thread has it, which the error names
   */
  takeBack(): boolean {
    const operation = 'queuePair.takeBack';
    const lending = this.#lending;
    if (lending === undefined) return true;
    const isWhole = lending.take(operation);
    lending.end(operation);
    this.#endLending();
    return isWhole;
  }

  #endLending(): void {
    this.#lending = undefined;
    for (const queue of new Set([this.completions, this.receiveCompletions])) queue.takeBack();
  }

  /** @internal EBUSY, naming it, while another thread has the queue pair, or it is offered. */
  busy(operation: string): DmaError | undefined {
    return this.#lending?.busy(operation);
  }

  /** @internal @throws DmaError EBUSY, naming it, while another thread has it */
  mustBeFree(operation: string): void {
    if (this.#lending?.user !== undefined) throw this.#lending.busy(operation);
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
      this.#outstanding.begin(this.#outstanding.receives, {
        operation: 'receive',
        local,
        access: 'write',
        post: (slot, id) => {
          const requests = (this.#receiveRequests ??= this.receiveRequests(
            this.#outstanding.receives.underWay.length,
            1,
          ));
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
    if (window.bound !== undefined) await this.#bind('unbind', window, { va: window.bound.start, length: 0 }, 'none');
  }

  /**
   * Closes it and cancels outstanding requests (ECANCELED). If it is being connected, it is destroyed when that is
   * done. Idempotent.
   *
   * @throws DmaError EBUSY while another thread has it ({@link share}): nothing was closed then; the first failure, after all steps were tried
   */
  close(): void {
    if (!this.#open) return;
    const { lost } = this.#parts.rdma;
    // The completion queues may be told only after this.
    if (lost !== undefined) this.#lending?.failed(lost);
    this.#lending?.end('close');
    this.#endLending();
    this.#open = false;
    if (this.#changing !== undefined) return;
    throwFirst(this.#finish(), 'close');
  }

  /** Releases everything it owns. @returns what failed */
  #finish(): unknown[] {
    const { rdma, owned, closed } = this.#parts;
    const errors = undoAll([() => this.connection?.close(), () => this.#destroy(rdma)]);
    const { lost } = rdma;
    this.#outstanding.giveUp(
      lost !== undefined
        ? lostDevice('queue pair', this.#parts.device, lost)
        : this.#error('ECANCELED', 'queue pair', 'it was closed'),
    );
    this.#outstanding.close();
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
    this.#outstanding.stop(error);
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
      this.#outstanding.begin(this.#outstanding.sends, {
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
      const region = unbinds ? window.region : rdma.regionOf(new Range(part.va, part.length, operation), operation);
      if (region === undefined) throw this.#error('EINVAL', operation, 'the window is not bound');
      let rkey = 0;
      this.#outstanding.begin(this.#outstanding.sends, {
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
    return (this.#sendRequests ??= this.sendRequests(this.#outstanding.sends.underWay.length, 1));
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
