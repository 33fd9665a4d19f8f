/** What calls that take long do piece by piece: how large the pieces are, their pages, and the translation table. */
import type { Area } from '../memory/area.js';
import type { Pace, Turns } from '../long-work.js';
import type { MemoryPort } from '../platform/ports.js';
import { alignUp, GiB, type Va } from '../units.js';
import type { Constraints } from './address-space.js';
import type { Entry } from './ledger.js';
import type { Plan } from './plan.js';
import type { TranslationTable } from './translation-table.js';

/**
 * How long pinning one piece should take, in milliseconds: each piece is a mapping entry, of which there may be few.
 */
export const PINNING_MS = 4;

/** Bytes of mapped memory that are entered into the translation table at once. */
export const TABLE_PIECE = 64 * GiB;

/** In long loops over pieces, how many pieces pass between two looks at the clock; a power of two. */
const PIECES_A_LOOK = 64;

/** Is the clock looked at after so many pieces? */
export function isLook(count: number): boolean {
  return count % PIECES_A_LOOK === 0;
}

/** Faults in the pages of a piece. Never rejects: the call that pins them has the better error. */
export async function getPages(
  pages: Pick<MemoryPort, 'populateAsync'>,
  va: Va,
  length: number,
  { writable }: Area,
): Promise<void> {
  await pages.populateAsync(va, length, writable ? 'write' : 'read').catch(() => undefined);
}

/**
 * Tells how large the piece at an address is to be, in bytes: `chunkBytes`, or by the pace, as far as the entry limit allows.
 *
 * @param how.spare how many entries the domain has left
 */
export function pieceSizes(
  { pins, granule, regions }: Constraints,
  { area, range }: Plan,
  how: { readonly chunkBytes: number | undefined; readonly pace: Pace; readonly spare: number },
): (va: Va) => number {
  const { chunkBytes, pace, spare } = how;
  // A region has one key, so it is one piece.
  if (regions !== undefined || chunkBytes === Infinity || (chunkBytes === undefined && !pins)) return () => Infinity;
  // Without `chunkBytes`, most entries are left to others.
  const most = chunkBytes === undefined ? Math.floor(spare / 4) : spare;
  const least = spare === Infinity ? 1 : Math.ceil(range.length / (most + 1));
  const unit = Math.max(area.pageSize, granule);
  return (va) => {
    const bytes = alignUp(Math.max(Math.ceil(chunkBytes ?? pace.bytes), least), unit);
    // Pieces at multiples of their size keep the large pages of an IOMMU whole.
    return chunkBytes === undefined && least < pace.bytes ? bytes - (va % bytes) : bytes;
  };
}

/**
 * Enters what is mapped into the translation table, in as many turns of the event loop as that takes.
 *
 * @param mustGoOn asked before each piece; what it throws ends this
 */
export async function enterInTurns(
  table: TranslationTable,
  { va, iova, length, keys }: Entry,
  turns: Turns,
  mustGoOn: () => void,
): Promise<void> {
  for (let at = 0; at < length; at += TABLE_PIECE) {
    if (at > 0 && turns.due) await turns.next();
    mustGoOn();
    table.add(va + at, Math.min(TABLE_PIECE, length - at), iova + at, keys?.lkey ?? -1);
  }
}

/** Removes it from the translation table. */
export async function removeInTurns(table: TranslationTable, { va, length }: Entry, turns: Turns): Promise<void> {
  for (let at = 0; at < length; at += TABLE_PIECE) {
    if (at > 0 && turns.due) await turns.next();
    table.remove(va + at, Math.min(TABLE_PIECE, length - at));
  }
}
