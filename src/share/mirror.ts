/** The memory of a primary in a secondary: the same pages at the same addresses. */
import { DmaError, throwFirst, undoAll, withUndo } from '../errors.js';
import { HandedOut, retired } from '../memory/retired.js';
import { Views } from '../memory/views.js';
import type { Platform } from '../platform/ports.js';
import { RangeMap } from '../range-map.js';
import { Range } from '../ranges.js';
import type { Va } from '../units.js';
import { addressesTaken } from './window.js';
import { nonsense, type Fields } from '../fields.js';

const OPERATION = 'Eal.attach';

/** One mapping. */
interface Piece {
  readonly range: Range<Va>;
  /** What can reach it through views. */
  readonly handedOut: HandedOut;
  /** The views that were handed out. */
  readonly views: Set<Views>;
  /** Was it placed outside of the window? Then its addresses are given back with it. */
  readonly apart: boolean;
  readonly group: Mapped;
}

/** What was mapped together. */
export interface Mapped {
  /** Is this process about to let go of it? Then other memory of the primary may take its place. */
  leaving: boolean;
  /** Unmaps it, unless other memory has taken its place. */
  unmap(): void;
}

/** What can reach several mappings at once, because a view is over all of them. */
class OverSeveral extends HandedOut {
  readonly #pieces: readonly Piece[];

  constructor(pieces: readonly Piece[]) {
    super();
    this.#pieces = pieces;
  }

  override get escaped(): boolean {
    return this.#pieces.some(({ handedOut }) => handedOut.escaped);
  }

  override emptied(buffer: ArrayBuffer): void {
    for (const { handedOut } of this.#pieces) handedOut.emptied(buffer);
  }

  override escape(): void {
    for (const { handedOut } of this.#pieces) handedOut.escape();
  }
}

/** The open ones of this process, and those that were closed whose addresses are still waited for. */
const mirrors = new Set<Mirror>();

/** What a secondary has mapped. */
export class Mirror {
  readonly #platform: Platform;
  readonly #window: Range<Va>;
  readonly #pieces = new RangeMap<Piece>();
  /** Mappings whose addresses wait until nothing reaches them. */
  #retired = 0;
  #closed = false;

  /**
   * A place for the memory of a primary. After an earlier one at the same addresses was closed, views of that one may not be collected
   * yet: its reservation is used again then, as addresses are used again within one connection.
   *
   * @throws DmaError EEXIST if the addresses of the primary's memory are taken in this process, with what is there
   */
  static open(platform: Platform, window: Range<Va>): Mirror {
    for (const other of mirrors) {
      if (!other.#window.overlaps(window)) continue;
      if (!other.#closed)
        throw new DmaError({
          code: 'EEXIST',
          operation: OPERATION,
          range: window,
          reason: 'this process is attached to memory at these addresses already',
          hint: 'one connection serves a whole process: pass it on, or close it before',
        });
      if (other.#window.start !== window.start || other.#window.length !== window.length) continue;
      other.#closed = false;
      return other;
    }
    return new Mirror(platform, window);
  }

  private constructor(platform: Platform, window: Range<Va>) {
    this.#platform = platform;
    this.#window = window;
    try {
      platform.memory.reserveAt(window.start, window.length);
    } catch (error) {
      throw addressesTaken(OPERATION, error);
    }
    mirrors.add(this);
  }

  /** Bytes that are mapped. */
  get bytes(): number {
    return [...this.#pieces.values()].reduce((sum, { range }) => sum + range.length, 0);
  }

  /** Is all of [va, va + length) mapped? */
  has(va: number, length: number): boolean {
    for (let at = va; at < va + length;) {
      const piece = this.#pieces.at(at);
      if (piece === undefined) return false;
      at = piece.range.end;
    }
    return true;
  }

  /**
   * Maps pieces of memory, or none of them.
   *
   * @param fds a descriptor for each; they stay the caller's
   * @throws DmaError EEXIST if something is there
   */
  add(pieces: readonly Fields[], fds: readonly number[]): Mapped {
    if (pieces.length !== fds.length)
      throw nonsense(OPERATION, `${fds.length} descriptors for ${pieces.length} pieces`);
    const added: Piece[] = [];
    const group: Mapped = {
      leaving: false,
      unmap: () => {
        for (const piece of added) if (this.#pieces.at(piece.range.start) === piece) this.#unmap(piece);
      },
    };
    try {
      pieces.forEach((fields, n) => added.push(this.#addOne(fields, fds[n], group)));
      return group;
    } catch (error) {
      const undo = undoAll(added.reverse().map((piece) => () => this.#unmap(piece)));
      throw withUndo(error, OPERATION, undo);
    }
  }

  #addOne(fields: Fields, fd: number, group: Mapped): Piece {
    const { memory } = this.#platform;
    const [va, length, offset] = ['va', 'length', 'offset'].map((key) => fields.number(key));
    const range = new Range(va as Va, length, OPERATION);
    const inWindow = range.start >= this.#window.start && range.end <= this.#window.end;
    const inTheWay = (): Piece | undefined => this.#pieces.overlapping(range.start, range.end);
    for (let other = inTheWay(); other?.group.leaving === true; other = inTheWay()) this.#unmap(other);
    if (inTheWay() !== undefined)
      throw new DmaError({
        code: 'EEXIST',
        operation: OPERATION,
        range,
        reason: 'memory of the primary is there already',
      });
    if (!inWindow) {
      try {
        memory.reserveAt(range.start, length);
      } catch (error) {
        throw addressesTaken(OPERATION, error);
      }
    }
    try {
      memory.commit(range.start, { length, fd, offset, writable: fields.boolean('writable') });
    } catch (error) {
      throw withUndo(error, OPERATION, undoAll(inWindow ? [] : [() => memory.unmap(range.start, length)]));
    }
    const piece: Piece = { range, handedOut: new HandedOut(), views: new Set(), apart: !inWindow, group };
    this.#pieces.insert(range.start, length, piece);
    return piece;
  }

  /** Unmaps all pieces that are inside of this range. Their views are detached first. */
  remove(va: number, length: number): void {
    for (;;) {
      const piece = this.#pieces.overlapping(va, va + length);
      if (piece === undefined) return;
      if (piece.range.start < va || piece.range.end > va + length)
        throw nonsense(OPERATION, `${piece.range.toString()} would be unmapped in parts`);
      this.#unmap(piece);
    }
  }

  /** Views of memory; they end with its mappings. @throws DmaError EFAULT if not all of it is mapped */
  views(va: Va, length: number): { readonly views: Views; readonly end: () => void } {
    const range = new Range(va, length, OPERATION);
    const pieces: Piece[] = [];
    for (let at: number = va; at < range.end;) {
      const piece = this.#pieces.at(at);
      if (piece === undefined)
        throw new DmaError({ code: 'EFAULT', operation: OPERATION, range, reason: 'it is not mapped in this process' });
      pieces.push(piece);
      at = piece.range.end;
    }
    const handedOut = pieces.length === 1 ? pieces[0].handedOut : new OverSeveral(pieces);
    const views = new Views(this.#platform.memory, va, length, handedOut);
    for (const piece of pieces) piece.views.add(views);
    return {
      views,
      end: () => {
        for (const piece of pieces) piece.views.delete(views);
        views.detach();
      },
    };
  }

  /** Unmaps everything, and gives the addresses back. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    const errors = undoAll([...this.#pieces.values()].map((piece) => () => this.#unmap(piece)));
    throwFirst(errors, 'close');
    this.#mayEnd();
  }

  /** Gives the addresses back, once nothing reaches them. */
  #mayEnd(): void {
    if (!this.#closed || this.#retired > 0) return;
    mirrors.delete(this);
    this.#platform.memory.unmap(this.#window.start, this.#window.length);
  }

  #unmap({ range, handedOut, views, apart }: Piece): void {
    const { memory } = this.#platform;
    for (const each of views) each.detach();
    views.clear();
    const { start, length } = range;
    const giveBack = (): void => {
      if (apart) memory.unmap(start, length);
      else memory.decommit(start, length);
    };
    if (handedOut.unreachable) giveBack();
    else {
      memory.retire(start, length);
      this.#retired++;
      retired.add(start, length, handedOut, () => {
        // The primary may have put other memory there meanwhile.
        if (this.#pieces.overlapping(start, start + length) === undefined) giveBack();
        this.#retired--;
        this.#mayEnd();
      });
    }
    this.#pieces.delete(start);
  }
}
