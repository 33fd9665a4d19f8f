/**
 * The messages between the two sides of `anydma rdma`, in the session of `rdma/exchange.ts`. The client's hello says
 * what it wants to do. The server's hello says where, or why not. Then the client asks the server to `fill` and `check`
 * pieces of its memory, and optionally to `withdraw` it at the end. All messages are checked here before they are used.
 */
import { DmaError, invalid, isErrorCode } from '../../errors.js';
import { formatSize, GiB, MiB } from '../../units.js';

/** The default TCP port of a server. */
export const DEFAULT_PORT = 18540;

export const VERBS = ['write', 'read', 'send'] as const;

/** What a client does: write to the server's memory, read from it, or send messages. */
export type Verb = (typeof VERBS)[number];

/** What a client wants. */
export interface Wish {
  readonly verb: Verb;
  /** Bytes of memory at the server. */
  readonly size: number;
  /** Bytes of a request; the last one may be shorter. */
  readonly block: number;
  /** Requests in progress at once. */
  readonly depth: number;
}

/** Limits of a request for memory. */
export const MOST = { block: GiB, depth: 4096, piece: 16 * MiB } as const;

/** How long a side waits for the other, which may have to prepare much memory, in milliseconds. */
export const PATIENCE = 30_000;

/** A part of the memory, and the seed of its data. */
export interface Piece {
  readonly seed: number;
  readonly offset: number;
  readonly length: number;
  /** The number of messages that must have arrived before it is checked. */
  readonly messages: number;
}

/** @throws DmaError EINVAL if `data` is not a valid wish */
export function readWish(data: unknown): Wish {
  const { verb, size, block, depth } = fieldsOf(data);
  const known = VERBS.find((each) => each === verb);
  if (known === undefined) throw invalid('rdma', 'the client asks for an unknown action');
  if (!isWhole(size, 1) || !isWhole(block, 1, MOST.block) || block > size || !isWhole(depth, 1, MOST.depth))
    throw invalid('rdma', `the client asks for an impossible size of memory, blocks or requests`);
  return { verb: known, size, block, depth };
}

/** @throws DmaError EINVAL if `question` is not about a part of `size` bytes, or the part is too large */
export function readPiece(question: unknown, size: number): Piece {
  const { seed, offset, length, messages } = fieldsOf(question);
  if (
    !isWhole(seed, 0, 2 ** 32 - 1) ||
    !isWhole(offset, 0, size) ||
    !isWhole(length, 1, MOST.piece) ||
    !isWhole(messages, 0)
  )
    throw invalid('rdma', `a piece needs a seed, an offset, and a length of at most ${formatSize(MOST.piece)}`);
  if (offset + length > size) throw invalid('rdma', `the piece is outside of the ${formatSize(size)} of the client`);
  return { seed, offset, length, messages };
}

/** The server's hello if it refuses a client. */
export function refusal({ code, reason, hint }: DmaError): object {
  return { refused: { code, reason, hint } };
}

/** The refusal in a server's hello, as an error; `undefined` if it does not refuse. */
export function refusalOf(data: unknown, peer: string): DmaError | undefined {
  const { refused } = fieldsOf(data);
  if (refused === undefined) return undefined;
  const { code, reason, hint } = fieldsOf(refused);
  return new DmaError({
    code: isErrorCode(code) ? code : 'EIO',
    operation: 'rdma',
    reason: `${peer} refused: ${printable(reason) ?? 'no reason was given'}`,
    hint: printable(hint),
  });
}

/** A text of the other side, made safe for a terminal. */
function printable(text: unknown): string | undefined {
  return typeof text === 'string' ? text.slice(0, 1000).replace(/\p{C}/gu, ' ') : undefined;
}

function fieldsOf(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}

function isWhole(value: unknown, least: number, most = Number.MAX_SAFE_INTEGER): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= least && value <= most;
}
