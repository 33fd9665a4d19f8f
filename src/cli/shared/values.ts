/** The values of options: parsed from the user's text, and refused if they are not valid. */
import { InvalidArgumentError } from 'commander';
import { hex, isAddress, parseSize } from '../../units.js';

/** A length: `64MiB`, `2M`, `0x1000`, `4096`. @returns bytes, at least 1 */
export function sizeValue(text: string): number {
  const bytes = parseSize(text);
  // A text in the form of a size that is not accepted is too large.
  if (bytes === undefined && /^(0x[0-9a-f]+|\d+\s*([kmgtpezy]i?)?b?)$/i.test(text.trim()))
    throw new InvalidArgumentError('That is too large: sizes are below 2^53 bytes, which is 8 PiB.');
  if (bytes === undefined || bytes === 0) throw new InvalidArgumentError('A size is written like 64MiB, 4k or 4096.');
  return bytes;
}

/** An address: `0x100000`, or decimal. */
export function addressValue(text: string): number {
  const address = /^(0x[0-9a-f]+|\d+)$/i.test(text) ? Number(text) : NaN;
  if (!isAddress(address)) throw new InvalidArgumentError('An address is written like 0x100000, and is below 2^53.');
  return address;
}

/** Whole numbers from `least` to `most`. */
export function integerValue(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : NaN;
    if (value >= least && value <= most) return value;
    throw new InvalidArgumentError(`It is a whole number from ${least} to ${most}.`);
  };
}

/** `[0x1000, 0x3000)`, as in a document. */
export function rangeDocument({ start, end }: { readonly start: number; readonly end: number }): object {
  return { start: hex(start), end: hex(end) };
}

/** A host, with or without a port: `node2`, `node2:7000`, `192.0.2.1`, `2001:db8::1`, `[2001:db8::1]:7000`. */
export function placeValue(defaultPort: number): (text: string) => { readonly host: string; readonly port: number } {
  return (text) => {
    const match = /^(?:\[([^\]]+)\]|([^:[\]]+)|([^[\]]*:[^[\]]*:[^[\]]*))(?::(\d+))?$/.exec(text);
    const [, bracketed, plain, bare, digits] = match ?? [];
    const host = bracketed ?? plain ?? bare;
    const port = digits === undefined ? defaultPort : Number(digits);
    if (host !== undefined && host !== '' && port >= 1 && port <= 65535) return { host, port };
    throw new InvalidArgumentError('A host is written like node2, node2:7000, 192.0.2.1 or [2001:db8::1]:7000.');
  };
}
