/** Checks of handles and numbers before they are passed to libibverbs, which follows any pointer and checks little. */
import { DmaError, ERRNO, invalid } from '../../errors.js';
import { show } from '../../show.js';
import { isAddress } from '../../units.js';
import { fail } from '../linux/libc.js';
import { Cq, Qp } from './verbs-handles.js';
import type { DeviceContext, Part } from './verbs-handles.js';
import type { VerbsHandle } from './verbs-types.js';
import type { ReceiveRequests, SendRequests } from './verbs-work.js';

/** Throws the DmaError of an errno from libibverbs. The system's text for ENOTSUP is about sockets. */
export function refuse(errno: number, operation: string, subject: string): never {
  if (errno !== ERRNO.ENOTSUP) return fail(errno, operation, subject);
  const reason = `${subject}: the device or its driver does not support this operation, or not with these arguments`;
  throw new DmaError({ code: 'ENOTSUP', operation, reason });
}

/** Returns `handle` as its own class; EINVAL if it belongs to another port, or was released. */
export function use<T extends VerbsHandle>(
  handle: VerbsHandle,
  kind: abstract new (...args: never[]) => T,
  operation: string,
): T {
  if (!(handle instanceof kind)) throw invalid(operation, `this is not a ${kind.name} of this platform`);
  if (handle.address === 0) throw invalid(operation, `the ${kind.name} was released already`);
  return handle;
}

/** The same check as {@link use}, without cost on the data path. */
export function isOpenQp(handle: VerbsHandle): handle is Qp {
  return handle instanceof Qp && handle.address !== 0;
}

/** The same for completion queues. */
export function isOpenCq(handle: VerbsHandle): handle is Cq {
  return handle instanceof Cq && handle.address !== 0;
}

/** EINVAL unless `part` was created on `context`: drivers do not detect structs of another driver. */
export function checkSame(operation: string, part: Part, context: DeviceContext): void {
  if (part.context !== context) throw invalid(operation, `it was made on ${part.context.name}, not on ${context.name}`);
}

/** EINVAL unless [va, va + length) is a non-empty range of addresses. */
export function checkRange(operation: string, va: number, length: number): void {
  if (!isAddress(va) || !isAddress(length) || length === 0 || !isAddress(va + length))
    throw invalid(operation, `${length} bytes at ${va} is not a range of addresses`);
}

/** EINVAL unless `first` is one of the slots, and `count` is at most their number. */
export function checkSlots(
  operation: string,
  { slots }: SendRequests | ReceiveRequests,
  first: number,
  count: number,
): void {
  if (!(
    Number.isInteger(first) &&
    first >= 0 &&
    first < slots &&
    Number.isInteger(count) &&
    count >= 0 &&
    count <= slots
  ))
    throw invalid(operation, `${show(count)} from slot ${show(first)} on are not inside ${slots} slots`);
}
