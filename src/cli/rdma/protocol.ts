/**
 * What the two sides of `anydma rdma` tell each other, in the session of `rdma/exchange.ts`. The client's hello says what it
 * wants to do, the server's hello where, or why not. Then the client asks the server to `fill` and `check` pieces of its
 * memory, and at the end perhaps to `withdraw` it. Whatever comes is checked here before it is used.
 */
import { DmaError, invalid, isErrorCode } from '../../errors.js';
import { formatSize, GiB, MiB } from '../../units.js';

/** The TCP port of a server when nobody says another. */
export const DEFAULT_PORT = 18540;

export const VERBS = ['write', 'read', 'send'] as const;

/** What a client does: it writes to the server's memory, reads from it, or sends it messages. */
export type Verb = (typeof VERBS)[number];

/** What a client wants. */
export interface Wish {
  readonly verb: Verb;
  /** bytes of memory at the server */
  readonly size: number;
  /** bytes of a request; the last one of the memory may be shorter */
  readonly block: number;
  /** requests under way at once */
  readonly depth: number;
}

/** Bounds of a wish, whoever checks it. */
export const MOST = { block: GiB, depth: 4096, piece: 16 * MiB } as const;

/** How long a side waits for the other, which may have to get much memory ready. milliseconds */
export const PATIENCE = 30_000;

/** A part of the memory, and the seed of what is in it. */
export interface Piece {
  readonly seed: number;
  readonly offset: number;
  readonly length: number;
  /** Messages that have to have come before it is looked at. */
  readonly messages: number;
}

/** @throws DmaError EINVAL when `data` is no wish */
export function readWish(data: unknown): Wish {
  const { verb, size, block, depth } = fieldsOf(data);
  const known = VERBS.find((each) => each === verb);
  if (known === undefined) throw invalid('rdma', 'it wants to do something that is not known here');
  if (!isWhole(size, 1) || !isWhole(block, 1, MOST.block) || block > size || !isWhole(depth, 1, MOST.depth))
    throw invalid('rdma', `it wants memory, blocks or requests of a size that can not be`);
  return { verb: known, size, block, depth };
}

/** @throws DmaError EINVAL when `question` is not about a part of `size` bytes, or of too many */
export function readPiece(question: unknown, size: number): Piece {
  const { seed, offset, length, messages } = fieldsOf(question);
  if (
    !isWhole(seed, 0, 2 ** 32 - 1) ||
    !isWhole(offset, 0, size) ||
    !isWhole(length, 1, MOST.piece) ||
    !isWhole(messages, 0)
  )
    throw invalid('rdma', `a piece has a seed, an offset, and at most ${formatSize(MOST.piece)}`);
  if (offset + length > size) throw invalid('rdma', `it asks for more than the ${formatSize(size)} that it has`);
  return { seed, offset, length, messages };
}

/** What a server says instead of serving. */
export function refusal({ code, reason, hint }: DmaError): object {
  return { refused: { code, reason, hint } };
}

/** The refusal that a server's hello is, as an error; `undefined` when it is none. */
export function refusalOf(data: unknown, peer: string): DmaError | undefined {
  const { refused } = fieldsOf(data);
  if (refused === undefined) return undefined;
  const { code, reason, hint } = fieldsOf(refused);
  return new DmaError({
    code: isErrorCode(code) ? code : 'EIO',
    operation: 'rdma',
    reason: `${peer} refused: ${printable(reason) ?? 'it does not say why'}`,
    hint: printable(hint),
  });
}

/** A text of the other side that a terminal may get to see. */
function printable(text: unknown): string | undefined {
  return typeof text === 'string' ? text.slice(0, 1000).replace(/\p{C}/gu, ' ') : undefined;
}

function fieldsOf(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}

function isWhole(value: unknown, least: number, most = Number.MAX_SAFE_INTEGER): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= least && value <= most;
}
