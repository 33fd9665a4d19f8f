/** Commands of a client that wait for their replies, and what a good reply is. */
import { DmaError, isDmaError } from '../errors.js';
import { Range } from '../ranges.js';
import { decodeRegionAccess, operationOf, type Message } from './messages.js';

/** One command that waits for its reply. */
export class Call<T> {
  done = false;
  value: T | undefined;
  error: DmaError | undefined;
  onDone: (() => void) | undefined;

  constructor(
    readonly command: number,
    /** Takes the result out of a good reply. If it throws, the reply is invalid. */
    readonly decode: (reply: Message) => T,
  ) {}

  settle(error: DmaError | undefined): void {
    this.error = error;
    this.done = true;
    this.onDone?.();
  }

  /** The outcome of a call that is done. */
  result(): T {
    // Each caller gets its own error, with its own stack.
    if (this.error !== undefined) throw this.error.with({ operation: operationOf(this.command) });
    return this.value as T;
  }
}

/** For replies without a result. */
export const nothing = (): void => undefined;

/** `error` with the addresses of the call. */
export function withRange(error: unknown, iova: number, length: number): unknown {
  return isDmaError(error) && error.range === undefined ? error.with({ range: new Range(iova, length) }) : error;
}

/** EIO: a reply that does not match the command. */
export function answersOther({ command }: Message, how: string): DmaError {
  return new DmaError({ code: 'EIO', operation: operationOf(command), reason: `the server answers ${how}` });
}

/** Checks that a reply is for all of a region access. Returns its count. @throws DmaError EIO */
export function accessed(reply: Message, region: number, offset: number, count: number): number {
  const told = decodeRegionAccess(reply);
  if (told.region !== region || told.offset !== offset)
    throw answersOther(reply, `for offset ${told.offset} of region ${told.region}, not ${offset} of ${region}`);
  if (told.count !== count) throw answersOther(reply, `for ${told.count} bytes where ${count} were asked for`);
  return count;
}

/** At most `chunk` of the bytes from `at` on. */
export function piece(bytes: Uint8Array, at: number, chunk: number): Uint8Array {
  return bytes.length <= chunk ? bytes : bytes.subarray(at, at + chunk);
}
