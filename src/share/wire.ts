/**
 * What two processes that share memory say to each other: documents in messages of the framing of vfio-user, and errors
 * with everything that they know. docs/protocol.md describes it.
 */
import { DmaError, ERRNO, isDmaError, isErrorCode, type ErrorRange } from '../errors.js';
import { Range } from '../ranges.js';
import { text, thrown } from '../show.js';
import { isAddress } from '../units.js';
import { HEADER_SIZE, putCommand, putReply } from '../vfio-user/messages.js';

/** The version of the protocol. Both sides must speak the same one. */
export const PROTOCOL = 1;

/** The longest document, in bytes. */
export const MAX_DOCUMENT = 256 * 1024;

/** The only command in the headers: what is asked is in the document. */
const CALL = 1;

/** A value of a document. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json | undefined };

/** An object of a document. */
export interface JsonObject {
  readonly [key: string]: Json | undefined;
}

/** Causes of causes, and errors of undoing, that go along with an error. */
const MOST_CAUSES = 4;
const MOST_UNDO = 16;
/** The longest text in an error, in characters. */
const MOST_TEXT = 8192;

/** A message with a question. @throws DmaError E2BIG */
export function questionMessage(id: number, document: JsonObject, operation: string): Uint8Array {
  return message(document, operation, (into, payload) => putCommand(into, id, CALL, payload));
}

/** A message with the answer to a question. @throws DmaError E2BIG */
export function answerMessage(id: number, document: JsonObject, operation: string): Uint8Array {
  return message(document, operation, (into, payload) => putReply(into, id, CALL, payload));
}

function message(
  document: JsonObject,
  operation: string,
  put: (into: Uint8Array, payload: number) => number,
): Uint8Array {
  const bytes = Buffer.from(JSON.stringify(document));
  if (bytes.length > MAX_DOCUMENT)
    throw new DmaError({
      code: 'E2BIG',
      operation,
      reason: `a message of ${bytes.length} bytes is too long for the other process`,
      hint: `${MAX_DOCUMENT} bytes are the most: ask for less at a time`,
    });
  const into = new Uint8Array(HEADER_SIZE + bytes.length);
  put(into, bytes.length);
  into.set(bytes, HEADER_SIZE);
  return into;
}

/** The document in a message. @throws DmaError EPROTO if it is none */
export function documentIn(payload: Uint8Array, operation: string): JsonObject {
  if (payload.length > MAX_DOCUMENT) throw nonsense(operation, `a document of ${payload.length} bytes`);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(payload));
  } catch (cause) {
    throw nonsense(operation, 'a message that is no document', cause);
  }
  if (!isJsonObject(value)) throw nonsense(operation, 'a document that is no object');
  return value;
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

  boolean(key: string): boolean {
    const value = field(this.object, key);
    if (typeof value !== 'boolean') throw this.#wrong(key, 'true or false');
    return value;
  }

  /** A list of at most `most` objects. */
  list(key: string, most = 65_536): Fields[] {
    const value = field(this.object, key);
    if (!Array.isArray(value) || value.length > most) throw this.#wrong(key, 'a list');
    return value.map((each: unknown) => {
      if (!isJsonObject(each)) throw this.#wrong(key, 'a list of objects');
      return new Fields(each, this.operation);
    });
  }

  objectAt(key: string): Fields {
    const value = field(this.object, key);
    if (!isJsonObject(value)) throw this.#wrong(key, 'an object');
    return new Fields(value, this.operation);
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

  #wrong(key: string, wanted: string): DmaError {
    return nonsense(this.operation, `${JSON.stringify(key)} is not ${wanted}`);
  }
}

/** An error as a document, with its causes. */
export function errorToWire(error: unknown, depth = 0): JsonObject {
  if (!isDmaError(error)) return { code: 'EIO', operation: 'share', reason: cut(thrown(error)) };
  const { code, errno, operation, reason, range, device, hint, cause, undo } = error;
  return {
    code,
    errno,
    operation: cut(operation),
    reason: cut(reason),
    range: range === undefined ? undefined : { start: range.start, length: range.length },
    device: device === undefined ? undefined : cut(device),
    hint: hint === undefined ? undefined : cut(hint),
    cause: cause === undefined || depth >= MOST_CAUSES ? undefined : causeToWire(cause, depth),
    undo:
      undo.length === 0 || depth >= MOST_CAUSES
        ? undefined
        : undo.slice(0, MOST_UNDO).map((each) => causeToWire(each, depth)),
  };
}

/** A cause may be any value that was thrown. */
function causeToWire(cause: unknown, depth: number): JsonObject {
  return isDmaError(cause) ? errorToWire(cause, depth + 1) : { text: cut(text(cause)) };
}

/** The error in a document. */
export function errorFromWire(document: Json | undefined, operation: string, depth = 0): DmaError {
  const wire = isJsonObject(document) ? document : {};
  const code = field(wire, 'code');
  const textOf = (key: string): string | undefined => {
    const value = field(wire, key);
    return typeof value === 'string' ? cut(value) : undefined;
  };
  const known = isErrorCode(code) ? code : 'EIO';
  const errno = field(wire, 'errno');
  const undo = field(wire, 'undo');
  return new DmaError({
    code: known,
    errno: typeof errno === 'number' && isAddress(errno) ? errno : ERRNO[known],
    operation: textOf('operation') ?? operation,
    reason: textOf('reason') ?? 'the other process refused, without a reason',
    range: rangeFromWire(field(wire, 'range')),
    device: textOf('device'),
    hint: textOf('hint'),
    cause: causeFromWire(field(wire, 'cause'), operation, depth),
    undo: Array.isArray(undo)
      ? undo.slice(0, MOST_UNDO).flatMap((each: Json) => causeFromWire(each, operation, depth) ?? [])
      : [],
  });
}

function causeFromWire(wire: Json | undefined, operation: string, depth: number): unknown {
  if (!isJsonObject(wire) || depth > MOST_CAUSES) return undefined;
  const other = field(wire, 'text');
  return typeof other === 'string' ? new Error(cut(other)) : errorFromWire(wire, operation, depth + 1);
}

function rangeFromWire(wire: Json | undefined): ErrorRange | undefined {
  if (!isJsonObject(wire)) return undefined;
  const [start, length] = [field(wire, 'start'), field(wire, 'length')];
  if (typeof start !== 'number' || typeof length !== 'number') return undefined;
  return isAddress(start) && isAddress(length) && length > 0 && isAddress(start + length)
    ? new Range(start, length)
    : undefined;
}

function cut(words: string): string {
  return words.length > MOST_TEXT ? `${words.slice(0, MOST_TEXT)}...` : words;
}

/** A name, which the call that gets it checks. */
export function nameIn(fields: Fields): string {
  return fields.raw['name'] as string;
}

/** Options of a caller, which the call that gets them checks. */
export function optionsIn(fields: Fields): Record<string, Json | undefined> {
  const {
    signal: _signal,
    onProgress: _onProgress,
    ...options
  } = fields.has('options') ? fields.objectAt('options').raw : {};
  return options;
}
