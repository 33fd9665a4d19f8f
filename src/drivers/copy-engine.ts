/** A driver for the copy engine, the emulated device of `copy-engine-layout.ts`. */
import { closedDriver } from '../bus/closed-device.js';
import { isGone, type DeviceAccess, type InterruptKind, type Interrupts } from '../bus/device-access.js';
import type { ErrorCode } from '../errors.js';
import { mustBe, mustBeMs, mustBeObject, mustBeWhole, mustHave, optionsOf, reading, type Shape } from '../check.js';
import { DmaError, invalid, isDmaError, withUndo } from '../errors.js';
import { progressOf, type LongWorkOptions } from '../long-work.js';
import type { Registers } from '../platform/registers/registers.js';
import { Range } from '../ranges.js';
import { alignDown, hex, KiB, type IovaLike } from '../units.js';
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
} from '../vfio-user/devices/copy-engine-layout.js';
import { Bell, SPIN_TURNS, until } from './wait.js';
import { shortForm } from '../short-form.js';
import { show } from '../show.js';
import { now } from '../timers.js';

/** Memory of a ring, mapped for the device. */
export interface RingMemory {
  /** The memory; a multiple of 4 bytes into its ArrayBuffer. */
  readonly bytes: Uint8Array;
  /** The IOVA of the first byte; a multiple of 32. */
  readonly iova: number;
}

/**
 * The memory that the driver and the device share. The capacity is the largest power of two of 32-byte entries that
 * fits in both rings and that the device supports. The caller owns it, and keeps it mapped until the driver is closed.
 */
export interface CopyEngineRings {
  /** Descriptors; the device reads it. */
  readonly descriptors: RingMemory;
  /** Completions; the device writes it. */
  readonly completions: RingMemory;
}

/** Options of a copy engine. */
export interface CopyEngineOptions {
  /** Wait for interrupts (MSI if the device has it) instead of polling every millisecond? Default true. */
  readonly interrupts?: boolean;
  /** Completions per interrupt. Default 1. */
  readonly coalesce?: number;
  /** Time limit in milliseconds without any completion, after which the engine is reset. Default 10000. */
  readonly timeoutMs?: number;
  /** Explains an IOVA that the device failed to access, for the hint of the error. Default: no explanation. */
  readonly explain?: (iova: number, access: 'read' | 'write') => string | undefined;
}

const ENGINE_OPTIONS: Shape<CopyEngineOptions> = {
  interrupts: 'boolean',
  coalesce: 'number',
  timeoutMs: 'number',
  explain: 'function',
};
const COPY_OPTIONS: Shape<LongWorkOptions> = { onProgress: 'function', signal: 'signal' };
const NO_OPTIONS: LongWorkOptions = {};

/** Size of the pieces of a `copy`: large enough for a negligible cost each, small enough to report progress. */
const PIECE_BYTES = 1024 * KiB;
/** Most outstanding descriptors of one `copy`, which limits the time that cancelling takes. */
const PIECES_UNDER_WAY = 64;
/** One in so many descriptors requests an interrupt, so that the ring is refilled before it is empty. */
const INTERRUPT_STRIDE = 16;
/** Milliseconds that a wait sleeps before it checks again; with interrupts only in case one was lost. */
const SLEEP_MS = { polling: 1, interrupts: 20 } as const;

/** A `copy` that has not settled. */
interface Copy {
  readonly source: number;
  readonly destination: number;
  readonly length: number;
  /** Tells how many bytes are done. */
  readonly report: ((doneBytes: number) => void) | undefined;
  /** Bytes passed to the device. */
  sent: number;
  /** Bytes that the device has completed. */
  done: number;
  /** Outstanding descriptors. */
  underWay: number;
  /** Why it will fail; no more is submitted then. */
  error: unknown;
  readonly settle: (error: unknown) => void;
}

/**
 * A copy engine. Two interfaces, which can be mixed: {@link copy} returns a promise for a copy of any length; {@link
 * submit}, {@link ring} and {@link poll} allocate nothing.
 *
 * Copies run in the order of submission. Their memory must stay mapped until they have completed.
 */
export class CopyEngine implements AsyncDisposable {
  /** The PCI identity of this driver's devices. */
  static readonly matches = COPY_IDENTITY;

  /** Most outstanding copies: the entries of the rings. */
  readonly capacity: number;
  /** Most bytes of one {@link submit}. */
  readonly maxTransfer: number;

  // Results of `poll`, entry by entry. Valid until the caller returns to the event loop.
  /** Cookies that `submit` returned. */
  readonly cookies: Uint32Array;
  /** Completion codes: `COPY_CODE`, 0 is success; {@link copyError} explains the others. */
  readonly codes: Uint8Array;
  /** Bytes copied; fewer than requested after a failure. */
  readonly bytes: Uint32Array;
  /** The IOVAs that could not be accessed; 0 after success. */
  readonly faults: Float64Array;

  readonly #registers: Registers;
  readonly #descriptorWords: Uint32Array;
  readonly #completionWords: Uint32Array;
  /** Most bytes in one descriptor of `copy`. */
  readonly #pieceBytes: number;
  readonly #timeoutMs: number;
  readonly #interruptMask: number;
  readonly #explain: CopyEngineOptions['explain'];
  readonly #bell = new Bell();
  #interrupts: Interrupts | undefined;

  /** Descriptors written, completions taken and descriptors announced, modulo 2^32. */
  #tail = 0;
  #head = 0;
  #rung = 0;
  /** Entries of the result arrays that `poll` has not returned yet. */
  #found = 0;

  readonly #copies = new Set<Copy>();
  /** The copy of each entry; `undefined` for those of `submit`. */
  readonly #owners: (Copy | undefined)[];
  /** Where each entry begins in its copy. */
  readonly #offsets: Float64Array;
  #driving = false;
  /** Why nothing can be submitted any more. */
  #dead: DmaError | undefined;
  #closing: Promise<void> | undefined;

  private constructor(registers: Registers, rings: CopyEngineRings, capacity: number, options: CopyEngineOptions) {
    const words = ({ bytes }: RingMemory): Uint32Array =>
      new Uint32Array(bytes.buffer, bytes.byteOffset, capacity * COPY_ENTRY.WORDS);
    this.capacity = capacity;
    this.maxTransfer = registers.read32(REG.MAX_TRANSFER);
    this.#pieceBytes = Math.min(PIECE_BYTES, this.maxTransfer);
    this.cookies = new Uint32Array(capacity);
    this.codes = new Uint8Array(capacity);
    this.bytes = new Uint32Array(capacity);
    this.faults = new Float64Array(capacity);
    this.#registers = registers;
    this.#descriptorWords = words(rings.descriptors);
    this.#completionWords = words(rings.completions);
    this.#timeoutMs = options.timeoutMs ?? 10_000;
    this.#explain = options.explain;
    this.#interruptMask = Math.min(INTERRUPT_STRIDE, capacity / 2) - 1;
    this.#owners = new Array<Copy | undefined>(capacity).fill(undefined);
    this.#offsets = new Float64Array(capacity);
  }

  /**
   * Resets the device and starts it with the given rings, whose contents are lost. The caller owns `access`, and keeps
   * it open while this driver is used.
   *
   * Rejects with ENODEV if it is not a copy engine of this version, EINVAL for memory that can not be a ring, ETIMEDOUT
   * if the reset does not end.
   */
  static async open(access: DeviceAccess, given: CopyEngineRings, asked?: CopyEngineOptions): Promise<CopyEngine> {
    const operation = 'copyEngine.open';
    mustHave(access, ['registers', 'enableInterrupts', 'interruptCount'], 'access to a device', operation);
    const options = optionsOf(asked, ENGINE_OPTIONS, operation);
    if (options.coalesce !== undefined) mustBeWhole(options.coalesce, 1, 2 ** 32 - 1, 'coalesce', operation);
    if (options.timeoutMs !== undefined) mustBeMs(options.timeoutMs, 'timeoutMs', operation);
    const rings = ringsOf(given, operation);
    const registers = access.registers(COPY_REGION.INDEX);
    const known = registers.size >= COPY_REGION.SIZE && registers.read32(REG.ID) === COPY_ID;
    const version = known ? registers.read32(REG.VERSION) : 0;
    if (version >>> 16 !== COPY_VERSION >>> 16)
      throw new DmaError({
        code: 'ENODEV',
        operation,
        reason: known ? `its version is ${hex(version)}` : 'it is not a copy engine',
      });
    const maxRing = registers.read32(REG.MAX_RING);
    if (maxRing < 2 || registers.read32(REG.MAX_TRANSFER) === 0)
      throw new DmaError({ code: 'ENODEV', operation, reason: 'the device reports a maximum transfer of 0 bytes' });
    const capacity = ringCapacity(rings, maxRing, operation);

    const engine = new CopyEngine(registers, rings, capacity, options);
    await engine.#reset(operation);
    try {
      rings.completions.bytes.fill(0);
      engine.#start(access, rings, options);
      engine.check();
    } catch (error) {
      const undo: unknown[] = [];
      await engine.close().catch((failure: unknown) => undo.push(failure));
      throw withUndo(error, operation, undo);
    }
    return engine;
  }

  /**
   * Copies `length` bytes from IOVA `source` to IOVA `destination`; resolves when all are copied.
   *
   * Rejects when none of it is outstanding any more, with
   * - EINVAL: invalid or overlapping ranges (nothing was started);
   * - EFAULT, EACCES: memory that is not mapped, or not for this access; `range` starts at the first such IOVA. Up to
   * 64 later descriptors may have been copied anyway;
   * - ECANCELED: `signal` was aborted or `onProgress` threw (that is the cause), or the driver was closed. What was copied
   * before stays;
   * - EIO, ETIMEDOUT and errors of accessing the device: the engine was reset and accepts no more copies.
   */
  copy(source: IovaLike, destination: IovaLike, length: number, options?: LongWorkOptions): Promise<void> {
    return new Promise((resolve, reject) => {
      const { signal, onProgress } = options === undefined ? NO_OPTIONS : optionsOf(options, COPY_OPTIONS, 'copy');
      const from = new Range(source, length, 'copy');
      const to = new Range(destination, length, 'copy');
      if (from.overlaps(to)) throw invalid('copy', `source ${from.toString()} overlaps the destination`, { range: to });
      if (this.#dead !== undefined) throw this.#dead;
      if (signal?.aborted === true) throw aborted(signal);

      const onAbort = (): void => {
        if (signal !== undefined) copy.error ??= aborted(signal);
        this.#bell.ring();
      };
      const settle = (error: unknown): void => {
        signal?.removeEventListener('abort', onAbort);
        this.#copies.delete(copy);
        if (error === undefined) resolve();
        else reject(error instanceof Error ? error : withUndo(error, 'copy', []));
      };
      const copy: Copy = {
        source,
        destination,
        length,
        report: onProgress === undefined ? undefined : progressOf(onProgress, length),
        sent: 0,
        done: 0,
        underWay: 0,
        error: undefined,
        settle,
      };
      signal?.addEventListener('abort', onAbort);
      this.#copies.add(copy);
      if (this.#driving) this.#bell.ring();
      else void this.#drive();
    });
  }

  /**
   * Writes one copy of at most {@link maxTransfer} bytes into the ring; the device sees it at the next {@link ring}.
   * The device checks the addresses: {@link poll} returns the result. Allocates nothing.
   *
   * @param interrupt whether its completion counts for interrupts
   * @returns a cookie, different modulo {@link capacity} from those of all outstanding copies; -1 if the ring is full,
   * or {@link poll} must fetch results first
   * @throws DmaError EINVAL for an invalid length or negative addresses; the error that stopped the engine once it is
   * stopped or closed
   */
  submit(source: IovaLike, destination: IovaLike, length: number, interrupt = false): number {
    if (this.#dead !== undefined) throw this.#dead;
    if (!(
      Number.isInteger(length) &&
      length > 0 &&
      length <= this.maxTransfer &&
      isWhole(source) &&
      isWhole(destination)
    ))
      throw invalid(
        'copyEngine.submit',
        `${show(length)} bytes from ${show(source)} to ${show(destination)}; the device takes 1 to ${this.maxTransfer} bytes`,
      );
    return this.#put(source, destination, length, interrupt, undefined, 0);
  }

  /** Announces new submissions to the device: one register store, none if there are no new ones. */
  ring(): void {
    if (this.#rung === this.#tail) return;
    this.#rung = this.#tail;
    // Stores to memory and registers leave the processor in program order on x86, and JavaScript engines keep that
    // order.
    this.#registers.write32(REG.PRODUCER, this.#tail);
  }

  /**
   * Takes new completions into {@link cookies}, {@link codes}, {@link bytes} and {@link faults}, in order of
   * submission. Reads memory only; call {@link check} if nothing completes.
   *
   * @returns how many entries of the arrays are filled
   * @throws DmaError the error that stopped the engine once it is stopped or closed
   */
  poll(): number {
    if (this.#dead !== undefined) throw this.#dead;
    this.#reap();
    const found = this.#found;
    this.#found = 0;
    // A copy may be waiting for space in the ring, or for a completion just taken.
    if (this.#copies.size > 0) this.#bell.ring();
    return found;
  }

  /**
   * Reads the device's status register.
   *
   * @throws DmaError why it halted: EFAULT or EACCES if it can not access a ring (`range` starts there), EINVAL for an
   * invalid ring, EPROTO for an invalid doorbell
   */
  check(): void {
    const registers = this.#registers;
    if ((registers.read32(REG.STATUS) & COPY_STATUS.HALTED) === 0) return;
    const iova = registers.read32(REG.ERROR_HIGH) * 2 ** 32 + registers.read32(REG.ERROR_LOW);
    throw copyError(registers.read32(REG.ERROR_KIND), new Range(iova, COPY_ENTRY.BYTES), 'copyEngine').with({
      hint: 'the engine has halted; are both rings mapped for the device, for as long as it is open?',
    });
  }

  /**
   * Resets the device and closes the driver. When it resolves, the device no longer accesses memory. Idempotent.
   * Rejects with ETIMEDOUT if the reset does not end; a device that is gone is not an error.
   *
   * @param why error of outstanding copies. Default: ECANCELED
   */
  async close(why?: DmaError): Promise<void> {
    if (why !== undefined) mustBe(why, DmaError, 'why it is closed', 'copyEngine.close');
    this.#closing ??= this.#end(why ?? closedDriver('copyEngine'));
    await this.#closing;
  }

  /** Calls {@link close}. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #start(access: DeviceAccess, { descriptors, completions }: CopyEngineRings, options: CopyEngineOptions): void {
    const registers = this.#registers;
    registers.write32(REG.RING_LOW, descriptors.iova);
    registers.write32(REG.RING_HIGH, Math.floor(descriptors.iova / 2 ** 32));
    registers.write32(REG.DONE_LOW, completions.iova);
    registers.write32(REG.DONE_HIGH, Math.floor(completions.iova / 2 ** 32));
    registers.write32(REG.RING_SIZE, this.capacity);
    registers.write32(REG.COALESCE, options.coalesce ?? 1);
    const kind = options.interrupts === false ? undefined : interruptKind(access);
    if (kind !== undefined) {
      this.#interrupts = access.enableInterrupts(kind, [
        () => {
          try {
            registers.write32(REG.INTERRUPT_ACK, COPY_INTERRUPT.COMPLETION | COPY_INTERRUPT.ERROR);
          } catch {
            // The device is gone; waiting copies will notice.
          }
          this.#bell.ring();
        },
      ]);
      // A pending copy has a timer; an idle engine must not keep the process alive.
      this.#interrupts.setRef(false);
      registers.write32(REG.INTERRUPT_ENABLE, COPY_INTERRUPT.COMPLETION | COPY_INTERRUPT.ERROR);
    }
    registers.write32(REG.CONTROL, COPY_CONTROL.ENABLE);
  }

  #put(
    source: number,
    destination: number,
    length: number,
    interrupt: boolean,
    owner: Copy | undefined,
    offset: number,
  ): number {
    const tail = this.#tail;
    if (((tail - this.#head) >>> 0) + this.#found >= this.capacity) return -1;
    const slot = tail & (this.capacity - 1);
    const at = slot * COPY_ENTRY.WORDS;
    // Small integers only, so that V8 does not allocate cookies.
    const cookie = tail & 0x3fff_ffff;
    const words = this.#descriptorWords;
    words[at + DESCRIPTOR.SOURCE_LOW] = source;
    words[at + DESCRIPTOR.SOURCE_HIGH] = source / 4294967296;
    words[at + DESCRIPTOR.DESTINATION_LOW] = destination;
    words[at + DESCRIPTOR.DESTINATION_HIGH] = destination / 4294967296;
    words[at + DESCRIPTOR.LENGTH] = length;
    words[at + DESCRIPTOR.FLAGS] = interrupt ? COPY_FLAG.INTERRUPT : 0;
    words[at + DESCRIPTOR.COOKIE] = cookie;
    words[at + DESCRIPTOR.RESERVED] = 0;
    this.#owners[slot] = owner;
    this.#offsets[slot] = offset;
    this.#tail = (tail + 1) >>> 0;
    return cookie;
  }

  /** Takes all new completions: those of `submit` go to the result arrays, those of `copy` to their copies. */
  #reap(): number {
    const words = this.#completionWords;
    const size = this.capacity;
    // Reads of released memory return undefined, which must not be taken for a completion.
    if (words.length === 0)
      throw new DmaError({ code: 'EBADF', operation: 'copyEngine', reason: 'the memory of its rings was released' });
    let head = this.#head;
    let taken = 0;
    for (; head !== this.#tail; taken++) {
      const slot = head & (size - 1);
      const at = slot * COPY_ENTRY.WORDS;
      const last = words[at + COMPLETION.CODE];
      if (last >>> 31 !== completionPhase(head, size)) break;
      head = (head + 1) >>> 0;
      this.#head = head;
      const owner = this.#owners[slot];
      if (owner === undefined) {
        const found = this.#found++;
        this.cookies[found] = words[at + COMPLETION.COOKIE];
        this.codes[found] = last;
        this.bytes[found] = words[at + COMPLETION.BYTES];
        this.faults[found] = words[at + COMPLETION.FAULT_HIGH] * 4294967296 + words[at + COMPLETION.FAULT_LOW];
      } else {
        this.#owners[slot] = undefined;
        this.#completed(owner, this.#offsets[slot], at);
      }
    }
    return taken;
  }

  #completed(copy: Copy, offset: number, at: number): void {
    copy.underWay--;
    if (copy.error !== undefined) return;
    const words = this.#completionWords;
    const code = words[at + COMPLETION.CODE] & 0xff;
    const piece = Math.min(this.#pieceBytes, copy.length - offset);
    const bytes = Math.min(words[at + COMPLETION.BYTES], piece);
    copy.done = offset + bytes;
    if (code !== COPY_CODE.OK) {
      const writing = code >= COPY_CODE.WRITE_UNMAPPED;
      // A faulty device must not cause an invalid range.
      const done = Math.min(copy.done, offset + piece - 1);
      const fault = (writing ? copy.destination : copy.source) + done;
      copy.error = copyError(code, new Range(fault, copy.length - done), 'copy').with({
        hint: this.#explain?.(fault, writing ? 'write' : 'read'),
      });
    } else if (bytes < piece) {
      copy.error = new DmaError({
        code: 'EPROTO',
        operation: 'copy',
        reason: `the device reports success after ${bytes} of ${piece} bytes`,
      });
    } else {
      try {
        copy.report?.(copy.done);
      } catch (error) {
        copy.error = isDmaError(error) ? error.with({ operation: 'copy' }) : error;
      }
    }
  }

  /** Serves the copies until there are none. */
  async #drive(): Promise<void> {
    this.#driving = true;
    const sleepMs = this.#interrupts === undefined ? SLEEP_MS.polling : SLEEP_MS.interrupts;
    try {
      let idleTurns = 0;
      let lastTaken = now();
      while (this.#copies.size > 0 && this.#dead === undefined) {
        const taken = this.#reap();
        this.#settleFinished();
        this.#feed();
        const fed = this.#rung !== this.#tail;
        this.ring();
        // While the ring is full of results that `poll` has to fetch, the device is not slow.
        if (taken > 0 || this.#head === this.#tail) lastTaken = now();
        if (taken > 0 || fed) idleTurns = 0;
        else if (++idleTurns > SPIN_TURNS) {
          this.check();
          if (now() - lastTaken >= this.#timeoutMs) throw this.#timedOut();
        }
        if (this.#copies.size > 0) await this.#bell.sleep(idleTurns <= SPIN_TURNS ? 0 : sleepMs);
      }
    } catch (error) {
      await this.#end(withUndo(error, 'copyEngine', [])).catch(() => {});
    } finally {
      this.#driving = false;
    }
  }

  #timedOut(): DmaError {
    return new DmaError({
      code: 'ETIMEDOUT',
      operation: 'copyEngine',
      reason: `nothing has completed for ${this.#timeoutMs} ms`,
    });
  }

  #settleFinished(): void {
    for (const copy of this.#copies) {
      if (copy.underWay > 0) continue;
      if (copy.error !== undefined || copy.done === copy.length) copy.settle(copy.error);
    }
  }

  /** Submits as much of the copies as the ring has space for. */
  #feed(): void {
    for (const copy of this.#copies) {
      while (copy.error === undefined && copy.sent < copy.length && copy.underWay < PIECES_UNDER_WAY) {
        const { sent } = copy;
        const length = Math.min(this.#pieceBytes, copy.length - sent);
        const interrupt = sent + length === copy.length || (this.#tail & this.#interruptMask) === 0;
        if (this.#put(copy.source + sent, copy.destination + sent, length, interrupt, copy, sent) < 0) return;
        copy.sent += length;
        copy.underWay++;
      }
    }
  }

  /** Stops the device, then ends the copies, whose memory it no longer accesses. */
  async #end(error: DmaError): Promise<void> {
    this.#dead ??= error;
    try {
      await this.#reset('copyEngine.close');
    } catch (failure) {
      if (!isGone(failure)) throw failure;
    } finally {
      this.#bell.ring();
      for (const copy of this.#copies) copy.settle(copy.error ?? error);
      this.#interrupts?.close();
      this.#interrupts = undefined;
    }
  }

  #reset(operation: string): Promise<void> {
    const registers = this.#registers;
    registers.write32(REG.CONTROL, COPY_CONTROL.RESET);
    return until(() => (registers.read32(REG.CONTROL) & COPY_CONTROL.RESET) === 0, {
      operation,
      what: 'the reset',
      timeoutMs: this.#timeoutMs,
    });
  }
}

shortForm(CopyEngine, 'CopyEngine', ({ capacity, maxTransfer }) => ({ capacity, maxTransfer }));

const CODES: ReadonlyMap<number, readonly [ErrorCode, string]> = new Map([
  [COPY_CODE.BAD_DESCRIPTOR, ['EINVAL', 'the device refuses the descriptor']],
  [COPY_CODE.READ_UNMAPPED, ['EFAULT', 'the device can not read memory that is not mapped']],
  [COPY_CODE.READ_DENIED, ['EACCES', 'the device may not read this memory']],
  [COPY_CODE.READ_FAILED, ['EIO', 'the device failed to read memory']],
  [COPY_CODE.WRITE_UNMAPPED, ['EFAULT', 'the device can not write memory that is not mapped']],
  [COPY_CODE.WRITE_DENIED, ['EACCES', 'the device may not write this memory']],
  [COPY_CODE.WRITE_FAILED, ['EIO', 'the device failed to write memory']],
  [COPY_CODE.BAD_RING, ['EINVAL', 'the device refuses the ring']],
  [COPY_CODE.BAD_DOORBELL, ['EPROTO', 'the device refuses the doorbell']],
]);

/** The error of a code other than OK (`COPY_CODE`, as in {@link CopyEngine.codes}), about `range`. */
export function copyError(code: number, range: Range, operation: string): DmaError {
  const [name, reason] = CODES.get(code) ?? ['EPROTO', `the device ended with the unknown code ${code}`];
  return new DmaError({ code: name, operation, reason, range });
}

function aborted(signal: AbortSignal): DmaError {
  const hint = 'the signal was aborted; call it again with a new signal';
  return new DmaError({ code: 'ECANCELED', operation: 'copy', reason: 'aborted', hint, cause: signal.reason });
}

function interruptKind(access: DeviceAccess): InterruptKind | undefined {
  const kinds: readonly InterruptKind[] = ['msix', 'msi', 'intx'];
  return kinds.find((kind) => access.interruptCount(kind) > 0);
}

/** A non-negative integer; the device decides which are valid addresses. */
function isWhole(value: unknown): boolean {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0;
}

/** Copies the rings of a caller, who may change the objects. @throws DmaError EINVAL */
function ringsOf(given: CopyEngineRings, operation: string): CopyEngineRings {
  const ringOf = (ring: RingMemory): RingMemory => {
    mustBeObject(ring, 'rings', operation);
    const { bytes, iova } = ring;
    mustBe(bytes, Uint8Array, 'the memory of a ring', operation);
    return { bytes, iova };
  };
  return reading(operation, 'the rings', () => {
    mustBeObject(given, 'rings', operation);
    return { descriptors: ringOf(given.descriptors), completions: ringOf(given.completions) };
  });
}

/** How many entries fit in both rings, at most `max`; EINVAL for memory that can not be a ring. */
function ringCapacity({ descriptors, completions }: CopyEngineRings, max: number, operation: string): number {
  for (const { bytes, iova } of [descriptors, completions]) {
    const range = new Range(iova, bytes.length, operation);
    if (iova % COPY_ENTRY.BYTES !== 0 || bytes.byteOffset % 4 !== 0)
      throw invalid(
        operation,
        `the IOVA of a ring must be a multiple of ${COPY_ENTRY.BYTES}, its address in the ArrayBuffer a multiple of 4`,
        {
          range,
        },
      );
    if (bytes.length < 2 * COPY_ENTRY.BYTES)
      throw invalid(operation, `a ring must have room for at least 2 entries of ${COPY_ENTRY.BYTES} bytes`, { range });
  }
  const bytes = Math.min(descriptors.bytes.length, completions.bytes.length);
  const entries = Math.min(alignDown(bytes, COPY_ENTRY.BYTES) / COPY_ENTRY.BYTES, max);
  return 2 ** Math.floor(Math.log2(entries));
}
