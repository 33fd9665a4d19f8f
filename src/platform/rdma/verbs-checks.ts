/** What handles and numbers must be before libibverbs gets them: it follows any pointer, and checks little. */
import { DmaError, ERRNO, invalid } from '../../errors.js';
import { show } from '../../show.js';
import { isAddress } from '../../units.js';
import { fail } from '../linux/libc.js';
import { Cq, Qp } from './verbs-handles.js';
import type { DeviceContext, Part } from './verbs-handles.js';
import type { VerbsHandle } from './verbs-types.js';
import type { ReceiveRequests, SendRequests } from './verbs-work.js';

/** The DmaError of an error number of libibverbs. The system's text for ENOTSUP is about sockets. */
export function refuse(errno: number, operation: string, subject: string): never {
  if (errno !== ERRNO.ENOTSUP) return fail(errno, operation, subject);
  const reason = `${subject}: the device, or its driver, has no such operation or can not do it with these arguments`;
  throw new DmaError({ code: 'ENOTSUP', operation, reason });
}

/** `handle` as what it has to be; EINVAL when it is another port's, or was given back. */
export function use<T extends VerbsHandle>(
  handle: VerbsHandle,
  kind: abstract new (...args: never[]) => T,
  operation: string,
): T {
  if (!(handle instanceof kind)) throw invalid(operation, `this is no ${kind.name} of this platform`);
  if (handle.address === 0) throw invalid(operation, `the ${kind.name} was given back`);
  return handle;
}

/** What {@link use} asks, in a form that costs nothing on the data path. */
export function isOpenQp(handle: VerbsHandle): handle is Qp {
  return handle instanceof Qp && handle.address !== 0;
}

/** The same for completion queues. */
export function isOpenCq(handle: VerbsHandle): handle is Cq {
  return handle instanceof Cq && handle.address !== 0;
}

/** EINVAL unless `part` was made on `context`: drivers take each other's structs for their own. */
export function checkSame(operation: string, part: Part, context: DeviceContext): void {
  if (part.context !== context) throw invalid(operation, `it was made on ${part.context.name}, not on ${context.name}`);
}

/** EINVAL unless [va, va + length) is a range of addresses that is not empty. */
export function checkRange(operation: string, va: number, length: number): void {
  if (!isAddress(va) || !isAddress(length) || length === 0 || !isAddress(va + length))
    throw invalid(operation, `${length} bytes at ${va} are no range of addresses`);
}

/** EINVAL unless there are `count` slots, and one is `first`. */
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
    throw invalid(operation, `${show(count)} from slot ${show(first)} on are not among ${slots} slots`);
}
