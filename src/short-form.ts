/** The short form of public objects in `console.log` and `JSON.stringify`. */

const INSPECT = Symbol.for('nodejs.util.inspect.custom');

/** The part of Node's options that is used here. */
interface InspectOptions {
  readonly depth?: number | null;
}

/**
 * Gives the objects of a class a short form.
 *
 * @param name the class name to show
 * @param facts plain data, a few lines at most; it must not throw for objects that have ended
 */
export function shortForm<T extends object>(
  type: { readonly prototype: T },
  name: string,
  facts: (self: T) => Readonly<Record<string, unknown>>,
): void {
  const define = (key: string | symbol, value: unknown): void => {
    Object.defineProperty(type.prototype, key, { value, configurable: true, writable: true });
  };
  define('toJSON', function (this: T) {
    return facts(this);
  });
  define(
    INSPECT,
    function (this: T, depth: number, options: InspectOptions, inspect?: (value: unknown, how: object) => string) {
      if (depth < 0) return `[${name}]`;
      const told = facts(this);
      return `${name} ${inspect?.(told, { ...options, depth: 1 }) ?? JSON.stringify(told)}`;
    },
  );
}
