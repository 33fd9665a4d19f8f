/** What a controller answers to IDENTIFY. */
import { createHash } from 'node:crypto';
import { COMMAND_SET, EVENT_CONFIG } from '../../../nvme/commands.js';
import {
  CONTROLLER,
  DESCRIPTOR_TYPE,
  IDENTIFY_BYTES,
  LPA,
  NAMESPACE,
  NSFEAT,
  OACS,
  ONCS,
  putPadded,
} from '../../../nvme/identify.js';
import { versionWord } from '../../../nvme/registers.js';
import type { Core } from './core.js';
import { EVENT_REQUESTS } from './events.js';
import { ERROR_ENTRIES, put64, TEMPERATURE } from './health.js';
import { FORMATS, type Namespace } from './namespace.js';

/** PCI identity: vendor 1234 (not allotted, and QEMU's for its own devices). */
export const NVME_IDENTITY = { vendor: 0x1234, device: 0xd15c, classCode: 0x010802 } as const;
/** The version of the specification that is followed. */
export const VERSION = versionWord(1, 4);
export const FIRMWARE = '1.0';

/** Flush of all namespaces is offered (bits 2:1), and there is a volatile write cache (bit 0). */
const WRITE_CACHE = 0x7;
/** SGLs of any alignment, with bit buckets, and longer than the data. */
const SGLS = 0x1 | (1 << 16) | (1 << 18);

/** CNS 01h. */
export function controllerPage(core: Core): Uint8Array {
  const { settings, namespaces } = core;
  const bytes = new Uint8Array(IDENTIFY_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint16(CONTROLLER.VID, NVME_IDENTITY.vendor, true);
  view.setUint16(CONTROLLER.SSVID, NVME_IDENTITY.vendor, true);
  putPadded(bytes, CONTROLLER.SN, 20, settings.serial);
  putPadded(bytes, CONTROLLER.MN, 40, settings.model);
  putPadded(bytes, CONTROLLER.FR, 8, FIRMWARE);
  bytes[CONTROLLER.MDTS] = settings.mdts;
  view.setUint32(CONTROLLER.VER, VERSION, true);
  view.setUint32(CONTROLLER.OAES, EVENT_CONFIG.NAMESPACES, true);
  // An I/O controller.
  bytes[CONTROLLER.CNTRLTYPE] = 1;
  view.setUint16(CONTROLLER.OACS, OACS.FORMAT | (settings.shadowDoorbells ? OACS.DOORBELL_BUFFER : 0), true);
  bytes[CONTROLLER.ACL] = 3;
  bytes[CONTROLLER.AERL] = EVENT_REQUESTS - 1;
  // One slot, which is read only.
  bytes[CONTROLLER.FRMW] = 0x03;
  bytes[CONTROLLER.LPA] = LPA.COMMAND_EFFECTS | LPA.EXTENDED;
  bytes[CONTROLLER.ELPE] = ERROR_ENTRIES - 1;
  view.setUint16(CONTROLLER.WCTEMP, TEMPERATURE.WARNING, true);
  view.setUint16(CONTROLLER.CCTEMP, TEMPERATURE.CRITICAL, true);
  view.setUint32(CONTROLLER.HMPRE, settings.hostMemory / 4096, true);
  view.setUint32(CONTROLLER.HMMIN, settings.hostMemory / 4096, true);
  const capacity = [...namespaces.values()].reduce((sum, { image }) => sum + image.bytes, 0);
  put64(view, CONTROLLER.TNVMCAP, capacity);
  bytes[CONTROLLER.SQES] = 0x66;
  bytes[CONTROLLER.CQES] = 0x44;
  view.setUint32(CONTROLLER.NN, Math.max(0, ...namespaces.keys()), true);
  view.setUint16(
    CONTROLLER.ONCS,
    ONCS.COMPARE | ONCS.DATASET_MANAGEMENT | ONCS.WRITE_ZEROES | ONCS.FEATURE_SAVE | ONCS.TIMESTAMP | ONCS.VERIFY,
    true,
  );
  bytes[CONTROLLER.VWC] = WRITE_CACHE;
  view.setUint32(CONTROLLER.SGLS, settings.sgl ? SGLS : 0, true);
  bytes.set(Buffer.from(`nqn.2014-08.org.nvmexpress:uuid:${uuidOf(settings.serial)}`), CONTROLLER.SUBNQN);
  // The one power state: 25 W at most.
  view.setUint16(CONTROLLER.POWER_STATES, 2500, true);
  return bytes;
}

/** CNS 00h. */
export function namespacePage(namespace: Namespace): Uint8Array {
  const { blocks, blockSize, image } = namespace;
  const bytes = new Uint8Array(IDENTIFY_BYTES);
  const view = new DataView(bytes.buffer);
  put64(view, NAMESPACE.NSZE, blocks);
  put64(view, NAMESPACE.NCAP, blocks);
  put64(view, NAMESPACE.NUSE, Math.min(blocks, Math.ceil(image.allocated / blockSize)));
  bytes[NAMESPACE.NSFEAT] = (image.canPunch ? NSFEAT.THIN : 0) | NSFEAT.OPTIMAL_IO;
  bytes[NAMESPACE.NLBAF] = FORMATS.length - 1;
  bytes[NAMESPACE.FLBAS] = namespace.format;
  // Deallocated blocks read as zeroes, and write zeroes may deallocate.
  bytes[NAMESPACE.DLFEAT] = 0x1 | (1 << 3);
  put64(view, NAMESPACE.NVMCAP, image.bytes);
  // Pages of the host's file system: 4 KiB, 0-based.
  const page = Math.max(1, 4096 / blockSize) - 1;
  for (const at of [NAMESPACE.NPWG, NAMESPACE.NPWA, NAMESPACE.NPDG, NAMESPACE.NPDA]) view.setUint16(at, page, true);
  bytes[NAMESPACE.NSATTR] = image.readOnly ? 1 : 0;
  bytes.set(namespace.nguid, NAMESPACE.NGUID);
  for (const [index, power] of FORMATS.entries())
    view.setUint32(NAMESPACE.LBAF + 4 * index, (power << 16) | (power < 12 ? 1 << 24 : 0), true);
  return bytes;
}

/** CNS 03h. */
export function descriptorPage(namespace: Namespace): Uint8Array {
  const bytes = new Uint8Array(IDENTIFY_BYTES);
  bytes.set([DESCRIPTOR_TYPE.NGUID, 16, 0, 0]);
  bytes.set(namespace.nguid, 4);
  bytes.set([DESCRIPTOR_TYPE.CSI, 1, 0, 0, COMMAND_SET.NVM], 20);
  return bytes;
}

/** CNS 02h and 10h: ids above `after`. */
export function listPage(ids: readonly number[], after: number): Uint8Array {
  const words = new Uint32Array(IDENTIFY_BYTES / 4);
  words.set(ids.filter((id) => id > after).slice(0, words.length));
  return new Uint8Array(words.buffer);
}

/** 16 bytes that belong to a name, always the same. */
export function bytesOf(name: string): Uint8Array {
  return new Uint8Array(createHash('sha256').update(name).digest().subarray(0, 16));
}

function uuidOf(name: string): string {
  const bytes = bytesOf(name);
  // Version 8, made by a rule of its own (RFC 9562).
  bytes[6] = (bytes[6] & 0x0f) | 0x80;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  return Buffer.from(bytes)
    .toString('hex')
    .replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}
