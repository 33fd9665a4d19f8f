/** Errors of commands: what the controller said, and what became of the command. */
import { DmaError, type DmaErrorDetails, type ErrorCode } from '../../errors.js';
import { STATUS, STATUS_FIELD, statusOf } from '../../nvme/status.js';
import { ABORTED_BY_HOST } from './queue.js';

/**
 * What became of a command that did not succeed: `failed`, as the controller says; `aborted`, before it was done; `completed`
 * after all, when it had been given up; `unknown`, because the controller was reset or is gone; `not-sent`.
 */
export type NvmeOutcome = 'failed' | 'aborted' | 'completed' | 'unknown' | 'not-sent';

/** What is known of a command that did not succeed. */
export interface NvmeFailure {
  readonly outcome: NvmeOutcome;
  /** status code type: 0 generic, 1 of the command, 2 media, 3 path, 7 vendor; `undefined` without a status */
  readonly type: number | undefined;
  /** status code within its type */
  readonly code: number | undefined;
  /** the name in `STATUS`, such as `LBA_OUT_OF_RANGE` */
  readonly name: string | undefined;
  /** what the specification calls it */
  readonly text: string | undefined;
  /** Will the same command fail again ("do not retry")? */
  readonly dnr: boolean;
  /** Is there more in the error log? */
  readonly more: boolean;
}

/** Why a command of an NVMe controller failed. */
export class NvmeError extends DmaError {
  readonly nvme: NvmeFailure;

  /** @internal */
  constructor(details: DmaErrorDetails, nvme: NvmeFailure) {
    super(details);
    this.nvme = nvme;
  }

  override with(more: Partial<DmaErrorDetails>): NvmeError {
    const { code, operation, reason, range, device, cause, hint, undo } = this;
    return new NvmeError({ code, operation, reason, range, device, cause, hint, undo, ...more }, this.nvme);
  }
}

/** Codes of statuses; all others are EIO. */
const CODES: ReadonlyMap<number, ErrorCode> = new Map<number, ErrorCode>([
  [STATUS.INVALID_OPCODE, 'ENOTSUP'],
  [STATUS.INVALID_FIELD, 'EINVAL'],
  [STATUS.DATA_TRANSFER_ERROR, 'EFAULT'],
  [STATUS.ABORT_REQUESTED, 'ECANCELED'],
  [STATUS.ABORT_SQ_DELETED, 'ECANCELED'],
  [STATUS.INVALID_NAMESPACE, 'ENXIO'],
  [STATUS.INVALID_PRP_OFFSET, 'EINVAL'],
  [STATUS.OPERATION_DENIED, 'EPERM'],
  [STATUS.SANITIZE_IN_PROGRESS, 'EBUSY'],
  [STATUS.FORMAT_IN_PROGRESS, 'EBUSY'],
  [STATUS.SELF_TEST_IN_PROGRESS, 'EBUSY'],
  [STATUS.RESERVATION_CONFLICT, 'EBUSY'],
  [STATUS.NAMESPACE_WRITE_PROTECTED, 'EROFS'],
  [STATUS.WRITE_TO_READ_ONLY, 'EROFS'],
  [STATUS.ZONE_READ_ONLY, 'EROFS'],
  [STATUS.COMMAND_INTERRUPTED, 'EAGAIN'],
  [STATUS.TRANSPORT_ERROR, 'EAGAIN'],
  [STATUS.NAMESPACE_NOT_READY, 'EAGAIN'],
  [STATUS.LBA_OUT_OF_RANGE, 'ERANGE'],
  [STATUS.ZONE_BOUNDARY, 'ERANGE'],
  [STATUS.CAPACITY_EXCEEDED, 'ENOSPC'],
  [STATUS.ZONE_FULL, 'ENOSPC'],
  [STATUS.ZONE_INVALID_WRITE, 'EINVAL'],
  [STATUS.ZONE_TRANSITION, 'EINVAL'],
  [STATUS.TOO_MANY_ACTIVE_ZONES, 'EMFILE'],
  [STATUS.TOO_MANY_OPEN_ZONES, 'EMFILE'],
  [STATUS.INVALID_CQ, 'EINVAL'],
  [STATUS.INVALID_QUEUE_ID, 'EINVAL'],
  [STATUS.INVALID_QUEUE_SIZE, 'EINVAL'],
  [STATUS.INVALID_VECTOR, 'EINVAL'],
  [STATUS.INVALID_LOG_PAGE, 'EINVAL'],
  [STATUS.INVALID_FORMAT, 'EINVAL'],
  [STATUS.INVALID_PROTECTION, 'EINVAL'],
  [STATUS.CONFLICTING_ATTRIBUTES, 'EINVAL'],
  [STATUS.COMMAND_SIZE_LIMIT, 'EINVAL'],
  [STATUS.GUARD_CHECK, 'EILSEQ'],
  [STATUS.APPLICATION_TAG_CHECK, 'EILSEQ'],
  [STATUS.REFERENCE_TAG_CHECK, 'EILSEQ'],
  [STATUS.COMPARE_FAILURE, 'EBADE'],
  [STATUS.ACCESS_DENIED, 'EACCES'],
  [STATUS.UNWRITTEN_BLOCK, 'ENODATA'],
  [ABORTED_BY_HOST, 'ECANCELED'],
]);

/** What is known of commands that ended with these statuses; all others have failed. */
const OUTCOMES: ReadonlyMap<number, NvmeOutcome> = new Map<number, NvmeOutcome>([
  [STATUS.ABORT_REQUESTED, 'aborted'],
  [STATUS.ABORT_SQ_DELETED, 'aborted'],
  [ABORTED_BY_HOST, 'unknown'],
]);

/**
 * The error of a status.
 *
 * @param field the status field of a completion, without the phase; not 0
 * @param what the command, as a noun phrase
 */
export function statusError(field: number, what: string, more: Partial<DmaErrorDetails> = {}): NvmeError {
  const { type, code, name, text, hint, dnr, more: isMore } = statusOf(field);
  const status = field & STATUS_FIELD.CODE_MASK;
  const details: DmaErrorDetails = {
    operation: 'nvme',
    hint,
    ...more,
    code: CODES.get(status) ?? 'EIO',
    reason: `${what} failed: ${text} (status type ${type}, code 0x${code.toString(16)}${dnr ? ', do not retry' : ''})`,
  };
  return new NvmeError(details, {
    outcome: OUTCOMES.get(status) ?? 'failed',
    type,
    code,
    name,
    text,
    dnr,
    more: isMore,
  });
}

/** An error of a command without a status that says more. */
export function outcomeError(outcome: NvmeOutcome, details: DmaErrorDetails, field?: number): NvmeError {
  if (field === undefined || field === 0) {
    const none = undefined;
    return new NvmeError(details, { outcome, type: none, code: none, name: none, text: none, dnr: false, more: false });
  }
  const { type, code, name, text, dnr, more } = statusOf(field);
  return new NvmeError(details, { outcome, type, code, name, text, dnr, more });
}
