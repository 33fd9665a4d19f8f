/** Converts failed completions into errors. */
import { DmaError, type DmaErrorDetails, type ErrorCode } from '../errors.js';
import { completionStatusName } from '../platform/rdma/verbs-work.js';

/** The error of each status; all others are EIO. Names are those of `enum ibv_wc_status` (infiniband/verbs.h). */
const MEANINGS: Readonly<Record<string, readonly [code: ErrorCode, reason: string]>> = {
  LOC_LEN_ERR: ['EMSGSIZE', 'the message does not fit the memory that was posted for it'],
  LOC_QP_OP_ERR: ['EINVAL', 'the queue pair does not support this request'],
  LOC_PROT_ERR: ['EACCES', 'the registration of the local memory does not allow this access'],
  WR_FLUSH_ERR: ['ECANCELED', 'the queue pair stopped before it was done'],
  MW_BIND_ERR: ['EACCES', 'the window can not be bound to that'],
  BAD_RESP_ERR: ['EPROTO', 'the response of the peer was invalid'],
  LOC_ACCESS_ERR: ['EACCES', 'the peer wrote to local memory that it may not write'],
  REM_INV_REQ_ERR: [
    'EINVAL',
    'the peer refused the request: it is longer than the posted receive, or of an unsupported kind',
  ],
  REM_ACCESS_ERR: ['EACCES', 'the peer does not allow that access to its memory'],
  REM_OP_ERR: ['EIO', 'the peer failed to execute the request'],
  RETRY_EXC_ERR: ['ETIMEDOUT', 'the peer did not answer'],
  RNR_RETRY_EXC_ERR: ['ETIMEDOUT', 'the peer had no receive posted for it'],
  REM_ABORT_ERR: ['ECONNABORTED', 'the peer aborted the request'],
  RESP_TIMEOUT_ERR: ['ETIMEDOUT', 'the peer did not answer'],
};

/** Is it the status of a protection error, whose cause `explain` may know? */
export function isProtectionError(status: string): boolean {
  return MEANINGS[status]?.[0] === 'EACCES';
}

/** Did it fail only because an earlier request had failed? */
export function wasFlushed(status: string): boolean {
  return status === 'WR_FLUSH_ERR';
}

/**
 * Converts a failed completion into an error.
 *
 * @param status IBV_WC_*
 * @param more the operation and other details; a `hint` says where the address was
 */
export function completionError(status: number, vendorError: number, more: Partial<DmaErrorDetails>): DmaError {
  const name = completionStatusName(status);
  const [code, reason] = MEANINGS[name] ?? ['EIO', 'it failed'];
  const vendor = vendorError === 0 ? '' : `, vendor error ${vendorError}`;
  return new DmaError({ code, operation: 'rdma', ...more, reason: `${reason} (${name}${vendor})` });
}
