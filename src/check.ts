/**
 * Checks of arguments. They are made once, at the doors of the library: what is inside relies on them. What a caller hands over
 * may be anything, also what throws when it is looked at; of objects the values are taken, once.
 */
import { resolve } from 'node:path';
import { DmaError, type DmaErrorDetails, invalid, isDmaError } from './errors.js';
import { show, thrown } from './show.js';

/** A door: throws when nothing can be begun any more. */
export type Gate = (operation: string) => void;

/** A door that is always open. */
export const open: Gate = () => undefined;

/** The error of whatever is begun after `Eal.stop`. */
export function stopped(operation: string): DmaError {
  const hint = 'Eal.start() starts another one';
  return new DmaError({ code: 'ECANCELED', operation, reason: 'the Eal was stopped', hint });
}

/**
 * The error of a call for what has ended, such as freeing it twice.
 *
 * @param check what tells whether it is still there, as a program writes it
 */
export function ended(operation: string, reason: string, check: string, more?: Partial<DmaErrorDetails>): DmaError {
  const hint = `${check} tells whether it can be used; held with "using" it ends once, whatever happens`;
  return invalid(operation, reason, { hint, ...more });
}

/** What to do about a value of the wrong type; `undefined` where the reason says it all. */
export function typeHint(value: unknown, wanted: string): string | undefined {
  if (value === undefined) return 'it was left out';
  if (wanted !== 'number') return undefined;
  if (typeof value === 'object' && value !== null)
    return 'of memory, blocks and mappings the numbers are .va and .length';
  if (typeof value === 'bigint') return `sizes and addresses are Numbers here: Number(${show(value)})`;
  if (typeof value === 'string') return 'parseSize makes bytes of a text such as "64M", Number() a number of any other';
  return undefined;
}

/** What an option has to be: a type, an array or what has elements as one (`list`), a signal that can be asked, one of these words, or an instance of a class. */
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

/** The options of a call, each with what it has to be. */
export type Shape<T> = { readonly [K in keyof Required<T>]: Kind };

/**
 * Options as a caller gave them, copied: what he changes later has no effect.
 *
 * @throws DmaError EINVAL for what is no object, for values of another kind, for options that there are not, and for what
 *   throws when it is read
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

/** Options in an object as programs write them: it has all of them itself. (V8 is slow at `{ ...value }` of many kinds of objects.) */
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

/** Options in an object that may have them from a class of its own. */
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

/** Looking something up in a map is faster than asking an object whether a key is its own. */
const kindMaps = new WeakMap<object, ReadonlyMap<string, Kind>>();

function kindsOf<T>(shape: Shape<T>): ReadonlyMap<string, Kind> {
  let kinds = kindMaps.get(shape);
  if (kinds === undefined) kindMaps.set(shape, (kinds = new Map<string, Kind>(Object.entries(shape))));
  return kinds;
}

/** Has an object all that it has itself, as those that are written down in a program? */
function isPlain(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

function noOption<T>(key: string, shape: Shape<T>, operation: string): DmaError {
  const hint = `there are: ${keysOf(shape).join(', ')}`;
  return invalid(operation, `there is no option ${show(key)}`, { hint });
}

/** What `read` takes from an object of a caller. @throws DmaError EINVAL when that throws something else */
export function reading<T>(operation: string, what: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw unreadable(error, operation, what);
  }
}

/** What is thrown instead of what reading something of a caller threw. */
function unreadable(error: unknown, operation: string, what: string): DmaError {
  if (isDmaError(error)) return error;
  return invalid(operation, `${what} can not be read: ${thrown(error)}`, { cause: error });
}

/** @throws DmaError EINVAL unless `value` is an object and no list */
export function mustBeObject(value: unknown, what: string, operation: string): asserts value is object {
  if (typeof value === 'object' && value !== null && !isList(value)) return;
  throw invalid(operation, `${what} are given as an object, not as ${show(value)}`, {
    hint: typeHint(value, 'object') ?? 'as in { name: value }',
  });
}

/** @throws DmaError EINVAL unless `value` is a number; of which kind is for others to say */
export function mustBeNumber(value: unknown, what: string, operation: string): asserts value is number {
  if (typeof value === 'number') return;
  throw invalid(operation, `${what} is a number, not ${show(value)}`, { hint: typeHint(value, 'number') });
}

/** @throws DmaError EINVAL unless `value` is a text */
export function mustBeString(value: unknown, what: string, operation: string): asserts value is string {
  if (typeof value !== 'string')
    throw invalid(operation, `${what} is a string, not ${show(value)}`, { hint: typeHint(value, 'string') });
}

/** @throws DmaError EINVAL unless `value` is a function */
export function mustBeFunction(value: unknown, what: string, operation: string): void {
  if (typeof value !== 'function')
    throw invalid(operation, `${what} is a function, not ${show(value)}`, { hint: typeHint(value, 'function') });
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

/** @throws DmaError EINVAL unless `value` is a time that a timer can wait, in milliseconds */
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

/** @throws DmaError EINVAL unless `value` is an object that has these members, each an object or a function */
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

/** @param name what users call `kind`. @throws DmaError EINVAL unless `value` is of `kind` */
export function mustBe<T>(
  value: unknown,
  kind: abstract new (...args: never[]) => T,
  what: string,
  operation: string,
  name = kind.name,
): asserts value is T {
  if (!isKind(value, kind))
    throw invalid(operation, `${what} is ${aOrAn(name)} ${name}, not ${show(value)}`, { hint: typeHint(value, name) });
}

/** An object with methods, all optional, of which each is a function if it is there. @throws DmaError EINVAL */
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

/** What follows `offset` in `length` bytes; NaN, which no check lets pass, when the offset is no number. */
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

/** As `instanceof`, for values that may throw when they are looked at. */
export function isA<T>(value: unknown, kind: abstract new (...args: never[]) => T): value is T {
  try {
    return value instanceof kind;
  } catch {
    return false;
  }
}

/** An AbortSignal that can be asked: what only looks like one, or throws when it is asked, is none. */
export function isSignal(value: unknown): value is AbortSignal {
  try {
    return value instanceof AbortSignal && typeof value.aborted === 'boolean';
  } catch {
    return false;
  }
}

/** The error for what is not {@link isSignal}. */
export function noSignal(what: string, value: unknown, operation: string): DmaError {
  return invalid(operation, `${what}: ${show(value)} is no AbortSignal`, {
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

/** An array, or what has elements as one, such as a typed array. */
function isListLike(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false;
  const length: unknown = Reflect.get(value, 'length');
  return typeof length === 'number' && Number.isSafeInteger(length) && length >= 0;
}

function wrong(key: string, value: unknown, kind: Kind, operation: string): DmaError {
  if (kind === 'signal') return noSignal(key, value, operation);
  if (typeof kind === 'string')
    return invalid(operation, `${key}: ${show(value)} is no ${kind}`, { hint: typeHint(value, kind) });
  if (typeof kind === 'function') return invalid(operation, `${key}: ${show(value)} is no ${kind.name}`);
  return invalid(operation, `${key}: there is no ${show(value)}`, { hint: `it is ${kind.join(', ')}` });
}

/** `path` from the root on. @throws DmaError ENOENT for a relative one when the working directory was removed */
export function absolutePath(path: string, operation: string): string {
  try {
    return resolve(path);
  } catch (cause) {
    throw new DmaError({
      code: 'ENOENT',
      operation,
      reason: `${show(path)} is relative to the working directory, which can not be told: was it removed?`,
      hint: 'give a path that begins with /',
      cause,
    });
  }
}
