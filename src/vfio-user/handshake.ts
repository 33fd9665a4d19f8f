/** The handshake of a client: it agrees with a server on limits, and reads the description of its device. */
import type { Platform } from '../platform/ports.js';
import type { Call } from './call.js';
import type { CallOptions, ClientRegion } from './client-options.js';
import type { Connection } from './connection.js';
import { protocolError } from './framing.js';
import {
  COMMAND,
  DEFAULT_CAPABILITIES,
  HEADER_SIZE,
  MAX_DATA,
  MAX_FDS,
  PROTOCOL_VERSION,
  decodeDeviceInfo,
  decodeIrqInfo,
  decodeRegionInfo,
  decodeVersion,
  encodeDeviceInfoRequest,
  encodeIrqInfoRequest,
  encodeRegionInfoRequest,
  encodeVersion,
  putCommand,
  type Capabilities,
  type DeviceInfo,
  type IrqDescription,
  type Message,
} from './messages.js';

/** argsz of GET_REGION_INFO: leaves room for the areas, so that one round trip is enough. */
const REGION_INFO_ROOM = 4096;

/** More regions or kinds of interrupts than any device has. */
const MAX_INDEXES = 64;

/** Descriptors of regions, which came from the server. */
export class RegionFiles {
  readonly #platform: Platform;
  readonly #fds = new Set<number>();

  constructor(platform: Platform) {
    this.#platform = platform;
  }

  add(fd: number): void {
    this.#fds.add(fd);
  }

  release(fd: number | undefined): void {
    if (fd !== undefined && this.#fds.delete(fd)) this.#platform.files.closeForeign(fd);
  }

  releaseAll(): void {
    for (const fd of this.#fds) this.release(fd);
  }
}

/** What a server reports about its device. */
export interface DeviceDescription {
  readonly info: DeviceInfo;
  /** By index. Regions that the device does not have have size 0. */
  readonly regions: readonly ClientRegion[];
  /** By index. Kinds that the device does not have have count 0. */
  readonly interrupts: readonly IrqDescription[];
}

/** The first commands of a connection. */
export class Handshake {
  readonly #platform: Platform;
  readonly #connection: Connection;
  readonly #files: RegionFiles;
  readonly #options: () => CallOptions;

  /** @param options of the next call @param files gets the descriptors of the regions */
  constructor(platform: Platform, connection: Connection, files: RegionFiles, options: () => CallOptions) {
    this.#platform = platform;
    this.#connection = connection;
    this.#files = files;
    this.#options = options;
  }

  /**
   * VERSION. Returns what the server announced, with defaults; transfer sizes are limited to what both ends accept.
   *
   * @param takesTwin ask the server for a second socket, for its own commands?
   */
  async agree(takesTwin: boolean): Promise<Capabilities> {
    const twinSocket = takesTwin ? { fdIndex: undefined } : undefined;
    const offer = encodeVersion({
      ...PROTOCOL_VERSION,
      capabilities: { ...DEFAULT_CAPABILITIES, maxMsgFds: MAX_FDS, twinSocket },
    });
    const { out } = this.#connection;
    out.bytes.set(offer, HEADER_SIZE);
    const size = putCommand(out.bytes, this.#connection.id(), COMMAND.VERSION, offer.length);
    return this.#answer(
      this.#connection.send(COMMAND.VERSION, size, [], (reply) => {
        const { major, minor, capabilities } = decodeVersion(reply);
        if (major !== PROTOCOL_VERSION.major || minor > PROTOCOL_VERSION.minor)
          throw protocolError(
            `version ${major}.${minor} in answer to ${PROTOCOL_VERSION.major}.${PROTOCOL_VERSION.minor}`,
          );
        if (capabilities.twinSocket !== undefined) {
          if (!takesTwin) throw protocolError('a twin socket that was not asked for');
          this.#takeTwin(reply, capabilities.twinSocket.fdIndex ?? 0);
        }
        return { ...capabilities, maxDataXferSize: Math.min(capabilities.maxDataXferSize, MAX_DATA) };
      }),
    );
  }

  /** GET_INFO, and GET_REGION_INFO and GET_IRQ_INFO for each index. */
  async describe(): Promise<DeviceDescription> {
    const { out } = this.#connection;
    const size = encodeDeviceInfoRequest(out.bytes, this.#connection.id());
    const info = await this.#answer(this.#connection.send(COMMAND.GET_INFO, size, [], decodeDeviceInfo));
    const { regionCount, interruptKinds } = info;
    if (regionCount > MAX_INDEXES || interruptKinds > MAX_INDEXES)
      throw protocolError(`a device of ${regionCount} regions and ${interruptKinds} kinds of interrupt`);
    const regions: ClientRegion[] = [];
    for (let index = 0; index < regionCount; index++) regions.push(await this.#region(index));
    const interrupts: IrqDescription[] = [];
    for (let index = 0; index < interruptKinds; index++) interrupts.push(await this.#interrupt(index));
    return { info, regions, interrupts };
  }

  #takeTwin(reply: Message, index: number): void {
    const fd = reply.fds.at(index);
    if (fd === undefined) throw protocolError('a twin socket without its descriptor');
    if (this.#platform.files.foreign(fd) !== 'socket') throw protocolError('a twin socket that is not a socket');
    reply.fds.splice(index, 1);
    this.#connection.addTwin(fd);
  }

  async #region(index: number): Promise<ClientRegion> {
    const region = await this.#regionIn(index, REGION_INFO_ROOM);
    if (region.argsz <= REGION_INFO_ROOM || region.argsz > MAX_DATA || !region.mappable) return region;
    this.#files.release(region.fd);
    return this.#regionIn(index, region.argsz);
  }

  #regionIn(index: number, room: number): Promise<ClientRegion> {
    const { out } = this.#connection;
    const size = encodeRegionInfoRequest(out.bytes, this.#connection.id(), index, room);
    const call = this.#connection.send(COMMAND.GET_REGION_INFO, size, [], (reply): ClientRegion => {
      const region = decodeRegionInfo(reply);
      const fd = region.mappable ? reply.fds.shift() : undefined;
      if (fd !== undefined) this.#files.add(fd);
      return { ...region, index, fd };
    });
    const none = { index, size: 0, fdOffset: 0, argsz: 0, areas: [], fd: undefined };
    return this.#answerOr(call, { ...none, readable: false, writable: false, mappable: false });
  }

  async #interrupt(index: number): Promise<IrqDescription> {
    const { out } = this.#connection;
    const size = encodeIrqInfoRequest(out.bytes, this.#connection.id(), index);
    const call = this.#connection.send(COMMAND.GET_IRQ_INFO, size, [], decodeIrqInfo);
    const none = { index, count: 0, eventfd: false, maskable: false, automasked: false };
    return { ...(await this.#answerOr(call, none)), index };
  }

  async #answer<T>(call: Call<T>): Promise<T> {
    await this.#connection.whenDone(call, this.#options());
    return call.result();
  }

  /**
   * The result of a call, or `otherwise` if the server refuses: that is how servers answer for what the device does not
   * have.
   */
  async #answerOr<T>(call: Call<T>, otherwise: T): Promise<T> {
    try {
      return await this.#answer(call);
    } catch (error) {
      if (this.#connection.failure !== undefined) throw error;
      return otherwise;
    }
  }
}
