/** One thread's hold of something that another thread shares. */
import { DmaError, invalid } from '../../errors.js';
import type { MemoryPort } from '../../platform/ports.js';
import { Holders, type HoldersKernel } from './holders.js';
import { ENDED, ENDING, Holds, LOST, OPEN } from './holds.js';
import type { WordMemory } from './words.js';

/** What a hold needs of the platform. */
export interface HoldPlatform {
  readonly kernel: HoldersKernel;
  readonly memory: Pick<MemoryPort, 'addressOf'>;
}

/** What waits for views to be collected. */
export interface Reached {
  readonly escaped: boolean;
  readonly unreachable: boolean;
  whenUnreachable(work: () => void): void;
}

/** What a thing that is attached asks of its hold. */
export type HoldOf = Pick<Hold, 'live' | 'mustBeThere' | 'leave'>;

/** How often a thread has attached to one thing: its bit is cleared with the last hold. By the address of the words. */
const counts = { held: new Map<number, number>(), lingering: new Map<number, number>() };

/** For pauses. */
const clock = new Int32Array(new SharedArrayBuffer(4));
/** Freeing decides within some microseconds; this many pauses of 1 ms are for a thread that gets no time. */
const MOST_PAUSES = 1000;

/**
 * A hold: as long as this thread has it, the thing is not freed. It ends with {@link Hold.leave}, or with the thread.
 */
export class Hold {
  readonly #holds: Holds;
  readonly #holders: Holders;
  readonly #id: number;
  /** The address of the words. */
  readonly #key: number;
  /** The words, the keepers: they live as long as this. */
  readonly #kept: readonly unknown[];
  #left = false;

  private constructor(holds: Holds, holders: Holders, id: number, key: number, kept: readonly unknown[]) {
    this.#holds = holds;
    this.#holders = holders;
    this.#id = id;
    this.#key = key;
    this.#kept = kept;
  }

  /**
   * Takes a hold.
   *
   * @param shared checked
   * @param what its name in messages
   * @param place where in the program, for messages of the maker
   * @throws DmaError EINVAL if it was freed; ENODEV if it was lost; EAGAIN if there are too many holders
   */
  static take(
    shared: {
      readonly holds: WordMemory;
      readonly holders: WordMemory;
      readonly more: readonly SharedArrayBuffer[];
      readonly keepers: readonly SharedArrayBuffer[];
    },
    platform: HoldPlatform,
    what: string,
    place: string,
    operation: string,
  ): Hold {
    const holders = Holders.attach(platform.kernel, shared.holders);
    const holds = Holds.attach(shared.holds, holders.capacity, operation);
    const id = holders.enter();
    const key = platform.memory.addressOf(shared.holds);
    holds.note(id, place);
    add(holds, id, key, 'held');
    for (let pauses = 0; holds.state === ENDING && pauses < MOST_PAUSES; pauses++) Atomics.wait(clock, 0, 0, 1);
    const { state } = holds;
    if (state === OPEN) return new Hold(holds, holders, id, key, [shared.holds, shared.keepers, shared.more]);
    drop(holds, id, key, 'held');
    if (state === LOST) throw gone(operation, what);
    throw invalid(operation, `${what} was freed`, {
      hint: 'share() of what is there now makes a new description; what is attached can not be freed meanwhile',
    });
  }

  /** Is it there, and held? Asks the kernel whether its maker lives: some microseconds. */
  get live(): boolean {
    return this.there && this.#holders.isAlive(this.#holds.maker);
  }

  /** As {@link Hold.live}, without asking whether the maker lives. For hot paths. */
  get there(): boolean {
    return !this.#left && this.#holds.state === OPEN;
  }

  /** Was it let go of? */
  get left(): boolean {
    return this.#left;
  }

  /** What keeps the memory of a worker in place. */
  get kept(): readonly unknown[] {
    return this.#kept;
  }

  /** @throws DmaError EINVAL once it was let go of; ENODEV once it was lost */
  mustBeThere(operation: string, what: string): void {
    if (this.#left)
      throw invalid(operation, `this thread has let go of ${what}`, { hint: 'attach to it again to use it' });
    const { state } = this.#holds;
    if (state === LOST) throw gone(operation, what);
    if (state === ENDED) throw invalid(operation, `${what} was freed`);
  }

  /**
   * Lets go. Idempotent.
   *
   * @param reached what can still reach the memory by views that were handed out
   */
  leave(reached?: Reached): void {
    if (this.#left) return;
    this.#left = true;
    const [holds, id, key] = [this.#holds, this.#id, this.#key];
    if (reached?.escaped === true) holds.escape();
    else if (reached?.unreachable === false) {
      // The memory may be freed now, but not its addresses.
      add(holds, id, key, 'lingering');
      const kept = this.#kept;
      reached.whenUnreachable(() => {
        if (kept.length > 0) drop(holds, id, key, 'lingering');
      });
    }
    drop(holds, id, key, 'held');
  }
}

function add(holds: Holds, id: number, key: number, set: 'held' | 'lingering'): void {
  // Words at this address that were freed by force, with holds of this thread, leave a count behind.
  const before = holds.has(id, set) ? (counts[set].get(key) ?? 0) : 0;
  counts[set].set(key, before + 1);
  holds.set(id, set);
}

function drop(holds: Holds, id: number, key: number, set: 'held' | 'lingering'): void {
  // Another thing's words may be at this address by now.
  if (holds.gone) return;
  const count = (counts[set].get(key) ?? 1) - 1;
  if (count > 0) {
    counts[set].set(key, count);
    return;
  }
  counts[set].delete(key);
  holds.clear(id, set);
}

function gone(operation: string, what: string): DmaError {
  return new DmaError({
    code: 'ENODEV',
    operation,
    reason: `${what} is gone: the device was lost or removed, or its mapping ended with it`,
    hint: 'the thread that has the device knows why: the event "lost" of its Eal',
  });
}
