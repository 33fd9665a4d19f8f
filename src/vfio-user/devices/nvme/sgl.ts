/** Scatter-gather lists: how commands name memory of any length (NVM Express Base Specification 1.4, section 4.4). */
import { SGL } from '../../../nvme/commands.js';
import { STATUS } from '../../../nvme/status.js';
import type { Lists } from './lists.js';
import { BUCKET, type Segments } from './segments.js';

/** Where the descriptor is in the words of a command, and the words of a descriptor. */
const FIRST = 6;
const WORDS = SGL.BYTES / 4;
/** Descriptors that are loaded at a time. */
const AT_A_TIME = 256;
/** Most descriptors of a command, so that it can not keep the device busy for ever. */
const MAX_DESCRIPTORS = 8192;

/**
 * Puts what a command's SGL names into `out`. What it names beyond `length` is not looked at.
 *
 * @param words the command
 * @param length bytes to be named, at least 1
 * @param toHost is it a read? Then bytes may be thrown away
 * @returns a status, or WAIT
 */
export function walkSgl(out: Segments, lists: Lists, words: Uint32Array, length: number, toHost: boolean): number {
  out.clear();
  const type = words[FIRST + 3] >>> 24;
  if (isSegment(type)) return walkSegments(out, lists, words, length, toHost);
  const status = addData(out, words, FIRST, length, toHost);
  if (status !== 0) return status;
  return out.bytes < length ? STATUS.DATA_SGL_LENGTH : STATUS.SUCCESS;
}

function walkSegments(out: Segments, lists: Lists, words: Uint32Array, length: number, toHost: boolean): number {
  let at = words[FIRST + 1] * 2 ** 32 + words[FIRST];
  let left = words[FIRST + 2];
  let isLast = words[FIRST + 3] >>> 24 === SGL.LAST_SEGMENT << 4;
  if (left === 0 || left % SGL.BYTES !== 0) return STATUS.SGL_SEGMENT_INVALID;
  for (let seen = 0; ;) {
    const count = Math.min(left / SGL.BYTES, AT_A_TIME);
    seen += count;
    if (seen > MAX_DESCRIPTORS) return STATUS.SGL_COUNT_INVALID;
    const list = lists.load(at, count * SGL.BYTES);
    if (list === undefined) return lists.status;
    at += count * SGL.BYTES;
    left -= count * SGL.BYTES;
    let next = -1;
    for (let n = 0; n < count; n++) {
      const here = n * WORDS;
      if (isSegment(list[here + 3] >>> 24)) {
        // Only the last descriptor of a segment that is not the last leads on.
        if (isLast || left > 0 || n !== count - 1) return STATUS.SGL_SEGMENT_INVALID;
        next = here;
        break;
      }
      const status = addData(out, list, here, length, toHost);
      if (status !== 0) return status;
      if (out.bytes === length) return STATUS.SUCCESS;
    }
    if (left > 0) continue;
    if (isLast) return STATUS.DATA_SGL_LENGTH;
    if (next < 0) return STATUS.SGL_SEGMENT_INVALID;
    at = list[next + 1] * 2 ** 32 + list[next];
    left = list[next + 2];
    isLast = list[next + 3] >>> 24 === SGL.LAST_SEGMENT << 4;
    if (left === 0 || left % SGL.BYTES !== 0) return STATUS.SGL_SEGMENT_INVALID;
  }
}

/** Is it a segment descriptor, at an address (subtype 0)? */
function isSegment(type: number): boolean {
  return type === SGL.SEGMENT << 4 || type === SGL.LAST_SEGMENT << 4;
}

/** Adds a data block or a bit bucket, up to `length` bytes in all. */
function addData(out: Segments, words: Uint32Array, at: number, length: number, toHost: boolean): number {
  const type = words[at + 3] >>> 24;
  const bytes = Math.min(words[at + 2], length - out.bytes);
  if (type === SGL.DATA_BLOCK << 4) out.add(words[at + 1] * 2 ** 32 + words[at], bytes);
  else if (type === SGL.BIT_BUCKET << 4) {
    // The data of a write has no holes: there it counts for nothing.
    if (toHost) out.add(BUCKET, bytes);
  } else return STATUS.SGL_TYPE_INVALID;
  return STATUS.SUCCESS;
}
