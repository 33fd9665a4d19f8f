/** What a client of vfio-user is told, and what its calls take. */
import { mustBeMs, mustHave, optionsOf, type Shape } from '../check.js';
import type { Backing, DmaAccess } from '../dma/address-space.js';
import { invalid, type DmaError, type ErrorCode } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { show } from '../show.js';
import type { RegionDescription } from './messages.js';

/**
 * Memory for a device that asks for it by message: the bytes at [iova, iova + length), or the error to answer. It is called
 * while a message is handled, so it must not call the client.
 */
export type DmaTarget = (iova: number, length: number, access: 'read' | 'write') => Uint8Array | ErrorCode;

/** See {@link ClientOptions.mmap}. */
export type MmapChoice = 'auto' | 'trust' | 'sealed' | 'never';

export const MMAP_CHOICES: readonly MmapChoice[] = ['auto', 'trust', 'sealed', 'never'];

/** See {@link ClientOptions.share}. */
export type ShareChoice = 'always' | 'never';

export const SHARE_CHOICES: readonly ShareChoice[] = ['always', 'never'];

/** See {@link ClientOptions.stores}. */
export type StoresChoice = 'posted' | 'answered';

export const STORES_CHOICES: readonly StoresChoice[] = ['posted', 'answered'];

/** How to connect, and what for. Times in milliseconds. */
export interface ClientOptions {
  /** Answers what the device reads and writes by message; without it, such accesses are answered with EFAULT. */
  readonly dmaTarget?: DmaTarget;
  /** For connecting and learning about the device. Default 5000. */
  readonly handshakeTimeoutMs?: number;
  /** For each call. Default 5000. */
  readonly timeoutMs?: number;
  /**
   * Which regions are mapped; the others are reached by message. A server can take pages away from what is mapped, and a touch of
   * them then ends this process, unless the file is a sealed memfd of ordinary pages. `sealed`: only such; `trust`: all;
   * `never`: none; `auto`: all of a server of this user or of root, who could end this process anyway, else as `sealed`.
   * Default `auto`.
   */
  readonly mmap?: MmapChoice;
  /**
   * Does the server get the descriptors of memory that is mapped? With one it reaches the whole file, for good. `never`: it gets none,
   * and asks for each access by message. Default `always`.
   */
  readonly share?: ShareChoice;
  /**
   * Do stores to registers that are reached by message wait for the server? `answered`: each does, and throws what the
   * server refuses. `posted`: they do not, and the protocol has no way to tell what is refused. Default `posted`.
   */
  readonly stores?: StoresChoice;
  /**
   * Number of the user that must run the server (else EACCES). Default: anybody, but where others may write to the folder of
   * the socket, this user or root.
   */
  readonly user?: number;
  /** The connection has ended, other than by `close`. */
  readonly onDisconnect?: (error: DmaError) => void;
  /** The error of calls that such an end meets, and of all later ones. Default: the same. */
  readonly lostAs?: (error: DmaError) => DmaError;
}

const CLIENT_OPTIONS: Shape<ClientOptions> = {
  dmaTarget: 'function',
  handshakeTimeoutMs: 'number',
  timeoutMs: 'number',
  mmap: 'string',
  share: 'string',
  stores: 'string',
  user: 'number',
  onDisconnect: 'function',
  lostAs: 'function',
};

/** One DMA region for the server. */
export interface DmaRegion {
  readonly iova: number;
  /** bytes */
  readonly length: number;
  readonly access: DmaAccess;
  /** Where the memory is. Without it the server has to ask for each access by message. */
  readonly backing?: Backing | undefined;
}

/** What to do to interrupt vectors `start` and on. */
export interface InterruptRequest {
  /** Kind of interrupt, see `IRQ`. */
  readonly index: number;
  readonly action: 'mask' | 'unmask' | 'trigger';
  /** Default 0. */
  readonly start?: number;
  /** Connects vector `start + i` to `eventfds[i]`, which stay the caller's. */
  readonly eventfds?: readonly number[];
  /** Vectors; with neither this nor `eventfds` (and action `trigger`) the whole kind is switched off. */
  readonly count?: number;
  /** Disconnects `count` vectors from their eventfds, instead of acting on them. */
  readonly detach?: boolean;
}

/** A region of the device. */
export interface ClientRegion extends RegionDescription {
  /** The file to map it from; the client's. */
  readonly fd: number | undefined;
}

/** Options of a single call. */
export interface CallOptions {
  /** milliseconds; default: the client's */
  readonly timeoutMs?: number;
}

/** @throws DmaError EINVAL for what can be no options, or no platform */
export function checkedOptions(platform: Platform, asked: ClientOptions | undefined): ClientOptions {
  const operation = 'vfio-user connect';
  mustHave(platform, ['sockets', 'files', 'memory', 'readiness'], 'platform', operation);
  const options = optionsOf(asked, CLIENT_OPTIONS, operation);
  if (options.handshakeTimeoutMs !== undefined) mustBeMs(options.handshakeTimeoutMs, 'handshakeTimeoutMs', operation);
  if (options.timeoutMs !== undefined) mustBeMs(options.timeoutMs, 'timeoutMs', operation);
  if (options.mmap !== undefined && !MMAP_CHOICES.includes(options.mmap))
    throw invalid(operation, `mmap is ${show(options.mmap)}: it is ${MMAP_CHOICES.join(', ')}`);
  if (options.share !== undefined && !SHARE_CHOICES.includes(options.share))
    throw invalid(operation, `share is ${show(options.share)}: it is ${SHARE_CHOICES.join(', ')}`);
  if (options.stores !== undefined && !STORES_CHOICES.includes(options.stores))
    throw invalid(operation, `stores is ${show(options.stores)}: it is ${STORES_CHOICES.join(', ')}`);
  return options;
}
