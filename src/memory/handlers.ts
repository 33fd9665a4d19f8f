/** Who wants to be told of something: handlers, in the order they were added. */
import { DmaError } from '../errors.js';
import { queueMicrotask } from '../timers.js';

/** A list of handlers. Those that are removed while all are told are not told any more. */
export class Handlers<Handler extends object> implements Iterable<Handler> {
  readonly #handlers = new Set<Handler>();

  /**
   * Adds `handler` until the result is disposed.
   *
   * @param operation named in the error
   * @throws DmaError EEXIST for a handler that was added already
   */
  add(handler: Handler, operation: string): Disposable {
    if (this.#handlers.has(handler))
      throw new DmaError({
        code: 'EEXIST',
        operation,
        reason: 'this handler was added already',
        hint: 'dispose what the first call returned before it is added again',
      });
    this.#handlers.add(handler);
    return { [Symbol.dispose]: () => void this.#handlers.delete(handler) };
  }

  *[Symbol.iterator](): Generator<Handler, void> {
    for (const handler of [...this.#handlers]) if (this.#handlers.has(handler)) yield handler;
  }
}

/** Calls a handler that can refuse nothing: what it throws is an uncaught exception, and disturbs nothing here. */
export function tellHandler(call: () => void): void {
  try {
    call();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
