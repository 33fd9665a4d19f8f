/** For tests: a device of an emulated fabric, and its attributes. See fabric.ts. */
import { DmaError } from '../../../src/errors.js';
import {
  IBV_DEVICE_MEM_WINDOW,
  IBV_ODP_SUPPORT,
  IBV_ODP_SUPPORT_IMPLICIT,
} from '../../../src/platform/rdma/abi/devices.js';
import * as memoryAbi from '../../../src/platform/rdma/abi/memory.js';
import {
  IBV_QPS_ERR,
  IBV_QPS_INIT,
  IBV_QPS_RESET,
  IBV_QPS_RTR,
  IBV_QPS_RTS,
} from '../../../src/platform/rdma/abi/queues.js';
import type {
  VerbsDevice,
  VerbsDeviceAttributes,
  VerbsGid,
  VerbsPortAttributes,
  VerbsQpAttributes,
  VerbsQpStatus,
} from '../../../src/platform/rdma/verbs-types.js';
import type { FakeDevice, FakeDeviceOptions, FakeQp } from './objects.js';

const BYTES = 2 ** 31;

/** The state of a new queue pair. */
export const RESET: VerbsQpStatus = {
  state: IBV_QPS_RESET,
  access: 0,
  pkeyIndex: 0,
  port: 0,
  qkey: 0,
  mtu: 0,
  peer: 0,
  receivePsn: 0,
  sendPsn: 0,
  timeout: 0,
  retries: 0,
  rnrRetries: 0,
  minRnrTimer: 0,
  initiatorDepth: 0,
  responderDepth: 0,
};

/** The attributes of all ports. */
export const PORT: VerbsPortAttributes = {
  state: 'active',
  linkLayer: 'ethernet',
  maxMtu: 4096,
  activeMtu: 1024,
  maxMessage: BYTES,
  gids: 2,
  pkeys: 1,
  lid: 0,
  smLid: 0,
  capabilities: 0,
  grhRequired: false,
};

/** @param guid a number that no other device has */
export function fakeDevice(guid: number, options: FakeDeviceOptions): FakeDevice {
  const { name, ipv4, transport = 'ib', parent } = options;
  const bytes = ipv4.split('.').map((byte) => Number(byte).toString(16).padStart(2, '0'));
  const facts: VerbsDevice = {
    name,
    guid: `0000:0000:0000:${guid.toString(16).padStart(4, '0')}`,
    node: transport === 'iwarp' ? 'rnic' : 'ca',
    transport,
    path: `/sys/class/infiniband/${name}`,
    devicePath: '/dev/infiniband/uverbs0',
    parent,
  };
  const gid = `0000:0000:0000:0000:0000:ffff:${bytes.slice(0, 2).join('')}:${bytes.slice(2).join('')}`;
  return { options, facts, gid, contexts: new Set(), mrs: new Map(), windows: new Map(), gone: false };
}

export function gidsOf({
  gid,
  options: { gids = ['fe80:0000:0000:0000:0000:0000:0000:0001'] },
}: FakeDevice): VerbsGid[] {
  return [...gids, gid].map((each, index) => ({ port: 1, index, gid: each, type: 'roce-v2', interfaceIndex: 2 }));
}

export function attributesOf({ facts, options }: FakeDevice): VerbsDeviceAttributes {
  const odp = options.onDemand === true ? 31 : 0;
  return {
    firmware: '',
    nodeGuid: facts.guid,
    systemGuid: facts.guid,
    vendorId: 0,
    vendorPart: 0,
    hardwareVersion: 0,
    ports: 1,
    maxMrLength: 2 ** 53,
    pageSizes: [4096],
    maxMrs: options.maxMrs ?? 1000,
    maxMws: 1000,
    maxPds: 1000,
    maxQps: 1000,
    maxRequests: 16384,
    maxSges: 32,
    maxReadSges: 32,
    maxCqs: 1000,
    maxCqEntries: 32767,
    maxAhs: 1000,
    maxInitiatorDepth: 128,
    maxResponderDepth: 128,
    atomics: 'device',
    capabilities: IBV_DEVICE_MEM_WINDOW,
    odp: { general: odp === 0 ? 0 : IBV_ODP_SUPPORT + IBV_ODP_SUPPORT_IMPLICIT, rc: odp, uc: 0, ud: 0 },
    ...options.attributes,
  };
}

export function checkAccess({ options }: FakeDevice, access: number, operation: string): void {
  const writes = memoryAbi.IBV_ACCESS_REMOTE_WRITE + memoryAbi.IBV_ACCESS_REMOTE_ATOMIC;
  if ((access & writes) !== 0 && (access & memoryAbi.IBV_ACCESS_LOCAL_WRITE) === 0)
    throw new DmaError({ code: 'EINVAL', operation, reason: 'remote writes need local ones' });
  if ((access & memoryAbi.IBV_ACCESS_ON_DEMAND) !== 0 && options.onDemand !== true)
    throw new DmaError({ code: 'ENOTSUP', operation, reason: 'no on-demand paging' });
}

/** Whether the kernel allows this state change of a queue pair. */
export function mayBecome(qp: FakeQp, { state, port, peer, path }: VerbsQpAttributes): boolean {
  const now = qp.status.state;
  if (state === undefined || state === IBV_QPS_ERR || state === IBV_QPS_RESET) return true;
  if (state === IBV_QPS_INIT) return (now === IBV_QPS_RESET || now === IBV_QPS_INIT) && port === 1;
  if (state === IBV_QPS_RTR)
    return now === IBV_QPS_INIT && (qp.type === 'ud' || (peer !== undefined && path?.route !== undefined));
  return state === IBV_QPS_RTS && now === IBV_QPS_RTR;
}
