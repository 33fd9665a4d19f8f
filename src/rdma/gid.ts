/** The addresses of ports. */
import type { VerbsGid } from '../platform/verbs-types.js';

/**
 * The address that a queue pair of a port uses when nobody says which: on Ethernet RoCE version 2 before version 1, since
 * only that is routed, of those an IPv4 address, then an IPv6 one that is not link-local; on InfiniBand the first.
 */
export function chooseGid(gids: readonly VerbsGid[], port: number): VerbsGid | undefined {
  return gids.filter((gid) => gid.port === port).sort((a, b) => rank(a) - rank(b) || a.index - b.index)[0];
}

function rank({ type, gid }: VerbsGid): number {
  if (type !== 'roce-v2') return type === 'roce-v1' ? 3 : 4;
  if (ipv4Of(gid) !== undefined) return 0;
  return gid.startsWith('fe80') ? 2 : 1;
}

/** The IPv4 address that a GID is made of (`::ffff:a.b.c.d`), if it is. */
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
