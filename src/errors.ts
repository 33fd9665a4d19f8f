/** The one error type of the library, and the Linux error numbers it speaks in. */
import { text, thrown } from './show.js';

/**
 * All Linux error numbers (include/uapi/asm-generic/errno*.h; EOPNOTSUPP by its other name, ENOTSUP). They are Linux's on every platform, because the kernel
 * interfaces and the vfio-user protocol that this library speaks use no others.
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
  /** What a driver that knows nothing better lets slip: it is not meant for programs. */
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

/** Is `text`, which may come from anywhere, the name of a Linux error? */
export function isErrorCode(text: unknown): text is ErrorCode {
  return typeof text === 'string' && Object.hasOwn(ERRNO, text);
}

/** The addresses that an error is about, such as a `Range`: `start <= a < end`. */
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

/** What a {@link DmaError} is made of. All but the code, the operation and the reason may be absent. */
export interface DmaErrorDetails {
  /** The cause by name. */
  readonly code: ErrorCode;
  /** The number behind `code`, when the system reported one that has no name. */
  readonly errno?: number;
  /** What was being done, as the caller would name it: `'dmaMap'`, `'external.fromFd'`, `'mmap'`. */
  readonly operation: string;
  /** Why it failed, in a clause that can follow "operation: ". */
  readonly reason: string;
  /** The addresses it was done to. */
  readonly range?: ErrorRange;
  /** The device it was done on, by its name. */
  readonly device?: string;
  /** The error underneath. */
  readonly cause?: unknown;
  /** What to do next, made of live facts. */
  readonly hint?: string;
  /** Errors met while undoing what had been done before the failure. Empty when the undo was complete. */
  readonly undo?: readonly unknown[];
}

/**
 * Why an operation failed. Everything that this library throws or rejects with on purpose is one of these.
 *
 * The message reads `operation: reason [range] on device (hint: ...)`; each part is also a property for programs.
 */
export class DmaError extends Error {
  override readonly name = 'DmaError';
  /** The cause by name; one cause has one code. */
  readonly code: ErrorCode;
  /** The Linux number of the cause. */
  readonly errno: number;
  /** What was being done. */
  readonly operation: string;
  /** Why it failed, without the parts that have properties of their own. */
  readonly reason: string;
  /** The addresses it was done to, when there were any. */
  readonly range: ErrorRange | undefined;
  /** The name of the device it was done on, when there was one. */
  readonly device: string | undefined;
  /** The next step for who reads this. */
  readonly hint: string | undefined;
  /** Errors met while undoing; empty when nothing is left behind. */
  readonly undo: readonly unknown[];

  /** An error whose message is made of its details. @param details operation, reason, range, device and hint */
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

  /** The same error with some parts replaced or added, as an outer layer that knows more would have thrown it. */
  with(more: Partial<DmaErrorDetails>): DmaError {
    const { code, operation, reason, range, device, cause, hint, undo } = this;
    // The number belongs to the code.
    const errno = more.code === undefined ? this.errno : undefined;
    return new DmaError({ code, errno, operation, reason, range, device, cause, hint, undo, ...more });
  }
}

/** An error of one of the calls `parts`, as one of `operation`, which made that call for who called it; all others as they are. */
export function toldAs(operation: string, parts: readonly string[], error: unknown): unknown {
  return isDmaError(error) && parts.includes(error.operation) ? error.with({ operation }) : error;
}

/** An invalid argument: code EINVAL. */
export function invalid(operation: string, reason: string, more: Partial<DmaErrorDetails> = {}): DmaError {
  return new DmaError({ code: 'EINVAL', operation, reason, ...more });
}

/** Is `error` a {@link DmaError}, with code `code` when one is given? */
export function isDmaError(error: unknown, code?: ErrorCode): error is DmaError {
  try {
    return error instanceof DmaError && (code === undefined || error.code === code);
  } catch {
    // What was thrown throws when it is looked at.
    return false;
  }
}

/** What a document tells of an error to programs. */
export function errorDocument({ code, operation, reason, hint, device, range }: DmaError): object {
  return { code, operation, reason, hint, device, range };
}

/** No file can be opened now, whichever it is: neither this process nor the machine has a descriptor left. */
export const NO_DESCRIPTORS: readonly ErrorCode[] = ['EMFILE', 'ENFILE'];

/** This user may not. */
export const NO_PERMISSION: readonly ErrorCode[] = ['EACCES', 'EPERM'];

/** What `call` returns; `undefined` when it fails with one of `codes`: for who can go on without, and says so by this. */
export function unlessFails<T>(codes: readonly ErrorCode[], call: () => T): T | undefined {
  try {
    return call();
  } catch (error) {
    if (isDmaError(error) && codes.includes(error.code)) return undefined;
    throw error;
  }
}

/** What `work` returns; an error that it throws names `device`, unless it names one already. */
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

/** A fact for people, beside an error or in a hint; `undefined` when it can not be had now: it must not hide what it is about. */
export function forPeople<T>(call: () => T): T | undefined {
  try {
    return call();
  } catch (error) {
    if (isDmaError(error)) return undefined;
    throw error;
  }
}

/**
 * Runs undo steps, all of them, in the order given, and collects what they throw.
 *
 * @returns the errors, to go into {@link DmaErrorDetails.undo}.
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

/** Throws the first of `errors`, with the others as what failed while undoing; does nothing when there are none. */
export function throwFirst(errors: readonly unknown[], operation: string): void {
  if (errors.length > 0) throw withUndo(errors[0], operation, errors.slice(1));
}

/** `error` as a {@link DmaError} that also carries what failed while undoing; other errors become its cause (EIO). */
export function withUndo(error: unknown, operation: string, undo: readonly unknown[]): DmaError {
  if (isDmaError(error)) return undo.length === 0 ? error : error.with({ undo: [...error.undo, ...undo] });
  return new DmaError({ code: 'EIO', operation, reason: thrown(error), cause: error, undo });
}
