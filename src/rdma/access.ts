/** Translates access rights to the flags of libibverbs. */
import type { DmaAccess, RegionTraits, RemoteAccess } from '../dma/address-space.js';
import type { VerbsDeviceAttributes } from '../platform/rdma/verbs-types.js';
import {
  IBV_ACCESS_LOCAL_WRITE,
  IBV_ACCESS_MW_BIND,
  IBV_ACCESS_ON_DEMAND,
  IBV_ACCESS_REMOTE_ATOMIC,
  IBV_ACCESS_REMOTE_READ,
  IBV_ACCESS_REMOTE_WRITE,
} from '../platform/rdma/abi/memory.js';

/** The flags for what peers may do. Read and write access together include atomics, if the device supports them. */
export function remoteFlags(remote: RemoteAccess, { atomics }: Pick<VerbsDeviceAttributes, 'atomics'>): number {
  switch (remote) {
    case 'none':
      return 0;
    case 'read':
      return IBV_ACCESS_REMOTE_READ;
    case 'write':
      return IBV_ACCESS_REMOTE_WRITE;
    case 'read-write':
      return IBV_ACCESS_REMOTE_READ + IBV_ACCESS_REMOTE_WRITE + (atomics === 'none' ? 0 : IBV_ACCESS_REMOTE_ATOMIC);
  }
}

/**
 * The flags of a region. If the device supports windows, they can be bound to all memory that the device may write:
 * binding is an action of this program, and such a region counts as writable.
 */
export function regionFlags(
  access: DmaAccess,
  { remote, paging }: RegionTraits,
  attributes: Pick<VerbsDeviceAttributes, 'atomics' | 'maxMws'>,
): number {
  const writes = access !== 'read';
  const onDemand = paging === 'on-demand';
  return (
    (writes ? IBV_ACCESS_LOCAL_WRITE : 0) +
    remoteFlags(remote, attributes) +
    (onDemand ? IBV_ACCESS_ON_DEMAND : 0) +
    (writes && !onDemand && attributes.maxMws > 0 ? IBV_ACCESS_MW_BIND : 0)
  );
}
