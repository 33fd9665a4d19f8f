/** A model of the copy engine. `copy-engine-layout.ts` specifies the device. */
import { mustBeWhole, optionsOf, type Shape } from '../../check.js';
import { invalid, isDmaError } from '../../errors.js';
import { ADDRESS_LIMIT, isPowerOfTwo, MiB } from '../../units.js';
import {
  COMPLETION,
  completionPhase,
  COPY_CODE,
  COPY_CONTROL,
  COPY_ENTRY,
  COPY_FLAG,
  COPY_ID,
  COPY_IDENTITY,
  COPY_INTERRUPT,
  COPY_REGION,
  COPY_REGISTER as REG,
  COPY_STATUS,
  COPY_VERSION,
  DESCRIPTOR,
} from './copy-engine-layout.js';
import type { DeviceModel, InterruptCounts, ModelFactory, ModelHost, ModelRegion, PciIdentity } from './model.js';
import { loadWord, storeWord } from './words.js';
import { setImmediate } from '../../timers.js';

/** Limits of a copy engine. */
export interface CopyEngineModelOptions {
  /** Most entries of a ring, a power of two from 2 to 2^20. Default 65536. */
  readonly maxRing?: number;
  /** Most bytes of one descriptor, 1 to 32 MiB. Default 32 MiB. */
  readonly maxTransfer?: number;
}

const MODEL_OPTIONS: Shape<CopyEngineModelOptions> = { maxRing: 'number', maxTransfer: 'number' };

/** Most descriptors that are carried out before the host gets a turn. */
const SLICE_DESCRIPTORS = 256;
/** Most bytes that are copied before the host gets a turn. */
const SLICE_BYTES = 32 * MiB;
/** Bytes per step where memory can only be copied, or is not in one piece. */
const PIECE_BYTES = MiB;
/** What a failure counts for in SLICE_BYTES: finding the first address that can not be reached takes time. */
const FAILURE_BYTES = MiB;

/**
 * Makes copy engines.
 *
 * @throws DmaError EINVAL for options out of range
 */
export function copyEngineModel(options?: CopyEngineModelOptions): ModelFactory {
  const { maxRing = 65536, maxTransfer = SLICE_BYTES } = optionsOf(options, MODEL_OPTIONS, 'copyEngineModel');
  if (!isPowerOfTwo(maxRing) || maxRing < 2 || maxRing > 2 ** 20)
    throw invalid('copyEngineModel', `maxRing is ${maxRing}, not a power of two from 2 to 2^20`);
  mustBeWhole(maxTransfer, 1, SLICE_BYTES, 'maxTransfer', 'copyEngineModel');
  return (host) => new CopyEngineModel(host, maxRing, maxTransfer);
}

type Access = 'read' | 'write';

class CopyEngineModel implements DeviceModel {
  readonly name = 'copy';
  readonly identity: PciIdentity = {
    ...COPY_IDENTITY,
    subsystemVendor: COPY_IDENTITY.vendor,
    subsystem: COPY_IDENTITY.device,
    revision: 1,
    // A system peripheral of no defined kind, as I/OAT is.
    classCode: 0x088000,
  };
  readonly regions: readonly ModelRegion[] = [{ index: COPY_REGION.INDEX, size: COPY_REGION.SIZE }];
  readonly interrupts: InterruptCounts = { intx: 1, msi: 1, msix: 0 };

  readonly #host: ModelHost;
  readonly #maxTransfer: number;
  /** What loads from the registers return, by offset / 4; CONTROL and STATUS are computed from the fields below. */
  readonly #registers = new Uint32Array(COPY_REGION.SIZE / 4);

  #enabled = false;
  #halted = false;
  #ring = 0;
  #done = 0;
  /** Flagged completions since the last completion interrupt. */
  #unsignalled = 0;

  /** Counts resets and stops; work of an earlier epoch must not continue. */
  #epoch = 0;
  #scheduled = false;
  #paused = false;
  /** The slice that is running; never rejects. */
  #active: Promise<void> | undefined;
  #activeEpoch = 0;

  readonly #descriptors = new Uint32Array(SLICE_DESCRIPTORS * COPY_ENTRY.WORDS);
  readonly #completions = new Uint32Array(SLICE_DESCRIPTORS * COPY_ENTRY.WORDS);
  readonly #bounce = new Uint8Array(PIECE_BYTES);

  // How the last descriptor ended.
  #code = 0;
  #copied = 0;
  #fault = 0;

  constructor(host: ModelHost, maxRing: number, maxTransfer: number) {
    this.#host = host;
    this.#maxTransfer = maxTransfer;
    this.#set(REG.ID, COPY_ID);
    this.#set(REG.VERSION, COPY_VERSION);
    this.#set(REG.MAX_RING, maxRing);
    this.#set(REG.MAX_TRANSFER, maxTransfer);
  }

  read(_region: number, offset: number, into: Uint8Array): void {
    if ((offset | into.length) % 4 !== 0) {
      into.fill(0xff);
      return;
    }
    for (let at = 0; at < into.length; at += 4) storeWord(into, at, this.#load(offset + at));
  }

  write(_region: number, offset: number, from: Uint8Array): void {
    if ((offset | from.length) % 4 !== 0) return;
    for (let at = 0; at < from.length; at += 4) this.#store(offset + at, loadWord(from, at));
  }

  reset(): void {
    this.#stop();
    this.#registers.fill(0, REG.CONTROL / 4);
  }

  quiesce(): Promise<void> | undefined {
    this.#paused = true;
    return this.#active;
  }

  resume(): void {
    this.#paused = false;
    this.#schedule();
  }

  #get(offset: number): number {
    return this.#registers[offset / 4];
  }

  #set(offset: number, value: number): void {
    this.#registers[offset / 4] = value;
  }

  #load(offset: number): number {
    switch (offset) {
      case REG.CONTROL: {
        const draining = this.#active !== undefined && this.#activeEpoch !== this.#epoch;
        return (this.#enabled ? COPY_CONTROL.ENABLE : 0) | (draining ? COPY_CONTROL.RESET : 0);
      }
      case REG.STATUS:
        return (
          (this.#enabled ? COPY_STATUS.ENABLED : 0) |
          (this.#hasWork() ? COPY_STATUS.BUSY : 0) |
          (this.#halted ? COPY_STATUS.HALTED : 0)
        );
      default:
        return this.#get(offset);
    }
  }

  #store(offset: number, value: number): void {
    switch (offset) {
      case REG.CONTROL:
        if ((value & COPY_CONTROL.RESET) !== 0) this.reset();
        else if ((value & COPY_CONTROL.ENABLE) === 0) this.#stop();
        else if (!this.#enabled) this.#start();
        break;
      case REG.RING_LOW:
      case REG.RING_HIGH:
      case REG.DONE_LOW:
      case REG.DONE_HIGH:
      case REG.RING_SIZE:
        if (!this.#enabled) this.#set(offset, value);
        break;
      case REG.COALESCE:
        this.#set(offset, value);
        break;
      case REG.PRODUCER:
        this.#doorbell(value);
        break;
      case REG.INTERRUPT_ENABLE:
        this.#interrupts(value & (COPY_INTERRUPT.COMPLETION | COPY_INTERRUPT.ERROR), this.#get(REG.INTERRUPT_STATUS));
        break;
      case REG.INTERRUPT_ACK:
        this.#set(REG.INTERRUPT_STATUS, this.#get(REG.INTERRUPT_STATUS) & ~value);
        break;
    }
  }

  #start(): void {
    this.#enabled = true;
    this.#ring = this.#get(REG.RING_HIGH) * 2 ** 32 + this.#get(REG.RING_LOW);
    this.#done = this.#get(REG.DONE_HIGH) * 2 ** 32 + this.#get(REG.DONE_LOW);
    const size = this.#get(REG.RING_SIZE);
    if (size < 2 || size > this.#get(REG.MAX_RING) || !isPowerOfTwo(size)) this.#halt(COPY_CODE.BAD_RING, 0);
    for (const base of [this.#ring, this.#done]) {
      if (base % COPY_ENTRY.BYTES !== 0 || base + size * COPY_ENTRY.BYTES > ADDRESS_LIMIT)
        this.#halt(COPY_CODE.BAD_RING, base);
    }
  }

  #stop(): void {
    this.#epoch++;
    this.#enabled = false;
    this.#halted = false;
    this.#unsignalled = 0;
    this.#set(REG.PRODUCER, 0);
    this.#set(REG.CONSUMER, 0);
  }

  #doorbell(producer: number): void {
    if (!this.#enabled || this.#halted) return;
    if ((producer - this.#get(REG.CONSUMER)) >>> 0 > this.#get(REG.RING_SIZE)) {
      this.#halt(COPY_CODE.BAD_DOORBELL, 0);
      return;
    }
    this.#set(REG.PRODUCER, producer);
    this.#schedule();
  }

  #halt(code: number, iova: number): void {
    if (this.#halted) return;
    this.#halted = true;
    this.#setError(code, iova);
    this.#raise(COPY_INTERRUPT.ERROR);
  }

  #setError(code: number, iova: number): void {
    this.#set(REG.ERROR_KIND, code);
    this.#set(REG.ERROR_LOW, iova);
    this.#set(REG.ERROR_HIGH, iova / 2 ** 32);
  }

  #raise(bits: number): void {
    this.#interrupts(this.#get(REG.INTERRUPT_ENABLE), this.#get(REG.INTERRUPT_STATUS) | bits);
  }

  #interrupts(enable: number, status: number): void {
    const before = this.#get(REG.INTERRUPT_ENABLE) & this.#get(REG.INTERRUPT_STATUS);
    this.#set(REG.INTERRUPT_ENABLE, enable);
    this.#set(REG.INTERRUPT_STATUS, status);
    if ((enable & status & ~before) !== 0) this.#host.interrupt(0);
  }

  #hasWork(): boolean {
    return this.#enabled && !this.#halted && this.#get(REG.PRODUCER) !== this.#get(REG.CONSUMER);
  }

  #mayRun(): boolean {
    return !this.#paused && this.#active === undefined && this.#hasWork();
  }

  /** Makes a slice run after the host had its turn. */
  #schedule(): void {
    if (this.#scheduled || !this.#mayRun()) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      if (!this.#mayRun()) return;
      this.#activeEpoch = this.#epoch;
      this.#active = this.#slice().then(() => {
        this.#active = undefined;
        this.#schedule();
      });
    });
  }

  /** Carries out the next descriptors, as many as fit in a slice, and reports them. Waits only if `DeviceDma` does. */
  async #slice(): Promise<void> {
    const epoch = this.#epoch;
    const consumer = this.#get(REG.CONSUMER);
    const size = this.#get(REG.RING_SIZE);
    const first = consumer & (size - 1);
    const ready = (this.#get(REG.PRODUCER) - consumer) >>> 0;
    const count = Math.min(ready, size - first, SLICE_DESCRIPTORS);
    if (!(await this.#fetch(first, count, epoch))) return;

    let done = 0;
    let failed = false;
    let flagged = 0;
    for (let budget = SLICE_BYTES; done < count; done++) {
      const at = done * COPY_ENTRY.WORDS;
      const length = this.#descriptors[at + DESCRIPTOR.LENGTH];
      if (done > 0 && (length > budget || this.#paused)) break;
      if (!this.#tryWhole(at, length)) {
        await this.#inPieces(at, length, epoch);
        if (epoch !== this.#epoch) return;
      }
      this.#record(at, completionPhase(consumer + done, size));
      if (this.#code === COPY_CODE.OK) {
        budget -= length;
        flagged += this.#descriptors[at + DESCRIPTOR.FLAGS] & COPY_FLAG.INTERRUPT;
      } else {
        budget -= Math.max(this.#copied, FAILURE_BYTES);
        this.#setError(this.#code, this.#fault);
        flagged++;
        failed = true;
      }
    }

    if (!(await this.#report(first, done, epoch))) return;
    this.#set(REG.CONSUMER, consumer + done);
    this.#unsignalled += flagged;
    const idle = !this.#hasWork();
    if (failed || this.#unsignalled >= Math.max(1, this.#get(REG.COALESCE)) || (idle && this.#unsignalled > 0)) {
      this.#unsignalled = 0;
      this.#raise(COPY_INTERRUPT.COMPLETION);
    }
  }

  /** Loads `count` descriptors. Returns false if that failed, which halts, or the slice was abandoned. */
  async #fetch(first: number, count: number, epoch: number): Promise<boolean> {
    const iova = this.#ring + first * COPY_ENTRY.BYTES;
    try {
      const loaded = this.#host.dma.read(iova, new Uint8Array(this.#descriptors.buffer, 0, count * COPY_ENTRY.BYTES));
      if (loaded !== undefined) await loaded;
    } catch (error) {
      if (epoch === this.#epoch) this.#halt(codeOf(error, 'read'), iova);
      return false;
    }
    return epoch === this.#epoch;
  }

  /** Stores `count` completions. Returns false if that failed, which halts, or the slice was abandoned. */
  async #report(first: number, count: number, epoch: number): Promise<boolean> {
    const iova = this.#done + first * COPY_ENTRY.BYTES;
    const bytes = count * COPY_ENTRY.BYTES;
    try {
      const direct = this.#host.dma.direct(iova, bytes, 'write');
      if (direct !== undefined && direct.byteOffset % 4 === 0) {
        // Word by word, upwards: each record's last word tells the driver that the record is complete.
        const words = new Uint32Array(direct.buffer, direct.byteOffset, count * COPY_ENTRY.WORDS);
        for (let at = 0; at < words.length; at++) words[at] = this.#completions[at];
      } else {
        const stored = this.#host.dma.write(iova, new Uint8Array(this.#completions.buffer, 0, bytes));
        if (stored !== undefined) await stored;
      }
    } catch (error) {
      if (epoch === this.#epoch) this.#halt(codeOf(error, 'write'), iova);
      return false;
    }
    return epoch === this.#epoch;
  }

  /** Writes down the completion of the descriptor at word `at`. */
  #record(at: number, phase: 0 | 1): void {
    const words = this.#completions;
    words[at + COMPLETION.COOKIE] = this.#descriptors[at + DESCRIPTOR.COOKIE];
    words[at + COMPLETION.BYTES] = this.#copied;
    words[at + COMPLETION.FAULT_LOW] = this.#fault;
    words[at + COMPLETION.FAULT_HIGH] = this.#fault / 2 ** 32;
    words[at + COMPLETION.CODE] = this.#code | (phase << 31);
  }

  /** Carries out the descriptor at word `at` in one step, if it is valid and memory is in one piece. */
  #tryWhole(at: number, length: number): boolean {
    const words = this.#descriptors;
    const source = words[at + DESCRIPTOR.SOURCE_HIGH] * 2 ** 32 + words[at + DESCRIPTOR.SOURCE_LOW];
    const destination = words[at + DESCRIPTOR.DESTINATION_HIGH] * 2 ** 32 + words[at + DESCRIPTOR.DESTINATION_LOW];
    this.#fault = 0;
    this.#copied = 0;
    this.#code = COPY_CODE.OK;
    if (
      length === 0 ||
      length > this.#maxTransfer ||
      (words[at + DESCRIPTOR.FLAGS] & ~COPY_FLAG.INTERRUPT) !== 0 ||
      words[at + DESCRIPTOR.RESERVED] !== 0 ||
      Math.max(source, destination) + length > ADDRESS_LIMIT ||
      Math.abs(source - destination) < length
    ) {
      this.#code = COPY_CODE.BAD_DESCRIPTOR;
      return true;
    }
    if (!this.#copyDirect(source, destination, length)) return false;
    this.#copied = length;
    return true;
  }

  #copyDirect(source: number, destination: number, length: number): boolean {
    const { dma } = this.#host;
    try {
      const from = dma.direct(source, length, 'read');
      const to = from && dma.direct(destination, length, 'write');
      if (from === undefined || to === undefined) return false;
      to.set(from);
      return true;
    } catch {
      // Not all of it can be reached; how much can is found piece by piece.
      return false;
    }
  }

  /** Carries out the descriptor at word `at` piece by piece, up to the first byte that can not be reached. */
  async #inPieces(at: number, length: number, epoch: number): Promise<void> {
    const words = this.#descriptors;
    const source = words[at + DESCRIPTOR.SOURCE_HIGH] * 2 ** 32 + words[at + DESCRIPTOR.SOURCE_LOW];
    const destination = words[at + DESCRIPTOR.DESTINATION_HIGH] * 2 ** 32 + words[at + DESCRIPTOR.DESTINATION_LOW];
    while (this.#copied < length && this.#code === COPY_CODE.OK) {
      const from = source + this.#copied;
      const to = destination + this.#copied;
      const readable = this.#reach(from, Math.min(length - this.#copied, PIECE_BYTES), 'read');
      const bytes = readable === 0 ? 0 : this.#reach(to, readable, 'write');
      if (bytes === 0) return;
      if (!this.#copyDirect(from, to, bytes)) {
        const piece = this.#bounce.subarray(0, bytes);
        if (!(await this.#transfer('read', from, piece, epoch))) return;
        if (!(await this.#transfer('write', to, piece, epoch))) return;
      }
      this.#copied += bytes;
    }
  }

  /** How many of the `length` bytes from `iova` the device may access, counted from the first; 0 is a failure. */
  #reach(iova: number, length: number, access: Access): number {
    if (this.#refusal(iova, length, access) === undefined) return length;
    const refusal = this.#refusal(iova, 1, access);
    if (refusal !== undefined) {
      this.#fail(refusal, iova);
      return 0;
    }
    let good = 1;
    for (let bad = length; bad - good > 1;) {
      const middle = Math.floor((good + bad) / 2);
      if (this.#refusal(iova, middle, access) === undefined) good = middle;
      else bad = middle;
    }
    return good;
  }

  /** The code of the failure of an access; `undefined` if it is allowed. */
  #refusal(iova: number, length: number, access: Access): number | undefined {
    try {
      this.#host.dma.direct(iova, length, access);
      return undefined;
    } catch (error) {
      return codeOf(error, access);
    }
  }

  async #transfer(access: Access, iova: number, bytes: Uint8Array, epoch: number): Promise<boolean> {
    const { dma } = this.#host;
    try {
      const moved = access === 'read' ? dma.read(iova, bytes) : dma.write(iova, bytes);
      if (moved !== undefined) await moved;
      return epoch === this.#epoch;
    } catch (error) {
      this.#fail(codeOf(error, access), iova);
      return false;
    }
  }

  #fail(code: number, iova: number): void {
    this.#code = code;
    this.#fault = iova;
  }
}

function codeOf(error: unknown, access: Access): number {
  if (isDmaError(error, 'EACCES')) return access === 'read' ? COPY_CODE.READ_DENIED : COPY_CODE.WRITE_DENIED;
  if (isDmaError(error, 'EFAULT')) return access === 'read' ? COPY_CODE.READ_UNMAPPED : COPY_CODE.WRITE_UNMAPPED;
  return access === 'read' ? COPY_CODE.READ_FAILED : COPY_CODE.WRITE_FAILED;
}
