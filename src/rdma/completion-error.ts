/** What went wrong with a request, as an error. */
import { DmaError, type DmaErrorDetails, type ErrorCode } from '../errors.js';
import { completionStatusName } from '../platform/rdma/verbs-work.js';

/** What each status means; what is not here is EIO. Names are those of `enum ibv_wc_status` (infiniband/verbs.h). */
const MEANINGS: Readonly<Record<string, readonly [code: ErrorCode, reason: string]>> = {
  LOC_LEN_ERR: ['EMSGSIZE', 'the message does not fit the memory that was posted for it'],
  LOC_QP_OP_ERR: ['EINVAL', 'the queue pair can not do such a request'],
  LOC_PROT_ERR: ['EACCES', 'the local memory may not be used so'],
  WR_FLUSH_ERR: ['ECANCELED', 'the queue pair stopped before it was done'],
  MW_BIND_ERR: ['EACCES', 'the window can not be bound to that'],
  BAD_RESP_ERR: ['EPROTO', 'the answer of the peer was not to be understood'],
  LOC_ACCESS_ERR: ['EACCES', 'the peer wrote to local memory that it may not write'],
  REM_INV_REQ_ERR: [
    'EINVAL',
    'the peer refused the request: it is too long for what was posted, or not of a kind that it takes',
  ],
  REM_ACCESS_ERR: ['EACCES', 'the peer does not allow that access to its memory'],
  REM_OP_ERR: ['EIO', 'the peer failed to do it'],
  RETRY_EXC_ERR: ['ETIMEDOUT', 'the peer did not answer'],
  RNR_RETRY_EXC_ERR: ['ETIMEDOUT', 'the peer had no receive posted for it'],
  REM_ABORT_ERR: ['ECONNABORTED', 'the peer gave it up'],
  RESP_TIMEOUT_ERR: ['ETIMEDOUT', 'the peer did not answer'],
};

/** Is it a status of a protection error, of which `explain` may know the cause? */
export function isProtectionError(status: string): boolean {
  return MEANINGS[status]?.[0] === 'EACCES';
}

/** Did it fail only because something before it had? */
export function wasFlushed(status: string): boolean {
  return status === 'WR_FLUSH_ERR';
}

/**
 * A completion that failed, as an error.
 *
 * @param status IBV_WC_*
 * @param more the operation, and what else is known; a `hint` says where the address was
 */
export function completionError(status: number, vendorError: number, more: Partial<DmaErrorDetails>): DmaError {
  const name = completionStatusName(status);
  const [code, reason] = MEANINGS[name] ?? ['EIO', 'it failed'];
  const vendor = vendorError === 0 ? '' : `, vendor error ${vendorError}`;
  return new DmaError({ code, operation: 'rdma', ...more, reason: `${reason} (${name}${vendor})` });
}
