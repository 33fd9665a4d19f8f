/** Requests of a queue pair whose promises are pending: those that wait for a slot, and those that wait for a completion. */
import type { DmaAccess } from '../dma/address-space.js';
import type { Domain } from '../dma/domain.js';
import { lostDevice } from '../dma/mapping.js';
import { DmaError, isDmaError, undoAll, type DmaErrorDetails } from '../errors.js';
import type { MemoryPart } from '../memory/part.js';
import { completionStatusName, type Completions } from '../platform/rdma/verbs-work.js';
import { Range } from '../ranges.js';
import { thrown } from '../show.js';
import { isAddress } from '../units.js';
import { completionError, isProtectionError, wasFlushed } from './completion-error.js';
import type { CompletionQueue } from './completion-queue.js';
import { succeeded, type Promised } from './completion-queue.js';
import type { RdmaContext } from './context.js';
import type { PeerExplainer } from './queue-pair-requests.js';

/** A request with a pending promise. */
export interface Request {
  readonly operation: string;
  readonly local: MemoryPart;
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
export class Lane {
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

/** The queue pair that the requests are posted to. */
interface RequestQueue {
  readonly rdma: RdmaContext;
  readonly completions: CompletionQueue;
  readonly receiveCompletions: CompletionQueue;
  /** Is it open? */
  readonly live: boolean;
  readonly explainPeer: PeerExplainer | undefined;
  /** EBUSY while another thread has it. */
  busy(operation: string): DmaError | undefined;
  halt(): void;
}

/** All pending requests of one queue pair, and the error that stopped it. */
export class OutstandingRequests {
  readonly sends: Lane;
  readonly receives: Lane;
  readonly #queue: RequestQueue;
  /** Name of its device. */
  readonly #device: string;
  readonly #domain: Domain;
  readonly #sendIds: number;
  readonly #receiveIds: number;
  #failure: DmaError | undefined;

  /** @param sends most outstanding sends @param receives most outstanding receives */
  constructor(
    queue: RequestQueue,
    { device, domain }: { readonly device: string; readonly domain: Domain },
    sends: number,
    receives: number,
  ) {
    this.#queue = queue;
    this.#device = device;
    this.#domain = domain;
    this.sends = new Lane(sends);
    this.receives = new Lane(receives);
    this.#sendIds = queue.completions.promise(this.#settler(this.sends, false));
    this.#receiveIds = queue.receiveCompletions.promise(this.#settler(this.receives, true));
  }

  /** The error that stopped the queue pair; `undefined` while it works. */
  get failure(): DmaError | undefined {
    return this.#failure;
  }

  /** The queue pair has stopped; the first error counts. */
  stop(error: DmaError): void {
    this.#failure ??= error;
  }

  /** Its completion queues forget it. */
  close(): void {
    this.#queue.completions.forget(this.#sendIds);
    this.#queue.receiveCompletions.forget(this.#receiveIds);
  }

  /** Posts a request, or queues it until a slot is free. */
  begin(lane: Lane, request: Request): void {
    const { rdma } = this.#queue;
    const device = this.#device;
    if (rdma.lost !== undefined) return request.failed(lostDevice(request.operation, device, rdma.lost));
    if (!this.#queue.live) return request.failed(this.#error('EINVAL', request.operation, 'the queue pair is closed'));
    if (this.#failure !== undefined)
      return request.failed(
        this.#failure.with({ code: 'ECANCELED', operation: request.operation, cause: this.#failure }),
      );
    const busy = this.#queue.busy(request.operation);
    if (busy !== undefined) return request.failed(busy);
    const slot = lane.waiting.length > 0 ? undefined : lane.take(request);
    if (slot === undefined) lane.waiting.push(request);
    else this.#start(lane, slot, request);
  }

  #start(lane: Lane, slot: number, request: Request): void {
    const isReceive = lane === this.receives;
    const queue = isReceive ? this.#queue.receiveCompletions : this.#queue.completions;
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
      request.failed(failure.device === undefined ? failure.with({ device: this.#device }) : failure);
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
        (isReceive ? this.#queue.receiveCompletions : this.#queue.completions).expect(-1);
      },
      fail: (error) => {
        this.stop(error);
        for (const request of lane.empty())
          request.failed(error.with({ operation: request.operation, cause: error.cause ?? error }));
        // Requests with completions in the other queue then end too. If the device is gone, it has stopped the queue
        // pair already.
        if (this.#queue.live) undoAll([() => this.#queue.halt()]);
      },
    };
  }

  #fail(request: Request, status: number, vendorError: number): void {
    const { operation, local, remote, access } = request;
    const device = this.#device;
    const name = completionStatusName(status);
    if (wasFlushed(name)) {
      this.stop(completionError(status, vendorError, { operation, device }));
      request.failed(this.#cancelled(request));
      return;
    }
    const range = local.length > 0 ? new Range<number>(local.va, local.length) : undefined;
    const byPeer = name === 'REM_ACCESS_ERR' && remote !== undefined;
    const hint =
      !byPeer && isProtectionError(name) && range !== undefined
        ? this.#domain.explain(range.start, range.length, access).text
        : undefined;
    const error = completionError(status, vendorError, {
      operation,
      device,
      hint,
      range: byPeer ? remoteRange(remote) : range,
    });
    this.stop(error);
    if (!byPeer || this.#queue.explainPeer === undefined) {
      request.failed(error);
      return;
    }
    void this.#queue.explainPeer(remote, remote.access).then(
      (text) => request.failed(text === undefined ? error : error.with({ hint: `the peer says: ${text}` })),
      () => request.failed(error),
    );
  }

  #cancelled({ operation }: Request): DmaError {
    const cause = this.#failure;
    const why = cause === undefined ? '' : `: ${cause.reason}`;
    return this.#error('ECANCELED', operation, `the queue pair has stopped${why}`, { cause });
  }

  /** Fails all of them; no completion will follow. */
  giveUp(error: DmaError): void {
    this.stop(error);
    for (const [lane, queue] of [
      [this.sends, this.#queue.completions],
      [this.receives, this.#queue.receiveCompletions],
    ] as const) {
      const underWay = lane.underWay.filter((request) => request !== undefined).length;
      for (const { operation, failed } of lane.empty()) failed(error.with({ operation }));
      for (let i = 0; i < underWay; i++) queue.expect(-1);
    }
  }

  #error(
    code: DmaErrorDetails['code'],
    operation: string,
    reason: string,
    more: Partial<DmaErrorDetails> = {},
  ): DmaError {
    return new DmaError({ code, operation, device: this.#device, reason, ...more });
  }
}

function remoteRange({ address, length }: { readonly address: number; readonly length: number }): Range | undefined {
  return length > 0 && isAddress(address + length) ? new Range(address, length) : undefined;
}
