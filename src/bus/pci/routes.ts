/** Network interfaces that are in use: those that routes lead through (/proc/net/route, /proc/net/ipv6_route). */
import type { KernelPort } from '../../platform/ports.js';

const RTF_UP = 0x1;
const RTF_REJECT = 0x200;
/** A route to an address of this machine's own. */
const RTF_LOCAL = 0x8000_0000;

/**
 * The route that makes `name` needed, as text; `undefined` when there is none. Routes of interfaces that sit on top of it
 * (bonds, bridges, VLANs) count; link-local and multicast ones, which every interface has, do not.
 */
export function routeThrough(kernel: KernelPort, name: string): string | undefined {
  const inUse = [...ipv4Routes(kernel), ...ipv6Routes(kernel)];
  for (const each of withUppers(kernel, name)) {
    const route = inUse.find(({ through }) => through === each);
    if (route !== undefined) return each === name ? route.text : `${route.text} by ${each}`;
  }
  return undefined;
}

/** The interface, and those above it. */
function withUppers(kernel: KernelPort, name: string): Set<string> {
  const names = new Set([name]);
  // What is added is visited as well.
  for (const each of names)
    for (const entry of kernel.list(`/sys/class/net/${each}`))
      if (entry.startsWith('upper_')) names.add(entry.slice('upper_'.length));
  return names;
}

interface Route {
  readonly through: string;
  readonly text: string;
}

function ipv4Routes(kernel: KernelPort): Route[] {
  return rows(kernel, '/proc/net/route').flatMap(([through, destination, , flags, , , , mask]) => {
    if (mask === undefined || (hexadecimal(flags) & RTF_UP) === 0) return [];
    const address = ipv4(destination);
    if (address.startsWith('169.254.')) return [];
    const bits = hexadecimal(mask).toString(2).replaceAll('0', '').length;
    return [{ through, text: bits === 0 ? 'the default route' : `the route to ${address}/${bits}` }];
  });
}

function ipv6Routes(kernel: KernelPort): Route[] {
  return rows(kernel, '/proc/net/ipv6_route').flatMap(([destination, width, , , , , , , flags, through]) => {
    if (through === undefined || /^(?:fe[89ab]|ff)/.test(destination)) return [];
    const bits = hexadecimal(flags);
    if ((bits & RTF_UP) === 0 || (bits & RTF_REJECT) !== 0 || bits >= RTF_LOCAL) return [];
    const prefix = hexadecimal(width);
    const text = prefix === 0 ? 'the IPv6 default route' : `the route to ${ipv6(destination)}/${prefix}`;
    return [{ through, text }];
  });
}

function rows(kernel: KernelPort, path: string): string[][] {
  const lines = (kernel.readText(path) ?? '').split('\n');
  return lines.filter((line) => line !== '').map((line) => line.trim().split(/\s+/));
}

function hexadecimal(text: string | undefined): number {
  return parseInt(text ?? '0', 16);
}

/** The kernel prints the four bytes as one little-endian number. */
function ipv4(text: string): string {
  return (text.match(/../g) ?? []).reverse().map(hexadecimal).join('.');
}

/** Without the shortening of zeros beyond the last group that is not zero. */
function ipv6(text: string): string {
  const groups = (text.match(/..../g) ?? []).map((group) => hexadecimal(group).toString(16));
  return groups.join(':').replace(/(?::0)+$/, '::');
}
