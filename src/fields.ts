/** Plain objects that come from another process, and how their values are read: each is checked before it is used. */
import { DmaError } from './errors.js';
import { isAddress } from './units.js';
import { STAYS } from './stays.js';

/** A value of a document. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json | undefined };

/** An object of a document. */
export interface JsonObject {
  readonly [key: string]: Json | undefined;
}

/** The other side violated the protocol: EPROTO. */
export function nonsense(operation: string, what: string, cause?: unknown): DmaError {
  return new DmaError({ code: 'EPROTO', operation, reason: `the other process sent nonsense: ${what}`, cause });
}

/** Is it an object of a document? What JSON.parse returns has no other kinds of objects. */
export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The own property `key` of an object of a document. */
export function field(object: JsonObject, key: string): Json | undefined {
  return Object.hasOwn(object, key) ? object[key] : undefined;
}

/** Reads what the other side sent, of the types that are expected. Each method throws EPROTO for anything else. */
export class Fields {
  /** @internal */
  readonly stays = STAYS;
  constructor(
    private readonly object: JsonObject,
    private readonly operation: string,
  ) {}

  /** A whole number from 0 to 2^53. */
  number(key: string, most = Number.MAX_SAFE_INTEGER): number {
    const value = field(this.object, key);
    if (typeof value !== 'number' || !isAddress(value) || value > most) throw this.#wrong(key, 'a number');
    return value;
  }

  /** A text of at most `most` characters. */
  string(key: string, most = 4096): string {
    const value = field(this.object, key);
    if (typeof value !== 'string' || value.length > most) throw this.#wrong(key, 'a text');
    return value;
  }

  /** @throws DmaError if it is not true or false */
  boolean(key: string): boolean {
    const value = field(this.object, key);
    if (typeof value !== 'boolean') throw this.#wrong(key, 'true or false');
    return value;
  }

  /** A list of at most `most` objects. */
  list(key: string, most = 65_536): Fields[] {
    return this.#each(key, most, 'a list of objects', (value) =>
      isJsonObject(value) ? new Fields(value, this.operation) : undefined,
    );
  }

  /** The fields of an object in it. @throws DmaError if there is none */
  objectAt(key: string): Fields {
    const value = field(this.object, key);
    if (!isJsonObject(value)) throw this.#wrong(key, 'an object');
    return new Fields(value, this.operation);
  }

  /** One of `words`. */
  word<T extends string>(key: string, words: readonly T[]): T {
    const value = field(this.object, key);
    const word = words.find((each) => each === value);
    if (word === undefined) throw this.#wrong(key, `one of ${words.join(', ')}`);
    return word;
  }

  /** A list of at most `most` whole numbers. */
  numbers(key: string, most = 65_536): number[] {
    return this.#each(key, most, 'a list of numbers', (value) =>
      typeof value === 'number' && isAddress(value) ? value : undefined,
    );
  }

  /** A list of at most `most` texts. */
  strings(key: string, most = 65_536): string[] {
    return this.#each(key, most, 'a list of texts', (value) => (typeof value === 'string' ? value : undefined));
  }

  /** Is it there? */
  has(key: string): boolean {
    const value = field(this.object, key);
    return value !== undefined && value !== null;
  }

  /** The object itself, for calls that check it as they check what a program gives them. */
  get raw(): JsonObject {
    return this.object;
  }

  #each<T>(key: string, most: number, wanted: string, read: (value: unknown) => T | undefined): T[] {
    const value = field(this.object, key);
    if (!Array.isArray(value) || value.length > most) throw this.#wrong(key, wanted);
    return value.map((each: unknown) => read(each) ?? this.#throw(key, wanted));
  }

  #throw(key: string, wanted: string): never {
    throw this.#wrong(key, wanted);
  }

  #wrong(key: string, wanted: string): DmaError {
    return nonsense(this.operation, `${JSON.stringify(key)} is not ${wanted}`);
  }
}
