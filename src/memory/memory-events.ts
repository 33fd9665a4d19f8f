/**
 * Who wants to know when the memory of a heap comes and goes, and who may refuse it: handlers, for what has to follow every
 * page (a device that the library knows nothing of), and validators, for policy.
 */
import { mustBeNumber, mustBeString, reading } from '../check.js';
import { DmaError, invalid, isDmaError } from '../errors.js';
import type { LongStep, LongWorkOptions } from '../long-work.js';
import type { Range } from '../ranges.js';
import { formatSize, type Va } from '../units.js';
import type { Area } from './area.js';
import { Handlers, tellHandler } from './handlers.js';
import { thrown } from '../show.js';

/**
 * Makes areas reachable by every device, now and later; all of them by all devices, or none by any.
 *
 * @returns undoes it, wholly or not at all
 */
export type Reach = (areas: readonly Area[]) => LongStep;

/** As {@link Reach}, while the event loop goes on. @throws DmaError ECANCELED once `signal` is aborted; then none is reached */
export type ReachAsync = (areas: readonly Area[], work: LongWorkOptions) => Promise<LongStep>;

/** Memory that comes into a heap, or goes out of it. */
export interface MemoryChange {
  /** name of the heap */
  readonly heap: string;
  readonly range: Range<Va>;
  /** What covers the range: one area, or one a page where each page has a file of its own. */
  readonly areas: readonly Area[];
  /** bytes */
  readonly pageSize: number;
  /** NUMA node; -1 when not known */
  readonly node: number;
}

/**
 * Told of every change, in the order handlers were added. Memory can not grow or shrink meanwhile: allocating in a handler
 * works as long as there is room, and is EBUSY otherwise.
 */
export interface MemoryHandler {
  /** The memory is there; no device has it, and nobody uses it. What this throws refuses it: all is undone. */
  grow?(change: MemoryChange): void;
  /** Every device has it, and it is in use. Also told when it stays, since a later handler refused to let it go. */
  grown?(change: MemoryChange): void;
  /** Nobody uses it any more, and it is about to be unmapped from the devices. What this throws makes it stay. */
  shrink?(change: MemoryChange): void;
  /** It is gone for the devices. Also told when it does not come after all, though `grow` let it. */
  shrunk?(change: MemoryChange): void;
}

/** The handlers of one `Eal`. */
export class MemoryHandlers {
  readonly #handlers = new Handlers<MemoryHandler>();

  /** @throws DmaError EEXIST for a handler that was added already */
  add(handler: MemoryHandler): Disposable {
    return this.#handlers.add(handler, 'add');
  }

  /**
   * Asks each handler. When one refuses, those before it are told the opposite, in reverse.
   *
   * @returns tells all who were asked the opposite, in reverse
   * @throws DmaError of the handler; ECANCELED when what it threw is none
   */
  ask(question: 'grow' | 'shrink', change: MemoryChange): () => void {
    const opposite = question === 'grow' ? 'shrunk' : 'grown';
    const asked: MemoryHandler[] = [];
    const takeBack = (): void => {
      for (const handler of asked.reverse()) tellHandler(() => handler[opposite]?.(change));
    };
    for (const handler of this.#handlers) {
      try {
        handler[question]?.(change);
        asked.push(handler);
      } catch (error) {
        takeBack();
        if (isDmaError(error)) throw error;
        const reason = `a handler refused: ${thrown(error)}`;
        throw new DmaError({ code: 'ECANCELED', operation: question, range: change.range, reason, cause: error });
      }
    }
    return takeBack;
  }

  /** Tells each handler. One that throws is an uncaught exception, and disturbs nothing here. */
  tell(what: 'grown' | 'shrunk', change: MemoryChange): void {
    for (const handler of this.#handlers) tellHandler(() => handler[what]?.(change));
  }
}

/** Memory that the library wants to take for one of its heaps. */
export interface GrowthRequest {
  /** NUMA node */
  readonly node: number;
  /** bytes */
  readonly pageSize: number;
  /** How much would come, in bytes. */
  readonly bytes: number;
  /** What the heap has now, in bytes. */
  readonly total: number;
}

/** Who may refuse that the library takes memory. */
export interface MemoryValidator {
  /** Shows up in the error. */
  readonly name: string;
  /** Only asked about this NUMA node. Default: any. */
  readonly node?: number;
  /** Only asked when the heap would then have more than this, in bytes. Default 0. */
  readonly limit?: number;
  /** Absent: never. */
  allows?(request: GrowthRequest): boolean;
}

/** The validators of one `Eal`. */
export class MemoryValidators {
  /** By the object that was added: its values as they were then. */
  readonly #validators = new Map<MemoryValidator, MemoryValidator>();

  /** @throws DmaError EINVAL for one without a name, EEXIST for one that was added already */
  add(validator: MemoryValidator): Disposable {
    const operation = 'memory.addValidator';
    const kept = reading(operation, 'it', () => {
      const { name, node, limit } = validator;
      mustBeString(name, 'the name of a validator', operation);
      if (name === '') throw invalid(operation, 'a validator has a name');
      for (const value of [node, limit]) if (value !== undefined) mustBeNumber(value, 'a node or limit', operation);
      return { name, node, limit, allows: (request: GrowthRequest) => validator.allows?.(request) === true };
    });
    if (this.#validators.has(validator))
      throw new DmaError({ code: 'EEXIST', operation: 'add', reason: 'this validator was added already' });
    this.#validators.set(validator, kept);
    return { [Symbol.dispose]: () => void this.#validators.delete(validator) };
  }

  /** @throws DmaError ENOMEM, which names the first validator that does not allow it */
  check(request: GrowthRequest): void {
    const { node, bytes, total } = request;
    for (const validator of this.#validators.values()) {
      const { limit = 0 } = validator;
      if ((validator.node ?? node) !== node || total + bytes <= limit) continue;
      if (validator.allows?.(request) === true) continue;
      const why = limit > 0 ? ` beyond ${formatSize(limit)}` : '';
      const reason = `${validator.name} does not allow ${formatSize(bytes)} more on node ${node}${why}`;
      throw new DmaError({ code: 'ENOMEM', operation: 'grow', reason });
    }
  }
}
