/** Physical region pages: how commands name memory page by page (NVM Express Base Specification 1.4, section 4.3). */
import { STATUS } from '../../../nvme/status.js';
import type { Lists } from './lists.js';
import type { Segments } from './segments.js';

/** Where the two entries are in the words of a command. */
const PRP1 = 6;
const PRP2 = 8;

/**
 * Puts what a command's PRP entries name into `out`.
 *
 * @param words the command
 * @param length bytes to be named, at least 1
 * @param pageSize bytes, CC.MPS
 * @returns a status, or WAIT
 */
export function walkPrp(out: Segments, lists: Lists, words: Uint32Array, length: number, pageSize: number): number {
  const inPage = pageSize - 1;
  out.clear();
  // Only the first page may be entered in its middle.
  if ((words[PRP1] & 3) !== 0) return STATUS.INVALID_PRP_OFFSET;
  const first = Math.min(length, pageSize - (words[PRP1] & inPage));
  out.add(words[PRP1 + 1] * 2 ** 32 + words[PRP1], first);
  let left = length - first;
  if (left === 0) return STATUS.SUCCESS;
  let low = words[PRP2];
  let high = words[PRP2 + 1];
  if (left <= pageSize) {
    // The second entry is data, because one page is enough.
    if ((low & inPage) !== 0) return STATUS.INVALID_PRP_OFFSET;
    out.add(high * 2 ** 32 + low, left);
    return STATUS.SUCCESS;
  }
  // The second entry is a list, which may begin anywhere in a page.
  if ((low & 7) !== 0) return STATUS.INVALID_PRP_OFFSET;
  for (;;) {
    const room = (pageSize - (low & inPage)) / 8;
    const wanted = Math.ceil(left / pageSize);
    // The last entry of a page is the address of the next list, unless it is the last that is needed.
    const goesOn = wanted > room;
    const entries = goesOn ? room : wanted;
    const list = lists.load(high * 2 ** 32 + low, entries * 8);
    if (list === undefined) return lists.status;
    const data = goesOn ? entries - 1 : entries;
    for (let n = 0; n < data; n++) {
      if ((list[2 * n] & inPage) !== 0) return STATUS.INVALID_PRP_OFFSET;
      const here = Math.min(left, pageSize);
      out.add(list[2 * n + 1] * 2 ** 32 + list[2 * n], here);
      left -= here;
    }
    if (!goesOn) return STATUS.SUCCESS;
    low = list[2 * data];
    high = list[2 * data + 1];
    if ((low & inPage) !== 0) return STATUS.INVALID_PRP_OFFSET;
  }
}
