/** The client's end of vfio-user: uses a device that another process serves. */
import { mustBeString } from '../check.js';
import { DmaError, invalid, isDmaError, NO_DESCRIPTORS } from '../errors.js';
import type { ErrorCode } from '../errors.js';
import type { Peer, Platform } from '../platform/ports.js';
import { RegionRegisters } from '../platform/registers/region-registers.js';
import type { MappedArea, RegionCalls } from '../platform/registers/region-registers.js';
import type { Registers } from '../platform/registers/registers.js';
import { Range } from '../ranges.js';
import { isAddress } from '../units.js';
import { accessed, answersOther, Call, nothing, piece, withRange } from './call.js';
import { Channel, pump, servesHere, type ChannelOwner } from './channel.js';
import {
  checkedOptions,
  type CallOptions,
  type ClientOptions,
  type ClientRegion,
  type DmaRegion,
  type InterruptRequest,
} from './client-options.js';
import { isCommand, protocolError } from './framing.js';
import { mapAreas, whyNotMapped, type MapChoice } from './map-areas.js';
import {
  COMMAND,
  DEFAULT_CAPABILITIES,
  DMA_UNMAP_SIZE,
  FLAG,
  HEADER_SIZE,
  MAX_DATA,
  MAX_FDS,
  PROTOCOL_VERSION,
  REGION_ACCESS_SIZE,
  SAFE_TRANSFER,
  decodeDeviceInfo,
  decodeDmaAccess,
  decodeIrqInfo,
  decodeRegionInfo,
  decodeVersion,
  encodeDeviceInfoRequest,
  encodeDmaMap,
  encodeDmaReadReply,
  encodeDmaUnmap,
  encodeDmaWriteReply,
  encodeIrqInfoRequest,
  encodeRegionInfoRequest,
  encodeRegionRead,
  encodeRegionWrite,
  encodeSetIrqs,
  encodeVersion,
  errorOfReply,
  get64,
  operationOf,
  putCommand,
  putErrorReply,
} from './messages.js';
import type { Capabilities, DeviceInfo, IrqDescription, Message, SetIrqs } from './messages.js';
import { OutBuffer } from './out-buffer.js';
import { checkServer, peerOf, whoRefuses, whyNoSocket } from './server-at.js';
import { ServerProcess } from './server-process.js';
import { clearTimeout, delay, now, setTimeout } from '../timers.js';

export {
  MMAP_CHOICES,
  SHARE_CHOICES,
  type CallOptions,
  type ClientOptions,
  type ClientRegion,
  type DmaRegion,
  type DmaTarget,
  type InterruptRequest,
  type MmapChoice,
  type ShareChoice,
} from './client-options.js';

/** Errors from decoding a reply that are passed on unchanged; any other means that the reply makes no sense. */
const GIVEN_ON: readonly ErrorCode[] = ['EPROTO', 'ENOMEM', ...NO_DESCRIPTORS];

/** argsz of GET_REGION_INFO: leaves room for the areas, so that one round trip is enough. */
const REGION_INFO_ROOM = 4096;

/** The six base address registers of a PCI device are regions 0 to 5 (VFIO_PCI_BAR0_REGION_INDEX and up). */
const LAST_BAR = 5;

/** Register stores without an answer that may be outstanding: few enough to fit into the buffer of any socket. */
const MAX_POSTED = 64;

/** How long after its socket is closed a process may take to exit, in milliseconds. */
const END_MS = 50;

/** More regions or kinds of interrupts than any device has. */
const MAX_INDEXES = 64;

const POSTED = { posted: true } as const;

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
  /** What the server announced, with defaults; transfer sizes are limited to what both ends accept. */
  capabilities: Capabilities = DEFAULT_CAPABILITIES;
  info: DeviceInfo = { resettable: false, pci: false, regionCount: 0, interruptKinds: 0 };
  /** By index. Regions that the device does not have have size 0. */
  regions: readonly ClientRegion[] = [];
  /** By index. Kinds that the device does not have have count 0. */
  interrupts: readonly IrqDescription[] = [];

  readonly #main: Channel;
  #twin: Channel | undefined;
  #channels: readonly Channel[];
  readonly #out = new OutBuffer();
  /** Separate from the buffer of commands, because the server may ask while a command is being written. */
  readonly #replies = new OutBuffer();
  readonly #pending = new Map<number, Call<unknown>>();
  readonly #registers = new Map<number, Registers>();
  readonly #registerCalls: RegionCalls = {
    regionRead: (region, offset, into) => {
      this.regionRead(region, offset, into);
      this.#posted = 0;
    },
    regionWrite: (region, offset, from) => this.#store(region, offset, from),
  };
  readonly #mapped: MappedArea[] = [];
  /** Files of the regions. */
  readonly #fds = new Set<number>();
  readonly #timeoutMs: number;
  #nextId = 0;
  #connected = false;
  #dmaMaps = 0;
  /** Register stores since the last answer of the server. */
  #posted = 0;
  /**
   * Does the server ask for memory by message? Without a twin socket, such servers take the next command for their
   * answer, so that only one command can be outstanding.
   */
  #asks = false;
  #failure: DmaError | undefined;
  readonly #peer: Peer | undefined;
  readonly #process: ServerProcess;
  /** Was any descriptor of memory sent? It can not be taken back. */
  #hasShared = false;

  private constructor(
    private readonly platform: Platform,
    fd: number,
    private readonly options: ClientOptions,
  ) {
    this.#timeoutMs = options.timeoutMs ?? 5000;
    this.#peer = peerOf(platform, fd);
    this.#process = new ServerProcess(platform, fd);
    try {
      this.#main = this.#channel(fd, true);
    } catch (error) {
      this.#process.close();
      throw error;
    }
    this.#channels = [this.#main];
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

  /** Why the connection ended; `undefined` while it is open. */
  get failure(): DmaError | undefined {
    return this.#failure;
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
    this.#blocking();
    this.#checkAccess(region, offset, into.length);
    const chunk = this.capabilities.maxDataXferSize;
    for (let at = 0; at < into.length; at += chunk)
      this.#wait(this.#startRead(region, offset + at, piece(into, at, chunk)), options);
  }

  /** As {@link regionRead}, without blocking the event loop. */
  async regionReadAsync(region: number, offset: number, into: Uint8Array, options?: CallOptions): Promise<void> {
    this.#checkAccess(region, offset, into.length);
    const chunk = this.capabilities.maxDataXferSize;
    for (let at = 0; at < into.length; at += chunk)
      await this.#promise(this.#startRead(region, offset + at, piece(into, at, chunk)), options);
  }

  /**
   * Writes `from` to `offset` of a region; long writes use several messages.
   *
   * @param options `posted`: do not wait for the server, which then can not report errors
   */
  regionWrite(region: number, offset: number, from: Uint8Array, options?: CallOptions & { posted?: boolean }): void {
    const posted = options?.posted === true;
    if (!posted) this.#blocking();
    this.#checkAccess(region, offset, from.length);
    const chunk = Math.min(this.capabilities.maxDataXferSize, SAFE_TRANSFER);
    for (let at = 0; at < from.length; at += chunk) {
      if (posted) this.#post(region, offset + at, piece(from, at, chunk));
      else this.#wait(this.#startWrite(region, offset + at, piece(from, at, chunk)), options);
    }
  }

  /** As {@link regionWrite}, without blocking the event loop. */
  async regionWriteAsync(region: number, offset: number, from: Uint8Array, options?: CallOptions): Promise<void> {
    this.#checkAccess(region, offset, from.length);
    const chunk = Math.min(this.capabilities.maxDataXferSize, SAFE_TRANSFER);
    for (let at = 0; at < from.length; at += chunk)
      await this.#promise(this.#startWrite(region, offset + at, piece(from, at, chunk)), options);
  }

  /** Maps memory for the device. */
  dmaMap(region: DmaRegion, options?: CallOptions): void {
    this.#blocking();
    try {
      this.#wait(this.#startMap(region), options);
    } catch (error) {
      throw this.#explainMap(error, region);
    }
    this.#dmaMaps++;
  }

  /** As {@link dmaMap}, without blocking the event loop. Many may run at once. */
  async dmaMapAsync(region: DmaRegion, options?: CallOptions): Promise<void> {
    try {
      await this.#promise(this.#startMap(region), options);
    } catch (error) {
      throw this.#explainMap(error, region);
    }
    this.#dmaMaps++;
  }

  /**
   * Unmaps exactly what one `dmaMap` mapped. When it returns, the device does not use it any more.
   *
   * @returns the number of bytes that the server reports as unmapped
   */
  dmaUnmap(iova: number, length: number, options?: CallOptions): number {
    this.#blocking();
    try {
      const bytes = this.#wait(this.#startUnmap(iova, length), options);
      this.#dmaMaps--;
      return bytes;
    } catch (error) {
      throw withRange(error, iova, length);
    }
  }

  /** As {@link dmaUnmap}, without blocking the event loop. Many may run at once. */
  async dmaUnmapAsync(iova: number, length: number, options?: CallOptions): Promise<number> {
    try {
      const bytes = await this.#promise(this.#startUnmap(iova, length), options);
      this.#dmaMaps--;
      return bytes;
    } catch (error) {
      throw withRange(error, iova, length);
    }
  }

  /** Connects interrupt vectors to eventfds, or masks, unmasks or triggers them. */
  setInterrupts(request: InterruptRequest, options?: CallOptions): void {
    this.#blocking();
    for (const part of this.#interruptParts(request)) this.#wait(this.#startSetIrqs(part.irqs, part.fds), options);
  }

  /** As {@link setInterrupts}, without blocking the event loop. */
  async setInterruptsAsync(request: InterruptRequest, options?: CallOptions): Promise<void> {
    for (const part of this.#interruptParts(request))
      await this.#promise(this.#startSetIrqs(part.irqs, part.fds), options);
  }

  /** Resets the device; DMA regions and interrupts stay. ENOTSUP if it has no reset. */
  reset(options?: CallOptions): void {
    this.#blocking();
    this.#wait(this.#startReset(), options);
  }

  /** As {@link reset}, without blocking the event loop. */
  async resetAsync(options?: CallOptions): Promise<void> {
    await this.#promise(this.#startReset(), options);
  }

  /**
   * The registers of a region: by load and store where it is mapped, by message elsewhere. The same object each time;
   * it ends with the client. EINVAL for a region that the device does not have.
   *
   * Stores by message to base address registers do not wait for an answer, unless the server would take them for
   * answers to its own requests.
   */
  registers(region: number): Registers {
    if (this.#failure !== undefined) throw this.#failure.with({ operation: 'vfio-user registers' });
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
    this.#end(new DmaError({ code: 'ENOTCONN', operation: 'vfio-user', reason: 'the client has been closed' }), true);
  }

  /** Calls {@link close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  #channel(fd: number, main: boolean): Channel {
    // Calls that wait have a timer; an idle connection does not keep the process alive.
    const owner: ChannelOwner = {
      onMessage: (message) => {
        if (isCommand(message)) {
          if (main) this.#asks = true;
          this.#serve(channel, message);
        } else if (main) this.#settle(message);
        else throw protocolError('a reply on the twin socket');
      },
      onClose: (error) => {
        this.#end(error, false);
      },
    };
    const channel = new Channel(this.platform, fd, owner, { keepAlive: false });
    return channel;
  }

  async #handshake(options: () => CallOptions): Promise<void> {
    // Who has another descriptor of a socket can hold the lock that reading it takes. A server made both ends of the twin.
    const twin = this.#trusts ? { fdIndex: undefined } : undefined;
    const offer = encodeVersion({
      ...PROTOCOL_VERSION,
      capabilities: { ...DEFAULT_CAPABILITIES, maxMsgFds: MAX_FDS, twinSocket: twin },
    });
    this.#out.bytes.set(offer, HEADER_SIZE);
    await this.#promise(
      this.#send(
        COMMAND.VERSION,
        putCommand(this.#out.bytes, this.#id(), COMMAND.VERSION, offer.length),
        [],
        (reply) => {
          const { major, minor, capabilities } = decodeVersion(reply);
          if (major !== PROTOCOL_VERSION.major || minor > PROTOCOL_VERSION.minor)
            throw protocolError(
              `version ${major}.${minor} in answer to ${PROTOCOL_VERSION.major}.${PROTOCOL_VERSION.minor}`,
            );
          this.capabilities = { ...capabilities, maxDataXferSize: Math.min(capabilities.maxDataXferSize, MAX_DATA) };
          const { twinSocket } = capabilities;
          if (twinSocket === undefined) return;
          if (twin === undefined) throw protocolError('a twin socket that was not asked for');
          const index = twinSocket.fdIndex ?? 0;
          const fd = reply.fds.at(index);
          if (fd === undefined) throw protocolError('a twin socket without its descriptor');
          if (this.platform.files.foreign(fd) !== 'socket') throw protocolError('a twin socket that is not a socket');
          reply.fds.splice(index, 1);
          this.#twin = this.#channel(fd, false);
          this.#channels = [this.#main, this.#twin];
        },
      ),
      options(),
    );
    this.info = await this.#promise(
      this.#send(COMMAND.GET_INFO, encodeDeviceInfoRequest(this.#out.bytes, this.#id()), [], decodeDeviceInfo),
      options(),
    );
    const { regionCount, interruptKinds } = this.info;
    if (regionCount > MAX_INDEXES || interruptKinds > MAX_INDEXES)
      throw protocolError(`a device of ${regionCount} regions and ${interruptKinds} kinds of interrupt`);
    for (let index = 0; index < regionCount; index++) {
      let region = await this.#describe(index, REGION_INFO_ROOM, options());
      if (region.argsz > REGION_INFO_ROOM && region.argsz <= MAX_DATA && region.mappable) {
        this.#release(region.fd);
        region = await this.#describe(index, region.argsz, options());
      }
      this.regions = [...this.regions, region];
    }
    for (let index = 0; index < interruptKinds; index++) {
      const call = this.#send(
        COMMAND.GET_IRQ_INFO,
        encodeIrqInfoRequest(this.#out.bytes, this.#id(), index),
        [],
        decodeIrqInfo,
      );
      const none = { index, count: 0, eventfd: false, maskable: false, automasked: false };
      this.interrupts = [...this.interrupts, { ...(await this.#promiseOr(call, none, options())), index }];
    }
  }

  #describe(index: number, room: number, options: CallOptions): Promise<ClientRegion> {
    const call = this.#send(
      COMMAND.GET_REGION_INFO,
      encodeRegionInfoRequest(this.#out.bytes, this.#id(), index, room),
      [],
      (reply): ClientRegion => {
        const region = decodeRegionInfo(reply);
        const fd = region.mappable ? reply.fds.shift() : undefined;
        if (fd !== undefined) this.#fds.add(fd);
        return { ...region, index, fd };
      },
    );
    const none = { index, size: 0, fdOffset: 0, argsz: 0, areas: [], fd: undefined };
    return this.#promiseOr(call, { ...none, readable: false, writable: false, mappable: false }, options);
  }

  /**
   * The result of a call, or `otherwise` if the server refuses: that is how servers answer for what the device does not
   * have.
   */
  async #promiseOr<T>(call: Call<T>, otherwise: T, options: CallOptions): Promise<T> {
    try {
      return await this.#promise(call, options);
    } catch (error) {
      if (this.#failure !== undefined) throw error;
      return otherwise;
    }
  }

  #id(): number {
    // Ids of running calls are skipped; there are never 65536 of them.
    do this.#nextId = (this.#nextId + 1) & 0xffff;
    while (this.#pending.has(this.#nextId));
    return this.#nextId;
  }

  /** Sends `#out`, which has the id of the last `#id()`, as a command. */
  #send<T>(command: number, size: number, fds: readonly number[], decode: (reply: Message) => T): Call<T> {
    const call = new Call(command, decode);
    if (this.#failure !== undefined) {
      call.settle(this.#failure);
      return call;
    }
    if (this.#pending.size >= 0x8000 || !this.#main.send(this.#out.message(size), fds)) {
      const reason = 'too much is waiting for the server already';
      call.settle(new DmaError({ code: 'EAGAIN', operation: operationOf(command), reason }));
      return call;
    }
    // Sending may have found that the connection ended.
    if (this.#failure !== undefined) call.settle(this.#failure);
    else this.#pending.set(this.#nextId, call);
    return call;
  }

  #wait<T>(call: Call<T>, options: CallOptions | undefined): T {
    const timeoutMs = options?.timeoutMs ?? this.#timeoutMs;
    if (!call.done && !pump(this.platform, this.#channels, call, timeoutMs)) this.#expire(call, timeoutMs);
    return call.result();
  }

  #promise<T>(call: Call<T>, options: CallOptions | undefined): Promise<T> {
    return new Promise<void>((resolve) => {
      if (call.done) {
        resolve();
        return;
      }
      const timeoutMs = options?.timeoutMs ?? this.#timeoutMs;
      const timer = setTimeout(() => {
        // The answer may have arrived but not been read, because this thread was busy.
        this.#main.service();
        if (!call.done) this.#expire(call, timeoutMs);
      }, timeoutMs);
      call.onDone = () => {
        clearTimeout(timer);
        resolve();
      };
    }).then(() => call.result());
  }

  #expire(call: Call<unknown>, timeoutMs: number): void {
    const operation = operationOf(call.command);
    const reason = `no answer within ${Math.round(timeoutMs)} ms`;
    const hint = servesHere()
      ? 'this thread serves a device too, and nothing asynchronous that its model does goes on while a call blocks: serve it ' +
        'in another process (spawnDevice) or a worker'
      : undefined;
    const error = new DmaError({ code: 'ETIMEDOUT', operation, reason, hint });
    for (const [id, other] of this.#pending) {
      if (other !== call) continue;
      this.#pending.delete(id);
      call.settle(error);
    }
    this.#end(
      error.with({ code: 'ECONNABORTED', reason: `the connection was given up: ${operation}: ${reason}` }),
      false,
    );
  }

  /** Ends the connection, once. */
  #end(error: DmaError, wanted: boolean): void {
    if (this.#failure !== undefined) return;
    const isLost = !wanted && this.#connected;
    const told = (isLost ? this.options.lostAs?.(error) : undefined) ?? error;
    this.#failure = told;
    for (const channel of this.#channels) channel.close(error);
    for (const fd of this.#fds) this.#release(fd);
    for (const area of this.#mapped) area.close();
    const calls = [...this.#pending.values()];
    this.#pending.clear();
    for (const call of calls) call.settle(told);
    try {
      if (isLost) this.options.onDisconnect?.(error);
    } finally {
      this.#process.close();
    }
  }

  #release(fd: number | undefined): void {
    if (fd !== undefined && this.#fds.delete(fd)) this.platform.files.closeForeign(fd);
  }

  #settle(reply: Message): void {
    const call = this.#pending.get(reply.id);
    if (call === undefined || call.command !== reply.command || (reply.flags & FLAG.TYPE) !== FLAG.REPLY)
      throw protocolError(`an answer to ${operationOf(reply.command)}, id ${reply.id}, which was not asked`);
    let error = errorOfReply(reply);
    if (error === undefined) {
      try {
        call.value = call.decode(reply);
      } catch (cause) {
        // An answer that does not cover the whole request fails only this call.
        if (isDmaError(cause, 'EIO')) error = cause;
        // A lack of resources in this process is not the server's fault.
        else
          throw isDmaError(cause) && GIVEN_ON.includes(cause.code)
            ? cause
            : protocolError(`a reply that makes no sense (${String(cause)})`, cause);
      }
    }
    if (reply.fds.length > 0 && call.command !== COMMAND.VERSION && call.command !== COMMAND.GET_REGION_INFO)
      throw protocolError(`descriptors with the reply to ${operationOf(reply.command)}`);
    this.#pending.delete(reply.id);
    call.settle(error);
  }

  /** Answers a command of the server; only DMA accesses are allowed. */
  #serve(channel: Channel, message: Message): void {
    const { command } = message;
    if (message.fds.length > 0) throw protocolError(`descriptors with ${operationOf(command)}`);
    const size = this.#answer(message);
    // A server that asks without reading answers is broken.
    if (!channel.send(this.#replies.message(size))) throw protocolError('the server asks but does not read');
  }

  /** Writes the answer to `#replies`; returns its size. */
  #answer(message: Message): number {
    const { command, id } = message;
    if (command !== COMMAND.DMA_READ && command !== COMMAND.DMA_WRITE)
      return putErrorReply(this.#replies.bytes, id, command, 'EINVAL');
    let access;
    try {
      access = decodeDmaAccess(message);
    } catch {
      return putErrorReply(this.#replies.bytes, id, command, 'EINVAL');
    }
    const { iova, count } = access;
    let bytes: Uint8Array | ErrorCode = 'EFAULT';
    try {
      if (isAddress(iova) && isAddress(iova + count))
        bytes = this.options.dmaTarget?.(iova, count, command === COMMAND.DMA_READ ? 'read' : 'write') ?? 'EFAULT';
      if (typeof bytes !== 'string' && bytes.length !== count) bytes = 'EFAULT';
    } catch (error) {
      bytes = isDmaError(error) ? error.code : 'EFAULT';
    }
    if (typeof bytes === 'string') return putErrorReply(this.#replies.bytes, id, command, bytes);
    if (command === COMMAND.DMA_WRITE) {
      bytes.set(message.payload.subarray(REGION_ACCESS_SIZE, REGION_ACCESS_SIZE + count));
      return encodeDmaWriteReply(this.#replies.bytes, message, access);
    }
    this.#replies.reserve(HEADER_SIZE + REGION_ACCESS_SIZE + count);
    return encodeDmaReadReply(this.#replies.bytes, message, iova, bytes);
  }

  /** EBUSY while a message is being handled: nobody would read the answer to a blocking call. */
  #blocking(): void {
    if (this.#channels.some((channel) => channel.dispatching))
      throw new DmaError({
        code: 'EBUSY',
        operation: 'vfio-user',
        reason: 'a blocking call from within a DMA callback',
      });
  }

  #checkAccess(region: number, offset: number, length: number): void {
    const size = this.regions.at(region)?.size ?? 0;
    if (!isAddress(region) || !isAddress(offset) || offset + length > size)
      throw invalid('vfio-user region', `${length} bytes at ${offset} of region ${region}, which has ${size} bytes`);
  }

  #startRead(region: number, offset: number, into: Uint8Array): Call<void> {
    const size = encodeRegionRead(this.#out.bytes, this.#id(), region, offset, into.length);
    return this.#send(COMMAND.REGION_READ, size, [], (reply) => {
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
    const size = encodeRegionWrite(
      this.#out.reserve(HEADER_SIZE + REGION_ACCESS_SIZE + from.length),
      this.#id(),
      region,
      offset,
      from,
      false,
    );
    const { length } = from;
    return this.#send(COMMAND.REGION_WRITE, size, [], (reply) => void accessed(reply, region, offset, length));
  }

  #post(region: number, offset: number, from: Uint8Array): void {
    const operation = operationOf(COMMAND.REGION_WRITE);
    if (this.#failure === undefined) {
      const size = encodeRegionWrite(
        this.#out.reserve(HEADER_SIZE + REGION_ACCESS_SIZE + from.length),
        this.#id(),
        region,
        offset,
        from,
        true,
      );
      if (!this.#main.send(this.#out.message(size)))
        throw new DmaError({ code: 'EAGAIN', operation, reason: 'too much is waiting for the server already' });
    }
    // Sending may have found that the connection ended.
    const failure = this.failure;
    if (failure !== undefined) throw failure.with({ operation });
  }

  /** A store to a register. */
  #store(region: number, offset: number, from: Uint8Array): void {
    const isBar = region <= LAST_BAR || !this.info.pci;
    const isQuiet = this.#twin !== undefined || !this.#asks;
    const mayWait = this.#channels.every((channel) => !channel.dispatching);
    if (isBar && isQuiet && (this.#posted < MAX_POSTED || !mayWait)) {
      this.regionWrite(region, offset, from, POSTED);
      this.#posted++;
    } else {
      this.regionWrite(region, offset, from);
      this.#posted = 0;
    }
  }

  #startMap(region: DmaRegion): Call<void> {
    const { iova, length, access, backing } = region;
    const operation = operationOf(COMMAND.DMA_MAP);
    new Range(iova, length, operation);
    if (backing !== undefined && !isAddress(backing.offset)) throw invalid(operation, `offset ${backing.offset}`);
    const size = encodeDmaMap(this.#out.bytes, this.#id(), iova, length, access, backing?.offset ?? 0);
    // A server that takes no descriptors asks for memory by message.
    const isSent = this.options.share !== 'never' && this.capabilities.maxMsgFds > 0;
    const fds = backing === undefined || !isSent ? [] : [backing.fd];
    if (fds.length > 0) this.#hasShared = true;
    else this.#asks = true;
    return this.#send(COMMAND.DMA_MAP, size, fds, nothing);
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

  #startUnmap(iova: number, length: number): Call<number> {
    new Range(iova, length, operationOf(COMMAND.DMA_UNMAP));
    const size = encodeDmaUnmap(this.#out.bytes, this.#id(), iova, length);
    // Servers echo the request; one that sends only a header means "done".
    return this.#send(COMMAND.DMA_UNMAP, size, [], ({ payload }) =>
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

  #startSetIrqs(irqs: SetIrqs, fds: readonly number[]): Call<void> {
    return this.#send(COMMAND.SET_IRQS, encodeSetIrqs(this.#out.bytes, this.#id(), irqs), fds, nothing);
  }

  #startReset(): Call<void> {
    const operation = operationOf(COMMAND.RESET);
    if (!this.info.resettable) throw new DmaError({ code: 'ENOTSUP', operation, reason: 'the device has no reset' });
    return this.#send(COMMAND.RESET, putCommand(this.#out.bytes, this.#id(), COMMAND.RESET, 0), [], nothing);
  }
}
