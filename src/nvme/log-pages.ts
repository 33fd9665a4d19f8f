/** Log pages of NVMe (NVM Express Base Specification 1.4, section 5.14.1). */
import { numberAt, paddedText } from './identify.js';

/** Offsets in bytes of the page on health, 512 bytes (section 5.14.1.2). Counters have 16 bytes. */
export const SMART = {
  BYTES: 512,
  CRITICAL_WARNING: 0,
  /** kelvins, 16 bits */
  TEMPERATURE: 1,
  SPARE: 3,
  SPARE_THRESHOLD: 4,
  PERCENTAGE_USED: 5,
  /** in 1000 units of 512 bytes, rounded up */
  DATA_READ: 32,
  DATA_WRITTEN: 48,
  READ_COMMANDS: 64,
  WRITE_COMMANDS: 80,
  BUSY_MINUTES: 96,
  POWER_CYCLES: 112,
  POWER_ON_HOURS: 128,
  UNSAFE_SHUTDOWNS: 144,
  MEDIA_ERRORS: 160,
  ERROR_ENTRIES: 176,
  WARNING_MINUTES: 192,
  CRITICAL_MINUTES: 196,
} as const;

/** Bits of `SMART.CRITICAL_WARNING`. */
export const CRITICAL_WARNING = {
  SPARE: 1 << 0,
  TEMPERATURE: 1 << 1,
  RELIABILITY: 1 << 2,
  READ_ONLY: 1 << 3,
  BACKUP_FAILED: 1 << 4,
} as const;

/** Offsets in bytes of an entry of the error log, 64 bytes (section 5.14.1.1). */
export const ERROR_ENTRY = {
  BYTES: 64,
  /** 64 bits; 0: no entry */
  COUNT: 0,
  SQ_ID: 8,
  CID: 10,
  /** the status field, with the phase in bit 0 */
  STATUS: 12,
  /** where in the entry: byte 7:0, bit 10:8; ffff: nowhere */
  LOCATION: 14,
  LBA: 16,
  NSID: 24,
} as const;

/** The page of firmware slots, 512 bytes (section 5.14.1.3): the active slot, and seven revisions of 8 characters. */
export const FIRMWARE_LOG = { BYTES: 512, ACTIVE: 0, REVISIONS: 8 } as const;

/** The page of changed namespaces: up to 1024 ids; ffffffff alone: more than that (section 5.14.1.4). */
export const CHANGED_NAMESPACES = { BYTES: 4096, MAX: 1024 } as const;

/** The page of supported commands and their effects (section 5.14.1.5): 32 bits each of 256 admin and 256 I/O opcodes. */
export const EFFECTS = {
  BYTES: 4096,
  ADMIN: 0,
  IO: 1024,
  SUPPORTED: 1 << 0,
  /** changes the content of blocks, capabilities of namespaces, the list of namespaces */
  CONTENT: 1 << 1,
  NAMESPACE: 1 << 2,
  INVENTORY: 1 << 3,
} as const;

/** The health of a controller. Counters are not exact from 2^53 on. */
export interface NvmeHealth {
  /** `CRITICAL_WARNING` */
  readonly criticalWarning: number;
  /** kelvins */
  readonly temperature: number;
  /** percent */
  readonly spare: number;
  readonly spareThreshold: number;
  /** percent of the life that the vendor estimates; may exceed 100 */
  readonly percentageUsed: number;
  /** bytes, to 512000 */
  readonly bytesRead: number;
  readonly bytesWritten: number;
  readonly readCommands: number;
  readonly writeCommands: number;
  readonly busyMinutes: number;
  readonly powerCycles: number;
  readonly powerOnHours: number;
  readonly unsafeShutdowns: number;
  readonly mediaErrors: number;
  readonly errorEntries: number;
}

/** Reads the page on health. @param bytes 512 of them */
export function healthOf(bytes: Uint8Array): NvmeHealth {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const counter = (at: number): number => numberAt(view, at, 16);
  return {
    criticalWarning: bytes[SMART.CRITICAL_WARNING],
    temperature: view.getUint16(SMART.TEMPERATURE, true),
    spare: bytes[SMART.SPARE],
    spareThreshold: bytes[SMART.SPARE_THRESHOLD],
    percentageUsed: bytes[SMART.PERCENTAGE_USED],
    bytesRead: counter(SMART.DATA_READ) * 512_000,
    bytesWritten: counter(SMART.DATA_WRITTEN) * 512_000,
    readCommands: counter(SMART.READ_COMMANDS),
    writeCommands: counter(SMART.WRITE_COMMANDS),
    busyMinutes: counter(SMART.BUSY_MINUTES),
    powerCycles: counter(SMART.POWER_CYCLES),
    powerOnHours: counter(SMART.POWER_ON_HOURS),
    unsafeShutdowns: counter(SMART.UNSAFE_SHUTDOWNS),
    mediaErrors: counter(SMART.MEDIA_ERRORS),
    errorEntries: counter(SMART.ERROR_ENTRIES),
  };
}

/** One entry of the error log. */
export interface NvmeErrorEntry {
  /** counts all errors of the controller, from 1 on */
  readonly count: number;
  readonly queue: number;
  readonly commandId: number;
  /** the status field, without the phase, for `statusOf` */
  readonly status: number;
  readonly lba: number;
  readonly namespace: number;
}

/** Reads the error log: entries that are in use, the newest first. */
export function errorEntriesOf(bytes: Uint8Array): NvmeErrorEntry[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const entries: NvmeErrorEntry[] = [];
  for (let at = 0; at + ERROR_ENTRY.BYTES <= bytes.length; at += ERROR_ENTRY.BYTES) {
    const count = numberAt(view, at + ERROR_ENTRY.COUNT, 8);
    if (count === 0) continue;
    entries.push({
      count,
      queue: view.getUint16(at + ERROR_ENTRY.SQ_ID, true),
      commandId: view.getUint16(at + ERROR_ENTRY.CID, true),
      status: view.getUint16(at + ERROR_ENTRY.STATUS, true) >>> 1,
      lba: numberAt(view, at + ERROR_ENTRY.LBA, 8),
      namespace: view.getUint32(at + ERROR_ENTRY.NSID, true),
    });
  }
  return entries;
}

/** The firmware slots. */
export interface NvmeFirmware {
  /** 1 to 7 */
  readonly active: number;
  /** the slot that is active after the next reset; 0: the same */
  readonly next: number;
  /** by slot, from 1 on; empty: nothing is there */
  readonly revisions: readonly string[];
}

/** Reads the page of firmware slots. @param bytes 512 of them */
export function firmwareOf(bytes: Uint8Array): NvmeFirmware {
  const revisions = Array.from({ length: 7 }, (_, slot) => paddedText(bytes, FIRMWARE_LOG.REVISIONS + 8 * slot, 8));
  const afi = bytes[FIRMWARE_LOG.ACTIVE];
  return { active: afi & 0x7, next: (afi >>> 4) & 0x7, revisions };
}
