/** One client of a vfio-user device: reads its commands, strictly in order, and answers them. */
import { DmaError, invalid, isDmaError } from '../errors.js';
import type { ErrorCode } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { modelFault } from './devices/model.js';
import { Channel, type ChannelOwner } from './channel.js';
import { REGION_COUNT } from './hosted-device.js';
import type { HostedDevice } from './hosted-device.js';
import { isCommand, protocolError } from './framing.js';
import {
  COMMAND,
  DEFAULT_CAPABILITIES,
  DMA_ACCESS_SIZE,
  DMA_UNMAP_SIZE,
  FLAG,
  HEADER_SIZE,
  IO_FDS_SIZE,
  IRQ_INFO_SIZE,
  DEVICE_INFO_SIZE,
  MAX_FDS,
  MAX_MESSAGE,
  PROTOCOL_VERSION,
  REGION_ACCESS_SIZE,
  REGION_INFO_SIZE,
  SAFE_TRANSFER,
  decodeDmaMap,
  decodeDmaUnmap,
  decodeRegionAccess,
  decodeSetIrqs,
  decodeVersion,
  encodeDeviceInfo,
  encodeDmaRead,
  encodeDmaWrite,
  encodeIrqInfo,
  encodeNoIoFds,
  encodeRegionInfo,
  encodeRegionReply,
  encodeVersion,
  errorOfReply,
  get32,
  get64,
  needPayload,
  needStruct,
  operationOf,
  putErrorReply,
  putReply,
} from './messages.js';
import type { Message } from './messages.js';
import { IRQ_KINDS } from './interrupts.js';
import { OutBuffer } from './out-buffer.js';
import type { DmaMessages } from './dma-table.js';
import { clearTimeout, setTimeout } from '../timers.js';

/** Most commands that may wait while one is carried out: replies to this side must be read past them. */
const MAX_BACKLOG = 256;
/** Most bytes in them. */
const MAX_BACKLOG_BYTES = 4 * MAX_MESSAGE;
/** Most descriptors with them. */
const MAX_BACKLOG_FDS = 4 * MAX_FDS;

/** Descriptors of one client that may wait to be closed. */
export const MAX_CLOSING = 64;

/** Times in milliseconds after which a client that does not answer is disconnected. */
export interface SessionOptions {
  /** For the client's VERSION. */
  readonly handshakeTimeoutMs: number;
  /** For the answer to a DMA access. */
  readonly dmaTimeoutMs: number;
  /** Whether the client is trusted with its memory and its descriptors. */
  readonly trusted: boolean;
  /** Called with errors of the device itself, which no client caused. */
  readonly onFault?: (error: DmaError) => void;
  /** Called when a command without a reply is refused, such as a posted store: once per client. */
  readonly onRefused?: (error: DmaError) => void;
}

/** Sends the answer: the first `size` bytes of the replies, and descriptors. */
type Done = (size: number, fds?: readonly number[]) => void;

/** The rest of a command that takes longer, if any. */
type Working = Promise<void> | undefined;

/** A DMA access by message that waits for its reply. */
interface Asked {
  readonly command: number;
  readonly settle: (error: DmaError | undefined) => void;
  /** The destination of a DMA_READ. */
  readonly into: Uint8Array | undefined;
  readonly count: number;
}

/**
 * One client's session. When it ends, `onEnd` is called once; the client's mappings are removed by then, or when the
 * running command ends: see {@link Session.idle}.
 */
export class Session implements DmaMessages {
  readonly #main: Channel;
  #twin: Channel | undefined;
  #version = false;
  /** Whether the client accepts descriptors, and how much data in one message. */
  #takesFds = false;
  #maxData = SAFE_TRANSFER;
  readonly #replies = new OutBuffer();
  /** Separate from the replies, because a device may ask while a reply is being written. */
  readonly #asks = new OutBuffer();
  /** The command that is being carried out, if it takes longer than this turn. */
  #running: Promise<void> | undefined;
  readonly #backlog: Message[] = [];
  #backlogBytes = 0;
  #backlogFds = 0;
  readonly #asked = new Map<number, Asked>();
  #nextId = 0;
  #toldRefused = false;
  readonly #closingBefore: number;
  #timer: NodeJS.Timeout | undefined;
  #failure: DmaError | undefined;

  /** @param fd the client's connection, which the session owns from now on */
  constructor(
    private readonly platform: Platform,
    fd: number,
    private readonly device: HostedDevice,
    private readonly options: SessionOptions,
    private readonly onEnd: (error: DmaError) => void,
  ) {
    this.#closingBefore = platform.files.closing();
    this.#main = this.#channel(fd, true);
    this.#startTimer(options.handshakeTimeoutMs, 'VERSION');
  }

  /** Why it ended; `undefined` while the client is connected. */
  get failure(): DmaError | undefined {
    return this.#failure;
  }

  /** Whether the client has left many descriptors that are not closed yet, because closing them blocks. */
  get clings(): boolean {
    return !this.options.trusted && this.platform.files.closing() - this.#closingBefore > MAX_CLOSING;
  }

  /** Resolves when no command is running; `undefined` if none is. */
  get idle(): Promise<void> | undefined {
    return this.#running;
  }

  /** Handles the messages that have arrived already. */
  service(): void {
    this.#main.service();
  }

  /** Disconnects the client. Idempotent. */
  close(error: DmaError): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    clearTimeout(this.#timer);
    this.#main.close(error);
    this.#twin?.close(error);
    for (const { fds } of this.#backlog) for (const fd of fds) this.platform.files.closeForeign(fd);
    this.#backlog.length = 0;
    const asked = [...this.#asked.values()];
    this.#asked.clear();
    for (const { settle } of asked) settle(error);
    this.onEnd(error);
  }

  /** Sends DMA_READ, in as many messages as the client's limit needs. */
  async read(iova: number, into: Uint8Array): Promise<void> {
    for (let at = 0; at < into.length; at += this.#maxData) {
      const piece = into.subarray(at, at + this.#maxData);
      const size = encodeDmaRead(this.#asks.bytes, this.#id(), iova + at, piece.length);
      await this.#ask(COMMAND.DMA_READ, size, piece.length, piece);
    }
  }

  /** Sends DMA_WRITE, in as many messages as the client's limit needs. */
  async write(iova: number, from: Uint8Array): Promise<void> {
    for (let at = 0; at < from.length; at += this.#maxData) {
      const piece = from.subarray(at, at + this.#maxData);
      const out = this.#asks.reserve(HEADER_SIZE + DMA_ACCESS_SIZE + piece.length);
      await this.#ask(COMMAND.DMA_WRITE, encodeDmaWrite(out, this.#id(), iova + at, piece), piece.length, undefined);
    }
  }

  #channel(fd: number, main: boolean): Channel {
    const owner: ChannelOwner = {
      onMessage: (message) => {
        if (!isCommand(message)) this.#answered(message);
        else if (main) this.#command(message);
        else throw protocolError('a command on the twin socket');
      },
      onClose: (error) => {
        this.close(error);
      },
    };
    return new Channel(this.platform, fd, owner, { served: true });
  }

  #startTimer(ms: number, what: string): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      const reason = `the client did not send ${what} within ${ms} ms`;
      this.close(new DmaError({ code: 'ETIMEDOUT', operation: 'vfio-user', reason }));
    }, ms);
  }

  /** A command: carried out now, or after the running one. */
  #command(message: Message): void {
    if (message.fds.length > 0) {
      checkFds(message);
      if (this.clings) throw protocolError('it sends descriptors that can not be closed');
    }
    if (this.#running === undefined) {
      this.#start(message);
      return;
    }
    this.#backlogBytes += message.payload.length;
    this.#backlogFds += message.fds.length;
    if (
      this.#backlog.length >= MAX_BACKLOG ||
      this.#backlogBytes > MAX_BACKLOG_BYTES ||
      this.#backlogFds > MAX_BACKLOG_FDS
    )
      throw protocolError('it sends commands, but does not answer');
    this.#backlog.push({ ...message, payload: message.payload.slice(), fds: message.fds.splice(0) });
  }

  #start(message: Message): void {
    const running = this.#carryOut(message);
    if (running === undefined) return;
    this.#running = running.then(() => {
      this.#running = undefined;
      this.#proceed();
    });
    // Without a twin socket, replies to this side come on the same socket, so it must be read.
    if (this.#twin !== undefined) this.#main.pause();
  }

  /** The running command has ended: continues with those that wait. */
  #proceed(): void {
    try {
      while (this.#failure === undefined && this.#running === undefined) {
        const message = this.#backlog.shift();
        if (message === undefined) break;
        this.#backlogBytes -= message.payload.length;
        this.#backlogFds -= message.fds.length;
        try {
          this.#start(message);
        } finally {
          for (const fd of message.fds) this.platform.files.closeForeign(fd);
        }
      }
    } catch (error) {
      this.close(isDmaError(error) ? error : protocolError('a message that could not be handled', error));
    }
    if (this.#running === undefined) this.#main.resume();
  }

  /** Carries out a command and answers it, now or when the promise resolves; it never rejects. */
  #carryOut(message: Message): Promise<void> | undefined {
    const { id, command, flags } = message;
    const wantsReply = (flags & FLAG.NO_REPLY) === 0;
    const done = (size: number, fds?: readonly number[]): void => {
      if (wantsReply) this.#reply(size, fds);
    };
    const failed = (error: unknown): void => {
      const code: ErrorCode = isDmaError(error) ? error.code : 'EIO';
      if (!isDmaError(error)) this.options.onFault?.(modelFault(error, operationOf(command)));
      // The client wants no answer.
      else if (!wantsReply) this.#tellRefused(error.with({ operation: operationOf(command) }));
      done(putErrorReply(this.#replies.bytes, id, command, code));
      // Without a version nothing else is possible.
      if (!this.#version)
        this.close(isDmaError(error) ? error : protocolError('a message that could not be handled', error));
    };
    try {
      const later = this.#execute(message, done);
      return later?.catch(failed);
    } catch (error) {
      failed(error);
      return undefined;
    }
  }

  #tellRefused(error: DmaError): void {
    if (this.#toldRefused) return;
    this.#toldRefused = true;
    this.options.onRefused?.(error);
  }

  /** The handler of each command. */
  static readonly #COMMANDS = new Map<number, (session: Session, message: Message, done: Done) => Working>([
    [COMMAND.VERSION, (session, message, done) => session.#negotiate(message, done)],
    [COMMAND.REGION_READ, (session, message, done) => session.#readRegion(message, done)],
    [COMMAND.REGION_WRITE, (session, message, done) => session.#writeRegion(message, done)],
    [COMMAND.DMA_MAP, (session, message, done) => session.#map(message, done)],
    [COMMAND.DMA_UNMAP, (session, message, done) => session.#unmap(message, done)],
    [COMMAND.GET_INFO, (session, message, done) => session.#describe(message, done)],
    [COMMAND.GET_REGION_INFO, (session, message, done) => session.#describeRegion(message, done)],
    [COMMAND.GET_REGION_IO_FDS, (session, message, done) => session.#describeIoFds(message, done)],
    [COMMAND.GET_IRQ_INFO, (session, message, done) => session.#describeInterrupts(message, done)],
    [COMMAND.SET_IRQS, (session, message, done) => session.#setInterrupts(message, done)],
    [COMMAND.RESET, (session, message, done) => session.#reset(message, done)],
  ]);

  #execute(message: Message, done: Done): Working {
    const { command } = message;
    if (!this.#version && command !== COMMAND.VERSION) throw invalid(operationOf(command), 'before VERSION');
    const answer = Session.#COMMANDS.get(command);
    if (answer === undefined) throw invalid(operationOf(command), 'not served here');
    return answer(this, message, done);
  }

  #readRegion(message: Message, done: Done): Working {
    const access = decodeRegionAccess(message);
    const at = HEADER_SIZE + REGION_ACCESS_SIZE;
    const room = this.#replies.reserve(at + access.count);
    this.device.readRegion(access.region, access.offset, room.subarray(at, at + access.count));
    done(encodeRegionReply(room, message, access));
    return undefined;
  }

  #writeRegion(message: Message, done: Done): Working {
    const access = decodeRegionAccess(message);
    needPayload(message, REGION_ACCESS_SIZE + access.count);
    const from = message.payload.subarray(REGION_ACCESS_SIZE, REGION_ACCESS_SIZE + access.count);
    const out = this.#replies.bytes;
    this.device.writeRegion(access.region, access.offset, from);
    done(encodeRegionReply(out, message, access));
    return undefined;
  }

  #map(message: Message, done: Done): Working {
    const out = this.#replies.bytes;
    this.device.dma.map(decodeDmaMap(message), message.fds.shift());
    done(putReply(out, message.id, message.command, 0));
    return undefined;
  }

  #unmap(message: Message, done: Done): Working {
    const { id, command, payload } = message;
    const what = decodeDmaUnmap(message);
    const echo = payload.slice(0, DMA_UNMAP_SIZE);
    return this.#quietly(() => {
      if (what === 'all') this.device.dma.clear();
      else this.device.dma.unmap(what.iova, what.length);
      this.#replies.bytes.set(echo, HEADER_SIZE);
      done(putReply(this.#replies.bytes, id, command, DMA_UNMAP_SIZE));
    });
  }

  #describe(message: Message, done: Done): Working {
    needStruct(message, DEVICE_INFO_SIZE);
    const info = { resettable: true, pci: true, regionCount: REGION_COUNT, interruptKinds: IRQ_KINDS };
    done(encodeDeviceInfo(this.#replies.bytes, message.id, info));
    return undefined;
  }

  #describeRegion(message: Message, done: Done): Working {
    const room = get32(needStruct(message, REGION_INFO_SIZE), 0);
    const { fd, ...region } = this.device.describeRegion(get32(message.payload, 8));
    const reply = this.#replies.reserve(HEADER_SIZE + REGION_INFO_SIZE + 16 + region.areas.length * 16);
    const shown = this.#takesFds ? region : { ...region, mappable: false, areas: [] };
    const size = encodeRegionInfo(reply, message.id, shown, room);
    // The descriptor is sent only with the whole answer.
    done(size, fd !== undefined && size > HEADER_SIZE + REGION_INFO_SIZE ? [fd] : undefined);
    return undefined;
  }

  #describeIoFds(message: Message, done: Done): Working {
    const request = needStruct(message, IO_FDS_SIZE);
    const region = get32(request, 8);
    if (get32(request, 4) !== 0 || get32(request, 12) !== 0 || region >= REGION_COUNT)
      throw invalid(operationOf(message.command), `flags, a count, or no region ${region}`);
    done(encodeNoIoFds(this.#replies.bytes, message.id, region));
    return undefined;
  }

  #describeInterrupts(message: Message, done: Done): Working {
    const kind = get32(needStruct(message, IRQ_INFO_SIZE), 8);
    done(encodeIrqInfo(this.#replies.bytes, message.id, this.device.interrupts.describe(kind)));
    return undefined;
  }

  #setInterrupts(message: Message, done: Done): Working {
    const out = this.#replies.bytes;
    this.device.interrupts.set(decodeSetIrqs(message), message.fds);
    done(putReply(out, message.id, message.command, 0));
    return undefined;
  }

  #reset({ id, command }: Message, done: Done): Working {
    return this.#quietly(() => {
      this.device.reset();
      done(putReply(this.#replies.bytes, id, command, 0));
    });
  }

  /** Runs `work` while the device transfers nothing, so that no memory is removed during a transfer. */
  #quietly(work: () => void): Working {
    const { model } = this.device;
    const finish = (): void => {
      try {
        if (this.#failure === undefined) work();
      } finally {
        model.resume();
      }
    };
    const quiet = model.quiesce();
    if (quiet !== undefined) return quiet.then(finish);
    finish();
    return undefined;
  }

  #negotiate(message: Message, done: Done): Working {
    const operation = operationOf(COMMAND.VERSION);
    if (this.#version) throw invalid(operation, 'a second time');
    const { major, minor, capabilities } = decodeVersion(message);
    if (major !== PROTOCOL_VERSION.major) throw invalid(operation, `version ${major}.${minor}`);
    this.#takesFds = capabilities.maxMsgFds > 0;
    this.#maxData = Math.min(SAFE_TRANSFER, capabilities.maxDataXferSize);
    const ends = capabilities.twinSocket !== undefined && this.#takesFds ? this.platform.sockets.pair() : undefined;
    try {
      if (ends !== undefined) {
        const [ours] = ends;
        this.#twin = this.#channel(ours, false);
      }
      const answer = encodeVersion({
        major,
        minor: Math.min(minor, PROTOCOL_VERSION.minor),
        capabilities: {
          ...DEFAULT_CAPABILITIES,
          maxMsgFds: MAX_FDS,
          maxDmaMaps: this.device.maxDmaMaps,
          twinSocket: ends === undefined ? undefined : { fdIndex: 0 },
        },
      });
      this.#version = true;
      clearTimeout(this.#timer);
      this.device.dma.messages = this;
      this.#replies.bytes.set(answer, HEADER_SIZE);
      done(
        putReply(this.#replies.bytes, message.id, message.command, answer.length),
        ends === undefined ? [] : [ends[1]],
      );
    } finally {
      if (ends !== undefined) this.platform.files.close(ends[1]);
    }
    return undefined;
  }

  #reply(size: number, fds?: readonly number[]): void {
    if (!this.#main.send(this.#replies.message(size), fds))
      this.close(protocolError('it asks, but does not read the answers'));
  }

  #id(): number {
    do this.#nextId = (this.#nextId + 1) & 0xffff;
    while (this.#asked.has(this.#nextId));
    return this.#nextId;
  }

  /** Sends `#asks` as a command and waits for the reply. */
  #ask(command: number, size: number, count: number, into: Uint8Array | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const channel = this.#twin ?? this.#main;
      const settle: Asked['settle'] = (error) => {
        if (error === undefined) resolve();
        else reject(error);
      };
      if (this.#failure === undefined) {
        this.#asked.set(this.#nextId, { command, settle, into, count });
        if (this.#asked.size === 1) this.#startTimer(this.options.dmaTimeoutMs, 'the answer to a DMA access');
        if (channel.send(this.#asks.message(size))) return;
        this.close(protocolError('it does not read what the device asks for'));
        return;
      }
      settle(this.#failure);
    });
  }

  #answered(message: Message): void {
    const asked = this.#asked.get(message.id);
    if (asked === undefined || asked.command !== message.command || (message.flags & FLAG.TYPE) !== FLAG.REPLY)
      throw protocolError(`an answer to ${operationOf(message.command)}, id ${message.id}, which was not asked`);
    if (message.fds.length > 0) throw protocolError('descriptors with the answer to a DMA access');
    const error = errorOfReply(message) ?? accessFault(message, asked);
    const { into, count } = asked;
    if (error === undefined && into !== undefined)
      into.set(message.payload.subarray(DMA_ACCESS_SIZE, DMA_ACCESS_SIZE + count));
    this.#asked.delete(message.id);
    if (this.#asked.size > 0) this.#startTimer(this.options.dmaTimeoutMs, 'the answer to a DMA access');
    else clearTimeout(this.#timer);
    asked.settle(error);
  }
}

/** EIO if the answer to a DMA access does not cover all of it. */
function accessFault(message: Message, { into, count }: Asked): DmaError | undefined {
  const { payload, command } = message;
  // The count has 4 bytes according to one table of the specification; all implementations send 8.
  const least = into === undefined ? 12 : DMA_ACCESS_SIZE;
  const told = payload.length < least ? -1 : payload.length < DMA_ACCESS_SIZE ? get32(payload, 8) : get64(payload, 8);
  const came = into === undefined ? count : payload.length - DMA_ACCESS_SIZE;
  if (told === count && came === count) return undefined;
  const reason = `the client answers for ${told} bytes${into === undefined ? '' : ` with ${came}`} where ${count} were asked for`;
  return new DmaError({ code: 'EIO', operation: operationOf(command), reason });
}

/** Only DMA_MAP (one) and SET_IRQS have descriptors; a client that sends others is not trusted further. */
function checkFds({ command, fds }: Message): void {
  const most = command === COMMAND.DMA_MAP ? 1 : command === COMMAND.SET_IRQS ? MAX_FDS : 0;
  if (fds.length > most) throw protocolError(`${fds.length} descriptors with ${operationOf(command)}`);
}
