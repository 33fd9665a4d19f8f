/** What a queue pair is made with, and how it is connected: options and addresses, checked. */
import { mustBeObject, mustBeWhole, optionsOf, reading, type Shape } from '../check.js';
import type { RemoteAccess } from '../dma/address-space.js';
import { REMOTES } from '../dma/plan.js';
import { invalid } from '../errors.js';
import { CompletionQueue } from './completion-queue.js';
import type { RdmaContext } from './context.js';
import { isGid } from './gid.js';
import { isKey } from './queue-pair-requests.js';

/** Options of a queue pair. */
export interface QueuePairOptions {
  /** Reliable connection (the default), unreliable connection, unreliable datagrams. */
  readonly type?: 'rc' | 'uc' | 'ud';
  /**
   * Queue of its completions. It must have room for all `sends` and `receives` of its queue pairs. Default: a queue of
   * its own, closed with it.
   */
  readonly completions?: CompletionQueue;
  /** Queue of receive completions. Default: `completions`. */
  readonly receiveCompletions?: CompletionQueue;
  /** Send requests that can be outstanding. Default 128, or the device's limit if less. */
  readonly sends?: number;
  /** Receives that can be posted. Default 128, or the device's limit if less. */
  readonly receives?: number;
  /** Most segments of a request. Default 1. */
  readonly sendSges?: number;
  readonly receiveSges?: number;
  /**
   * Messages up to this many bytes are copied into the request itself, so that the device need not fetch them. Default
   * 0.
   */
  readonly inline?: number;
  /** Default: the first active port, else port 1. */
  readonly port?: number;
  /** The port's address to use: an index of its GID table. Default: see `chooseGid`. */
  readonly gidIndex?: number;
  /** What the peer may do through it, if the memory allows that too. Default `read-write`, with atomics. */
  readonly remote?: RemoteAccess;
  /** For datagrams: senders must pass this key. Default 0x11111111. */
  readonly qkey?: number;
  /** Called for memory without a key, to map it on demand; see `MapOnMiss.map`. Default: none. */
  readonly miss?: (va: number, length: number) => boolean;
}

export const QUEUE_PAIR_OPTIONS: Shape<QueuePairOptions> = {
  type: ['rc', 'uc', 'ud'],
  completions: CompletionQueue,
  receiveCompletions: CompletionQueue,
  sends: 'number',
  receives: 'number',
  sendSges: 'number',
  receiveSges: 'number',
  inline: 'number',
  port: 'number',
  gidIndex: 'number',
  remote: REMOTES,
  qkey: 'number',
  miss: 'function',
};

/** Checked options, with the numbers of requests filled in. */
export type CheckedQueuePairOptions = QueuePairOptions & Required<Pick<QueuePairOptions, 'sends' | 'receives'>>;

/** @throws DmaError EINVAL for options that this device does not support */
export function queuePairOptions(
  asked: QueuePairOptions | undefined,
  rdma: RdmaContext,
  operation: string,
): CheckedQueuePairOptions {
  const options = optionsOf(asked, QUEUE_PAIR_OPTIONS, operation);
  const { limits, attributes } = rdma;
  const byDefault = attributes.maxRequests > 0 ? Math.min(128, attributes.maxRequests) : 128;
  const { sends = byDefault, receives = byDefault, sendSges = 1, receiveSges = 1, inline = 0, qkey = 0 } = options;
  // 65536: more than the queues of promises hold, see `CompletionQueue.promise`.
  const requests = { least: 0, own: 65536, limit: attributes.maxRequests, c: 'max_qp_wr', operation };
  const segments = { least: 1, own: 65536, limit: attributes.maxSges, c: 'max_sge', operation };
  limits.mustHave(sends, 'sends', requests);
  limits.mustHave(receives, 'receives', requests);
  limits.mustHave(sendSges, 'sendSges', segments);
  limits.mustHave(receiveSges, 'receiveSges', segments);
  mustBeWhole(inline, 0, 2 ** 31 - 1, 'inline', operation);
  mustBeWhole(qkey, 0, 2 ** 32 - 1, 'qkey', operation);
  for (const queue of [options.completions, options.receiveCompletions])
    if (queue !== undefined && (!queue.live || !queue.isOf(rdma)))
      throw invalid(
        operation,
        queue.live ? 'the completion queue is of another device' : 'the completion queue is closed',
      );
  return { ...options, sends, receives };
}

/** What the peer must know of a queue pair. Sent over the network as it is. */
export interface QueuePairAddress {
  readonly number: number;
  /** Its first send sequence number, 24 bits */
  readonly psn: number;
  /** The port's address in the kernel's notation */
  readonly gid: string;
  /** The port's LID on InfiniBand, else 0 */
  readonly lid: number;
  /** path MTU limit of its port, in bytes */
  readonly mtu: number;
  /** Reads and atomics that it accepts at once */
  readonly reads: number;
  /** For datagrams; 0 for connections */
  readonly qkey: number;
}

/** Options of a connection. The defaults suit a reliable network. */
export interface ConnectOptions {
  /** bytes: 256, 512, 1024, 2048 or 4096. Default: the smaller of both ports'. */
  readonly mtu?: number;
  /** The acknowledgement timeout is 4.096 µs * 2^timeout. Default 14, which is 67 ms; 0 waits forever. */
  readonly timeout?: number;
  /** Retries after a timeout. Default 7. */
  readonly retries?: number;
  /** Retries while the peer has no receive posted. Default 7, which means unlimited. */
  readonly rnrRetries?: number;
  /** Default 0. */
  readonly serviceLevel?: number;
  /** Default 0. */
  readonly trafficClass?: number;
}

export const CONNECT_OPTIONS: Shape<ConnectOptions> = {
  mtu: 'number',
  timeout: 'number',
  retries: 'number',
  rnrRetries: 'number',
  serviceLevel: 'number',
  trafficClass: 'number',
};

export const CONNECT_ASYNC_OPTIONS: Shape<ConnectOptions & { readonly signal?: AbortSignal }> = {
  ...CONNECT_OPTIONS,
  signal: 'signal',
};

/** @throws DmaError EINVAL for invalid timeouts or retry counts */
export function checkTimes(
  { timeout, retries, rnrRetries }: Pick<ConnectOptions, 'timeout' | 'retries' | 'rnrRetries'>,
  operation: string,
): void {
  if (timeout !== undefined) mustBeWhole(timeout, 0, 31, 'timeout', operation);
  if (retries !== undefined) mustBeWhole(retries, 0, 7, 'retries', operation);
  if (rnrRetries !== undefined) mustBeWhole(rnrRetries, 0, 7, 'rnrRetries', operation);
}

/** Path MTUs in bytes. */
export const MTUS: readonly number[] = [256, 512, 1024, 2048, 4096];
export const NO_GID = '0000:0000:0000:0000:0000:0000:0000:0000';

/** Checks an address from the peer. @throws DmaError EINVAL if it is not valid */
export function checkAddress(peer: QueuePairAddress): void {
  mustBeObject(peer, 'addresses of queue pairs', 'connect');
  const { number, psn, gid, lid, mtu, reads, qkey } = reading('connect', 'the address', () => ({ ...peer }));
  const whole = (value: number, limit: number): boolean => Number.isInteger(value) && value >= 0 && value < limit;
  const isSound =
    whole(number, 2 ** 24) &&
    whole(psn, 2 ** 24) &&
    whole(lid, 2 ** 16) &&
    whole(reads, 256) &&
    isKey(qkey) &&
    MTUS.includes(mtu) &&
    typeof gid === 'string' &&
    isGid(gid);
  if (!isSound) throw invalid('connect', 'this is not the address of a queue pair');
}
