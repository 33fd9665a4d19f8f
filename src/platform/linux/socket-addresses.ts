/** IP addresses in the kernel's format. */
import { isIPv4, isIPv6 } from 'node:net';
import { networkInterfaces } from 'node:os';
import { invalid } from '../../errors.js';
import { AF_INET, AF_INET6, SOCKADDR_IN, SOCKADDR_IN6 } from '../uapi/socket.js';

/** Size in bytes of the longest address. */
export const SOCKADDR_ROOM = SOCKADDR_IN6.sizeof;

/** The `sockaddr_in` or `sockaddr_in6` of an address; EINVAL for an invalid one. */
export function writeSocketAddress(host: string, port: number, operation: string): Uint8Array {
  if (!Number.isInteger(port) || port < 0 || port > 65535) throw invalid(operation, `${port} is not a port`);
  const struct = new DataView(new ArrayBuffer(SOCKADDR_ROOM));
  if (isIPv4(host)) {
    struct.setUint16(SOCKADDR_IN.sin_family, AF_INET, true);
    struct.setUint16(SOCKADDR_IN.sin_port, port);
    for (const [i, byte] of host.split('.').entries()) struct.setUint8(SOCKADDR_IN.sin_addr + i, Number(byte));
  } else if (isIPv6(host)) {
    const [address, zone] = host.split('%');
    struct.setUint16(SOCKADDR_IN6.sin6_family, AF_INET6, true);
    struct.setUint16(SOCKADDR_IN6.sin6_port, port);
    for (const [i, group] of groupsOf(address).entries()) struct.setUint16(SOCKADDR_IN6.sin6_addr + 2 * i, group);
    if (zone !== undefined) struct.setUint32(SOCKADDR_IN6.sin6_scope_id, scopeOf(zone, operation), true);
  } else throw invalid(operation, `${JSON.stringify(host)} is not an IP address`);
  return new Uint8Array(struct.buffer);
}

/** The address in a `sockaddr`; `undefined` if there is none, or its family is not IP. */
export function readSocketAddress(struct: DataView): { host: string; port: number } | undefined {
  const family = struct.getUint16(SOCKADDR_IN.sin_family, true);
  const port = struct.getUint16(SOCKADDR_IN.sin_port);
  if (family === AF_INET) {
    const bytes = Array.from({ length: 4 }, (_, i) => struct.getUint8(SOCKADDR_IN.sin_addr + i));
    return { host: bytes.join('.'), port };
  }
  if (family !== AF_INET6) return undefined;
  const groups = Array.from({ length: 8 }, (_, i) => struct.getUint16(SOCKADDR_IN6.sin6_addr + 2 * i).toString(16));
  // The URL parser shortens an IPv6 address.
  const host = new URL(`http://[${groups.join(':')}]`).hostname.slice(1, -1);
  const scope = struct.getUint32(SOCKADDR_IN6.sin6_scope_id, true);
  const zone = scope === 0 ? '' : `%${zoneOf(scope) ?? scope}`;
  return { host: `${host}${zone}`, port };
}

function groupsOf(address: string): number[] {
  const text = new URL(`http://[${address}]`).hostname.slice(1, -1);
  const [start, end] = text.split('::').map((part) => (part === '' ? [] : part.split(':')));
  const all =
    end === undefined ? start : [...start, ...new Array<string>(8 - start.length - end.length).fill('0'), ...end];
  return all.map((group) => parseInt(group, 16));
}

function scopeOf(zone: string, operation: string): number {
  if (/^\d+$/.test(zone)) return Number(zone);
  const found = networkInterfaces()[zone]?.find((each) => each.family === 'IPv6')?.scopeid;
  if (found === undefined) throw invalid(operation, `no network interface ${zone} with an IPv6 address exists`);
  return found;
}

function zoneOf(scope: number): string | undefined {
  const all = Object.entries(networkInterfaces());
  return all.find(([, addresses]) => addresses?.some((each) => each.family === 'IPv6' && each.scopeid === scope))?.[0];
}
