/**
 * A queue pair posts requests, in one of two ways. Requests that the program builds in arrays, posts in batches and
 * polls for cost no allocation and one call per batch. Methods that return promises post one request each, translate
 * its address to a key, and explain failures.
 *
 * Use all queue pairs of one completion queue in the same way.
 */
import { randomInt } from 'node:crypto';
import { isA, mustBe, mustBeObject, mustBeOneOf, mustBeWhole, optionsOf, reading, type Shape } from '../check.js';
import type { DmaAccess, RemoteAccess } from '../dma/address-space.js';
import type { Domain } from '../dma/domain.js';
import { lostDevice } from '../dma/mapping.js';
import { KeyCache, type KeyCacheOptions } from '../dma/key-cache.js';
import { ACCESSES, REMOTES } from '../dma/plan.js';
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
import { AddressHandle } from './address-handle.js';
import { completionError, isProtectionError, wasFlushed } from './completion-error.js';
import { CompletionQueue, succeeded, type Promised } from './completion-queue.js';
import type { RdmaContext } from './context.js';
import { isGid, isUnicast } from './gid.js';
import { MemoryWindow } from './memory-window.js';
import { shortForm } from '../short-form.js';
import { show, thrown } from '../show.js';

/** Options of a queue pair. */
export interface QueuePairOptions {
  /** Reliable connection (the default), unreliable connection, unreliable datagrams. */
  readonly type?: 'rc' | 'uc' | 'ud';
  /**
   * Queue of its completions. It must have room for all `sends` and `receives` of its queue pairs. Default: a queue of
   * its own, closed with it.
   */
  readonly completions?: CompletionQueue;
  /** Queue of receive completions. Default: `completions`. */
  readonly receiveCompletions?: CompletionQueue;
  /** Send requests that can be outstanding. Default 128, or the device's limit if less. */
  readonly sends?: number;
  /** Receives that can be posted. Default 128, or the device's limit if less. */
  readonly receives?: number;
  /** Most segments of a request. Default 1. */
  readonly sendSges?: number;
  readonly receiveSges?: number;
  /**
   * Messages up to this many bytes are copied into the request itself, so that the device need not fetch them. Default
   * 0.
   */
  readonly inline?: number;
  /** Default: the first active port, else port 1. */
  readonly port?: number;
  /** The port's address to use: an index of its GID table. Default: see `chooseGid`. */
  readonly gidIndex?: number;
  /** What the peer may do through it, if the memory allows that too. Default `read-write`, with atomics. */
  readonly remote?: RemoteAccess;
  /** For datagrams: senders must pass this key. Default 0x11111111. */
  readonly qkey?: number;
  /** Called for memory without a key, to register it on demand; see `MapOnMiss.register`. Default: none. */
  readonly miss?: KeyCacheOptions['miss'];
}

const QUEUE_PAIR_OPTIONS: Shape<QueuePairOptions> = {
  type: ['rc', 'uc', 'ud'],
  completions: CompletionQueue,
  receiveCompletions: CompletionQueue,
  sends: 'number',
  receives: 'number',
  sendSges: 'number',
  receiveSges: 'number',
  inline: 'number',
  port: 'number',
  gidIndex: 'number',
  remote: REMOTES,
  qkey: 'number',
  miss: 'function',
};

/** Checked options, with the numbers of requests filled in. */
export type CheckedQueuePairOptions = QueuePairOptions & Required<Pick<QueuePairOptions, 'sends' | 'receives'>>;

/** @throws DmaError EINVAL for options that this device does not support */
export function queuePairOptions(
  asked: QueuePairOptions | undefined,
  rdma: RdmaContext,
  operation: string,
): CheckedQueuePairOptions {
  const options = optionsOf(asked, QUEUE_PAIR_OPTIONS, operation);
  const { limits, attributes } = rdma;
  const byDefault = attributes.maxRequests > 0 ? Math.min(128, attributes.maxRequests) : 128;
  const { sends = byDefault, receives = byDefault, sendSges = 1, receiveSges = 1, inline = 0, qkey = 0 } = options;
  // 65536: more than the queues of promises hold, see `CompletionQueue.promise`.
  const requests = { least: 0, own: 65536, limit: attributes.maxRequests, c: 'max_qp_wr', operation };
  const segments = { least: 1, own: 65536, limit: attributes.maxSges, c: 'max_sge', operation };
  limits.mustHave(sends, 'sends', requests);
  limits.mustHave(receives, 'receives', requests);
  limits.mustHave(sendSges, 'sendSges', segments);
  limits.mustHave(receiveSges, 'receiveSges', segments);
  mustBeWhole(inline, 0, 2 ** 31 - 1, 'inline', operation);
  mustBeWhole(qkey, 0, 2 ** 32 - 1, 'qkey', operation);
  for (const queue of [options.completions, options.receiveCompletions])
    if (queue !== undefined && (!queue.live || !queue.isOf(rdma)))
      throw invalid(
        operation,
        queue.live ? 'the completion queue is of another device' : 'the completion queue is closed',
      );
  return { ...options, sends, receives };
}

/** What the peer must know of a queue pair. Sent over the network as it is. */
export interface QueuePairAddress {
  readonly number: number;
  /** Its first send sequence number, 24 bits */
  readonly psn: number;
  /** The port's address in the kernel's notation */
  readonly gid: string;
  /** The port's LID on InfiniBand, else 0 */
  readonly lid: number;
  /** path MTU limit of its port, in bytes */
  readonly mtu: number;
  /** Reads and atomics that it accepts at once */
  readonly reads: number;
  /** For datagrams; 0 for connections */
  readonly qkey: number;
}

/** Memory of the peer, as the peer announced it. */
export interface RemoteMemory {
  readonly address: number;
  readonly rkey: number;
}

/** Local memory, inside one mapping. */
export interface LocalMemory {
  readonly va: number;
  /** bytes */
  readonly length: number;
}

/** Options of a connection. The defaults suit a reliable network. */
export interface ConnectOptions {
  /** bytes: 256, 512, 1024, 2048 or 4096. Default: the smaller of both ports'. */
  readonly mtu?: number;
  /** The acknowledgement timeout is 4.096 µs * 2^timeout. Default 14, which is 67 ms; 0 waits forever. */
  readonly timeout?: number;
  /** Retries after a timeout. Default 7. */
  readonly retries?: number;
  /** Retries while the peer has no receive posted. Default 7, which means unlimited. */
  readonly rnrRetries?: number;
  /** Default 0. */
  readonly serviceLevel?: number;
  /** Default 0. */
  readonly trafficClass?: number;
}

const CONNECT_OPTIONS: Shape<ConnectOptions> = {
  mtu: 'number',
  timeout: 'number',
  retries: 'number',
  rnrRetries: 'number',
  serviceLevel: 'number',
  trafficClass: 'number',
};

/** Options of an asynchronous connect. */
export interface ConnectAsyncOptions extends ConnectOptions {
  /** Cancels while the call waits for its turn. */
  readonly signal?: AbortSignal;
}

const CONNECT_ASYNC_OPTIONS: Shape<ConnectAsyncOptions> = { ...CONNECT_OPTIONS, signal: 'signal' };

/** @throws DmaError EINVAL for invalid timeouts or retry counts */
export function checkTimes(
  { timeout, retries, rnrRetries }: Pick<ConnectOptions, 'timeout' | 'retries' | 'rnrRetries'>,
  operation: string,
): void {
  if (timeout !== undefined) mustBeWhole(timeout, 0, 31, 'timeout', operation);
  if (retries !== undefined) mustBeWhole(retries, 0, 7, 'retries', operation);
  if (rnrRetries !== undefined) mustBeWhole(rnrRetries, 0, 7, 'rnrRetries', operation);
}

/** A received message. */
export interface Received {
  /** Address of the memory that was posted for it. */
  readonly va: number;
  /** Where the message begins in that memory, in bytes: 40 for datagrams, after a header, else 0. */
  readonly offset: number;
  /** length of the message in bytes */
  readonly length: number;
  /** 32 bits of immediate data */
  readonly immediate: number | undefined;
  /** The key of a window that the peer invalidated */
  readonly invalidated: number | undefined;
  /** The number of the sending queue pair, for datagrams */
  readonly sourceQp: number | undefined;
}

/** The destination of a datagram. */
export interface Destination {
  readonly address: AddressHandle;
  /** The number of its queue pair */
  readonly number: number;
  readonly qkey: number;
}

/** Asks the peer to explain an address of its memory; `undefined` if it does not answer. */
export type PeerExplainer = (
  memory: { readonly address: number; readonly length: number; readonly rkey: number },
  access: DmaAccess,
) => Promise<string | undefined>;

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

/** A request with a pending promise. */
interface Request {
  readonly operation: string;
  readonly local: LocalMemory;
  /** What the device does with the local memory: `read` for a send */
  readonly access: DmaAccess;
  readonly remote?: {
    readonly address: number;
    readonly length: number;
    readonly rkey: number;
    readonly access: DmaAccess;
  };
  readonly post: (slot: number, id: number) => void;
  readonly done: (completions: Completions, index: number) => void;
  readonly failed: (error: DmaError) => void;
}

/** Requests of one direction: those outstanding, and those that wait for a free slot. */
class Lane {
  readonly underWay: (Request | undefined)[];
  readonly waiting: Request[] = [];
  readonly #free: number[] = [];

  constructor(slots: number) {
    this.underWay = new Array<Request | undefined>(slots).fill(undefined);
    for (let slot = slots - 1; slot >= 0; slot--) this.#free.push(slot);
  }

  take(request: Request): number | undefined {
    const slot = this.#free.pop();
    if (slot !== undefined) this.underWay[slot] = request;
    return slot;
  }

  give(slot: number): Request | undefined {
    const request = this.underWay[slot];
    if (request === undefined) return undefined;
    this.underWay[slot] = undefined;
    this.#free.push(slot);
    return request;
  }

  /** Removes and returns all requests, oldest first as far as their order is known. */
  empty(): Request[] {
    const all = [...this.underWay.filter((request) => request !== undefined), ...this.waiting.splice(0)];
    for (let slot = 0; slot < this.underWay.length; slot++) this.give(slot);
    return all;
  }
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
    readonly local: LocalMemory;
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
  async read(request: { readonly local: LocalMemory; readonly remote: RemoteMemory }): Promise<void> {
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
    readonly local: LocalMemory;
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
    readonly local: Pick<LocalMemory, 'va'>;
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
    readonly local: Pick<LocalMemory, 'va'>;
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
  async receive(memory: LocalMemory): Promise<Received> {
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
  async bind(window: MemoryWindow, part: LocalMemory, remote: Exclude<RemoteAccess, 'none'>): Promise<number> {
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
    local: LocalMemory,
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

  #bind(operation: string, window: MemoryWindow, part: LocalMemory, remote: RemoteAccess): Promise<number> {
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
    { va, length }: LocalMemory,
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
    const range = local.length > 0 ? new Range(local.va, local.length) : undefined;
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

  #received(local: LocalMemory, completions: Completions, index: number): Received {
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

/** Path MTUs in bytes. */
const MTUS: readonly number[] = [256, 512, 1024, 2048, 4096];
const NO_GID = '0000:0000:0000:0000:0000:0000:0000:0000';

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

/** A copy of the caller's request, whose objects the caller may change. */
interface CheckedRequest {
  readonly local: LocalMemory;
  readonly remote: RemoteMemory;
  readonly immediate: number | undefined;
  readonly to: Destination | undefined;
}

const NO_REMOTE: RemoteMemory = { address: 0, rkey: 0 };

/** @throws DmaError EINVAL for an invalid request @param hasRemote does it name memory of the peer? */
function checkedRequest(
  operation: string,
  request: {
    readonly local: Pick<LocalMemory, 'va'> & Partial<LocalMemory>;
    readonly remote?: RemoteMemory;
    readonly immediate?: number;
    readonly to?: Destination;
  },
  hasRemote: boolean,
): CheckedRequest {
  try {
    mustBeObject(request, 'requests', operation);
    const { local, remote, immediate, to } = request;
    if (immediate !== undefined) mustBeWhole(immediate, 0, 2 ** 32 - 1, 'immediate', operation);
    return {
      local: checkedLocal(operation, local),
      remote: hasRemote ? checkedRemote(operation, remote) : NO_REMOTE,
      immediate,
      to: to === undefined ? undefined : checkedDestination(operation, to),
    };
  } catch (error) {
    throw isDmaError(error) ? error : unreadable(operation, error);
  }
}

function checkedLocal(operation: string, local: Pick<LocalMemory, 'va'> & Partial<LocalMemory>): LocalMemory {
  try {
    mustBeObject(local, 'local memory', operation);
    // The length of an atomic is 8 bytes.
    const { va, length = 8 } = local;
    if (!isAddress(va) || !isAddress(length))
      throw invalid(operation, `${show(length)} bytes at ${show(va)} is not a valid range of local memory`);
    return { va, length };
  } catch (error) {
    throw isDmaError(error) ? error : unreadable(operation, error);
  }
}

function checkedRemote(operation: string, remote: RemoteMemory | undefined): RemoteMemory {
  mustBeObject(remote, 'memory of the peer', operation);
  const { address, rkey } = remote;
  if (isAddress(address) && isKey(rkey)) return { address, rkey };
  throw invalid(operation, `address ${show(address)} or key ${show(rkey)} of the remote memory is out of range`);
}

function checkedDestination(operation: string, to: Destination): Destination {
  mustBeObject(to, 'destinations', operation);
  const { address, number, qkey } = to;
  mustBe(address, AddressHandle, 'the address of a destination', operation);
  mustBeWhole(number, 0, 2 ** 24 - 1, 'the number of a queue pair', operation);
  mustBeWhole(qkey, 0, 2 ** 32 - 1, 'qkey', operation);
  return { address, number, qkey };
}

function unreadable(operation: string, cause: unknown): DmaError {
  return invalid(operation, `the request can not be read: ${thrown(cause)}`, { cause });
}

/** @throws DmaError EINVAL for a value that is not a 64-bit integer */
function mustBeWord(value: number | bigint, what: string, operation: string): void {
  if (typeof value === 'bigint' ? value < -(2n ** 63n) || value >= 2n ** 64n : !Number.isSafeInteger(value))
    throw invalid(operation, `${what} is ${show(value)}, not a 64-bit integer`);
}

function noRequests(operation: string, by: string): DmaError {
  return invalid(operation, `it takes requests that ${by}() of a queue pair made`);
}

/** Checks an address from the peer. @throws DmaError EINVAL if it is not valid */
export function checkAddress(peer: QueuePairAddress): void {
  mustBeObject(peer, 'addresses of queue pairs', 'connect');
  const { number, psn, gid, lid, mtu, reads, qkey } = reading('connect', 'the address', () => ({ ...peer }));
  const whole = (value: number, limit: number): boolean => Number.isInteger(value) && value >= 0 && value < limit;
  const isSound =
    whole(number, 2 ** 24) &&
    whole(psn, 2 ** 24) &&
    whole(lid, 2 ** 16) &&
    whole(reads, 256) &&
    isKey(qkey) &&
    MTUS.includes(mtu) &&
    typeof gid === 'string' &&
    isGid(gid);
  if (!isSound) throw invalid('connect', 'this is not the address of a queue pair');
}

/** Is it a 32-bit unsigned integer? */
export function isKey(value: number): boolean {
  return Number.isInteger(value) && value >= 0 && value < 2 ** 32;
}

function remoteRange({ address, length }: { readonly address: number; readonly length: number }): Range | undefined {
  return length > 0 && isAddress(address + length) ? new Range(address, length) : undefined;
}
