/** The addresses (GIDs) of ports, which have the form of IPv6 addresses. */
import { BlockList } from 'node:net';
import type { VerbsGid } from '../platform/rdma/verbs-types.js';

/**
 * Chooses the default address of a queue pair on a port. On Ethernet, RoCE version 2 goes before version 1, since only
 * version 2 is routed; then routable addresses, IPv4 before IPv6; then link-local addresses; then loopback. On
 * InfiniBand and iWARP it is the first one. Addresses that are not unicast (zero, broadcast, multicast) are never
 * chosen.
 */
export function chooseGid(gids: readonly VerbsGid[], port: number): VerbsGid | undefined {
  return gids
    .filter((gid) => gid.port === port && isUnicast(gid.gid))
    .sort((a, b) => rank(a) - rank(b) || a.index - b.index)[0];
}

function rank({ type, gid }: VerbsGid): number {
  if (type !== 'roce-v1' && type !== 'roce-v2') return 16;
  return (
    (isIn(LOOPBACK, gid) ? 8 : 0) +
    (type === 'roce-v1' ? 4 : 0) +
    (isIn(LINK_LOCAL, gid) ? 2 : 0) +
    (ipv4Of(gid) === undefined ? 1 : 0)
  );
}

/** Is it a unicast address: not zero, broadcast or multicast? */
export function isUnicast(gid: string): boolean {
  return isGid(gid) && !isIn(NOBODY, gid);
}

/** The IPv4 address in a GID of the form `::ffff:a.b.c.d`; `undefined` for others. */
export function ipv4Of(gid: string): string | undefined {
  const match = /^(?:0000:){5}ffff:([0-9a-f]{2})([0-9a-f]{2}):([0-9a-f]{2})([0-9a-f]{2})$/i.exec(gid);
  return match
    ?.slice(1)
    .map((byte) => parseInt(byte, 16))
    .join('.');
}

/** Is it a GID in the kernel's notation: 8 groups of 4 hexadecimal digits? */
export function isGid(text: string): boolean {
  return /^[0-9a-f]{4}(:[0-9a-f]{4}){7}$/i.test(text);
}

function isIn(list: BlockList, gid: string): boolean {
  const ipv4 = ipv4Of(gid);
  return ipv4 === undefined ? list.check(gid, 'ipv6') : list.check(ipv4, 'ipv4');
}

function listOf(...subnets: readonly (readonly [address: string, prefix: number])[]): BlockList {
  const list = new BlockList();
  for (const [address, prefix] of subnets) list.addSubnet(address, prefix, address.includes(':') ? 'ipv6' : 'ipv4');
  return list;
}

/** RFC 6890 and RFC 4291. */
const LOOPBACK = listOf(['127.0.0.0', 8], ['::1', 128]);
const LINK_LOCAL = listOf(['169.254.0.0', 16], ['fe80::', 10]);
const NOBODY = listOf(['0.0.0.0', 8], ['224.0.0.0', 4], ['255.255.255.255', 32], ['::', 128], ['ff00::', 8]);
