/** A copy engine that is offered to other threads, in the thread that opened it. */
import { isMainThread } from 'node:worker_threads';
import type { Device } from '../bus/model.js';
import { DmaError, undoAll, withUndo } from '../errors.js';
import type { Shared } from '../memory/shared/shared.js';
import { notShareable, type Share, type Shares } from '../memory/shared/shares.js';
import { Turn } from '../memory/shared/turn.js';
import { setTimeout } from '../timers.js';
import { COPY_REGION } from '../vfio-user/devices/copy-engine-layout.js';
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
  /** Keeps the rings from being freed. */
  pin(reason: string): Disposable;
}

/** How often it looks whether the thread that has the engine knows that it was closed, milliseconds. */
const QUIET_MS = 10;

/** What was lent with an engine, and who has it. */
export class CopyEngineLending {
  /** Where the rings are, and whose turn it is. */
  readonly words: Int32Array;
  readonly #device: Device;
  readonly #turn: Turn;
  readonly #share: Share<AttachedCopyEngine>;
  readonly #loans: Disposable[] = [];

  /** Offers the engine. @throws DmaError ENOTSUP; then nothing has changed */
  constructor(lender: CopyEngineLender, ring: CopyRing, capacity: number, maxTransfer: number, operation: string) {
    const { device, shares, descriptors, completions } = lender;
    const { access, name, driver, domain } = device;
    if (shares === undefined) throw notShareable(operation);
    if (!isMainThread)
      throw refused(device, operation, 'the rings end with this worker thread', 'open the device in the main thread');
    if (access.lendRegisters === undefined)
      throw refused(
        device,
        operation,
        'the registers of the device can only be reached from the thread that opened it',
        'serve the device in another process, and use it by the bus vfio-user',
      );
    const buffer = new SharedArrayBuffer(WORD.COUNT * 4);
    this.words = new Int32Array(buffer);
    this.#device = device;
    const turn = new Turn(this.words, WORD.OWNER, shares.holders);
    this.#turn = turn;
    const loan = access.lendRegisters(COPY_REGION.INDEX, 0, COPY_REGION.SIZE, shares.holders);
    this.#loans.push(loan, lender.pin(`${engineName({ device: name })} is offered to other threads`));
    try {
      const facts: CopyEngineFacts = {
        ...{ device: name, driver: driver?.name, capacity, maxTransfer, descriptors, completions },
        domain: domain === undefined ? undefined : { name: domain.name, kind: domain.kind },
        registers: loan.stores,
      };
      this.#share = shares.add<AttachedCopyEngine>(
        {
          kind: 'copy-engine',
          what: engineName(facts),
          facts: { text: JSON.stringify(facts) },
          more: [buffer, ...(domain?.sharedTable ?? []), ...(loan.words === undefined ? [] : [loan.words])],
        },
        operation,
      );
      if (domain !== undefined)
        this.#loans.push(
          domain.addUser({
            device: name,
            uses: (start, end) => ring.usesOf(this.words, start, end, (iova) => domain.vaOf(iova)),
          }),
        );
    } catch (error) {
      throw withUndo(error, operation, this.#giveBack());
    }
    this.#loans.push({ [Symbol.dispose]: shares.addRecovery((id) => turn.forget(id)) });
    ring.save(this.words);
    turn.offer();
  }

  /** What other threads get. */
  get description(): Shared<AttachedCopyEngine> {
    return this.#share.description;
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
        ? 'the engine is offered to other threads, or was with one that has ended'
        : `the engine is with ${user}`;
    const hint =
      user === undefined
        ? 'takeBack() gives it back to this thread'
        : 'it is free when that thread disposes it, or ends';
    return new DmaError({ code: 'EBUSY', operation, device: this.#device.name, reason, hint });
  }

  /** Nobody can use it any more. @returns what went wrong */
  end(): unknown[] {
    return [...undoAll([() => this.#share.end('copyEngine.takeBack')]), ...this.#giveBack()];
  }

  /** The engine was closed, or is gone: a thread that has it is told, and then all that was lent is given back. */
  close(): void {
    Atomics.store(this.words, WORD.ENDED, 1);
    this.#share.lose();
    const look = (): void => {
      if (this.#turn.user === undefined) this.#giveBack();
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
