/**
 * What values are, whichever realm they come from. Test runners (jest) and plugins run code in vm contexts, where `Error` and
 * `ArrayBuffer` are others than those of Node's own modules, so that `instanceof` says no.
 */

/** An error, also of another realm: by its brand, not by its class. */
export function isError(value: unknown): value is Error {
  try {
    return value instanceof Error || Object.prototype.toString.call(value) === '[object Error]';
  } catch {
    // It throws when it is looked at.
    return false;
  }
}

/** The kernel's number of an error of Node's system calls, such as 2 (ENOENT); `undefined` for all other errors. */
export function errnoOf(error: unknown): number | undefined {
  if (!isError(error) || !('errno' in error)) return undefined;
  const errno = -Number(error.errno);
  return errno > 0 ? errno : undefined;
}

const byteLengths = [ArrayBuffer.prototype, SharedArrayBuffer.prototype].map(
  (prototype) => Object.getOwnPropertyDescriptor(prototype, 'byteLength')?.get,
);

/** An ArrayBuffer, not a shared one. */
export function isArrayBuffer(value: unknown): value is ArrayBuffer {
  return hasBrand(value, byteLengths[0]);
}

/** A SharedArrayBuffer. */
export function isSharedArrayBuffer(value: unknown): value is SharedArrayBuffer {
  return hasBrand(value, byteLengths[1]);
}

/** The getters of what is built in throw for all that is not of their kind; they take those of every realm. */
function hasBrand(value: unknown, getter: (() => unknown) | undefined): boolean {
  if (typeof value !== 'object' || value === null || getter === undefined) return false;
  try {
    Reflect.apply(getter, value, []);
    return true;
  } catch {
    return false;
  }
}

const nameOfTypedArray = Object.getOwnPropertyDescriptor(
  Object.getPrototypeOf(Int32Array.prototype) as object,
  Symbol.toStringTag,
)?.get;

/** `Int32Array` and such; `undefined` for what is no typed array. */
export function typedArrayName(value: unknown): string | undefined {
  if (nameOfTypedArray === undefined) return undefined;
  return Reflect.apply(nameOfTypedArray, value, []) as string | undefined;
}
