/** Connecting a queue pair: the path to its peer, and the changes of its state. */
import { mustBeWhole, optionsOf } from '../check.js';
import { DmaError, invalid, type ErrorCode } from '../errors.js';
import { IBV_QPS_RTR, IBV_QPS_RTS } from '../platform/rdma/abi/queues.js';
import type { VerbsPath, VerbsPortAttributes, VerbsQpAttributes } from '../platform/rdma/verbs-types.js';
import type { RdmaContext } from './context.js';
import { isUnicast } from './gid.js';
import {
  checkAddress,
  checkTimes,
  CONNECT_OPTIONS,
  type ConnectOptions,
  MTUS,
  type QueuePairAddress,
} from './queue-pair-options.js';

/** Most outstanding reads and atomics. */
export const READS = 16;
/** Code of the time that a peer waits if no receive is posted: 0.64 ms. */
const RNR_TIMER = 12;

/** The port that a queue pair uses. */
export interface QueuePairPort {
  readonly port: number;
  readonly portAttributes: VerbsPortAttributes;
  readonly gid: { readonly index: number; readonly gid: string } | undefined;
}

/** The changes of state that connect a queue pair, in order. @throws DmaError as `QueuePair.connect` */
export function connectSteps(
  parts: QueuePairPort & { readonly rdma: RdmaContext; readonly device: string },
  queue: { readonly type: 'rc' | 'uc' | 'ud'; readonly address: QueuePairAddress },
  peer: QueuePairAddress,
  asked: ConnectOptions | undefined,
): { readonly receiving: VerbsQpAttributes; readonly sending: VerbsQpAttributes } {
  const operation = 'connect';
  const refused = (code: ErrorCode, reason: string, hint?: string): DmaError =>
    new DmaError({ code, operation, device: parts.device, reason, hint });
  const options = optionsOf(asked, CONNECT_OPTIONS, operation);
  const { type, address } = queue;
  if (type === 'ud') throw refused('EINVAL', 'datagrams need no connection: give each send its destination');
  checkAddress(peer);
  checkTimes(options, operation);
  if (options.mtu !== undefined && !MTUS.includes(options.mtu))
    throw invalid(operation, `mtu is ${options.mtu}`, { hint: `it is ${MTUS.join(', ')}` });
  mustBeWhole(options.serviceLevel ?? 0, 0, 15, 'serviceLevel', operation);
  mustBeWhole(options.trafficClass ?? 0, 0, 255, 'trafficClass', operation);
  const { attributes, isIwarp } = parts.rdma;
  if (isIwarp)
    throw refused(
      'ENOTSUP',
      'queue pairs of iWARP devices are connected by the connection manager',
      'take `PeerSession.join`, or `RdmaDevice.connect` and `RdmaDevice.listen`',
    );
  const { mtu = Math.min(address.mtu, peer.mtu), timeout = 14, retries = 7, rnrRetries = 7 } = options;
  const ready: VerbsQpAttributes = {
    state: IBV_QPS_RTR,
    path: pathTo(parts, peer, options),
    mtu,
    peer: peer.number,
    receivePsn: peer.psn,
  };
  const send: VerbsQpAttributes = { state: IBV_QPS_RTS, sendPsn: address.psn };
  if (type === 'uc') return { receiving: ready, sending: send };
  const initiatorDepth = Math.min(READS, attributes.maxInitiatorDepth, peer.reads);
  return {
    receiving: { ...ready, responderDepth: address.reads, minRnrTimer: RNR_TIMER },
    sending: { ...send, timeout, retries, rnrRetries, initiatorDepth },
  };
}

/** The path to a port, from the port of a queue pair. */
export function pathTo(
  { port, portAttributes, gid }: QueuePairPort,
  peer: Pick<QueuePairAddress, 'gid' | 'lid'>,
  { serviceLevel = 0, trafficClass = 0 }: Pick<ConnectOptions, 'serviceLevel' | 'trafficClass'> = {},
): VerbsPath {
  const isRouted = portAttributes.linkLayer === 'ethernet' || portAttributes.grhRequired || peer.lid === 0;
  if (isRouted && !isUnicast(peer.gid))
    throw invalid('connect', `${peer.gid} is not a unicast address: it is zero, broadcast or multicast`, {
      hint: 'the port of the peer has no address: give its network interface one',
    });
  const route = isRouted && gid !== undefined ? { gid: peer.gid, localIndex: gid.index, trafficClass } : undefined;
  return { port, lid: peer.lid, serviceLevel, route };
}
