/** Asynchronous events, as programs get them. */
import { EVENT, EVENT_TYPE } from '../../nvme/commands.js';

/** Something that the controller told without being asked, or that happened to it. */
export interface NvmeEvent {
  /** `error`, `health`, `notice` and `vendor` are told by the controller; `reset`: it was reset, and works again. */
  readonly kind: 'error' | 'health' | 'notice' | 'command-set' | 'vendor' | 'reset' | 'unknown';
  /** What happened, such as `namespaces changed`. */
  readonly what: string;
  /** The whole result of the event; 0 for `reset`. */
  readonly result: number;
  /** The log page that it is about, as it was when the event came; `undefined` if there is none. */
  readonly log: Uint8Array | undefined;
}

const TEXTS: ReadonlyMap<number, string> = new Map<number, string>([
  [key(EVENT_TYPE.ERROR, EVENT.ERROR.BAD_DOORBELL), 'write to a doorbell of no queue'],
  [key(EVENT_TYPE.ERROR, EVENT.ERROR.BAD_DOORBELL_VALUE), 'invalid value of a doorbell'],
  [key(EVENT_TYPE.ERROR, EVENT.ERROR.DIAGNOSTIC), 'diagnostic failure'],
  [key(EVENT_TYPE.ERROR, EVENT.ERROR.PERSISTENT), 'persistent internal error'],
  [key(EVENT_TYPE.ERROR, EVENT.ERROR.TRANSIENT), 'transient internal error'],
  [key(EVENT_TYPE.ERROR, EVENT.ERROR.FIRMWARE_IMAGE), 'firmware image could not be loaded'],
  [key(EVENT_TYPE.HEALTH, EVENT.HEALTH.RELIABILITY), 'reliability degraded'],
  [key(EVENT_TYPE.HEALTH, EVENT.HEALTH.TEMPERATURE), 'temperature past a threshold'],
  [key(EVENT_TYPE.HEALTH, EVENT.HEALTH.SPARE), 'spare below its threshold'],
  [key(EVENT_TYPE.NOTICE, EVENT.NOTICE.NAMESPACES), 'namespaces changed'],
  [key(EVENT_TYPE.NOTICE, EVENT.NOTICE.FIRMWARE), 'firmware activation starting'],
  [key(EVENT_TYPE.NOTICE, EVENT.NOTICE.TELEMETRY), 'telemetry log changed'],
  [key(EVENT_TYPE.NOTICE, EVENT.NOTICE.ANA), 'asymmetric access changed'],
]);

const KINDS: ReadonlyMap<number, NvmeEvent['kind']> = new Map<number, NvmeEvent['kind']>([
  [EVENT_TYPE.ERROR, 'error'],
  [EVENT_TYPE.HEALTH, 'health'],
  [EVENT_TYPE.NOTICE, 'notice'],
  [EVENT_TYPE.IO_COMMAND_SET, 'command-set'],
  [EVENT_TYPE.VENDOR, 'vendor'],
]);

function key(type: number, info: number): number {
  return (type << 8) | info;
}

/** The event of a result (NVMe 1.4, section 5.2), with the page that it names. */
export function eventOf(result: number, log: Uint8Array | undefined): NvmeEvent {
  const type = result & 0x7;
  const info = (result >>> 8) & 0xff;
  return {
    kind: KINDS.get(type) ?? 'unknown',
    what: TEXTS.get(key(type, info)) ?? `event ${info} of type ${type}`,
    result,
    log,
  };
}
