/**
 * What two processes that share memory say to each other: documents in messages of the framing of vfio-user, and errors
 * with everything that they know. docs/protocol.md describes it.
 */
import { DmaError, ERRNO, isDmaError, isErrorCode, type ErrorRange } from '../errors.js';
import { field, isJsonObject, nonsense, type Fields, type Json, type JsonObject } from '../fields.js';
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
