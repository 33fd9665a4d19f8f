/** A copy engine that is offered to other threads or processes, in the thread that opened it. */
import { isMainThread } from 'node:worker_threads';
import { registersFor } from '../bus/lent-registers.js';
import type { LentToProcess, ProcessLoan } from '../bus/lent-to-process.js';
import type { Device } from '../bus/model.js';
import { DmaError, undoAll, withUndo } from '../errors.js';
import type { External, ExternalMemory } from '../memory/external.js';
import type { Holders } from '../memory/shared/holders.js';
import type { Shared } from '../memory/shared/shared.js';
import { notShareable, type Share, type Shares } from '../memory/shared/shares.js';
import { Turn } from '../memory/shared/turn.js';
import { setTimeout } from '../timers.js';
import { COPY_REGION, COPY_REGISTER as REG } from '../vfio-user/devices/copy-engine-layout.js';
import { engineName, type AttachedCopyEngine } from './attached-copy-engine.js';
import type { CopyRing } from './copy-engine-ring.js';
import { ENGINE_WORD as WORD, type CopyEngineFacts } from './copy-engine-state.js';

/** What offers engines to other threads: made by the driver, which has the rings. */
export interface CopyEngineLender {
  readonly device: Device;
  /** Absent for a device of no `Eal`. */
  readonly shares: Shares | undefined;
  /** VAs of the two rings. */
  readonly descriptors: number;
  readonly completions: number;
  /** The memory that both are in. */
  readonly memory: ExternalMemory;
  /** Memory for the driver. */
  readonly external: External;
  /** Keeps the rings from being freed. */
  readonly pin: (reason: string) => Disposable;
}

/** How often it looks whether the thread that has the engine knows that it was closed, milliseconds. */
const QUIET_MS = 10;

/** What comes from where the engine is lent to. */
interface Ways {
  /** Of {@link ENGINE_WORD}, all zeros. */
  readonly words: Int32Array;
  readonly holders: Holders;
  /** What has to stay as long as the engine is lent. */
  readonly loans: Disposable[];
  /** Tells who has it to look at the words. */
  readonly tell: () => void;
}

/** What was lent with an engine, and who has it. */
export class CopyEngineLending {
  /** Where the rings are, and whose turn it is. */
  readonly words: Int32Array;
  readonly #device: Device;
  readonly #turn: Turn;
  readonly #loans: Disposable[];
  readonly #tell: () => void;
  #share: Share<AttachedCopyEngine> | undefined;

  private constructor({ device }: CopyEngineLender, { words, holders, loans, tell }: Ways) {
    this.words = words;
    this.#device = device;
    this.#turn = new Turn(words, WORD.OWNER, holders);
    this.#loans = loans;
    this.#tell = tell;
  }

  /** Offers the engine to other threads. @throws DmaError ENOTSUP; then nothing has changed */
  static forThreads(
    lender: CopyEngineLender,
    ring: CopyRing,
    maxTransfer: number,
    operation: string,
  ): CopyEngineLending & { readonly share: Share<AttachedCopyEngine> } {
    const { device, shares } = lender;
    const { access, domain } = device;
    if (shares === undefined) throw notShareable(operation);
    mustOutliveThread(device, operation);
    if (access.lendRegisters === undefined)
      throw refused(
        device,
        operation,
        'the registers of the device can only be reached from the thread that opened it',
        'serve the device in another process, and use it by the bus vfio-user',
      );
    const buffer = new SharedArrayBuffer(WORD.COUNT * 4);
    const loan = access.lendRegisters(COPY_REGION.INDEX, 0, COPY_REGION.SIZE, shares.holders);
    const ways = { words: new Int32Array(buffer), holders: shares.holders, loans: [loan], tell: () => undefined };
    const lending = new CopyEngineLending(lender, ways);
    const facts = factsOf(lender, ring, maxTransfer, { registers: loan.stores });
    const share = lending.#offer(lender, ring, operation, () => {
      lending.#loans.push({ [Symbol.dispose]: shares.addRecovery((id) => lending.#turn.forget(id)) });
      return (lending.#share = shares.add<AttachedCopyEngine>(
        {
          kind: 'copy-engine',
          what: engineName(facts),
          facts: { text: JSON.stringify(facts) },
          more: [buffer, ...(domain?.sharedTable ?? []), ...(loan.words === undefined ? [] : [loan.words])],
        },
        operation,
      ));
    });
    return Object.assign(lending, { share });
  }

  /** Offers the engine to another process. @throws DmaError ENOTSUP; then nothing has changed */
  static forProcess(
    lender: CopyEngineLender,
    ring: CopyRing,
    maxTransfer: number,
    { holders, tell }: ProcessLoan,
    operation: string,
  ): { readonly lending: CopyEngineLending; readonly lent: Omit<LentToProcess, 'close'> } {
    const { device, shares, external, memory } = lender;
    const { access, name } = device;
    if (shares === undefined) throw notShareable(operation);
    const state = external.allocate(WORD.COUNT * 4, { label: `state of ${engineName({ device: name })}` });
    const loans: Disposable[] = [state];
    const { buffer, byteOffset } = state.bytes();
    const ways = { words: new Int32Array(buffer, byteOffset, WORD.COUNT), holders, loans, tell };
    const lending = new CopyEngineLending(lender, ways);
    return lending.#offer(lender, ring, operation, () => {
      // A process that can not reach the doorbell calls this one, which stores it.
      const calls = shares.callFrom(() => {
        if (lending.#turn.isOut)
          undoAll([() => access.registers(COPY_REGION.INDEX).write32(REG.PRODUCER, lending.#rung)]);
      });
      loans.push(calls);
      const registers = registersFor(access, COPY_REGION.INDEX, REG.PRODUCER, 4, shares.holders);
      if (registers !== undefined) loans.push(registers);
      const facts = factsOf(lender, ring, maxTransfer, { calls: calls.fd });
      const lent = { facts, memories: [state, memory], calls: calls.fd, interrupt: undefined };
      return { lending, lent: { ...lent, registers: registers?.file } };
    });
  }

  /** @param make what is sent. @throws DmaError of it; then nothing has changed */
  #offer<T>({ device, pin }: CopyEngineLender, ring: CopyRing, operation: string, make: () => T): T {
    const { domain, name } = device;
    try {
      this.#loans.push(pin(`${engineName({ device: name })} is offered to other threads or processes`));
      const made = make();
      if (domain !== undefined)
        this.#loans.push(
          domain.addUser({
            device: name,
            uses: (start, end) => ring.usesOf(this.words, start, end, (iova) => domain.vaOf(iova)),
          }),
        );
      ring.save(this.words);
      this.#turn.offer();
      return made;
    } catch (error) {
      throw withUndo(error, operation, this.#giveBack());
    }
  }

  /** Descriptors that were announced. */
  get #rung(): number {
    return Atomics.load(this.words, WORD.RUNG) >>> 0;
  }

  /** What other threads get; absent if a process has it. */
  get description(): Shared<AttachedCopyEngine> | undefined {
    return this.#share?.description;
  }

  /** The living thread that has it, as a text. */
  get user(): string | undefined {
    return this.#turn.user;
  }

  /**
   * Takes it out of the hands of nobody, or of a thread that has ended.
   *
   * @returns can it go on as it is?
   * @throws DmaError EBUSY while a thread has it
   */
  take(operation: string): boolean {
    const how = this.#turn.takeBack();
    if (how === 'busy') throw this.busy(operation);
    return how === 'whole';
  }

  /** EBUSY, naming who has it. */
  busy(operation: string): DmaError {
    const { user } = this;
    const reason =
      user === undefined
        ? 'the engine is offered to other threads or processes, or was with one that has ended'
        : `the engine is with ${user}`;
    const hint =
      user === undefined
        ? 'takeBack() gives it back to this thread'
        : 'it is free when that thread or process disposes it, or ends';
    return new DmaError({ code: 'EBUSY', operation, device: this.#device.name, reason, hint });
  }

  /** Nobody can use it any more. @returns what went wrong */
  end(): unknown[] {
    return [...undoAll([() => this.#share?.end('copyEngine.takeBack')]), ...this.#giveBack()];
  }

  /** Tells who has it that it is over. */
  tellEnd(): void {
    Atomics.store(this.words, WORD.ENDED, 1);
    undoAll([this.#tell]);
  }

  /** The engine was closed, or is gone: a thread that has it is told, and then all that was lent is given back. */
  close(): void {
    this.tellEnd();
    this.#share?.lose();
    const look = (): void => {
      // A process has mappings of its own, which stay.
      if (this.#share === undefined || this.#turn.user === undefined) this.#giveBack();
      else setTimeout(look, QUIET_MS).unref();
    };
    look();
  }

  #giveBack(): unknown[] {
    return undoAll(this.#loans.splice(0).map((loan) => () => loan[Symbol.dispose]()));
  }
}

function refused({ name: device }: Device, operation: string, reason: string, hint: string): DmaError {
  return new DmaError({ code: 'ENOTSUP', operation, device, reason, hint });
}

/** @throws DmaError ENOTSUP in a worker, whose memory ends with it */
function mustOutliveThread(device: Device, operation: string): void {
  if (!isMainThread)
    throw refused(device, operation, 'the rings end with this worker thread', 'open the device in the main thread');
}

/** @param ways how the doorbell is stored */
function factsOf(
  { device: { name: device, driver, domain }, descriptors, completions }: CopyEngineLender,
  { capacity }: CopyRing,
  maxTransfer: number,
  ways: Pick<CopyEngineFacts, 'registers' | 'calls'>,
): CopyEngineFacts {
  return {
    ...{ device, driver: driver?.name, capacity, maxTransfer, descriptors, completions },
    domain: domain === undefined ? undefined : { name: domain.name, kind: domain.kind },
    ...ways,
  };
}
