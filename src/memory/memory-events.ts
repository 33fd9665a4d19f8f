/**
 * Handlers are told when memory is added to a heap or removed from it, and may refuse: for a device that the library
 * does not know, which must follow every page. Validators may refuse growth, as a policy.
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
 * Makes areas reachable by every device, now and later: all of them by all devices or, on failure, none.
 *
 * @returns undoes it, all or nothing
 */
export type Reach = (areas: readonly Area[]) => LongStep;

/**
 * As {@link Reach}, without blocking the event loop. @throws DmaError ECANCELED once `signal` is aborted; then no
 * device reaches any
 */
export type ReachAsync = (areas: readonly Area[], work: LongWorkOptions) => Promise<LongStep>;

/** Memory that is added to a heap, or removed from it. */
export interface MemoryChange {
  /** name of the heap */
  readonly heap: string;
  readonly range: Range<Va>;
  /** The areas that cover the range: one, or one per page if each page has a file of its own. */
  readonly areas: readonly Area[];
  /** page size in bytes */
  readonly pageSize: number;
  /** NUMA node; -1 if unknown */
  readonly node: number;
}

/**
 * Told of every change, in the order in which handlers were added. Memory can not grow or shrink meanwhile: a handler
 * can allocate as long as there is room, and gets EBUSY otherwise.
 */
export interface MemoryHandler {
  /**
   * The memory is present, but not mapped for devices and not used yet. An exception refuses it: everything is undone.
   */
  grow?(change: MemoryChange): void;
  /**
   * Every device has it mapped, and it is in use. Also called if it stays because a later handler refused its removal.
   */
  grown?(change: MemoryChange): void;
  /** It is unused, and about to be unmapped from the devices. An exception keeps it. */
  shrink?(change: MemoryChange): void;
  /** No device has it mapped any more. Also called if it is not added after all, although `grow` accepted it. */
  shrunk?(change: MemoryChange): void;
}

/** The handlers of one `Eal`. */
export class MemoryHandlers {
  readonly #handlers = new Handlers<MemoryHandler>();

  /** @throws DmaError EEXIST if the handler was added already */
  add(handler: MemoryHandler): Disposable {
    return this.#handlers.add(handler, 'add');
  }

  /**
   * Asks each handler. If one refuses, those before it are told the opposite, in reverse.
   *
   * @returns tells every handler the opposite, in reverse
   * @throws DmaError the handler's; ECANCELED if it threw anything else
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

  /** Tells each handler. If one throws, that is an uncaught exception, and the others are still told. */
  tell(what: 'grown' | 'shrunk', change: MemoryChange): void {
    for (const handler of this.#handlers) tellHandler(() => handler[what]?.(change));
  }
}

/** May refuse that the library takes memory. */
export interface MemoryValidator {
  /** Used in the error. */
  readonly name: string;
  /** Asked only about this NUMA node. Default: any. */
  readonly node?: number;
  /** Asked only if the heap would then have more than this, in bytes. Default 0. */
  readonly limit?: number;
  /** May the library take this memory for one of its heaps? If absent, nothing is allowed. */
  allows?(request: {
    /** NUMA node */
    readonly node: number;
    /** bytes */
    readonly pageSize: number;
    /** bytes that would be added */
    readonly bytes: number;
    /** bytes that the heap has now */
    readonly total: number;
  }): boolean;
}

type GrowthRequest = Parameters<NonNullable<MemoryValidator['allows']>>[0];

/** The validators of one `Eal`. */
export class MemoryValidators {
  /** The added objects, with their values at that time. */
  readonly #validators = new Map<MemoryValidator, MemoryValidator>();

  /** @throws DmaError EINVAL for one without a name; EEXIST if it was added already */
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

  /** @throws DmaError ENOMEM, with the name of the first validator that does not allow it */
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
