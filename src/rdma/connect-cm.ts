/**
 * Connections by the RDMA connection manager: to an IP address and a port, as with TCP, but in a separate port space.
 * Queue pairs of iWARP devices can only be connected this way; it works for InfiniBand and RoCE too.
 *
 * The manager itself chooses the device that leads to an address, so the address must be in this device's network. The
 * listening side receives each request, which may carry a few bytes of data, and accepts it with a queue pair.
 */
import { isA, mustBe, mustBeFunction, mustBeMs, mustBeString, mustBeWhole, optionsOf, type Shape } from '../check.js';
import { DmaError, errorCode, type ErrorCode, invalid, throwFirst, undoAll, withUndo } from '../errors.js';
import type { CmAddress, CmEvent, CmId, CmParameters } from '../platform/rdma/rdma-cm-port.js';
import { IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS } from '../platform/rdma/abi/queues.js';
import type { RdmaContext } from './context.js';
import { checkTimes, type ConnectOptions } from './queue-pair-options.js';
import { QueuePair } from './queue-pair.js';
import { thrown } from '../show.js';
import { clearTimeout, setTimeout } from '../timers.js';
import { STAYS } from '../stays.js';

/** Options of a connection. */
export interface CmConnectOptions extends Pick<ConnectOptions, 'timeout' | 'retries' | 'rnrRetries'> {
  /** IP address of the peer, in the network of this device */
  readonly host: string;
  readonly port: number;
  /** Data for the peer's program; at most 56 bytes on InfiniBand and RoCE. Default: none. */
  readonly data?: Uint8Array;
  /** Time limit of each step (resolving, and the response) in milliseconds. Default 10,000. */
  readonly timeoutMs?: number;
}

/** Options of accepting a request. */
export type CmAcceptOptions = Pick<CmConnectOptions, 'data' | 'timeoutMs' | 'timeout' | 'rnrRetries'>;

/** Options of a listener. */
export interface CmListenOptions {
  /** An IP address of this device's network; `0.0.0.0` or `::` for all, but requests on other devices are refused */
  readonly host: string;
  /** Default 0: any free port. */
  readonly port?: number;
  /** Most requests that may wait. Default 64. */
  readonly backlog?: number;
}

/** Answers a request. If it returns or rejects without an answer, the request is rejected. */
export type CmServe = (request: ConnectionRequest) => Promise<void> | void;

const CONNECT_OPTIONS: Shape<CmConnectOptions> = {
  host: 'string',
  port: 'number',
  data: Uint8Array,
  timeoutMs: 'number',
  timeout: 'number',
  retries: 'number',
  rnrRetries: 'number',
};
const ACCEPT_OPTIONS: Shape<CmAcceptOptions> = {
  data: Uint8Array,
  timeoutMs: 'number',
  timeout: 'number',
  rnrRetries: 'number',
};
const LISTEN_OPTIONS: Shape<CmListenOptions> = { host: 'string', port: 'number', backlog: 'number' };

/** @throws DmaError EINVAL for invalid options */
function checkOptions(options: Partial<CmConnectOptions>, operation: string): void {
  checkTimes(options, operation);
  if (options.timeoutMs !== undefined) mustBeMs(options.timeoutMs, 'timeoutMs', operation);
  if (options.data !== undefined && options.data.length > 196)
    throw invalid(operation, `data has ${options.data.length} bytes; at most 196 can be sent`);
}

const TIMEOUT_MS = 10_000;
const NO_DATA = new Uint8Array(0);
/** Code of the time that a peer waits if no receive is posted: 0.64 ms. */
const RNR_TIMER = 12;
/** How many ports are tried: the kernel chooses without regard to TCP ports, which iWARP shares. */
const PORTS_TO_TRY = 8;

/** A connection of a queue pair. It is closed with the queue pair. */
export class RdmaConnection implements Disposable {
  /** @internal */
  readonly stays = STAYS;
  /** The peer's address. */
  readonly peer: CmAddress | undefined;
  /** Resolves with the reason when it has ended, in whatever way. */
  readonly ended: Promise<DmaError>;
  #data: Uint8Array = NO_DATA;
  readonly #rdma: RdmaContext;
  readonly #id: CmId;
  readonly #pair: QueuePair;
  readonly #where: string;
  #end: (error: DmaError) => void = () => undefined;
  #failure: DmaError | undefined;
  #awaited: { readonly name: string; resolve(event: CmEvent): void; reject(error: DmaError): void } | undefined;

  /** @internal @param id of a request; by default a new one */
  constructor(rdma: RdmaContext, pair: QueuePair, where: string, id?: CmId) {
    this.#rdma = rdma;
    this.#pair = pair;
    this.#where = where;
    this.ended = new Promise((resolve) => (this.#end = resolve));
    const listening = {
      event: (event: CmEvent) => this.#heard(event),
      lost: (error: DmaError) => this.#finish(error),
    };
    this.#id = id ?? rdma.cm.create(listening);
    if (id !== undefined) rdma.cm.adopt(id, listening);
    this.peer = id === undefined ? undefined : rdma.cm.cm.remote(id);
    pair.connection = this;
  }

  /** Data from the peer's program; on InfiniBand and RoCE padded with zeros. */
  get data(): Uint8Array {
    return this.#data;
  }

  /** Is it connected? */
  get live(): boolean {
    return this.#failure === undefined;
  }

  /** Ends it and notifies the peer. The queue pair can only be closed afterwards. Idempotent. */
  close(): void {
    if (!this.live) return;
    undoAll([() => this.#rdma.cm.cm.disconnect(this.#id)]);
    const errors = this.#finish(this.#error('ECANCELED', 'the connection was closed'));
    throwFirst(errors, 'close');
  }

  /** Calls {@link close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** @internal */
  async connect(options: CmConnectOptions): Promise<void> {
    const { host, port, data = NO_DATA, timeoutMs = TIMEOUT_MS } = options;
    const rdma = this.#rdma;
    const { cm } = rdma.cm;
    const id = this.#id;
    await this.#steps(async () => {
      await this.#after('ADDR_RESOLVED', timeoutMs, () => cm.resolveAddress(id, { host, port }, timeoutMs));
      const device = cm.device(id);
      if (device !== rdma.name)
        throw this.#error(
          'ENODEV',
          device === undefined ? 'no RDMA device leads there' : `${device} leads there`,
          `connect to an address in the network of ${rdma.name}, or use the device that leads there`,
        );
      await this.#after('ROUTE_RESOLVED', timeoutMs, () => cm.resolveRoute(id, timeoutMs));
      const parameters = this.#parameters(data, options);
      if (rdma.isIwarp) {
        const { data: answer } = await this.#after('ESTABLISHED', timeoutMs, () => cm.connect(id, parameters));
        this.#data = answer;
        return;
      }
      const { data: answer } = await this.#after('CONNECT_RESPONSE', timeoutMs, () => cm.connect(id, parameters));
      this.#data = answer;
      this.#ready(options);
      cm.establish(id);
    });
  }

  /** @internal */
  async accept(request: CmEvent, options: CmAcceptOptions): Promise<void> {
    const { data = NO_DATA, timeoutMs = TIMEOUT_MS } = options;
    const rdma = this.#rdma;
    const { cm } = rdma.cm;
    const own = this.#parameters(data, options);
    const parameters = {
      ...own,
      responderDepth: Math.min(own.responderDepth, request.responderDepth),
      initiatorDepth: Math.min(own.initiatorDepth, request.initiatorDepth),
    };
    this.#data = request.data;
    await this.#steps(async () => {
      if (!rdma.isIwarp) this.#ready(options);
      await this.#after('ESTABLISHED', timeoutMs, () => cm.accept(this.#id, parameters));
    });
  }

  async #steps(steps: () => Promise<void>): Promise<void> {
    try {
      await steps();
      if (this.#failure !== undefined) throw this.#failure;
      this.#rdma.cm.calm(this.#id);
    } catch (error) {
      const failure = this.#failure ?? this.#described(error);
      throw withUndo(failure, 'connect', this.#finish(failure));
    }
  }

  /** Calls `begin` and waits for the event that follows. */
  async #after(name: string, timeoutMs: number, begin: () => void): Promise<CmEvent> {
    if (this.#failure !== undefined) throw this.#failure;
    begin();
    let timer: NodeJS.Timeout | undefined;
    try {
      return await new Promise<CmEvent>((resolve, reject) => {
        this.#awaited = { name, resolve, reject };
        timer = setTimeout(() => reject(this.#error('ETIMEDOUT', `no answer within ${timeoutMs} ms`)), timeoutMs);
      });
    } finally {
      clearTimeout(timer);
      this.#awaited = undefined;
    }
  }

  #heard(event: CmEvent): void {
    const awaited = this.#awaited;
    if (awaited?.name === event.name) {
      this.#awaited = undefined;
      awaited.resolve(event);
    } else if (!HARMLESS.includes(event.name)) this.#finish(this.#refusal(event));
  }

  #refusal({ name, status }: CmEvent): DmaError {
    const errno = status < 0 ? errorCode(-status) : 'EIO';
    switch (name) {
      case 'ADDR_ERROR':
        return this.#error(errno, 'no RDMA device leads there, or the address does not answer');
      case 'ROUTE_ERROR':
        return this.#error(errno, 'there is no route to it');
      case 'REJECTED':
        return this.#error('ECONNREFUSED', status === NOBODY_LISTENS ? 'nobody listens there' : 'the peer refused');
      case 'UNREACHABLE':
        return this.#error('ETIMEDOUT', 'the peer does not answer');
      case 'DISCONNECTED':
        return this.#error('ECONNRESET', 'the peer ended the connection');
      case 'DEVICE_REMOVAL':
        return this.#error('ENODEV', 'the device was removed');
      default:
        return this.#error(errno, `the connection failed: ${name}, status ${status}`);
    }
  }

  /** Ends it with an error. @returns what failed */
  #finish(error: DmaError): unknown[] {
    if (this.#failure !== undefined) return [];
    this.#failure = error;
    const pair = this.#pair;
    pair.stop(error);
    // The device has stopped an iWARP queue pair already, and some drivers then return an error.
    if (pair.live) undoAll([() => pair.halt()]);
    const errors = this.#rdma.cm.destroy(this.#id);
    this.#awaited?.reject(error);
    this.#end(error);
    return errors;
  }

  /** Brings the queue pair into a state in which it sends and receives. */
  #ready({ timeout, rnrRetries }: Pick<ConnectOptions, 'timeout' | 'rnrRetries'>): void {
    const rdma = this.#rdma;
    const { cm } = rdma.cm;
    const attributes = (state: number) => cm.qpAttributes(this.#id, state);
    const modify = (change: ReturnType<typeof attributes>) => rdma.verbs.modifyQp(this.#pair.qp, change);
    // The peer's access was set when the queue pair was created.
    const { access: _, ...begin } = attributes(IBV_QPS_INIT);
    modify(begin);
    modify({ ...attributes(IBV_QPS_RTR), minRnrTimer: RNR_TIMER });
    const send = attributes(IBV_QPS_RTS);
    modify({ ...send, timeout: timeout ?? send.timeout, rnrRetries: rnrRetries ?? send.rnrRetries });
  }

  #parameters(
    data: Uint8Array,
    { retries = 7, rnrRetries = 7 }: Pick<ConnectOptions, 'retries' | 'rnrRetries'>,
  ): CmParameters {
    const { reads } = this.#pair.address;
    const initiatorDepth = Math.min(reads, this.#rdma.attributes.maxInitiatorDepth);
    return { queuePair: this.#pair.number, data, responderDepth: reads, initiatorDepth, retries, rnrRetries };
  }

  /** Adds the peer to an error of a call. */
  #described(error: unknown): DmaError {
    if (!(error instanceof DmaError)) return this.#error('EIO', thrown(error));
    if (error.device !== undefined) return error;
    return error.with({ device: this.#rdma.name, reason: `${this.#where}: ${error.reason}` });
  }

  #error(code: ErrorCode, reason: string, hint?: string): DmaError {
    const device = this.#rdma.name;
    return new DmaError({ code, operation: 'connect', device, reason: `${this.#where}: ${reason}`, hint });
  }
}

/** Reject reason on InfiniBand and RoCE: IB_CM_REJ_INVALID_SERVICE_ID. */
const NOBODY_LISTENS = 8;
/** Events that change nothing. */
const HARMLESS: readonly string[] = ['ESTABLISHED', 'ADDR_CHANGE', 'TIMEWAIT_EXIT'];

/** A connection request that waits for an answer. */
export class ConnectionRequest {
  /** @internal */
  readonly stays = STAYS;
  /** The address of the requesting peer. */
  readonly peer: CmAddress | undefined;
  readonly #rdma: RdmaContext;
  readonly #event: CmEvent;
  #answered = false;

  /** @internal */
  constructor(rdma: RdmaContext, event: CmEvent) {
    this.#rdma = rdma;
    this.#event = event;
    this.peer = rdma.cm.cm.remote(event.id);
    rdma.cm.adopt(event.id, { event: () => undefined, lost: () => undefined });
  }

  /** Data from the peer's program; on InfiniBand and RoCE padded with zeros. */
  get data(): Uint8Array {
    return this.#event.data;
  }

  /**
   * Connects a queue pair to the requesting one.
   *
   * @returns when both sides are ready
   * @throws DmaError EINVAL if the request was answered, or the queue pair can not be connected; ETIMEDOUT; ECONNRESET
   */
  async accept(pair: QueuePair, options?: CmAcceptOptions): Promise<RdmaConnection> {
    const rdma = this.#rdma;
    const checked = optionsOf(options, ACCEPT_OPTIONS, 'accept');
    checkOptions(checked, 'accept');
    mustBeFree(rdma, pair);
    this.#answer();
    const where = this.peer === undefined ? 'the peer' : `${this.peer.host} port ${this.peer.port}`;
    const connection = new RdmaConnection(rdma, pair, where, this.#event.id);
    await connection.accept(this.#event, checked);
    return connection;
  }

  /** Rejects it. @param data for the peer's program. Default: none. */
  reject(data: Uint8Array = NO_DATA): void {
    mustBe(data, Uint8Array, 'the data', 'reject');
    this.#answer();
    const { cm } = this.#rdma.cm;
    const errors = undoAll([() => cm.reject(this.#event.id, data)]);
    errors.push(...this.#rdma.cm.destroy(this.#event.id));
    throwFirst(errors, 'reject');
  }

  /** @internal Rejects it unless it was answered. */
  settle(): void {
    if (!this.#answered) undoAll([() => this.reject()]);
  }

  #answer(): void {
    if (this.#answered)
      throw new DmaError({ code: 'EINVAL', operation: 'accept', reason: 'the request was answered already' });
    this.#answered = true;
  }
}

/** Listens for requests. Closing it leaves existing connections open. */
export class RdmaListener implements Disposable {
  /** @internal */
  readonly stays = STAYS;
  /** Its address, with the port that was chosen. */
  readonly address: CmAddress;
  readonly #rdma: RdmaContext;
  readonly #serve: CmServe;
  readonly #requests = new Set<ConnectionRequest>();
  readonly #id: CmId;
  readonly #closed: (listener: RdmaListener) => void;
  #open = true;

  /** @internal */
  constructor(
    rdma: RdmaContext,
    options: CmListenOptions,
    serve: CmServe,
    closed: (listener: RdmaListener) => void = () => undefined,
  ) {
    const operation = 'listen';
    mustBeFunction(serve, 'what serves requests', operation);
    const { host, port = 0, backlog = 64 } = optionsOf(options, LISTEN_OPTIONS, operation);
    mustBeString(host, 'host', operation);
    mustBeWhole(port, 0, 65535, 'port', operation);
    mustBeWhole(backlog, 1, 65535, 'backlog', operation);
    this.#rdma = rdma;
    this.#serve = serve;
    this.#closed = closed;
    const hub = rdma.cm;
    const { cm } = hub;
    for (let left = port === 0 ? PORTS_TO_TRY : 1; ; left--) {
      const id = hub.create({ event: (event) => this.#heard(event), lost: () => this.close() });
      try {
        cm.bind(id, { host, port });
        const device = cm.device(id);
        if (device !== undefined && device !== rdma.name)
          throw new DmaError({
            code: 'ENODEV',
            operation,
            device: rdma.name,
            reason: `${host} is an address of ${device}`,
            hint: `take an address of the network of ${rdma.name}`,
          });
        cm.listen(id, backlog);
        this.#id = id;
        this.address = cm.local(id) ?? { host, port };
        return;
      } catch (error) {
        const failure = withUndo(error, operation, hub.destroy(id));
        if (left === 1 || failure.code !== 'EADDRINUSE') throw failure;
      }
    }
  }

  /** Stops listening, and rejects unanswered requests. Idempotent. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    for (const request of this.#requests) request.settle();
    this.#closed(this);
    const errors = this.#rdma.cm.destroy(this.#id);
    throwFirst(errors, 'close');
  }

  /** Calls {@link close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  #heard(event: CmEvent): void {
    if (event.name !== 'CONNECT_REQUEST') return;
    const request = new ConnectionRequest(this.#rdma, event);
    this.#requests.add(request);
    void this.#ask(request, event.id);
  }

  async #ask(request: ConnectionRequest, id: CmId): Promise<void> {
    try {
      if (this.#rdma.cm.cm.device(id) === this.#rdma.name) await this.#serve(request);
    } catch {
      // The peer gets a rejection.
    }
    request.settle();
    this.#requests.delete(request);
  }
}

/** @internal */
export async function connectByManager(
  rdma: RdmaContext,
  pair: QueuePair,
  asked: CmConnectOptions,
): Promise<RdmaConnection> {
  const operation = 'connect';
  mustBeFree(rdma, pair);
  const options = optionsOf(asked, CONNECT_OPTIONS, operation);
  const { host, port } = options;
  mustBeString(host, 'host', operation);
  mustBeWhole(port, 1, 65535, 'port', operation);
  checkOptions(options, operation);
  const connection = new RdmaConnection(rdma, pair, `${host} port ${port}`);
  await connection.connect({ ...options, host, port });
  return connection;
}

function mustBeFree(rdma: RdmaContext, pair: QueuePair): void {
  const refuse = (reason: string): DmaError =>
    new DmaError({ code: 'EINVAL', operation: 'connect', device: rdma.name, reason });
  if (!isA(pair, QueuePair)) throw refuse('this is not a queue pair');
  if (!pair.live) throw refuse('the queue pair is closed');
  if (pair.type !== 'rc') throw refuse('the connection manager only supports reliable connections');
  if (pair.rdma !== rdma) throw refuse('the queue pair is of another device');
  if (pair.connection !== undefined) throw refuse('the queue pair is, or was, connected');
}
