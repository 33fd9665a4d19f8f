/**
 * What one `Eal` shares with other threads, at the side of the maker: who holds each thing, and whether it can be freed. The other side
 * is hold.ts.
 */
import { stopped } from '../../check.js';
import { DmaError, invalid, undoAll } from '../../errors.js';
import type { EventsPort, FilesPort, KernelPort, MemoryPort, ReadinessPort, Watch } from '../../platform/ports.js';
import { setTimeout } from '../../timers.js';
import type { Va } from '../../units.js';
import { Holders, type HoldersKernel } from './holders.js';
import { ENDED, ENDING, Holds, LOST, OPEN } from './holds.js';
import { Recovery } from './recovery.js';
import { sealed, type Shared, type SharedFacts, type SharedKind } from './shared.js';

/** What sharing needs of the platform. */
export interface SharesPlatform {
  readonly kernel: HoldersKernel & Pick<KernelPort, 'readText'>;
  readonly memory: Pick<MemoryPort, 'addressOf' | 'keeper' | 'secret'>;
  readonly events: Pick<EventsPort, 'create' | 'take'>;
  readonly files: Pick<FilesPort, 'close'>;
  readonly readiness: Pick<ReadinessPort, 'watch'>;
}

/** How other threads call this one. */
export interface CallFrom extends Disposable {
  /** An eventfd: a signal calls. */
  readonly fd: number;
}

/** What is shared. */
export interface Sharing {
  readonly kind: SharedKind;
  /** Its name in messages. */
  readonly what: string;
  readonly facts: SharedFacts;
  /** An address in each piece of memory that the holders will reach. */
  readonly vas?: readonly Va[];
  /** What kinds need besides. */
  readonly more?: readonly SharedArrayBuffer[];
  /** What keeps the memory in place, if its owner knows. Default: asked by address. */
  readonly keepers?: readonly SharedArrayBuffer[];
}

/** How often it is asked whether what holders could reach after they let go is collected, in milliseconds. */
const LINGER_POLL_MS = 50;

/** How often it is asked who has ended, while something is shared, in milliseconds: it is promised within a second. */
const REAP_MS = 250;

/** Everything that one `Eal` shares. */
export class Shares {
  readonly #platform: SharesPlatform;
  readonly #shares = new Set<Share>();
  readonly #recovering = new Set<(id: number) => void>();
  #holders: Holders | undefined;
  #others: (() => void) | undefined;
  #reaping = false;
  #closed = false;

  constructor(platform: SharesPlatform) {
    this.#platform = platform;
  }

  /** The threads and processes that use what this `Eal` shares. Made on first use, and this thread is in it. */
  get holders(): Holders {
    if (this.#holders === undefined) {
      this.#holders = Holders.create(this.#platform.kernel);
      this.#holders.enter();
    }
    return this.#holders;
  }

  /** Shares something. @throws DmaError ENOTSUP where memory can not be shared; ECANCELED after `Eal.stop` */
  add<T>({ kind, what, facts, vas = [], more = [], keepers }: Sharing, operation = 'share'): Share<T> {
    if (this.#closed) throw stopped(operation);
    const { memory } = this.#platform;
    const { holders } = this;
    const { buffer, capacity } = holders;
    if (!(buffer instanceof SharedArrayBuffer)) throw invalid(operation, 'the holders are not those of one process');
    const words = new SharedArrayBuffer(Holds.bytesFor(capacity));
    const holds = Holds.create(words, capacity, holders.mine);
    const kept = keepers ?? [...new Set(vas.flatMap((va) => memory.keeper(va) ?? []))];
    return this.adopt<T>(what, holds, { kind, facts, holds: words, holders: buffer, more, keepers: kept });
  }
  /**
   * Shares something that has made its own words.
   *
   * @param parts what is sealed and sent
   * @throws DmaError ENOTSUP where memory can not be shared
   */
  adopt<T>(what: string, holds: Holds, parts: Parameters<typeof sealed<T>>[1]): Share<T> {
    const share = new Share<T>(what, sealed<T>(this.#platform.memory, parts), holds, this.holders, () =>
      this.#shares.delete(share),
    );
    this.#shares.add(share);
    this.#reapLater();
    return share;
  }

  /**
   * Opens a way for other threads to call this one.
   *
   * @param called from the event loop, once or more often after each signal
   */
  callFrom(called: () => void): CallFrom {
    const { events, files, readiness } = this.#platform;
    const fd = events.create();
    let watch: Watch | undefined;
    try {
      watch = readiness.watch(fd, { readable: true }, () => {
        if (events.take(fd) > 0) called();
      });
    } catch (error) {
      files.close(fd);
      throw error;
    }
    watch.setRef(false);
    return {
      fd,
      [Symbol.dispose]: () => {
        if (watch === undefined) return;
        watch.close();
        watch = undefined;
        files.close(fd);
      },
    };
  }

  /**
   * Adds what gives back the things of a holder that has ended, beyond its holds; it is called once for each.
   *
   * @returns ends it; idempotent
   */
  addRecovery(recover: (id: number) => void): () => void {
    this.#recovering.add(recover);
    return () => void this.#recovering.delete(recover);
  }

  /** Also called whenever it is asked who has ended, for another table. */
  alsoReap(reap: () => void): void {
    this.#others = reap;
  }

  /** Gives back what holders that have ended had, so that their places in the table can be taken by others. */
  reap(): void {
    new Recovery(this.holders).release((id) => {
      for (const recover of this.#recovering) recover(id);
      for (const share of this.#shares) share.drop(id);
    });
    this.#others?.();
  }

  /** Threads come and go while nothing is called here. */
  #reapLater(): void {
    if (this.#reaping || this.#shares.size === 0) return;
    this.#reaping = true;
    setTimeout(() => {
      this.#reaping = false;
      // When the kernel can not tell now who lives, it is asked again.
      undoAll([() => this.reap()]);
      this.#reapLater();
    }, REAP_MS).unref();
  }

  /** @throws DmaError EBUSY, naming the holders, while any of it is held */
  mustBeFree(operation: string): void {
    for (const share of this.#shares) share.mustBeFree(operation);
  }

  /**
   * Ends all of it, so that everything can be freed: nobody can attach any more.
   *
   * @throws DmaError EBUSY, naming the holders, while any of it is held; then nothing has changed
   */
  close(operation: string): void {
    this.mustBeFree(operation);
    for (const share of [...this.#shares]) share.end(operation);
    this.#closed = true;
    this.#recovering.clear();
  }
}

/** One shared thing. */
export class Share<T = unknown> {
  /** What is sent. */
  readonly description: Shared<T>;
  readonly #what: string;
  readonly #holds: Holds;
  readonly #holders: Holders;
  readonly #forget: () => void;

  /** @internal made by {@link Shares.add} */
  constructor(what: string, description: Shared<T>, holds: Holds, holders: Holders, forget: () => void) {
    this.#what = what;
    this.description = description;
    this.#holds = holds;
    this.#holders = holders;
    this.#forget = forget;
  }

  /** Can others still attach? */
  get open(): boolean {
    return this.#holds.state === OPEN;
  }

  /** Did a holder transfer a view away? Then something can reach the memory for good. */
  get escaped(): boolean {
    return this.#holds.escaped;
  }

  /** @throws DmaError EBUSY, naming the holders, while anybody has attached */
  mustBeFree(operation: string): void {
    const living = this.#holds.living(this.#holders, 'held');
    if (living.length > 0) throw this.#busy(living, operation);
  }

  /** Ends it, so that it can be freed. @throws DmaError EBUSY as {@link Share.mustBeFree}; then nothing has changed */
  end(operation: string): void {
    if (!this.#holds.change(OPEN, ENDING)) return;
    try {
      this.mustBeFree(operation);
    } catch (error) {
      this.#holds.change(ENDING, OPEN);
      throw error;
    }
    this.#holds.change(ENDING, ENDED);
    this.ended();
  }

  /** It has ended already: its owner has asked who holds it. */
  ended(): void {
    if (!this.whenUnreachable(this.#forget)) this.#forget();
  }

  /** It is gone, whoever holds it: they are told. */
  lose(): void {
    if (this.#holds.change(OPEN, LOST)) this.#forget();
  }

  /** A holder has ended. */
  drop(id: number): void {
    for (const set of ['held', 'lingering'] as const) this.#holds.clear(id, set);
  }

  /**
   * Calls `over` when nothing that former holders had made can reach the memory any more: their views are collected, or they ended.
   *
   * @returns false if that is so already
   */
  whenUnreachable(over: () => void): boolean {
    if (!this.#lingers()) return false;
    const look = (): void => {
      if (this.#lingers()) setTimeout(look, LINGER_POLL_MS).unref();
      else over();
    };
    setTimeout(look, LINGER_POLL_MS).unref();
    return true;
  }

  #lingers(): boolean {
    return this.#holds.living(this.#holders, 'lingering').length > 0;
  }

  #busy(living: readonly number[], operation: string): DmaError {
    const [first] = living;
    const place = this.#holds.placeOf(first);
    const others = living.length === 1 ? '' : ` and ${living.length - 1} more`;
    const where = place === undefined ? '' : `, which attached at ${place}`;
    return new DmaError({
      code: 'EBUSY',
      operation,
      reason: `${this.#what} is shared, and held by ${this.#holders.describe(first)}${where}${others}`,
      hint: 'let go of it there (dispose what attach returned), or end that thread; a thread that has ended holds nothing',
    });
  }
}

/** ENOTSUP for a thing that belongs to no `Eal`. */
export function notShareable(operation: string): DmaError {
  const reason = 'what belongs to no Eal can not be shared';
  return new DmaError({ code: 'ENOTSUP', operation, reason, hint: 'Eal.start() makes one' });
}
