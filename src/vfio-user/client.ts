/** The client's end of vfio-user: uses a device that another process serves. */
import { mustBeString } from '../check.js';
import { nonsense, type Fields, type JsonObject } from '../fields.js';
import { DmaError, invalid, isDmaError } from '../errors.js';
import type { Peer, Platform } from '../platform/ports.js';
import { RegionRegisters } from '../platform/registers/region-registers.js';
import type { LentRegisters, MappedArea, RegionCalls } from '../platform/registers/region-registers.js';
import type { Registers } from '../platform/registers/registers.js';
import { Range } from '../ranges.js';
import { runSteps, runStepsAsync, type Steps } from '../steps.js';
import { isAddress } from '../units.js';
import { accessed, answersOther, nothing, piece, withRange, type Call } from './call.js';
import {
  checkedOptions,
  type CallOptions,
  type ClientOptions,
  type ClientRegion,
  type DmaRegion,
  type InterruptRequest,
} from './client-options.js';
import { Connection, type ConnectionOwner } from './connection.js';
import { handedBytes, readHanded, restOf } from './handed-client.js';
import { Handshake, RegionFiles } from './handshake.js';
import { mapAreas, whyNotMapped, type MapChoice } from './map-areas.js';
import {
  COMMAND,
  DEFAULT_CAPABILITIES,
  DMA_UNMAP_SIZE,
  HEADER_SIZE,
  REGION_ACCESS_SIZE,
  SAFE_TRANSFER,
  encodeDmaMap,
  encodeDmaUnmap,
  encodeRegionRead,
  encodeRegionWrite,
  encodeSetIrqs,
  get64,
  operationOf,
  putCommand,
} from './messages.js';
import type { Capabilities, DeviceInfo, IrqDescription, SetIrqs } from './messages.js';
import type { Holders } from '../memory/shared/holders.js';
import type { PostedLoan } from './posted-stores.js';
import { checkServer, peerOf, whoRefuses, whyNoSocket } from './server-at.js';
import { ServerProcess } from './server-process.js';
import { delay, now } from '../timers.js';
import { STAYS } from '../stays.js';

export {
  MMAP_CHOICES,
  SHARE_CHOICES,
  STORES_CHOICES,
  type CallOptions,
  type ClientOptions,
  type ClientRegion,
  type DmaRegion,
  type DmaTarget,
  type InterruptRequest,
  type MmapChoice,
  type ShareChoice,
  type StoresChoice,
} from './client-options.js';

/** The six base address registers of a PCI device are regions 0 to 5 (VFIO_PCI_BAR0_REGION_INDEX and up). */
const LAST_BAR = 5;

/** Register stores without an answer that may be outstanding: few enough to fit into the buffer of any socket. */
const MAX_POSTED = 64;

/** How long after its socket is closed a process may take to exit, in milliseconds. */
const END_MS = 50;

/**
 * A connection to a vfio-user server. Close it when done; nothing is left behind then.
 *
 * Every call has two forms. One blocks this thread in poll(2), and meanwhile serves the device's own requests; the
 * other (`...Async`) does not block. Errors of the server are `DmaError`s with the server's error as `code`.
 *
 * If a call is not answered in time (ETIMEDOUT), the connection is closed: nobody knows whether the server did the
 * work, so the only safe answer is to take all memory away, which closing does. If a server dies (ECONNRESET) or breaks
 * the protocol (EPROTO), the connection ends in the same way, with all running and later calls.
 *
 * Calls that wait for their answer keep the process alive; the connection itself does not.
 */
export class VfioUserClient {
  /** @internal */
  readonly stays = STAYS;
  /** What the server announced, with defaults; transfer sizes are limited to what both ends accept. */
  capabilities: Capabilities = DEFAULT_CAPABILITIES;
  info: DeviceInfo = { resettable: false, pci: false, regionCount: 0, interruptKinds: 0 };
  /** By index. Regions that the device does not have have size 0. */
  regions: readonly ClientRegion[] = [];
  /** By index. Kinds that the device does not have have count 0. */
  interrupts: readonly IrqDescription[] = [];

  readonly #connection: Connection;
  readonly #registers = new Map<number, RegionRegisters>();
  readonly #registerCalls: RegionCalls = {
    regionRead: (region, offset, into) => {
      this.regionRead(region, offset, into);
      this.#posted = 0;
    },
    regionWrite: (region, offset, from) => this.#store(region, offset, from),
  };
  readonly #mapped: MappedArea[] = [];
  readonly #files: RegionFiles;
  #connected = false;
  #dmaMaps = 0;
  /** Register stores since the last answer of the server. */
  #posted = 0;
  readonly #peer: Peer | undefined;
  readonly #process: ServerProcess;
  /** Was any descriptor of memory sent? It can not be taken back. */
  #hasShared = false;

  private constructor(
    private readonly platform: Platform,
    fd: number,
    private readonly options: ClientOptions,
    paused = false,
  ) {
    this.#files = new RegionFiles(platform);
    this.#peer = peerOf(platform, fd);
    this.#process = new ServerProcess(platform, fd);
    try {
      this.#connection = new Connection(platform, fd, this.#connectionOwner(), options, paused);
    } catch (error) {
      this.#process.close();
      throw error;
    }
  }

  /**
   * Connects to the server at `path` and reads the description of its device.
   *
   * @throws DmaError ENOENT, ECONNREFUSED, EACCES (from the socket), ETIMEDOUT, ECONNRESET, EPROTO, or the server's
   *   error
   */
  static async connect(platform: Platform, path: string, options?: ClientOptions): Promise<VfioUserClient> {
    const checked = checkedOptions(platform, options);
    mustBeString(path, 'the path of a socket', 'vfio-user connect');
    const deadline = now() + (checked.handshakeTimeoutMs ?? 5000);
    for (;;) {
      try {
        const fd = platform.sockets.connect(path);
        try {
          checkServer(platform, fd, path, checked.user);
        } catch (error) {
          platform.files.close(fd);
          throw error;
        }
        return await VfioUserClient.attach(platform, fd, checked, deadline);
      } catch (error) {
        if (isDmaError(error, 'ECONNREFUSED')) throw error.with({ hint: whoRefuses(platform, path) });
        if (isDmaError(error) && error.hint === undefined && error.code !== 'EAGAIN')
          throw error.with({ hint: whyNoSocket(platform, path, error) });
        // EAGAIN: the server's backlog is full; with a backlog of 0 that is the case at once.
        if (!isDmaError(error, 'EAGAIN') || now() >= deadline) throw error;
        await delay(20);
      }
    }
  }

  /**
   * As {@link connect}, over a connected socket, which the client owns from now on.
   *
   * @param deadline for the handshake, on the clock of `now()`
   */
  static async attach(
    platform: Platform,
    fd: number,
    options?: ClientOptions,
    deadline?: number,
  ): Promise<VfioUserClient> {
    const checked = checkedOptions(platform, options);
    const until = deadline ?? now() + (checked.handshakeTimeoutMs ?? 5000);
    const client = new VfioUserClient(platform, fd, checked);
    try {
      await client.#handshake(() => ({ timeoutMs: Math.max(1, until - now()) }));
      client.#connected = true;
      return client;
    } catch (error) {
      client.close();
      if (!isDmaError(error, 'ETIMEDOUT') && !isDmaError(error, 'ECONNRESET')) throw error;
      throw error.with({ hint: 'the server may have another client already: most serve one at a time' });
    }
  }

  /**
   * @internal Continues a connection that another process has handed over; it sends nothing before `start`.
   *
   * @param fds the descriptors of {@link handOver}; they belong to the client from now on, also if it throws
   * @throws DmaError EPROTO
   */
  static takeOver(
    platform: Platform,
    state: Fields,
    fds: readonly number[],
    options?: ClientOptions,
  ): { readonly client: VfioUserClient; readonly start: () => void } {
    const left = new Set(fds);
    let client: VfioUserClient | undefined;
    try {
      const checked = checkedOptions(platform, options);
      const { regions, files, sockets, interrupts, info, capabilities } = readHanded(state, fds);
      left.delete(sockets[0]);
      client = new VfioUserClient(platform, sockets[0], checked, true);
      for (const twin of sockets.slice(1)) {
        left.delete(twin);
        client.#connection.addTwin(twin, true);
      }
      for (const fd of files) {
        left.delete(fd);
        client.#files.add(fd);
      }
      Object.assign(client, { capabilities, info, regions, interrupts });
      client.#dmaMaps = state.number('dmaMaps');
      client.#hasShared = state.boolean('hasShared');
      client.#connected = true;
      const connection = client.#connection;
      const handed = { nextId: state.number('nextId'), asks: state.boolean('asks'), rest: restOf(state) };
      return { client, start: () => connection.resume(handed) };
    } catch (error) {
      client?.abandon(nonsense('takeOver', 'a connection to a vfio-user server'));
      for (const fd of left) platform.files.close(fd);
      throw error;
    }
  }

  /**
   * @internal Waits until no call is outstanding, and then stops: another process can continue. `resume` or {@link abandon}
   *   follows.
   *
   * @param why of the calls that are refused meanwhile
   * @throws DmaError why the connection ended; EBUSY
   */
  async handOver(why: DmaError): Promise<{
    readonly state: JsonObject;
    readonly fds: readonly number[];
    readonly resume: () => void;
  }> {
    const connection = await this.#connection.pause(why);
    const regions = this.regions.map(({ fd, ...described }) => ({ ...described, hasFd: fd !== undefined }));
    const state = {
      ...{ nextId: connection.nextId, asks: connection.asks, rest: connection.rest.map(handedBytes) },
      ...{ dmaMaps: this.#dmaMaps, hasShared: this.#hasShared },
      capabilities: { ...this.capabilities, twinSocket: undefined },
      info: { ...this.info },
      regions: regions.map((region) => ({ ...region, areas: region.areas.map((area) => ({ ...area })) })),
      interrupts: this.interrupts.map((irq) => ({ ...irq })),
      sockets: this.#connection.fds.length,
    };
    const fds = [...this.#connection.fds, ...this.regions.flatMap(({ fd }) => fd ?? [])];
    return { state, fds, resume: () => this.#connection.resume(connection) };
  }

  /** @internal Another process has the connection: ends this client, which the server does not notice. */
  abandon(error: DmaError): void {
    this.#connection.abandon(error);
  }

  /** Why the connection ended; `undefined` while it is open. */
  get failure(): DmaError | undefined {
    return this.#connection.failure;
  }

  /** Why region `index`, although it can be mapped, is accessed by message; `undefined` if it is mapped. */
  notMapped(index: number): string | undefined {
    const region = this.regions.at(index);
    if (region === undefined) return undefined;
    return whyNotMapped(this.platform, region, this.#mapChoice);
  }

  /** Is the server of this user or of root? Then it could end this process anyway. */
  get #trusts(): boolean {
    return this.#peer?.trusted === true;
  }

  /** What to map, with `auto` resolved. */
  get #mapChoice(): MapChoice {
    const { mmap = 'auto' } = this.options;
    const trusts = this.#trusts;
    if (mmap === 'auto') return { mmap: trusts ? 'trust' : 'sealed', seals: trusts };
    return { mmap, seals: trusts || mmap === 'trust' };
  }

  /** Reads from `offset` of a region into `into`; long reads use several messages. */
  regionRead(region: number, offset: number, into: Uint8Array, options?: CallOptions): void {
    this.#now(this.#reading(region, offset, into), options);
  }

  /** As {@link regionRead}, without blocking the event loop. */
  async regionReadAsync(region: number, offset: number, into: Uint8Array, options?: CallOptions): Promise<void> {
    return this.#later(this.#reading(region, offset, into), options);
  }

  /**
   * Writes `from` to `offset` of a region; long writes use several messages.
   *
   * @param options `posted`: do not wait for the server, which then can not report errors
   */
  regionWrite(region: number, offset: number, from: Uint8Array, options?: CallOptions & { posted?: boolean }): void {
    if (options?.posted === true) this.#postWrite(region, offset, from);
    else this.#now(this.#writing(region, offset, from), options);
  }

  /** As {@link regionWrite}, without blocking the event loop. */
  async regionWriteAsync(region: number, offset: number, from: Uint8Array, options?: CallOptions): Promise<void> {
    return this.#later(this.#writing(region, offset, from), options);
  }

  /** Maps memory for the device. */
  dmaMap(region: DmaRegion, options?: CallOptions): void {
    this.#now(this.#mapping(region), options);
  }

  /** As {@link dmaMap}, without blocking the event loop. Many may run at once. */
  async dmaMapAsync(region: DmaRegion, options?: CallOptions): Promise<void> {
    return this.#later(this.#mapping(region), options);
  }

  /**
   * Unmaps exactly what one `dmaMap` mapped. When it returns, the device does not use it any more.
   *
   * @returns the number of bytes that the server reports as unmapped
   */
  dmaUnmap(iova: number, length: number, options?: CallOptions): number {
    return this.#now(this.#unmapping(iova, length), options);
  }

  /** As {@link dmaUnmap}, without blocking the event loop. Many may run at once. */
  async dmaUnmapAsync(iova: number, length: number, options?: CallOptions): Promise<number> {
    return this.#later(this.#unmapping(iova, length), options);
  }

  /** Connects interrupt vectors to eventfds, or masks, unmasks or triggers them. */
  setInterrupts(request: InterruptRequest, options?: CallOptions): void {
    this.#now(this.#settingInterrupts(request), options);
  }

  /** As {@link setInterrupts}, without blocking the event loop. */
  async setInterruptsAsync(request: InterruptRequest, options?: CallOptions): Promise<void> {
    return this.#later(this.#settingInterrupts(request), options);
  }

  /** Resets the device; DMA regions and interrupts stay. ENOTSUP if it has no reset. */
  reset(options?: CallOptions): void {
    this.#now(this.#resetting(), options);
  }

  /** As {@link reset}, without blocking the event loop. */
  async resetAsync(options?: CallOptions): Promise<void> {
    return this.#later(this.#resetting(), options);
  }

  /**
   * The registers of a region: by load and store where it is mapped, by message elsewhere. The same object each time;
   * it ends with the client. EINVAL for a region that the device does not have.
   *
   * Stores by message to base address registers do not wait for an answer, unless the server would take them for
   * answers to its own requests.
   */
  registers(region: number): Registers {
    if (this.failure !== undefined) throw this.failure.with({ operation: 'vfio-user registers' });
    const known = this.#registers.get(region);
    if (known !== undefined) return known;
    const described = this.regions.at(region);
    if (region < 0 || described === undefined || described.size === 0)
      throw invalid('vfio-user registers', `the device has no region ${region}`);
    const areas = mapAreas(this.platform, described, this.#mapChoice);
    this.#mapped.push(...areas);
    const registers = new RegionRegisters(this.#registerCalls, region, described.size, areas);
    this.#registers.set(region, registers);
    return registers;
  }

  /** @internal Keeps mapped registers for another thread; `undefined` if they are not mapped. */
  lendRegisters(region: number, offset: number, length: number): LentRegisters | undefined {
    this.registers(region);
    return this.#registers.get(region)?.lend(offset, length);
  }

  /**
   * @internal Lets another thread store to the registers of a region by messages over the same socket.
   *
   * @throws DmaError ENOTSUP if the server takes no stores that nobody waits for
   */
  lendStores(region: number, holders: Holders): PostedLoan {
    if (this.options.stores === 'answered')
      throw new DmaError({
        code: 'ENOTSUP',
        operation: 'vfio-user lendStores',
        reason: 'stores=answered is set, and another thread can not wait for the answers',
        hint: 'leave stores out of the name of the device',
      });
    return this.#connection.lend(region, holders);
  }

  /**
   * For a connection that ended: resolves when the server's process has ended. Until then it may reach all memory of
   * which it got the descriptor and that it did not report as unmapped. `undefined` if there is no such memory, or the
   * process has ended.
   *
   * @param unneeded aborted when the result is not needed any more, because none of that memory is handed out again
   */
  lingering(unneeded: AbortSignal): Promise<void> | undefined {
    // A process closes its sockets shortly before it counts as ended.
    if (!this.#hasShared || this.#process.ended(END_MS)) return undefined;
    return this.#process.whenEnded(unneeded);
  }

  /**
   * Ends the connection: the server takes all memory and interrupts away from the device. Running calls fail.
   * Idempotent.
   */
  close(): void {
    this.#connection.end(
      new DmaError({ code: 'ENOTCONN', operation: 'vfio-user', reason: 'the client has been closed' }),
      true,
    );
  }

  /** Calls {@link close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  #connectionOwner(): ConnectionOwner {
    const isLost = (wanted: boolean): boolean => !wanted && this.#connected;
    return {
      failureOf: (error, wanted) => (isLost(wanted) ? this.options.lostAs?.(error) : undefined) ?? error,
      release: () => {
        this.#files.releaseAll();
        for (const area of this.#mapped) area.close();
      },
      ended: (error, wanted) => {
        try {
          if (isLost(wanted)) this.options.onDisconnect?.(error);
        } finally {
          this.#process.close();
        }
      },
    };
  }

  async #handshake(options: () => CallOptions): Promise<void> {
    const handshake = new Handshake(this.platform, this.#connection, this.#files, options);
    // Who has another descriptor of a socket can hold the lock that reading it takes. A server made both ends of the twin.
    this.capabilities = await handshake.agree(this.#trusts);
    const { info, regions, interrupts } = await handshake.describe();
    this.info = info;
    this.regions = regions;
    this.interrupts = interrupts;
  }

  /** Makes the calls of `steps` one by one, blocking. @throws DmaError EBUSY while a message is being handled */
  #now<T>(steps: Steps<Call<unknown>, T>, options: CallOptions | undefined): T {
    if (this.#connection.isDispatching)
      throw new DmaError({
        code: 'EBUSY',
        operation: 'vfio-user',
        reason: 'a blocking call from within a DMA callback',
      });
    return runSteps(steps, (call) => this.#connection.wait(call, options));
  }

  /** Makes the calls of `steps` one by one, without blocking the event loop. */
  #later<T>(steps: Steps<Call<unknown>, T>, options: CallOptions | undefined): Promise<T> {
    return runStepsAsync(steps, (call) => this.#connection.whenDone(call, options));
  }

  // --- calls ---

  #checkAccess(region: number, offset: number, length: number): void {
    const size = this.regions.at(region)?.size ?? 0;
    if (!isAddress(region) || !isAddress(offset) || offset + length > size)
      throw invalid('vfio-user region', `${length} bytes at ${offset} of region ${region}, which has ${size} bytes`);
  }

  *#reading(region: number, offset: number, into: Uint8Array): Steps<Call<unknown>, void> {
    this.#checkAccess(region, offset, into.length);
    const chunk = this.capabilities.maxDataXferSize;
    for (let at = 0; at < into.length; at += chunk) yield this.#startRead(region, offset + at, piece(into, at, chunk));
  }

  *#writing(region: number, offset: number, from: Uint8Array): Steps<Call<unknown>, void> {
    this.#checkAccess(region, offset, from.length);
    const chunk = this.#writeChunk;
    for (let at = 0; at < from.length; at += chunk) yield this.#startWrite(region, offset + at, piece(from, at, chunk));
  }

  /** Writes without waiting for answers. */
  #postWrite(region: number, offset: number, from: Uint8Array): void {
    this.#checkAccess(region, offset, from.length);
    const chunk = this.#writeChunk;
    for (let at = 0; at < from.length; at += chunk) {
      const size = this.#encodeWrite(region, offset + at, piece(from, at, chunk), true);
      this.#connection.post(COMMAND.REGION_WRITE, size);
    }
  }

  /** Most bytes of one write. */
  get #writeChunk(): number {
    return Math.min(this.capabilities.maxDataXferSize, SAFE_TRANSFER);
  }

  #startRead(region: number, offset: number, into: Uint8Array): Call<void> {
    const { out } = this.#connection;
    const size = encodeRegionRead(out.bytes, this.#connection.id(), region, offset, into.length);
    return this.#connection.send(COMMAND.REGION_READ, size, [], (reply) => {
      const count = accessed(reply, region, offset, into.length);
      if (reply.payload.length < REGION_ACCESS_SIZE + count)
        throw answersOther(reply, `with ${reply.payload.length - REGION_ACCESS_SIZE} of ${count} bytes`);
      into.set(
        reply.payload.length === REGION_ACCESS_SIZE + count
          ? reply.payload.subarray(REGION_ACCESS_SIZE)
          : reply.payload.subarray(REGION_ACCESS_SIZE, REGION_ACCESS_SIZE + count),
      );
    });
  }

  #startWrite(region: number, offset: number, from: Uint8Array): Call<void> {
    const size = this.#encodeWrite(region, offset, from, false);
    const { length } = from;
    return this.#connection.send(
      COMMAND.REGION_WRITE,
      size,
      [],
      (reply) => void accessed(reply, region, offset, length),
    );
  }

  #encodeWrite(region: number, offset: number, from: Uint8Array, posted: boolean): number {
    const bytes = this.#connection.out.reserve(HEADER_SIZE + REGION_ACCESS_SIZE + from.length);
    return encodeRegionWrite(bytes, this.#connection.id(), region, offset, from, posted);
  }

  /** A store to a register. */
  #store(region: number, offset: number, from: Uint8Array): void {
    const isBar = region <= LAST_BAR || !this.info.pci;
    const isPosted = this.options.stores !== 'answered' && this.#posted < MAX_POSTED;
    if (isBar && this.#connection.mayPost && (isPosted || this.#connection.isDispatching)) {
      this.#postWrite(region, offset, from);
      this.#posted++;
    } else {
      this.regionWrite(region, offset, from);
      this.#posted = 0;
    }
  }

  *#mapping(region: DmaRegion): Steps<Call<unknown>, void> {
    try {
      yield this.#startMap(region);
    } catch (error) {
      throw this.#explainMap(error, region);
    }
    this.#dmaMaps++;
  }

  #startMap(region: DmaRegion): Call<void> {
    const { iova, length, access, backing } = region;
    const operation = operationOf(COMMAND.DMA_MAP);
    new Range(iova, length, operation);
    if (backing !== undefined && !isAddress(backing.offset)) throw invalid(operation, `offset ${backing.offset}`);
    const size = encodeDmaMap(
      this.#connection.out.bytes,
      this.#connection.id(),
      iova,
      length,
      access,
      backing?.offset ?? 0,
    );
    // A server that takes no descriptors asks for memory by message.
    const isSent = this.options.share !== 'never' && this.capabilities.maxMsgFds > 0;
    const fds = backing === undefined || !isSent ? [] : [backing.fd];
    if (fds.length > 0) this.#hasShared = true;
    else this.#connection.willBeAsked();
    return this.#connection.send(COMMAND.DMA_MAP, size, fds, nothing);
  }

  #explainMap(error: unknown, { iova, length }: DmaRegion): unknown {
    if (!isDmaError(error) || error.range !== undefined) return error;
    const { maxDmaMaps } = this.capabilities;
    const few =
      error.code === 'EINVAL' && this.#dmaMaps > 15
        ? `${this.#dmaMaps} regions are mapped; servers are known that take no more than 16 or 64 but announce ${maxDmaMaps}: ` +
          'map fewer, larger pieces'
        : undefined;
    return error.with({ range: new Range(iova, length), hint: few ?? error.hint });
  }

  *#unmapping(iova: number, length: number): Steps<Call<unknown>, number> {
    try {
      const call = this.#startUnmap(iova, length);
      yield call;
      this.#dmaMaps--;
      return call.result();
    } catch (error) {
      throw withRange(error, iova, length);
    }
  }

  #startUnmap(iova: number, length: number): Call<number> {
    new Range(iova, length, operationOf(COMMAND.DMA_UNMAP));
    const size = encodeDmaUnmap(this.#connection.out.bytes, this.#connection.id(), iova, length);
    // Servers echo the request; one that sends only a header means "done".
    return this.#connection.send(COMMAND.DMA_UNMAP, size, [], ({ payload }) =>
      payload.length >= DMA_UNMAP_SIZE ? get64(payload, 16) : length,
    );
  }

  #interruptParts(request: InterruptRequest): { irqs: SetIrqs; fds: readonly number[] }[] {
    const { index, action, start = 0, eventfds, detach = false } = request;
    const operation = operationOf(COMMAND.SET_IRQS);
    const count = request.count ?? eventfds?.length ?? 0;
    const have = this.interrupts.at(index)?.count ?? 0;
    if (!isAddress(index) || index >= this.interrupts.length)
      throw invalid(operation, `no interrupts of kind ${index}`);
    if (!isAddress(start) || !isAddress(count) || start + count > have)
      throw invalid(operation, `vectors ${start} to ${start + count - 1} of ${have}`);
    if (eventfds === undefined || eventfds.length === 0)
      return [{ irqs: { index, action, start, count, data: detach ? 'eventfd' : 'none' }, fds: [] }];
    if (eventfds.length !== count) throw invalid(operation, `${eventfds.length} eventfds for ${count} vectors`);
    const atOnce = Math.min(this.capabilities.maxMsgFds, 253);
    if (atOnce === 0) throw new DmaError({ code: 'ENOTSUP', operation, reason: 'the server takes no descriptors' });
    const parts = [];
    for (let i = 0; i < count; i += atOnce) {
      const fds = eventfds.slice(i, i + atOnce);
      parts.push({ irqs: { index, action, start: start + i, count: fds.length, data: 'eventfd' as const }, fds });
    }
    return parts;
  }

  *#settingInterrupts(request: InterruptRequest): Steps<Call<unknown>, void> {
    for (const { irqs, fds } of this.#interruptParts(request)) yield this.#startSetIrqs(irqs, fds);
  }

  #startSetIrqs(irqs: SetIrqs, fds: readonly number[]): Call<void> {
    return this.#connection.send(
      COMMAND.SET_IRQS,
      encodeSetIrqs(this.#connection.out.bytes, this.#connection.id(), irqs),
      fds,
      nothing,
    );
  }

  *#resetting(): Steps<Call<unknown>, void> {
    const operation = operationOf(COMMAND.RESET);
    if (!this.info.resettable) throw new DmaError({ code: 'ENOTSUP', operation, reason: 'the device has no reset' });
    const size = putCommand(this.#connection.out.bytes, this.#connection.id(), COMMAND.RESET, 0);
    yield this.#connection.send(COMMAND.RESET, size, [], nothing);
  }
}
