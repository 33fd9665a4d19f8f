/** How commands of NVMe end: the status field of a completion (NVM Express Base Specification 1.4, section 4.6.1). */
import { hex } from '../units.js';

/** Status code types. */
export const STATUS_TYPE = { GENERIC: 0, COMMAND: 1, MEDIA: 2, PATH: 3, VENDOR: 7 } as const;

/** Status codes with their type: `type << 8 | code`. 0 is success. */
export const STATUS = {
  SUCCESS: 0x000,
  INVALID_OPCODE: 0x001,
  INVALID_FIELD: 0x002,
  ID_CONFLICT: 0x003,
  DATA_TRANSFER_ERROR: 0x004,
  POWER_LOSS: 0x005,
  INTERNAL_ERROR: 0x006,
  ABORT_REQUESTED: 0x007,
  ABORT_SQ_DELETED: 0x008,
  ABORT_FAILED_FUSED: 0x009,
  ABORT_MISSING_FUSED: 0x00a,
  INVALID_NAMESPACE: 0x00b,
  COMMAND_SEQUENCE: 0x00c,
  SGL_SEGMENT_INVALID: 0x00d,
  SGL_COUNT_INVALID: 0x00e,
  DATA_SGL_LENGTH: 0x00f,
  METADATA_SGL_LENGTH: 0x010,
  SGL_TYPE_INVALID: 0x011,
  INVALID_CMB_USE: 0x012,
  INVALID_PRP_OFFSET: 0x013,
  ATOMIC_UNIT_EXCEEDED: 0x014,
  OPERATION_DENIED: 0x015,
  SGL_OFFSET_INVALID: 0x016,
  HOST_ID_INCONSISTENT: 0x018,
  KEEP_ALIVE_EXPIRED: 0x019,
  PREEMPT_ABORT: 0x01b,
  SANITIZE_FAILED: 0x01c,
  SANITIZE_IN_PROGRESS: 0x01d,
  SGL_GRANULARITY: 0x01e,
  CMB_NOT_SUPPORTED: 0x01f,
  NAMESPACE_WRITE_PROTECTED: 0x020,
  COMMAND_INTERRUPTED: 0x021,
  TRANSPORT_ERROR: 0x022,
  LBA_OUT_OF_RANGE: 0x080,
  CAPACITY_EXCEEDED: 0x081,
  NAMESPACE_NOT_READY: 0x082,
  RESERVATION_CONFLICT: 0x083,
  FORMAT_IN_PROGRESS: 0x084,

  INVALID_CQ: 0x100,
  INVALID_QUEUE_ID: 0x101,
  INVALID_QUEUE_SIZE: 0x102,
  ABORT_LIMIT: 0x103,
  EVENT_LIMIT: 0x105,
  INVALID_FIRMWARE_SLOT: 0x106,
  INVALID_FIRMWARE_IMAGE: 0x107,
  INVALID_VECTOR: 0x108,
  INVALID_LOG_PAGE: 0x109,
  INVALID_FORMAT: 0x10a,
  FIRMWARE_NEEDS_RESET: 0x10b,
  INVALID_QUEUE_DELETION: 0x10c,
  FEATURE_NOT_SAVEABLE: 0x10d,
  FEATURE_NOT_CHANGEABLE: 0x10e,
  FEATURE_NOT_NAMESPACE: 0x10f,
  FIRMWARE_NEEDS_SUBSYSTEM_RESET: 0x110,
  NAMESPACE_CAPACITY: 0x115,
  NAMESPACE_ID_UNAVAILABLE: 0x116,
  NAMESPACE_ALREADY_ATTACHED: 0x118,
  NAMESPACE_PRIVATE: 0x119,
  NAMESPACE_NOT_ATTACHED: 0x11a,
  SELF_TEST_IN_PROGRESS: 0x11d,
  CONFLICTING_ATTRIBUTES: 0x180,
  INVALID_PROTECTION: 0x181,
  WRITE_TO_READ_ONLY: 0x182,
  COMMAND_SIZE_LIMIT: 0x183,
  ZONE_BOUNDARY: 0x1b8,
  ZONE_FULL: 0x1b9,
  ZONE_READ_ONLY: 0x1ba,
  ZONE_OFFLINE: 0x1bb,
  ZONE_INVALID_WRITE: 0x1bc,
  TOO_MANY_ACTIVE_ZONES: 0x1bd,
  TOO_MANY_OPEN_ZONES: 0x1be,
  ZONE_TRANSITION: 0x1bf,

  WRITE_FAULT: 0x280,
  UNRECOVERED_READ: 0x281,
  GUARD_CHECK: 0x282,
  APPLICATION_TAG_CHECK: 0x283,
  REFERENCE_TAG_CHECK: 0x284,
  COMPARE_FAILURE: 0x285,
  ACCESS_DENIED: 0x286,
  UNWRITTEN_BLOCK: 0x287,

  PATH_ERROR: 0x300,
  PATH_INACCESSIBLE: 0x302,
  CONTROLLER_PATH_ERROR: 0x360,
  HOST_PATH_ERROR: 0x370,
  ABORTED_BY_HOST: 0x371,
} as const;

/** Bits of the status field as it is in a completion, without the phase. */
export const STATUS_FIELD = {
  /** type and code: 11 bits, as {@link STATUS} has them */
  CODE_MASK: 0x7ff,
  /** more is in the error log */
  MORE: 1 << 13,
  /** do not retry: the same command fails again */
  DNR: 1 << 14,
} as const;

/** A status field taken apart. */
export interface NvmeStatus {
  /** status code type, 0 to 7 */
  readonly type: number;
  /** status code within its type, 0 to 255 */
  readonly code: number;
  /** the name in {@link STATUS}, such as `LBA_OUT_OF_RANGE`; `UNKNOWN` if it has none */
  readonly name: string;
  /** what it means, in the specification's words */
  readonly text: string;
  /** what to do, if there is something to say */
  readonly hint: string | undefined;
  /** will the same command fail again? */
  readonly dnr: boolean;
  /** is there more in the error log page? */
  readonly more: boolean;
}

/** Text of each status, and what to do about it. */
const TEXTS: Readonly<Record<keyof typeof STATUS, string | readonly [text: string, hint: string]>> = {
  SUCCESS: 'successful completion',
  INVALID_OPCODE: [
    'invalid command opcode',
    'the controller does not have this command: compare ONCS and OACS of identify',
  ],
  INVALID_FIELD: 'invalid field in command',
  ID_CONFLICT: ['command ID conflict', 'an identifier was used again before its command had completed'],
  DATA_TRANSFER_ERROR: [
    'data transfer error',
    'the device could not reach the memory: it has to be mapped for it, and stay so until the command completes',
  ],
  POWER_LOSS: 'commands aborted due to power loss notification',
  INTERNAL_ERROR: ['internal error', 'the error log page may say more'],
  ABORT_REQUESTED: 'command abort requested',
  ABORT_SQ_DELETED: 'command aborted due to SQ deletion',
  ABORT_FAILED_FUSED: 'command aborted due to failed fused command',
  ABORT_MISSING_FUSED: 'command aborted due to missing fused command',
  INVALID_NAMESPACE: ['invalid namespace or format', 'identify lists the namespaces that are there'],
  COMMAND_SEQUENCE: 'command sequence error',
  SGL_SEGMENT_INVALID: 'invalid SGL segment descriptor',
  SGL_COUNT_INVALID: 'invalid number of SGL descriptors',
  DATA_SGL_LENGTH: 'data SGL length invalid',
  METADATA_SGL_LENGTH: 'metadata SGL length invalid',
  SGL_TYPE_INVALID: 'SGL descriptor type invalid',
  INVALID_CMB_USE: 'invalid use of controller memory buffer',
  INVALID_PRP_OFFSET: ['PRP offset invalid', 'only the first entry may have an offset, a multiple of 4'],
  ATOMIC_UNIT_EXCEEDED: 'atomic write unit exceeded',
  OPERATION_DENIED: 'operation denied',
  SGL_OFFSET_INVALID: 'SGL offset invalid',
  HOST_ID_INCONSISTENT: 'host identifier inconsistent format',
  KEEP_ALIVE_EXPIRED: 'keep alive timer expired',
  PREEMPT_ABORT: 'command aborted due to preempt and abort',
  SANITIZE_FAILED: ['sanitize failed', 'another sanitize operation has to succeed first'],
  SANITIZE_IN_PROGRESS: ['sanitize in progress', 'wait until it is done: the sanitize log page has its progress'],
  SGL_GRANULARITY: 'SGL data block granularity invalid',
  CMB_NOT_SUPPORTED: 'command not supported for queue in controller memory buffer',
  NAMESPACE_WRITE_PROTECTED: [
    'namespace is write protected',
    'it can be read; serve it from a writable image to write',
  ],
  COMMAND_INTERRUPTED: ['command interrupted', 'send it again'],
  TRANSPORT_ERROR: ['transient transport error', 'send it again'],
  LBA_OUT_OF_RANGE: ['LBA out of range', 'the namespace ends before: its size in blocks is in identify'],
  CAPACITY_EXCEEDED: ['capacity exceeded', 'the medium is full'],
  NAMESPACE_NOT_READY: ['namespace not ready', 'send it again later, unless dnr is set'],
  RESERVATION_CONFLICT: ['reservation conflict', 'another host holds a reservation'],
  FORMAT_IN_PROGRESS: ['format in progress', 'send it again when it is done'],

  INVALID_CQ: 'completion queue invalid',
  INVALID_QUEUE_ID: ['invalid queue identifier', 'the feature "number of queues" says how many there may be'],
  INVALID_QUEUE_SIZE: ['invalid queue size', 'CAP.MQES has the most entries, less one'],
  ABORT_LIMIT: ['abort command limit exceeded', 'ACL of identify says how many aborts there may be at once'],
  EVENT_LIMIT: ['asynchronous event request limit exceeded', 'AERL of identify says how many there may be at once'],
  INVALID_FIRMWARE_SLOT: 'invalid firmware slot',
  INVALID_FIRMWARE_IMAGE: 'invalid firmware image',
  INVALID_VECTOR: 'invalid interrupt vector',
  INVALID_LOG_PAGE: 'invalid log page',
  INVALID_FORMAT: ['invalid format', 'identify of the namespace lists the formats that are supported'],
  FIRMWARE_NEEDS_RESET: 'firmware activation requires conventional reset',
  INVALID_QUEUE_DELETION: ['invalid queue deletion', 'delete the submission queues of a completion queue first'],
  FEATURE_NOT_SAVEABLE: 'feature identifier not saveable',
  FEATURE_NOT_CHANGEABLE: 'feature not changeable',
  FEATURE_NOT_NAMESPACE: 'feature not namespace specific',
  FIRMWARE_NEEDS_SUBSYSTEM_RESET: 'firmware activation requires NVM subsystem reset',
  NAMESPACE_CAPACITY: 'namespace insufficient capacity',
  NAMESPACE_ID_UNAVAILABLE: 'namespace identifier unavailable',
  NAMESPACE_ALREADY_ATTACHED: 'namespace already attached',
  NAMESPACE_PRIVATE: 'namespace is private',
  NAMESPACE_NOT_ATTACHED: 'namespace not attached',
  SELF_TEST_IN_PROGRESS: 'device self-test in progress',
  CONFLICTING_ATTRIBUTES: 'conflicting attributes',
  INVALID_PROTECTION: ['invalid protection information', 'compare PRINFO with the format of the namespace'],
  WRITE_TO_READ_ONLY: 'attempted write to read only range',
  COMMAND_SIZE_LIMIT: 'command size limit exceeded',
  ZONE_BOUNDARY: ['zone boundary error', 'a command may not cross from one zone into the next'],
  ZONE_FULL: ['zone is full', 'reset it, or write to another one'],
  ZONE_READ_ONLY: 'zone is read only',
  ZONE_OFFLINE: 'zone is offline',
  ZONE_INVALID_WRITE: ['zone invalid write', 'write at the write pointer of the zone, or append'],
  TOO_MANY_ACTIVE_ZONES: ['too many active zones', 'finish or reset some'],
  TOO_MANY_OPEN_ZONES: ['too many open zones', 'close, finish or reset some'],
  ZONE_TRANSITION: 'invalid zone state transition',

  WRITE_FAULT: ['write fault', 'the medium could not be written'],
  UNRECOVERED_READ: [
    'unrecovered read error',
    'the medium could not be read; write the blocks anew if they may be lost',
  ],
  GUARD_CHECK: 'end-to-end guard check error',
  APPLICATION_TAG_CHECK: 'end-to-end application tag check error',
  REFERENCE_TAG_CHECK: 'end-to-end reference tag check error',
  COMPARE_FAILURE: 'compare failure',
  ACCESS_DENIED: 'access denied',
  UNWRITTEN_BLOCK: ['deallocated or unwritten logical block', 'write it before it is read'],

  PATH_ERROR: 'internal path error',
  PATH_INACCESSIBLE: 'asymmetric access inaccessible',
  CONTROLLER_PATH_ERROR: 'controller pathing error',
  HOST_PATH_ERROR: 'host pathing error',
  ABORTED_BY_HOST: [
    'command aborted by host',
    'the controller was reset while it ran, or is gone: whether it was done is not known',
  ],
};

const NAMES: ReadonlyMap<number, keyof typeof STATUS> = new Map(
  (Object.keys(STATUS) as (keyof typeof STATUS)[]).map((name) => [STATUS[name], name]),
);

const TYPE_TEXTS = ['generic status', 'command specific status', 'media error', 'path error'];

/** Takes a status field apart. @param field 15 bits, without the phase: the last 16 bits of a completion `>>> 1` */
export function statusOf(field: number): NvmeStatus {
  const type = (field >>> 8) & 0x7;
  const code = field & 0xff;
  const name = NAMES.get(field & STATUS_FIELD.CODE_MASK);
  const known = name === undefined ? unknownText(type, code) : TEXTS[name];
  const [text, hint] = typeof known === 'string' ? [known, undefined] : known;
  return {
    type,
    code,
    name: name ?? 'UNKNOWN',
    text,
    hint,
    dnr: (field & STATUS_FIELD.DNR) !== 0,
    more: (field & STATUS_FIELD.MORE) !== 0,
  };
}

function unknownText(type: number, code: number): string {
  const kind =
    type === STATUS_TYPE.VENDOR ? 'vendor specific status' : (TYPE_TEXTS.at(type) ?? `status of type ${type}`);
  return `${kind} ${hex(code)}`;
}
