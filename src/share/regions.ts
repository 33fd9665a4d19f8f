/**
 * The memory that secondaries have mapped: each piece that is added to a heap of the primary is mapped in every
 * secondary before it is used, and unmapped there before it is freed. A secondary that does not answer in time is
 * dropped.
 */
import { DmaError, isDmaError, withUndo } from '../errors.js';
import type { Area } from '../memory/area.js';
import type { MemoryChange, MemoryHandler } from '../memory/memory-events.js';
import type { Platform } from '../platform/ports.js';
import { formatSize } from '../units.js';
import { MAX_MESSAGE_FDS, waitForAll, type Begun } from './peer.js';
import type { Session } from './server.js';
import type { JsonObject } from '../fields.js';

const OPERATION = 'grow';

/** One piece of memory of a heap. */
interface Region {
  readonly change: MemoryChange;
  /** The secondaries that have it, or are about to. */
  readonly sessions: Set<Session>;
}

/** The memory of all heaps of a primary, for its secondaries. */
export class Regions implements MemoryHandler {
  readonly #platform: Platform;
  readonly #timeoutMs: number;
  readonly #drop: (session: Session, error: DmaError) => void;
  readonly #regions = new Map<number, Region>();
  readonly #sessions = new Set<Session>();

  /** @param drop ends the connection to a secondary */
  constructor(platform: Platform, timeoutMs: number, drop: (session: Session, error: DmaError) => void) {
    this.#platform = platform;
    this.#timeoutMs = timeoutMs;
    this.#drop = drop;
  }

  /**
   * Maps all memory in a new secondary; what is added meanwhile is mapped there too.
   *
   * @throws DmaError of the secondary, such as EEXIST; why its connection has ended
   */
  async join(session: Session): Promise<void> {
    // Nobody would call `leave` any more.
    if (session.failure !== undefined) throw session.failure;
    this.#sessions.add(session);
    const begun: Begun[] = [];
    for (const region of this.#regions.values()) begun.push(...this.#add(session, region));
    await outcomesOf(begun);
  }

  /** A secondary is gone. */
  leave(session: Session): void {
    this.#sessions.delete(session);
    for (const { sessions } of this.#regions.values()) sessions.delete(session);
  }

  /** Can this secondary reach the memory at `va`? */
  has(session: Session, va: number): boolean {
    for (const { change, sessions } of this.#regions.values())
      if (va >= change.range.start && va < change.range.end) return sessions.has(session) && mappable(change);
    return false;
  }

  /** Maps or unmaps a piece of memory of a heap in one secondary, which asked for it. */
  async change(session: Session, va: number, mapped: boolean): Promise<void> {
    const region = this.#regions.get(va);
    if (region === undefined) return;
    await outcomesOf(mapped ? this.#add(session, region) : this.#remove(session, region));
  }

  /** The piece of memory that is exactly this range, and the heap that it is in. */
  find(va: number, length: number): { readonly heap: string; readonly mappable: boolean } | undefined {
    const region = this.#regions.get(va);
    if (region === undefined || region.change.range.length !== length) return undefined;
    return { heap: region.change.heap, mappable: mappable(region.change) };
  }

  /** Does this secondary have the piece of memory that begins there? */
  isIn(session: Session, va: number): boolean {
    return this.#regions.get(va)?.sessions.has(session) === true;
  }

  /** All pieces. */
  *changes(): Iterable<MemoryChange> {
    for (const { change } of this.#regions.values()) yield change;
  }

  grow(change: MemoryChange): void {
    const region: Region = { change, sessions: new Set() };
    this.#regions.set(change.range.start, region);
    try {
      this.#all(region, (session) => this.#add(session, region));
    } catch (error) {
      this.#regions.delete(change.range.start);
      const undo: unknown[] = [];
      try {
        this.#all(region, (session) => this.#remove(session, region), [...region.sessions]);
      } catch (why) {
        undo.push(why);
      }
      throw withUndo(error, OPERATION, undo);
    }
  }

  grown(change: MemoryChange): void {
    const region = this.#regions.get(change.range.start) ?? { change, sessions: new Set<Session>() };
    this.#regions.set(change.range.start, region);
    const missing = [...this.#sessions].filter((session) => !region.sessions.has(session));
    // It stays, because a later handler refused its removal.
    if (missing.length > 0) this.#orDrop(missing, () => this.#all(region, (each) => this.#add(each, region), missing));
  }

  shrink(change: MemoryChange): void {
    const region = this.#regions.get(change.range.start);
    if (region === undefined) return;
    this.#all(region, (session) => this.#remove(session, region), [...region.sessions]);
  }

  shrunk(change: MemoryChange): void {
    const region = this.#regions.get(change.range.start);
    if (region === undefined) return;
    this.#regions.delete(change.range.start);
    const left = [...region.sessions];
    if (left.length > 0) this.#orDrop(left, () => this.#all(region, (each) => this.#remove(each, region), left));
  }

  /** Asks secondaries, and waits for all of them. @throws DmaError the first error of one that refuses */
  #all(region: Region, ask: (session: Session) => Begun[], sessions = [...this.#sessions]): void {
    const asked: { readonly session: Session; readonly begun: Begun }[] = [];
    for (const session of sessions) {
      try {
        for (const begun of ask(session)) asked.push({ session, begun });
      } catch (error) {
        // Its connection is over, or it reads nothing.
        if (!isDmaError(error)) throw error;
        this.#drop(session, error);
      }
    }
    waitForAll(
      this.#platform,
      asked.map(({ begun }) => begun),
      this.#timeoutMs,
    );
    let refused: DmaError | undefined;
    for (const { session, begun } of asked) {
      if (!begun.done) {
        const what = formatSize(region.change.range.length);
        const reason = `${session.label} did not answer within ${this.#timeoutMs} ms that memory changes (${what})`;
        this.#drop(session, new DmaError({ code: 'ETIMEDOUT', operation: 'Eal.attach', reason }));
      } else if (session.failure === undefined) {
        try {
          begun.outcome();
        } catch (error) {
          if (!isDmaError(error)) throw error;
          region.sessions.delete(session);
          refused ??= error.with({ reason: `${session.label} can not map it: ${error.reason}` });
        }
      }
    }
    if (refused !== undefined) throw refused;
  }

  /** Runs `work`; secondaries that refuse, when it is too late to refuse, are dropped. */
  #orDrop(sessions: readonly Session[], work: () => void): void {
    try {
      work();
    } catch (error) {
      if (!isDmaError(error)) throw error;
      for (const session of sessions) this.#drop(session, error);
    }
  }

  /** Asks a secondary to map a piece of memory. */
  #add(session: Session, region: Region): Begun[] {
    if (region.sessions.has(session) || !mappable(region.change)) return [];
    region.sessions.add(session);
    return addMessages(region.change).map(({ what, fds }) => session.peer.begin('memory.add', what, fds));
  }

  /** Asks a secondary to unmap it. */
  #remove(session: Session, region: Region): Begun[] {
    if (!region.sessions.delete(session)) return [];
    const { start, length } = region.change.range;
    return [session.peer.begin('memory.remove', { va: start, length }, [])];
  }
}

/** Waits for questions one after the other. @throws DmaError of the secondary; why its connection has ended */
async function outcomesOf(begun: readonly Begun[]): Promise<void> {
  for (const each of begun) {
    await each.settled();
    each.outcome();
  }
}

/** Does all of it have descriptors? Other memory is this process's alone. */
function mappable({ areas }: MemoryChange): boolean {
  return areas.every(({ backing }) => backing !== undefined);
}

/** The messages that describe memory, each with as many descriptors as one can carry. */
function addMessages({ heap, areas, node }: MemoryChange): { what: JsonObject; fds: number[] }[] {
  const messages: { what: JsonObject; fds: number[] }[] = [];
  for (let first = 0; first < areas.length; first += MAX_MESSAGE_FDS) {
    const some = areas.slice(first, first + MAX_MESSAGE_FDS);
    const pieces = some.map(pieceOf).filter((piece) => piece !== undefined);
    messages.push({ what: { heap, node, pieces }, fds: some.flatMap(({ backing }) => backing?.fd ?? []) });
  }
  return messages;
}

/** An area as a secondary maps it; `undefined` if it has no descriptor. */
export function pieceOf({ range, pageSize, writable, backing }: Area): JsonObject | undefined {
  if (backing === undefined) return undefined;
  return { va: range.start, length: range.length, pageSize, writable, offset: backing.offset };
}
