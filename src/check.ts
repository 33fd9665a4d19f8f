/**
 * Checks of arguments, made once, where the program calls the library: internal code relies on them. A caller may pass
 * anything, even objects that throw when they are read; values are copied from objects once.
 */
import { resolve } from 'node:path';
import { DmaError, type DmaErrorDetails, invalid, isDmaError } from './errors.js';
import { show, thrown } from './show.js';

/** A check that throws if nothing can be started any more. */
export type Gate = (operation: string) => void;

/** A gate that is always open. */
export const open: Gate = () => undefined;

/** The error of calls after `Eal.stop`. */
export function stopped(operation: string): DmaError {
  const hint = 'Eal.start() starts a new one';
  return new DmaError({ code: 'ECANCELED', operation, reason: 'the Eal was stopped', hint });
}

/**
 * The error of using an object that has ended, such as freeing it twice.
 *
 * @param check an expression that tells whether the object can be used, as a program writes it
 */
export function ended(operation: string, reason: string, check: string, more?: Partial<DmaErrorDetails>): DmaError {
  const hint = `${check} tells whether it can be used; declare it with "using" to end it exactly once`;
  return invalid(operation, reason, { hint, ...more });
}

/** A hint about a value of the wrong type; `undefined` if the reason says enough. */
export function typeHint(value: unknown, wanted: string): string | undefined {
  if (value === undefined) return 'it was left out';
  if (wanted !== 'number') return undefined;
  if (typeof value === 'object' && value !== null)
    return 'of memory, blocks and mappings the numbers are .va and .length';
  if (typeof value === 'bigint') return `sizes and addresses are Numbers here: Number(${show(value)})`;
  if (typeof value === 'string') return 'parseSize makes bytes of a text such as "64M", Number() a number of any other';
  return undefined;
}

/**
 * What an option must be: a type, an array or array-like object (`list`), a usable AbortSignal, one of these words, or
 * an instance of a class.
 */
export type Kind =
  | 'number'
  | 'boolean'
  | 'string'
  | 'function'
  | 'object'
  | 'array'
  | 'list'
  | 'signal'
  | 'any'
  | readonly string[]
  | (abstract new (...args: never[]) => unknown);

/** The options of a call and the kind of each. */
export type Shape<T> = { readonly [K in keyof Required<T>]: Kind };

/**
 * Copies and checks options: later changes by the caller have no effect.
 *
 * @throws DmaError EINVAL if `value` is not an object, an option has the wrong kind or is unknown, or reading one
 * throws
 */
export function optionsOf<T extends object>(value: T | undefined, shape: Shape<T>, operation: string): Partial<T> {
  if (value === undefined) return {};
  mustBeObject(value, 'options', operation);
  try {
    return isPlain(value) ? plainOptions(value, shape, operation) : otherOptions(value, shape, operation);
  } catch (error) {
    throw unreadable(error, operation, 'the options');
  }
}

/**
 * Options in a plain object, which has them as its own properties. (`{ ...value }` is slow in V8 for many shapes of
 * objects.)
 */
function plainOptions<T extends object>(value: T, shape: Shape<T>, operation: string): Partial<T> {
  const kinds = kindsOf(shape);
  const copy: Partial<T> = {};
  for (const key of keysOf(value)) {
    const kind = kinds.get(key);
    if (kind === undefined) throw noOption(key, shape, operation);
    const given = value[key];
    if (given === undefined) continue;
    if (!isKind(given, kind)) throw wrong(key, given, kind, operation);
    copy[key] = given;
  }
  return copy;
}

/** Options in an object of a class, which may inherit them. */
function otherOptions<T extends object>(value: T, shape: Shape<T>, operation: string): Partial<T> {
  const copy: Partial<T> = {};
  for (const key of keysOf(shape)) {
    const given = value[key];
    if (given === undefined) continue;
    if (!isKind(given, shape[key])) throw wrong(key, given, shape[key], operation);
    copy[key] = given;
  }
  for (const key of Object.keys(value)) if (!Object.hasOwn(shape, key)) throw noOption(key, shape, operation);
  return copy;
}

/** A lookup in a Map is faster than a test for an own property. */
const kindMaps = new WeakMap<object, ReadonlyMap<string, Kind>>();

function kindsOf<T>(shape: Shape<T>): ReadonlyMap<string, Kind> {
  let kinds = kindMaps.get(shape);
  if (kinds === undefined) kindMaps.set(shape, (kinds = new Map<string, Kind>(Object.entries(shape))));
  return kinds;
}

/** Has the object only own properties, like an object literal? */
function isPlain(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

function noOption<T>(key: string, shape: Shape<T>, operation: string): DmaError {
  const hint = `there are: ${keysOf(shape).join(', ')}`;
  return invalid(operation, `there is no option ${show(key)}`, { hint });
}

/** Returns what `read` takes from a caller's object. @throws DmaError EINVAL if reading throws another error */
export function reading<T>(operation: string, what: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw unreadable(error, operation, what);
  }
}

/** The error for an exception while reading a caller's value. */
function unreadable(error: unknown, operation: string, what: string): DmaError {
  if (isDmaError(error)) return error;
  return invalid(operation, `${what} can not be read: ${thrown(error)}`, { cause: error });
}

/** @throws DmaError EINVAL unless `value` is an object and not an array */
export function mustBeObject(value: unknown, what: string, operation: string): asserts value is object {
  if (typeof value === 'object' && value !== null && !isList(value)) return;
  throw invalid(operation, `${what} must be an object, not ${show(value)}`, {
    hint: typeHint(value, 'object') ?? 'as in { name: value }',
  });
}

/** @throws DmaError EINVAL unless `value` is a number; its range is checked elsewhere */
export function mustBeNumber(value: unknown, what: string, operation: string): asserts value is number {
  if (typeof value === 'number') return;
  throw invalid(operation, `${what} must be a number, not ${show(value)}`, { hint: typeHint(value, 'number') });
}

/** @throws DmaError EINVAL unless `value` is a string */
export function mustBeString(value: unknown, what: string, operation: string): asserts value is string {
  if (typeof value !== 'string')
    throw invalid(operation, `${what} must be a string, not ${show(value)}`, { hint: typeHint(value, 'string') });
}

/** @throws DmaError EINVAL unless `value` is a function */
export function mustBeFunction(value: unknown, what: string, operation: string): void {
  if (typeof value !== 'function')
    throw invalid(operation, `${what} must be a function, not ${show(value)}`, { hint: typeHint(value, 'function') });
}

/** @throws DmaError EINVAL unless `value` is an integer from `least` to `most` */
export function mustBeWhole(
  value: unknown,
  least: number,
  most: number,
  what: string,
  operation: string,
): asserts value is number {
  if (typeof value === 'number' && Number.isInteger(value) && value >= least && value <= most) return;
  throw invalid(operation, `${what} is ${show(value)}, not an integer from ${least} to ${most}`);
}

/** @throws DmaError EINVAL unless `value` is a timeout that a timer supports, in milliseconds */
export function mustBeMs(value: unknown, what: string, operation: string): asserts value is number {
  if (typeof value === 'number' && value >= 0 && value < 2 ** 31) return;
  throw invalid(operation, `${what} is ${show(value)}, not a number of milliseconds from 0 to 2^31 - 1`);
}

/** @throws DmaError EINVAL unless `value` is one of `words` */
export function mustBeOneOf<T extends string>(
  value: unknown,
  words: readonly T[],
  what: string,
  operation: string,
): asserts value is T {
  if (words.some((word) => word === value)) return;
  throw invalid(operation, `there is no ${what} ${show(value)}`, { hint: `it is ${words.join(', ')}` });
}

/** @throws DmaError EINVAL unless `value` is an object with these members, each an object or a function */
export function mustHave(
  value: unknown,
  members: readonly string[],
  what: string,
  operation: string,
  hint?: string,
): void {
  if (typeof value !== 'object' || value === null)
    throw invalid(operation, `this is no ${what}: ${show(value)}`, { hint });
  reading(operation, `the ${what}`, () => {
    for (const name of members) {
      const member: unknown = Reflect.get(value, name);
      if ((typeof member !== 'object' || member === null) && typeof member !== 'function')
        throw invalid(operation, `this is no ${what}: it has no ${name}`, { hint });
    }
  });
}

/** @param name the public name of `kind`. @throws DmaError EINVAL unless `value` is an instance of `kind` */
export function mustBe<T>(
  value: unknown,
  kind: abstract new (...args: never[]) => T,
  what: string,
  operation: string,
  name = kind.name,
): asserts value is T {
  if (!isKind(value, kind))
    throw invalid(operation, `${what} must be ${aOrAn(name)} ${name}, not ${show(value)}`, {
      hint: typeHint(value, name),
    });
}

/** Checks an object of optional methods: each must be a function if present. @throws DmaError EINVAL */
export function mustHandle(value: unknown, methods: readonly string[], operation: string): void {
  if (typeof value !== 'object' || value === null || isList(value))
    throw invalid(operation, `it takes an object with ${methods.join(', ')}, not ${show(value)}`);
  reading(operation, 'it', () => {
    for (const method of methods) {
      const given: unknown = Reflect.get(value, method);
      if (given !== undefined) mustBeFunction(given, method, operation);
    }
  });
}

/** The bytes after `offset` of `length`; NaN, which fails every check, if the offset is not a number. */
export function rest(length: number, offset: unknown): number {
  return typeof offset === 'number' ? length - offset : NaN;
}

function keysOf<T extends object>(object: T): (keyof T & string)[] {
  return Object.keys(object) as (keyof T & string)[];
}

function isList(value: object): boolean {
  try {
    return Array.isArray(value);
  } catch {
    return false;
  }
}

function aOrAn(name: string): string {
  return /^[AEIOU]/i.test(name) ? 'an' : 'a';
}

/** Like `instanceof`, for values that may throw when they are read. */
export function isA<T>(value: unknown, kind: abstract new (...args: never[]) => T): value is T {
  try {
    return value instanceof kind;
  } catch {
    return false;
  }
}

/** Is it a usable AbortSignal? An object that only looks like one, or throws when it is read, is not. */
export function isSignal(value: unknown): value is AbortSignal {
  try {
    return value instanceof AbortSignal && typeof value.aborted === 'boolean';
  } catch {
    return false;
  }
}

/** The error for a value that is not {@link isSignal}. */
export function noSignal(what: string, value: unknown, operation: string): DmaError {
  return invalid(operation, `${what}: ${show(value)} is not an AbortSignal`, {
    hint: 'such as AbortSignal.timeout(1000), or the signal of an AbortController',
  });
}

function isKind(value: unknown, kind: Kind): boolean {
  if (typeof kind === 'string') {
    if (kind === 'any') return true;
    if (kind === 'signal') return isSignal(value);
    if (kind === 'list') return isListLike(value);
    if (kind === 'array') return typeof value === 'object' && value !== null && isList(value);
    if (kind === 'object') return typeof value === 'object' && value !== null;
    return typeof value === kind;
  }
  if (typeof kind !== 'function') return typeof value === 'string' && kind.includes(value);
  return isA(value, kind);
}

/** An array, or an array-like object such as a typed array. */
function isListLike(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false;
  const length: unknown = Reflect.get(value, 'length');
  return typeof length === 'number' && Number.isSafeInteger(length) && length >= 0;
}

function wrong(key: string, value: unknown, kind: Kind, operation: string): DmaError {
  if (kind === 'signal') return noSignal(key, value, operation);
  if (typeof kind === 'string')
    return invalid(operation, `${key}: ${show(value)} is not ${aOrAn(kind)} ${kind}`, { hint: typeHint(value, kind) });
  if (typeof kind === 'function')
    return invalid(operation, `${key}: ${show(value)} is not ${aOrAn(kind.name)} ${kind.name}`);
  return invalid(operation, `${key}: there is no ${show(value)}`, { hint: `it is ${kind.join(', ')}` });
}

/** `path` as an absolute path. @throws DmaError ENOENT for a relative path if the working directory was removed */
export function absolutePath(path: string, operation: string): string {
  try {
    return resolve(path);
  } catch (cause) {
    throw new DmaError({
      code: 'ENOENT',
      operation,
      reason: `${show(path)} is relative to the working directory, which is unknown: was it removed?`,
      hint: 'give a path that begins with /',
      cause,
    });
  }
}
