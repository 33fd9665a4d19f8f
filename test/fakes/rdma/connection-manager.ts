/** For tests: the connection manager of an emulated fabric. See fabric.ts. */
import { DmaError, type ErrorCode } from '../../../src/errors.js';
import type {
  CmAddress,
  CmChannel,
  CmEvent,
  CmId,
  CmParameters,
  RdmaCmPort,
} from '../../../src/platform/rdma/rdma-cm-port.js';
import type { VerbsHandle, VerbsQpStatus } from '../../../src/platform/rdma/verbs-types.js';
import { IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS } from '../../../src/platform/rdma/abi/queues.js';

/** The parts of a device that the manager needs. */
export interface CmDevice {
  readonly name: string;
  readonly ipv4: string;
  readonly gid: string;
  readonly isIwarp: boolean;
}

/** The state of a fabric's manager: listeners by host and port. */
export type CmListeners = Map<string, FakeId>;

/** What the manager needs of a fabric. */
export interface CmFabric {
  /** All queue pairs, by GID and number. */
  readonly pairs: ReadonlyMap<string, { status: VerbsQpStatus; peerGid: string }>;
  readonly listeners: CmListeners;
  number(): number;
}

interface FakeChannel extends CmChannel {
  address: number;
  readonly events: CmEvent[];
  readonly ring: () => void;
  ids: number;
}

/** @internal */
export interface FakeId extends CmId {
  address: number;
  readonly channel: FakeChannel;
  device: CmDevice | undefined;
  local: CmAddress | undefined;
  remote: CmAddress | undefined;
  peer: FakeId | undefined;
  parameters: CmParameters | undefined;
}

/**
 * The manager of a host with these devices.
 *
 * @param signal makes a descriptor that is ready as long as the function says so; `ring` tells that it may be
 */
export function fakeRdmaCm(
  fabric: CmFabric,
  devices: readonly CmDevice[],
  signal: (isReady: () => boolean) => { readonly fd: number; ring(): void },
): RdmaCmPort {
  const fail = (code: ErrorCode, operation: string, reason: string): never => {
    throw new DmaError({ code, operation, reason });
  };
  const need = <T extends VerbsHandle>(handle: VerbsHandle): T => {
    if (handle.address === 0) fail('EINVAL', 'rdma_cm', 'this handle is not open');
    return handle as T;
  };
  const tell = (id: FakeId, name: string, more: Partial<CmEvent> = {}): void => {
    const common = { status: 0, listener: undefined, data: new Uint8Array(0), responderDepth: 0, initiatorDepth: 0 };
    id.channel.events.push({ ...common, ...more, name, id });
    id.channel.ring();
  };
  const makeId = (channel: FakeChannel): FakeId => {
    channel.ids++;
    const nothing = { device: undefined, local: undefined, remote: undefined, peer: undefined, parameters: undefined };
    return { address: fabric.number() * 64, channel, ...nothing };
  };
  /** What the device of an iWARP connection does by itself. */
  const join = (id: FakeId): void => {
    const pair = fabric.pairs.get(`${id.device?.gid ?? ''} ${id.parameters?.queuePair ?? 0}`);
    if (pair === undefined || id.device?.isIwarp !== true) return;
    pair.status = { ...pair.status, state: IBV_QPS_RTS, peer: id.peer?.parameters?.queuePair ?? 0, rnrRetries: 7 };
    pair.peerGid = id.peer?.device?.gid ?? '';
  };
  const leave = (id: FakeId): void => {
    const { peer } = id;
    id.peer = undefined;
    if (peer === undefined) return;
    peer.peer = undefined;
    tell(peer, id.parameters === undefined ? 'REJECTED' : 'DISCONNECTED');
  };
  const sent = (parameters: CmParameters): Partial<CmEvent> => ({
    data: parameters.data.slice(),
    responderDepth: parameters.initiatorDepth,
    initiatorDepth: parameters.responderDepth,
  });

  return {
    limitation: undefined,
    createChannel() {
      const events: CmEvent[] = [];
      const ready = signal(() => events.length > 0);
      return { address: fabric.number() * 64, fd: ready.fd, events, ring: () => ready.ring(), ids: 0 } as FakeChannel;
    },
    destroyChannel(handle) {
      const channel = need<FakeChannel>(handle);
      if (channel.ids > 0) fail('EBUSY', 'rdma_destroy_event_channel', `${channel.ids} ids use it`);
      channel.address = 0;
    },
    nextEvent: (handle) => need<FakeChannel>(handle).events.shift(),
    createId: (handle) => makeId(need<FakeChannel>(handle)),
    destroyId(handle) {
      const id = need<FakeId>(handle);
      leave(id);
      for (const [key, listener] of fabric.listeners) if (listener === id) fabric.listeners.delete(key);
      const { events } = id.channel;
      events.splice(0, events.length, ...events.filter((event) => event.id !== id));
      id.channel.ids--;
      id.address = 0;
    },
    bind(handle, { host, port }) {
      const id = need<FakeId>(handle);
      id.device = devices.find(({ ipv4 }) => ipv4 === host);
      if (id.device === undefined) fail('ENODEV', 'rdma_bind_addr', `no device has ${host}`);
      id.local = { host, port: port === 0 ? 20000 + fabric.number() : port };
    },
    listen(handle) {
      const id = need<FakeId>(handle);
      const key = `${id.local?.host ?? ''} ${id.local?.port ?? 0}`;
      if (fabric.listeners.has(key)) fail('EADDRINUSE', 'rdma_listen', key);
      fabric.listeners.set(key, id);
    },
    resolveAddress(handle, to) {
      const id = need<FakeId>(handle);
      const net = to.host.split('.').slice(0, 3).join('.');
      id.device = devices.find(({ ipv4 }) => ipv4.startsWith(`${net}.`));
      id.remote = to;
      if (id.device === undefined) return tell(id, 'ADDR_ERROR', { status: -19 });
      id.local = { host: id.device.ipv4, port: 20000 + fabric.number() };
      tell(id, 'ADDR_RESOLVED');
    },
    resolveRoute: (handle) => tell(need<FakeId>(handle), 'ROUTE_RESOLVED'),
    device: (handle) => need<FakeId>(handle).device?.name,
    local: (handle) => need<FakeId>(handle).local,
    remote: (handle) => need<FakeId>(handle).remote,
    qpAttributes(handle, state) {
      const { peer, device } = need<FakeId>(handle);
      if (peer?.device === undefined || device === undefined)
        return fail('EINVAL', 'rdma_init_qp_attr', 'no connection');
      if (state === IBV_QPS_INIT) return { state, port: 1, pkeyIndex: 0, access: 0 };
      if (state === IBV_QPS_RTS)
        return { state, sendPsn: 1, timeout: 14, retries: 7, rnrRetries: 7, initiatorDepth: 16 };
      if (state !== IBV_QPS_RTR) return { state };
      const path = { port: 1, route: { gid: peer.device.gid, localIndex: 1 } };
      const other = peer.parameters?.queuePair ?? 0;
      return { state, path, mtu: 1024, peer: other, receivePsn: 1, responderDepth: 16, minRnrTimer: 0 };
    },
    connect(handle, parameters) {
      const id = need<FakeId>(handle);
      id.parameters = parameters;
      const listener = fabric.listeners.get(`${id.remote?.host ?? ''} ${id.remote?.port ?? 0}`);
      if (listener === undefined) return tell(id, 'REJECTED', { status: 8 });
      const other = makeId(listener.channel);
      Object.assign(other, { device: listener.device, local: listener.local, remote: id.local, peer: id });
      id.peer = other;
      tell(other, 'CONNECT_REQUEST', { listener, ...sent(parameters) });
    },
    accept(handle, parameters) {
      const id = need<FakeId>(handle);
      const { peer } = id;
      if (peer === undefined) return fail('ECONNRESET', 'rdma_accept', 'the peer is gone');
      id.parameters = parameters;
      join(id);
      join(peer);
      if (id.device?.isIwarp === true) tell(id, 'ESTABLISHED');
      tell(peer, id.device?.isIwarp === true ? 'ESTABLISHED' : 'CONNECT_RESPONSE', sent(parameters));
    },
    establish(handle) {
      const { peer } = need<FakeId>(handle);
      if (peer !== undefined) tell(peer, 'ESTABLISHED');
    },
    reject: (handle) => leave(need<FakeId>(handle)),
    disconnect: (handle) => leave(need<FakeId>(handle)),
  };
}
