/** A driver for the copy engine, the emulated device of `copy-engine-layout.ts`. */
import { closedDriver } from '../bus/closed-device.js';
import { isGone, type DeviceAccess, type InterruptKind, type Interrupts } from '../bus/device-access.js';
import { mustBe, mustBeMs, mustBeWhole, mustHave, optionsOf, type Shape } from '../check.js';
import { DmaError, invalid, throwFirst, withUndo } from '../errors.js';
import type { Fields } from '../fields.js';
import type { Paused } from '../handed.js';
import { progressOf, type LongWorkOptions } from '../long-work.js';
import type { Registers } from '../platform/registers/registers.js';
import { Range } from '../ranges.js';
import { hex, type IovaLike } from '../units.js';
import {
  COPY_CONTROL,
  COPY_ENTRY,
  COPY_ID,
  COPY_IDENTITY,
  COPY_INTERRUPT,
  COPY_REGION,
  COPY_REGISTER as REG,
  COPY_STATUS,
  COPY_VERSION,
} from '../vfio-user/devices/copy-engine-layout.js';
import { Copy, PIECE_BYTES } from './copy-engine-copy.js';
import { CopyEngineResults } from './copy-engine-results.js';
import { CopyRing, mustBeCopy, ringCapacity, ringsOf, type CopyEngineRings } from './copy-engine-ring.js';
import type { LentToProcess, ProcessLoan } from '../bus/lent-to-process.js';
import { CopyEngineLending, type CopyEngineLender } from './copy-engine-lending.js';
import type { AttachedCopyEngine } from './attached-copy-engine.js';
import type { Shared } from '../memory/shared/shared.js';
import { copyError } from './copy-error.js';
import { Bell, SPIN_TURNS, until } from './wait.js';
import { shortForm } from '../short-form.js';
import { delay, now } from '../timers.js';

export type { CopyEngineRings, RingMemory } from './copy-engine-ring.js';
export { CopyEngineResults } from './copy-engine-results.js';
export { AttachedCopyEngine } from './attached-copy-engine.js';
export { COPY_ABANDONED } from './copy-engine-state.js';
export { copyError } from './copy-error.js';

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

/** Milliseconds that a wait sleeps before it checks again; with interrupts only in case one was lost. */
const SLEEP_MS = { polling: 1, interrupts: 20 } as const;

/**
 * A copy engine. Two interfaces, which can be mixed: {@link copy} returns a promise for a copy of any length; {@link
 * submit}, {@link ring} and {@link poll} allocate nothing.
 *
 * Copies run in the order of submission. Their memory must stay mapped until they have completed.
 */
export class CopyEngine extends CopyEngineResults implements AsyncDisposable {
  /** The PCI identity of this driver's devices. */
  static readonly matches = COPY_IDENTITY;

  readonly #registers: Registers;
  readonly #ring: CopyRing;
  /** Most bytes in one descriptor of `copy`. */
  readonly #pieceBytes: number;
  readonly #timeoutMs: number;
  readonly #explain: CopyEngineOptions['explain'];
  readonly #bell = new Bell();
  #interrupts: Interrupts | undefined;
  /** Those that have not settled. */
  readonly #copies = new Set<Copy>();
  #driving = false;
  /** What offers the engine to other threads; absent if nobody can. */
  readonly #lender: CopyEngineLender | undefined;
  #lending: CopyEngineLending | undefined;
  /** Starts the device with the rings, after a reset. */
  #restart: (() => void) | undefined;
  /** Why nothing can be submitted now: for good, or while another thread has the engine. */
  #dead: DmaError | undefined;
  /** Why nothing can be submitted for now. */
  #held: DmaError | undefined;
  #closing: Promise<void> | undefined;

  private constructor(
    registers: Registers,
    rings: CopyEngineRings,
    { capacity, maxTransfer }: Pick<CopyEngine, 'capacity' | 'maxTransfer'>,
    options: CopyEngineOptions,
    lender: CopyEngineLender | undefined,
  ) {
    const ring = new CopyRing(registers, rings, capacity);
    super(ring, maxTransfer);
    this.#registers = registers;
    this.#ring = ring;
    this.#pieceBytes = Math.min(PIECE_BYTES, this.maxTransfer);
    this.#timeoutMs = options.timeoutMs ?? 10_000;
    this.#explain = options.explain;
    this.#lender = lender;
  }

  /**
   * Resets the device and starts it with the given rings, whose contents are lost. The caller owns `access`, and keeps
   * it open while this driver is used.
   *
   * Rejects with ENODEV if it is not a copy engine of this version, EINVAL for memory that can not be a ring, ETIMEDOUT
   * if the reset does not end.
   */
  static open(access: DeviceAccess, memory: CopyEngineRings, options?: CopyEngineOptions): Promise<CopyEngine> {
    return CopyEngine.openLendable(access, memory, options);
  }

  /** @internal As {@link CopyEngine.open}, with what offers it to other threads. */
  static async openLendable(
    access: DeviceAccess,
    memory: CopyEngineRings,
    options?: CopyEngineOptions,
    lender?: CopyEngineLender,
  ): Promise<CopyEngine> {
    const operation = 'copyEngine.open';
    mustHave(access, ['registers', 'enableInterrupts', 'interruptCount'], 'access to a device', operation);
    const checked = optionsOf(options, ENGINE_OPTIONS, operation);
    if (checked.coalesce !== undefined) mustBeWhole(checked.coalesce, 1, 2 ** 32 - 1, 'coalesce', operation);
    if (checked.timeoutMs !== undefined) mustBeMs(checked.timeoutMs, 'timeoutMs', operation);
    const rings = ringsOf(memory, operation);
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
    const maxTransfer = registers.read32(REG.MAX_TRANSFER);
    if (maxRing < 2 || maxTransfer === 0)
      throw new DmaError({ code: 'ENODEV', operation, reason: 'the device reports a maximum transfer of 0 bytes' });
    const capacity = ringCapacity(rings, maxRing, operation);

    const engine = new CopyEngine(registers, rings, { capacity, maxTransfer }, checked, lender);
    await engine.#reset(operation);
    try {
      rings.completions.bytes.fill(0);
      engine.#start(access, rings, checked);
      engine.check();
    } catch (error) {
      const undo: unknown[] = [];
      await engine.close().catch((failure: unknown) => undo.push(failure));
      throw withUndo(error, operation, undo);
    }
    return engine;
  }

  /**
   * @internal Waits for what `copy` has submitted, and submits nothing from then on, so that another process can continue.
   *   The device goes on with what `submit` has announced. Copies that wait begin when it is resumed, and fail when it is
   *   ended.
   *
   * @param why of the calls that are refused meanwhile
   * @throws DmaError EBUSY while `poll` has results that were not fetched; then nothing has changed
   */
  async handOver(why: DmaError): Promise<Paused> {
    if (this.#lending !== undefined) throw this.#lending.busy('handOver');
    this.#held = why;
    const resume = (): void => {
      this.#held = undefined;
      this.#bell.ring();
    };
    try {
      const end = now() + this.#timeoutMs;
      for (; [...this.#copies].some(({ isUnderWay }) => isUnderWay); await delay(1))
        if (now() > end) throw this.#timedOut();
      if (this.#dead !== undefined) throw this.#dead;
      if (!this.#ring.isFetched) {
        const reason = 'poll() has results that were not fetched';
        throw new DmaError({ code: 'EBUSY', operation: 'handOver', reason, hint: 'call poll() before' });
      }
    } catch (error) {
      resume();
      throw error;
    }
    const { capacity, maxTransfer } = this;
    const end = (error: DmaError): void => {
      this.#dead ??= error;
      for (const copy of this.#copies) copy.abandon(error);
      this.#bell.ring();
    };
    const state = { capacity, maxTransfer, interrupts: this.#interrupts !== undefined, ...this.#ring.place };
    return { state, fds: [], resume, end };
  }

  /** @internal Continues with a device that another process has handed over, with its rings; it is not accessed. */
  static takeOver(
    access: DeviceAccess,
    rings: CopyEngineRings,
    options: CopyEngineOptions,
    state: Fields,
    lender: CopyEngineLender,
  ): CopyEngine {
    const facts = { capacity: state.number('capacity'), maxTransfer: state.number('maxTransfer') };
    const engine = new CopyEngine(access.registers(COPY_REGION.INDEX), rings, facts, options, lender);
    engine.#ring.takeOver({ tail: state.number('tail'), head: state.number('head'), rung: state.number('rung') });
    const kind = state.boolean('interrupts') ? interruptKind(access) : undefined;
    if (kind !== undefined) engine.#listen(access, kind);
    engine.#restart = () => engine.#enable(rings, options, kind !== undefined);
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
      if (this.#dead !== undefined) throw this.#unusable(this.#dead);
      if (signal?.aborted === true) throw aborted(signal);

      const onAbort = (): void => {
        if (signal !== undefined) copy.fail(aborted(signal));
        this.#bell.ring();
      };
      const settle = (error: unknown): void => {
        signal?.removeEventListener('abort', onAbort);
        this.#copies.delete(copy);
        if (error === undefined) resolve();
        else reject(error instanceof Error ? error : withUndo(error, 'copy', []));
      };
      const report = onProgress === undefined ? undefined : progressOf(onProgress, length);
      const request = { source, destination, length, report, settle };
      const copy = new Copy(request, this.#pieceBytes, this.#explain);
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
    this.#mustGoOn();
    mustBeCopy(source, destination, length, this.maxTransfer);
    return this.#ring.put(source, destination, length, interrupt, undefined, 0);
  }

  /** Announces new submissions to the device: one register store, none if there are no new ones. */
  ring(): void {
    if (this.#lending !== undefined) throw this.#lending.busy('copyEngine');
    this.#ring.ring();
  }

  /**
   * Takes new completions into {@link cookies}, {@link codes}, {@link bytes} and {@link faults}, in order of
   * submission. Reads memory only; call {@link check} if nothing completes.
   *
   * @returns how many entries of the arrays are filled
   * @throws DmaError the error that stopped the engine once it is stopped or closed
   */
  poll(): number {
    this.#mustGoOn();
    this.#ring.reap();
    const found = this.#ring.takeFound();
    // A copy may be waiting for space in the ring, or for a completion just taken.
    if (this.#copies.size > 0) this.#bell.ring();
    return found;
  }

  #mustGoOn(): void {
    if (this.#dead !== undefined) throw this.#unusable(this.#dead);
    if (this.#held !== undefined) throw this.#held;
  }

  /**
   * Offers the engine to another thread: what this returns can be sent there any number of times, and the first one that attaches to it
   * (`attach(shared)`) has the engine. From now on all calls here are EBUSY, until {@link takeBack}. Copies of {@link submit} that run go on,
   * and are returned by `poll` to whoever has the engine then.
   *
   * @throws DmaError EBUSY while calls of {@link copy} run, or results wait for {@link poll}; ENOTSUP where another thread can not reach
   *   the registers; the error that stopped the engine
   */
  share(): Shared<AttachedCopyEngine> {
    const operation = 'copyEngine.share';
    const { description } = this.#lending ?? {};
    if (description !== undefined) return description;
    const lender = this.#mustBeLendable(operation);
    const lending = CopyEngineLending.forThreads(lender, this.#ring, this.maxTransfer, operation);
    this.#isLent(lending);
    return lending.share.description;
  }

  /**
   * @internal Lends the engine to another process, which works it until it lets go of it, or ends. The device is reset then, so that it
   * reaches no memory of that process's copies any more.
   *
   * @throws DmaError as {@link share}
   */
  lendToProcess(loan: ProcessLoan): LentToProcess {
    const operation = 'openCopyEngine';
    const lender = this.#mustBeLendable(operation);
    const { lending, lent } = CopyEngineLending.forProcess(lender, this.#ring, this.maxTransfer, loan, operation);
    this.#isLent(lending);
    return { ...lent, close: () => this.#takeFromProcess(lending) };
  }

  #isLent(lending: CopyEngineLending): void {
    this.#lending = lending;
    this.#dead = lending.busy('copyEngine');
  }

  /** @throws DmaError as {@link share} */
  #mustBeLendable(operation: string): CopyEngineLender {
    if (this.#lending !== undefined) throw this.#lending.busy(operation);
    if (this.#dead !== undefined) throw this.#dead;
    if (this.#copies.size > 0 || !this.#ring.isFetched)
      throw new DmaError({
        code: 'EBUSY',
        operation,
        reason: this.#copies.size > 0 ? `${this.#copies.size} copies run` : 'results of copies were not fetched',
        hint: 'await the copies, and call poll()',
      });
    if (this.#lender !== undefined) return this.#lender;
    throw new DmaError({
      code: 'ENOTSUP',
      operation,
      reason: 'the rings of this engine are the caller’s',
      hint: 'device.use(copyEngineDriver) of a probed device gives an engine that can be shared',
    });
  }

  /** The process that had it let go of it, or has ended; or this one stops sharing. */
  async #takeFromProcess(lending: CopyEngineLending): Promise<void> {
    if (this.#lending === lending) {
      lending.tellEnd();
      await this.#beginAnew(lending, 'copyEngine.takeBack');
      // Nobody waits for what that process had copied.
      this.#ring.takeFound();
      if (this.#lending !== lending) return;
      this.#lending = undefined;
      this.#dead = undefined;
    }
    throwFirst(lending.end(), 'copyEngine.takeBack');
  }

  /** Resets the device, which reaches no memory of what ran any more, and starts it again. When that fails, it can only be closed. */
  async #beginAnew(lending: CopyEngineLending, operation: string): Promise<void> {
    try {
      await this.#reset(operation);
      this.#ring.restart(lending.words);
      this.#restart?.();
    } catch (error) {
      await this.#end(withUndo(error, operation, [])).catch(() => undefined);
      throw error;
    }
  }

  /**
   * Takes the engine back that {@link share} offered. Copies that run go on here. If the thread that had it has ended without disposing
   * it, the device is reset first, so that it reaches no memory of that thread's copies any more: the next {@link poll} returns those with
   * the code `COPY_ABANDONED`.
   *
   * @throws DmaError (rejects): EBUSY while a thread has it, which the error names; ETIMEDOUT if the reset does not end
   */
  async takeBack(): Promise<void> {
    const operation = 'copyEngine.takeBack';
    const lending = this.#lending;
    if (lending === undefined) return;
    if (lending.take(operation)) this.#ring.load(lending.words, false);
    else await this.#beginAnew(lending, operation);
    if (this.#lending !== lending) return;
    this.#lending = undefined;
    this.#dead = undefined;
    throwFirst(lending.end(), operation);
  }

  /** @throws DmaError EBUSY, naming it, while another thread has the engine */
  mustBeFree(operation: string): void {
    if (this.#lending?.user !== undefined) throw this.#lending.busy(operation);
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

  #start(access: DeviceAccess, rings: CopyEngineRings, options: CopyEngineOptions): void {
    const registers = this.#registers;
    const kind = options.interrupts === false ? undefined : interruptKind(access);
    if (kind !== undefined) {
      this.#listen(access, kind);
      registers.write32(REG.INTERRUPT_ENABLE, COPY_INTERRUPT.COMPLETION | COPY_INTERRUPT.ERROR);
    }
    this.#restart = () => this.#enable(rings, options, kind !== undefined);
    this.#restart();
  }

  /** Gives the device its rings, and starts it. */
  #enable({ descriptors, completions }: CopyEngineRings, options: CopyEngineOptions, interrupts: boolean): void {
    const registers = this.#registers;
    registers.write32(REG.RING_LOW, descriptors.iova);
    registers.write32(REG.RING_HIGH, Math.floor(descriptors.iova / 2 ** 32));
    registers.write32(REG.DONE_LOW, completions.iova);
    registers.write32(REG.DONE_HIGH, Math.floor(completions.iova / 2 ** 32));
    registers.write32(REG.RING_SIZE, this.capacity);
    registers.write32(REG.COALESCE, options.coalesce ?? 1);
    if (interrupts) registers.write32(REG.INTERRUPT_ENABLE, COPY_INTERRUPT.COMPLETION | COPY_INTERRUPT.ERROR);
    registers.write32(REG.CONTROL, COPY_CONTROL.ENABLE);
  }

  #listen(access: DeviceAccess, kind: InterruptKind): void {
    const registers = this.#registers;
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
  }

  /** Serves the copies until there are none. */
  async #drive(): Promise<void> {
    this.#driving = true;
    const sleepMs = this.#interrupts === undefined ? SLEEP_MS.polling : SLEEP_MS.interrupts;
    try {
      let idleTurns = 0;
      let lastTaken = now();
      while (this.#copies.size > 0 && this.#dead === undefined) {
        const taken = this.#ring.reap();
        for (const copy of this.#copies) copy.settleIfFinished();
        if (this.#held === undefined) for (const copy of this.#copies) if (!copy.feed(this.#ring)) break;
        const fed = this.#ring.isBehind;
        this.#ring.ring();
        // While the ring is full of results that `poll` has to fetch, the device is not slow.
        if (taken > 0 || this.#ring.isEmpty || this.#held !== undefined) lastTaken = now();
        if (taken > 0 || fed) idleTurns = 0;
        else if (++idleTurns > SPIN_TURNS && this.#held === undefined) {
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

  /** Stops the device, then ends the copies, whose memory it no longer accesses. */
  async #end(error: DmaError): Promise<void> {
    if (this.#dead === undefined || this.#lending !== undefined) this.#dead = error;
    const lending = this.#lending;
    this.#lending = undefined;
    try {
      await this.#reset('copyEngine.close');
    } catch (failure) {
      if (!isGone(failure)) throw failure;
    } finally {
      this.#bell.ring();
      for (const copy of this.#copies) copy.abandon(error);
      this.#interrupts?.close();
      this.#interrupts = undefined;
      lending?.close();
    }
  }

  /** The error of calls now. */
  #unusable(why: DmaError): DmaError {
    return this.#lending?.busy('copyEngine') ?? why;
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

function aborted(signal: AbortSignal): DmaError {
  const hint = 'the signal was aborted; call it again with a new signal';
  return new DmaError({ code: 'ECANCELED', operation: 'copy', reason: 'aborted', hint, cause: signal.reason });
}

function interruptKind(access: DeviceAccess): InterruptKind | undefined {
  const kinds: readonly InterruptKind[] = ['msix', 'msi', 'intx'];
  return kinds.find((kind) => access.interruptCount(kind) > 0);
}
