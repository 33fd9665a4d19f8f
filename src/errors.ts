/** The error type of the library, and the Linux error numbers. */
import { text, thrown } from './show.js';

/**
 * All Linux error numbers (include/uapi/asm-generic/errno*.h; EOPNOTSUPP by its other name, ENOTSUP). They are Linux's
 * on every platform, because the kernel interfaces and the vfio-user protocol use them.
 */
export const ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  ESRCH: 3,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  E2BIG: 7,
  ENOEXEC: 8,
  EBADF: 9,
  ECHILD: 10,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  ENOTBLK: 15,
  EBUSY: 16,
  EEXIST: 17,
  EXDEV: 18,
  ENODEV: 19,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  ENFILE: 23,
  EMFILE: 24,
  ENOTTY: 25,
  ETXTBSY: 26,
  EFBIG: 27,
  ENOSPC: 28,
  ESPIPE: 29,
  EROFS: 30,
  EMLINK: 31,
  EPIPE: 32,
  EDOM: 33,
  ERANGE: 34,
  EDEADLK: 35,
  ENAMETOOLONG: 36,
  ENOLCK: 37,
  ENOSYS: 38,
  ENOTEMPTY: 39,
  ELOOP: 40,
  ENOMSG: 42,
  EIDRM: 43,
  ECHRNG: 44,
  EL2NSYNC: 45,
  EL3HLT: 46,
  EL3RST: 47,
  ELNRNG: 48,
  EUNATCH: 49,
  ENOCSI: 50,
  EL2HLT: 51,
  EBADE: 52,
  EBADR: 53,
  EXFULL: 54,
  ENOANO: 55,
  EBADRQC: 56,
  EBADSLT: 57,
  EBFONT: 59,
  ENOSTR: 60,
  ENODATA: 61,
  ETIME: 62,
  ENOSR: 63,
  ENONET: 64,
  ENOPKG: 65,
  EREMOTE: 66,
  ENOLINK: 67,
  EADV: 68,
  ESRMNT: 69,
  ECOMM: 70,
  EPROTO: 71,
  EMULTIHOP: 72,
  EDOTDOT: 73,
  EBADMSG: 74,
  EOVERFLOW: 75,
  ENOTUNIQ: 76,
  EBADFD: 77,
  EREMCHG: 78,
  ELIBACC: 79,
  ELIBBAD: 80,
  ELIBSCN: 81,
  ELIBMAX: 82,
  ELIBEXEC: 83,
  EILSEQ: 84,
  ERESTART: 85,
  ESTRPIPE: 86,
  EUSERS: 87,
  ENOTSOCK: 88,
  EDESTADDRREQ: 89,
  EMSGSIZE: 90,
  EPROTOTYPE: 91,
  ENOPROTOOPT: 92,
  EPROTONOSUPPORT: 93,
  ESOCKTNOSUPPORT: 94,
  ENOTSUP: 95,
  EPFNOSUPPORT: 96,
  EAFNOSUPPORT: 97,
  EADDRINUSE: 98,
  EADDRNOTAVAIL: 99,
  ENETDOWN: 100,
  ENETUNREACH: 101,
  ENETRESET: 102,
  ECONNABORTED: 103,
  ECONNRESET: 104,
  ENOBUFS: 105,
  EISCONN: 106,
  ENOTCONN: 107,
  ESHUTDOWN: 108,
  ETOOMANYREFS: 109,
  ETIMEDOUT: 110,
  ECONNREFUSED: 111,
  EHOSTDOWN: 112,
  EHOSTUNREACH: 113,
  EALREADY: 114,
  EINPROGRESS: 115,
  ESTALE: 116,
  EUCLEAN: 117,
  ENOTNAM: 118,
  ENAVAIL: 119,
  EISNAM: 120,
  EREMOTEIO: 121,
  EDQUOT: 122,
  ENOMEDIUM: 123,
  EMEDIUMTYPE: 124,
  ECANCELED: 125,
  ENOKEY: 126,
  EKEYEXPIRED: 127,
  EKEYREVOKED: 128,
  EKEYREJECTED: 129,
  EOWNERDEAD: 130,
  ENOTRECOVERABLE: 131,
  ERFKILL: 132,
  EHWPOISON: 133,
  /** Kernel-internal, but some drivers return it to user space. */
  ENOTSUPP: 524,
} as const;

/** The name of a Linux error, such as `'EINVAL'`. */
export type ErrorCode = keyof typeof ERRNO;

const NAMES: ReadonlyMap<number, ErrorCode> = new Map(
  (Object.keys(ERRNO) as ErrorCode[]).map((name) => [ERRNO[name], name]),
);

/** The name of error number `errno`; `'EIO'` for a number that Linux does not have. */
export function errorCode(errno: number): ErrorCode {
  return NAMES.get(errno) ?? 'EIO';
}

/** Is `text`, which may be any value, the name of a Linux error? */
export function isErrorCode(text: unknown): text is ErrorCode {
  return typeof text === 'string' && Object.hasOwn(ERRNO, text);
}

/** The addresses of an error, such as a `Range`: `start <= a < end`. */
export interface ErrorRange {
  /** The first address. */
  readonly start: number;
  /** bytes */
  readonly length: number;
  /** One past the last address. */
  readonly end: number;
  /** `[0x1000, 0x3000)` */
  toString(): string;
}

/** The parts of a {@link DmaError}. Only code, operation and reason are required. */
export interface DmaErrorDetails {
  /** The cause by name. */
  readonly code: ErrorCode;
  /** The errno, if the system returned one without a name. */
  readonly errno?: number;
  /** The failed operation, as the caller names it: `'dmaMap'`, `'external.fromFd'`, `'mmap'`. */
  readonly operation: string;
  /** Why it failed, as a clause that can follow "operation: ". */
  readonly reason: string;
  /** The addresses concerned. */
  readonly range?: ErrorRange;
  /** The name of the device concerned. */
  readonly device?: string;
  /** The underlying error. */
  readonly cause?: unknown;
  /** What to do next, from the current state of the machine. */
  readonly hint?: string;
  /** Errors while undoing earlier steps. Empty if the undo was complete. */
  readonly undo?: readonly unknown[];
}

/**
 * Why an operation failed. All errors that this library throws or rejects with deliberately are of this class.
 *
 * The message is `operation: reason [range] on device (hint: ...)`; each part is also a property.
 */
export class DmaError extends Error {
  override readonly name = 'DmaError';
  /** The name of the error; each cause has its own code. */
  readonly code: ErrorCode;
  /** The Linux error number of the code. */
  readonly errno: number;
  /** The failed operation. */
  readonly operation: string;
  /** Why it failed, without range, device and hint. */
  readonly reason: string;
  /** The addresses concerned, if any. */
  readonly range: ErrorRange | undefined;
  /** The name of the device concerned, if any. */
  readonly device: string | undefined;
  /** What to do next. */
  readonly hint: string | undefined;
  /** Errors while undoing; empty if nothing is left behind. */
  readonly undo: readonly unknown[];

  /** Builds the message from its details. @param details operation, reason, range, device and hint */
  constructor(details: DmaErrorDetails) {
    const { operation, reason, range, device, hint, undo = [] } = details;
    super(
      `${operation}: ${reason}` +
        (range === undefined ? '' : ` ${range.toString()}`) +
        (device === undefined ? '' : ` on ${device}`) +
        (undo.length === 0 ? '' : `; undoing it failed too: ${undo.map(text).join('; ')}`) +
        (hint === undefined ? '' : ` (hint: ${hint})`),
      details.cause === undefined ? undefined : { cause: details.cause },
    );
    this.code = details.code;
    this.errno = details.errno ?? ERRNO[details.code];
    this.operation = operation;
    this.reason = reason;
    this.range = range;
    this.device = device;
    this.hint = hint;
    this.undo = undo;
  }

  /** The same error with some parts replaced or added by an outer layer that knows more. */
  with(more: Partial<DmaErrorDetails>): DmaError {
    const { code, operation, reason, range, device, cause, hint, undo } = this;
    // A new code has its own number.
    const errno = more.code === undefined ? this.errno : undefined;
    return new DmaError({ code, errno, operation, reason, range, device, cause, hint, undo, ...more });
  }
}

/**
 * Renames the operation of an error from one of the calls `parts` to `operation`, which the caller called; others are
 * returned unchanged.
 */
export function toldAs(operation: string, parts: readonly string[], error: unknown): unknown {
  return isDmaError(error) && parts.includes(error.operation) ? error.with({ operation }) : error;
}

/** An invalid argument: code EINVAL. */
export function invalid(operation: string, reason: string, more: Partial<DmaErrorDetails> = {}): DmaError {
  return new DmaError({ code: 'EINVAL', operation, reason, ...more });
}

/** Is `error` a {@link DmaError}, with code `code` if given? */
export function isDmaError(error: unknown, code?: ErrorCode): error is DmaError {
  try {
    return error instanceof DmaError && (code === undefined || error.code === code);
  } catch {
    // The thrown value throws when it is read.
    return false;
  }
}

/** What a document tells of an error to programs. */
export function errorDocument({ code, operation, reason, hint, device, range }: DmaError): object {
  return { code, operation, reason, hint, device, range };
}

/** No file can be opened now, whichever it is: neither this process nor the machine has a descriptor left. */
export const NO_DESCRIPTORS: readonly ErrorCode[] = ['EMFILE', 'ENFILE'];

/** This user lacks permission. */
export const NO_PERMISSION: readonly ErrorCode[] = ['EACCES', 'EPERM'];

/** Runs `call`; `undefined` if it fails with one of `codes`, for callers that can continue without the result. */
export function unlessFails<T>(codes: readonly ErrorCode[], call: () => T): T | undefined {
  try {
    return call();
  } catch (error) {
    if (isDmaError(error) && codes.includes(error.code)) return undefined;
    throw error;
  }
}

/** Runs `work`; an error of it names `device`, unless it names one already. */
export function naming<T>(device: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw named(error, device);
  }
}

/** An error with the name of the device, when it has none. */
export function named(error: unknown, device: string): unknown {
  return isDmaError(error) && error.device === undefined ? error.with({ device }) : error;
}

/** A detail for a hint; `undefined` if it is not available now: a failure here must not hide the error itself. */
export function forPeople<T>(call: () => T): T | undefined {
  try {
    return call();
  } catch (error) {
    if (isDmaError(error)) return undefined;
    throw error;
  }
}

/**
 * Runs all undo steps, in the given order, and collects their exceptions.
 *
 * @returns the errors, for {@link DmaErrorDetails.undo}.
 */
export function undoAll(steps: Iterable<() => void>): unknown[] {
  const errors: unknown[] = [];
  for (const step of steps) {
    try {
      step();
    } catch (error) {
      errors.push(error);
    }
  }
  return errors;
}

/** Throws the first of `errors`, with the others in `undo`; does nothing if there are none. */
export function throwFirst(errors: readonly unknown[], operation: string): void {
  if (errors.length > 0) throw withUndo(errors[0], operation, errors.slice(1));
}

/** `error` as a {@link DmaError} with the errors of undoing added; an error of another type becomes its cause (EIO). */
export function withUndo(error: unknown, operation: string, undo: readonly unknown[]): DmaError {
  if (isDmaError(error)) return undo.length === 0 ? error : error.with({ undo: [...error.undo, ...undo] });
  return new DmaError({ code: 'EIO', operation, reason: thrown(error), cause: error, undo });
}
