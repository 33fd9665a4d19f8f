/** A copy engine that another thread opened, in the thread that works it. */
import { AttachedDevice } from '../bus/attached-device.js';
import { attachStores, type AttachedStores } from '../bus/lent-registers.js';
import { closedDriver } from '../bus/closed-device.js';
import { DmaError, throwFirst, undoAll, withUndo } from '../errors.js';
import type { MemoryPart } from '../memory/part.js';
import type { HoldOf } from '../memory/shared/hold.js';
import { Holders } from '../memory/shared/holders.js';
import type { SharedFacts } from '../memory/shared/shared.js';
import { wordsIn, type SharedWithQueue } from '../memory/shared/words.js';
import { Turn, TURN, whoHas } from '../memory/shared/turn.js';
import type { Platform } from '../platform/ports.js';
import { shortForm } from '../short-form.js';
import type { Iova, IovaLike, Va, VaLike } from '../units.js';
import { COPY_ENTRY } from '../vfio-user/devices/copy-engine-layout.js';
import { CopyEngineResults } from './copy-engine-results.js';
import { CopyRing, mustBeCopy } from './copy-engine-ring.js';
import { ENGINE_WORD as WORD, type CopyEngineFacts } from './copy-engine-state.js';

/** The name of an engine in messages. */
export function engineName({ device }: Pick<CopyEngineFacts, 'device'>): string {
  return `the copy engine ${device}`;
}

/** The facts of a shared engine, which the seal says `share` made. */
export function copyEngineFacts({ text }: SharedFacts): CopyEngineFacts {
  return JSON.parse(String(text)) as CopyEngineFacts;
}

/**
 * A copy engine of another thread, which this thread works: {@link submit}, {@link ring} and {@link poll} as those of `CopyEngine`. Made by
 * `attach`. Copies are stores to memory and to the device; the other thread takes no part in it. Disposing it gives the engine back, with
 * what still runs.
 */
export class AttachedCopyEngine extends CopyEngineResults implements Disposable {
  /** The name of its device. */
  readonly device: string;
  readonly #ring: CopyRing;
  readonly #words: Int32Array;
  readonly #turn: Turn;
  readonly #owner: number;
  readonly #hold: HoldOf;
  readonly #addresses: () => AttachedDevice;
  readonly #undo: (() => void)[];
  /** Why it can not be used. */
  #dead: DmaError | undefined;

  private constructor(
    facts: CopyEngineFacts,
    ring: CopyRing,
    words: Int32Array,
    [turn, owner, hold]: readonly [Turn, number, HoldOf],
    addresses: () => AttachedDevice,
    undo: (() => void)[],
  ) {
    super(ring, facts.maxTransfer);
    this.device = facts.device;
    this.#ring = ring;
    this.#words = words;
    this.#turn = turn;
    this.#owner = owner;
    this.#hold = hold;
    this.#addresses = addresses;
    this.#undo = undo;
  }

  /**
   * @internal For `attach`.
   *
   * @param hold of this thread, which ends with it
   * @throws DmaError EBUSY while another thread has the engine, or its maker took it back
   */
  static attach(
    { holders: table, state, more }: SharedWithQueue,
    facts: CopyEngineFacts,
    hold: HoldOf,
    platform: Platform,
    operation = 'attach',
  ): AttachedCopyEngine {
    const holders = Holders.attach(platform.kernel, table);
    const owner = holders.enter();
    const words = wordsIn(state, 'the state of an engine', operation);
    const turn = new Turn(words, WORD.OWNER, holders);
    const before = turn.take(owner);
    if (before !== TURN.OFFERED) {
      hold.leave();
      throw taken(facts, before, holders, operation);
    }
    const undo: (() => void)[] = [];
    try {
      const tables = facts.domain === undefined ? 0 : 2;
      const { registers, calls } = facts;
      const stores =
        registers === undefined
          ? storesByCall(platform, calls, undo)
          : attachStores(platform, registers, more.at(tables), holders);
      undo.push(() => stores[Symbol.dispose]());
      const ringAt = (va: number): { bytes: Uint8Array; iova: number } => {
        const view = platform.memory.view(va as Va, facts.capacity * COPY_ENTRY.BYTES);
        undo.push(() => platform.memory.detach(view));
        return { bytes: new Uint8Array(view), iova: 0 };
      };
      const rings = { descriptors: ringAt(facts.descriptors), completions: ringAt(facts.completions) };
      const ring = new CopyRing(stores, rings, facts.capacity);
      ring.load(words, true);
      const { device: name, driver, domain } = facts;
      let addresses: AttachedDevice | undefined;
      return new AttachedCopyEngine(
        facts,
        ring,
        words,
        [turn, owner, hold],
        () => (addresses ??= new AttachedDevice({ name, driver, domain }, hold, more.slice(0, tables))),
        undo,
      );
    } catch (error) {
      const errors = undoAll(undo.reverse());
      hold.leave();
      turn.leave(owner);
      throw withUndo(error, operation, errors);
    }
  }

  /** Is it this thread's, and does it work? */
  get live(): boolean {
    this.#look();
    return this.#dead === undefined;
  }

  /** The IOVA of memory that is mapped for the device: as `AttachedDevice.iovaOf`. */
  iovaOf(memory: MemoryPart | VaLike): Iova {
    if (this.#dead !== undefined) throw this.#dead;
    return this.#addresses().iovaOf(memory);
  }

  /**
   * Writes one copy into the ring: as `CopyEngine.submit`. Its memory must stay mapped until it has completed; attach to the mapping
   * for that.
   *
   * @throws DmaError EINVAL; EBADF once the engine was given back; ECANCELED once it is closed or gone
   */
  submit(source: IovaLike, destination: IovaLike, length: number): number {
    if (this.#dead !== undefined || Atomics.load(this.#words, WORD.ENDED) !== 0) throw this.#failure();
    mustBeCopy(source, destination, length, this.maxTransfer);
    return this.#ring.put(source, destination, length, false, undefined, 0);
  }

  /** Announces new submissions to the device: one store, none if there are no new ones. @throws DmaError as {@link submit} */
  ring(): void {
    if (this.#dead !== undefined || Atomics.load(this.#words, WORD.ENDED) !== 0) throw this.#failure();
    this.#ring.ring();
  }

  /** Takes new completions: as `CopyEngine.poll`. @throws DmaError as {@link submit} */
  poll(): number {
    if (this.#dead !== undefined || Atomics.load(this.#words, WORD.ENDED) !== 0) throw this.#failure();
    this.#ring.reap();
    return this.#ring.takeFound();
  }

  /** Gives the engine back: its maker, or another thread, goes on with it. Idempotent. */
  [Symbol.dispose](): void {
    if (this.#dead !== undefined) return;
    this.#ring.save(this.#words);
    const reason = 'the engine was given back by this thread';
    const hint = 'attach to it again';
    this.#leave(new DmaError({ code: 'EBADF', operation: 'copyEngine', device: this.device, reason, hint }));
  }

  /** @internal Looks whether it was closed or is gone: the process that has the device says so. */
  look(): void {
    this.#look();
  }

  /** @internal The process that has the device has ended, or the connection to it. */
  lose(why: DmaError): void {
    if (this.#dead === undefined) this.#leave(why.with({ operation: 'copyEngine', device: this.device }));
  }

  #failure(): DmaError {
    this.#look();
    return this.#dead ?? closedDriver('copyEngine');
  }

  /** Lets go of an engine that was closed or is gone: its rings can be freed then. */
  #look(): void {
    if (this.#dead !== undefined || Atomics.load(this.#words, WORD.ENDED) === 0) return;
    this.#leave(closedDriver('copyEngine').with({ device: this.device }));
  }

  #leave(why: DmaError): void {
    this.#dead = why;
    const errors = undoAll(this.#undo.splice(0).reverse());
    this.#hold.leave();
    this.#turn.leave(this.#owner);
    throwFirst(errors, 'copyEngine.dispose');
  }
}

/** The process that has the device stores the doorbell: it knows from the words what was announced. */
function storesByCall(
  { files, events }: Platform,
  calls: number | undefined,
  undo: (() => void)[],
): Pick<AttachedStores, 'write32' | typeof Symbol.dispose> {
  if (calls === undefined) throw closedDriver('copyEngine');
  const own = files.duplicate(calls);
  undo.push(() => files.close(own));
  return { write32: () => events.signal(own), [Symbol.dispose]: () => undefined };
}

/** EBUSY, as `before` has the engine. */
function taken({ device }: CopyEngineFacts, before: number, holders: Holders, operation: string): DmaError {
  const isMaker = before === TURN.MAKER;
  return new DmaError({
    code: 'EBUSY',
    operation,
    device,
    reason: isMaker ? 'the thread that opened the engine works it itself' : `${whoHas(before, holders)} the engine`,
    hint: isMaker
      ? 'engine.share() offers it again'
      : 'it is free once that thread disposes it, or takeBack() returned',
  });
}

shortForm(AttachedCopyEngine, 'AttachedCopyEngine', ({ device, capacity, maxTransfer, live }) => ({
  ...{ device, capacity, maxTransfer, live },
}));
