/** Requests of a queue pair as callers give them, checked and copied. */
import { mustBe, mustBeObject, mustBeWhole, optionsOf, type Shape } from '../check.js';
import type { DmaAccess } from '../dma/address-space.js';
import type { DmaError } from '../errors.js';
import { invalid, isDmaError } from '../errors.js';
import { isAddress } from '../units.js';
import type { VerbsQp } from '../platform/rdma/verbs-types.js';
import { AddressHandle } from './address-handle.js';
import { show, thrown } from '../show.js';
import type { MemoryPart } from '../memory/part.js';

/** Memory of the peer, as the peer announced it. */
export interface RemoteMemory {
  readonly address: number;
  readonly rkey: number;
}

/** A received message. */
export interface Received {
  /** Address of the memory that was posted for it. */
  readonly va: number;
  /** Where the message begins in that memory, in bytes: 40 for datagrams, after a header, else 0. */
  readonly offset: number;
  /** length of the message in bytes */
  readonly length: number;
  /** 32 bits of immediate data */
  readonly immediate: number | undefined;
  /** The key of a window that the peer invalidated */
  readonly invalidated: number | undefined;
  /** The number of the sending queue pair, for datagrams */
  readonly sourceQp: number | undefined;
}

/** Options of `QueuePair.share`. */
export interface QueuePairShareOptions {
  /**
   * For datagrams: where another thread can send them, as `pair.setDestination(requests, slot, index)`. Their addresses can not be closed
   * meanwhile. Default none: it only receives.
   */
  readonly destinations?: readonly Destination[];
}

const SHARE_OPTIONS: Shape<QueuePairShareOptions> = { destinations: 'object' };

/** The destination of a datagram. */
export interface Destination {
  readonly address: AddressHandle;
  /** The number of its queue pair */
  readonly number: number;
  readonly qkey: number;
}

/** Asks the peer to explain an address of its memory; `undefined` if it does not answer. */
export type PeerExplainer = (
  memory: { readonly address: number; readonly length: number; readonly rkey: number },
  access: DmaAccess,
) => Promise<string | undefined>;

/** A copy of the caller's request, whose objects the caller may change. */
export interface CheckedRequest {
  readonly local: MemoryPart;
  readonly remote: RemoteMemory;
  readonly immediate: number | undefined;
  readonly to: Destination | undefined;
}

export const NO_REMOTE: RemoteMemory = { address: 0, rkey: 0 };

/** @throws DmaError EINVAL for an invalid request @param hasRemote does it name memory of the peer? */
export function checkedRequest(
  operation: string,
  request: {
    readonly local: Pick<MemoryPart, 'va'> & Partial<MemoryPart>;
    readonly remote?: RemoteMemory;
    readonly immediate?: number;
    readonly to?: Destination;
  },
  hasRemote: boolean,
): CheckedRequest {
  try {
    mustBeObject(request, 'requests', operation);
    const { local, remote, immediate, to } = request;
    if (immediate !== undefined) mustBeWhole(immediate, 0, 2 ** 32 - 1, 'immediate', operation);
    return {
      local: checkedLocal(operation, local),
      remote: hasRemote ? checkedRemote(operation, remote) : NO_REMOTE,
      immediate,
      to: to === undefined ? undefined : checkedDestination(operation, to),
    };
  } catch (error) {
    throw isDmaError(error) ? error : unreadable(operation, error);
  }
}

export function checkedLocal(operation: string, local: Pick<MemoryPart, 'va'> & Partial<MemoryPart>): MemoryPart {
  try {
    mustBeObject(local, 'local memory', operation);
    // The length of an atomic is 8 bytes.
    const { va, length = 8 } = local;
    if (!isAddress(va) || !isAddress(length))
      throw invalid(operation, `${show(length)} bytes at ${show(va)} is not a valid range of local memory`);
    return { va, length };
  } catch (error) {
    throw isDmaError(error) ? error : unreadable(operation, error);
  }
}

export function checkedRemote(operation: string, remote: RemoteMemory | undefined): RemoteMemory {
  mustBeObject(remote, 'memory of the peer', operation);
  const { address, rkey } = remote;
  if (isAddress(address) && isKey(rkey)) return { address, rkey };
  throw invalid(operation, `address ${show(address)} or key ${show(rkey)} of the remote memory is out of range`);
}

export function checkedDestination(operation: string, to: Destination): Destination {
  mustBeObject(to, 'destinations', operation);
  const { address, number, qkey } = to;
  mustBe(address, AddressHandle, 'the address of a destination', operation);
  mustBeWhole(number, 0, 2 ** 24 - 1, 'the number of a queue pair', operation);
  mustBeWhole(qkey, 0, 2 ** 32 - 1, 'qkey', operation);
  return { address, number, qkey };
}

/** The destinations of a shared queue pair. @throws DmaError EINVAL for what can not be, or can not be used with this queue pair */
export function destinationsIn(
  options: QueuePairShareOptions,
  { type, pd }: Pick<VerbsQp, 'type' | 'pd'>,
  operation: string,
): Destination[] {
  const { destinations = [] } = optionsOf<QueuePairShareOptions>(options, SHARE_OPTIONS, operation);
  if (!Array.isArray(destinations)) throw invalid(operation, 'destinations are given as an array');
  if (destinations.length > 0 && type !== 'ud')
    throw invalid(operation, 'a connected queue pair takes no destinations');
  return (destinations as readonly Destination[]).map((to) => {
    const checked = checkedDestination(operation, to);
    const { handle } = checked.address;
    if (handle.address !== 0 && handle.pd === pd) return checked;
    throw invalid(operation, 'the address of a destination was closed, or is of another device');
  });
}

export function unreadable(operation: string, cause: unknown): DmaError {
  return invalid(operation, `the request can not be read: ${thrown(cause)}`, { cause });
}

/** @throws DmaError EINVAL for a value that is not a 64-bit integer */
export function mustBeWord(value: number | bigint, what: string, operation: string): void {
  if (typeof value === 'bigint' ? value < -(2n ** 63n) || value >= 2n ** 64n : !Number.isSafeInteger(value))
    throw invalid(operation, `${what} is ${show(value)}, not a 64-bit integer`);
}

export function noRequests(operation: string, by: string): DmaError {
  return invalid(operation, `it takes requests that ${by}() of a queue pair made`);
}

/** Is it a 32-bit unsigned integer? */
export function isKey(value: number): boolean {
  return Number.isInteger(value) && value >= 0 && value < 2 ** 32;
}
