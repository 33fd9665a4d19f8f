/** Station addresses: six bytes, written as `02:00:00:00:00:01`. */
import { invalid } from '../errors.js';
import { show } from '../show.js';

/** The text of the six bytes at `at`. */
export function macText(bytes: Uint8Array, at = 0): string {
  return Array.from(bytes.subarray(at, at + 6), (byte) => byte.toString(16).padStart(2, '0')).join(':');
}

/** The six bytes of a text. @throws DmaError EINVAL */
export function macBytes(text: string, operation = 'mac'): Uint8Array<ArrayBuffer> {
  if (typeof text !== 'string' || !/^[0-9a-f]{2}([:-][0-9a-f]{2}){5}$/i.test(text))
    throw invalid(operation, `${show(text)} is no station address`, { hint: 'it is written as 02:00:00:00:00:01' });
  return Uint8Array.from(text.split(/[:-]/), (part) => parseInt(part, 16));
}
