/** Values of others as text for messages: they may be anything, also what throws when it is looked at. */
import { isError } from './realms.js';

/** Any value as a short text. Never throws. */
export function show(value: unknown): string {
  try {
    switch (typeof value) {
      case 'string':
        return JSON.stringify(value.length > 64 ? `${value.slice(0, 64)}...` : value);
      case 'bigint':
        return `${value}n`;
      case 'function':
        return 'a function';
      case 'object':
        if (value === null) return 'null';
        return Array.isArray(value) ? 'an array' : 'an object';
      default:
        return String(value);
    }
  } catch {
    return 'a value that can not be shown';
  }
}

/** Formats a thrown value, which may not be an Error. Never throws. */
export function thrown(value: unknown): string {
  try {
    if (isError(value)) {
      const message: unknown = value.message;
      return String(message);
    }
    if (typeof value === 'string') return value;
  } catch {
    // It throws when it is read.
  }
  return show(value);
}

/** Like `String(value)`, with the name of an error. Never throws. */
export function text(value: unknown): string {
  try {
    return String(value);
  } catch {
    return show(value);
  }
}
