/**
 * Checks of arguments. They are made once, at the doors of the library: what is inside relies on them. What a caller hands over
 * may be anything, also what throws when it is looked at.
 */

import { DmaError } from './errors.js';

/** A door: throws when nothing can be begun any more. */
export type Gate = (operation: string) => void;

/** A door that is always open. */
export const open: Gate = () => undefined;

/** The error of whatever is begun after `Eal.stop`. */
export function stopped(operation: string): DmaError {
  const hint = 'Eal.start() starts another one';
  return new DmaError({ code: 'ECANCELED', operation, reason: 'the Eal was stopped', hint });
}

/** Any value as a short text for messages. Never throws. */
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

/** What somebody threw, as a text for messages: it may be no error at all. Never throws. */
export function thrown(value: unknown): string {
  try {
    if (value instanceof Error) return value.message;
  } catch {
    // It throws when it is looked at.
  }
  return show(value);
}
