/** The options of a vfio-user client, and the arguments of its calls. */
import { mustBeMs, mustHave, optionsOf, type Shape } from '../check.js';
import type { Backing, DmaAccess } from '../dma/address-space.js';
import { invalid, type DmaError, type ErrorCode } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { show } from '../show.js';
import type { RegionDescription } from './messages.js';

/**
 * Gives memory to a device that accesses it by messages: the bytes at [iova, iova + length), or the error for the
 * reply. It is called while a message is handled, so it must not call the client.
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

/** How to connect. Times are in milliseconds. */
export interface ClientOptions {
  /** Provides the memory that the device reads and writes by messages; without it, such accesses fail with EFAULT. */
  readonly dmaTarget?: DmaTarget;
  /** Timeout for connecting and the handshake. Default 5000. */
  readonly handshakeTimeoutMs?: number;
  /** Timeout of each call. Default 5000. */
  readonly timeoutMs?: number;
  /**
   * Which regions are mapped; the others are accessed by messages. A server can truncate the file of a mapped region,
   * and an access to it then kills this process (SIGBUS), unless the file is a sealed memfd of ordinary pages.
   * `sealed`: map only such files; `trust`: map all; `never`: map none; `auto`: as `trust` for a server of this user or
   * of root, which could kill this process anyway, else as `sealed`. Default `auto`.
   */
  readonly mmap?: MmapChoice;
  /**
   * Whether the server gets the descriptors of mapped memory. A descriptor gives it the whole file, for good. `never`:
   * it gets none, and accesses memory by messages. Default `always`.
   */
  readonly share?: ShareChoice;
  /**
   * Whether stores to registers that are accessed by messages wait for the server. `answered`: each waits, and throws the
   * server's error. `posted`: they do not wait, and the protocol can not report errors. Default `posted`.
   */
  readonly stores?: StoresChoice;
  /**
   * Number of the user that must run the server (else EACCES). Default: any user; but if others may write to the folder
   * of the socket, only this user or root.
   */
  readonly user?: number;
  /** Called when the connection ends, except by `close`. */
  readonly onDisconnect?: (error: DmaError) => void;
  /** Converts the error of such an end for the calls that fail by it, and for all later ones. Default: unchanged. */
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
  /** Bytes. */
  readonly length: number;
  readonly access: DmaAccess;
  /** The file that holds the memory. Without it the server accesses the memory by messages. */
  readonly backing?: Backing | undefined;
}

/** An action on interrupt vectors, from `start` on. */
export interface InterruptRequest {
  /** Kind of interrupt, see `IRQ`. */
  readonly index: number;
  readonly action: 'mask' | 'unmask' | 'trigger';
  /** Default 0. */
  readonly start?: number;
  /** Connects vector `start + i` to `eventfds[i]`. The caller keeps the descriptors. */
  readonly eventfds?: readonly number[];
  /** Number of vectors. With neither this nor `eventfds` (and action `trigger`) the whole kind is disabled. */
  readonly count?: number;
  /** Disconnects `count` vectors from their eventfds, instead of the action. */
  readonly detach?: boolean;
}

/** A region of the device. */
export interface ClientRegion extends RegionDescription {
  /** The file to map it from, owned by the client. */
  readonly fd: number | undefined;
}

/** Options of a single call. */
export interface CallOptions {
  /** Timeout in milliseconds; default: the client's. */
  readonly timeoutMs?: number;
}

/** @throws DmaError EINVAL for invalid options or platform */
export function checkedOptions(platform: Platform, asked: ClientOptions | undefined): ClientOptions {
  const operation = 'vfio-user connect';
  mustHave(platform, ['sockets', 'files', 'memory', 'readiness'], 'platform', operation);
  const options = optionsOf(asked, CLIENT_OPTIONS, operation);
  if (options.handshakeTimeoutMs !== undefined) mustBeMs(options.handshakeTimeoutMs, 'handshakeTimeoutMs', operation);
  if (options.timeoutMs !== undefined) mustBeMs(options.timeoutMs, 'timeoutMs', operation);
  if (options.mmap !== undefined && !MMAP_CHOICES.includes(options.mmap))
    throw invalid(operation, `mmap is ${show(options.mmap)}; it must be ${MMAP_CHOICES.join(', ')}`);
  if (options.share !== undefined && !SHARE_CHOICES.includes(options.share))
    throw invalid(operation, `share is ${show(options.share)}; it must be ${SHARE_CHOICES.join(', ')}`);
  if (options.stores !== undefined && !STORES_CHOICES.includes(options.stores))
    throw invalid(operation, `stores is ${show(options.stores)}; it must be ${STORES_CHOICES.join(', ')}`);
  return options;
}
